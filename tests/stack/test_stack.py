"""Tests of the local stack: that it behaves as AWS and GitLab do where Kopsline depends on it, and cleans up.

Run: PYTHONPATH=tests STACK_LOCALSTACK_PYTHON=.../bin/python .../bin/python -m unittest stack.test_stack
With STACK_KOPS naming a kops 1.36 binary, kops itself creates, changes and rolls the sample cluster.
"""

import base64
import hashlib
import hmac
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlencode

from botocore.exceptions import ClientError

from stack import deploy
from stack.amis import IMAGE
from stack.template import NO_VALUE, Template, TemplateError, parse

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "fixtures" / "demo"
PATIENCE_SECONDS = 180
"""Only what fails waits so long; machines may be busy, and no test says how fast anything is."""
GONE_SECONDS = 20
"""So soon is gone what was ended: what is left over must not come to an end of its own meanwhile."""


class Running:
    """A stack started as a user would start it."""

    def __init__(self, home: Path, *flags: str):
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stack", "up", "--home", str(home), *flags],
            cwd=HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the stack did not start, code {self.process.wait()}")
        self.report = json.loads(line)

    def stop(self) -> int:
        """Closes stdin and waits for the end."""
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(PATIENCE_SECONDS)

    def aws(self, service: str):
        """A client of one of the emulated services."""
        url = {"stepfunctions": "sfn_url", "lambda": "lambda_url"}.get(service, "aws_url")
        return deploy.client(service, self.report[url])

    def requests(self, log: str) -> list[dict]:
        """What a server received so far."""
        return [json.loads(line) for line in Path(self.report["request_logs"][log]).read_text().splitlines()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to notice its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def processes_of(home: Path) -> list[int]:
    """Living processes of the programs that were started for the stack in `home`: all have HOME there."""
    marks = {f"HOME={home}".encode(), f"HOME={home / 'kubernetes'}".encode()}
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            if is_alive(pid) and marks & set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                found.append(pid)
        except OSError:
            continue
    return found


def write_functions(folder: Path) -> Path:
    """The test function where `cargo lambda build` would leave a binary; its zip really runs `bootstrap`."""
    worker = folder / "worker" / "bootstrap"
    worker.parent.mkdir(parents=True)
    worker.write_text(f"#!{sys.executable}\n" + (HERE / "testdata" / "bootstrap.py").read_text())
    worker.chmod(0o755)
    return folder


def eventually(get, patience: float = PATIENCE_SECONDS):
    """The first true value of `get`."""
    deadline = time.monotonic() + patience
    while not (value := get()):
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        time.sleep(0.1)
    return value


def error_of(call, **arguments) -> tuple[int, str]:
    """Status and code of the error an AWS call must end with."""
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    raise AssertionError("no error")


STACK: Running
SCRATCH: Path


def setUpModule() -> None:
    global STACK, SCRATCH
    SCRATCH = Path(tempfile.mkdtemp(prefix="stack-test-"))
    try:
        STACK = Running(
            SCRATCH / "home",
            "--template",
            str(HERE / "testdata" / "template.yaml"),
            "--functions",
            str(write_functions(SCRATCH / "functions")),
            "--parameter",
            "Greeting=Hello {gitlab_project}",
            "--secret",
            "Token={gitlab_token}",
            "--env",
            "EXTRA=from {files_url}",
            "--bucket",
            "kops-state",
            "--content",
            str(DEMO),
            "--replace",
            "https://kops-files.example.com={files_url}",
        )
    except BaseException:
        shutil.rmtree(SCRATCH, ignore_errors=True)
        raise


def tearDownModule() -> None:
    try:
        code = STACK.stop()
        left = processes_of(STACK.home)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    if code or left:
        raise AssertionError(f"the stack ended with code {code} and left {left}")


class S3(unittest.TestCase):
    def setUp(self):
        self.s3 = STACK.aws("s3")
        self.bucket = STACK.report["buckets"]["Runs"]
        self.key = f"test/{uuid.uuid4()}"

    def put(self, body: bytes, **conditions) -> str:
        return self.s3.put_object(Bucket=self.bucket, Key=self.key, Body=body, **conditions)["ETag"]

    def test_conditional_writes(self):
        first = self.put(b"1", IfNoneMatch="*")
        where = {"Bucket": self.bucket, "Key": self.key, "Body": b"x"}
        self.assertEqual(error_of(self.s3.put_object, **where, IfNoneMatch="*"), (412, "PreconditionFailed"))
        self.put(b"2", IfMatch=first)
        self.assertEqual(error_of(self.s3.put_object, **where, IfMatch=first), (412, "PreconditionFailed"))
        missing = where | {"Key": self.key + "-missing"}
        self.assertEqual(error_of(self.s3.put_object, **missing, IfMatch=first), (404, "NoSuchKey"))
        self.assertEqual(self.s3.get_object(Bucket=self.bucket, Key=self.key)["Body"].read(), b"2")

    def test_one_of_many_creators_wins(self):
        def attempt(number: int) -> str:
            try:
                self.put(str(number).encode(), IfNoneMatch="*")
            except ClientError as error:
                return error.response["Error"]["Code"]
            return "won"

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(attempt, range(32)))
        self.assertEqual(results.count("won"), 1)
        self.assertEqual(results.count("PreconditionFailed"), 31)

    def test_the_run_bucket_is_versioned(self):
        self.put(b"1")
        self.put(b"2")
        versions = self.s3.list_object_versions(Bucket=self.bucket, Prefix=self.key)["Versions"]
        self.assertEqual(len(versions), 2)

    def test_every_request_is_logged_before_its_answer(self):
        begun = time.time()
        self.put(b"1")
        self.s3.get_object(Bucket=self.bucket, Key=self.key)
        seen = [r for r in STACK.requests("aws") if r["path"].endswith(self.key)]
        self.assertEqual(
            [(r["method"], r["status"], r["service"]) for r in seen], [("PUT", 200, "s3"), ("GET", 200, "s3")]
        )
        self.assertTrue(begun <= seen[0]["time"] <= seen[1]["time"] <= time.time())


class Trap(unittest.TestCase):
    """A request is held, before or after it had its effect, until it is let go."""

    def setUp(self):
        self.s3, self.bucket = STACK.aws("s3"), STACK.report["buckets"]["Runs"]
        self.key = f"trap/{uuid.uuid4()}"
        # Nothing has no words: the trap is harmless after the test.
        self.addCleanup(self.call, "POST", "/_stack/trap", {"match": "^$"})
        self.addCleanup(self.call, "DELETE", "/_stack/trap")

    def call(self, method: str, path: str, body: dict | None = None) -> bytes:
        scope = "Credential=test/20260101/us-east-1/s3/aws4_request"
        headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0", "User-Agent": "trapped/1"}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(STACK.report["aws_url"] + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return answer.read()

    def held(self) -> dict | None:
        return json.loads(self.call("GET", "/_stack/trap"))["held"]

    def exists(self) -> bool:
        return "Contents" in self.s3.list_objects_v2(Bucket=self.bucket, Prefix=self.key)

    def test_before_and_after(self):
        for when, done in (("before", False), ("after", True)):
            self.call("POST", "/_stack/trap", {"match": f"trapped.* PUT .*{self.key}", "when": when, "skip": 1})
            self.call("PUT", f"/{self.bucket}/{self.key}", {"number": 1})
            self.s3.delete_object(Bucket=self.bucket, Key=self.key)
            with ThreadPoolExecutor(1) as pool:
                put = pool.submit(self.call, "PUT", f"/{self.bucket}/{self.key}", {"number": 2})
                held = eventually(self.held)
                self.assertEqual(held["words"], f"trapped/1 PUT /{self.bucket}/{self.key}")
                self.assertEqual((self.exists(), put.done()), (done, False))
                self.call("DELETE", "/_stack/trap")
                put.result()
            self.assertTrue(self.exists())
            self.s3.delete_object(Bucket=self.bucket, Key=self.key)

    def test_the_tests_own_client_is_never_held(self):
        self.call("POST", "/_stack/trap", {"match": "."})
        self.s3.put_object(Bucket=self.bucket, Key=self.key, Body=b"1")


class AutoScaling(unittest.TestCase):
    def setUp(self):
        self.ec2 = STACK.aws("ec2")
        self.autoscaling = STACK.aws("autoscaling")
        vpc = self.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        self.vpc = vpc
        self.subnets = [
            self.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{n}.0/24", AvailabilityZone=f"us-east-1{zone}")[
                "Subnet"
            ]["SubnetId"]
            for n, zone in enumerate("abc")
        ]
        self.name = f"nodes.{uuid.uuid4().hex[:8]}.example.com"

    def data(self, instance_type: str, user_data: str) -> dict:
        tags = [{"Key": "from-template", "Value": instance_type}]
        return {
            "ImageId": IMAGE,
            "InstanceType": instance_type,
            "UserData": base64.b64encode(user_data.encode()).decode(),
            "TagSpecifications": [{"ResourceType": "instance", "Tags": tags}],
        }

    def create(self, size: int = 3, **more) -> str:
        template = self.ec2.create_launch_template(
            LaunchTemplateName=self.name, LaunchTemplateData=self.data("t3.medium", "first")
        )["LaunchTemplate"]["LaunchTemplateId"]
        source = more.pop("source", lambda t: {"LaunchTemplate": {"LaunchTemplateId": t, "Version": "$Latest"}})
        self.autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=self.name,
            MinSize=0,
            MaxSize=10,
            DesiredCapacity=size,
            VPCZoneIdentifier=",".join(self.subnets),
            Tags=[
                {"Key": "KubernetesCluster", "Value": "c.example.com", "PropagateAtLaunch": True},
                {"Key": "kops.k8s.io/instancegroup", "Value": "nodes", "PropagateAtLaunch": True},
                {"Key": "stays", "Value": "here", "PropagateAtLaunch": False},
            ],
            **source(template),
            **more,
        )
        return template

    def members(self) -> dict[str, dict]:
        groups = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])["AutoScalingGroups"]
        return {member["InstanceId"]: member for member in groups[0]["Instances"]}

    def instance(self, instance: str) -> dict:
        return self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]

    def user_data(self, instance: str) -> str:
        answer = self.ec2.describe_instance_attribute(InstanceId=instance, Attribute="userData")
        return base64.b64decode(answer["UserData"]["Value"]).decode()

    def new_version(self, template: str) -> None:
        self.ec2.create_launch_template_version(
            LaunchTemplateId=template, LaunchTemplateData=self.data("t3.large", "second")
        )

    def test_launches(self):
        self.create()
        members = self.members()
        self.assertEqual({m["AvailabilityZone"] for m in members.values()}, {"us-east-1a", "us-east-1b", "us-east-1c"})
        self.assertEqual({m["LifecycleState"] for m in members.values()}, {"InService"})
        tags = {tag["Key"]: tag["Value"] for tag in self.instance(next(iter(members)))["Tags"]}
        self.assertEqual(tags["KubernetesCluster"], "c.example.com")
        self.assertEqual(tags["kops.k8s.io/instancegroup"], "nodes")
        self.assertEqual(tags["aws:autoscaling:groupName"], self.name)
        self.assertEqual(tags["from-template"], "t3.medium")
        self.assertNotIn("stays", tags)

    def test_instances_keep_the_version_they_were_launched_with(self):
        template = self.create()
        before = self.members()
        self.new_version(template)
        self.assertEqual({m["LaunchTemplate"]["Version"] for m in self.members().values()}, {"1"})

        victim = next(iter(before))
        self.ec2.terminate_instances(InstanceIds=[victim])
        after = self.members()
        self.assertEqual(len(after), 3)
        self.assertNotIn(victim, after)
        [replacement] = set(after) - set(before)
        self.assertEqual(sorted(m["LaunchTemplate"]["Version"] for m in after.values()), ["1", "1", "2"])
        self.assertEqual(after[replacement]["LaunchTemplate"]["Version"], "2")
        self.assertEqual(self.instance(replacement)["InstanceType"], "t3.large")
        self.assertEqual(self.user_data(replacement), "second")
        self.assertEqual(self.user_data(next(iter(set(after) & set(before)))), "first")
        self.assertEqual(after[replacement]["AvailabilityZone"], before[victim]["AvailabilityZone"])

    def test_detached_instances_are_replaced_and_run_on(self):
        self.create()
        victim = next(iter(self.members()))
        self.ec2.create_tags(Resources=[victim], Tags=[{"Key": "kops.k8s.io/detached-from-asg", "Value": self.name}])
        self.autoscaling.detach_instances(
            InstanceIds=[victim], AutoScalingGroupName=self.name, ShouldDecrementDesiredCapacity=False
        )
        self.assertEqual(len(self.members()), 3)
        self.assertNotIn(victim, self.members())
        self.assertEqual(self.instance(victim)["State"]["Name"], "running")
        tags = {tag["Key"]: tag["Value"] for tag in self.instance(victim)["Tags"]}
        self.assertEqual(tags["kops.k8s.io/detached-from-asg"], self.name)
        self.assertNotIn("aws:autoscaling:groupName", tags)

    def test_mixed_instances(self):
        def source(template: str) -> dict:
            specification = {"LaunchTemplateId": template, "Version": "1"}
            overrides = [{"InstanceType": "m5.large"}, {"InstanceType": "m5a.large"}]
            return {
                "MixedInstancesPolicy": {
                    "LaunchTemplate": {"LaunchTemplateSpecification": specification, "Overrides": overrides}
                }
            }

        self.create(size=2, source=source)
        self.assertEqual({self.instance(i)["InstanceType"] for i in self.members()}, {"m5.large"})
        self.autoscaling.update_auto_scaling_group(AutoScalingGroupName=self.name, DesiredCapacity=3)
        group = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])["AutoScalingGroups"][0]
        self.assertIn("MixedInstancesPolicy", group)
        self.assertEqual([i["LaunchTemplate"]["Version"] for i in group["Instances"]], ["1", "1", "1"])

    def test_target_groups_follow_membership(self):
        elb = STACK.aws("elbv2")
        # kOps makes names with two hyphens in a row when it shortens them.
        name = f"tcp-a--{uuid.uuid4().hex[:6]}"
        group = elb.create_target_group(Name=name, Protocol="TCP", Port=443, VpcId=self.vpc)["TargetGroups"][0]
        arn = group["TargetGroupArn"]
        self.assertEqual(elb.describe_target_groups(Names=[name])["TargetGroups"][0]["TargetGroupArn"], arn)

        def registered() -> set[str]:
            health = elb.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
            return {target["Target"]["Id"] for target in health}

        self.create(TargetGroupARNs=[arn])
        first, second, third = self.members()
        self.assertEqual(registered(), {first, second, third})
        elb.deregister_targets(TargetGroupArn=arn, Targets=[{"Id": first}])
        self.ec2.terminate_instances(InstanceIds=[second])
        self.assertNotIn(first, registered(), "a drained instance must not come back")
        self.assertEqual(registered(), set(self.members()) - {first})
        self.autoscaling.detach_instances(
            InstanceIds=[third], AutoScalingGroupName=self.name, ShouldDecrementDesiredCapacity=False
        )
        self.assertNotIn(third, registered())

    def test_warm_pool_of_an_unknown_group(self):
        self.assertEqual(
            error_of(self.autoscaling.describe_warm_pool, AutoScalingGroupName="nobody"), (400, "ValidationError")
        )

    def test_subnets_keep_resource_based_naming(self):
        self.ec2.modify_subnet_attribute(SubnetId=self.subnets[0], PrivateDnsHostnameTypeOnLaunch="resource-name")
        self.ec2.modify_subnet_attribute(SubnetId=self.subnets[0], EnableResourceNameDnsARecordOnLaunch={"Value": True})
        subnet = self.ec2.describe_subnets(SubnetIds=[self.subnets[0]])["Subnets"][0]
        self.assertEqual(
            subnet["PrivateDnsNameOptionsOnLaunch"],
            {
                "HostnameType": "resource-name",
                "EnableResourceNameDnsARecord": True,
                "EnableResourceNameDnsAAAARecord": False,
            },
        )


class StepFunctions(unittest.TestCase):
    def setUp(self):
        self.sfn = STACK.aws("stepfunctions")
        self.keep = SCRATCH / uuid.uuid4().hex

    def start(self, machine: str | None = None, **input_) -> str:
        given = {"flaky": f"{self.keep}.tries", "keep": str(self.keep), "patience": 60, "note": 'a "quoted" \\ note'}
        return self.sfn.start_execution(
            stateMachineArn=machine or STACK.report["state_machines"]["Machine"], input=json.dumps(given | input_)
        )["executionArn"]

    def machine(self, states: dict, **more) -> str:
        definition = {"QueryLanguage": "JSONata", "StartAt": next(iter(states)), "States": states, **more}
        return self.sfn.create_state_machine(
            name=uuid.uuid4().hex, definition=json.dumps(definition), roleArn="arn:aws:iam::000000000000:role/test"
        )["stateMachineArn"]

    def ask(self, **more) -> dict:
        """A task that gives its token to the worker and waits."""
        arguments = {"FunctionName": STACK.report["functions"]["Worker"]}
        arguments["Payload"] = {"do": "keep", "file": str(self.keep), "token": "{% $states.context.Task.Token %}"}
        return {
            "Type": "Task",
            "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
            "Arguments": arguments,
            "End": True,
            **more,
        }

    def token(self) -> str:
        eventually(self.keep.exists)
        token = json.loads(self.keep.read_text())["token"]
        self.keep.unlink()
        return token

    def end(self, execution: str) -> dict:
        def ended() -> dict | None:
            described = self.sfn.describe_execution(executionArn=execution)
            return described if described["status"] != "RUNNING" else None

        return eventually(ended)

    def test_approval(self):
        execution = self.start()
        token = self.token()
        answer = {"taskToken": token, "output": json.dumps({"by": "ann"})}
        self.assertEqual(
            error_of(self.sfn.send_task_success, taskToken=token, output="not json"), (400, "InvalidOutput")
        )
        self.sfn.send_task_heartbeat(taskToken=token)
        self.sfn.send_task_success(**answer)
        # The second answer comes while the execution goes on, a later one after its end.
        self.assertEqual(error_of(self.sfn.send_task_success, **answer), (400, "TaskTimedOut"))
        self.assertEqual(error_of(self.sfn.send_task_failure, taskToken=token, error="Rejected"), (400, "TaskTimedOut"))
        ended = self.end(execution)
        self.assertEqual(ended["status"], "SUCCEEDED", ended)
        self.assertEqual(
            json.loads(ended["output"]),
            {
                "outcome": "approved",
                "by": "ann",
                "tries": 3,
                "note": 'a "quoted" \\ note',
                "literal": 'say "hi" \\ there',
                "hash": hashlib.sha256(b"a").hexdigest(),
                "ids": 36,
            },
        )
        self.assertEqual(error_of(self.sfn.send_task_success, **answer), (400, "TaskTimedOut"))
        self.assertEqual(error_of(self.sfn.send_task_heartbeat, taskToken=token), (400, "TaskTimedOut"))

    def test_rejection(self):
        execution = self.start()
        self.sfn.send_task_failure(taskToken=self.token(), error="Rejected", cause='no "way"')
        self.assertEqual(json.loads(self.end(execution)["output"]), {"outcome": "rejected", "why": 'no "way"'})

    def test_expiry(self):
        execution = self.start(patience=2)
        token = self.token()
        self.assertEqual(json.loads(self.end(execution)["output"]), {"outcome": "expired"})
        self.assertEqual(error_of(self.sfn.send_task_success, taskToken=token, output="{}"), (400, "TaskTimedOut"))

    def test_expired_token_while_the_execution_goes_on(self):
        ask = self.ask(TimeoutSeconds=2, Catch=[{"ErrorEquals": ["States.Timeout"], "Next": "Rest"}])
        execution = self.start(self.machine({"Ask": ask, "Rest": {"Type": "Wait", "Seconds": 5, "End": True}}))
        token = self.token()
        eventually(lambda: "WaitStateEntered" in [e["type"] for e in self.history(execution)])
        self.assertEqual(error_of(self.sfn.send_task_success, taskToken=token, output="{}"), (400, "TaskTimedOut"))

    def history(self, execution: str) -> list[dict]:
        return self.sfn.get_execution_history(executionArn=execution, maxResults=1000)["events"]

    def test_each_attempt_has_its_own_token(self):
        ask = self.ask(Retry=[{"ErrorEquals": ["Again"], "IntervalSeconds": 1, "MaxAttempts": 1}])
        execution = self.start(self.machine({"Ask": ask}))
        first = self.token()
        self.sfn.send_task_failure(taskToken=first, error="Again", cause="")
        second = self.token()
        self.assertNotEqual(first, second)
        self.assertEqual(error_of(self.sfn.send_task_success, taskToken=first, output="1"), (400, "TaskTimedOut"))
        self.sfn.send_task_success(taskToken=second, output="2")
        ended = self.end(execution)
        self.assertEqual((ended["status"], ended.get("output")), ("SUCCEEDED", "2"))

    def test_heartbeats(self):
        ask = self.ask(TimeoutSeconds=120, HeartbeatSeconds=8)
        execution = self.start(self.machine({"Ask": ask}))
        token = self.token()
        for _ in range(3):
            # Longer than the limit together, and each far from it.
            time.sleep(3)
            self.sfn.send_task_heartbeat(taskToken=token)
        self.assertEqual(self.sfn.describe_execution(executionArn=execution)["status"], "RUNNING")
        ended = self.end(execution)
        self.assertEqual((ended["status"], ended["error"]), ("FAILED", "States.HeartbeatTimeout"))

    def test_answer_before_the_task_waits(self):
        # The function gives the token away and then takes its time, so the answer comes first.
        ask = self.ask(TimeoutSeconds=60, HeartbeatSeconds=30)
        execution = self.start(self.machine({"Ask": ask}))
        self.sfn.send_task_success(taskToken=self.token(), output='"early"')
        self.assertEqual(self.end(execution)["output"], '"early"')

    def test_unknown_token(self):
        self.assertEqual(error_of(self.sfn.send_task_success, taskToken="AQ" * 50, output="{}"), (400, "InvalidToken"))

    def test_stop_wakes_a_waiting_task(self):
        execution = self.start(self.machine({"Ask": self.ask(TimeoutSeconds=300)}))
        token = self.token()
        self.sfn.stop_execution(executionArn=execution, error="Stopped", cause="by a person")
        ended = self.end(execution)
        self.assertEqual((ended["status"], ended["error"], ended["cause"]), ("ABORTED", "Stopped", "by a person"))
        self.assertEqual(error_of(self.sfn.send_task_success, taskToken=token, output="{}"), (400, "TaskTimedOut"))

    def test_failing_function(self):
        arguments = {"FunctionName": STACK.report["functions"]["Worker"]}
        arguments["Payload"] = {"do": "fail", "type": "Kopsline.KopsFailed", "message": "no such zone"}
        task = {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "Arguments": arguments, "End": True}
        ended = self.end(self.start(self.machine({"Fail": task})))
        self.assertEqual((ended["status"], ended["error"]), ("FAILED", "Kopsline.KopsFailed"))
        self.assertEqual(json.loads(ended["cause"])["errorMessage"], "no such zone")

    def test_undefined_values_fail(self):
        ended = self.end(
            self.start(self.machine({"P": {"Type": "Pass", "Output": "{% $states.input.nothing.x %}", "End": True}}))
        )
        self.assertEqual((ended["status"], ended["error"]), ("FAILED", "States.QueryEvaluationError"))

    def test_map_and_parallel(self):
        double = {"StartAt": "D", "States": {"D": {"Type": "Pass", "Output": "{% $states.input * 2 %}", "End": True}}}
        machine = self.machine(
            {
                "M": {
                    "Type": "Map",
                    "Items": "{% [1, 2, 3] %}",
                    "MaxConcurrency": 1,
                    "ItemProcessor": double,
                    "Next": "S",
                },
                "S": {"Type": "Pass", "Output": "{% $sum($states.input) %}", "End": True},
            }
        )
        self.assertEqual(self.end(self.start(machine))["output"], "12")

    def test_names_are_idempotent(self):
        machine = self.machine({"W": {"Type": "Wait", "Seconds": 2, "End": True}})
        same = {"stateMachineArn": machine, "name": "once", "input": '{"a":1}'}
        execution = self.sfn.start_execution(**same)["executionArn"]
        self.assertEqual(self.sfn.start_execution(**same)["executionArn"], execution)
        other = same | {"input": '{"a":2}'}
        self.assertEqual(error_of(self.sfn.start_execution, **other), (400, "ExecutionAlreadyExists"))
        self.end(execution)
        self.assertEqual(error_of(self.sfn.start_execution, **same), (400, "ExecutionAlreadyExists"))

    def test_history_is_paged_both_ways(self):
        passes = {f"P{n}": {"Type": "Pass", "Next": f"P{n + 1}"} for n in range(60)} | {"P60": {"Type": "Succeed"}}
        execution = self.start(self.machine(passes))
        self.end(execution)
        first = self.sfn.get_execution_history(executionArn=execution)
        self.assertEqual(len(first["events"]), 100)
        rest = self.sfn.get_execution_history(executionArn=execution, nextToken=first["nextToken"])
        self.assertNotIn("nextToken", rest)
        forwards = [event["id"] for event in first["events"] + rest["events"]]
        self.assertEqual(forwards, sorted(forwards))
        last = self.sfn.get_execution_history(executionArn=execution, reverseOrder=True, maxResults=1)["events"]
        self.assertEqual([(e["type"], e["id"]) for e in last], [("ExecutionSucceeded", forwards[-1])])
        self.assertEqual(self.history(execution)[0]["type"], "ExecutionStarted")


class Functions(unittest.TestCase):
    def invoke(self, **event) -> tuple[dict, str | None]:
        answer = STACK.aws("lambda").invoke(FunctionName=STACK.report["functions"]["Worker"], Payload=json.dumps(event))
        return json.loads(answer["Payload"].read()), answer.get("FunctionError")

    def test_environment(self):
        environment, _ = self.invoke(do="environment")
        report = STACK.report
        self.assertEqual(environment["GREETING"], "Hello platform/clusters, ['a', 'b']!")
        self.assertEqual(environment["NAMES"], "a;b")
        self.assertEqual(environment["RUNS"], report["buckets"]["Runs"])
        self.assertEqual(environment["TOKEN_ARN"], report["secrets"]["Token"])
        self.assertEqual(environment["MACHINE"], report["state_machines"]["Machine"])
        self.assertEqual(environment["URL_OF_OTHER"], report["function_urls"]["Worker"])
        self.assertNotIn("COLOUR", environment)
        self.assertEqual(environment["EXTRA"], f"from {report['files_url']}")
        self.assertEqual(environment["AWS_ENDPOINT_URL"], report["aws_url"])
        self.assertEqual(environment["AWS_ENDPOINT_URL_SFN"], report["sfn_url"])
        self.assertEqual(environment["S3_ENDPOINT"], report["aws_url"])
        self.assertEqual(environment["AWS_REGION"], "us-east-1")
        self.assertEqual(environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "256")

    def test_secrets(self):
        secrets = STACK.aws("secretsmanager")
        given = secrets.get_secret_value(SecretId=STACK.report["secrets"]["Token"])["SecretString"]
        self.assertEqual(given, STACK.report["gitlab"]["token"])
        made = json.loads(secrets.get_secret_value(SecretId=STACK.report["secrets"]["Made"])["SecretString"])
        self.assertEqual(made["user"], "x")
        self.assertGreater(len(made["password"]), 20)

    def test_errors_are_marked(self):
        payload, error = self.invoke(do="fail", type="Kopsline.Transient", message="later")
        self.assertEqual(error, "Unhandled")
        self.assertEqual((payload["errorType"], payload["errorMessage"]), ("Kopsline.Transient", "later"))

    def test_output_is_kept(self):
        text = f"line {uuid.uuid4()}"
        self.invoke(do="print", text=text)
        log = Path(STACK.report["function_logs"]["Worker"])
        eventually(lambda: text in log.read_text())

    def test_calls_run_at_once(self):
        folder = SCRATCH / uuid.uuid4().hex
        folder.mkdir()
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: self.invoke(do="meet", folder=str(folder), count=3), range(3)))
        self.assertEqual([error for _, error in answers], [None] * 3)

    def test_time_out(self):
        payload, error = self.invoke(do="sleep", seconds=60)
        self.assertEqual((error, payload["errorType"]), ("Unhandled", "Sandbox.Timedout"))

    def test_what_is_not_created_is_said(self):
        self.assertEqual(STACK.report["not_created"], ["Alarm (AWS::CloudWatch::Alarm)"])
        self.assertNotIn("Unwanted", STACK.report["buckets"])


class FunctionUrls(unittest.TestCase):
    def call(self, body: bytes | None = None, path: str = "", **headers) -> tuple[int, dict, dict]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        url = STACK.report["function_urls"]["Worker"] + path
        request = urllib.request.Request(url, data=body, headers=names)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
            return response.status, dict(response.headers), json.load(response)

    def test_event_and_answer(self):
        status, headers, event = self.call(
            b'{"x": "\xc3\xa9"}', "hook/x?a=1&b=2&a=3", Content_Type="application/json", X_Gitlab_Event="Push Hook"
        )
        self.assertEqual((status, headers["x-test"], headers["content-type"]), (201, "yes", "application/json"))
        self.assertEqual(event["version"], "2.0")
        self.assertEqual((event["routeKey"], event["requestContext"]["stage"]), ("$default", "$default"))
        self.assertEqual(event["rawPath"], "/hook/x")
        self.assertEqual(event["queryStringParameters"], {"a": "1,3", "b": "2"})
        self.assertEqual(event["requestContext"]["http"]["method"], "POST")
        self.assertEqual(event["requestContext"]["http"]["sourceIp"], "127.0.0.1")
        self.assertEqual(event["requestContext"]["accountId"], "anonymous")
        self.assertTrue(event["requestContext"]["domainName"].endswith(".lambda-url.us-east-1.on.aws"))
        self.assertEqual(event["headers"]["host"], event["requestContext"]["domainName"])
        self.assertEqual(event["headers"]["x-gitlab-event"], "Push Hook")
        self.assertEqual([name for name in event["headers"] if name != name.lower()], [])
        self.assertEqual((event["body"], event["isBase64Encoded"]), ('{"x": "é"}', False))

    def test_binary_bodies_are_base64(self):
        body = bytes(range(256))
        _, _, event = self.call(body, Content_Type="application/octet-stream")
        self.assertTrue(event["isBase64Encoded"])
        self.assertEqual(base64.b64decode(event["body"]), body)

    def test_no_body(self):
        _, _, event = self.call()
        self.assertEqual(event["requestContext"]["http"]["method"], "GET")
        self.assertNotIn("body", event)


class GitLab(unittest.TestCase):
    """Shapes as in GitLab's documentation of each endpoint."""

    def setUp(self):
        self.gitlab = STACK.report["gitlab"]
        self.project = f"/api/v4/projects/{quote(self.gitlab['project'], safe='')}"
        self.branch = f"branch-{uuid.uuid4().hex[:8]}"

    def call(self, path: str, data: dict | None = None, token: str | None = None, method: str | None = None):
        headers = {"PRIVATE-TOKEN": token or self.gitlab["token"]}
        body = None
        if data is not None:
            body, headers["Content-Type"] = json.dumps(data).encode(), "application/json"
        request = urllib.request.Request(self.gitlab["url"] + path, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
                status, headers, content = response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            status, headers, content = error.code, error.headers, error.read()
        is_json = headers["Content-Type"] == "application/json"
        return status, headers, json.loads(content) if is_json else content

    def get(self, endpoint: str, **query):
        status, _, answer = self.call(f"{self.project}{endpoint}?{urlencode(query, doseq=True)}")
        self.assertEqual(status, 200, answer)
        return answer

    def commit(self, files: dict, **more) -> dict:
        order = {
            "project": self.gitlab["project"],
            "branch": self.branch,
            "message": "Change it\n\nWhy\n",
            "files": files,
        }
        status, _, answer = self.call("/_control/commit", order | more)
        self.assertEqual(status, 200, answer)
        return answer

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", self.gitlab["repository"], *arguments], capture_output=True, check=True, text=True
        )
        return done.stdout.strip()

    def test_project_by_path_and_by_id(self):
        project = self.get("")
        self.assertEqual(project["path_with_namespace"], "platform/clusters")
        self.assertEqual(project["default_branch"], "main")
        self.assertEqual(self.call(f"/api/v4/projects/{project['id']}")[2], project)
        self.assertEqual(self.call("/api/v4/projects/no%2Fsuch")[0], 404)

    def test_token_is_checked(self):
        status, _, answer = self.call(self.project, token="wrong")
        self.assertEqual((status, answer), (401, {"message": "401 Unauthorized"}))

    def test_commit_and_branch(self):
        self.commit({"a/b.yaml": "x: 1\n"})
        tip = self.git("rev-parse", self.branch)
        commit = self.get(f"/repository/commits/{tip}")
        for name in (
            "id",
            "short_id",
            "title",
            "message",
            "parent_ids",
            "author_name",
            "author_email",
            "authored_date",
            "committer_name",
            "committer_email",
            "committed_date",
            "created_at",
            "web_url",
        ):
            self.assertIn(name, commit)
        self.assertEqual((commit["id"], commit["title"]), (tip, "Change it"))
        self.assertEqual(commit["parent_ids"], [self.git("rev-parse", "main")])
        branch = self.get(f"/repository/branches/{self.branch}")
        self.assertEqual((branch["name"], branch["commit"]["id"], branch["default"]), (self.branch, tip, False))
        self.assertTrue(self.get("/repository/branches/main")["protected"])
        self.assertEqual(self.call(f"{self.project}/repository/branches/none")[2], {"message": "404 Branch Not Found"})
        self.assertEqual(self.call(f"{self.project}/repository/commits/{'0' * 40}")[0], 404)

    def test_raw_file(self):
        content = "é: 1\n"
        after = self.commit({"clusters/demo/cluster.yaml": content})["after"]
        path = f"{self.project}/repository/files/{quote('clusters/demo/cluster.yaml', safe='')}/raw"
        status, headers, raw = self.call(f"{path}?ref={after}")
        self.assertEqual((status, raw.decode()), (200, content))
        self.assertEqual(headers["X-Gitlab-Commit-Id"], after)
        self.assertEqual(self.call(f"{path}?ref=main")[0], 404)
        # The sample cluster's placeholder was replaced.
        self.assertIn(STACK.report["files_url"].encode(), self.get("/repository/files/cluster.yaml/raw", ref="main"))

    def test_tree_pages(self):
        files = {f"many/{n:03}.yaml": f"{n}\n" for n in range(5)} | {"many/sub/x.yaml": "x\n"}
        after = self.commit(files)["after"]
        query = {"path": "many", "ref": after, "recursive": "true", "per_page": 3, "pagination": "keyset"}
        url = f"{self.project}/repository/tree?{urlencode(query)}"
        listed, pages = [], 0
        while url:
            status, headers, entries = self.call(url)
            self.assertEqual(status, 200)
            self.assertLessEqual(len(entries), 3)
            listed, pages, link = listed + entries, pages + 1, headers["Link"]
            self.assertTrue(link is None or link.endswith('>; rel="next"'))
            url = link and link[1 : link.index(">")].removeprefix(self.gitlab["url"])
        self.assertEqual(pages, 3)
        self.assertEqual([e["path"] for e in listed], sorted([*files, "many/sub"]))
        self.assertEqual(
            listed[-1],
            {
                "id": self.git("rev-parse", f"{after}:many/sub/x.yaml"),
                "name": "x.yaml",
                "type": "blob",
                "path": "many/sub/x.yaml",
                "mode": "100644",
            },
        )
        flat = self.get("/repository/tree", path="many", ref=after)
        self.assertEqual(len(flat), 6)
        self.assertEqual(self.call(f"{self.project}/repository/tree?path=nowhere&ref={after}")[0], 404)

    def test_compare_and_merge_base(self):
        main = self.git("rev-parse", "main")
        self.commit({"a.yaml": "1\n2\n", "gone.yaml": "x\n"})
        after = self.commit({"a.yaml": "1\n3\n", "gone.yaml": None, "new.yaml": "n\n"})
        difference = self.get("/repository/compare", **{"from": after["before"], "to": after["after"]})
        self.assertEqual([c["id"] for c in difference["commits"]], [after["after"]])
        self.assertEqual(difference["commit"]["id"], after["after"])
        self.assertFalse(difference["compare_same_ref"])
        diffs = {d["new_path"]: d for d in difference["diffs"]}
        self.assertEqual(set(diffs), {"a.yaml", "gone.yaml", "new.yaml"})
        self.assertTrue(diffs["gone.yaml"]["deleted_file"] and diffs["new.yaml"]["new_file"])
        self.assertIn("-2\n+3\n", diffs["a.yaml"]["diff"])
        self.assertTrue(diffs["a.yaml"]["diff"].startswith("@@ "))
        self.assertEqual(self.get("/repository/compare", **{"from": main, "to": main})["diffs"], [])
        base = self.get("/repository/merge_base", **{"refs[]": ["main", self.branch]})
        self.assertEqual(base["id"], main)
        self.assertEqual(self.call(f"{self.project}/repository/merge_base?refs[]=main")[0], 400)

    def test_archive(self):
        after = self.commit({"folder/a.yaml": "1\n"})["after"]
        archive = tarfile.open(fileobj=io.BytesIO(self.get("/repository/archive.tar.gz", sha=after, path="folder")))
        files = [member.name for member in archive.getmembers() if member.isfile()]
        self.assertEqual(files, [f"clusters-{after}-{after}-folder/folder/a.yaml"])

    def test_statuses(self):
        after = self.commit({"a.yaml": "1\n"})["after"]
        order = {"state": "pending", "name": "kopsline/plan", "ref": self.branch, "target_url": "http://x/y"}
        status, _, answer = self.call(f"{self.project}/statuses/{after}", order)
        self.assertEqual(
            (status, answer["status"], answer["name"], answer["sha"]), (201, "pending", "kopsline/plan", after)
        )
        for state, expected in [
            ("pending", 400),
            ("running", 201),
            ("running", 400),
            ("success", 201),
            ("success", 201),
        ]:
            order |= {"state": state, "description": state}
            status, _, answer = self.call(f"{self.project}/statuses/{after}", order)
            self.assertEqual(status, expected, answer)
            if expected == 400:
                self.assertTrue(answer["message"].startswith("Cannot transition status via :"))
        listed = self.get(f"/repository/commits/{after}/statuses")
        self.assertEqual(
            [(s["name"], s["status"], s["description"]) for s in listed], [("kopsline/plan", "success", "success")]
        )
        self.assertEqual(len(self.get(f"/repository/commits/{after}/statuses", all="true")), 2)
        self.assertEqual(self.call(f"{self.project}/statuses/{after}", {"state": "great"})[0], 400)
        self.assertEqual(
            self.call(f"{self.project}/statuses/{after}", {"state": "success", "description": "x" * 256})[0], 400
        )

    def test_notes(self):
        status, _, note = self.call(f"{self.project}/merge_requests/7/notes", {"body": "first"})
        self.assertEqual(status, 201)
        path = f"{self.project}/merge_requests/7/notes/{note['id']}"
        self.assertEqual(self.call(path, {"body": "second"}, method="PUT")[0], 200)
        self.assertEqual([n["body"] for n in self.get("/merge_requests/7/notes")], ["second"])

    def test_outage_and_log(self):
        before = len(STACK.requests("gitlab"))
        self.call("/_control/outage", {"count": 2, "status": 502})
        self.assertEqual([self.call(self.project)[0] for _ in range(3)], [502, 502, 200])
        logged = [r["status"] for r in STACK.requests("gitlab")[before:] if r["path"] == self.project]
        self.assertEqual(logged, [502, 502, 200])


class Webhooks(unittest.TestCase):
    def setUp(self):
        self.gitlab = STACK.report["gitlab"]
        self.api = GitLab("call")
        self.api.setUp()

    def deliver(self, **options) -> dict:
        change = {"b.yaml": f"{uuid.uuid4()}\n"}
        return self.api.commit(change, branch="main", push=options or True)

    def test_signed_push(self):
        begun = time.time()
        change = self.deliver()
        delivery = change["delivery"]
        self.assertEqual(delivery["status"], 201)
        event = json.loads(delivery["body"])
        headers, body = event["headers"], event["body"]
        # As Standard Webhooks describes it, from what the receiver got.
        key = base64.b64decode(self.gitlab["hook_signing_token"].split("_", 1)[1])
        self.assertEqual(len(key), 32)
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        self.assertEqual(headers["webhook-signature"], f"v1,{expected}")
        self.assertTrue(int(begun) <= int(headers["webhook-timestamp"]) <= time.time())
        self.assertEqual(headers["idempotency-key"], headers["webhook-id"])
        self.assertEqual(headers["x-gitlab-event"], "Push Hook")
        self.assertIn("x-gitlab-event-uuid", headers)
        self.assertNotIn("x-gitlab-token", headers)

        push = json.loads(body)
        self.assertEqual((push["object_kind"], push["ref"]), ("push", "refs/heads/main"))
        self.assertEqual((push["before"], push["after"]), (change["before"], change["after"]))
        self.assertEqual(push["checkout_sha"], change["after"])
        self.assertEqual(push["project"]["path_with_namespace"], "platform/clusters")
        self.assertEqual(push["project_id"], self.gitlab["project_id"])
        self.assertEqual(push["total_commits_count"], 1)
        [commit] = push["commits"]
        self.assertEqual((commit["id"], commit["title"]), (change["after"], "Change it"))
        self.assertEqual(commit["added"] + commit["modified"], ["b.yaml"])

    def test_legacy_token(self):
        headers = json.loads(self.deliver(legacy=True)["delivery"]["body"])["headers"]
        self.assertEqual(headers["x-gitlab-token"], self.gitlab["hook_secret_token"])
        self.assertNotIn("webhook-signature", headers)
        self.assertIn("webhook-id", headers)

    def test_resend_and_forgery(self):
        headers = json.loads(
            self.deliver(webhook_id="same", timestamp=1, headers={"webhook-signature": "v1,AAAA"})["delivery"]["body"]
        )["headers"]
        self.assertEqual(
            [headers[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")],
            ["same", "1", "v1,AAAA"],
        )

    def test_push_of_what_git_push_brought(self):
        with tempfile.TemporaryDirectory() as clone:

            def git(*arguments: str) -> None:
                subprocess.run(
                    ["git", "-C", clone, "-c", "user.name=A", "-c", "user.email=a@example.com", *arguments],
                    check=True,
                    capture_output=True,
                )

            git("clone", "-q", self.gitlab["repository"], ".")
            Path(clone, "pushed.yaml").write_text("p: 1\n")
            git("add", ".")
            git("commit", "-qm", "Pushed")
            git("push", "-q", "origin", "main")
        _, _, delivery = self.api.call("/_control/push", {"project": "platform/clusters", "ref": "refs/heads/main"})
        push = json.loads(json.loads(delivery["body"])["body"])
        self.assertEqual([c["added"] for c in push["commits"]], [["pushed.yaml"]])


class Files(unittest.TestCase):
    def fetch(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(STACK.report["files_url"] + path, timeout=PATIENCE_SECONDS) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def test_hashes_are_stable_and_differ(self):
        one = self.fetch("/binaries/kops/1.36.2/linux/amd64/nodeup.sha256")
        self.assertEqual(one, self.fetch("/binaries/kops/1.36.2/linux/amd64/nodeup.sha256"))
        self.assertEqual(one[0], 200)
        self.assertRegex(one[1].decode(), r"^[0-9a-f]{64}\n$")
        self.assertNotEqual(one, self.fetch("/binaries/kops/1.36.2/linux/arm64/nodeup.sha256"))
        self.assertEqual(self.fetch("/binaries/kops/1.36.2/linux/amd64/nodeup")[0], 404)


class Isolation(unittest.TestCase):
    def test_everything_listens_on_loopback_only(self):
        inodes = set()
        for pid in [*processes_of(STACK.home), *stack_tree(STACK.process.pid)]:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(descriptor)
                except OSError:
                    continue
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        listening = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    listening.append(fields[1].split(":")[0])
        self.assertGreaterEqual(len(listening), 6)
        self.assertEqual(set(listening), {"0100007F"})


def stack_tree(pid: int) -> list[int]:
    """A process and all below it."""
    tree = [pid]
    for parent in tree:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            tree += [int(child) for child in children.read_text().split()]
    return tree


class Ends(unittest.TestCase):
    """A stack of its own for each way to end it, beside the one of the other tests."""

    def setUp(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="stack-end-"))
        self.addCleanup(shutil.rmtree, self.scratch, ignore_errors=True)

    def busy_stack(self) -> tuple[Running, list[int]]:
        """A stack whose function is in the middle of a long call."""
        stack = Running(
            self.scratch / "home",
            "--template",
            str(HERE / "testdata" / "template.yaml"),
            "--functions",
            str(write_functions(self.scratch / "functions")),
            "--parameter",
            "Greeting=x",
        )
        self.addCleanup(stack.process.stdout.close)
        self.addCleanup(stack.process.stdin.close)
        stack.aws("lambda").invoke(
            FunctionName=stack.report["functions"]["Worker"],
            InvocationType="Event",
            Payload=json.dumps({"do": "sleep", "seconds": 3600}),
        )

        def with_worker() -> list[int]:
            tree = stack_tree(stack.process.pid)
            # The supervisor's child, three programs, and the function's process below one of them.
            return tree if len([p for p in processes_of(stack.home) if p in tree]) >= 4 else []

        return stack, eventually(with_worker)

    def assert_gone(self, stack: Running, tree: list[int]) -> None:
        eventually(lambda: not processes_of(stack.home) and not any(is_alive(pid) for pid in tree), GONE_SECONDS)

    def test_sigterm(self):
        stack, tree = self.busy_stack()
        stack.process.send_signal(signal.SIGTERM)
        self.assertEqual(stack.process.wait(PATIENCE_SECONDS), 0)
        self.assert_gone(stack, tree)

    def test_kill_of_the_parent(self):
        stack, tree = self.busy_stack()
        stack.process.kill()
        stack.process.wait(PATIENCE_SECONDS)
        self.assert_gone(stack, tree)

    def test_a_component_that_dies_ends_the_stack(self):
        stack, tree = self.busy_stack()
        os.kill(stack.report["pids"]["moto"], signal.SIGKILL)
        self.assertEqual(stack.process.wait(PATIENCE_SECONDS), 1)
        self.assert_gone(stack, tree)

    def test_a_component_that_does_not_start_is_named(self):
        command = [sys.executable, "-m", "stack", "up", "--home", str(self.scratch / "home")]
        # A Python without LocalStack.
        done = subprocess.run(
            [*command, "--localstack-python", sys.executable],
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "")
        self.assertIn("step functions ended with code 1", done.stderr)
        self.assertIn("No module named 'localstack'", done.stderr)
        self.assertEqual(processes_of(self.scratch / "home"), [])


class Templates(unittest.TestCase):
    def value(self, text: str, **parameters: str) -> object:
        body = parse(
            "Parameters: {P: {Type: String, Default: p}, L: {Type: CommaDelimitedList, Default: 'x,y'}}\n"
            "Conditions: {IsQ: !Equals [!Ref P, q], Not: !Not [!Condition IsQ],"
            " Either: !Or [!Condition IsQ, !Equals [a, a]]}\n"
            "Mappings: {M: {a: {b: deep}}}\n"
            f"Resources: {{}}\nOutputs:\n  V: {text}\n"
        )
        template = Template(
            body, HERE, parameters, {"AWS::Region": "r1"}, lambda name: f"ref-{name}", lambda name, a: f"{name}-{a}"
        )
        return template.value(body["Outputs"]["V"], "V")

    def test_intrinsic_functions(self):
        for text, expected in {
            "!Ref P": "p",
            "!Ref Bucket": "ref-Bucket",
            "!GetAtt Bucket.Arn": "Bucket-Arn",
            '!Sub "${P}-${AWS::Region}-${Bucket.Arn}-${!Kept}"': "p-r1-Bucket-Arn-${Kept}",
            '!Sub ["${V}/${P}", {V: !Ref L}]': "['x', 'y']/p",
            '!Join [":", !Ref L]': "x:y",
            '!Select [1, !Split [",", "a,b"]]': "b",
            "!FindInMap [M, a, b]": "deep",
            "!If [IsQ, one, two]": "two",
            "!If [Not, one, two]": "one",
            "!If [Either, one, two]": "one",
            '{Fn::Join: ["", [a, !Ref P]]}': "ap",
        }.items():
            with self.subTest(text):
                self.assertEqual(self.value(text), expected)

    def test_no_value_vanishes(self):
        self.assertEqual(self.value("{a: !Ref 'AWS::NoValue', b: [1, !Ref 'AWS::NoValue']}"), {"b": [1]})
        self.assertIs(self.value("!Ref 'AWS::NoValue'"), NO_VALUE)

    def test_parameters(self):
        self.assertEqual(self.value("!If [IsQ, yes-q, no-q]", P="q"), "yes-q")
        with self.assertRaisesRegex(TemplateError, "no parameter Z"):
            self.value("x", Z="1")

    def test_what_is_not_known_is_an_error(self):
        with self.assertRaisesRegex(TemplateError, "Fn::Cidr is not known"):
            self.value("!Cidr [a, b]")


@unittest.skipUnless(os.environ.get("STACK_KOPS"), "STACK_KOPS names no kops binary")
class Kops(unittest.TestCase):
    """Bare kops against the stack: the sample cluster, created, changed and rolled."""

    CLUSTER = "demo.k8s.example.com"

    def kops(self, *arguments: str) -> str:
        environment = {"PATH": os.environ["PATH"], "KOPS_STATE_STORE": "s3://kops-state", **STACK.report["kops_env"]}
        done = subprocess.run(
            [os.environ["STACK_KOPS"], *arguments], env=environment, capture_output=True, text=True, timeout=300
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def replace(self, manifests: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(manifests)
            file.flush()
            self.kops("replace", "--force", "-f", file.name)

    def update(self, *flags: str) -> str:
        return self.kops("update", "cluster", "--name", self.CLUSTER, "--create-kube-config=false", *flags)

    def roll(self, *flags: str) -> dict[str, list[str]]:
        table = self.kops("rolling-update", "cluster", "--name", self.CLUSTER, "--cloudonly", *flags)
        return {row[0]: row[1:] for row in (line.split() for line in table.splitlines()[1:]) if len(row) == 7}

    def test_create_change_and_roll(self):
        repository = STACK.report["gitlab"]["repository"]
        manifests = subprocess.run(
            ["git", "-C", repository, "show", "main:cluster.yaml"], capture_output=True, check=True, text=True
        ).stdout
        self.replace(manifests)
        self.assertIn("cluster changes have been applied", self.update("--yes").lower())
        self.assertIn("No changes need to be applied", self.update())
        ready = self.roll()
        self.assertEqual(len(ready), 6)
        self.assertEqual({row[0] for row in ready.values()}, {"Ready"})
        self.assertEqual(
            {name: row[2] for name, row in ready.items() if name.startswith("nodes")},
            {"nodes-general": "3", "nodes-batch": "2"},
        )

        self.replace(manifests.replace("m6i.large", "m6i.xlarge"))
        before = len(STACK.requests("aws"))
        self.assertIn("m6i.large -> m6i.xlarge", self.update())
        writes = [r for r in STACK.requests("aws")[before:] if r["service"] == "s3" and r["method"] != "GET"]
        self.assertEqual(
            [r for r in writes if r["method"] in ("PUT", "POST", "DELETE")], [], "a dry run must not write"
        )
        self.update("--yes")
        table = self.roll()
        self.assertEqual({name for name, row in table.items() if row[0] == "NeedsUpdate"}, {"nodes-general"})
        self.assertEqual(table["nodes-general"][1], "3")
        self.roll("--yes", "--node-interval", "1s")
        self.assertEqual({row[0] for row in self.roll().values()}, {"Ready"})
        self.assertIn("No changes need to be applied", self.update())


if __name__ == "__main__":
    unittest.main()
