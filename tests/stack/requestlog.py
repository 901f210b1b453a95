"""One line of JSON for each request a server of the stack received."""

import json
import threading
import time
from pathlib import Path


class RequestLog:
    """An append-only file of JSON lines; safe for threads, and complete before the client has its answer."""

    def __init__(self, path: Path):
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, **fields: object) -> None:
        """Appends one request. `time` is seconds since the epoch."""
        line = json.dumps({"time": round(time.time(), 6), **fields}, default=str)
        with self._lock:
            self._file.write(line + "\n")
