"""Lambda's Runtime API for one process of a function."""

import http.server
import json
import pathlib
import queue
import subprocess
import sys
import threading
import time
import uuid


def peak_memory(pid):
    """The peak memory of a living process in bytes. What wait4 tells counts this one's too, of which it was forked."""
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """The process that asks here is killed in the middle of its next question."""


class Runtime:
    """Gives a function's binary events and times its answers."""

    def __init__(self, binary, environment):
        self._events, self._answers = queue.Queue(), queue.Queue()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{self._server.server_address[1]}"
        fixed = {"AWS_LAMBDA_RUNTIME_API": address, "AWS_LAMBDA_FUNCTION_NAME": binary.parent.name,
                 "AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "2048",
                 "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}  # fmt: skip
        self._process = subprocess.Popen(
            [binary], env=environment | fixed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _handler(self):
        events, answers = self._events, self._answers

        class Api(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body go out apart: Nagle's algorithm would add 40 ms to every answer.
            disable_nagle_algorithm = True

            def do_GET(self):
                body = events.get()
                self.send_response(200)
                for name, value in {
                    "Lambda-Runtime-Aws-Request-Id": str(uuid.uuid4()),
                    "Lambda-Runtime-Deadline-Ms": str(int((time.time() + 900) * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:bench",
                    "Content-Length": str(len(body)),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answers.put((time.perf_counter(), body))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        return Api

    def invoke(self, event):
        """The answer and its time in seconds."""
        begun = time.perf_counter()
        self._events.put(json.dumps(event).encode())
        while True:
            try:
                ended, body = self._answers.get(timeout=1)
                return json.loads(body), ended - begun
            except queue.Empty:
                if self._process.poll() is not None:
                    sys.exit(f"error: {self._process.args[0]} ended with code {self._process.returncode} instead of answering")

    def stop(self):
        """Ends the process; returns its peak memory in bytes."""
        peak = peak_memory(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        return peak
