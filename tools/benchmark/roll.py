"""A rolling update with drains by `kopsline roll` and by kops, each on a stack of its own with a Kubernetes API."""

import os
import pathlib
import tempfile
import time

from e2e import cluster
from e2e.cluster import NAME, Cluster, Witness, eventually
from e2e.harness import STATE_STORE, Stack

from tools.benchmark.table import say, seconds
from tools.benchmark.workplace import ROOT

GENERAL, BATCH, SURGE = 16, 4, 4
_STORE = f"--state=s3://{STATE_STORE}"
# As `cluster.configured` has them, and how kops calls them.
_SETTINGS = {
    "--control-plane-interval": "9s",
    "--node-interval": "9s",
    "--post-drain-delay": "1s",
    "--validate-count": "1",
    "--drain-timeout": "3m",
}
_PATIENCE_SECONDS = 1800


class Side:
    """A cluster of three control planes and twenty nodes whose machines are all to be replaced."""

    def __init__(self, home, user):
        self.user = user
        content = home / "content"
        content.mkdir(parents=True)
        (content / "README.md").write_text("Nothing here: what is rolled lies in the state store.\n")
        self.stack = Stack(home / "stack", content, *cluster.stack_flags(), deployed=False)
        self.tree = home / "tree"
        self.tree.mkdir()

    def prepare(self):
        self.cluster = Cluster(self.stack, web=2 * GENERAL, queue=BATCH)
        (self.tree / "kopsline.yaml").write_text(cluster.configured(self.cluster.url))
        self.apply(cluster.Machines())
        eventually(self.cluster.check_joined)
        self.cluster.deploy()
        # kops would fail on it.
        self.cluster.relent()
        self.apply(cluster.Machines("t3.large", "m6i.xlarge", "c6i.2xlarge"))

    def apply(self, machines):
        path, manifest = self.tree / "cluster.yaml", cluster.manifest(machines, GENERAL, BATCH, SURGE)
        path.write_text(manifest.replace("https://kops-files.example.com", self.stack.places["files_url"]))
        self.kops("replace", "--force", "-f", str(path), _STORE)
        self.kops("update", "cluster", "--name", NAME, _STORE, "--yes", "--create-kube-config=false")

    def kops(self, *arguments):
        _well(self.stack.kops(*arguments, timeout=_PATIENCE_SECONDS))

    def roll(self):
        """By Kopsline or by kops; how long it took, and the calls it made to AWS and to Kubernetes."""
        before = self.cluster.members()
        with Witness(self.cluster) as witness:
            begun = time.time()
            if self.user == cluster.USER:
                flags = ["--directory", str(self.tree), "--state-dir", str(self.tree), "--yes"]
                _well(self.stack.kopsline("roll", NAME, *flags, timeout=_PATIENCE_SECONDS))
            else:
                flags = [word for flag in _SETTINGS.items() for word in flag]
                self.kops("rolling-update", "cluster", "--name", NAME, _STORE, "--api-server", self.cluster.url, "--yes", *flags)
            ended = time.time()
            eventually(self.cluster.check_whole)
        if witness.violations or set(witness.gone) != before:
            raise RuntimeError(f"{self.user}: {witness.violations}; {len(witness.gone)} of {len(before)} instances went")
        requests = [entry for entry in self.stack.requests(begun, ended) if not entry["agent"].startswith("Boto3/")]
        return ended - begun, len(requests), len(self.cluster.audit(begun, ended, self.user))


def _well(done):
    if done.returncode:
        raise RuntimeError(f"{done.args}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def roll(table, rounds):
    os.environ.setdefault("KOPSLINE", str(ROOT / "target/kopsline"))
    instances = 3 + GENERAL + BATCH
    say(f"roll: {rounds} times {instances} instances with a Kubernetes API, drained and replaced by Kopsline and by kops;")
    say("      what takes long is waiting for drains and intervals, some five minutes on each side")
    # kops names its users after the one who runs it.
    pairs = [tuple(_side(user) for user in (cluster.USER, "kubecfg-")) for _ in range(rounds)]
    nodes = GENERAL + BATCH
    table.heading(f"roll with drains of 3 control planes and {nodes} nodes (medians of {rounds}; same settings, same end)")
    table.compare("wall time", [(ours[0], theirs[0]) for ours, theirs in pairs], goal="at most 1.00")
    for number, what in ((1, "AWS calls"), (2, "Kubernetes calls")):
        table.compare(what, [(ours[number], theirs[number]) for ours, theirs in pairs], unit=lambda calls: f"{calls:.0f}")


def _side(user):
    with tempfile.TemporaryDirectory(prefix="kopsline-bench-roll-") as home:
        side = Side(pathlib.Path(home), user)
        try:
            side.prepare()
            measured = side.roll()
        finally:
            side.stack.stop()
    who = "Kopsline" if user == cluster.USER else "bare kops"
    say(f"      {who}: {seconds(measured[0])}, {measured[1]} calls to AWS, {measured[2]} to Kubernetes")
    return measured
