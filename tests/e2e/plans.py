"""Comparing what kops prints: it prints one and the same plan in another order every time."""

import collections
import hashlib
import itertools
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# `  <20 columns of nothing><tab><marker> <line>`: a line of a diff (kOps 1.36 upup/pkg/fi/dryrun_target.go).
_DIFF = re.compile(r"^  \t {20}\t(?:([+-]) |  |\.\.\.$|$)(.*)")
_FIELD = re.compile(r"^  \t(\S+) *(?:\t|$)")
_SECTIONS = ("Will create", "Will modify", "Items will be deleted", "No changes need")
_HIDDEN = "<redacted sha256:"


def digest(text: str) -> str:
    """The SHA-256 of a plan's normal form, as an approval is for it."""
    return hashlib.sha256(normal_form(text).encode()).hexdigest()


def normal_form(text: str) -> str:
    """Kopsline's own normal form of a text of kops."""
    command = ["cargo", "run", "--quiet", "--locked", "--package", "kopsline-plan", "--example", "normal-form"]
    return subprocess.run(command, input=text, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def differences(shown: str, printed: str) -> list[str]:
    """Where a plan as Kopsline shows it is not what kops printed; what is hidden from people aside.

    Found out here without any of Kopsline's code, so that it can disagree: a line's parts are sorted, since maps come in
    any order; of a diff the lines count that are only on one side, since it may be coarser or finer.
    """
    ours, theirs = _fields(shown), _fields(printed)
    hidden = {place for place, lines in ours.items() if place[1] == "UserData" or any(_HIDDEN in line for line in lines)}
    places = sorted(set(ours) | set(theirs))
    return [f"{place}: {ours.get(place)} is not {theirs.get(place)}" for place in places if _differs(place, ours, theirs, hidden)]


def _differs(place: tuple[str, str], ours: dict, theirs: dict, hidden: set) -> bool:
    return (place in ours) != (place in theirs) if place in hidden else ours.get(place) != theirs.get(place)


def _fields(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """The lines of a plan by resource and field; how often each is there or, in a diff, is added (less than 0: removed)."""
    found: dict[tuple[str, str], collections.Counter] = collections.defaultdict(collections.Counter)
    resource = field = ""
    # Banners, with advice for the person at the desk, come before the plan.
    lines = itertools.dropwhile(lambda line: not line.startswith(_SECTIONS), text.splitlines())
    for line in lines:
        if not line.strip():
            continue
        if diff := _DIFF.match(line):
            marker, content = diff.groups()
            if marker and content.strip():
                found[resource, field][content] += 1 if marker == "+" else -1
            continue
        if named := _FIELD.match(line):
            field = named[1]
        elif not line.startswith("  \t"):
            resource, field = line.strip(), ""
        found[resource, field][",".join(sorted(filter(None, re.split(r"[,{}\[\]\s]+", line))))] += 1
    return {place: {line: count for line, count in lines.items() if count} for place, lines in found.items()}
