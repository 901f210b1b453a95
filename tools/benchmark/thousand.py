"""The roll preview of a cluster with 1,000 instances, beside `kops rolling-update cluster --cloudonly`."""

import datetime
import os
import re
import subprocess
import time

from tools.benchmark.runtime import Runtime
from tools.benchmark.table import megabytes, say, seconds
from tools.benchmark.workplace import DEMO, DEMO_NAME, binary

NAME = "thousand.example.com"
GROUPS, INSTANCES, CONTROL_PLANE = 10, 1000, 3
_CLOUD = ("ec2", "autoscaling")


def manifest():
    """The sample cluster with its workers in ten groups of about a hundred instances, and no bastion."""
    documents = DEMO.split("\n---\n")
    group = next(document for document in documents if "name: nodes-general" in document)
    kept = [document for document in documents if not re.search(r"name: (nodes-|bastions)", document)]
    sizes = [(INSTANCES - CONTROL_PLANE + number) // GROUPS for number in range(GROUPS)]
    for number, size in enumerate(sizes):
        text = group.replace("nodes-general", f"nodes-{number}")
        kept.append(re.sub(r"(maxSize|minSize): \d+", rf"\1: {size}", text))
    return "\n---\n".join(kept).replace(DEMO_NAME, NAME)


def thousand(table, workplace, rounds):
    say(f"{INSTANCES} instances: kops creates a cluster of {GROUPS} groups of nodes; emulated EC2 launches them one by one")
    text = workplace.manifest(manifest())
    file = workplace.home / "thousand.yaml"
    file.write_text(text)
    workplace.kops("replace", "--force", "-f", str(file))
    workplace.kops("update", "cluster", "--name", NAME, "--yes", "--create-kube-config=false")
    workplace.commit({f"{NAME}.yaml": text}, "as it is")
    say(f"{INSTANCES} instances: a run changes all nodes, and waits for its approval to roll them")
    commit = workplace.commit({f"{NAME}.yaml": text.replace("m6i.large", "m6i.xlarge")}, "larger nodes")
    workplace.empty_kops_cache()
    workplace.make_cold()
    run = workplace.push(commit)
    while "approvals" not in (record := workplace.run_record(run)) or not record["approvals"]:
        if record["state"] not in ("queued", "running"):
            raise RuntimeError(f"{run} ended as {record['state']}: {record}")
        time.sleep(0.2)
    say(f"{INSTANCES} instances: {rounds} previews by Kopsline and by bare kops, in turns")

    environment = workplace.environment("roll")
    cold, warm, bare, peaks, kops_peaks = [], [], [], [], []
    for _ in range(rounds):
        took, calls, runtime = _measured(workplace, lambda: _preview(Runtime(binary("roll"), environment), run))
        cold.append((took, calls))
        warm.append(_measured(workplace, lambda runtime=runtime: _preview(runtime, run))[:2])
        peaks.append(runtime.stop())
        took, calls, peak = _measured(workplace, lambda: _kops(workplace))
        bare.append((took, calls))
        kops_peaks.append(peak)

    table.heading("a function's first use of a kops that it does not have")
    table.add("fetched from S3 and verified", seconds(_fetch(workplace)))
    table.heading(f"roll preview at {INSTANCES} instances in {GROUPS + CONTROL_PLANE} groups (medians of {rounds})")
    for what, ours in (("process start to answer", cold), ("warm function / process", warm)):
        table.compare(what, [(a[0], b[0]) for a, b in zip(ours, bare, strict=True)])
    for what, wanted in (("AWS calls", None), ("  of them EC2 and Auto Scaling", _CLOUD)):

        def count(calls, wanted=wanted):
            return sum(1 for call in calls if wanted is None or call["service"] in wanted)

        pairs = [(count(a[1]), count(b[1])) for a, b in zip(warm, bare, strict=True)]
        table.compare(what, pairs, unit=lambda number: f"{number:.0f}")
    table.compare("peak memory", list(zip(peaks, kops_peaks, strict=True)), unit=megabytes)


def _fetch(workplace):
    """The seconds from the lock, which replace takes first, to the fetched kops."""
    moments = {"the lock of": None, "kops downloaded": None}
    for line in workplace.logged("replace"):
        for words in moments:
            if line.get("message", "").startswith(words):
                moments[words] = datetime.datetime.fromisoformat(line["timestamp"]).timestamp()
    return moments["kops downloaded"] - moments["the lock of"]


def _measured(workplace, act):
    """Seconds, calls and result of an act."""
    before, begun = workplace.calls(), time.perf_counter()
    result = act()
    return time.perf_counter() - begun, workplace.calls_since(before), result


def _preview(runtime, run):
    answer, _ = runtime.invoke({"action": "preview", "run": run})
    if answer.get("outcome") != "needed":
        raise RuntimeError(f"the roll function answered {answer}")
    return runtime


def _kops(workplace):
    """Bare kops' preview; its peak memory in bytes."""
    command = [os.environ["STACK_KOPS"], "rolling-update", "cluster", "--name", NAME, "--cloudonly"]
    log = workplace.home / "preview.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=workplace.kops_environment(), stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or "NeedsUpdate" not in log.read_text():
        raise RuntimeError(f"bare kops: {log.read_text()[-4000:]}")
    return usage.ru_maxrss * 1024
