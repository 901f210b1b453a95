"""Lets containers reach what listens on this machine's loopback only."""

import re
import socket
import socketserver
import threading

_LOOPBACK = re.compile(r"127\.0\.0\.1:(\d+)")


class Forwarder:
    """Listens on one address for any number of loopback ports, with the same port numbers."""

    def __init__(self, address: str):
        self.address = address
        self._servers: dict[int, socketserver.BaseServer] = {}

    def reachable(self, text: str) -> str:
        """`text` with loopback addresses replaced by ones that reach the same place from a container."""
        for port in _LOOPBACK.findall(text):
            self._open(int(port))
        return _LOOPBACK.sub(rf"{self.address}:\1", text)

    def close(self) -> None:
        """Stops to listen."""
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def _open(self, port: int) -> None:
        if port not in self._servers:
            server = _Server((self.address, port), _Connection)
            self._servers[port] = server
            threading.Thread(target=server.serve_forever, name=f"forward-{port}", daemon=True).start()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.server_address[1])) as inner:
            answers = threading.Thread(target=pump, args=(inner, self.request), daemon=True)
            answers.start()
            pump(self.request, inner)
            answers.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until `source` has no more, then says so to `sink`."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
