"""Runs a command beside a stack of its own: for tests in other languages, which find the parts by environment variables."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from stack.amis import IMAGE


def execute(command: list[str], localstack_python: str) -> int:
    """The command's exit code. Nothing of the stack is left running, whatever becomes of the command."""
    with tempfile.TemporaryDirectory(prefix="kopsline-stack-") as folder:
        home = Path(folder)
        up = [sys.executable, "-m", "stack", "up", "--home", str(home), "--localstack-python", localstack_python]
        stack = subprocess.Popen(up, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            line = stack.stdout.readline()
            if not line:
                return stack.wait() or 1
            return subprocess.run(command, env=os.environ | _variables(json.loads(line), home)).returncode
        finally:
            stack.stdin.close()
            stack.wait()


def _variables(report: dict, home: Path) -> dict[str, str]:
    aws = home / "aws-env.json"
    aws.write_text(json.dumps({**report["aws_env"], "KOPSLINE_TEST_IMAGE": IMAGE}))
    gitlab = report["gitlab"]
    return {
        "KOPSLINE_TEST_AWS_ENV": str(aws),
        "KOPSLINE_TEST_MOTO_URL": report["aws_url"],
        "KOPSLINE_TEST_GITLAB_URL": gitlab["url"],
        "KOPSLINE_TEST_GITLAB_TOKEN": gitlab["token"],
        "KOPSLINE_TEST_GITLAB_PROJECT": gitlab["project"],
        "KOPSLINE_TEST_GITLAB_REMOTE": gitlab["repository"],
    }
