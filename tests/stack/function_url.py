"""Function URLs, each on a port of its own.

ministack builds the event and reads the answer as AWS does (payload format 2.0), but serves all URLs on one
port, told apart by host name or by a path prefix. Names would need a resolver, and behind a prefix a page's
links to `/...` go astray; so a small front gives each URL an origin and sends the host name along.
"""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from stack.processes import LOOPBACK

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "date", "server"}
_TIMEOUT_SECONDS = 900


class FunctionUrl(ThreadingHTTPServer):
    """Listens at once on a free port; answers once `connect` has told it the URL that AWS would have given."""

    daemon_threads = True

    def __init__(self, lambda_url: str):
        super().__init__((LOOPBACK, 0), _Handler)
        self.url = f"http://{LOOPBACK}:{self.server_port}/"
        self.upstream = urlsplit(lambda_url).netloc
        self.host = None

    def connect(self, function_url: str) -> None:
        """Starts to serve `function_url`, as CreateFunctionUrlConfig returned it."""
        self.host = urlsplit(function_url).netloc
        threading.Thread(target=self.serve_forever, name="function-url", daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    # Head and body are sent apart; with Nagle and delayed ACKs an answer would take 40 ms more.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=_TIMEOUT_SECONDS)
        try:
            upstream.request(self.command, self.path, body, {**headers, "Host": self.server.host})
            response = upstream.getresponse()
            answer = response.read()
        finally:
            upstream.close()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = forward

    def log_message(self, *_) -> None:
        """Silent: the function's own log has it."""
