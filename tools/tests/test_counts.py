"""tools/test adds up what its runners say, and does not take silence for success."""

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import sys
import unittest

from tools.check_asl import ROOT

loader = importlib.machinery.SourceFileLoader("tools_test", str(ROOT / "tools/test"))
spec = importlib.util.spec_from_loader(loader.name, loader)
tools_test = importlib.util.module_from_spec(spec)
# dataclasses looks the module up by its name.
sys.modules[loader.name] = tools_test
loader.exec_module(tools_test)
Counts = tools_test.Counts

CARGO = """
running 3 tests
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
"""


class Counting(unittest.TestCase):
    def run_step(self, script, count):
        step = tools_test.Step("x", "X", ["sh", "-c", script], count)
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            counts = step.run(dict(os.environ))
        return counts, shown.getvalue()

    def test_cargo(self):
        self.assertEqual(tools_test.cargo_counts(CARGO), Counts(6, 2, 1))

    def test_unittest(self):
        for text, expected in (
            ("Ran 5 tests in 1.0s\n\nOK\n", Counts(5, 0, 0)),
            ("Ran 5 tests in 1.0s\n\nOK (skipped=2)\n", Counts(3, 0, 2)),
            ("Ran 5 tests in 1.0s\n\nFAILED (failures=1, errors=1, skipped=1)\n", Counts(2, 2, 1)),
            ("Ran 1 test in 1.0s\n\nFAILED (failures=3)\n", Counts(0, 3, 0)),
        ):
            self.assertEqual(tools_test.unittest_counts(text), expected, text)

    def test_a_runner_without_tests_has_failed(self):
        counts, shown = self.run_step("echo 'Ran 0 tests in 0.0s'; echo OK", tools_test.unittest_counts)
        self.assertEqual(counts, Counts(0, 1, 0))
        self.assertIn("ran no tests", shown)

    def test_a_runner_that_dies_after_good_tests_has_failed(self):
        counts, _ = self.run_step("echo 'Ran 5 tests in 0.0s'; echo OK; exit 3", tools_test.unittest_counts)
        self.assertEqual(counts.failed, 1)

    def test_checks_hold_or_fail(self):
        self.assertEqual(self.run_step("true", None)[0], Counts())
        self.assertEqual(self.run_step("exit 2", None)[0], Counts(0, 1, 0))


if __name__ == "__main__":
    unittest.main()
