"""Connections to the API server: reuse, TLS, proxies, and responses that are not valid."""

import asyncio
import base64
import time

import pytest
from kubernetes.config import incluster_config

from finetune_client.api import Api
from finetune_client.configuration import ConfigurationError, load_configuration
from finetune_client.errors import TRANSIENT, ApiError, InvalidResponseError
from tests.client.servers import EMPTY, OK, Request, make_certificate, proxy, serve


async def test_requests_one_after_the_other_share_a_connection():
    async with serve() as server, Api(server.configuration()) as api:
        for _ in range(3):
            await api.get("/api", limit="5")
        assert server.connections == 1
        request = server.requests[0]
        assert request.line == "GET /api?limit=5 HTTP/1.1"
        assert request.headers["user-agent"] == "finetune-operator"
        # Without this header a proxy might ask for gzip and pass it on.
        assert request.headers["accept-encoding"] == "identity"


async def test_requests_at_the_same_time_do_not_share_a_connection():
    async with serve() as server, Api(server.configuration()) as api:
        await asyncio.gather(*(api.get("/api") for _ in range(5)))
        assert server.connections == 5
        await api.get("/api")
        assert server.connections == 5


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced():
    def once(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(EMPTY)
        writer.close()

    async with serve(once) as server, Api(server.configuration()) as api:
        for _ in range(2):
            await api.create("/api/v1/pods", {})
            await asyncio.sleep(0.05)
        assert server.connections == 2


async def test_a_path_of_the_server_address_is_kept():
    async with serve() as server:
        configuration = server.configuration()
        configuration.host += "/k8s/clusters/c-1/"
        async with Api(configuration) as api:
            await api.get("/api")
        assert server.requests[0].line == "GET /k8s/clusters/c-1/api HTTP/1.1"


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/ä"])
async def test_a_path_that_would_break_the_request_is_refused(path):
    async with serve() as server, Api(server.configuration()) as api:
        with pytest.raises(ValueError, match="not a valid path"):
            await api.get(path)
        assert not server.requests


INVALID = {
    "not HTTP": b"SSH-2.0-s3cr3t\r\n\r\n",
    "no status": b"HTTP/1.1 s3cr3t\r\n\r\n",
    "an invalid length": OK + b"Content-Length: +5s3cr3t\r\n\r\nhello",
    "a header of 70 kB": OK + b"X: s3cr3t" + b"y" * 70_000 + b"\r\n\r\n",
    "not JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ns3cr3t",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\ns3cr3t",
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID.keys())
async def test_an_invalid_response_is_like_no_response_and_is_not_quoted(text):
    def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(text)

    async with serve(respond) as server, Api(server.configuration()) as api:
        with pytest.raises(InvalidResponseError) as error:
            await api.create("/api/v1/pods", {})
        assert isinstance(error.value, TRANSIENT)
        assert "s3cr3t" not in repr(error.value)


@pytest.mark.parametrize("text", [OK, OK + b"Content-Length: 9\r\n\r\nhell"])
async def test_a_response_that_ends_early_is_an_error(text):
    def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    async with serve(respond) as server, Api(server.configuration()) as api:
        with pytest.raises(TRANSIENT):
            await api.create("/api/v1/pods", {})


async def test_a_redirect_is_not_followed():
    def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n")

    async with serve(respond) as server, Api(server.configuration()) as api:
        with pytest.raises(ApiError) as refused:
            await api.create("/api/v1/pods", {})
        assert refused.value.code == 302
        with pytest.raises(ApiError):
            async for _ in api.watch("/api/v1/pods"):
                pass
        assert len(server.requests) == 2


async def test_every_request_is_counted_with_its_result():
    counts: list[tuple[str, int | None]] = []

    def respond(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.line.startswith("DELETE"):
            writer.transport.abort()
        elif not request.line.startswith("PATCH"):
            writer.write(EMPTY)

    async with (
        serve(respond) as server,
        Api(server.configuration(), count=lambda *what: counts.append(what), timeout=0.2) as api,
    ):
        await api.get("/api")
        with pytest.raises(TRANSIENT):
            await api.delete("/api/v1/pods/a")
        with pytest.raises(TimeoutError):
            await api.patch("/api/v1/pods/a", {})
    assert counts == [("get", 200), ("delete", None), ("patch", None)]


# TLS and proxies, as a kubeconfig configures them


async def test_tls_server_name_is_the_name_that_the_certificate_must_have(kubeconfig, tmp_path):
    tls, authority = make_certificate(tmp_path, "api.example")
    async with serve(tls=tls) as server:
        cluster = {
            "server": f"https://127.0.0.1:{server.port}",
            "certificate-authority": str(authority),
        }
        async with Api(load_configuration(kubeconfig(cluster))) as api:
            with pytest.raises(TRANSIENT, match="verify failed"):
                await api.create("/api/v1/pods", {})
        cluster["tls-server-name"] = "api.example"
        async with Api(load_configuration(kubeconfig(cluster))) as api:
            await api.create("/api/v1/pods", {})
        assert server.requests[0].headers["authorization"] == "Bearer t0ken"


async def test_the_server_may_be_an_ipv6_address(kubeconfig, tmp_path):
    tls, authority = make_certificate(tmp_path, "::1")
    async with serve(tls=tls, address="::1") as server:
        cluster = {
            "server": f"https://[::1]:{server.port}",
            "certificate-authority": str(authority),
        }
        async with Api(load_configuration(kubeconfig(cluster))) as api:
            await api.create("/api/v1/pods", {})
        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


async def test_a_pod_finds_a_server_with_an_ipv6_address(tmp_path, monkeypatch):
    tls, authority = make_certificate(tmp_path, "::1")
    (tmp_path / "token").write_text("t0ken")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    async with serve(tls=tls, address="::1") as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "::1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        async with Api(load_configuration()) as api:
            await api.create("/api/v1/pods", {})
        assert server.requests[0].headers["authorization"] == "bearer t0ken"


async def test_a_certificate_of_an_unknown_authority_needs_insecure_skip_tls_verify(
    kubeconfig, tmp_path
):
    tls, _ = make_certificate(tmp_path, "api.example")
    async with serve(tls=tls) as server:
        cluster = {"server": f"https://127.0.0.1:{server.port}"}
        async with Api(load_configuration(kubeconfig(cluster))) as api:
            with pytest.raises(TRANSIENT, match="verify failed"):
                await api.create("/api/v1/pods", {})
        cluster["insecure-skip-tls-verify"] = True
        async with Api(load_configuration(kubeconfig(cluster))) as api:
            await api.create("/api/v1/pods", {})
        assert len(server.requests) == 1


async def test_a_proxy_of_the_kubeconfig_tunnels_tls(kubeconfig, tmp_path):
    tls, authority = make_certificate(tmp_path, "api.example")
    async with serve(tls=tls) as server, proxy() as between:
        cluster = {
            "server": f"https://127.0.0.1:{server.port}",
            "certificate-authority": str(authority),
            "tls-server-name": "api.example",
            "proxy-url": f"http://user:pass@127.0.0.1:{between.port}",
        }
        async with Api(load_configuration(kubeconfig(cluster))) as api:
            await api.create("/api/v1/pods", {})
            await api.create("/api/v1/pods", {})
        assert [r.line for r in between.requests] == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]
        secret = base64.b64encode(b"user:pass").decode()
        assert between.requests[0].headers["proxy-authorization"] == f"Basic {secret}"
        assert "authorization" not in between.requests[0].headers
        assert len(server.requests) == 2
        assert "proxy-authorization" not in server.requests[0].headers


async def test_a_proxy_that_refuses_is_named_and_not_quoted(kubeconfig, tmp_path):
    async with proxy(refuse=True) as between:
        cluster = {
            "server": "https://127.0.0.1:6443",
            "insecure-skip-tls-verify": True,
            "proxy-url": f"http://127.0.0.1:{between.port}",
        }
        async with Api(load_configuration(kubeconfig(cluster))) as api:
            with pytest.raises(TRANSIENT, match=r"the proxy refused the connection \(407\)"):
                await api.create("/api/v1/pods", {})


async def test_the_guard_is_asked_once_the_tunnel_of_a_proxy_is_open(kubeconfig, tmp_path):
    tls, authority = make_certificate(tmp_path, "127.0.0.1")
    calls: list[int] = []

    def guard() -> float:
        calls.append(len(between.requests))
        return 5.0

    async with serve(tls=tls) as server, proxy() as between:
        cluster = {
            "server": f"https://127.0.0.1:{server.port}",
            "certificate-authority": str(authority),
            "tls-server-name": "127.0.0.1",
            "insecure-skip-tls-verify": True,
            "proxy-url": f"http://127.0.0.1:{between.port}",
        }
        async with Api(load_configuration(kubeconfig(cluster)), guard=guard) as api:
            await api.create("/api/v1/pods", {})
    assert calls == [0, 1]


async def test_a_proxy_of_the_environment_is_used_unless_no_proxy_names_the_server(
    kubeconfig, monkeypatch
):
    async with serve() as server, proxy() as between:
        path = kubeconfig({"server": f"http://127.0.0.1:{server.port}"})
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{between.port}")
        async with Api(load_configuration(path)) as api:
            await api.create("/api/v1/pods", {})
        assert (len(between.requests), len(server.requests)) == (1, 0)
        monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,127.0.0.0/8")
        async with Api(load_configuration(path)) as api:
            await api.create("/api/v1/pods", {})
        assert (len(between.requests), len(server.requests)) == (1, 1)


def test_a_proxy_that_is_not_http_is_refused_without_its_password(kubeconfig):
    path = kubeconfig(
        {"server": "https://127.0.0.1:6443", "proxy-url": "socks5://user:s3cr3t@proxy:1080"}
    )
    with pytest.raises(ConfigurationError, match="socks5://proxy; http:// and https://") as error:
        load_configuration(path)
    assert "s3cr3t" not in str(error.value)


def test_a_missing_kubeconfig_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigurationError):
        load_configuration(tmp_path / "none")


# Credential plugins


def plugin(tmp_path, seconds: float, expires_in: float = 0.0) -> dict:
    """A user whose credential plugin takes so long and counts its runs."""
    runs = tmp_path / "runs"
    stamp = (
        ""
        if not expires_in
        else f"""
import datetime
end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={expires_in})
status["expirationTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")"""
    )
    program = tmp_path / "plugin.py"
    program.write_text(f"""
import json, pathlib, time
runs = pathlib.Path({str(runs)!r})
count = len(runs.read_text()) if runs.exists() else 0
if count: time.sleep({seconds})
runs.write_text("x" * (count + 1))
status = {{"token": f"t{{count + 1}}"}}{stamp}
version = "client.authentication.k8s.io/v1"
print(json.dumps({{"apiVersion": version, "kind": "ExecCredential", "status": status}}))
""")
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "python3",
            "args": [str(program)],
            "interactiveMode": "Never",
        }
    }


@pytest.mark.slow
async def test_a_slow_credential_plugin_does_not_block_the_event_loop(
    kubeconfig, tmp_path, monkeypatch
):
    # A token that expires within five minutes is renewed at every read.
    user = plugin(tmp_path, seconds=3.0, expires_in=60)
    async with serve() as server:
        path = kubeconfig({"server": f"http://127.0.0.1:{server.port}"}, user)
        async with Api(load_configuration(path)) as api:
            begin = time.monotonic()
            waiting = asyncio.create_task(api.get("/api"))
            longest = 0.0
            while not waiting.done():
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)
            await waiting
            assert time.monotonic() - begin > 2.9, "the first request waits for its token"
            assert longest < 2.0
            assert server.requests[0].headers["authorization"] == "Bearer t2"


@pytest.mark.slow
async def test_requests_use_the_token_they_have_while_a_plugin_renews_it(
    kubeconfig, tmp_path, monkeypatch
):
    user = plugin(tmp_path, seconds=3.0, expires_in=60)
    async with serve() as server:
        path = kubeconfig({"server": f"http://127.0.0.1:{server.port}"}, user)
        async with Api(load_configuration(path)) as api:
            await api.get("/api")
            monkeypatch.setattr("finetune_client.configuration._FRESH", 0.0)
            begin = time.monotonic()
            for _ in range(3):
                await api.get("/api")
            assert time.monotonic() - begin < 2.5
            async with asyncio.timeout(60):
                while server.requests[-1].headers["authorization"] == "Bearer t2":
                    await asyncio.sleep(0.2)
                    await api.get("/api")
    tokens = [request.headers["authorization"] for request in server.requests]
    assert tokens[:4] == ["Bearer t2"] * 4
    assert tokens[-1] == "Bearer t3"
