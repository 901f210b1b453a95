"""ministack as the Lambda of the stack, with every function's output in a file of its own.

Run in the `aws` virtual environment: `python -m stack.lambda_server --function-logs DIR`, otherwise
configured by environment variables (see `components.py`).
"""

import argparse
import sys
from pathlib import Path
from socketserver import StreamRequestHandler

from ministack.app import main as run_ministack
from ministack.core.lambda_runtime import ProvidedWorker


def keep_function_logs(folder: Path) -> None:
    """AWS keeps what a function writes in CloudWatch Logs.

    ministack keeps it too, but only once an invocation has ended, and in memory.
    """
    pump = ProvidedWorker._pump_output

    def pump_and_keep(worker, stream, log_queue):
        with (folder / f"{worker.func_name}.log").open("ab", buffering=0) as log:
            pump(worker, _Tee(stream, log), log_queue)

    ProvidedWorker._pump_output = pump_and_keep


def answer_at_once() -> None:
    """AWS gives a function its event at once.

    ministack sends an answer's head and body apart; with Nagle's algorithm and delayed ACKs the body takes 40 ms more.
    """
    StreamRequestHandler.disable_nagle_algorithm = True


class _Tee:
    """A stream whose lines are also written to a file."""

    def __init__(self, stream, copy):
        self._stream = stream
        self._copy = copy

    def readline(self):
        line = self._stream.readline()
        self._copy.write(line)
        return line

    def close(self):
        self._stream.close()


def main() -> None:
    """Runs ministack until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--function-logs", type=Path, required=True)
    folder = parser.parse_args().function_logs
    folder.mkdir(parents=True, exist_ok=True)
    keep_function_logs(folder)
    answer_at_once()
    sys.argv[1:] = []  # ministack reads them too.
    run_ministack()


if __name__ == "__main__":
    main()
