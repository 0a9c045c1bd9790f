"""The HTTP server of the report: it answers only GET /v1/report, on the pod's own address.

Every client that can reach the pod can request the report. The cost is bounded: only the newest
connections are served, and older ones are closed for them.
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
from finetune_trainer.common.waiting import family_of

_MAX_CONNECTIONS = 8  # each has a thread
_READ_TIMEOUT = 5.0  # s


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted; the default is 5

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: list[Any] = []  # connections, the oldest first
        self._lock = threading.Lock()
        self.address_family = family_of(address)
        super().__init__((address, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.append(request)
            if len(self._open) > _MAX_CONNECTIONS:
                # Ends the thread of the oldest connection.
                with contextlib.suppress(OSError):
                    self._open.pop(0).shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, except for clients that disconnected or were too slow."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def serve(address: str, port: int, report: Callable[[], Report]) -> ThreadingHTTPServer:
    """Serve the report from a daemon thread. Raises OSError if the address cannot be bound."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _READ_TIMEOUT
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
            """Send only the standard phrase of a status, with 405 for all other methods."""
            if code == HTTPStatus.NOT_IMPLEMENTED:
                code = HTTPStatus.METHOD_NOT_ALLOWED
            super().send_error(code, HTTPStatus(code).phrase)

        def version_string(self) -> str:
            """Return a name that does not reveal the version of Python."""
            return "finetune"

        def log_message(self, *_: object) -> None:
            """Log nothing: one line for every poll would hide all other lines."""

    server = _Server(address, port, Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
