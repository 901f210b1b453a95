"""Every function killed in the middle of its work, many times over: the end is that of a cluster whose functions lived.

Two clusters of one shape take the same two merges, a creation and a change with a roll, one undisturbed. Where the other
one's functions die is exact, since the emulated AWS holds the request in which they do (see `stack.trap`).
"""

import json
import shutil
import tempfile
import unittest
from pathlib import Path

import yaml

from e2e.harness import ROOT, STATE_STORE, Stack, runs_of
from e2e.killer import Killer, Point

CALM, STORMY = "calm.k8s.example.com", "stormy.k8s.example.com"
RUNS = "/kopsline-runbucket/runs/[^/]+"

# In the order in which they are come by; a stage is tried four times at most.
CREATION = [
    Point("Webhook", f"rust.* PUT {RUNS}/run.json$"),
    Point("Replace", "rust.* PUT /kopsline-runbucket/locks/"),
    Point("Replace", f"rust.* PUT {RUNS}/journal.json$"),
    Point("Replace", f"rust.* PUT /{STATE_STORE}/.*/instancegroup/"),
    Point("Plan", "go.* DescribeSecurityGroups$|go.* DescribeSubnets$"),
    Point("Plan", f"rust.* PUT {RUNS}/plan.json$"),
    Point("Console", "rust.* PUT /kopsline-runbucket/tokens/"),
    Point("Update", f"rust.* PUT {RUNS}/events/.*update-begun"),
    Point("Update", "go.* CreateLaunchTemplate$"),
    Point("Update", "go.* CreateAutoScalingGroup$", "before"),
    Point("Console", f"rust.* PUT {RUNS}/index.html$", "before"),
]
CHANGE = [
    Point("Webhook", "rust.* PUT /kopsline-runbucket/deliveries/", "before"),
    Point("Replace", f"rust.* PUT /{STATE_STORE}/", "before"),
    Point("Replace", f"rust.* PUT {RUNS}/events/.*replaced"),
    # The question is the first of its kind, the answer the second.
    Point("Console", "rust.* PUT /kopsline-runbucket/approvals/", skip=1),
    Point("Update", "go.* CreateLaunchTemplateVersion$"),
    Point("Update", f"rust.* PUT {RUNS}/update.txt$"),
    Point("Roll", f"rust.* PUT {RUNS}/roll/preview.json$"),
    Point("Console", "rust.* PUT /kopsline-runbucket/approvals/", "before"),
    Point("Roll", f"rust.* PUT {RUNS}/roll/checkpoint.json$"),
    Point("Roll", "rust.* TerminateInstances$"),
    Point("Roll", "rust.* TerminateInstances$", "before"),
    Point("Console", f"rust.* PUT {RUNS}/events/.*succeeded"),
]


def manifest(cluster: str) -> str:
    """The sample cluster with one machine of the control plane and one group of nodes."""
    documents = list(yaml.safe_load_all((ROOT / "tests/fixtures/demo/cluster.yaml").read_text()))
    spec = documents[0]["spec"]
    for etcd in spec["etcdClusters"]:
        del etcd["etcdMembers"][1:]
    spec["subnets"] = [subnet for subnet in spec["subnets"] if subnet["zone"] == "us-east-1a"]
    groups = {document["metadata"]["name"]: document for document in documents[1:]}
    nodes = groups["nodes-general"]
    nodes["spec"] |= {"minSize": 2, "subnets": ["us-east-1a"]}
    text = yaml.safe_dump_all([documents[0], groups["control-plane-us-east-1a"], nodes])
    return text.replace("demo.k8s.example.com", cluster)


def configured(cluster: str) -> dict:
    [config] = yaml.safe_load((ROOT / "tests/fixtures/demo/kopsline.yaml").read_text())["clusters"]
    return config | {"name": cluster, "sources": [f"{cluster}.yaml"]}


class Kill(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Path(tempfile.mkdtemp(prefix="kopsline-kill-"))
        cls.addClassCleanup(shutil.rmtree, cls.home, True)
        content = cls.home / "content"
        content.mkdir()
        file = {"version": 1, "clusters": [configured(CALM), configured(STORMY)]}
        (content / "kopsline.yaml").write_text(yaml.safe_dump(file))
        cls.stack = Stack(cls.home / "stack", content)
        cls.addClassCleanup(cls.stack.stop)

    def merge(self, cluster: str, change=lambda text: text) -> dict:
        """The record of the run of a merge. A delivery that fails is sent again with the same id, as GitLab does."""
        files_url = self.stack.places["files_url"]
        text = change(manifest(cluster)).replace("https://kops-files.example.com", files_url)
        pushed = self.stack.push(text, "a merge", f"{cluster}.yaml")
        delivery, again = pushed["delivery"], {"project": self.stack.places["gitlab"]["project"]}
        for _ in range(3):
            if delivery["status"] == 202:
                break
            again |= {"ref": pushed["ref"], "before": pushed["before"], "after": pushed["after"], "webhook_id": delivery["webhook_id"]}
            delivery = self.stack.control("/_control/push", again)
        [run] = runs_of(delivery)
        self.stack.follow(run)
        # The record's end is not yet the run's: lock, page and commit status come after it.
        self.stack.until_ended(run)
        return self.stack.record(run)

    def left(self, cluster: str, record: dict) -> dict:
        """What a merge left behind, without names and times."""
        registry = self.stack.objects(cluster)
        for value in registry.values():
            value["metadata"].pop("creationTimestamp", None)
        groups = self.stack.groups.describe_auto_scaling_groups()["AutoScalingGroups"]
        own = [group for group in groups if group["AutoScalingGroupName"].endswith(f".{cluster}")]
        questions = [self.stack.document(f"approvals/{approval}.json") for approval in record["approvals"]]
        lock = self.stack.document(f"locks/{STATE_STORE}/{cluster}.json")
        templates = {
            template["LaunchTemplateName"]: template["LatestVersionNumber"]
            for template in self.stack.ec2.describe_launch_templates()["LaunchTemplates"]
            if template["LaunchTemplateName"].endswith(f".{cluster}")
        }
        executions = self.stack.sfn.list_executions(stateMachineArn=self.stack.machine["pipeline"])["executions"]
        left = {
            "record": (record["state"], [(stage["stage"], stage["state"]) for stage in record["stages"]], record.get("failure")),
            "executions": sorted(e["status"] for e in executions if e["name"] == record["id"]),
            "questions": [(q["gate"], q["answer"]["decision"], q["answer"]["by"], q["withdrawn"]) for q in questions],
            "lock": (lock["holder"], lock["waiting"], lock["fence"]),
            "registry": registry,
            "groups": {g["AutoScalingGroupName"]: self.members(g) for g in own},
            "templates": templates,
            "plan": self.stack.dry_run(cluster),
        }
        return json.loads(json.dumps(left).replace(cluster, "CLUSTER"))

    @staticmethod
    def members(group: dict) -> list:
        instances = group["Instances"]
        versions = sorted(instance["LaunchTemplate"]["Version"] for instance in instances)
        return [group["MinSize"], group["MaxSize"], group["DesiredCapacity"], group.get("TargetGroupARNs") != [], versions]

    def through(self, points: list[Point], change=lambda text: text):
        calm = self.left(CALM, self.merge(CALM, change))
        self.assertEqual(calm["record"][0], "succeeded", calm)
        killer = Killer(self.stack, points)
        killer.start()
        record = self.merge(STORMY, change)
        killer.stop()
        self.assertIsNone(killer.error, record)
        self.assertEqual(len(killer.killed), len(points), killer.killed)
        self.assertEqual(self.left(STORMY, record), calm)
        return calm

    def test_1_a_creation(self):
        calm = self.through(CREATION)
        self.assertEqual(calm["plan"], "No changes need to be applied\n")
        self.assertEqual([gate for gate, *_ in calm["questions"]], ["update"])

    def test_2_a_change_and_its_roll(self):
        calm = self.through(CHANGE, lambda text: text.replace("t3.medium", "t3.large").replace("m6i.large", "m6i.xlarge"))
        self.assertEqual([gate for gate, *_ in calm["questions"]], ["update", "roll"])
        for group, (*_, versions) in calm["groups"].items():
            self.assertEqual(set(versions), {"2"}, f"{group} was rolled")


if __name__ == "__main__":
    unittest.main()
