"""The golden clusters of kOps' own tests, through bare kops and through Kopsline, in one and the same emulated AWS.

They are read from kOps' Go module (KOPS_MODULE_DIR), and edited only where the emulator leaves no choice: see `edited`.
`python -m e2e.golden [NAME...]` tries them all, or some, and prints a table; `test_golden.py` insists on the usual ones.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import yaml
from stack import components, deploy
from stack.files import FileServer
from stack.processes import free_port
from stack.requestlog import RequestLog

from e2e import plans
from e2e.harness import KOPS_VERSION, STATE_STORE, Stack, is_of_registry, meaning, runs_of

AT_ONCE = 3
"""Runs at the same time: kops takes a core and 200 MB."""
PATIENCE_SECONDS = 90
"""kops repeats a task that the cloud refuses for ten minutes; what it says until then is enough."""
OWN_WORDS = {"additionalobjects": "unhandled kind"}
"""What Kopsline refuses as kops does, but before it runs kops, with file and line; and the words that both say."""


@dataclass
class Golden:
    """A golden cluster as it is tried here."""

    name: str
    cluster: str
    manifest: str

    @property
    def store(self) -> str:
        """A state store of its own: many of them are called minimal.example.com."""
        return f"s3://{STATE_STORE}/{self.name}"

    @property
    def place(self) -> str:
        """Where its registry is, below the bucket."""
        return f"{self.name}/{self.cluster}"

    @property
    def path(self) -> str:
        return f"clusters/{self.name}.yaml"


def folder() -> Path:
    return Path(os.environ["KOPS_MODULE_DIR"]) / "tests/integration/update_cluster"


def names() -> list[str]:
    """All that have a manifest; of one there is only the expected output."""
    return sorted({path.parent.name for path in folder().glob("*/in-v1alpha*.yaml")})


def golden(name: str, files_url: str, there: dict[str, str]) -> Golden:
    """The golden cluster, edited for the emulator, whose names of what is `there` already are its own."""
    [path] = (folder() / name).glob("in-v1alpha*.yaml")
    text = path.read_text()
    for theirs, own in there.items():
        text = re.sub(rf"(?<![\w-]){re.escape(theirs)}(?![\w-])", own, text)
    cluster = next(d["metadata"]["name"] for d in yaml.safe_load_all(text) if d and d["kind"] == "Cluster")
    key = folder() / name / "id_rsa.pub"
    return Golden(name, cluster, edited(text, name, cluster, files_url, key.read_text().strip() if key.is_file() else None))


def edited(text: str, name: str, cluster: str, files_url: str, key: str | None) -> str:
    """The manifests with what the emulator forces: a state store, a region and a file server that are there, no channel
    to be fetched, no public DNS to be asked, and the SSH key, which kOps' tests give by a command, as a document; and
    without the one field that kops itself drops in silence, for which Kopsline refuses the manifest."""
    text = re.sub(r"^  serviceOIDCProvider:\n(?:    .*\n)+", "", text, flags=re.MULTILINE)
    text = text.replace("us-test-1", components.REGION)
    text = re.sub(r"^  configBase: .*$", f"  configBase: s3://{STATE_STORE}/{name}/{cluster}", text, flags=re.MULTILINE)
    text = re.sub(r"^(    discoveryStore:) .*$", rf"\1 s3://{STATE_STORE}/{name}/discovery", text, flags=re.MULTILINE)
    text = re.sub(r"^  channel: .*$", "  channel: none", text, flags=re.MULTILINE)
    # Of a zone that is private kops asks Route 53 alone, of a public one also its name servers.
    text = re.sub(r"^(    dns:\n      type:) Public$", r"\1 Private", text, flags=re.MULTILINE)
    if re.search(r"^  assets:$", text, re.MULTILINE):
        text = re.sub(r"^  assets:$", f"  assets:\n    fileRepository: {files_url}", text, count=1, flags=re.MULTILINE)
    else:
        text = _in_spec(text, f"  assets:\n    fileRepository: {files_url}\n")
    if not re.search(r"^  channel: ", text, re.MULTILINE):
        text = _in_spec(text, "  channel: none\n")
    if not re.search(r"^  topology:", text, re.MULTILINE):
        text = _in_spec(text, "  topology:\n    dns:\n      type: Private\n")
    elif not re.search(r"^  topology:\n(?:    .*\n)*?    dns:", text, re.MULTILINE):
        text = re.sub(r"^  topology:\n", "  topology:\n    dns:\n      type: Private\n", text, count=1, flags=re.MULTILINE)
    if key:
        labels = f"  labels:\n    kops.k8s.io/cluster: {cluster}\n  name: admin\n"
        document = f"apiVersion: kops.k8s.io/v1alpha2\nkind: SSHCredential\nmetadata:\n{labels}spec:\n  publicKey: {key}\n"
        text = text.rstrip("\n") + "\n---\n" + document
    return text


def _in_spec(text: str, lines: str) -> str:
    """With lines at the begin of the cluster's spec."""
    documents = re.split(r"(?<=\n)---[ ]*\n", text)
    for number, document in enumerate(documents):
        if re.search(r"^kind: Cluster$", document, re.MULTILINE):
            documents[number] = re.sub(r"^spec:\n", "spec:\n" + lines, document, count=1, flags=re.MULTILINE)
    return "---\n".join(documents)


@dataclass
class Outcome:
    """What came of a golden cluster, by whichever way."""

    error: str | None = None
    """kops' own words, when it refused."""
    registry: dict[str, object] = field(default_factory=dict)
    plan: str = ""
    applied: dict[str, object] | None = None


# --- Bare kops ---


class Bare:
    """kops in an emulated AWS, as a person runs it."""

    def __init__(self, home: Path, port: int):
        for part in ("logs", "tmp"):
            (home / part).mkdir(parents=True)
        self.home, self.url = home, f"http://127.0.0.1:{port}"
        self.moto = components.moto(home, self.url, home / "logs/requests.jsonl")
        self.moto.start()
        self.moto.wait_ready(time.monotonic() + 60)
        self.aws = components.Aws(self.moto, None, None, self.url, self.url, self.url, None, None)
        self.there = prepare(self.url)
        deploy.create_bucket(self.aws, STATE_STORE)

    def stop(self):
        self.moto.signal_group(signal.SIGTERM)
        self.moto.process.wait(30)

    def kops(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and errors; of a kops that was still trying, what it said until then."""
        mine = {"HOME": str(self.home), "KUBECONFIG": str(self.home / "kubeconfig"), "PATH": os.environ["PATH"]}
        environment = deploy.local_environment(self.aws) | mine
        command = [os.environ["STACK_KOPS"], *arguments]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as still:
            return -1, "", (still.stderr or b"").decode(errors="replace")
        return done.returncode, done.stdout, done.stderr

    def plan(self, golden: Golden) -> Outcome:
        file = self.home / f"{golden.name}.yaml"
        file.write_text(golden.manifest)
        code, _, errors = self.kops("replace", "--force", "-f", str(file), "--state", golden.store)
        if code:
            return Outcome(error=words(errors))
        outcome = Outcome(registry=registry(self.url, golden))
        code, outcome.plan, errors = self.kops("update", "cluster", "--name", golden.cluster, "--state", golden.store)
        if code:
            outcome.error = words(errors)
        return outcome

    def apply(self, golden: Golden) -> dict[str, object]:
        same = ["--name", golden.cluster, "--state", golden.store]
        code, _, errors = self.kops("update", "cluster", *same, "--yes", "--create-kube-config=false")
        if code:
            raise AssertionError(f"kops update cluster --yes: {errors}")
        return applied(self.url, golden, self.kops("update", "cluster", *same)[1])


def words(errors: str) -> str:
    """kops' error: its last line of it, or, of one that was still trying, the last task that failed."""
    failed = [line for line in errors.splitlines() if line.startswith("Error:")]
    tried = re.findall(r"error running task \"?([^\"]+?)\"? \(.*? remaining to succeed\): (.*)", errors)
    if failed:
        return failed[-1]
    return f"still trying: {tried[-1][0]}: {tried[-1][1]}" if tried else errors.strip()[-500:]


# --- What both leave ---


def client(url: str, service: str):
    return boto3.client(service, endpoint_url=url, region_name=components.REGION, aws_access_key_id="test", aws_secret_access_key="test")


def prepare(url: str) -> dict[str, str]:
    """Makes what the golden clusters expect to be there, as kOps' tests do (kOps 1.36
    pkg/testutils/integrationtestharness.go), with the same ids at every call; gives those by kOps' ids."""
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/seed?a=1", method="POST")).close()
    ec2, route53 = client(url, "ec2"), client(url, "route53")
    vpc = ec2.create_vpc(CidrBlock="172.20.0.0/16")["Vpc"]["VpcId"]
    ec2.create_tags(Resources=[vpc], Tags=[{"Key": "kubernetes.io/cluster/minimal.example.com", "Value": ""}])
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.create_egress_only_internet_gateway(VpcId=vpc)
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    there = {"vpc-12345678": vpc}
    for subnet, zone, cidr in (
        ("subnet-12345678", "a", "172.20.32.0/19"),
        ("subnet-abcdef", "a", "172.20.4.0/22"),
        ("subnet-b2345678", "b", "172.20.8.0/22"),
    ):
        made = ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=components.REGION + zone)
        there[subnet] = made["Subnet"]["SubnetId"]
        if subnet != "subnet-b2345678":
            ec2.associate_route_table(RouteTableId=table, SubnetId=there[subnet])
    for address, nat, subnet in (
        ("eipalloc-12345678", "nat-a2345678", "subnet-12345678"),
        ("eipalloc-b2345678", "nat-b2345678", "subnet-b2345678"),
    ):
        there[address] = ec2.allocate_address(Domain="vpc")["AllocationId"]
        made = ec2.create_nat_gateway(SubnetId=there[subnet], AllocationId=there[address])
        there[nat] = made["NatGateway"]["NatGatewayId"]
    for name in ("elb", "nodes", "master-1a", "master-1b", "exampleid", *(f"exampleid{n}" for n in range(3, 7))):
        there[f"sg-{name}"] = ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
    for number in (1, 2, 3):
        name = f"my-external-tg-{number}"
        made = client(url, "elbv2").create_target_group(Name=name, Protocol="TCP", Port=443, VpcId=vpc)["TargetGroups"]
        there[f"arn:aws-test:elasticloadbalancing:us-test-1:000000000000:targetgroup/{name}/{number}"] = made[0]["TargetGroupArn"]
    iam = client(url, "iam")
    for role in ("kops-custom-master-role", "kops-custom-node-role"):
        iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=role)
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    for zone in ("example.com", "internal.example.com", "private.example.com"):
        place = {"VPCRegion": components.REGION, "VPCId": vpc}
        private = {"PrivateZone": True, "Comment": ""}
        route53.create_hosted_zone(Name=zone, CallerReference=zone, VPC=place, HostedZoneConfig=private)
    return there


def keys(url: str, golden: Golden) -> list[str]:
    pages = client(url, "s3").get_paginator("list_objects_v2").paginate(Bucket=STATE_STORE, Prefix=f"{golden.place}/")
    return [item["Key"].removeprefix(f"{golden.place}/") for page in pages for item in page.get("Contents", [])]


def registry(url: str, golden: Golden) -> dict[str, object]:
    """The registry's objects, as data."""
    s3 = client(url, "s3")
    own = [key for key in keys(url, golden) if is_of_registry(key)]
    return {key: meaning(s3.get_object(Bucket=STATE_STORE, Key=f"{golden.place}/{key}")["Body"].read().decode()) for key in own}


def applied(url: str, golden: Golden, plan: str) -> dict[str, object]:
    """What an update left: groups and their sizes, launch templates and their versions, the state store's objects, and
    what kops would still do."""
    groups = client(url, "autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    templates = client(url, "ec2").describe_launch_templates()["LaunchTemplates"]
    mine = f".{golden.cluster}"
    sizes = ("MinSize", "MaxSize", "DesiredCapacity")
    return {
        "groups": {g["AutoScalingGroupName"]: [g[s] for s in sizes] for g in groups if g["AutoScalingGroupName"].endswith(mine)},
        "templates": {t["LaunchTemplateName"]: t["LatestVersionNumber"] for t in templates if t["LaunchTemplateName"].endswith(mine)},
        "objects": sorted(keys(url, golden)),
        "plan": plan,
    }


# --- Kopsline ---


class Deployed:
    """Kopsline on the local stack, with one project of all golden clusters."""

    def __init__(self, home: Path, port: int, clusters: list[Golden], there: dict[str, str]):
        content = home / "content"
        content.mkdir(parents=True)
        (content / "kopsline.yaml").write_text(json.dumps({"version": 1, "clusters": [_configured(golden) for golden in clusters]}))
        self.stack = Stack(home / "stack", content, "--aws-port", str(port))
        self.url = self.stack.places["aws_url"]
        self._one_at_a_time = threading.Lock()
        if prepare(self.url) != there:
            raise AssertionError("the two emulated AWS do not have the same ids")

    def stop(self):
        self.stack.stop()

    def plan(self, golden: Golden) -> tuple[dict, Outcome]:
        """The record of a run that planned, and what came of it."""
        with self._one_at_a_time:
            delivery = self.stack.push(golden.manifest, f"Add {golden.name}", golden.path)
        [run] = runs_of(delivery)
        record = self.stack.until_asked(run)
        if record.get("failure"):
            return record, Outcome(error=record["failure"]["message"], registry=registry(self.url, golden))
        plan = self.stack.document(f"runs/{run}/plan.json")
        return record, Outcome(registry=registry(self.url, golden), plan=plan["inputs"]["dry_run"])

    def shown(self, record: dict) -> str:
        return self.stack.text(f"runs/{record['id']}/plan.txt")

    def apply(self, golden: Golden, record: dict) -> dict[str, object]:
        ended = self.stack.follow(record["id"])
        if ended["state"] != "succeeded":
            raise AssertionError(ended)
        return applied(self.url, golden, self.stack.dry_run(golden.cluster, golden.store))

    def reject(self, record: dict) -> dict:
        return self.stack.follow(record["id"], "reject")


def _configured(golden: Golden) -> dict:
    return {
        "name": golden.cluster,
        "stateStore": golden.store,
        "region": components.REGION,
        "kops": {"version": KOPS_VERSION},
        "sources": [golden.path],
        "approvals": {"update": "manual", "roll": "automatic", "timeout": "1h"},
        "rollingUpdate": {"cloudonly": True},
    }


# --- Side by side ---


@dataclass
class Result:
    """A golden cluster by both ways."""

    golden: Golden
    bare: Outcome
    ours: Outcome | None = None
    record: dict | None = None
    differences: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        if self.differences:
            return "DIFFERS: " + "; ".join(self.differences)[:600]
        if self.bare.error:
            return f"the same error: {self.bare.error[:300]}"
        return f"the same, {len(self.bare.registry)} objects, {self.bare.plan.count(chr(10))} lines of plan"


@contextlib.contextmanager
def side_by_side(wanted: list[str], to_apply: tuple[str, ...] = ()):
    """Takes the clusters through bare kops, then through Kopsline in an AWS at the same address: kops writes the address
    into what it makes. Gives the results and the deployment, whose runs wait for their answers."""
    with tempfile.TemporaryDirectory(prefix="kopsline-golden-") as scratch:
        home, port = Path(scratch), free_port()
        files = FileServer(RequestLog(home / "file-requests.jsonl"))
        bare = Bare(home / "bare", port)
        try:
            clusters = [golden(name, files.url, bare.there) for name in wanted]
            results = [Result(c, outcome) for c, outcome in zip(clusters, _each(bare.plan, clusters), strict=True)]
            for result in results:
                if result.golden.name in to_apply and not result.bare.error:
                    result.bare.applied = bare.apply(result.golden)
        finally:
            bare.stop()
        deployed = Deployed(home / "deployed", port, clusters, bare.there)
        try:
            tried = [r for r in results if not (r.bare.error or "").startswith("still trying")]
            for result, (record, ours) in zip(tried, _each(deployed.plan, [r.golden for r in tried]), strict=True):
                result.record, result.ours = record, ours
                result.differences = _differences(result, deployed)
            yield results, deployed
        finally:
            deployed.stop()


def _each(work, items: list) -> list:
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


def _differences(result: Result, deployed: Deployed) -> list[str]:
    bare, ours = result.bare, result.ours
    if bare.error or ours.error:
        known = OWN_WORDS.get(result.golden.name, _essence(bare.error or ""))
        same = bare.error and ours.error and known in _essence(bare.error) and known in _essence(ours.error)
        return [] if same else [f"bare kops: {bare.error}; Kopsline: {ours.error}"]
    found = []
    for key in sorted(set(bare.registry) | set(ours.registry)):
        if bare.registry.get(key) != ours.registry.get(key):
            found.append(f"registry {key}: {bare.registry.get(key)} is now {ours.registry.get(key)}")
    found += plans.differences(deployed.shown(result.record), bare.plan)
    if ours.plan != plans.digest(bare.plan):
        found.append("the plan's digest is not that of what bare kops printed")
    return found


def _essence(error: str) -> str:
    """An error without what differs from call to call: files' names, white space, the command's own prefix."""
    error = re.sub(r"/\S*\.yaml|manifests\.yaml", "FILE", error.removeprefix("Error: "))
    return " ".join(error.split())


def main(wanted: list[str]) -> int:
    begun = time.monotonic()
    with side_by_side(wanted or names()) as (results, _):
        for result in results:
            tried = result.ours is not None
            print(f"| {result.golden.name} | {result.summary if tried else result.bare.error} |", flush=True)
    differing = [result for result in results if result.differences]
    untried = [result for result in results if result.ours is None]
    refused = [result for result in results if result.bare.error and result.ours]
    same = len(results) - len(differing) - len(untried) - len(refused)
    print(f"\n{same} the same, {len(refused)} refused with the same error, {len(untried)} beyond the emulator, {len(differing)} differ;", end=" ")
    print(f"{time.monotonic() - begun:.0f} s")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
