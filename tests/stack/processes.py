"""Child processes: started together, awaited together, and none left behind."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 3.0
"""How long a component may take to end by itself before it is killed."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class StartError(Exception):
    """A component did not come up; the message says which, why, and shows the end of its log."""


def end_with_parent(signum: int, parent: int) -> None:
    """Asks the kernel to send `signum` to this process when process `parent`, its parent, dies.

    The check closes the gap in which the parent died before the request was made.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def adopt_orphans() -> None:
    """Makes this process the new parent of descendants whose own parent dies, so that a sweep finds them."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def free_port() -> int:
    """A port nobody listens on, from below the range the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        return port


def http_ok(url: str) -> Callable[[], bool]:
    """A readiness check: `url` answers with a status below 500."""

    def check() -> bool:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False
        return True

    return check


@dataclass
class Component:
    """One program of the stack, in a process group of its own, logging to a file."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    ready: Callable[[], bool]
    directory: Path
    process: subprocess.Popen | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts it. Call from the main thread only: the kernel takes the death of the thread that
        started a process for the death of its parent."""
        parent = os.getpid()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGKILL, parent),
            )

    def wait_ready(self, deadline: float) -> None:
        """Returns when the component answers; `StartError` when it ended or the deadline passed."""
        while not self.ready():
            if self.process.poll() is not None:
                raise StartError(self.failure(f"ended with code {self.process.returncode}"))
            if time.monotonic() > deadline:
                raise StartError(self.failure("did not become ready in time"))
            time.sleep(0.1)

    def failure(self, what: str) -> str:
        """A message for people: what happened and the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()[-25:]
        tail = "\n".join(f"  | {line}" for line in lines)
        return f"{self.name} {what}; the end of {self.log}:\n{tail}"

    def signal_group(self, signum: int) -> None:
        """Signals the component and whatever it started in its own group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`, nearest first, zombies included."""
    found, queue = [], [pid]
    while queue:
        current = queue.pop(0)
        children = []
        for listing in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                children += [int(child) for child in listing.read_text().split()]
            except OSError:
                continue
        found += children
        queue += children
    return found


def stop(components: Iterable[Component]) -> None:
    """Ends the components politely, then kills what is left of them and of everything they started."""
    running = [component for component in components if component.process]
    for component in running:
        component.signal_group(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(c.process.poll() is None for c in running):
        time.sleep(0.05)
    sweep()


def sweep() -> None:
    """Kills every descendant until there is none. Orphans count: see `adopt_orphans`."""
    while True:
        living = descendants(os.getpid())
        if not living:
            return
        for pid in living:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
