"""Holds a request in the emulated AWS, so that whoever made it can be killed at exactly that point.

`POST /_stack/trap {"match": REGEX, "skip": N, "when": "before" or "after"}` arms it: of the requests whose words (see
`words`) match, the first after N others is held, either before it has any effect or after, without its answer.
`GET /_stack/trap` tells what is held, `DELETE /_stack/trap` lets it go. A trap may be armed anew before that.
"""

import json
import re
import threading
from dataclasses import dataclass

PATH = "/_stack/trap"
PATIENCE_SECONDS = 60
"""A held request goes on by itself after that: a forgotten trap must not hold a server for ever."""
# The tests' own client, which never wants to trap itself.
_EXEMPT_AGENT = "Boto3/"


@dataclass
class _Order:
    match: re.Pattern
    skip: int
    when: str


class Trap:
    """WSGI middleware around the emulator."""

    def __init__(self, application):
        self._application = application
        self._changed = threading.Condition()
        self._order: _Order | None = None
        self._held: dict | None = None

    def __call__(self, environ, start_response, action: str | None):
        """Serves a request; `action` is what the request log says of it."""
        if environ["PATH_INFO"] == PATH:
            return self._control(environ, start_response)
        when = self._caught(environ, action)
        if when == "before":
            self._hold(environ, action)
        body = list(self._application(environ, start_response))
        if when == "after":
            self._hold(environ, action)
        return body

    def _caught(self, environ, action) -> str | None:
        with self._changed:
            order = self._order
            if order is None or environ.get("HTTP_USER_AGENT", "").startswith(_EXEMPT_AGENT):
                return None
            if not order.match.search(words(environ, action)):
                return None
            if order.skip > 0:
                order.skip -= 1
                return None
            self._order = None
            return order.when

    def _hold(self, environ, action) -> None:
        with self._changed:
            self._held = {"words": words(environ, action), "port": int(environ["REMOTE_PORT"])}
            self._changed.wait_for(lambda: self._held is None, PATIENCE_SECONDS)

    def control(self, method: str, order: dict | None = None) -> dict:
        """What a request to `PATH` does, for a trap in the same process."""
        with self._changed:
            if method == "POST":
                self._order = _Order(re.compile(order["match"]), order.get("skip", 0), order.get("when", "after"))
            elif method == "DELETE":
                self._held = None
                self._changed.notify_all()
            return {"held": self._held, "armed": self._order is not None}

    def _control(self, environ, start_response):
        method = environ["REQUEST_METHOD"]
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])) if method == "POST" else b"null"
        answer = json.dumps(self.control(method, json.loads(body))).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]


def words(environ, action: str | None) -> str:
    """A request in one line: an API's action, or S3's method and path, after the client's name (`aws-sdk-rust/1.3`)."""
    agent = environ.get("HTTP_USER_AGENT", "").split(" ")[0]
    return f"{agent} {action or environ['REQUEST_METHOD'] + ' ' + environ['PATH_INFO']}"
