"""`kopsline roll` at a terminal: what it asks, and what ends it."""

import contextlib
import os
import pty
import select
import shutil
import socket
import tempfile
import threading
import time
import unittest
from pathlib import Path
from urllib.parse import urlsplit

from e2e.harness import STATE_STORE, Stack
from sam.forward import pump

NAME = "demo.k8s.example.com"
PROMPT = "go on? [continue/abort] "
PATIENCE_SECONDS = 300
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


class Road:
    """The way to the emulated AWS, which can be closed."""

    def __init__(self, url: str):
        self._there, self._open = urlsplit(url), []
        self._gate = socket.create_server(("127.0.0.1", 0))
        self._address = self._gate.getsockname()
        self.url = f"http://{self._address[0]}:{self._address[1]}"

    def open(self) -> None:
        """Lets in who waits already, and who comes."""
        if self._gate.fileno() < 0:
            self._gate = socket.create_server(self._address)
        threading.Thread(target=self._let_in, args=[self._gate], daemon=True).start()

    def close(self) -> None:
        """Refuses connections from now on, and breaks those that are there."""
        for end in (self._gate, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _let_in(self, gate):
        with contextlib.suppress(OSError):
            while True:
                here, _ = gate.accept()
                there = socket.create_connection((self._there.hostname, self._there.port))
                self._open += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()


class Shell(unittest.TestCase):
    """One roll that asks after the first instance of each group; each test goes on from where the one before ended."""

    @classmethod
    def setUpClass(cls):
        cls.home = Path(tempfile.mkdtemp(prefix="kopsline-shell-"))
        cls.addClassCleanup(shutil.rmtree, cls.home, True)
        cls.stack = Stack(cls.home / "stack", deployed=False)
        cls.addClassCleanup(cls.stack.stop)
        cls.tree = cls.stack.work_tree(cls.home / "tree")
        cls.settings = (cls.tree / "kopsline.yaml").read_text()
        cls.configure("pauseAfter: first-of-each-group")
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
    def configure(cls, *more: str) -> None:
        """Writes the cluster's settings, with these beside what the tests of all have."""
        lines = "".join(f"\n    {line}" for line in more)
        (cls.tree / "kopsline.yaml").write_text(cls.settings.replace("cloudonly: true", f"cloudonly: true{lines}"))

    @classmethod
    def instances(cls) -> set[str]:
        return set().union(*cls.stack.instances(NAME).values())

    def roll(self, **environment: str) -> Terminal:
        command, usual = self.stack.kopsline_command("roll", NAME, "--directory", str(self.tree), "--state-dir", str(self.home))
        return Terminal([*command, "--yes", "--force"], usual | {"USER": "ann", "TERM": "xterm"} | environment)

    def test_1_a_question_is_asked_and_ctrl_c_leaves_it_open(self):
        terminal = self.roll()
        terminal.until(PROMPT)
        terminal.type(CTRL_C)
        self.assertEqual(terminal.ended(), 1, terminal.said)
        self.assertIn("interrupted", terminal.said)

    def test_2_the_same_command_asks_again_and_a_closed_input_leaves_it_open_too(self):
        terminal = self.roll()
        terminal.until(PROMPT)
        self.assertIn("with the settings of then", terminal.said)
        terminal.type(CTRL_D)
        self.assertEqual(terminal.ended(), 1, terminal.said)
        self.assertIn("there is nobody to ask", terminal.said)

    def test_3_only_a_choice_is_an_answer(self):
        left = self.before & self.instances()
        self.assertTrue(left, "a part is replaced")
        terminal = self.roll()
        terminal.until(PROMPT)
        terminal.type(b"perhaps\n")
        terminal.until(PROMPT)
        terminal.type(b"abort\n")
        self.assertEqual(terminal.ended(), 3, terminal.said)
        self.assertIn("ann answered question", terminal.said)
        self.assertEqual(self.before & self.instances(), left, "nothing further is replaced")
        self.assertNotIn(PROMPT, terminal.said.split("abort\r\n")[-1])

    def test_4_an_outage_of_aws_is_outlived(self):
        road = Road(self.stack.places["aws_url"])
        self.addCleanup(road.close)
        # Begun before there are threads, which a fork must not have beside it.
        terminal = self.roll(AWS_ENDPOINT_URL=road.url)
        road.open()
        terminal.until(" is terminated")
        road.close()
        terminal.until("tries again in ")
        road.open()
        terminal.until(PROMPT)
        terminal.type(b"abort\n")
        self.assertEqual(terminal.ended(), 3, terminal.said)

    def test_5_a_question_that_nobody_answers_in_time_answers_itself(self):
        self.configure("pauseAfter: first-of-each-group", "pauseFor: 5s")
        terminal = self.roll()
        terminal.until(PROMPT)
        terminal.until("nobody has answered in time")
        self.assertEqual(terminal.ended(), 0, terminal.said)
        self.assertEqual(self.before & self.instances(), set(), "everything is replaced")


if __name__ == "__main__":
    unittest.main()
