"""tools/kops/get: what it fetches, builds, keeps and refuses. curl and go are played by scripts; the rest is real."""

import hashlib
import os
import pathlib
import subprocess
import tempfile
import unittest

from tools.check_asl import ROOT

VERSION = "1.36.2"
KOPS = f"#!/bin/sh\necho Client version: {VERSION}\n"

# Copies $SERVED/<last part of the address> to what --output names; fails as curl does where there is none.
CURL = """#!/bin/sh
for address; do :; done
while [ "$1" != --output ]; do shift; done
cp "$SERVED/${address##*/}" "$2" 2>/dev/null || exit 6
echo "${address##*/}" >>"$SERVED/requests"
"""
# Writes $SERVED/built to what -o names.
GO = """#!/bin/sh
while [ "$1" != -o ]; do shift; done
cp "$SERVED/built" "$2" && echo built >>"$SERVED/requests"
"""


class Get(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = pathlib.Path(folder.name)
        self.served = self.home / "served"
        for name in ("served", "bin"):
            (self.home / name).mkdir()
        for name, text in (("curl", CURL), ("go", GO)):
            (self.home / "bin" / name).write_text(text)
            (self.home / "bin" / name).chmod(0o755)

    def serve(self, text=KOPS, checksum=None):
        (self.served / "kops").write_text(text)
        (self.served / "kops.sha256").write_text((checksum or hashlib.sha256(text.encode()).hexdigest()) + "\n")

    def get(self):
        return subprocess.run(
            [ROOT / "tools/kops/get"],
            env=os.environ
            | {
                "PATH": f"{self.home}/bin:{os.environ['PATH']}",
                "XDG_CACHE_HOME": str(self.home / "cache"),
                "SERVED": str(self.served),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    def requests(self):
        log = self.served / "requests"
        return log.read_text().split() if log.exists() else []

    def test_the_release_is_fetched_once_and_kept(self):
        self.serve()
        first, second = self.get(), self.get()
        self.assertEqual((first.returncode, second.returncode), (0, 0), first.stderr)
        self.assertEqual(first.stdout, second.stdout)
        self.assertEqual(pathlib.Path(first.stdout.strip()).read_text(), KOPS)
        self.assertEqual(self.requests(), ["kops.sha256", "kops"])

    def test_a_wrong_checksum_never_runs(self):
        self.serve(text=f"#!/bin/sh\ntouch {self.home}/ran\n", checksum="0" * 64)
        got = self.get()
        self.assertEqual((got.returncode, got.stdout), (1, ""))
        self.assertIn("does not have its published SHA-256", got.stderr)
        self.assertFalse((self.home / "ran").exists())
        self.serve()
        self.assertEqual(self.get().returncode, 0, "the refused file is in the way")

    def test_it_is_built_where_the_release_cannot_be_reached(self):
        (self.served / "built").write_text(KOPS)
        got = self.get()
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(self.requests(), ["built"])
        self.assertIn("13 minutes", got.stderr)

    def test_a_build_that_fails_is_an_error(self):
        got = self.get()
        self.assertEqual((got.returncode, got.stdout), (1, ""))
        self.assertIn("could not be built", got.stderr)

    def test_another_version_is_refused(self):
        self.serve(text="#!/bin/sh\necho Client version: 1.35.0\n")
        got = self.get()
        self.assertEqual((got.returncode, got.stdout), (1, ""))
        self.assertIn(f"is not kops {VERSION}", got.stderr)

    def test_a_kept_file_that_changed_is_fetched_anew(self):
        self.serve()
        path = pathlib.Path(self.get().stdout.strip())
        path.write_text(KOPS + "# tampered\n")
        got = self.get()
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertIn("is not what was put there", got.stderr)
        self.assertEqual(path.read_text(), KOPS)


if __name__ == "__main__":
    unittest.main()
