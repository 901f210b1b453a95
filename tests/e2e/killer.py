"""Kills functions of the local stack at chosen requests of theirs."""

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from stack.processes import descendants
from stack.trap import PATH, Trap

from e2e.harness import Stack

PATIENCE_SECONDS = 300
_MARK = b"AWS_LAMBDA_FUNCTION_NAME="


@dataclass(frozen=True)
class Point:
    """Where to kill: the function, and the request of its own or of its kops in which it dies.

    `match` is a pattern for what `stack.trap.words` says of a request; `when` is before or after it has had its effect.
    """

    function: str
    match: str
    when: str = "after"
    skip: int = 0
    # Of a request to the emulated AWS, or to the Kubernetes API.
    api: str = "aws"


class Killer(threading.Thread):
    """Kills at the points in their order, while something else drives the functions.

    `kubernetes` is the trap of requests to the Kubernetes API, if any of the points is one.
    """

    def __init__(self, stack: Stack, points: list[Point], kubernetes: Trap | None = None):
        super().__init__(name="killer", daemon=True)
        self.stack, self.points, self.kubernetes = stack, points, kubernetes
        self.killed: list[str] = []
        self.error: str | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Returns when it kills no more; points that were not come by are missing in `killed`."""
        self._stopped.set()
        self.join(PATIENCE_SECONDS)
        for api in {point.api for point in self.points}:
            self._call(api, "POST", {"match": "^$"})
            self._call(api, "DELETE")

    def run(self):
        try:
            self._arm(0)
            for number, point in enumerate(self.points):
                held = self._wait(point)
                name = self._kill(held["port"])
                self.killed.append(f"{name}: {held['words']}")
                if name != f"kopsline-{point.function}Function":
                    raise AssertionError(f"{held['words']} was to be of {point.function} and is of {name}")
                # Before the request is let go: the next attempt may come at once.
                self._arm(number + 1)
                self._call(point.api, "DELETE")
        except (AssertionError, OSError) as error:
            self.error = str(error)

    def _arm(self, number: int) -> None:
        if number < len(self.points):
            point = self.points[number]
            self._call(point.api, "POST", {"match": point.match, "when": point.when, "skip": point.skip})

    def _wait(self, point: Point) -> dict:
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and not self._stopped.is_set():
            if held := self._call(point.api, "GET")["held"]:
                return held
            time.sleep(0.02)
        raise AssertionError(f"{point} was not come by; before it: {self.killed}")

    def _call(self, api: str, method: str, body: dict | None = None) -> dict:
        if api == "kubernetes":
            return self.kubernetes.control(method, body)
        url = self.stack.places["aws_url"] + PATH
        request = urllib.request.Request(url, json.dumps(body).encode() if body else None, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def _kill(self, port: int) -> str:
        """Kills the function behind a connection with everything that it started, as the end of its sandbox would."""
        below = descendants(self.stack.places["pids"]["lambda"])
        maker = next((pid for pid in below if _has_connection(pid, port)), None)
        if maker is None:
            raise AssertionError(f"no function has the connection from port {port}")
        function = maker
        while not (name := _function(function)):
            function = _parent(function)
        for pid in [function, *descendants(function)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return name


def _has_connection(pid: int, port: int) -> bool:
    sockets = {
        fields[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[1].endswith(f":{port:04X}")
    }
    try:
        return any(os.readlink(fd) in {f"socket:[{inode}]" for inode in sockets} for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _function(pid: int) -> str | None:
    """The name of the function that a process is; its kops has an environment of its own."""
    for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if variable.startswith(_MARK):
            return variable.removeprefix(_MARK).decode()
    return None


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
