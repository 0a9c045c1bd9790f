"""A real S3 server (versitygw on a folder), on this machine's loopback only."""

import hashlib
import hmac
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.store import S3Store

from finetune_local.cluster import die_with_parent
from finetune_local.ports import free_port
from tests.tools import go_tool
from tests.tools.program import program

KEY, SECRET = "test-access-key", "the-secret-access-key"


@dataclass
class S3:
    """A running server."""

    url: str
    folder: Path
    process: "subprocess.Popen[bytes]"

    @property
    def env(self) -> dict[str, str]:
        """The environment variables of the vendors' tools."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def put(self, bucket: str, key: str, source: Path | bytes) -> None:
        """Put a file into a bucket, which is created if necessary."""
        (self.folder / bucket).mkdir(exist_ok=True)
        store = S3Store(
            bucket,
            endpoint=self.url,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        obstore.put(store, key, source)

    def put_folder(self, bucket: str, prefix: str, source: Path) -> None:
        """Put all files below a folder."""
        for path in (path for path in source.rglob("*") if path.is_file()):
            self.put(bucket, f"{prefix}/{path.relative_to(source)}", path)

    def make_public(self, bucket: str) -> None:
        """Let anonymous clients list and read a bucket."""
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        request = signed(f"{self.url}/{bucket}?policy=", json.dumps(policy).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status < 300


def signed(url: str, body: bytes) -> urllib.request.Request:
    """Return a PUT request with AWS Signature 4, for operations that obstore does not have."""
    parts, when = urlsplit(url), datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    payload = hashlib.sha256(body).hexdigest()
    headers = {"host": parts.netloc, "x-amz-content-sha256": payload, "x-amz-date": when}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = "\n".join(["PUT", parts.path, parts.query, lines, names, payload])
    scope = [when[:8], "us-east-1", "s3", "aws4_request"]
    text = [
        "AWS4-HMAC-SHA256",
        when,
        "/".join(scope),
        hashlib.sha256(canonical.encode()).hexdigest(),
    ]
    key = f"AWS4{SECRET}".encode()
    for part in scope:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, "\n".join(text).encode(), hashlib.sha256).hexdigest()
    credential = f"Credential={KEY}/{'/'.join(scope)}"
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    )
    return urllib.request.Request(url, data=body, headers=headers, method="PUT")


@contextmanager
def serve(folder: Path) -> Iterator[S3]:
    """Run a server with its files below `folder`; it ends with this process."""
    server, address = program(go_tool.VERSITYGW), f"127.0.0.1:{free_port()}"
    environment = {"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    # Metadata in a folder beside the buckets: not every file system has extended attributes.
    buckets, beside = folder / "buckets", folder / "sidecar"
    buckets.mkdir(parents=True)
    beside.mkdir()
    backend = ["posix", "--sidecar", str(beside), str(buckets)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(server), "--port", address, "--health", "/health", "--quiet", *backend],
            env=environment,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        _wait(f"http://{address}/health", process, folder / "log")
        yield S3(f"http://{address}", buckets, process)
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
