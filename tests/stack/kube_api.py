"""Requests to the Kubernetes API with a client certificate."""

import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 20
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
NOT_FOUND = 404
CONFLICT = 409
TOO_MANY = 429


class ApiError(Exception):
    """The API refused."""

    def __init__(self, method: str, path: str, status: int, body: dict):
        self.status = status
        self.body = body
        super().__init__(f"{method} {path}: {status} {body.get('reason', '')}: {body.get('message', '')}")


class Api:
    """One connection for each thread; a connection that the server has closed meanwhile is made anew."""

    def __init__(self, url: str, authority: Path, certificate: Path, key: Path):
        self.url = url
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.load_cert_chain(certificate, key)
        self._connections = threading.local()

    def get(self, path: str) -> dict:
        """An object or a list."""
        return self.request("GET", path)

    def find(self, path: str) -> dict | None:
        """An object, if there is one."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def create(self, path: str, body: dict) -> dict:
        """A new object, or another POST such as an eviction."""
        return self.request("POST", path, body)

    def ensure(self, path: str, body: dict) -> None:
        """An object that may be there already."""
        try:
            self.create(path, body)
        except ApiError as error:
            if error.status != CONFLICT:
                raise

    def patch(self, path: str, body: dict) -> dict:
        """A strategic merge."""
        return self.request("PATCH", path, body, STRATEGIC_MERGE)

    def delete(self, path: str) -> None:
        """Deletes what may be gone already."""
        try:
            self.request("DELETE", path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    def watch(self, path: str, version: str) -> Iterator[dict]:
        """What happens to a list's objects after a version of it, as it happens, on a connection of its own.

        It ends when the server ends it, and with an `OSError` when nothing happens for a while.
        """
        connection = self._connection()
        try:
            connection.request("GET", f"{path}?watch=1&resourceVersion={version}", headers={"Accept": "application/json"})
            with connection.getresponse() as answer:
                if answer.status >= 300:
                    raise ApiError("GET", path, answer.status, json.loads(answer.read()))
                while line := answer.readline():
                    yield json.loads(line)
        finally:
            connection.close()

    def request(self, method: str, path: str, body: dict | None = None, form: str = "application/json") -> dict:
        """The answer's object; `ApiError` for a status that is not a success."""
        text = None if body is None else json.dumps(body)
        headers = {"Accept": "application/json", **({"Content-Type": form} if text else {})}
        status, answer = self._exchange(method, path, text, headers)
        try:
            decoded = json.loads(answer)
        except ValueError:
            decoded = {"message": answer.decode(errors="replace").strip()}
        if status >= 300:
            raise ApiError(method, path, status, decoded)
        return decoded

    def close(self) -> None:
        """Closes this thread's connection."""
        if connection := getattr(self._connections, "kept", None):
            connection.close()

    def _exchange(self, method: str, path: str, text: str | None, headers: dict) -> tuple[int, bytes]:
        connection = getattr(self._connections, "kept", None)
        if connection:
            try:
                return _send(connection, method, path, text, headers)
            except (http.client.HTTPException, ConnectionError):
                connection.close()
        connection = self._connections.kept = self._connection()
        try:
            return _send(connection, method, path, text, headers)
        except BaseException:
            self._connections.kept = None
            connection.close()
            raise

    def _connection(self) -> http.client.HTTPSConnection:
        address = urlsplit(self.url)
        return http.client.HTTPSConnection(
            address.hostname, address.port, context=self._context, timeout=_TIMEOUT_SECONDS
        )


def _send(connection, method: str, path: str, text: str | None, headers: dict) -> tuple[int, bytes]:
    connection.request(method, path, text, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()
