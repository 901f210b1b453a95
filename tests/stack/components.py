"""The three programs that play AWS, each told of only what it needs."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from stack import amis
from stack.processes import LOOPBACK, Component, free_port, http_ok

REGION = "us-east-1"
ACCOUNT = "000000000000"
"""LocalStack's default account; nested executions are found only when moto has the same."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
_PYTHON_PATH = str(Path(__file__).resolve().parent.parent)


@dataclass
class Aws:
    """The programs and where they listen."""

    moto: Component
    sfn: Component
    functions: Component
    moto_url: str
    sfn_url: str
    lambda_url: str
    request_log: Path
    function_logs: Path

    @property
    def components(self) -> list[Component]:
        return [self.moto, self.sfn, self.functions]


def aws(home: Path, localstack_python: str) -> Aws:
    """Describes the programs for a stack in `home`; nothing is started yet."""
    logs = home / "logs"
    moto_url, sfn_url, lambda_url = (f"http://{LOOPBACK}:{free_port()}" for _ in range(3))
    request_log = logs / "aws-requests.jsonl"
    function_logs = logs / "functions"
    return Aws(
        moto=_moto(home, moto_url, request_log),
        sfn=_step_functions(home, localstack_python, sfn_url, moto_url, lambda_url),
        functions=_lambda(home, lambda_url, function_logs),
        moto_url=moto_url,
        sfn_url=sfn_url,
        lambda_url=lambda_url,
        request_log=request_log,
        function_logs=function_logs,
    )


def base_environment(home: Path) -> dict[str, str]:
    """Nothing of the caller's environment but the search path: its AWS settings must not leak in."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": _PYTHON_PATH,
        "PYTHONUNBUFFERED": "1",
    }


def _moto(home: Path, url: str, request_log: Path) -> Component:
    return Component(
        name="moto",
        command=[
            sys.executable,
            "-P",
            "-m",
            "stack.moto_server",
            "--port",
            _port(url),
            "--request-log",
            str(request_log),
        ],
        environment={
            **base_environment(home),
            "MOTO_ACCOUNT_ID": ACCOUNT,
            "MOTO_AMIS_PATH": str(amis.write(home / "amis.json")),
        },
        log=home / "logs" / "moto.log",
        ready=http_ok(url + "/moto-api/data.json"),
        directory=home,
    )


def _step_functions(home: Path, python: str, url: str, moto_url: str, lambda_url: str) -> Component:
    return Component(
        name="step functions",
        command=[python, "-P", "-m", "stack.sfn_server"],
        environment={
            **base_environment(home),
            **CREDENTIALS,
            "GATEWAY_LISTEN": url.removeprefix("http://"),
            # Its default server binds all interfaces.
            "GATEWAY_SERVER": "hypercorn",
            "SERVICES": "stepfunctions",
            "EAGER_SERVICE_LOADING": "1",
            "FILESYSTEM_ROOT": str(home / "localstack"),
            "OVERRIDE_IN_DOCKER": "0",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
            # Only with this do its own clients honour the endpoint variables.
            "DISTRIBUTED_MODE": "1",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": moto_url,
            "AWS_ENDPOINT_URL_LAMBDA": lambda_url,
            "AWS_ENDPOINT_URL_SFN": url,
        },
        log=home / "logs" / "sfn.log",
        ready=http_ok(url + "/_localstack/health"),
        directory=home,
    )


def _lambda(home: Path, url: str, function_logs: Path) -> Component:
    return Component(
        name="lambda",
        command=[sys.executable, "-P", "-m", "stack.lambda_server", "--function-logs", str(function_logs)],
        environment={
            **base_environment(home),
            # No AWS_ENDPOINT_URL here: it would override the functions' own.
            "BIND_HOST": LOOPBACK,
            "GATEWAY_PORT": _port(url),
            "SERVICES": "lambda",
            "LAMBDA_EXECUTOR": "local",
            # Both would listen on fixed ports, one of them on all interfaces.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "MINISTACK_REGION": REGION,
        },
        log=home / "logs" / "lambda.log",
        ready=http_ok(url + "/_ministack/health"),
        directory=home,
    )


def _port(url: str) -> str:
    return url.rsplit(":", 1)[1]
