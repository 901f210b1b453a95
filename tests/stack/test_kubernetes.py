"""Tests of the stack's Kubernetes: that it is a real API, that instances join it, and that it ends.

Run: STACK_KUBERNETES="$(tools/kubernetes/get)" PYTHONPATH=tests .../bin/python -m unittest stack.test_kubernetes
"""

import base64
import datetime
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificate

from stack import components, deploy, kubernetes, processes
from stack.authority import Authority, KeysetError, Pair
from stack.joiner import CONTROL_PLANE, Instance, Joiner, node, static_pods, stop_kubelet
from stack.kube_api import Api, ApiError
from stack.test_stack import (
    DEMO,
    GONE_SECONDS,
    IMAGE,
    PATIENCE_SECONDS,
    Running,
    eventually,
    is_alive,
    processes_of,
    stack_tree,
)

HERE = Path(__file__).resolve().parent
PROGRAM = os.environ.get("STACK_KUBERNETES")
needs_program = unittest.skipUnless(PROGRAM, "STACK_KUBERNETES names no program; tools/kubernetes/get prints its path")
CLUSTER = "demo.k8s.example.com"
BUCKET = "kops-state"
KEYSET = f"{CLUSTER}/pki/private/kubernetes-ca/keyset.yaml"
DELAYS = kubernetes.Delays(removal=30)
"""A busy machine must see a node that is not ready before it is gone."""
SLOW = {"pod-ready.stage.kwok.x-k8s.io/delay": "6s"}
"""Of pods that must not be replaced before the next eviction."""
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")


def instance(role: str = "node", **tags: str) -> Instance:
    """As EC2 describes one of kOps'."""
    label = "k8s.io/cluster-autoscaler/node-template/label/"
    return Instance(
        id="i-0123456789abcdef0",
        zone="us-east-1a",
        machine_type="m6i.large",
        address="10.20.32.4",
        host_name="ip-10-20-32-4.ec2.internal",
        tags={f"k8s.io/role/{role}": "1", "kops.k8s.io/instancegroup": "group", f"{label}team": "shop", **tags},
    )


class Nodes(unittest.TestCase):
    """What becomes of an instance, without any program."""

    def test_a_worker(self):
        made = node(instance(), "v1.36.3")
        self.assertEqual(made["spec"], {"providerID": "aws:///us-east-1a/i-0123456789abcdef0", "taints": []})
        labels = made["metadata"]["labels"]
        self.assertEqual(labels["kops.k8s.io/instancegroup"], "group")
        self.assertEqual((labels["node-role.kubernetes.io/node"], labels["team"]), ("", "shop"))
        self.assertEqual(labels["topology.kubernetes.io/region"], "us-east-1")

    def test_the_control_plane_by_both_of_its_names(self):
        both = {"k8s.io/role/master": "1", "k8s.io/role/control-plane": "1"}
        for tags in (both, dict(reversed(both.items()))):
            machine = Instance(
                "i-1", "us-east-1a", "t3.medium", "10.0.0.1", "", {**tags, "kops.k8s.io/instancegroup": "a"}
            )
            self.assertEqual(machine.role, "control-plane")

    def test_a_control_plane_node(self):
        taint = {"k8s.io/cluster-autoscaler/node-template/taint/dedicated": "db:NoExecute"}
        made = node(instance("control-plane", **taint), "v1.36.3")
        self.assertEqual(
            made["spec"]["taints"],
            [
                {"key": "dedicated", "value": "db", "effect": "NoExecute"},
                {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
            ],
        )
        pods = static_pods(instance("control-plane"), {"metadata": {"uid": "u"}})
        self.assertEqual({pod["metadata"]["labels"]["k8s-app"] for pod in pods}, {"kube-proxy", *CONTROL_PLANE})
        self.assertTrue(all("kubernetes.io/config.mirror" in pod["metadata"]["annotations"] for pod in pods))

    def test_api_servers_have_their_own_role(self):
        self.assertIn("node-role.kubernetes.io/api-server", node(instance("apiserver"), "v")["metadata"]["labels"])


class Authorities(unittest.TestCase):
    """Keysets, without any program."""

    def test_a_keyset_is_read_as_it_was_written(self):
        made = Authority.create()
        read = Authority.from_keyset(made.keyset())
        self.assertEqual((read.bundle(), read.signer), (made.bundle(), made.signer))

    def test_distrusted_keys_do_not_count(self):
        text = Authority.create().keyset()
        with self.assertRaises(KeysetError):
            Authority.from_keyset(
                text.replace("privateMaterial", "distrustTimestamp: '2026-11-01'\n    privateMaterial")
            )

    def test_a_client_is_who_it_says(self):
        made = Authority.create()
        certificate = load_pem_x509_certificate(made.client("ann", "system:masters").certificate.encode())
        self.assertEqual(certificate.subject.rfc4514_string(), "CN=ann,O=system:masters")
        certificate.verify_directly_issued_by(made.signer)
        self.assertGreater(certificate.not_valid_after_utc, datetime.datetime.now(datetime.UTC))


AWS: components.Aws
PLANE: processes.Component
SCRATCH: Path | None = None
REPORT: dict
API: Api


def setUpModule() -> None:
    global AWS, PLANE, SCRATCH, REPORT, API
    if not PROGRAM:
        return
    SCRATCH = Path(tempfile.mkdtemp(prefix="stack-kubernetes-"))
    home = SCRATCH / "home"
    for folder in ("logs", "tmp"):
        (home / folder).mkdir(parents=True)
    AWS = components.aws(home, sys.executable)
    keyset = f"s3://{BUCKET}/{KEYSET}"
    PLANE = kubernetes.component(Path(PROGRAM), home, AWS.moto_url, CLUSTER, keyset, DELAYS)
    try:
        for program in (AWS.moto, PLANE):
            program.start()
        for program in (AWS.moto, PLANE):
            program.wait_ready(time.monotonic() + PATIENCE_SECONDS)
    except BaseException:
        tearDownModule()
        raise
    REPORT = kubernetes.report_of(home)
    files = kubernetes.Files(home / "kubernetes")
    API = Api(REPORT["url"], files.ca_certificate, files.admin_certificate, files.admin_key)


def tearDownModule() -> None:
    if not SCRATCH:
        return
    processes.stop([AWS.moto, PLANE])
    left = processes_of(SCRATCH / "home")
    shutil.rmtree(SCRATCH, ignore_errors=True)
    if left:
        raise AssertionError(f"it left {left}")


def aws(service: str):
    """A client of the emulated cloud."""
    return deploy.client(service, AWS.moto_url)


def nodes() -> dict[str, dict]:
    """The API's nodes by name."""
    return {item["metadata"]["name"]: item for item in API.get("/api/v1/nodes")["items"]}


def is_ready(item: dict) -> bool:
    """Whether a node or pod has the condition Ready."""
    conditions = item.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@needs_program
class Joining(unittest.TestCase):
    """Instances of groups as kOps makes them."""

    def create(self, role: str, size: int) -> str:
        ec2 = aws("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.20.0.0/16")["Vpc"]["VpcId"]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.20.{n}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
            for n, zone in enumerate(ZONES)
        ]
        group = f"{role}-{uuid.uuid4().hex[:8]}"
        template = ec2.create_launch_template(
            LaunchTemplateName=group,
            LaunchTemplateData={
                "ImageId": IMAGE,
                "InstanceType": "t3.medium",
                "UserData": base64.b64encode(b"x").decode(),
            },
        )["LaunchTemplate"]["LaunchTemplateId"]
        tags = {
            "KubernetesCluster": CLUSTER,
            "kops.k8s.io/instancegroup": group,
            f"k8s.io/role/{role}": "1",
            "k8s.io/cluster-autoscaler/node-template/label/kops.k8s.io/instancegroup": group,
        }
        aws("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=f"{group}.{CLUSTER}",
            MinSize=0,
            MaxSize=9,
            DesiredCapacity=size,
            VPCZoneIdentifier=",".join(subnets),
            LaunchTemplate={"LaunchTemplateId": template, "Version": "1"},
            Tags=[{"Key": key, "Value": value, "PropagateAtLaunch": True} for key, value in tags.items()],
        )
        self.addCleanup(
            aws("autoscaling").delete_auto_scaling_group, AutoScalingGroupName=f"{group}.{CLUSTER}", ForceDelete=True
        )
        return group

    def members(self, group: str) -> dict[str, str]:
        found = aws("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[f"{group}.{CLUSTER}"])
        return {i["InstanceId"]: i["AvailabilityZone"] for i in found["AutoScalingGroups"][0]["Instances"]}

    def ready(self, group: str, size: int) -> dict[str, dict]:
        """The group's nodes, when all of its members have joined and are ready."""

        def joined() -> dict[str, dict]:
            found = {
                name: item
                for name, item in nodes().items()
                if item["metadata"]["labels"].get("kops.k8s.io/instancegroup") == group
            }
            return found if len(found) == size and all(map(is_ready, found.values())) else {}

        return eventually(joined)

    def test_workers_join(self):
        group = self.create("node", 3)
        joined = self.ready(group, 3)
        self.assertEqual(
            {name: item["spec"]["providerID"] for name, item in joined.items()},
            {id: f"aws:///{zone}/{id}" for id, zone in self.members(group).items()},
        )
        self.assertEqual(
            {item["metadata"]["labels"]["topology.kubernetes.io/zone"] for item in joined.values()}, set(ZONES)
        )
        eventually(lambda: not any(item["spec"].get("taints") for item in self.ready(group, 3).values()))

    def test_control_plane_nodes_have_their_static_pods(self):
        name = next(iter(self.ready(self.create("control-plane", 1), 1)))
        address = next(a["address"] for a in nodes()[name]["status"]["addresses"] if a["type"] == "InternalIP")

        def running() -> set[str]:
            pods = API.get(f"/api/v1/namespaces/kube-system/pods?fieldSelector=spec.nodeName%3D{name}")["items"]
            return {
                pod["metadata"]["labels"]["k8s-app"]
                for pod in pods
                if is_ready(pod) and pod["status"]["hostIP"] == address and pod["status"]["phase"] == "Running"
            }

        eventually(lambda: running() == {"kube-proxy", *CONTROL_PLANE})
        taints = {taint["key"] for taint in nodes()[name]["spec"]["taints"]}
        self.assertIn("node-role.kubernetes.io/control-plane", taints)

    def test_bastions_do_not_join(self):
        bastions = self.members(self.create("bastion", 1))
        self.ready(self.create("node", 1), 1)
        self.assertEqual(bastions.keys() & nodes().keys(), set())

    def test_a_terminated_instance_loses_its_kubelet_then_its_node(self):
        group = self.create("node", 2)
        victim, other = self.ready(group, 2)
        aws("ec2").terminate_instances(InstanceIds=[victim])

        def unreachable() -> bool:
            taints = nodes()[victim]["spec"].get("taints", [])
            return any(taint["key"] == "node.kubernetes.io/unreachable" for taint in taints)

        eventually(unreachable)
        self.assertFalse(is_ready(nodes()[victim]))
        eventually(lambda: victim not in nodes())
        joined = self.ready(group, 2)
        self.assertIn(other, joined)
        # Nobody but the pod garbage collector ends a pod whose kubelet and node are gone. It looks every 20 s and acts at
        # the first look that is 40 s after the one that found it (Kubernetes 1.36 pkg/controller/podgc): up to 80 s later.
        eventually(lambda: not API.find(f"/api/v1/namespaces/kube-system/pods/kube-proxy-{victim}"))

    def test_a_detached_instance_stays(self):
        group = self.create("node", 1)
        [detached] = self.ready(group, 1)
        aws("autoscaling").detach_instances(
            InstanceIds=[detached], AutoScalingGroupName=f"{group}.{CLUSTER}", ShouldDecrementDesiredCapacity=False
        )
        self.assertIn(detached, self.ready(group, 2))
        aws("ec2").terminate_instances(InstanceIds=[detached])

    def test_a_node_that_somebody_deleted_comes_back(self):
        [name] = self.ready(self.create("node", 1), 1)
        before = nodes()[name]["metadata"]["uid"]
        API.delete(f"/api/v1/nodes/{name}")
        eventually(lambda: name in nodes() and nodes()[name]["metadata"]["uid"] != before and is_ready(nodes()[name]))


@needs_program
class Workloads(unittest.TestCase):
    """Controllers, scheduler and simulated kubelets, on nodes that belong to no instance."""

    def setUp(self):
        self.namespace = f"test-{uuid.uuid4().hex[:8]}"
        API.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.addCleanup(API.delete, f"/api/v1/namespaces/{self.namespace}")
        self.nodes = [f"{self.namespace}-{n}" for n in range(2)]
        for name in self.nodes:
            self.add_node(name)

    def add_node(self, name: str) -> None:
        API.create(
            "/api/v1/nodes",
            {
                "metadata": {
                    "name": name,
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                    "labels": {"test": self.namespace},
                },
                "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}},
            },
        )
        self.addCleanup(API.delete, f"/api/v1/nodes/{name}")

    def path(self, kind: str, group: str = "api/v1") -> str:
        return f"/{group}/namespaces/{self.namespace}/{kind}"

    def template(self, **annotations: str) -> dict:
        return {
            "metadata": {"labels": {"app": "web"}, "annotations": annotations},
            "spec": {
                "nodeSelector": {"test": self.namespace},
                "containers": [{"name": "web", "image": "registry.example.com/web"}],
            },
        }

    def deploy(self, replicas: int, **annotations: str) -> list[str]:
        selector = {"matchLabels": {"app": "web"}}
        API.create(
            self.path("deployments", "apis/apps/v1"),
            {
                "metadata": {"name": "web"},
                "spec": {"replicas": replicas, "selector": selector, "template": self.template(**annotations)},
            },
        )
        return eventually(lambda: self.ready_pods(replicas))

    def ready_pods(self, wanted: int) -> list[str]:
        pods = [p for p in API.get(self.path("pods"))["items"] if is_ready(p)]
        names = [p["metadata"]["name"] for p in pods if "deletionTimestamp" not in p["metadata"]]
        return names if len(names) == wanted else []

    def evict(self, name: str) -> int:
        try:
            API.create(
                self.path(f"pods/{name}/eviction"),
                {
                    "apiVersion": "policy/v1",
                    "kind": "Eviction",
                    "metadata": {"name": name, "namespace": self.namespace},
                },
            )
        except ApiError as error:
            self.assertEqual(error.body["details"]["causes"][0]["reason"], "DisruptionBudget", error)
            return error.status
        return 201

    def test_a_budget_refuses_until_the_replacement_is_ready(self):
        pods = self.deploy(3, **SLOW)
        API.create(
            self.path("poddisruptionbudgets", "apis/policy/v1"),
            {"metadata": {"name": "web"}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}},
        )

        def allowed() -> bool:
            budget = API.get(self.path("poddisruptionbudgets/web", "apis/policy/v1"))
            return budget.get("status", {}).get("disruptionsAllowed") == 1

        eventually(allowed)
        self.assertEqual(self.evict(pods[0]), 201)
        self.assertEqual(self.evict(pods[1]), 429)
        eventually(allowed)
        self.assertEqual(self.evict(pods[1]), 201)
        self.assertEqual(len(eventually(lambda: self.ready_pods(3))), 3)

    def test_daemons_run_on_every_node(self):
        API.create(
            self.path("daemonsets", "apis/apps/v1"),
            {
                "metadata": {"name": "agent"},
                "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": self.template()},
            },
        )
        eventually(lambda: self.ready_pods(2))
        pods = API.get(self.path("pods"))["items"]
        self.assertEqual({pod["spec"]["nodeName"] for pod in pods}, set(self.nodes))

    def test_a_pod_may_take_its_own_time(self):
        slow = self.template(**{"pod-ready.stage.kwok.x-k8s.io/delay": "1h"})
        for name, template in (("slow", slow), ("quick", self.template())):
            API.create(self.path("pods"), {**template, "metadata": {**template["metadata"], "name": name}})
        eventually(lambda: self.ready_pods(1) == ["quick"])
        self.assertEqual(API.get(self.path("pods/slow"))["status"]["phase"], "Pending")

    def test_a_cordoned_node_gets_no_pods(self):
        API.patch(f"/api/v1/nodes/{self.nodes[0]}", {"spec": {"unschedulable": True}})
        self.deploy(2)
        self.assertEqual({pod["spec"]["nodeName"] for pod in API.get(self.path("pods"))["items"]}, {self.nodes[1]})

    def test_nothing_happens_on_a_node_whose_kubelet_has_ended(self):
        pods = self.deploy(2)
        for name in self.nodes:
            eventually(lambda name=name: is_ready(nodes()[name]))
            stop_kubelet(API, name)
        alive = self.path("pods/alive")
        self.run_on_a_newer_node("alive")
        API.delete(self.path(f"pods/{pods[0]}"))
        # Deleted later, so that its kubelet is through with it later than that of the other would be.
        API.delete(alive)
        eventually(lambda: API.find(alive) is None)
        self.assertIn("deletionTimestamp", API.get(self.path(f"pods/{pods[0]}"))["metadata"])
        self.assertFalse(any(is_ready(nodes()[name]) for name in self.nodes))

    def run_on_a_newer_node(self, pod: str) -> None:
        """Returns once a pod is ready on a node that is newer than everything else.

        kwok makes a pod ready only if it has heard that it holds its node's lease itself, and it hears of leases in the
        order of their changes: by then it has heard of the kubelets that ended before, however busy the machine is.
        """
        name = f"{self.namespace}-newer"
        self.add_node(name)
        eventually(lambda: is_ready(nodes()[name]))
        body = self.template(**{"pod-ready.stage.kwok.x-k8s.io/delay": "0s"})
        body["metadata"]["name"] = pod
        body["spec"]["nodeName"] = name
        API.create(self.path("pods"), body)
        looks = itertools.count()

        def ready() -> bool:
            # What kwok passed over because it had not heard yet, it looks at again when it changes.
            API.patch(self.path(f"pods/{pod}"), {"metadata": {"annotations": {"look": str(next(looks))}}})
            return is_ready(API.get(self.path(f"pods/{pod}")))

        eventually(ready)


@needs_program
class Authentication(unittest.TestCase):
    """Who gets in, and that the authority follows the state store's."""

    def status(self, name: str, authority: str, pair: Pair) -> int:
        """The status of GET /api/v1/nodes from a client that knows the API by `name`."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / file for file in ("crt", "key")]
            for file, text in zip(files, (pair.certificate, pair.key), strict=True):
                file.write_text(text)
            context = ssl.create_default_context(cadata=authority)
            context.load_cert_chain(*files)
        port = int(REPORT["url"].rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            with context.wrap_socket(plain, server_hostname=name) as secure:
                secure.sendall(f"GET /api/v1/nodes?limit=1 HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
                return int(secure.recv(64).split()[1])

    def test_who_gets_in(self):
        own = Authority.from_keyset(Path(REPORT["keyset"]).read_text())
        self.assertEqual(own.bundle(), REPORT["ca"])
        for pair, expected in (
            (own.client("ann", "system:masters"), 200),
            (own.client("ann", "nobody"), 403),
            (Authority.create().client("ann", "system:masters"), 401),
        ):
            self.assertEqual(self.status("localhost", REPORT["ca"], pair), expected)

    def test_the_audit_log_tells_of_clients_and_not_of_the_stack_itself(self):
        own = Authority.from_keyset(Path(REPORT["keyset"]).read_text())
        self.status("localhost", REPORT["ca"], own.client("bob", "system:masters"))
        entries = [json.loads(line) for line in Path(REPORT["audit_log"]).read_text().splitlines()]
        bobs = [entry for entry in entries if entry["user"]["username"] == "bob"]
        self.assertEqual(
            [(entry["verb"], entry["objectRef"]["resource"], entry["responseStatus"]["code"]) for entry in bobs],
            [("list", "nodes", 200)],
        )
        self.assertNotIn("admin", {entry["user"]["username"] for entry in entries})

    def test_the_clusters_authority_is_taken_from_the_state_store(self):
        s3 = aws("s3")
        s3.create_bucket(Bucket=BUCKET)
        for _ in range(2):  # The second is a rotation.
            authority = Authority.create()
            s3.put_object(Bucket=BUCKET, Key=KEYSET, Body=authority.keyset().encode())
            administrator = authority.client("kubecfg-test", "system:masters")

            def accepted(authority=authority, administrator=administrator) -> bool:
                try:
                    status = self.status(REPORT["tls_server_name"], authority.bundle(), administrator)
                except ssl.SSLCertVerificationError:
                    return False
                return status == 200

            eventually(accepted)
        self.assertTrue(API.get("/api/v1/nodes"), "the stack's own clients stay in")


@needs_program
class Isolation(unittest.TestCase):
    def test_everything_listens_on_loopback_only(self):
        inodes = set()
        for pid in processes_of(SCRATCH / "home"):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(descriptor)
                except OSError:
                    continue
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
        fields = [line.split() for table in tables for line in table]
        listening = [line[1].split(":")[0] for line in fields if line[3] == "0A" and line[9] in inodes]
        self.assertGreaterEqual(len(listening), 4, "moto, etcd twice, the API")
        self.assertEqual(set(listening), {"0100007F"})


@needs_program
class Ends(unittest.TestCase):
    """A control plane of its own for each way to end it."""

    def setUp(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="stack-kubernetes-end-"))
        self.addCleanup(shutil.rmtree, self.scratch, ignore_errors=True)

    def start(self) -> tuple[subprocess.Popen, list[int]]:
        command = [sys.executable, "-m", "stack.kubernetes", "--program", PROGRAM, "--home", str(self.scratch)]
        process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        self.assertIn("kubeconfig", json.loads(process.stdout.readline()))
        tree = stack_tree(process.pid)
        self.assertEqual(len(tree), 6)
        return process, tree

    def test_stdin_closes(self):
        process, tree = self.start()
        process.stdin.close()
        self.assertEqual(process.wait(PATIENCE_SECONDS), 0)
        eventually(lambda: not any(is_alive(pid) for pid in tree), GONE_SECONDS)

    def test_sigterm(self):
        process, tree = self.start()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE_SECONDS), 0)
        eventually(lambda: not any(is_alive(pid) for pid in tree), GONE_SECONDS)

    def test_it_is_killed(self):
        process, tree = self.start()
        process.kill()
        process.wait(PATIENCE_SECONDS)
        eventually(lambda: not any(is_alive(pid) for pid in tree), GONE_SECONDS)

    def test_a_program_that_dies_ends_it(self):
        process, tree = self.start()
        os.kill(tree[1], signal.SIGKILL)
        self.assertEqual(process.wait(PATIENCE_SECONDS), 1)
        eventually(lambda: not any(is_alive(pid) for pid in tree), GONE_SECONDS)

    def test_another_program_is_refused(self):
        command = [sys.executable, "-m", "stack.kubernetes", "--program", "/bin/false", "--home", str(self.scratch)]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("/bin/false is not what tools/kubernetes/get gives", done.stderr)


@needs_program
@unittest.skipUnless(os.environ.get("STACK_LOCALSTACK_PYTHON"), "STACK_LOCALSTACK_PYTHON names no Python")
class Up(unittest.TestCase):
    """The whole stack with a Kubernetes API."""

    def test_the_report_says_how_to_get_in(self):
        scratch = Path(tempfile.mkdtemp(prefix="stack-kubernetes-up-"))
        self.addCleanup(shutil.rmtree, scratch, ignore_errors=True)
        stack = Running(scratch / "home", "--kubernetes", PROGRAM)
        try:
            report = stack.report["kubernetes"]
            files = kubernetes.Files(scratch / "home" / "kubernetes")
            self.assertEqual(files.ca_certificate.read_text(), report["ca"])
            api = Api(report["url"], files.ca_certificate, files.admin_certificate, files.admin_key)
            self.assertEqual(api.get("/version")["gitVersion"], report["version"])
            self.assertIn("kubernetes", stack.report["pids"])
            api.close()
        finally:
            self.assertEqual(stack.stop(), 0)
        self.assertEqual(processes_of(scratch / "home"), [])


@needs_program
@unittest.skipUnless(os.environ.get("STACK_LOCALSTACK_PYTHON"), "STACK_LOCALSTACK_PYTHON names no Python")
@unittest.skipUnless(os.environ.get("STACK_KOPS"), "STACK_KOPS names no kops binary")
class Kops(unittest.TestCase):
    """kops itself finds the cluster healthy, gets in with its own CA, drains and rolls."""

    def kops(self, *arguments: str) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "KOPS_STATE_STORE": f"s3://{BUCKET}",
            "KOPS_CLUSTER_NAME": CLUSTER,
            **self.stack.report["kops_env"],
        }
        command = [os.environ["STACK_KOPS"], *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=560)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_create_validate_and_roll(self):
        scratch = Path(tempfile.mkdtemp(prefix="stack-kubernetes-kops-"))
        self.addCleanup(shutil.rmtree, scratch, ignore_errors=True)
        flags = ["--kubernetes", PROGRAM, "--kubernetes-keyset", f"s3://{BUCKET}/{KEYSET}", "--bucket", BUCKET]
        demo = ["--content", str(DEMO), "--replace", "https://kops-files.example.com={files_url}"]
        self.stack = Running(scratch / "home", *flags, *demo)
        self.addCleanup(self.stack.stop)
        shown = ["git", "-C", self.stack.report["gitlab"]["repository"], "show", "main:cluster.yaml"]
        manifests = scratch / "cluster.yaml"
        manifests.write_bytes(subprocess.run(shown, capture_output=True, check=True).stdout)
        self.kops("replace", "--force", "-f", str(manifests))
        self.kops("update", "cluster", "--create-kube-config=false", "--yes")

        server = ["--api-server", self.stack.report["kubernetes"]["url"]]
        validated = self.kops("validate", "cluster", *server, "--wait", "3m", "--interval", "2s")
        self.assertIn(f"Your cluster {CLUSTER} is ready", validated)

        files = kubernetes.Files(scratch / "home" / "kubernetes")
        api = Api(
            self.stack.report["kubernetes"]["url"], files.ca_certificate, files.admin_certificate, files.admin_key
        )
        before = self.group(api, "nodes-batch")
        selector = {"matchLabels": {"app": "batch"}}
        template = {
            "metadata": {"labels": {"app": "batch"}},
            "spec": {
                "nodeSelector": {"kops.k8s.io/instancegroup": "nodes-batch"},
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "batch", "image": "registry.example.com/batch"}],
            },
        }
        api.create(
            "/apis/apps/v1/namespaces/default/deployments",
            {"metadata": {"name": "batch"}, "spec": {"replicas": 4, "selector": selector, "template": template}},
        )
        api.create(
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
            {"metadata": {"name": "batch"}, "spec": {"maxUnavailable": 1, "selector": selector}},
        )
        eventually(lambda: sum(map(is_ready, api.get("/api/v1/namespaces/default/pods")["items"])) == 4)
        rolled = self.kops(
            *("rolling-update", "cluster", *server, "--instance-group", "nodes-batch", "--force", "--yes"),
            *("--validate-count", "1", "--node-interval", "1s", "--post-drain-delay", "1s"),
        )
        self.assertIn("evicting pod default/batch-", rolled)
        # What was surged is the last to go; its node may still be there.
        eventually(lambda: len(self.group(api, "nodes-batch")) == 2)
        self.assertEqual(self.group(api, "nodes-batch") & before, set())
        api.close()

    def group(self, api: Api, name: str) -> set[str]:
        selector = f"/api/v1/nodes?labelSelector=kops.k8s.io%2Finstancegroup%3D{name}"
        return {item["metadata"]["name"] for item in api.get(selector)["items"]}


class Steps(unittest.TestCase):
    """The joiner's own order of things, on an API that is a dictionary."""

    class Fake:
        """As much of `Api` as the joiner uses."""

        def __init__(self):
            self.objects: dict[str, dict] = {}
            self.patched: list[str] = []

        def get(self, path: str) -> dict:
            if path == "/api/v1/nodes":
                return {"items": [v for k, v in self.objects.items() if k.startswith("/api/v1/nodes/")]}
            return self.objects[path]

        def ensure(self, path: str, body: dict) -> None:
            self.objects.setdefault(f"{path}/{body['metadata']['name']}", body)["metadata"].setdefault("uid", "u")

        create = ensure

        def patch(self, path: str, _: dict) -> None:
            self.patched.append(path)

        def delete(self, path: str) -> None:
            self.objects.pop(path, None)

    def test_joining_and_leaving_take_their_time(self):
        clock, api, machines = [0.0], self.Fake(), [instance()]
        joiner = Joiner(api, lambda: machines, "v1", join_seconds=3, removal_seconds=5, clock=lambda: clock[0])
        seen = []
        for now, there in ((0, True), (2, True), (3, True), (4, False), (8, False), (9, False), (10, False)):
            clock[0], machines[:] = now, [instance()] if there else []
            joiner.step()
            seen.append((len(api.get("/api/v1/nodes")["items"]), len(api.patched)))
        # Its lease and its status are patched when it is gone, once.
        self.assertEqual(seen, [(0, 0), (0, 0), (1, 0), (1, 2), (1, 2), (0, 2), (0, 2)])
        self.assertEqual(api.patched[1], f"/api/v1/nodes/{instance().id}/status")


if __name__ == "__main__":
    unittest.main()
