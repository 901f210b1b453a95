"""A real Kubernetes API with simulated kubelets: etcd, kube-apiserver, controllers, scheduler and kwok.

    python -m stack.kubernetes --program "$(tools/kubernetes/get)" --home FOLDER

prints one line of JSON when it is ready and runs until stdin closes or SIGTERM comes; nothing is left running. With
`--aws-url`, the running instances of `--cluster` there join it as Nodes, and leave it when they are gone.
"""

import argparse
import contextlib
import datetime
import ipaddress
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from cryptography.hazmat.primitives import serialization

from stack import components, processes
from stack.authority import Authority, KeysetError, Pair, signing_pair
from stack.joiner import Joiner, running_instances
from stack.kube_api import Api, ApiError
from stack.processes import LOOPBACK, Component, StartError, free_port

HERE = Path(__file__).resolve().parent
DEFAULT_CLUSTER = "demo.k8s.example.com"
_LOOK_SECONDS = 1.0
_WATCH_SECONDS = 0.25
# Kubelets are trusted to live: on a busy machine their leases would lapse, and their Nodes with them.
_LEASE_SECONDS = 3600
_GRACE = "2h"
_CONTROLLERS = (
    "disruption-controller",
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "daemonset-controller",
    "job-controller",
    "serviceaccount-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "pod-garbage-collector-controller",
)
# Who asked for what, with which answer; the stack's own programs and the tests, which are `admin`, left out.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "users": ["admin", "system:apiserver", "system:anonymous"]},
        {"level": "Metadata"},
    ],
}
# The defaults are made for clusters whose machines come one by one.
_FAST = ["--kube-api-qps=1000", "--kube-api-burst=2000"]


@dataclass(frozen=True)
class Delays:
    """How long simulated kubelets, instances and the cloud controller manager take, in seconds."""

    pod_ready: float = 2.0
    pod_complete: float = 1.0
    pod_deletion: float = 2.0
    join: float = 1.0
    removal: float = 5.0


class Files:
    """Where everything lies in a control plane's folder."""

    def __init__(self, home: Path):
        self.home = home
        self.pki = home / "pki"
        self.logs = home / "logs"
        self.kubeconfig = home / "kubeconfig"
        self.stages = home / "stages.yaml"
        self.audit_policy = home / "audit-policy.yaml"
        self.audit_log = home / "logs" / "audit.jsonl"
        self.ready = home / "ready.json"
        for name in ("ca", "trusted", "apiserver", "cluster", "admin"):
            setattr(self, f"{name}_certificate", self.pki / f"{name}.crt")
            setattr(self, f"{name}_key", self.pki / f"{name}.key")
        self.tokens_key = self.pki / "sa.key"
        self.tokens_public_key = self.pki / "sa.pub"
        self.keyset = self.pki / "keyset.yaml"

    def write(self, path: Path, text: str) -> None:
        """In one go, because the API server reads some of them again when they change."""
        new = path.with_suffix(path.suffix + ".new")
        new.write_text(text)
        new.chmod(0o600)
        new.replace(path)


class ControlPlane:
    """A control plane's programs and files in a folder of its own."""

    def __init__(self, program: Path, home: Path, cluster: str, delays: Delays):
        self.program = program.resolve()
        self.files = Files(home.resolve())
        self.cluster = cluster
        self.delays = delays
        self.port, self.etcd_port, self.peer_port = free_port(), free_port(), free_port()
        self.url = f"https://{LOOPBACK}:{self.port}"
        self.version = ""

    @property
    def tls_names(self) -> list[str]:
        """The names under which clients of the cluster know its API."""
        return [f"api.internal.{self.cluster}", f"api.{self.cluster}"]

    def prepare(self) -> None:
        """Makes keys, certificates and settings."""
        files = self.files
        for folder in (files.pki, files.logs):
            folder.mkdir(parents=True, exist_ok=True)
        asked = subprocess.run([self.program, "version"], capture_output=True, text=True, check=False)
        if asked.returncode:
            raise StartError(f"{self.program} is not what tools/kubernetes/get gives: {asked.stderr.strip()}")
        self.version = asked.stdout.strip()
        self.own = Authority.create()
        server = self.own.server(["localhost"], [ipaddress.ip_address(LOOPBACK)])
        self._write_pair("apiserver", server)
        self._write_pair("admin", self.own.client("admin", "system:masters"))
        files.write(files.ca_certificate, self.own.bundle())
        files.write(files.keyset, self.own.keyset())
        private, public = signing_pair()
        files.write(files.tokens_key, private)
        files.write(files.tokens_public_key, public)
        files.write(files.kubeconfig, json.dumps(self._kubeconfig()))
        files.write(files.stages, self._stages())
        files.write(files.audit_policy, json.dumps(_AUDIT_POLICY))
        self.trust(self.own)

    def trust(self, authority: Authority) -> None:
        """Makes `authority` the cluster's: its clients are let in, and it vouches for the API's names.

        The control plane's own clients stay with the authority that was made for them. kube-apiserver takes new files
        up by itself.
        """
        files = self.files
        key = None
        if files.cluster_key.exists():
            # Two files cannot change at once, so the key stays.
            key = serialization.load_pem_private_key(files.cluster_key.read_bytes(), None)
        self._write_pair("cluster", authority.server([*self.tls_names, "localhost"], [], key))
        files.write(files.trusted_certificate, "".join(dict.fromkeys([self.own.bundle(), authority.bundle()])))

    def api(self) -> Api:
        """Requests as an administrator."""
        return Api(self.url, self.files.ca_certificate, self.files.admin_certificate, self.files.admin_key)

    def storage_and_api(self) -> list[Component]:
        """What everything else needs."""
        files = self.files
        etcd, peers = f"http://{LOOPBACK}:{self.etcd_port}", f"http://{LOOPBACK}:{self.peer_port}"
        return [
            self._component(
                "etcd",
                "--name=stack",
                f"--data-dir={files.home / 'etcd'}",
                "--unsafe-no-fsync",
                "--log-level=warn",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=stack={peers}",
            ),
            self._component(
                "kube-apiserver",
                f"--etcd-servers={etcd}",
                f"--bind-address={LOOPBACK}",
                f"--advertise-address={LOOPBACK}",
                f"--secure-port={self.port}",
                f"--tls-cert-file={files.apiserver_certificate}",
                f"--tls-private-key-file={files.apiserver_key}",
                f"--tls-sni-cert-key={files.cluster_certificate},{files.cluster_key}:{','.join(self.tls_names)}",
                f"--client-ca-file={files.trusted_certificate}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={files.tokens_public_key}",
                f"--service-account-signing-key-file={files.tokens_key}",
                "--authorization-mode=Node,RBAC",
                "--service-cluster-ip-range=100.64.0.0/13",
                "--endpoint-reconciler-type=none",
                "--allow-privileged=true",
                f"--audit-policy-file={files.audit_policy}",
                f"--audit-log-path={files.audit_log}",
                "--profiling=false",
                # Nothing in a simulated pod would use the token that it adds.
                "--disable-admission-plugins=ServiceAccount",
            ),
        ]

    def clients(self) -> list[Component]:
        """What works on the API."""
        files = self.files
        connected = [f"--kubeconfig={files.kubeconfig}"]
        alone = ["--leader-elect=false", "--secure-port=0", "--profiling=false"]
        return [
            self._component(
                "kube-controller-manager",
                *connected,
                *alone,
                *_FAST,
                f"--controllers={','.join(_CONTROLLERS)}",
                f"--node-monitor-grace-period={_GRACE}",
                f"--service-account-private-key-file={files.tokens_key}",
            ),
            self._component("kube-scheduler", *connected, *alone, *_FAST),
            self._component(
                "kwok",
                *connected,
                f"--config={files.stages}",
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                f"--node-lease-duration-seconds={_LEASE_SECONDS}",
            ),
        ]

    def report(self) -> dict:
        """Where it is and how to get in."""
        files = self.files
        return {
            "url": self.url,
            "version": self.version,
            "cluster": self.cluster,
            "tls_server_name": self.tls_names[0],
            "ca": files.ca_certificate.read_text(),
            "keyset": str(files.keyset),
            "kubeconfig": str(files.kubeconfig),
            "audit_log": str(files.audit_log),
        }

    def _component(self, name: str, *flags: str) -> Component:
        return Component(
            name=name,
            command=[str(self.program), name, *flags],
            environment={"PATH": os.environ["PATH"], "HOME": str(self.files.home), "TMPDIR": str(self.files.home)},
            log=self.files.logs / f"{name}.log",
            ready=self._answers,
            directory=self.files.home,
        )

    def _answers(self) -> bool:
        try:
            self.api().request("GET", "/readyz")
        except (ApiError, OSError):
            return False
        return True

    def _write_pair(self, name: str, pair: Pair) -> None:
        key = self.files.pki / f"{name}.key"
        if not key.exists() or key.read_text() != pair.key:
            self.files.write(key, pair.key)
        self.files.write(self.files.pki / f"{name}.crt", pair.certificate)

    def _kubeconfig(self) -> dict:
        files = self.files
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "stack", "cluster": {"server": self.url, "certificate-authority": str(files.ca_certificate)}}
            ],
            "users": [
                {
                    "name": "admin",
                    "user": {
                        "client-certificate": str(files.admin_certificate),
                        "client-key": str(files.admin_key),
                    },
                }
            ],
            "contexts": [{"name": "stack", "context": {"cluster": "stack", "user": "admin"}}],
            "current-context": "stack",
        }

    def _stages(self) -> str:
        text = (HERE / "kubernetes-stages.yaml").read_text()
        delays = {
            "READY": self.delays.pod_ready,
            "COMPLETE": self.delays.pod_complete,
            "DELETE": self.delays.pod_deletion,
        }
        for name, seconds in delays.items():
            text = text.replace(f"durationMilliseconds: ${name}", f"durationMilliseconds: {int(seconds * 1000)}")
        return text


class Follower(threading.Thread):
    """Keeps the cluster's authority and its Nodes as the emulated cloud has them."""

    def __init__(self, plane: ControlPlane, keyset: str | None, aws_url: str | None):
        super().__init__(name="follower", daemon=True)
        self._plane = plane
        self._keyset = keyset
        self._trusted = ""
        self._aws_url = aws_url
        self._said = ""
        self._joiner = None
        if aws_url:
            ec2 = self._client("ec2")
            self._joiner = Joiner(
                api=plane.api(),
                instances=lambda: running_instances(ec2, plane.cluster),
                version=plane.version,
                join_seconds=plane.delays.join,
                removal_seconds=plane.delays.removal,
            )

    def run(self) -> None:
        """Until the process ends."""
        while True:
            # Any of it may be missing for a while: the cluster may not be created yet, or the cloud may be stopping.
            try:
                self.step()
            except (ApiError, BotoCoreError, ClientError, KeysetError, OSError, ValueError, LookupError) as error:
                self._say(f"{type(error).__name__}: {error}")
            else:
                self._say("")
            time.sleep(_LOOK_SECONDS)

    def step(self) -> None:
        """One look."""
        if self._keyset:
            self.take_authority()
        if self._joiner:
            self._joiner.step()

    def take_authority(self) -> None:
        """Takes over the keyset's authority when there is a new one."""
        text = self._read_keyset()
        if text and text != self._trusted:
            self._plane.trust(Authority.from_keyset(text))
            self._trusted = text

    def _read_keyset(self) -> str | None:
        location = urlsplit(self._keyset)
        if location.scheme != "s3":
            return Path(self._keyset).read_text()
        s3 = self._client("s3")
        try:
            answer = s3.get_object(Bucket=location.netloc, Key=location.path.lstrip("/"))
        except (s3.exceptions.NoSuchKey, s3.exceptions.NoSuchBucket):
            return None
        return answer["Body"].read().decode()

    def _client(self, service: str):
        return boto3.client(
            service,
            endpoint_url=self._aws_url,
            region_name=components.REGION,
            **{name.lower(): value for name, value in components.CREDENTIALS.items()},
        )

    def _say(self, text: str) -> None:
        if text and text != self._said:
            print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)
        self._said = text


def component(
    program: Path, home: Path, aws_url: str, cluster: str, keyset: str | None, delays: Delays | None = None
) -> Component:
    """The whole control plane as one program of the stack in `home`, with its own folder there."""
    folder = home / "kubernetes"
    ready = Files(folder).ready
    # The folder may have been used before.
    ready.unlink(missing_ok=True)
    flags = {"program": program.resolve(), "home": folder, "aws-url": aws_url, "cluster": cluster, "keyset": keyset}
    flags |= {_delay_flag(name): seconds for name, seconds in vars(delays or Delays()).items()}
    return Component(
        name="kubernetes",
        command=[
            *(sys.executable, "-P", "-m", "stack.kubernetes", "--no-stdin"),
            *(f"--{name}={value}" for name, value in flags.items() if value is not None),
        ],
        environment=components.base_environment(home),
        log=home / "logs" / "kubernetes.log",
        ready=ready.exists,
        directory=home,
    )


def report_of(home: Path) -> dict:
    """What a control plane that `component` describes said when it was ready."""
    return json.loads(Files(home / "kubernetes").ready.read_text())


def _delay_flag(name: str) -> str:
    return f"{name.replace('_', '-')}-seconds"


class _Stop(BaseException):
    """Somebody asked the control plane to end; not an error."""


def run(arguments: argparse.Namespace) -> int:
    """Runs the control plane from start to stop; the result is the exit code."""

    def stop(*_) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        raise _Stop

    running: list[Component] = []
    try:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, stop)
        _start(arguments, running)
        _watch(running, arguments.no_stdin)
    except _Stop:
        return 0
    except (StartError, KeysetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        # At once: nothing of it is kept.
        processes.sweep()
    return 0


def _start(arguments: argparse.Namespace, running: list[Component]) -> None:
    delays = Delays(**{name: getattr(arguments, name) for name in Delays.__dataclass_fields__})
    plane = ControlPlane(arguments.program, arguments.home, arguments.cluster, delays)
    plane.files.ready.unlink(missing_ok=True)
    plane.prepare()
    deadline = time.monotonic() + arguments.timeout

    def start(programs: list[Component]) -> None:
        for program in programs:
            program.start()
            running.append(program)

    start(plane.storage_and_api())
    running[-1].wait_ready(deadline)
    # They would give up while there is no API.
    start(plane.clients())
    follower = Follower(plane, arguments.keyset, arguments.aws_url)
    if arguments.keyset:
        with contextlib.suppress(BotoCoreError, ClientError):
            follower.take_authority()
    follower.start()
    report = {**plane.report(), "logs": {p.name: str(p.log) for p in running}}
    plane.files.write(plane.files.ready, json.dumps(report))
    print(json.dumps(report), flush=True)


def _watch(running: list[Component], ignore_stdin: bool) -> None:
    """Returns when stdin closes; `StartError` when a program ends by itself."""
    inputs = [] if ignore_stdin else [sys.stdin.fileno()]
    while True:
        readable, _, _ = select.select(inputs, [], [], _WATCH_SECONDS)
        if readable and not os.read(readable[0], 4096):
            return
        for program in running:
            if program.process.poll() is not None:
                raise StartError(program.failure(f"ended with code {program.process.returncode}"))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="stack.kubernetes", description=__doc__.split("\n\n")[0])
    parser.add_argument("--program", type=Path, required=True, help="what tools/kubernetes/get prints")
    parser.add_argument("--home", type=Path, required=True, help="a folder for data, keys and logs")
    parser.add_argument("--cluster", default=DEFAULT_CLUSTER, help="the cluster's name (%(default)s)")
    parser.add_argument(
        "--keyset",
        help="kOps' keyset of the cluster's CA, a file or s3://BUCKET/KEY: taken over as soon as it is there; "
        "without it a CA is made, and its keyset is in the folder",
    )
    parser.add_argument("--aws-url", help="emulated AWS, whose instances join")
    parser.add_argument("--no-stdin", action="store_true", help="do not stop when stdin closes")
    parser.add_argument("--timeout", type=float, default=120, help="seconds the API may take to come up")
    for name, field in Delays.__dataclass_fields__.items():
        parser.add_argument(
            f"--{_delay_flag(name)}", dest=name, type=float, default=field.default, help="(%(default)s)"
        )
    arguments = parser.parse_args()
    # What its programs leave behind when they are killed is found and ended.
    processes.adopt_orphans()
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
