"""Rolling updates of a cluster with a real Kubernetes API, through the deployed pipeline and by the command.

    STACK_KUBERNETES="$(tools/kubernetes/get)" PYTHONPATH=tests .../bin/python -m unittest -v e2e.test_roll
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from dataclasses import replace
from pathlib import Path

from stack import kubernetes
from stack.processes import descendants

from e2e import cluster
from e2e.cluster import LONELY, NAME, STUBBORN, WEB, Cluster, Machines, Witness, eventually
from e2e.harness import STATE_STORE, Stack, moment, runs_of, stage
from e2e.killer import Killer, Point
from e2e.kube_proxy import KubeProxy

PATIENCE_SECONDS = 600
LARGER = Machines("t3.large", "m6i.xlarge", "c6i.2xlarge")
NEXT_VERSION = "1.36.1"
SIZES = {**{f"control-plane-us-east-1{zone}": 1 for zone in "abc"}, "nodes-batch": 2, "nodes-general": 4}
# What an event's message says of each effect on a node, a pod or an instance; of the cloud's, by which call it is made.
_ON_NODES = re.compile(r"(?:taint|untaint|cordon|uncordon|exclude|include) node (\S+)")
_ON_PODS = re.compile(r"(evict|delete) pod (\S+)$")
_ON_CLOUD = {
    "SuspendProcesses": "suspend AZRebalance of",
    "ResumeProcesses": "resume AZRebalance of",
    "CreateTags": " as detached",
    "DetachInstances": "detach ",
    "DeregisterTargets": "deregister ",
    "RegisterTargets": " register ",
    "TerminateInstances": "terminate ",
}

# Each kind of effect on the cloud and on the cluster, before it is had and after; in the order in which they are come by.
# A step is tried four times at most, and ends with the interval after an instance.
KILLS = [
    # The first of the control plane.
    Point("Roll", "rust.* SuspendProcesses$"),
    Point("Roll", "PATCH /api/v1/nodes/.* taint", api="kubernetes"),
    Point("Roll", "rust.* TerminateInstances$", "before"),
    # The second, after the end of the first.
    Point("Roll", "rust.* ResumeProcesses$"),
    Point("Roll", "PATCH /api/v1/nodes/.* taint", "before", api="kubernetes"),
    Point("Roll", "PATCH /api/v1/nodes/.* cordon", "before", api="kubernetes"),
    # The third.
    Point("Roll", "rust.* SuspendProcesses$", "before"),
    Point("Roll", "rust.* DeregisterTargets$"),
    Point("Roll", "rust.* TerminateInstances$"),
    # Nodes that are replaced one by one.
    Point("Roll", "PATCH /api/v1/nodes/.* exclude", api="kubernetes"),
    Point("Roll", "POST .*/default/pods/queue-.*/eviction$", api="kubernetes"),
    Point("Roll", "POST .*/default/pods/queue-.*/eviction$", "before", api="kubernetes"),
    # Nodes of which some are detached first.
    Point("Roll", "rust.* CreateTags$"),
    Point("Roll", "rust.* DetachInstances$", "before"),
    Point("Roll", "rust.* DetachInstances$"),
    Point("Roll", "PATCH /api/v1/nodes/.* cordon", api="kubernetes"),
    Point("Roll", f"DELETE .*/default/pods/{STUBBORN}-", api="kubernetes"),
    Point("Roll", "rust.* PUT /kopsline-runbucket/runs/[^/]+/roll/checkpoint.json$"),
    Point("Roll", "rust.* PUT /kopsline-runbucket/roll-history/"),
]


def instances(pattern: str, events: list[dict]) -> list[str]:
    """The first group of a pattern in the messages where it is found, in order."""
    return [found[1] for event in events if (found := re.search(pattern, event["message"]))]


class OnKubernetes(unittest.TestCase):
    """A stack with a Kubernetes API, and the cluster on it."""

    @classmethod
    def setUpClass(cls):
        cls.home = Path(tempfile.mkdtemp(prefix="kopsline-roll-"))
        cls.addClassCleanup(shutil.rmtree, cls.home, True)
        content = cls.home / "content"
        content.mkdir()
        (content / "README.md").write_text("The cluster comes with the first merge.\n")
        cls.stack = Stack(cls.home / "stack", content, *cluster.stack_flags())
        cls.addClassCleanup(cls.stack.stop)
        cls.cluster = Cluster(cls.stack)

    def merge(self, manifest: str, message: str, configured: str) -> str:
        """The run of a merge of both files."""
        text = manifest.replace("https://kops-files.example.com", self.stack.places["files_url"])
        delivery = self.stack.push_files({"cluster.yaml": text, "kopsline.yaml": configured}, message)
        found = runs_of(delivery)
        self.assertTrue(found, delivery)
        return found[0]

    def create(self, manifest: str, configured: str) -> None:
        """The cluster, its nodes and its workloads."""
        record = self.ended(self.merge(manifest, "the cluster", configured))
        self.assertEqual(record["state"], "succeeded", record)
        eventually(self.cluster.check_joined)
        self.cluster.deploy()

    def ended(self, run: str, decide="approve", asked=lambda _: None) -> dict:
        """The record of a run that ended by itself, every stage of its execution too."""
        record = self.stack.follow(run, decide, asked, PATIENCE_SECONDS)
        self.stack.until_ended(run)
        return record

    def until(self, run: str, what: str, number: int = 1) -> list[dict]:
        """The history of a run when so many events of a kind have happened since."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            events = self.stack.events(run)
            if sum(event["what"] == what for event in events) >= number:
                return events
            record = self.stack.record(run)
            self.assertIsNone(record.get("ended_at"), f"{run} ended without {what}: {record}")
            time.sleep(0.3)
        raise AssertionError(f"{run}: {what} did not happen {number} times: {self.stack.record(run)}")

    def answer(self, *words: str) -> dict:
        """What a person says with the command."""
        done = self.stack.kopsline("--output", "json", *words, "--yes", "--by", "ann")
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def assert_history_explains(self, run: str, before: set[str], begun: float):
        """Each instance that went was drained before, and everything that was done to cluster and cloud is in the history."""
        events = [event for event in self.stack.events(run) if event.get("stage") == "roll"]
        effects = [event for event in events if event["what"] == "effect"]
        terminated = instances(r"terminate (\S+)$", effects)
        self.assertEqual(sorted(set(terminated)), sorted(before - set(self.cluster.running())), "instances that went")
        patterns = {"cordon": r": cordon node (\S+)$", "drained": r"(\S+) is drained$", "terminate": r": terminate (\S+)$"}
        order = {what: {} for what in patterns}
        for number, event in enumerate(events):
            for what, pattern in patterns.items():
                if found := re.search(pattern, event["message"]):
                    order[what].setdefault(found[1], number)
        for instance in terminated:
            told = [order[what].get(instance) for what in patterns]
            self.assertNotIn(None, told, f"{instance} in {events}")
            self.assertEqual(told, sorted(told), f"{instance}: {told}")
        said = [event["message"] for event in effects]
        nodes = set(instances(_ON_NODES.pattern, effects))
        pods = {f"{found[1]} {found[2]}" for text in said if (found := _ON_PODS.search(text))}
        for verb, name, status in self.cluster.audited_writes(begun):
            if verb == "patch nodes":
                self.assertIn(name, nodes, status)
            else:
                word = {"create pods/eviction": "evict", "delete pods": "delete"}[verb]
                self.assertIn(f"{word} {name}", pods, status)
        calls = {entry["action"] for entry in self.roll_calls(begun)}
        self.assertLessEqual(calls, set(_ON_CLOUD), "calls that change the cloud")
        self.assertIn("TerminateInstances", calls)
        for call in calls:
            self.assertTrue(any(_ON_CLOUD[call] in text for text in said), f"{call} is explained by none of {said}")

    def roll_calls(self, since: float) -> list[dict]:
        """What Kopsline itself, as against kops, changed in the cloud."""
        services, reads = ("ec2", "autoscaling", "elasticloadbalancing"), ("Describe", "Get", "List")
        calls = [call for call in self.stack.requests(since, time.time()) if call["agent"].startswith("aws-sdk-rust")]
        return [call for call in calls if call["service"] in services and not call["action"].startswith(reads)]


class Roll(OnKubernetes):
    """One cluster's life, in order: each test goes on from where the one before ended."""

    def configured(self, **settings) -> str:
        return cluster.configured(self.cluster.url, **settings)

    def test_1_a_merge_creates_a_cluster_whose_nodes_join(self):
        self.create(cluster.manifest(), self.configured(onStuckDrain="ask"))
        self.assertEqual(len(self.cluster.nodes()), 9)

    def test_2_a_change_of_machines_is_foreseen_asked_for_and_rolled_with_drains(self):
        before, begun = self.cluster.members(), time.time()
        workers = self.cluster.members("nodes")
        changed = cluster.manifest(LARGER)
        foreseen, drains, tainted = [], [], []

        def asked(question: dict):
            if question["gate"] == "update":
                foreseen.append(self.stack.text(f"runs/{question['run']}/forecast.txt"))
            if question["gate"] == "roll":
                self.cluster.check_clean()
            if question["gate"] == "drain":
                drains.append(question)
                tainted.extend(node for node in self.cluster.nodes().values() if "tainted" in cluster.node_marks(node))
                witness.release(STUBBORN)

        def decide(question: dict) -> str | None:
            if question["gate"] != "drain":
                return "approve"
            self.assertEqual(self.answer("answer", question["id"], "force")["outcome"], "forced")
            return None

        with Witness(self.cluster) as witness:
            run = self.merge(changed, "larger machines", self.configured(onStuckDrain="ask"))
            record = self.ended(run, decide, asked)
            self.assertEqual(record["state"], "succeeded", record)
            eventually(self.cluster.check_whole)
        self.cluster.relent()

        # The question, and its answer.
        [question] = drains
        self.assertRegex(question["summary"], rf"pod default/{STUBBORN}-\S+, whose PodDisruptionBudget default/{STUBBORN}")
        answer = self.stack.document(f"approvals/{question['id']}.json")["answer"]
        self.assertEqual((answer["decision"], answer["by"]), ("force", "ann"))
        self.assertTrue(tainted, "the whole group is tainted while one of its nodes is drained")

        # What the API saw.
        self.assertEqual(witness.violations, [])
        self.assertEqual(set(witness.gone), before)
        for name in before:
            marks = {"tainted", "cordoned"} | ({"excluded"} if name in workers else set())
            self.assertLessEqual(marks, witness.marks[name], name)
        self.assertEqual(witness.lowest[WEB], self.cluster.floors()[WEB], "evictions went to the budget's limit, not beyond")
        verbs = {(verb, status) for verb, _, status in self.cluster.audited_writes(begun)}
        self.assertIn(("create pods/eviction", 201), verbs)
        self.assertIn(("create pods/eviction", 429), verbs, "budgets refused something")
        forced = [name for verb, name, _ in self.cluster.audited_writes(begun) if verb == "delete pods"]
        self.assertTrue(forced and all(name.startswith(f"default/{STUBBORN}-") for name in forced), forced)
        self.assertEqual(self.cluster.api.find(f"/api/v1/namespaces/default/pods/{LONELY}"), None)

        # What the record says.
        self.assert_history_explains(run, before, begun)
        self.assertRegex(stage(record, "roll")["note"], r"^9 of 9 instances replaced")
        history = self.stack.document(f"roll-history/{STATE_STORE}/{NAME}.json")
        # What this roll took is remembered for forecasts.
        self.assertEqual({name: len(taken["drains"]) for name, taken in history["groups"].items()}, SIZES)
        told = json.loads(self.stack.kopsline("--output", "json", "status", run).stdout)
        answers = [(question["gate"], question["answer"]["decision"]) for question in told["approvals"]]
        self.assertEqual(answers, [("update", "approve"), ("roll", "approve"), ("drain", "force")])
        groups = {group["name"]: group for group in told["roll"]["groups"]}
        self.assertEqual({name: group["summary"]["finished"] for name, group in groups.items()}, SIZES)

        # What was foreseen before anything was applied.
        [forecast] = foreseen
        [stubborn] = set(re.findall(rf"default/{STUBBORN}-\S+", forecast))
        self.assertRegex(forecast, rf"{stubborn} can never be evicted under PodDisruptionBudget default/{STUBBORN}")
        self.assertRegex(forecast, rf"started again by nobody: default/{LONELY}")
        self.assertRegex(forecast, r"losing local storage: .*default/queue-")
        for group in ("control-plane-us-east-1a", "nodes-general", "nodes-batch"):
            self.assertRegex(forecast, rf"(?m)^{group} ")

    def test_3_a_roll_that_is_paused_resumed_and_aborted_leaves_nothing_behind(self):
        before, begun = self.cluster.members("nodes-general"), time.time()
        changed = cluster.manifest(replace(LARGER, general="m6i.2xlarge"), surge=0)
        with Witness(self.cluster) as witness:
            run = self.merge(changed, "still larger nodes", self.configured())
            for gate in ("update", "roll"):
                self.until(run, "asked", ("update", "roll").index(gate) + 1)
                self.answer("approve", f"{run}.{gate}.1")
            self.until(run, "terminated")
            self.assertEqual(self.answer("pause", run)["outcome"], "paused")
            paused = self.until_noted(run, "paused")
            gone = before - self.cluster.members("nodes-general")
            time.sleep(15)
            self.assertEqual(before - self.cluster.members("nodes-general"), gone, "nothing new is begun while it is paused")
            self.assertEqual(len(gone), len(instances(r": terminate (\S+)$", paused)))
            self.assertEqual(self.answer("resume", run)["outcome"], "resumed")
            self.until(run, "terminated", len(gone) + 1)
            self.assertEqual(self.answer("abort", run, "--comment", "enough")["outcome"], "aborted")
            record = self.ended(run)
        self.assertEqual(record["state"], "failed", record)
        self.assertRegex(record["failure"]["message"], r"aborted by ann: enough")
        left = before & self.cluster.members("nodes-general")
        self.assertTrue(0 < len(left) < len(before), f"{left} of {before}")
        eventually(self.cluster.check_joined)
        self.cluster.check_clean()
        self.assertEqual(self.cluster.detached(), set())
        eventually(self.cluster.check_workloads)
        self.assertEqual(witness.violations, [])
        self.assert_history_explains(run, before, begun)

    def until_noted(self, run: str, word: str) -> list[dict]:
        """The history of a run once its roll waits with this word in its note."""

        def look():
            note = stage(self.stack.record(run), "roll")
            self.assertEqual(note["state"], "waiting")
            self.assertIn(word, note["note"])

        eventually(look)
        return self.stack.events(run)

    def test_4_a_roll_outlives_outages_of_the_kubernetes_api(self):
        """The merge finishes what the aborted roll left; in the middle the API hangs, and later nobody listens there."""
        proxy = self.proxy()
        before = self.cluster.members("nodes-general")
        changed = cluster.manifest(replace(LARGER, general="m6i.4xlarge"))
        with Witness(self.cluster) as witness:
            run = self.merge(changed, "the largest nodes", cluster.configured(proxy.url))
            for gate in ("update", "roll"):
                self.until(run, "asked", ("update", "roll").index(gate) + 1)
                self.answer("approve", f"{run}.{gate}.1")
            self.until(run, "effect", 6)
            api = self.api_server()
            os.kill(api, signal.SIGSTOP)
            try:
                time.sleep(20)
            finally:
                os.kill(api, signal.SIGCONT)
            self.until(run, "terminated")
            proxy.stop()
            refused = time.time()
            self.until_noted(run, "Kubernetes API")
            time.sleep(20)
            began = [event for event in self.stack.events(run) if moment(event["at"]) > refused + 10 and event["what"] == "effect"]
            # What was drained before may still be terminated.
            self.assertEqual([event for event in began if "terminate" not in event["message"]], [])
            proxy.start()
            record = self.ended(run)
        self.assertEqual(record["state"], "succeeded", record)
        eventually(self.cluster.check_whole)
        self.assertEqual(witness.violations, [])
        self.assertEqual(set(witness.gone), before)

    def proxy(self) -> KubeProxy:
        """Another way to the API, which can be closed and where requests can be held."""
        proxy = KubeProxy(kubernetes.Files(self.stack.home / "kubernetes"), self.cluster.url)
        self.addCleanup(proxy.stop)
        return proxy

    def api_server(self) -> int:
        """The process of kube-apiserver."""
        below = descendants(self.stack.places["pids"]["kubernetes"])
        return next(pid for pid in below if b"kube-apiserver" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2])

    def test_5_an_interrupted_roll_from_a_shell_goes_on(self):
        before = self.cluster.members("nodes-general")
        changed = cluster.manifest(replace(LARGER, general="r6i.xlarge"))
        run = self.merge(changed, "other nodes", self.configured())
        record = self.ended(run, lambda question: {"update": "approve", "roll": "reject"}[question["gate"]])
        self.assertEqual(record["state"], "rejected", record)
        tree = self.stack.work_tree(self.home / "tree")
        roll = ["roll", NAME, "--directory", str(tree), "--state-dir", str(self.home / "rolls"), "--yes"]
        with Witness(self.cluster) as witness:
            command, environment = self.stack.kopsline_command(*roll)
            first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said = []
            for line in first.stdout:
                said.append(line)
                if " is terminated" in line:
                    break
            first.send_signal(signal.SIGINT)
            said += first.communicate(timeout=PATIENCE_SECONDS)[0].splitlines(True)
            self.assertNotEqual(first.returncode, 0)
            self.assertIn("interrupted", said[-1])
            self.assertTrue(before & self.cluster.members("nodes-general"), "it was in the middle")
            marked = {name for name, node in self.cluster.nodes().items() if cluster.node_marks(node)}
            self.assertTrue(marked, "an interrupted roll gives nothing back")
            second = self.stack.kopsline(*roll, timeout=PATIENCE_SECONDS)
            self.assertEqual(second.returncode, 0, second.stdout + second.stderr)
            self.assertIn("4 of 4 instances replaced", second.stdout)
        eventually(self.cluster.check_whole)
        self.assertEqual(witness.violations, [])
        told = "".join(said) + second.stdout + second.stderr
        self.assertEqual(set(re.findall(r": terminate (\S+)", told)), before)
        third = self.stack.kopsline(*roll)
        self.assertEqual(third.returncode, 0, third.stderr)
        self.assertEqual(self.cluster.members("nodes-general") & before, set())

    def test_6_a_minor_version_goes_to_the_control_plane_before_the_nodes(self):
        before, begun = self.cluster.members(), time.time()
        changed = cluster.manifest(replace(LARGER, general="r6i.xlarge"), version=NEXT_VERSION)
        with Witness(self.cluster) as witness:
            run = self.merge(changed, "Kubernetes 1.36", self.configured())
            record = self.ended(run)
        self.assertEqual(record["state"], "succeeded", record)
        eventually(self.cluster.check_whole)
        self.assertEqual(witness.violations, [])
        self.assert_history_explains(run, before, begun)
        # What the control plane and the nodes got, and when: kops reconcile's order.
        events = self.stack.events(run)
        self.assertEqual(
            [re.sub(r" in \d+ s", "", event["message"]) for event in events if event["what"] == "updated"],
            ["the control plane applied", "the nodes applied", "the pruning applied"],
        )
        applied = [moment(event["at"]) for event in events if event["what"] == "updated"]
        made = {"control-plane": [], "nodes": []}
        for group, created in self.newest_templates():
            made["nodes" if group.startswith("nodes") else "control-plane"].append(created)
        went = {"control-plane": [], "nodes": []}
        for event in events:
            if event["what"] == "effect" and (found := re.match(r"(control-plane|nodes)\S*: terminate ", event["message"])):
                went[found[1]].append(moment(event["at"]))
        self.assertEqual((len(went["control-plane"]), len(went["nodes"])), (3, 6))
        moments = [
            *(("control plane's template", max(made["control-plane"])), ("control plane updated", applied[0])),
            *(("control plane's first to go", min(went["control-plane"])), ("its last", max(went["control-plane"]))),
            *(("nodes' first template", min(made["nodes"])), ("nodes updated", applied[1])),
            *(("nodes' first to go", min(went["nodes"])), ("their last", max(went["nodes"])), ("pruned", applied[2])),
        ]
        # The emulated AWS tells whole seconds.
        self.assertEqual(moments, sorted(moments, key=lambda named: named[1]))
        gates = [self.stack.document(f"approvals/{approval}.json")["gate"] for approval in record["approvals"]]
        self.assertEqual(gates, ["update", "roll", "roll"])

    def newest_templates(self) -> list[tuple[str, float]]:
        """The groups, and when their newest launch template versions were made."""
        found = []
        for name, group in self.cluster.groups().items():
            versions = self.stack.ec2.describe_launch_template_versions(
                LaunchTemplateId=group["LaunchTemplate"]["LaunchTemplateId"], Versions=["$Latest"]
            )
            found.append((name, versions["LaunchTemplateVersions"][0]["CreateTime"].timestamp()))
        return found

    def test_7_the_function_that_rolls_is_killed_at_every_kind_of_effect(self):
        proxy = self.proxy()
        self.cluster.harden()
        before, begun = self.cluster.members(), time.time()
        changed = cluster.manifest(Machines("t3.xlarge", "m6i.xlarge", "c6i.4xlarge"), version=NEXT_VERSION)
        run = self.merge(changed, "other machines again", cluster.configured(proxy.url, onStuckDrain="force"))
        self.until(run, "asked")
        self.answer("approve", f"{run}.update.1")
        self.until(run, "asked", 2)
        with Witness(self.cluster) as witness:
            # It is told what to do about this one, and does it.
            witness.release(STUBBORN)
            killer = Killer(self.stack, KILLS, proxy.trap)
            killer.start()
            self.answer("approve", f"{run}.roll.1")
            record = self.ended(run)
            killer.stop()
            self.assertIsNone(killer.error, record)
            self.assertEqual(len(killer.killed), len(KILLS), killer.killed)
            eventually(self.cluster.check_whole)
        self.assertEqual(record["state"], "succeeded", record)
        self.assertRegex(stage(record, "roll")["note"], r"^9 of 9 instances replaced")
        self.assertEqual(witness.violations, [])
        self.assertEqual(set(witness.gone), before)
        launched = [i for i in self.cluster.all_instances().values() if i["LaunchTime"].timestamp() >= begun]
        self.assertEqual(len(launched), len(before), "each instance was replaced once")
        lock = self.stack.document(f"locks/{STATE_STORE}/{NAME}.json")
        self.assertFalse(lock["holder"] or lock["waiting"], lock)
        self.assertIsNotNone(self.stack.document(f"roll-history/{STATE_STORE}/{NAME}.json"))


if __name__ == "__main__":
    unittest.main()
