"""Certificates of old cluster authorities, and credentials whose files change."""

import asyncio
import json
import shutil
import ssl
from pathlib import Path

import pytest

from finetune_client import configuration as module
from finetune_client.api import Api
from finetune_client.configuration import load_configuration
from finetune_client.errors import TRANSIENT, CredentialsError
from tests.client.servers import EMPTY, Request, make_certificate, make_old_certificate, serve


async def test_an_old_authority_is_refused_by_the_name_of_the_switch(kubeconfig, tmp_path):
    tls, authority = make_old_certificate(tmp_path, "127.0.0.1")
    async with serve(tls=tls) as server:
        path = kubeconfig(
            {
                "server": f"https://127.0.0.1:{server.port}",
                "certificate-authority": str(authority),
            }
        )
        async with Api(load_configuration(path)) as api:
            with pytest.raises(TRANSIENT, match="FINETUNE_STRICT_CERTIFICATES") as refused:
                await api.create("/api/v1/pods", {})
        assert "Missing Authority Key Identifier" in str(refused.value)
        async with Api(load_configuration(path, strict=False)) as api:
            await api.create("/api/v1/pods", {})


async def test_without_the_switch_certificates_are_verified_nevertheless(kubeconfig, tmp_path):
    tls, _ = make_certificate(tmp_path, "127.0.0.1")
    (tmp_path / "other").mkdir()
    _, other = make_certificate(tmp_path / "other", "127.0.0.1")
    async with serve(tls=tls) as server:
        cluster = {"server": f"https://127.0.0.1:{server.port}"}
        path = kubeconfig(cluster | {"certificate-authority": str(other)})
        async with Api(load_configuration(path, strict=False)) as api:
            with pytest.raises(TRANSIENT, match="verify failed") as refused:
                await api.create("/api/v1/pods", {})
        assert "FINETUNE_STRICT_CERTIFICATES" not in str(refused.value)


@pytest.fixture
def always_fresh(monkeypatch) -> None:
    """Read credentials again for each request, and wait for them."""
    monkeypatch.setattr(module, "_FRESH", 0.0)
    monkeypatch.setattr(module, "_USABLE", 0.0)


async def test_a_new_authority_is_read_when_its_file_changes(kubeconfig, tmp_path, always_fresh):
    file = tmp_path / "ca.crt"
    path, port = None, 0
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        tls, authority = make_certificate(tmp_path / name, "127.0.0.1")
        async with serve(tls=tls) as server:
            if path is None:
                shutil.copy(authority, file)
                cluster = {"server": "https://127.0.0.1:1", "certificate-authority": str(file)}
                path = kubeconfig(cluster)
                api = Api(load_configuration(path))
            api._host = f"https://127.0.0.1:{server.port}"
            if port:
                with pytest.raises(TRANSIENT, match="verify failed"):
                    await api.create("/api/v1/pods", {})
                shutil.copy(authority, file)
            await api.create("/api/v1/pods", {})
            port = server.port
    await api.close()


class Clients:
    """A server's context that knows two clients, and the names of those that it met."""

    def __init__(self, folder: Path) -> None:
        self.tls, self.authority = make_certificate(folder, "127.0.0.1")
        self.tls.verify_mode = ssl.CERT_REQUIRED
        self.files = {}
        for name in ("first", "second"):
            _, self.files[name] = make_certificate(folder, name)
            self.tls.load_verify_locations(self.files[name])
        self.met: list[str] = []

    def respond(self, _: Request, writer: asyncio.StreamWriter) -> None:
        ((_, name),) = writer.get_extra_info("peercert")["subject"][0]
        self.met.append(name)
        writer.write(EMPTY)


async def test_a_client_certificate_is_read_when_its_file_changes(
    kubeconfig, tmp_path, always_fresh
):
    clients = Clients(tmp_path)
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"

    def use(name: str) -> None:
        shutil.copy(clients.files[name], certificate)
        shutil.copy(clients.files[name].with_suffix(".key"), key)

    use("first")
    async with serve(clients.respond, clients.tls) as server:
        path = kubeconfig(
            {
                "server": f"https://127.0.0.1:{server.port}",
                "certificate-authority": str(clients.authority),
            },
            {"client-certificate": str(certificate), "client-key": str(key)},
        )
        async with Api(load_configuration(path)) as api:
            await api.get("/api")
            shutil.copy(clients.files["second"], certificate)  # not yet with its key
            await api.get("/api")
            await api.get("/api")
            use("second")
            await api.get("/api")
            await api.get("/api")
    assert clients.met[:3] == ["first"] * 3
    assert clients.met[-1] == "second", "on a new connection"


async def test_a_certificate_of_a_plugin_is_renewed_before_it_expires(
    kubeconfig, tmp_path, always_fresh
):
    clients = Clients(tmp_path)
    program = tmp_path / "plugin.py"
    program.write_text(f"""
import datetime, json, pathlib
runs = pathlib.Path({str(tmp_path / "runs")!r})
first = not runs.exists()
runs.touch()
file = pathlib.Path({str(tmp_path)!r}) / ("first" if first else "second")
end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60 if first else 3600)
status = {{
    "clientCertificateData": file.with_suffix(".crt").read_text(),
    "clientKeyData": file.with_suffix(".key").read_text(),
    "expirationTimestamp": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
}}
version = "client.authentication.k8s.io/v1"
print(json.dumps({{"apiVersion": version, "kind": "ExecCredential", "status": status}}))
""")
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": "python3"}
    user = {"exec": command | {"args": [str(program)], "interactiveMode": "Never"}}
    async with serve(clients.respond, clients.tls) as server:
        cluster = {
            "server": f"https://127.0.0.1:{server.port}",
            "certificate-authority": str(clients.authority),
        }
        async with Api(load_configuration(kubeconfig(cluster, user))) as api:
            for _ in range(3):
                await api.get("/api")
    assert clients.met[-1] == "second"


async def test_a_token_file_is_read_when_it_changes(kubeconfig, tmp_path, always_fresh):
    file = tmp_path / "token"
    file.write_text("t1\n")
    async with serve() as server:
        user = {"tokenFile": str(file)}
        path = kubeconfig({"server": f"http://127.0.0.1:{server.port}"}, user)
        async with Api(load_configuration(path)) as api:
            await api.get("/api")
            file.write_text("t2\n")
            await api.get("/api")
            file.unlink()
            with pytest.raises(CredentialsError, match="token"):
                await api.create("/api/v1/pods", {})
    tokens = [request.headers["authorization"] for request in server.requests]
    assert tokens == ["Bearer t1", "Bearer t2"]


async def test_a_kubeconfig_of_several_files_is_merged(kubeconfig, tmp_path, monkeypatch):
    async with serve() as server:
        path = kubeconfig({"server": f"http://127.0.0.1:{server.port}"})
        content = json.loads(path.read_text())
        other = tmp_path / "users"
        other.write_text(json.dumps({"users": content.pop("users")}))
        path.write_text(json.dumps(content))
        monkeypatch.setenv("KUBECONFIG", f"{path}:{other}")
        async with Api(load_configuration()) as api:
            await api.get("/api")
    assert server.requests[0].headers["authorization"] == "Bearer t0ken"
