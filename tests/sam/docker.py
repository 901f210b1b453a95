"""A Docker daemon for one test run, and a small image that stands in for Lambda's."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

IMAGE = "kopsline/provided-stand-in"
_READY_SECONDS = 30
_STOP_SECONDS = 20

# What Lambda's provided.al2023 has and a Rust binary needs; busybox for SAM's own steps.
_PACKAGES = ["libc6", "libgcc-s1", "busybox-static", "ca-certificates"]


class DockerMissing(Exception):
    """There is no Docker here, and none can be started; the message says what would help."""


class Docker:
    """The machine's own daemon if there is one, else a private one below a temporary folder."""

    def __init__(self):
        self._folder = None
        self._daemon = None
        self.host = os.environ.get("DOCKER_HOST")

    def __enter__(self) -> "Docker":
        if not shutil.which("docker"):
            raise DockerMissing("docker is not installed: run tools/setup --test")
        if not self._answers():
            self._start()
        return self

    def __exit__(self, *_) -> None:
        if self._daemon:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What makes docker and sam use this daemon."""
        return {"DOCKER_HOST": self.host} if self.host else {}

    def run(self, *arguments: str, stdin=None) -> str:
        """Runs docker; its error output is part of the error."""
        done = subprocess.run(
            ["docker", *arguments], env=os.environ | self.environment, stdin=stdin, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def bridge_address(self, image: str) -> str:
        """This machine's address as containers see it."""
        route = self.run("run", "--rm", image, "/bin/busybox", "ip", "route")
        return re.search(r"default via (\S+)", route)[1]

    def import_stand_in(self) -> str:
        """Makes the image from Debian's packages: the real one cannot be pulled behind a firewall.

        It is not Amazon Linux. Binaries that need more than glibc and libgcc show that here.
        """
        with tempfile.TemporaryDirectory(prefix="kopsline-image-") as folder:
            root = Path(folder) / "root"
            for directory in ("tmp", "var/task", "var/runtime", "var/rapid", "opt"):
                (root / directory).mkdir(parents=True)
            # apt drops its rights for a download, and would complain about a folder of root's.
            subprocess.run(
                ["apt-get", "-o", "APT::Sandbox::User=root", "download", "--quiet=2", *_PACKAGES],
                cwd=folder,
                check=True,
            )
            for package in Path(folder).glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
            shutil.rmtree(root / "usr/share/doc", ignore_errors=True)
            (root / "bin/sh").symlink_to("busybox")
            bundle = root / "etc/ssl/certs/ca-certificates.crt"
            bundle.parent.mkdir(parents=True, exist_ok=True)
            authorities = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
            bundle.write_bytes(b"".join(authority.read_bytes() for authority in authorities))
            with subprocess.Popen(["tar", "--create", "--directory", root, "."], stdout=subprocess.PIPE) as tar:
                self.run("import", "-", IMAGE, stdin=tar.stdout)
        return IMAGE

    def _answers(self) -> bool:
        done = subprocess.run(["docker", "info"], env=os.environ | self.environment, capture_output=True)
        return done.returncode == 0

    def _start(self) -> None:
        if os.geteuid() != 0 or not shutil.which("dockerd"):
            raise DockerMissing("no Docker daemon answers, and only root can start one (apt-get install docker.io iptables)")
        self._folder = tempfile.mkdtemp(prefix="kopsline-docker-")
        self.host = f"unix://{self._folder}/docker.sock"
        log = open(f"{self._folder}/dockerd.log", "wb")
        self._daemon = subprocess.Popen(
            [
                "dockerd",
                f"--data-root={self._folder}/root",
                f"--exec-root={self._folder}/exec",
                f"--pidfile={self._folder}/pid",
                f"--host={self.host}",
            ],
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                tail = Path(self._folder, "dockerd.log").read_text(errors="replace")[-2000:]
                self.__exit__()
                raise DockerMissing(f"dockerd does not start here; the end of its log:\n{tail}")
            time.sleep(0.2)
