"""What makes instances into Nodes: their kubelets, kOps' node labels and static pods, and the cloud controller manager."""

import datetime
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stack.kube_api import NOT_FOUND, Api, ApiError

SIMULATED = {"kwok.x-k8s.io/node": "fake"}
"""The annotation of Nodes that kwok plays the kubelet of."""
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
"""The static pods that validation wants on every control-plane node (kOps 1.36 pkg/validation/validate_cluster.go)."""
_LABEL_TAG = "k8s.io/cluster-autoscaler/node-template/label/"
"""From these tags kOps labels Nodes (kOps 1.36 pkg/nodeidentity/aws/identify.go)."""
_TAINT_TAG = "k8s.io/cluster-autoscaler/node-template/taint/"
_ROLE_TAG = "k8s.io/role/"
_GROUP_TAG = "kops.k8s.io/instancegroup"
_STOPPED = "nobody"
"""Holds the leases of kubelets that have ended, so that kwok does not go on for them."""


@dataclass(frozen=True)
class Instance:
    """A running EC2 instance of a cluster."""

    id: str
    zone: str
    machine_type: str
    address: str
    host_name: str
    tags: dict[str, str] = field(hash=False)

    @property
    def role(self) -> str:
        """`control-plane`, `node`, `apiserver` or `bastion`, from the tag that kOps puts there."""
        return next((tag.removeprefix(_ROLE_TAG) for tag in self.tags if tag.startswith(_ROLE_TAG)), "node")

    @property
    def group(self) -> str:
        """The instance group."""
        return self.tags.get(_GROUP_TAG, "")


def running_instances(ec2, cluster: str) -> list[Instance]:
    """The cluster's running instances, detached ones included. `ec2` is a client of boto3."""
    filters = {"tag:KubernetesCluster": cluster, "instance-state-name": "running"}
    pages = ec2.get_paginator("describe_instances").paginate(
        Filters=[{"Name": name, "Values": [value]} for name, value in filters.items()]
    )
    described = [i for page in pages for reservation in page["Reservations"] for i in reservation["Instances"]]
    instances = (
        Instance(
            id=instance["InstanceId"],
            zone=instance["Placement"]["AvailabilityZone"],
            machine_type=instance["InstanceType"],
            address=instance.get("PrivateIpAddress", ""),
            host_name=instance.get("PrivateDnsName", ""),
            tags={tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])},
        )
        for instance in described
    )
    return [instance for instance in instances if instance.group]


def node(instance: Instance, version: str) -> dict:
    """The Node that the instance's kubelet would register."""
    return {
        "metadata": {"name": instance.id, "labels": _labels(instance), "annotations": SIMULATED},
        "spec": {"providerID": f"aws:///{instance.zone}/{instance.id}", "taints": _taints(instance)},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": instance.address},
                {"type": "Hostname", "address": instance.id},
                {"type": "InternalDNS", "address": instance.host_name},
            ],
            "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
            "allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110"},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.8.0",
                "kubeProxyVersion": version,
                "kubeletVersion": version,
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "Ubuntu 24.04 LTS",
                "systemUUID": "",
            },
        },
    }


def _labels(instance: Instance) -> dict[str, str]:
    tagged = {tag.removeprefix(_LABEL_TAG): v for tag, v in instance.tags.items() if tag.startswith(_LABEL_TAG)}
    roles = {"apiserver": "api-server"}
    return {
        "kubernetes.io/hostname": instance.id,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": instance.machine_type,
        "topology.kubernetes.io/region": instance.zone[:-1],
        "topology.kubernetes.io/zone": instance.zone,
        "kops.k8s.io/instancegroup": instance.group,
        f"node-role.kubernetes.io/{roles.get(instance.role, instance.role)}": "",
        **tagged,
    }


def _taints(instance: Instance) -> list[dict]:
    taints = []
    for tag, text in instance.tags.items():
        if tag.startswith(_TAINT_TAG):
            value, _, effect = text.rpartition(":")
            taints.append({"key": tag.removeprefix(_TAINT_TAG), "effect": effect, **({"value": value} if value else {})})
    if instance.role == "control-plane":
        taints.append({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"})
    return taints


def static_pods(instance: Instance, registered: dict) -> list[dict]:
    """The images of the static pods on an instance, as its kubelet shows them to the API."""
    names = ["kube-proxy", *(CONTROL_PLANE if instance.role == "control-plane" else [])]
    return [_static_pod(name, instance.id, registered) for name in names]


def _static_pod(name: str, node_name: str, registered: dict) -> dict:
    digest = hashlib.sha256(f"{name} {node_name}".encode()).hexdigest()[:32]
    owner = {"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": registered["metadata"]["uid"]}
    return {
        "metadata": {
            "name": f"{name}-{node_name}",
            "namespace": "kube-system",
            "labels": {"k8s-app": name},
            "annotations": {"kubernetes.io/config.mirror": digest, "kubernetes.io/config.source": "file"},
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": {
            "nodeName": node_name,
            "hostNetwork": True,
            "priorityClassName": "system-node-critical" if name == "kube-proxy" else "system-cluster-critical",
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": name, "image": f"registry.k8s.io/{name}"}],
        },
    }


def stop_kubelet(api: Api, name: str) -> None:
    """Ends a simulated kubelet: nothing happens on the Node any more, and it is not ready.

    The node lifecycle controller would find that out after the grace period; it is said at once, because grace
    periods are long here, so that a busy machine does not make Nodes unready.
    """
    _hold_lease(api, name, _STOPPED)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    api.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [condition]}})


def _hold_lease(api: Api, name: str, holder: str) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 10**6, "renewTime": now}
    try:
        api.patch(f"{leases}/{name}", {"spec": spec})
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        api.create(leases, {"metadata": {"name": name}, "spec": spec})


@dataclass
class Joiner:
    """Lets instances join, and takes the Nodes of those that are gone away. Call `step` again and again."""

    api: Api
    instances: Callable[[], list[Instance]]
    version: str
    join_seconds: float
    removal_seconds: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, float] = field(default_factory=dict)
    _gone: dict[str, float] = field(default_factory=dict)
    _complete: set[str] = field(default_factory=set)

    def step(self) -> None:
        """One look at both sides."""
        now = self.clock()
        machines = {i.id: i for i in self.instances() if i.role != "bastion"}
        nodes = {n["metadata"]["name"]: n for n in self.api.get("/api/v1/nodes")["items"] if _is_of_an_instance(n)}
        self._seen = {id: self._seen.get(id, now) for id in machines}
        self._gone = {name: since for name, since in self._gone.items() if name in nodes}
        self._complete &= nodes.keys()
        for id, machine in machines.items():
            if id not in self._complete and now - self._seen[id] >= self.join_seconds:
                self._join(machine)
        for name in nodes.keys() - machines.keys():
            self._leave(name, now)

    def _join(self, instance: Instance) -> None:
        """May be repeated: somebody may have deleted the Node, or the last attempt ended half-way."""
        self.api.ensure("/api/v1/nodes", node(instance, self.version))
        registered = self.api.get(f"/api/v1/nodes/{instance.id}")
        for pod in static_pods(instance, registered):
            self.api.ensure("/api/v1/namespaces/kube-system/pods", pod)
        self._complete.add(instance.id)

    def _leave(self, name: str, now: float) -> None:
        if name not in self._gone:
            stop_kubelet(self.api, name)
            self._gone[name] = now
        elif now - self._gone[name] >= self.removal_seconds:
            # As the cloud controller manager does once the instance does not exist any more.
            self.api.delete(f"/api/v1/nodes/{name}")


def _is_of_an_instance(node: dict) -> bool:
    simulated = SIMULATED.items() <= node["metadata"].get("annotations", {}).items()
    return simulated and node["spec"].get("providerID", "").startswith("aws:///")
