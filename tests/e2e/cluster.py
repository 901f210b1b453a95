"""A cluster with a real Kubernetes API on the local stack: what it is made of, what runs in it, and what must hold."""

import datetime
import json
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from stack import kubernetes
from stack.kube_api import Api, ApiError

from e2e.harness import KOPS_VERSION, ROOT, STATE_STORE, Stack

NAME = kubernetes.DEFAULT_CLUSTER
PATIENCE_SECONDS = 300
TAINT = "kops.k8s.io/scheduled-for-update"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
DETACHED = "kops.k8s.io/detached-from-asg"
USER = "kubecfg-kopsline"
"""Kopsline's name in the API's audit log."""
STUBBORN = "stubborn"
"""The workload whose budget never allows an eviction."""
WEB, QUEUE = "web", "queue"
_NEVER = {"maxUnavailable": 0}
DAEMON = "agent"
LONELY = "lonely"
"""A pod that nothing starts again."""
# Emulated machines join within some seconds; a validation that comes before costs half a minute.
_SETTINGS = {
    "controlPlaneInterval": "9s",
    "nodeInterval": "9s",
    "bastionInterval": "1s",
    "postDrainDelay": "1s",
    "validateCount": 1,
    "drainTimeout": "3m",
}


def stack_flags(cluster: str = NAME) -> list[str]:
    """For `stack up`: with a Kubernetes API whose authority is the cluster's, as soon as kops has made it."""
    keyset = f"s3://{STATE_STORE}/{cluster}/pki/private/kubernetes-ca/keyset.yaml"
    return ["--kubernetes", os.environ["STACK_KUBERNETES"], "--kubernetes-cluster", cluster, "--kubernetes-keyset", keyset]


@dataclass(frozen=True)
class Machines:
    """Machine types by group."""

    control_plane: str = "t3.medium"
    general: str = "m6i.large"
    batch: str = "c6i.xlarge"


def manifest(machines: Machines = Machines(), general: int = 4, batch: int = 2, surge: int = 2, version: str | None = None) -> str:
    """The sample cluster without its bastion, and with so many nodes."""
    documents = yaml.safe_load_all((ROOT / "tests/fixtures/demo/cluster.yaml").read_text())
    kept = [document for document in documents if document["spec"].get("role") != "Bastion"]
    if version:
        kept[0]["spec"]["kubernetesVersion"] = version
    groups = {document["metadata"]["name"]: document["spec"] for document in kept[1:]}
    for name, spec in groups.items():
        if name.startswith("control-plane"):
            spec["machineType"] = machines.control_plane
    sizes = {"minSize": general, "maxSize": 2 * general}
    groups["nodes-general"] |= {**sizes, "machineType": machines.general, "rollingUpdate": {"maxSurge": surge}}
    groups["nodes-batch"] |= {"minSize": batch, "maxSize": 2 * batch, "machineType": machines.batch}
    return yaml.safe_dump_all(kept)


def configured(api_server: str, approvals: dict | None = None, **settings) -> str:
    """`kopsline.yaml` of the cluster; `settings` are of its `rollingUpdate`."""
    entry = {
        "name": NAME,
        "stateStore": f"s3://{STATE_STORE}",
        "region": "us-east-1",
        "kops": {"version": KOPS_VERSION},
        "sources": ["cluster.yaml"],
        "approvals": {"timeout": "1h", **(approvals or {})},
        "rollingUpdate": {"apiServer": api_server, **_SETTINGS, **settings},
    }
    return yaml.safe_dump({"version": 1, "clusters": [entry]})


def is_ready(item: dict) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_healthy(pod: dict) -> bool:
    """As the disruption controller counts pods."""
    return is_ready(pod) and "deletionTimestamp" not in pod["metadata"]


def app(pod: dict) -> str:
    return pod["metadata"].get("labels", {}).get("app", "")


def eventually(look, patience: float = PATIENCE_SECONDS):
    """What `look` returns when it finds nothing to object to: it raises `AssertionError` until then."""
    until = time.monotonic() + patience
    while True:
        try:
            return look()
        except AssertionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


class Cluster:
    """The cluster as its API and its cloud show it, and what the tests put into it."""

    def __init__(self, stack: Stack, web: int = 4, queue: int = 2):
        self.stack = stack
        self.replicas = {WEB: web, QUEUE: queue, STUBBORN: 1}
        self.budgets = {WEB: {"maxUnavailable": max(1, web // 4)}, QUEUE: {"minAvailable": queue - 1}, STUBBORN: _NEVER}
        self.url = stack.places["kubernetes"]["url"]
        files = kubernetes.Files(stack.home / "kubernetes")
        self.api = Api(self.url, files.ca_certificate, files.admin_certificate, files.admin_key)

    # --- Workloads ---

    def deploy(self) -> None:
        """Everything, and waits until it runs."""
        spread = {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}
        selector = {"labelSelector": {"matchLabels": {"app": WEB}}}
        self._deployment(WEB, {"topologySpreadConstraints": [spread | selector]})
        scratch = {"volumes": [{"name": "scratch", "emptyDir": {}}]}
        batch = {
            "nodeSelector": {"example.com/pool": "batch"},
            "tolerations": [{"key": "example.com/pool", "operator": "Exists"}],
        }
        self._deployment(QUEUE, scratch | batch)
        self._deployment(STUBBORN, {})
        for name, budget in self.budgets.items():
            self._budget(name, budget)
        self.api.create("/api/v1/namespaces/default/pods", {"metadata": {"name": LONELY}, "spec": self._spec(LONELY, scratch)})
        everywhere = {"tolerations": [{"operator": "Exists"}]}
        self._create("apis/apps/v1", "daemonsets", DAEMON, self._selected(DAEMON, everywhere))
        eventually(self.check_workloads)

    def _deployment(self, name: str, spec: dict) -> None:
        self._create("apis/apps/v1", "deployments", name, {"replicas": self.replicas[name], **self._selected(name, spec)})

    def _budget(self, name: str, spec: dict) -> None:
        selector = {"selector": {"matchLabels": {"app": name}}}
        self._create("apis/policy/v1", "poddisruptionbudgets", name, spec | selector)

    def _create(self, group: str, kind: str, name: str, spec: dict) -> None:
        self.api.create(f"/{group}/namespaces/default/{kind}", {"metadata": {"name": name}, "spec": spec})

    def _selected(self, name: str, spec: dict) -> dict:
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": self._spec(name, spec)}
        return {"selector": {"matchLabels": labels}, "template": template}

    @staticmethod
    def _spec(name: str, spec: dict) -> dict:
        return {"containers": [{"name": name, "image": f"registry.example.com/{name}"}], **spec}

    def harden(self) -> None:
        """Puts the budget that never allows anything back."""
        self.budgets[STUBBORN] = _NEVER
        self._budget(STUBBORN, _NEVER)

    def relent(self) -> None:
        """Takes it away."""
        self.budgets.pop(STUBBORN)
        self.api.delete(f"/apis/policy/v1/namespaces/default/poddisruptionbudgets/{STUBBORN}")

    def floors(self) -> dict[str, int]:
        """How many healthy pods the budgets ask for."""
        return {name: b.get("minAvailable", self.replicas[name] - b.get("maxUnavailable", 0)) for name, b in self.budgets.items()}

    # --- What is there ---

    def nodes(self) -> dict[str, dict]:
        """The nodes by name, which is their instance's id."""
        return {item["metadata"]["name"]: item for item in self.api.get("/api/v1/nodes")["items"]}

    def pods(self, name: str) -> list[dict]:
        return self.api.get(f"/api/v1/namespaces/default/pods?labelSelector=app%3D{name}")["items"]

    def groups(self) -> dict[str, dict]:
        """The Auto Scaling groups, by their instance groups."""
        found = self.stack.groups.describe_auto_scaling_groups()["AutoScalingGroups"]
        named = {group["AutoScalingGroupName"]: group for group in found if group["AutoScalingGroupName"].endswith(NAME)}
        return {re.sub(r"(\.masters)?\." + re.escape(NAME), "", name): group for name, group in named.items()}

    def members(self, only: str = "") -> set[str]:
        """Ids of the instances in the groups, or in those whose names begin so."""
        return {i["InstanceId"] for name, group in self.groups().items() if name.startswith(only) for i in group["Instances"]}

    def all_instances(self) -> dict[str, dict]:
        """All that the cluster ever had, by id."""
        filters = [{"Name": "tag:KubernetesCluster", "Values": [NAME]}]
        found = self.stack.ec2.describe_instances(Filters=filters)["Reservations"]
        return {i["InstanceId"]: i for reservation in found for i in reservation["Instances"]}

    def running(self) -> dict[str, dict]:
        """Those that run, detached ones included."""
        return {id: i for id, i in self.all_instances().items() if i["State"]["Name"] == "running"}

    def detached(self) -> set[str]:
        return {id for id, i in self.running().items() if any(tag["Key"] == DETACHED for tag in i.get("Tags", []))}

    def targets(self) -> dict[str, set[str]]:
        """Who is registered with each target group."""
        elb = self.stack.client("elbv2")
        arns = [group["TargetGroupArn"] for group in elb.describe_target_groups()["TargetGroups"]]
        health = {arn: elb.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"] for arn in arns}
        return {arn: {description["Target"]["Id"] for description in found} for arn, found in health.items()}

    # --- What must hold; each raises an AssertionError ---

    def check_joined(self) -> None:
        """Every instance of a group, and no other one, is a node that is ready."""
        nodes, members = self.nodes(), self.members()
        _equal(set(nodes), members, "nodes and members")
        _equal({name for name, node in nodes.items() if not is_ready(node)}, set(), "nodes that are not ready")

    def check_clean(self) -> None:
        """No node bears a mark of a roll, and no group has a process suspended."""
        marks = {name: found for name, node in self.nodes().items() if (found := node_marks(node))}
        _equal(marks, {}, "marks of the roll")
        suspended = {name: group["SuspendedProcesses"] for name, group in self.groups().items() if group["SuspendedProcesses"]}
        _equal(suspended, {}, "suspended processes")

    def check_rolled(self) -> None:
        """Every instance was launched from its group's newest template; nothing runs beside the groups."""
        newest = {
            template["LaunchTemplateId"]: str(template["LatestVersionNumber"])
            for template in self.stack.ec2.describe_launch_templates()["LaunchTemplates"]
        }
        old = {
            i["InstanceId"]: (name, i["LaunchTemplate"]["Version"])
            for name, group in self.groups().items()
            for i in group["Instances"]
            if i["LaunchTemplate"]["Version"] != newest[i["LaunchTemplate"]["LaunchTemplateId"]]
        }
        _equal(old, {}, "instances of an old template")
        for name, group in self.groups().items():
            _equal(len(group["Instances"]), group["DesiredCapacity"], f"instances of {name}")
        _equal(set(self.running()), self.members(), "running instances and members")
        control_plane = self.members("control-plane")
        for arn, registered in self.targets().items():
            _equal(registered, control_plane, f"targets of {arn}")

    def check_workloads(self) -> None:
        """Everything runs as it was asked for, and the daemon set on every node."""
        for name, replicas in self.replicas.items():
            _equal(sum(map(is_healthy, self.pods(name))), replicas, f"healthy pods of {name}")
        nodes = set(self.nodes())
        # The pod of a node that is gone is there for another minute.
        daemons = {pod["spec"].get("nodeName") for pod in self.pods(DAEMON) if is_healthy(pod)} & nodes
        _equal(daemons, nodes, f"nodes with {DAEMON}")

    def check_whole(self) -> None:
        """All of it."""
        self.check_rolled()
        self.check_joined()
        self.check_clean()
        self.check_workloads()

    # --- What Kopsline did, as the other side tells it ---

    def audit(self, since: float, until: float | None = None, user: str = USER) -> list[dict]:
        """What a user, or those whose names begin so, asked the API for between two moments (seconds since the epoch)."""
        lines = Path(self.stack.places["kubernetes"]["audit_log"]).read_text().splitlines()
        entries = [json.loads(line) for line in lines if user in line]
        asked = [entry for entry in entries if entry["user"]["username"].startswith(user)]
        return [entry for entry in asked if since <= _moment(entry) <= (until or time.time())]

    def audited_writes(self, since: float, until: float | None = None) -> list[tuple[str, str, int]]:
        """What Kopsline changed or tried to: verb and resource, the object, and the answer's status."""
        writes = [entry for entry in self.audit(since, until) if entry["verb"] not in ("get", "list", "watch")]
        return [_told(entry) for entry in writes]


def node_marks(node: dict) -> set[str]:
    """What a roll left on a node."""
    keys, labels = {taint["key"] for taint in node["spec"].get("taints", [])}, node["metadata"]["labels"]
    found = {
        "tainted": TAINT in keys,
        "cordoned": node["spec"].get("unschedulable"),
        # kOps always keeps its control plane out of such load balancers.
        "excluded": EXCLUDED in labels and CONTROL_PLANE not in labels,
    }
    return {mark for mark, there in found.items() if there}


def _told(entry: dict) -> tuple[str, str, int]:
    of = entry["objectRef"]
    kind = "/".join(filter(None, [of["resource"], of.get("subresource")]))
    name = "/".join(filter(None, [of.get("namespace"), of["name"]]))
    return f"{entry['verb']} {kind}", name, entry["responseStatus"]["code"]


def _moment(entry: dict) -> float:
    return datetime.datetime.fromisoformat(entry["requestReceivedTimestamp"]).timestamp()


def _equal(found, wanted, what: str) -> None:
    if found != wanted:
        raise AssertionError(f"{what}: {found} is not {wanted}")


class Witness:
    """Watches pods and nodes without a gap, and notes what must not happen."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.violations: list[str] = []
        """Budgets that did not have what they ask for, and pods that were not drained from a node whose instance went."""
        self.marks: dict[str, set[str]] = {}
        """What each node bore at any time."""
        self.gone: list[str] = []
        """The nodes whose instances went, in order."""
        self.lowest: dict[str, int] = {}
        self._ready: set[str] = set()
        self._floors = cluster.floors()
        self._pods: dict[str, dict] = {}
        self._nodes: dict[str, dict] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watches = [
            threading.Thread(target=self._follow, args=arguments, daemon=True)
            for arguments in (
                ("/api/v1/namespaces/default/pods", self._pods, self._see_pods),
                ("/api/v1/nodes", self._nodes, self._see_node),
            )
        ]

    def __enter__(self):
        for watch in self._watches:
            watch.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()

    def release(self, name: str) -> None:
        """From now on nobody minds a workload's budget: somebody said to override it."""
        with self._lock:
            self._floors.pop(name, None)

    def _follow(self, path: str, known: dict, see) -> None:
        version = None
        while not self._stopped.is_set():
            try:
                if version is None:
                    version = self._list(path, known, see)
                for event in self.cluster.api.watch(path, version):
                    if event["type"] == "ERROR":
                        version = None
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    with self._lock:
                        self._take(event, known, see)
                    if self._stopped.is_set():
                        return
            except (OSError, ApiError, ValueError):
                # Whoever stopped the API wants to see what comes of it. The version says where to go on.
                time.sleep(0.2)

    def _list(self, path: str, known: dict, see) -> str:
        listed = self.cluster.api.get(path)
        with self._lock:
            known.clear()
            known |= {item["metadata"]["uid"]: item for item in listed["items"]}
            for item in listed["items"]:
                see(item)
        return listed["metadata"]["resourceVersion"]

    @staticmethod
    def _take(event: dict, known: dict, see) -> None:
        item = event["object"]
        if event["type"] == "DELETED":
            known.pop(item["metadata"]["uid"], None)
        else:
            known[item["metadata"]["uid"]] = item
        see(item)

    def _see_pods(self, pod: dict) -> None:
        name = app(pod)
        if name not in self.cluster.replicas:
            return
        healthy = sum(is_healthy(other) for other in self._pods.values() if app(other) == name)
        self.lowest[name] = min(healthy, self.lowest.get(name, healthy))
        if healthy < self._floors.get(name, 0):
            self.violations.append(f"{name} has {healthy} healthy pods, {pod['metadata']['name']} was the last to change")

    def _see_node(self, node: dict) -> None:
        name = node["metadata"]["name"]
        self.marks.setdefault(name, set()).update(node_marks(node))
        if is_ready(node):
            self._ready.add(name)
        elif name in self._ready and name not in self.gone:
            self.gone.append(name)
            there = [pod for pod in self._pods.values() if pod["spec"].get("nodeName") == name and app(pod) != DAEMON]
            if there:
                self.violations.append(f"node {name} went with {[pod['metadata']['name'] for pod in there]} on it")
