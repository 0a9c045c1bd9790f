"""The variables in the example image make its libraries accept a company's certificates."""

import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finetune_local.pki import Authority
from tests.docs.pages import page

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
(DOCKERFILE,) = re.findall(r"^```dockerfile\n(.*?)^```$", page("operate/images"), re.M | re.S)
VARIABLES = re.findall(rf"(\w+)={BUNDLE}", DOCKERFILE)
# As the trainer's libraries connect: huggingface_hub, obstore, and requests for MLflow.
CLIENTS = {
    "hub": "from huggingface_hub.utils import get_session; get_session().get(URL)",
    "store": (
        "import obstore; from obstore.store import S3Store; "
        "obstore.get(S3Store('bucket', endpoint=URL, region='x', skip_signature=True,"
        " retry_config={'max_retries': 0}), 'key')"
    ),
    "mlflow": "import requests; requests.get(URL)",
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": "0", "ETag": '"1"'}.items():
            self.send_header(name, value)
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def url(authority: Authority) -> Iterator[str]:
    """Address of a server whose certificate is signed by this authority only."""
    identity = authority.issue("server", "server", names=("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def connects(client: str, url: str, bundles: dict[str, Path]) -> bool:
    """Return whether the client connects in an environment with these bundles and no others."""
    foreign = re.compile(r"proxy$|^(SSL_CERT|REQUESTS_CA|CURL_CA|AWS_CA)", re.IGNORECASE)
    env = {name: value for name, value in os.environ.items() if not foreign.search(name)}
    env |= {name: str(path) for name, path in bundles.items()}
    program = CLIENTS[client].replace("URL", repr(url))
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0 or "ertificate" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_company_server_is_accepted_with_these_variables(authority, url, client):
    assert not connects(client, url, {})
    assert connects(client, url, dict.fromkeys(VARIABLES, authority.certificate))
