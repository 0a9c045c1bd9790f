"""An image registry of the test cluster, which can delay or refuse the pulls of single nodes."""

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finetune_api.base import Object

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_LARGE = 100_000  # bytes: the layer with the packages, not the configuration
_PIECES = 200  # of a layer that is sent slowly


class Registry:
    """Serves images from memory by HTTP, as containerd pulls them."""

    def __init__(self) -> None:
        self.seconds: Callable[[str], float] = lambda _: 0.0
        """Address of a node -> time that each of its downloads of a layer takes."""
        self.refuses: Callable[[str], bool] = lambda _: False
        """Address of a node -> whether no image exists for it."""
        self._manifests: dict[str, bytes] = {}  # by "name:tag" and by "name:sha256:..."
        self._blobs: dict[str, bytes] = {}
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def add(self, name: str, tag: str, layers: list[bytes], config: Object) -> None:
        """Add an image of uncompressed layers; `config` is the part that containers inherit."""
        described = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [self._store(layer) for layer in layers]},
        }
        encoded = json.dumps(described).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": self._descriptor(_CONFIG, encoded),
                "layers": [self._descriptor(_LAYER, layer) for layer in layers],
            }
        ).encode()
        for reference in (tag, _digest(manifest)):
            self._manifests[f"{name}:{reference}"] = manifest

    def start(self, address: str, port: int) -> None:
        """Begin to serve, in a thread."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry._answer(self, body=True)

            def do_HEAD(self) -> None:
                registry._answer(self, body=False)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop serving; pulls that are under way fail."""
        self._released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _store(self, blob: bytes) -> str:
        digest = _digest(blob)
        self._blobs[digest] = blob
        return digest

    def _descriptor(self, media_type: str, blob: bytes) -> Object:
        return {"mediaType": media_type, "digest": self._store(blob), "size": len(blob)}

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        # /v2/, /v2/NAME/manifests/REFERENCE, /v2/NAME/blobs/DIGEST
        parts = request.path.partition("?")[0].strip("/").split("/")
        node, slowly, found, kind = request.client_address[0], False, b"{}", "application/json"
        if len(parts) > 2:
            name, collection, reference = "/".join(parts[1:-2]), parts[-2], parts[-1]
            if self.refuses(node):
                found = b""
            elif collection == "manifests":
                found, kind = self._manifests.get(f"{name}:{reference}", b""), _MANIFEST
            else:
                found, kind = self._blobs.get(reference, b""), "application/octet-stream"
                slowly = len(found) >= _LARGE
        request.send_response(200 if found else 404)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(found)))
        if found:
            request.send_header("Docker-Content-Digest", _digest(found))
        request.end_headers()
        if body:
            self._send(request, found, slowly=slowly)

    def _send(self, request: BaseHTTPRequestHandler, blob: bytes, *, slowly: bool) -> None:
        piece = -(-len(blob) // _PIECES) if slowly else len(blob)
        for begin in range(0, len(blob), max(1, piece)):
            request.wfile.write(blob[begin : begin + piece])
            # Asked again for each piece: a test that ends does not wait for a slow download.
            seconds = self.seconds(request.client_address[0]) if slowly else 0.0
            if seconds and self._released.wait(seconds / _PIECES):
                return


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()
