"""Stands between Kopsline and the Kubernetes API, so that a request can be held there (see `stack.trap`)."""

import http.client
import json
import ssl
import threading
from urllib.parse import urlsplit

from stack.kubernetes import Files
from stack.trap import Trap
from werkzeug.serving import WSGIRequestHandler, make_server

_TIMEOUT_SECONDS = 60
# What a patch of a node is for, by the parts of it that are in the request.
_PATCHES = {"taints": "taint", "unschedulable": "cordon", "exclude-from-external-load-balancers": "exclude"}


class KubeProxy:
    """An HTTPS server that has the cluster's names and passes everything on as an administrator.

    To a trap a request is `METHOD /path`, after it for a node's patch what it does: `PATCH /api/v1/nodes/i-1 cordon`.
    """

    def __init__(self, files: Files, url: str):
        self.trap = Trap(self._forward)
        self._upstream = urlsplit(url)
        self._client = ssl.create_default_context(cafile=str(files.ca_certificate))
        self._client.load_cert_chain(files.admin_certificate, files.admin_key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The cluster's own, which is there once kops has made its authority.
        self._context.load_cert_chain(files.cluster_certificate, files.cluster_key)
        self._server = self._port = None
        self.start()
        self.url = f"https://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens, always at the same address."""
        arguments = {"threaded": True, "ssl_context": self._context, "request_handler": _Quiet}
        self._server = make_server("127.0.0.1", self._port or 0, self._serve, **arguments)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="kube proxy", daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["kopsline.body"] = body
        return self.trap(environ, start_response, f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{_purpose(environ, body)}")

    def _forward(self, environ, start_response):
        address = self._upstream
        connection = http.client.HTTPSConnection(address.hostname, address.port, context=self._client, timeout=_TIMEOUT_SECONDS)
        query = f"?{environ['QUERY_STRING']}" if environ.get("QUERY_STRING") else ""
        headers = {"Accept": environ.get("HTTP_ACCEPT", "application/json")}
        if environ.get("CONTENT_TYPE"):
            headers["Content-Type"] = environ["CONTENT_TYPE"]
        try:
            connection.request(environ["REQUEST_METHOD"], environ["PATH_INFO"] + query, environ["kopsline.body"] or None, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        kept = [(name, value) for name in ("Content-Type", "Retry-After") if (value := answer.getheader(name))]
        start_response(f"{answer.status} {answer.reason}", [*kept, ("Content-Length", str(len(text)))])
        return [text]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_) -> None:
        pass


def _purpose(environ, body: bytes) -> str:
    if environ["REQUEST_METHOD"] != "PATCH":
        return ""
    text = json.dumps(json.loads(body))
    return "".join(f" {word}" for part, word in _PATCHES.items() if part in text)
