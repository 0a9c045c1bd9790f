"""GET /v1/report on the pod's own address."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from finetune_api.names import REPORT_PATH
from finetune_api.run import Report


def serve(address: str, port: int, report: Callable[[], Report]) -> ThreadingHTTPServer:
    """Serve from a daemon thread; OSError when the address cannot be bound."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != REPORT_PATH:
                self.send_error(404)
                return
            body = report().to_json().encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A line for every poll would bury the log."""

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
