"""The local stack with Kopsline deployed on it, as people and GitLab use it."""

import datetime
import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import boto3
import yaml

ROOT = Path(__file__).resolve().parents[2]
KOPS_VERSION = re.search(r"k8s\.io/kops v(\S+)", (ROOT / "tools/kops/go.mod").read_text())[1]
STATE_STORE = "kops-state"
"""The bucket of the state store that tests/stack/kopsline-values.json allows."""
PATIENCE_SECONDS = 300
_OVER = ("succeeded", "no-changes", "rejected", "expired", "superseded", "failed")
# How AWS names operations that change nothing, in every API that has names for them; S3 and Route 53 have methods.
_READS = re.compile(r"^(Describe|Get|List|Head|Assume)")


class Stack:
    """The local stack with the functions deployed from template.yaml, unless it is to be without."""

    def __init__(self, home: Path, content: Path = ROOT / "tests/fixtures/demo", *flags: str, deployed: bool = True):
        functions = os.environ.get("KOPSLINE_FUNCTIONS") or str(ROOT / "target/debug")
        command = [os.environ["STACK_PYTHON"], "-m", "stack", "up", "--home", str(home)]
        command += ["--content", str(content), "--replace", "https://kops-files.example.com={files_url}"]
        if deployed:
            command += ["--template", str(ROOT / "template.yaml"), "--values", str(ROOT / "tests/stack/kopsline-values.json")]
            command += ["--functions", functions, "--kops", f"{KOPS_VERSION}={os.environ['STACK_KOPS']}"]
        else:
            command += ["--bucket", STATE_STORE]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        self.home = home
        self.process = subprocess.Popen([*command, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the local stack did not start: see above")
        self.places = json.loads(line)
        self.s3, self.groups, self.ec2 = (self.client(service) for service in ("s3", "autoscaling", "ec2"))
        self.sfn = self.client("stepfunctions", "sfn_url")
        self.bucket = self.places["buckets"].get("RunBucket")
        machines = self.places["state_machines"]
        self.machine = {name.lower().removesuffix("statemachine"): at for name, at in machines.items()}

    def client(self, service: str, url: str = "aws_url"):
        keys = {"region_name": self.places["region"], "aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client(service, endpoint_url=self.places[url], **keys)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    # --- GitLab ---

    def control(self, path: str, body: dict) -> dict:
        """Steers the GitLab stand-in."""
        request = urllib.request.Request(
            self.places["gitlab"]["url"] + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def git(self, *arguments: str) -> str:
        command = ["git", "--git-dir", self.places["gitlab"]["repository"], *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def manifest(self, path: str = "cluster.yaml") -> str:
        return self.git("show", f"HEAD:{path}")

    def push(self, manifest: str, message: str, path: str = "cluster.yaml") -> dict:
        """A commit of a manifest on the default branch, delivered as GitLab does."""
        return self.push_files({path: manifest}, message)

    def push_files(self, files: dict[str, str], message: str) -> dict:
        project = self.places["gitlab"]["project"]
        return self.control("/_control/commit", {"project": project, "files": files, "message": message, "push": True})

    def deliver_head(self, **options: str) -> dict:
        gitlab = self.places["gitlab"]
        head = self.git("rev-parse", "HEAD").strip()
        ref = f"refs/heads/{gitlab['default_branch']}"
        return self.control("/_control/push", {"project": gitlab["project"], "ref": ref, "before": "0" * 40, "after": head, **options})

    # --- Runs ---

    def document(self, key: str):
        text = self.text(key)
        return None if text is None else json.loads(text)

    def text(self, key: str, bucket: str | None = None) -> str | None:
        """An object of the run bucket, or of another one."""
        try:
            return self.s3.get_object(Bucket=bucket or self.bucket, Key=key)["Body"].read().decode()
        except self.s3.exceptions.NoSuchKey:
            return None

    def decide(self, approval: str, decision: str) -> None:
        """As a person does from the Step Functions console."""
        answer = {"approval": approval, "decision": decision, "comment": "looked at it", "by": "ann"}
        self.sfn.start_execution(stateMachineArn=self.machine["approve"], input=json.dumps(answer))

    def record(self, run: str) -> dict | None:
        return self.document(f"runs/{run}/run.json")

    def follow(self, run: str, decide="approve", asked=lambda approval: None, patience: float = PATIENCE_SECONDS) -> dict:
        """Answers every question of a run, and returns its record when it has ended. `asked` is called before an answer.

        `decide` is the answer, or what gives it for a question; none is given where it is none.
        """
        until, answered, record = time.monotonic() + patience, set(), None
        while time.monotonic() < until:
            record = self.record(run)
            if record and record["state"] in _OVER:
                return record
            for approval in record["approvals"] if record and decide else []:
                question = self.document(f"approvals/{approval}.json")
                if approval not in answered and question and not question["answer"] and not question["withdrawn"]:
                    asked(question)
                    answered.add(approval)
                    if decision := decide(question) if callable(decide) else decide:
                        self.decide(approval, decision)
            time.sleep(0.2)
        raise AssertionError(f"{run} did not end: {record}")

    def events(self, run: str) -> list[dict]:
        """A run's history: what happened, in order."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"runs/{run}/events/")
        told = [self.document(entry["Key"]) for page in pages for entry in page.get("Contents", [])]
        return [event for some in told for event in (some if isinstance(some, list) else [some])]

    def until_asked(self, run: str) -> dict:
        """The record of a run when it waits for its first answer, or has ended without asking."""
        until, record = time.monotonic() + PATIENCE_SECONDS, None
        while time.monotonic() < until:
            record = self.record(run)
            if record and (record["approvals"] or record["state"] in _OVER):
                return record
            time.sleep(0.2)
        raise AssertionError(f"{run} did not ask: {record}")

    def until_ended(self, run: str) -> str:
        """How a run's execution ended."""
        execution = f"{self.machine['pipeline'].replace(':stateMachine:', ':execution:')}:{run}"
        until, status = time.monotonic() + PATIENCE_SECONDS, "RUNNING"
        while status == "RUNNING" and time.monotonic() < until:
            time.sleep(0.2)
            status = self.sfn.describe_execution(executionArn=execution)["status"]
        return status

    # --- What is there ---

    def instances(self, cluster: str = "") -> dict[str, set[str]]:
        """The Auto Scaling groups' instances; of one cluster only, if it is given."""
        found = self.groups.describe_auto_scaling_groups()["AutoScalingGroups"]
        of = [group for group in found if group["AutoScalingGroupName"].endswith(cluster)]
        return {group["AutoScalingGroupName"]: {i["InstanceId"] for i in group["Instances"]} for group in of}

    def registry(self, place: str) -> dict[str, str]:
        """The registry's objects of a cluster, `prefix/name` in the state store, and their versions."""
        listed = self.s3.list_objects_v2(Bucket=STATE_STORE, Prefix=f"{place}/").get("Contents", [])
        return {o["Key"]: o["ETag"] for o in listed if is_of_registry(o["Key"].removeprefix(f"{place}/"))}

    def objects(self, place: str) -> dict[str, object]:
        """The same objects by their names in the registry, as data: what they mean."""
        return {key.removeprefix(f"{place}/"): meaning(self.text(key, STATE_STORE)) for key in self.registry(place)}

    def requests(self, since: float, until: float) -> list[dict]:
        """What the emulated AWS received between two moments (seconds since the epoch), from its own log."""
        lines = Path(self.places["request_logs"]["aws"]).read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if since <= entry["time"] <= until]

    def writes(self, since: float, until: float) -> list[str]:
        """Requests that change something, the run bucket's objects and the tests' own requests aside."""
        wrote = [entry for entry in self.requests(since, until) if changes_something(entry)]
        aside = (f"/{self.bucket}/",)
        return [
            f"{entry['service']} {entry['action'] or entry['method']} {entry['path']}"
            for entry in wrote
            if not entry["path"].startswith(aside) and not entry["agent"].startswith("Boto3/")
        ]

    # --- The commands of people ---

    def environment(self) -> dict[str, str]:
        """What the commands of people need to find the emulated AWS, in a home of their own."""
        home = self.home / "person"
        home.mkdir(exist_ok=True)
        mine = {"HOME": str(home), "KUBECONFIG": str(home / "kubeconfig"), "PATH": os.environ["PATH"]}
        return {**self.places["kops_env"], **mine}

    def kops(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """Bare kops, as a person runs it."""
        command = [os.environ["STACK_KOPS"], *arguments]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=timeout)

    def dry_run(self, cluster: str, store: str = f"s3://{STATE_STORE}") -> str:
        """What bare kops prints as its plan."""
        done = self.kops("update", "cluster", "--name", cluster, "--state", store)
        if done.returncode:
            raise AssertionError(f"kops update cluster {cluster}: {done.stderr}")
        return done.stdout

    def kopsline(self, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess:
        """The kopsline command against this deployment."""
        command, environment = self.kopsline_command(*arguments)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)

    def kopsline_command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """The command line, and its environment."""
        binary = os.environ.get("KOPSLINE") or str(ROOT / "target/debug/kopsline")
        deployed = {"KOPSLINE_KOPS_FEATURE_FLAGS": "-ImageDigest"}
        if self.bucket:
            deployed["KOPSLINE_RUN_BUCKET"] = self.bucket
            deployed |= {f"KOPSLINE_{name.upper()}_ARN": self.machine[name] for name in ("pipeline", "approve")}
        return [binary, *arguments], self.environment() | deployed

    def work_tree(self, folder: Path) -> Path:
        """A person's clone of the project."""
        subprocess.run(["git", "clone", "--quiet", self.places["gitlab"]["repository"], str(folder)], check=True, capture_output=True)
        return folder


def is_of_registry(name: str) -> bool:
    """Whether an object of a cluster's folder is what `kops replace` writes, as against what kops makes of it."""
    return name == "config" or name.startswith(("instancegroup/", "clusteraddons/", "pki/ssh/public/"))


def meaning(text: str) -> object:
    """An object as data; an SSH key, which is no YAML, as its text."""
    return text.strip() if text.startswith("ssh-") else yaml.safe_load(text)


def changes_something(entry: dict) -> bool:
    """Whether a request of the emulator's log may change what is there."""
    if entry["action"]:
        return not _READS.match(entry["action"])
    return entry["method"] not in ("GET", "HEAD")


def runs_of(delivery: dict) -> list[str]:
    """The runs that a delivery started, from the webhook's answer."""
    try:
        return json.loads(delivery.get("delivery", delivery)["body"]).get("runs", [])
    except ValueError:
        return []


def stage(record: dict, name: str) -> dict:
    return next(stage for stage in record["stages"] if stage["stage"] == name)


def moment(timestamp: str) -> float:
    """A record's timestamp as seconds since the epoch."""
    return datetime.datetime.fromisoformat(timestamp).timestamp()
