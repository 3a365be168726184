"""What a test of a suite did, and how two ways to the same servers compare.

A difference is a test that passes directly and not through the proxy, or that fails both ways with another
output. Known ones are listed one by one, with a reason, in known-differences.txt; one that is listed and does
not happen any more is as wrong as one that is not listed, unless its reason begins with "sometimes".
"""

import os
from dataclasses import dataclass

from rig import Failure

KNOWN_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "known-differences.txt")


@dataclass
class Result:
    """One test."""

    passed: bool
    detail: str = ""
    """Why not, for a person."""
    output: str = ""
    """What it printed, where a test that fails directly too can be compared by that."""


def differences(reference, results):
    """Names of tests that differ, with the detail of the second way."""
    found = {}
    for name in {**reference, **results}:
        before, after = reference.get(name), results.get(name)
        if before is None or after is None:
            found[name] = "ran one way only"
        elif before.passed and not after.passed:
            found[name] = after.detail or "failed"
        elif not before.passed and after.passed:
            found[name] = "passes here, and fails directly"
        elif not before.passed and before.output != after.output:
            found[name] = after.detail or "fails both ways, differently"
    return found


def vanished(listed, found):
    """Listed differences that did not happen, and should have."""
    return sorted(name for name, reason in listed.items() if name not in found and not reason.startswith("sometimes"))


def known(suite):
    """The listed differences of a suite: name to reason. Lines are `suite test reason…`."""
    listed = {}
    with open(KNOWN_PATH, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or line.startswith("#"):
                continue
            words = line.split(None, 2)
            if len(words) != 3:
                raise Failure(f"{KNOWN_PATH}:{number}: a suite, a test and a reason are wanted")
            if words[0] == suite:
                listed[words[1]] = words[2].strip()
    return listed
