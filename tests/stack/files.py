"""A stand-in for the file servers kOps asks for checksums: `<any path>.sha256` has a made-up, stable answer.

kOps 1.36 reads the hash of nodeup, protokube and, with KOPS_BASE_URL, its images; it never fetches the
files themselves (upup/pkg/fi/assettasks, pkg/assets/builder.go).
"""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stack.processes import LOOPBACK
from stack.requestlog import RequestLog

_SUFFIX = ".sha256"


class FileServer(ThreadingHTTPServer):
    """Serves on a free port in a thread of its own from the moment it is made."""

    daemon_threads = True

    def __init__(self, log: RequestLog):
        super().__init__((LOOPBACK, 0), _Handler)
        self.request_log = log
        self.url = f"http://{LOOPBACK}:{self.server_port}/files"
        threading.Thread(target=self.serve_forever, name="files", daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    # Head and body are sent apart; with Nagle and delayed ACKs an answer would take 40 ms more.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        found = path.endswith(_SUFFIX)
        body = b""
        if found:
            body = hashlib.sha256(path.encode()).hexdigest().encode() + b"\n"
        self.server.request_log.write(method=self.command, path=path, status=200 if found else 404)
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        """Silent: the request log has it."""
