"""Each function's zip and cold start."""

import json
import os
import statistics
import tempfile
import time
import zipfile

from tools.benchmark.runtime import Runtime
from tools.benchmark.table import megabytes, milliseconds, say
from tools.benchmark.workplace import FUNCTIONS, ROOT, binary


def sizes(table):
    table.heading("zip of each function")
    for function in FUNCTIONS:
        with tempfile.TemporaryFile() as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(binary(function), "bootstrap")
            table.add(function, megabytes(file.seek(0, os.SEEK_END)), goal="at most 8 MB")


def cold_starts(table, workplace, rounds):
    """From the process's start to its first answer, with settings, secrets and clients; the answer is a refusal."""
    say(f"cold starts: {rounds} processes of each function")
    events = {function: {"run": 7} for function in FUNCTIONS}
    events["webhook"] = json.loads((ROOT / "tests/events/webhook-forged.json").read_text())
    environments = {function: workplace.environment(function) for function in FUNCTIONS}
    times = {function: [] for function in FUNCTIONS}
    peaks = {function: 0 for function in FUNCTIONS}
    for _ in range(rounds):
        for function in FUNCTIONS:
            begun = time.perf_counter()
            runtime = Runtime(binary(function), environments[function])
            runtime.invoke(events[function])
            times[function].append(time.perf_counter() - begun)
            peaks[function] = max(peaks[function], runtime.stop())
    table.heading(f"cold start to the first answer (median of {rounds})")
    for function in FUNCTIONS:
        table.add(function, milliseconds(statistics.median(times[function])))
    table.heading("memory of each function after its cold start")
    for function in FUNCTIONS:
        table.add(function, megabytes(peaks[function]))
