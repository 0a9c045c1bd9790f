"""GET /v1/report on the pod's own address, and nothing else.

Whoever can reach the pod can ask. What it may cost is bounded: the newest connections are served,
and one that is slow gives way to them.
"""

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finetune_api.names import REPORT_PATH
from finetune_api.run import Report

_MOST = 8  # connections, each of which has a thread
_SECONDS = 5.0  # without a byte from the other side


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that are not accepted yet; 5 would be full at once

    def __init__(self, *arguments: Any) -> None:
        self._open: list[Any] = []  # connections, the oldest first
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.append(request)
            if len(self._open) > _MOST:
                # Its thread wakes up and ends.
                with contextlib.suppress(OSError):
                    self._open.pop(0).shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever left in the middle, or was slow, is not worth a traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def serve(address: str, port: int, report: Callable[[], Report]) -> ThreadingHTTPServer:
    """Serve from a daemon thread; OSError when the address cannot be bound."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS
        error_message_format = "%(code)d %(message)s\n"
        error_content_type = "text/plain; charset=utf-8"

        def do_GET(self) -> None:
            if self.path != REPORT_PATH:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = report().to_json().encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_error(self, code: int, *_: Any) -> None:
            """Without what was asked; a method that is not there is one that is not allowed."""
            if code == HTTPStatus.NOT_IMPLEMENTED:
                code = HTTPStatus.METHOD_NOT_ALLOWED
            super().send_error(code, HTTPStatus(code).phrase)

        def version_string(self) -> str:
            """Which Python answers is nobody's business."""
            return "finetune"

        def log_message(self, *_: object) -> None:
            """A line for every poll would bury the log."""

    server = _Server((address, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
