"""Figures and how they are shown."""

import dataclasses
import math
import statistics
import sys

_TITLES = ("", "Kopsline", "bare kops", "ratio", "goal")


def say(text):
    """Progress, kept apart from the figures."""
    print(text, file=sys.stderr, flush=True)


def percentile(values, percent):
    """The smallest value that is not below `percent` of all (the nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def median_ratio(pairs):
    """The median of the rounds' ratios: of a round both sides met the same noise, of two rounds they did not."""
    return statistics.median(ours / theirs for ours, theirs in pairs)


def seconds(value):
    return f"{value:.1f} s" if value >= 1 else milliseconds(value)


def milliseconds(value):
    return f"{value * 1000:.0f} ms" if value >= 0.1 else f"{value * 1000:.1f} ms"


def megabytes(value):
    return f"{value / 1e6:.1f} MB"


@dataclasses.dataclass
class Row:
    """One figure, with what stands beside it."""

    what: str
    ours: str
    theirs: str = ""
    ratio: str = ""
    goal: str = ""


class Table:
    """Figures in the order they were found, under headings."""

    def __init__(self):
        self._lines = []

    def heading(self, text):
        self._lines.append(text)

    def add(self, what, ours, theirs="", ratio=None, goal=""):
        self._lines.append(Row(what, str(ours), str(theirs), "" if ratio is None else f"{ratio:.2f}", goal))

    def compare(self, what, pairs, unit=seconds, goal=""):
        """A figure of several rounds, ours and theirs of each."""
        ours, theirs = (unit(statistics.median(side)) for side in zip(*pairs, strict=True))
        self.add(what, ours, theirs, median_ratio(pairs), goal)

    def text(self):
        rows = [row for row in self._lines if isinstance(row, Row)]
        cells = [dataclasses.astuple(row) for row in rows] + [_TITLES]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]

        def line(cells):
            what, ours, theirs, ratio, goal = cells
            shown = f"  {what:<{widths[0]}}  {ours:>{widths[1]}}  {theirs:>{widths[2]}}  {ratio:>{widths[3]}}  {goal}"
            return shown.rstrip()

        lines = [line(_TITLES)]
        for entry in self._lines:
            lines += [line(dataclasses.astuple(entry))] if isinstance(entry, Row) else ["", entry]
        return "\n".join(lines)
