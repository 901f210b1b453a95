"""The whole pipeline, for real: the functions' binaries, the state machines, and kops, on the local stack."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import boto3

ROOT = Path(__file__).resolve().parents[2]
KOPS_VERSION = "1.36.2"
CLUSTER = "demo.k8s.example.com"
PATIENCE_SECONDS = 300


class Stack:
    """The local stack with the functions deployed from template.yaml."""

    def __init__(self, home: Path):
        functions = os.environ.get("KOPSLINE_FUNCTIONS") or str(ROOT / "target/debug")
        command = [os.environ["STACK_PYTHON"], "-m", "stack", "up", "--home", str(home)]
        command += ["--template", str(ROOT / "template.yaml"), "--values", str(ROOT / "tests/stack/kopsline-values.json")]
        command += ["--functions", functions, "--content", str(ROOT / "tests/fixtures/demo")]
        command += ["--replace", "https://kops-files.example.com={files_url}", "--kops", f"{KOPS_VERSION}={os.environ['STACK_KOPS']}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the local stack did not start: see above")
        self.places = json.loads(line)
        keys = {"region_name": self.places["region"], "aws_access_key_id": "test", "aws_secret_access_key": "test"}
        self.s3 = boto3.client("s3", endpoint_url=self.places["aws_url"], **keys)
        self.groups = boto3.client("autoscaling", endpoint_url=self.places["aws_url"], **keys)
        self.sfn = boto3.client("stepfunctions", endpoint_url=self.places["sfn_url"], **keys)
        self.bucket = self.places["buckets"]["RunBucket"]
        machines = self.places["state_machines"]
        self.machine = {name.lower().removesuffix("statemachine"): at for name, at in machines.items()}

    def stop(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

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

    def manifest(self) -> str:
        return self.git("show", "HEAD:cluster.yaml")

    def push(self, manifest: str, message: str) -> dict:
        """A commit of the manifest on the default branch, delivered as GitLab does."""
        project = self.places["gitlab"]["project"]
        return self.control("/_control/commit", {"project": project, "files": {"cluster.yaml": manifest}, "message": message, "push": True})

    def deliver_head(self) -> dict:
        gitlab = self.places["gitlab"]
        head = self.git("rev-parse", "HEAD").strip()
        ref = f"refs/heads/{gitlab['default_branch']}"
        return self.control("/_control/push", {"project": gitlab["project"], "ref": ref, "before": "0" * 40, "after": head})

    def document(self, key: str):
        try:
            return json.loads(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        except self.s3.exceptions.NoSuchKey:
            return None

    def decide(self, approval: str, decision: str) -> None:
        """As a person does from the Step Functions console."""
        answer = {"approval": approval, "decision": decision, "comment": "looked at it", "by": "ann"}
        self.sfn.start_execution(stateMachineArn=self.machine["approve"], input=json.dumps(answer))

    def follow(self, run: str, decide: str | None = "approve") -> dict:
        """Answers every question of a run, and returns its record when it has ended."""
        until, answered = time.monotonic() + PATIENCE_SECONDS, set()
        while time.monotonic() < until:
            record = self.document(f"runs/{run}/run.json")
            if record and record["state"] not in ("queued", "running"):
                return record
            for approval in record["approvals"] if record and decide else []:
                open_question = self.document(f"approvals/{approval}.json")
                if approval not in answered and open_question and not open_question["answer"]:
                    answered.add(approval)
                    self.decide(approval, decide)
            time.sleep(0.2)
        raise AssertionError(f"{run} did not end: {record}")

    def instances(self) -> dict[str, set[str]]:
        found = self.groups.describe_auto_scaling_groups()["AutoScalingGroups"]
        return {group["AutoScalingGroupName"]: {i["InstanceId"] for i in group["Instances"]} for group in found}

    def registry(self) -> dict[str, str]:
        """The live registry's objects and their versions."""
        listed = self.s3.list_objects_v2(Bucket="kops-state", Prefix=f"{CLUSTER}/")["Contents"]
        wanted = ("/config", "/instancegroup/")
        return {o["Key"]: o["ETag"] for o in listed if any(part in o["Key"] for part in wanted)}

    def writes_to_live(self, since: float) -> list:
        """S3 writes to the state store since a moment, from the emulator's own request log."""
        lines = Path(self.places["request_logs"]["aws"]).read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return [e for e in entries if e["path"].startswith("/kops-state") and e["method"] in ("PUT", "POST", "DELETE") and e["time"] >= since]


def runs_of(delivery: dict) -> list[str]:
    return re.findall(r"demo-k8s-example-com-[0-9a-f]{12}-[0-9a-f]{8}", json.dumps(delivery))


def note(record: dict, stage: str) -> str:
    return next(s["note"] for s in record["stages"] if s["stage"] == stage)


class Pipeline(unittest.TestCase):
    """One cluster's life, in order: each test goes on from where the one before ended."""

    @classmethod
    def setUpClass(cls):
        cls.home = Path(tempfile.mkdtemp(prefix="kopsline-e2e-"))
        cls.stack = Stack(cls.home)
        cls.addClassCleanup(shutil.rmtree, cls.home, True)
        cls.addClassCleanup(cls.stack.stop)

    def run_of(self, delivery: dict) -> str:
        found = runs_of(delivery)
        self.assertTrue(found, delivery)
        return found[0]

    def test_1_a_merge_creates_the_cluster(self):
        record = self.stack.follow(self.run_of(self.stack.deliver_head()))
        self.assertEqual(record["state"], "succeeded", record)
        self.assertRegex(note(record, "plan"), r"^\d+ to create$")
        sizes = {name.split(".")[0]: len(ids) for name, ids in self.stack.instances().items()}
        self.assertEqual(sizes["bastions"], 1)
        self.assertEqual(sum(n for name, n in sizes.items() if name.startswith("control-plane")), 3)
        answer = self.stack.document(f"approvals/{record['approvals'][0]}.json")
        self.assertEqual((answer["answer"]["by"], answer["digest"]), ("ann", record["plan_digest"]))

    def test_2_the_same_delivery_starts_nothing_again(self):
        before = len(self.stack.sfn.list_executions(stateMachineArn=self.stack.machine["pipeline"])["executions"])
        self.stack.deliver_head()
        after = len(self.stack.sfn.list_executions(stateMachineArn=self.stack.machine["pipeline"])["executions"])
        self.assertEqual(before, after)

    def test_3_a_change_is_planned_applied_and_rolled(self):
        before = self.stack.instances()
        record = self.stack.follow(self.run_of(self.stack.push(self.stack.manifest().replace("t3.medium", "t3.large"), "larger machines")))
        self.assertEqual(record["state"], "succeeded", record)
        self.assertIn("to modify", note(record, "plan"))
        replaced = int(re.match(r"(\d+) of \1 instances replaced", note(record, "roll"))[1])
        after = self.stack.instances()
        self.assertEqual(sum(len(before[name] - after[name]) for name in before), replaced)
        self.assertEqual({name: len(ids) for name, ids in before.items()}, {name: len(ids) for name, ids in after.items()})
        page = self.stack.s3.get_object(Bucket=self.stack.bucket, Key=f"runs/{record['id']}/index.html")["Body"].read().decode()
        self.assertIn("larger machines", page)

    def test_4_a_rejected_plan_leaves_the_state_store_as_it_was(self):
        before = self.stack.registry()
        record = self.stack.follow(self.run_of(self.stack.push(self.stack.manifest().replace("t3.large", "t3.xlarge"), "too large")), "reject")
        self.assertEqual(record["state"], "rejected", record)
        self.assertEqual(self.stack.registry(), before)

    def test_5_a_misspelled_field_is_refused_before_anything_is_written(self):
        before, begun = self.stack.registry(), time.time()
        good = self.stack.manifest()
        record = self.stack.follow(self.run_of(self.stack.push(good.replace("machineType", "machineTipe"), "typo")))
        self.assertEqual((record["state"], record["failure"]["kind"]), ("failed", "bad-input"), record)
        self.assertRegex(record["failure"]["message"], r"^cluster\.yaml:\d+: kops does not know the field spec\.machineTipe")
        self.assertEqual(self.stack.registry(), before)
        self.assertEqual(self.stack.writes_to_live(begun), [])

    def test_6_of_two_merges_at_once_the_cluster_ends_at_the_newer(self):
        good = self.stack.manifest().replace("machineTipe", "machineType").replace("t3.xlarge", "t3.large")
        first = self.run_of(self.stack.push(good.replace("t3.large", "m5.large"), "first of two"))
        second = self.run_of(self.stack.push(good.replace("t3.large", "m5.xlarge"), "second of two"))
        older, newer = self.stack.follow(first), self.stack.follow(second)
        self.assertIn(older["state"], ("succeeded", "superseded"), older)
        self.assertEqual(newer["state"], "succeeded", newer)
        keys = [key for key in self.stack.registry() if "control-plane" in key]
        for key in keys:
            text = self.stack.s3.get_object(Bucket="kops-state", Key=key)["Body"].read().decode()
            self.assertIn("m5.xlarge", text)


if __name__ == "__main__":
    unittest.main()
