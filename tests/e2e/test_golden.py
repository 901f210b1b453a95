"""Golden clusters of kOps' own tests come out of Kopsline as out of bare kops: registry, plan, and what is applied."""

import contextlib
import unittest

from e2e import golden

CLUSTERS = ["minimal-1.31", "minimal-1.32", "minimal-1.33", "minimal-aws", "minimal-dns-none", "minimal-etcd", "minimal-gp3", "ha"]
APPLIED = ("minimal-aws", "ha")


class Golden(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        stack = contextlib.ExitStack()
        cls.addClassCleanup(stack.close)
        cls.results, cls.deployed = stack.enter_context(golden.side_by_side(CLUSTERS, APPLIED))

    def test_1_replace_and_plan(self):
        for result in self.results:
            with self.subTest(result.golden.name):
                self.assertIsNone(result.bare.error)
                self.assertGreaterEqual(len(result.bare.registry), 4, "a cluster, two groups and a key at least")
                self.assertIn("Will create resources:", result.bare.plan)
                self.assertEqual(result.differences, [])

    def test_2_update(self):
        for result in self.results:
            if result.golden.name in APPLIED:
                with self.subTest(result.golden.name):
                    self.assertTrue(result.bare.applied["groups"])
                    self.assertEqual(self.deployed.apply(result.golden, result.record), result.bare.applied)

    def test_3_a_rejected_plan_leaves_nothing_behind(self):
        rejected = next(result for result in self.results if result.golden.name not in APPLIED)
        self.assertEqual(self.deployed.reject(rejected.record)["state"], "rejected")
        self.assertEqual(golden.keys(self.deployed.url, rejected.golden), [])


if __name__ == "__main__":
    unittest.main()
