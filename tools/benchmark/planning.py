"""What the planner costs on clusters of many nodes, in simulated time."""

import subprocess

from tools.benchmark.table import say
from tools.benchmark.workplace import ROOT


def planning(table):
    """As `target/simulate --nodes` measures it: a surge, drains and validation, each decision with a look at everything."""
    say("planning for 1,000, 3,000 and 10,000 simulated nodes (some 15 s)")
    done = subprocess.run([ROOT / "target/simulate", "--nodes"], stdout=subprocess.PIPE, text=True, check=True)
    table.heading("a decision of the planner, and the peak memory of planner and simulated cluster")
    for row in rows(done.stdout):
        decision = f"{row['a decision']}, {row['memory']}"
        table.add(f"{row['nodes']} nodes, {row['pods']} pods", decision, goal=f"linear: {row['per 1,000 nodes']} per 1,000 nodes")


def rows(text):
    """The table as dictionaries; columns are two spaces or more apart."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines() if line.strip()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
