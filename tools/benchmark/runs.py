"""Whole runs with automatic approvals, beside a script of the five kops commands that they stand for."""

import datetime
import os
import pathlib
import statistics
import subprocess
import time

from tools.benchmark.runtime import peak_memory
from tools.benchmark.table import megabytes, say, seconds
from tools.benchmark.workplace import DEMO, DEMO_NAME, FUNCTIONS, INTERVALS

STAGES = ["replace", "plan", "update", "roll-preview", "roll"]
_INTERVAL_FLAGS = " ".join(f"--{role}-interval {interval}s" for role, interval in INTERVALS.items())
# What a CI job runs today. The log has each command's end, in seconds.
_SCRIPT = f"""set -eu
kops replace --force -f "$MANIFEST"; echo "$EPOCHREALTIME" >&3
kops update cluster --name "$NAME"; echo "$EPOCHREALTIME" >&3
kops update cluster --name "$NAME" --yes --create-kube-config=false; echo "$EPOCHREALTIME" >&3
kops rolling-update cluster --name "$NAME" --cloudonly; echo "$EPOCHREALTIME" >&3
kops rolling-update cluster --name "$NAME" --cloudonly --yes {_INTERVAL_FLAGS}; echo "$EPOCHREALTIME" >&3
"""
PHASES = {
    "creation": lambda manifest: manifest,
    # Three control-plane instances and three nodes are replaced, one after the other.
    "change and roll": lambda manifest: manifest.replace("t3.medium", "t3.large").replace("m6i.large", "m6i.xlarge"),
}


def names(rounds):
    """The clusters that Kopsline runs, one a round."""
    return [f"ours-{number}.example.com" for number in range(rounds)]


class Measured:
    """One run or script: the whole, its parts, and the AWS calls it made."""

    def __init__(self, whole, parts, calls):
        self.whole, self.parts, self.calls = whole, parts, calls


def runs(table, workplace, rounds):
    say(f"runs: {rounds} rounds of creating, changing and rolling a cluster by Kopsline and by bare kops, in turns;")
    say("      what takes long is kops against emulated AWS, and the intervals between instances")
    found = {phase: [] for phase in PHASES}
    kops_peak = 0
    workplace.fill_kops_cache()
    for number, ours in enumerate(names(rounds)):
        theirs = ours.replace("ours", "bare")
        for phase, change in PHASES.items():
            text = workplace.manifest(change(DEMO))

            def run(text=text, phase=phase, ours=ours):
                return _run(workplace, ours, text, phase)

            def script(text=text, theirs=theirs):
                nonlocal kops_peak
                measured, peak = _script(workplace, theirs, text)
                kops_peak = max(kops_peak, peak)
                return measured

            # A merge comes after hours, to functions that are cold.
            workplace.make_cold()
            if number % 2:
                bare, kopsline = script(), run()
            else:
                kopsline, bare = run(), script()
            found[phase].append((kopsline, bare))
            say(f"      round {number + 1}, {phase}: Kopsline {seconds(kopsline.whole)}, bare kops {seconds(bare.whole)}")
    for phase, pairs in found.items():
        _report(table, f"{phase} (medians of {rounds}; functions cold, kops in their cache)", pairs)
    table.heading("peak memory in these runs, without and of kops")
    for function, peak in _peaks(workplace).items():
        table.add(function, megabytes(peak))
    table.add("kops, run by replace, plan and update", "", megabytes(kops_peak))


def _report(table, heading, pairs):
    table.heading(heading)
    wholes = [(ours.whole, theirs.whole) for ours, theirs in pairs]
    table.compare("signed push to finished run / script", wholes, goal="at most 1.00")
    for stage in STAGES:
        both = [(ours.parts[stage], theirs.parts[stage]) for ours, theirs in pairs if stage in ours.parts]
        if both:
            table.compare(f"  {stage}", both)
    between = statistics.median(ours.whole - sum(ours.parts.values()) for ours, _ in pairs)
    table.add("  before, between and after the stages", seconds(between))
    table.compare("  AWS calls", [(ours.calls, theirs.calls) for ours, theirs in pairs], unit=lambda calls: f"{calls:.0f}")


def _run(workplace, name, text, phase):
    commit = workplace.commit({f"{name}.yaml": text.replace(DEMO_NAME, name)}, f"{phase} of {name}")
    calls, begun = workplace.calls(), time.time()
    record = workplace.finished(workplace.push(commit))
    whole = time.time() - begun

    def moment(text):
        return datetime.datetime.fromisoformat(text).timestamp()

    parts = {s["stage"]: moment(s["ended_at"]) - moment(s["started_at"]) for s in record["stages"] if s.get("ended_at")}
    return Measured(whole, parts, workplace.calls() - calls)


def _script(workplace, name, text):
    """Runs the script; also the peak memory of its kops processes in bytes."""
    manifest = pathlib.Path(workplace.home, f"{name}.yaml")
    manifest.write_text(text.replace(DEMO_NAME, name))
    environment = workplace.kops_environment() | {"MANIFEST": str(manifest), "NAME": name}
    tools = pathlib.Path(workplace.home, "bin")
    tools.mkdir(exist_ok=True)
    if not (tools / "kops").exists():
        (tools / "kops").symlink_to(os.environ["STACK_KOPS"])
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    log, marks = pathlib.Path(workplace.home, "script.log"), pathlib.Path(workplace.home, "script.marks")
    calls, begun = workplace.calls(), time.time()
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec 3>{marks}; {_SCRIPT}"], env=environment, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
    whole = time.time() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"bare kops: {log.read_text()[-4000:]}")
    ends = [begun, *map(float, marks.read_text().split())]
    parts = {stage: end - before for stage, before, end in zip(STAGES, ends[:-1], ends[1:], strict=True)}
    return Measured(whole, parts, workplace.calls() - calls), usage.ru_maxrss * 1024


def _peaks(workplace):
    """The peak memory of the stack's living function processes in bytes, by function."""
    home = f"HOME={workplace.home / 'stack'}".encode()
    peaks = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            name = next(v for v in variables if v.startswith(b"AWS_LAMBDA_FUNCTION_NAME=")).decode().lower()
            if home not in variables:
                continue
            function = next(function for function in FUNCTIONS if function in name)
            peaks[function] = max(peaks.get(function, 0), peak_memory(folder.name))
        except (OSError, StopIteration):
            continue
    return {function: peaks[function] for function in FUNCTIONS if function in peaks}
