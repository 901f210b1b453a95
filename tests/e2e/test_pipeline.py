"""The whole pipeline, for real: the functions' binaries, the state machines, and kops, on the local stack."""

import json
import re
import shutil
import tempfile
import time
import unittest
from pathlib import Path

from e2e import plans
from e2e.harness import STATE_STORE, Stack, changes_something, moment, runs_of, stage

CLUSTER = "demo.k8s.example.com"


def note(record: dict, name: str) -> str:
    return stage(record, name)["note"]


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

    def assert_only_the_update_writes(self, record: dict, asked: float):
        """From the begin of the plan until a person answers nothing is written; the same log shows the update's writes."""
        self.assertEqual(self.stack.writes(moment(stage(record, "plan")["started_at"]), asked), [])
        update = stage(record, "update")
        written = self.stack.writes(moment(update["started_at"]), moment(update["ended_at"]))
        for service in ("s3", "ec2"):
            self.assertTrue(any(line.startswith(service) for line in written), f"{service}: {written}")

    def test_1_a_merge_creates_the_cluster(self):
        asked = []
        record = self.stack.follow(self.run_of(self.stack.deliver_head()), asked=lambda _: asked.append(time.time()))
        self.assertEqual(record["state"], "succeeded", record)
        self.assert_only_the_update_writes(record, asked[0])
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

    def plan_of_a_working_tree(self, manifest: str) -> dict:
        """What `kopsline plan` says of it, having written nothing at all, not even to the run bucket."""
        tree = self.stack.work_tree(self.home / "tree")
        (tree / "cluster.yaml").write_text(manifest)
        begun = time.time()
        done = self.stack.kopsline("--output", "json", "plan", "--directory", str(tree), "--detailed-exitcode")
        self.assertEqual(done.returncode, 3, done.stderr)
        received = [entry for entry in self.stack.requests(begun, time.time()) if not entry["agent"].startswith("Boto3/")]
        self.assertTrue(any(entry["action"] == "DescribeAutoScalingGroups" for entry in received), "kops looked at the cloud")
        self.assertEqual([entry for entry in received if changes_something(entry)], [])
        [planned] = json.loads(done.stdout)
        return planned

    def test_3_a_change_is_planned_applied_and_rolled(self):
        before, changed = self.stack.instances(), self.stack.manifest().replace("t3.medium", "t3.large")
        working_tree = self.plan_of_a_working_tree(changed)
        asked, bare = [], []

        def look(question: dict):
            asked.append(time.time())
            if question["gate"] == "update":
                bare.append(self.stack.dry_run(CLUSTER))

        record = self.stack.follow(self.run_of(self.stack.push(changed, "larger machines")), asked=look)
        self.assertEqual(record["state"], "succeeded", record)
        self.assert_only_the_update_writes(record, asked[0])
        # The registry had the change by then, so that bare kops shows what it, or anybody, would do now.
        plan = self.stack.document(f"runs/{record['id']}/plan.json")
        self.assertEqual(plan["inputs"]["dry_run"], plans.digest(bare[0]), "the plan is what bare kops prints, to the last secret")
        self.assertEqual(plans.differences(self.stack.text(f"runs/{record['id']}/plan.txt"), bare[0]), [])
        self.assertEqual(working_tree["plan"], plan["plan"], "a plan before the merge is the plan after it")
        self.assertIn("to modify", note(record, "plan"))
        replaced = int(re.match(r"(\d+) of \1 instances replaced", note(record, "roll"))[1])
        after = self.stack.instances()
        self.assertEqual(sum(len(before[name] - after[name]) for name in before), replaced)
        self.assertEqual({name: len(ids) for name, ids in before.items()}, {name: len(ids) for name, ids in after.items()})
        page = self.stack.s3.get_object(Bucket=self.stack.bucket, Key=f"runs/{record['id']}/index.html")["Body"].read().decode()
        self.assertIn("larger machines", page)

    def test_4_a_rejected_plan_leaves_the_state_store_as_it_was(self):
        before = self.stack.registry(CLUSTER)
        record = self.stack.follow(self.run_of(self.stack.push(self.stack.manifest().replace("t3.large", "t3.xlarge"), "too large")), "reject")
        self.assertEqual(record["state"], "rejected", record)
        self.assertEqual(self.stack.registry(CLUSTER), before)

    def test_5_a_misspelled_field_is_refused_before_anything_is_written(self):
        before, begun = self.stack.registry(CLUSTER), time.time()
        good = self.stack.manifest()
        record = self.stack.follow(self.run_of(self.stack.push(good.replace("machineType", "machineTipe"), "typo")))
        self.assertEqual((record["state"], record["failure"]["kind"]), ("failed", "bad-input"), record)
        self.assertRegex(record["failure"]["message"], r"^cluster\.yaml:\d+: kops does not know the field spec\.machineTipe")
        self.assertEqual(self.stack.registry(CLUSTER), before)
        self.assertEqual(self.stack.writes(begun, time.time()), [])

    def test_6_of_two_merges_at_once_the_cluster_ends_at_the_newer(self):
        good = self.stack.manifest().replace("machineTipe", "machineType").replace("t3.xlarge", "t3.large")
        first = self.run_of(self.stack.push(good.replace("t3.large", "m5.large"), "first of two"))
        second = self.run_of(self.stack.push(good.replace("t3.large", "m5.xlarge"), "second of two"))
        older, newer = self.stack.follow(first), self.stack.follow(second)
        self.assertIn(older["state"], ("succeeded", "superseded"), older)
        self.assertEqual(newer["state"], "succeeded", newer)
        keys = [key for key in self.stack.registry(CLUSTER) if "control-plane" in key]
        for key in keys:
            text = self.stack.s3.get_object(Bucket=STATE_STORE, Key=key)["Body"].read().decode()
            self.assertIn("m5.xlarge", text)


if __name__ == "__main__":
    unittest.main()
