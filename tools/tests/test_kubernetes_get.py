"""tools/kubernetes/get: what it builds, keeps and refuses. go is played by a script; the rest is real."""

import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from tools.check_asl import ROOT

VERSION = re.search(r"^\tk8s\.io/kubernetes (v\S+)$", (ROOT / "tools/kubernetes/go.mod").read_text(), re.MULTILINE)[1]
PROGRAM = f"#!/bin/sh\necho {VERSION}\n"

# Says its version, or writes $SERVED/built to what -o names.
GO = """#!/bin/sh
[ "$1" != env ] || { cat "$SERVED/version"; exit; }
echo "$@" >>"$SERVED/builds"
while [ "$1" != -o ]; do shift; done
cp "$SERVED/built" "$2" && chmod +x "$2"
"""


class Get(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = pathlib.Path(folder.name)
        self.served = self.home / "served"
        for name in ("served", "bin"):
            (self.home / name).mkdir()
        (self.home / "bin/go").write_text(GO)
        (self.home / "bin/go").chmod(0o755)
        (self.served / "version").write_text("go1.26.8\n")
        (self.served / "built").write_text(PROGRAM)

    def get(self):
        environment = os.environ | {
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "SERVED": str(self.served),
        }
        command = [ROOT / "tools/kubernetes/get"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def builds(self):
        log = self.served / "builds"
        return log.read_text().splitlines() if log.exists() else []

    def test_it_is_built_once_and_kept(self):
        first, second = self.get(), self.get()
        self.assertEqual((first.returncode, second.returncode), (0, 0), first.stderr)
        self.assertEqual(first.stdout, second.stdout)
        self.assertEqual(pathlib.Path(first.stdout.strip()).read_text(), PROGRAM)
        self.assertEqual(len(self.builds()), 1)
        self.assertIn("20 minutes of CPU time", first.stderr)
        self.assertEqual(second.stderr, "")

    def test_the_program_knows_its_version(self):
        self.assertEqual(self.get().returncode, 0)
        major, minor, _ = VERSION.removeprefix("v").split(".")
        for name, value in (("gitVersion", VERSION), ("gitMajor", major), ("gitMinor", minor)):
            self.assertIn(f"-X k8s.io/component-base/version.{name}={value} ", self.builds()[0])

    def test_another_go_builds_another_program(self):
        first = self.get()
        (self.served / "version").write_text("go1.27.0\n")
        self.assertNotEqual(first.stdout, self.get().stdout)
        self.assertEqual(len(self.builds()), 2)

    def test_a_build_that_fails_is_an_error(self):
        (self.served / "built").unlink()
        got = self.get()
        self.assertEqual((got.returncode, got.stdout), (1, ""))
        self.assertIn("could not be built", got.stderr)

    def test_another_version_is_refused(self):
        (self.served / "built").write_text("#!/bin/sh\necho v1.35.0\n")
        got = self.get()
        self.assertEqual((got.returncode, got.stdout), (1, ""))
        self.assertIn(f"is not kubernetes {VERSION}", got.stderr)

    def test_a_kept_file_that_changed_is_built_anew(self):
        path = pathlib.Path(self.get().stdout.strip())
        path.write_text(PROGRAM + "# tampered\n")
        got = self.get()
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertIn("is not what was put there", got.stderr)
        self.assertEqual((path.read_text(), len(self.builds())), (PROGRAM, 2))


if __name__ == "__main__":
    unittest.main()
