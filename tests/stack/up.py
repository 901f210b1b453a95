"""Starts the whole stack, says where everything is, and waits for the word to stop it."""

import argparse
import base64
import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stack import components, deploy, kubernetes, processes
from stack.files import FileServer
from stack.gitlab import TOKEN_PREFIX, GitLab, Project
from stack.processes import Component, StartError
from stack.requestlog import RequestLog
from stack.template import TemplateError

_WATCH_SECONDS = 0.25


class _Stop(BaseException):
    """Somebody asked the stack to end; not an error."""


def catch_signals() -> None:
    """Turns SIGINT, SIGTERM and SIGHUP into an orderly stop, at whatever point it comes."""

    def stop(*_) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        raise _Stop

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)


def run(arguments: argparse.Namespace) -> int:
    """Runs the stack from start to stop; the result is the exit code."""
    running: list[Component] = []
    code = 0
    try:
        report = _start(arguments, running)
        print(json.dumps(report), flush=True)
        _watch(running, arguments.no_stdin)
    except _Stop:
        pass
    except (StartError, TemplateError, OSError) as error:
        _say(f"error: {error}")
        code = 1
    except Exception as error:
        _say(f"error: {type(error).__name__}: {error}")
        code = 1
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        processes.stop(running)
        _say("stopped")
    return code


@dataclass
class _Secrets:
    """Made up for each run, so that nothing works by accident."""

    gitlab_token: str
    hook_signing_token: str
    hook_secret_token: str

    @classmethod
    def new(cls) -> "_Secrets":
        return cls(
            gitlab_token="glpat-" + secrets.token_urlsafe(15),
            hook_signing_token=TOKEN_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode(),
            hook_secret_token=secrets.token_urlsafe(24),
        )


def _start(arguments: argparse.Namespace, running: list[Component]) -> dict:
    home = arguments.home.resolve()
    for folder in ("logs", "tmp", "gitlab", "localstack"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    if not shutil.which(arguments.localstack_python or ""):
        raise StartError("--localstack-python (or STACK_LOCALSTACK_PYTHON): no Python there")

    started = time.monotonic()
    aws = components.aws(home, arguments.localstack_python)
    programs = aws.components
    if arguments.kubernetes:
        cluster = arguments.kubernetes_cluster
        programs = [*programs, kubernetes.component(arguments.kubernetes, home, aws.moto_url, cluster, arguments.kubernetes_keyset)]
    # All programs before any thread: see `Component.start`.
    for component in programs:
        component.start()
        running.append(component)

    made_up = _Secrets.new()
    logs = home / "logs"
    gitlab = GitLab(home / "gitlab", made_up.gitlab_token, RequestLog(logs / "gitlab-requests.jsonl"))
    gitlab.hook.signing_token = made_up.hook_signing_token
    gitlab.hook.secret_token = made_up.hook_secret_token
    files = FileServer(RequestLog(logs / "file-requests.jsonl"))
    places = {
        "gitlab_url": gitlab.url,
        "gitlab_project": arguments.project,
        "files_url": files.url,
        "aws_url": aws.moto_url,
        "sfn_url": aws.sfn_url,
        "lambda_url": aws.lambda_url,
        "architecture": deploy.architecture(),
        **vars(made_up),
    }
    project = gitlab.create_project(arguments.project, arguments.content, _pairs(arguments.replace, places))
    places["gitlab_project_id"] = str(project.id)
    _say(f"gitlab, files: ready in {time.monotonic() - started:.1f} s")

    _wait_ready(programs, started, arguments.timeout)
    control_plane = kubernetes.report_of(home) if arguments.kubernetes else None
    if control_plane:
        places["kubernetes_url"] = control_plane["url"]
    deployed = _deploy(arguments, aws, places)
    if hook := deployed.function_urls.get(_webhook(deployed)):
        gitlab.hook.url = hook
    _say(f"ready in {time.monotonic() - started:.1f} s")
    report = _report(home, aws, programs, gitlab, project, files, made_up, deployed)
    return {**report, "kubernetes": control_plane} if control_plane else report


def _wait_ready(programs: list[Component], started: float, timeout: float) -> None:
    def wait(component: Component) -> None:
        component.wait_ready(started + timeout)
        _say(f"{component.name}: ready in {time.monotonic() - started:.1f} s")

    with ThreadPoolExecutor(len(programs)) as pool:
        waits = [pool.submit(wait, component) for component in programs]
        for waiting in waits:
            waiting.result()


def _deploy(arguments: argparse.Namespace, aws: components.Aws, places: dict[str, str]) -> deploy.Deployed:
    deployed = deploy.Deployed()
    values = json.loads(arguments.values.read_text()) if arguments.values else {}

    def given(kind: str, flags: list[str]) -> dict[str, str]:
        written = [f"{name}={value}" for name, value in values.get(kind, {}).items()]
        return _pairs(written + flags, places)

    if arguments.template:
        begun = time.monotonic()
        deployed = deploy.deploy(
            aws,
            deploy.Request(
                template=arguments.template.resolve(),
                functions=arguments.functions,
                parameters=given("parameters", arguments.parameter),
                secrets=given("secrets", arguments.secret),
                environment=given("environment", arguments.env),
            ),
        )
        _say(f"template: deployed in {time.monotonic() - begun:.1f} s")
    for bucket in values.get("buckets", []) + arguments.bucket:
        deploy.create_bucket(aws, bucket)
        deployed.buckets[bucket] = bucket
    if arguments.kops:
        version, _, binary = arguments.kops.partition("=")
        if "RunBucket" not in deployed.buckets:
            raise TemplateError("--kops needs a bucket RunBucket in the template")
        deploy.upload_kops(aws, deployed.buckets["RunBucket"], version, Path(binary))
    return deployed


def _pairs(texts: list[str], places: dict[str, str]) -> dict[str, str]:
    """NAME=VALUE texts with the places filled in."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise TemplateError(f"{text!r} is not NAME=VALUE")
        for place, known in places.items():
            value = value.replace("{" + place + "}", known)
        pairs[name] = value
    return pairs


def _webhook(deployed: deploy.Deployed) -> str | None:
    """The function that receives GitLab's hooks: the one named so, or the only one with a URL."""
    names = list(deployed.function_urls)
    named = [name for name in names if "webhook" in name.lower()]
    return next(iter(named or (names if len(names) == 1 else [])), None)


def _report(
    home: Path,
    aws: components.Aws,
    programs: list[Component],
    gitlab: GitLab,
    project: Project,
    files: FileServer,
    made_up: _Secrets,
    deployed: deploy.Deployed,
) -> dict:
    environment = deploy.local_environment(aws)
    logs = home / "logs"
    return {
        "home": str(home),
        "region": components.REGION,
        "account": components.ACCOUNT,
        "aws_url": aws.moto_url,
        "sfn_url": aws.sfn_url,
        "lambda_url": aws.lambda_url,
        "files_url": files.url,
        "gitlab": {
            "url": gitlab.url,
            "token": made_up.gitlab_token,
            "project": project.path,
            "project_id": project.id,
            "default_branch": project.repository.default_branch,
            "repository": str(project.repository.path),
            "hook_url": gitlab.hook.url,
            "hook_signing_token": made_up.hook_signing_token,
            "hook_secret_token": made_up.hook_secret_token,
        },
        **deployed.report(),
        "logs": {component.name: str(component.log) for component in programs},
        "request_logs": {
            "aws": str(aws.request_log),
            "gitlab": str(logs / "gitlab-requests.jsonl"),
            "files": str(logs / "file-requests.jsonl"),
        },
        "function_logs": {
            name: str(aws.function_logs / f"{function}.log") for name, function in deployed.functions.items()
        },
        "aws_env": environment,
        "kops_env": {**environment, "HOME": str(home / "kops"), "KUBECONFIG": str(home / "kops" / "kubeconfig")},
        "pids": {component.name: component.process.pid for component in programs},
    }


def _watch(running: list[Component], ignore_stdin: bool) -> None:
    """Returns when stdin closes; `StartError` when a program ends by itself."""
    inputs = [] if ignore_stdin else [sys.stdin.fileno()]
    while True:
        readable, _, _ = select.select(inputs, [], [], _WATCH_SECONDS)
        if readable and not os.read(readable[0], 4096):
            return
        for component in running:
            if component.process.poll() is not None:
                raise StartError(component.failure(f"ended with code {component.process.returncode}"))


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # Whoever read it may be gone.
        print(text, file=sys.stderr, flush=True)
