"""A Lambda function for the stack's own tests: it does what its event says, over the real Runtime API.

`{"do": "fail", "type": T, "message": M}` fails with that error.
`{"do": "flaky", "file": F, "fails": N}` fails N times and then succeeds.
`{"do": "keep", "file": F, ...}` writes the event there.
`{"do": "meet", "folder": D, "count": N}` returns once N calls are there at the same time.
`{"do": "sleep", "seconds": S}` waits, `{"do": "print", "text": T}` logs.
`{"do": "environment"}` answers with its environment.
A Function URL's event is answered with itself.
"""

import json
import os
import time
import urllib.request
from pathlib import Path

RUNTIME = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime/invocation"


class Failure(Exception):
    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def handle(event):
    match event:
        case {"requestContext": {"http": _}}:
            headers = {"content-type": "application/json", "x-test": "yes"}
            return {"statusCode": 201, "headers": headers, "body": json.dumps(event)}
        case {"do": "fail", "type": kind, "message": message}:
            raise Failure(kind, message)
        case {"do": "flaky", "file": file, "fails": fails}:
            tries = len(Path(file).read_text()) if Path(file).exists() else 0
            Path(file).write_text("x" * (tries + 1))
            if tries < fails:
                raise Failure("Flaky", f"try {tries + 1}")
            return {"tries": tries + 1}
        case {"do": "keep", "file": file}:
            scratch = Path(file + ".part")
            scratch.write_text(json.dumps(event))
            scratch.rename(file)
        case {"do": "meet", "folder": folder, "count": count}:
            Path(folder, str(os.getpid())).touch()
            while len(list(Path(folder).iterdir())) < count:
                time.sleep(0.05)
        case {"do": "sleep", "seconds": seconds}:
            time.sleep(seconds)
        case {"do": "print", "text": text}:
            print(text, flush=True)
        case {"do": "environment"}:
            return dict(os.environ)
    return event


def post(path, body):
    data = json.dumps(body).encode()
    urllib.request.urlopen(urllib.request.Request(f"{RUNTIME}/{path}", data=data, method="POST")).close()


while True:
    with urllib.request.urlopen(f"{RUNTIME}/next") as response:
        request = response.headers["Lambda-Runtime-Aws-Request-Id"]
        event = json.load(response)
    try:
        post(f"{request}/response", handle(event))
    except Failure as failure:
        post(f"{request}/error", {"errorType": failure.kind, "errorMessage": str(failure), "stackTrace": []})
