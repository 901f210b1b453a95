"""`kopsline roll` at a terminal: what it asks, and what ends it."""

import os
import pty
import select
import shutil
import tempfile
import time
import unittest
from pathlib import Path

from e2e.harness import ROOT, STATE_STORE, Stack

NAME = "demo.k8s.example.com"
PROMPT = "go on? [continue/abort] "
PATIENCE_SECONDS = 60
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A command that has a terminal, and the person in front of it."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, environment)
        self.said = ""

    def until(self, text: str | None) -> None:
        """Reads until a text comes that was not read before; without a text, until the end."""
        end, seen = time.monotonic() + PATIENCE_SECONDS, len(self.said)
        while text is None or text not in self.said[seen:]:
            if not select.select([self.screen], [], [], max(0, end - time.monotonic()))[0]:
                os.kill(self.pid, 9)
                raise AssertionError(f"{text!r} does not come: {self.said}")
            try:
                read = os.read(self.screen, 4096)
            except OSError:
                # What Linux says of a terminal that nobody writes to any more.
                read = b""
            if not read and text is None:
                return
            if not read:
                raise AssertionError(f"it ended without {text!r}: {self.said}")
            self.said += read.decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self.screen, keys)

    def ended(self) -> int:
        """Waits for the end, and returns the exit code."""
        self.until(None)
        os.close(self.screen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Shell(unittest.TestCase):
    """One roll that asks after the first instance of each group; each test goes on from where the one before ended."""

    @classmethod
    def setUpClass(cls):
        cls.home = Path(tempfile.mkdtemp(prefix="kopsline-shell-"))
        cls.addClassCleanup(shutil.rmtree, cls.home, True)
        cls.stack = Stack(cls.home / "stack", deployed=False)
        cls.addClassCleanup(cls.stack.stop)
        cls.tree = cls.stack.work_tree(cls.home / "tree")
        settings = cls.tree / "kopsline.yaml"
        asking = settings.read_text().replace("cloudonly: true", "cloudonly: true\n    pauseAfter: first-of-each-group")
        settings.write_text(asking)
        store = f"--state=s3://{STATE_STORE}"
        for words in (
            ["replace", "--force", "-f", str(cls.tree / "cluster.yaml"), store],
            ["update", "cluster", NAME, store, "--yes", "--create-kube-config=false"],
        ):
            done = cls.stack.kops(*words)
            if done.returncode:
                raise AssertionError(f"kops {words}: {done.stderr}")
        cls.before = cls.instances()

    @classmethod
    def instances(cls) -> set[str]:
        return set().union(*cls.stack.instances(NAME).values())

    def roll(self) -> Terminal:
        command, environment = self.stack.kopsline_command("roll", NAME, "--directory", str(self.tree), "--state-dir", str(self.home))
        terminal = Terminal([*command, "--yes", "--force"], environment | {"USER": "ann", "TERM": "xterm"})
        terminal.until(PROMPT)
        return terminal

    def test_1_a_question_is_asked_and_ctrl_c_leaves_it_open(self):
        terminal = self.roll()
        terminal.type(CTRL_C)
        self.assertEqual(terminal.ended(), 1, terminal.said)
        self.assertIn("interrupted", terminal.said)

    def test_2_the_same_command_asks_again_and_a_closed_input_leaves_it_open_too(self):
        terminal = self.roll()
        self.assertIn("with the settings of then", terminal.said)
        terminal.type(CTRL_D)
        self.assertEqual(terminal.ended(), 1, terminal.said)
        self.assertIn("there is nobody to ask", terminal.said)

    def test_3_only_a_choice_is_an_answer(self):
        left = self.before & self.instances()
        self.assertTrue(left, "a part is replaced")
        terminal = self.roll()
        terminal.type(b"perhaps\n")
        terminal.until(PROMPT)
        terminal.type(b"abort\n")
        self.assertEqual(terminal.ended(), 3, terminal.said)
        self.assertIn("ann answered question", terminal.said)
        self.assertEqual(self.before & self.instances(), left, "nothing further is replaced")
        self.assertNotIn(PROMPT, terminal.said.split("abort\r\n")[-1])


if __name__ == "__main__":
    unittest.main()
