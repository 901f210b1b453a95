"""`python -m tools.benchmark`: see tools/bench, which prepares everything."""

import argparse
import pathlib
import tempfile
import time

from tools.benchmark import functions, planning, roll, runs, thousand, webhook
from tools.benchmark.table import Table, say
from tools.benchmark.workplace import Workplace, cluster_entry

PARTS = ["sizes", "planning", "cold", "webhook", "runs", "thousand", "roll"]
WITHOUT_STACK = {"sizes", "planning", "roll"}
WEBHOOK_CLUSTER = "webhook.example.com"


def main():
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them without")
    parser.add_argument("--rounds", type=int, default=3, help="of what is compared with bare kops (3)")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    parts = arguments.parts or PARTS
    begun, table = time.monotonic(), Table()
    if "sizes" in parts:
        functions.sizes(table)
    if "planning" in parts:
        planning.planning(table)
    if set(parts) - WITHOUT_STACK:
        _on_the_stack(table, parts, arguments.rounds)
    if "roll" in parts:
        # Each round takes some ten minutes.
        roll.roll(table, max(1, arguments.rounds // 3))
    print(table.text())
    say(f"\nbenchmark: {', '.join(parts)} in {time.monotonic() - begun:.0f} s")


def _on_the_stack(table, parts, rounds):
    names = [*runs.names(rounds), WEBHOOK_CLUSTER]
    clusters = [*map(cluster_entry, names), cluster_entry(thousand.NAME, roll="manual")]
    with tempfile.TemporaryDirectory(prefix="kopsline-bench-") as home:
        say("the local stack starts (some 15 s)")
        workplace = Workplace(pathlib.Path(home), clusters)
        try:
            if "cold" in parts:
                functions.cold_starts(table, workplace, 2 * rounds - 1)
            if "webhook" in parts:
                webhook.webhook(table, workplace, WEBHOOK_CLUSTER)
            if "runs" in parts:
                runs.runs(table, workplace, rounds)
            if "thousand" in parts:
                thousand.thousand(table, workplace, 2 * rounds - 1)
        finally:
            workplace.stop()


if __name__ == "__main__":
    main()
