#!/usr/bin/env python3
"""Runs drivers' own test suites directly and through the proxy, and compares test by test.

Usage: drivers.py [SUITE...] [--way pgregent|pgbouncer|direct]; without SUITE all of them, one after the other.
PGREGENT names the binary (default: target/release/pgregent). The suites come from package registries at run time,
into target/suites/drivers; nothing of them is kept in this repository. Each way has a cluster of its own, so no
run finds what another left. What fails directly, or through the proxy only, is run a second time, alone, since
many of these tests measure time: what passes then has passed, and is named.

Exit code 1: a test passed one way only and is not listed in known-differences.txt, or a listed one does not differ.
"""

import argparse
import os
import sys
import time

import driver_suites
import rig as rigs
from outcome import differences, known, vanished
from rig import ROOT, WAYS, Failure, Rig

# Drivers' tests expect a server that knows Unicode.
rigs.INITDB_OPTIONS = ("--locale=C.UTF-8", "-E", "UTF8")
NAMES_SHOWN = 40


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(driver_suites.SUITES))
    parser.add_argument("--way", choices=WAYS, default="pgregent")
    arguments = parser.parse_args()
    strange = set(arguments.suites) - set(driver_suites.SUITES)
    if strange:
        raise Failure(f"no such suite: {', '.join(strange)}; there are {', '.join(driver_suites.SUITES)}")
    program = os.path.abspath(os.environ.get("PGREGENT") or os.path.join(ROOT, "target", "release", "pgregent"))
    if arguments.way == "pgregent" and not os.access(program, os.X_OK):
        raise Failure(f"{program} is not there: make build, or set PGREGENT")
    return max(attempt(name, arguments.way, program) for name in arguments.suites or driver_suites.SUITES)


def attempt(name, way, program):
    """One suite; that it cannot run is told and does not keep the others from running."""
    try:
        return compare(driver_suites.SUITES[name](name), way, program)
    except Failure as failure:
        print(f"suite-{name}: could not run: {failure}", flush=True)
        return 1


def compare(suite, way, program):
    """One suite both ways; 0 if nothing is unexpected."""
    suite.prepare()
    reference = run(suite, "direct", program)
    results = run(suite, way, program, reference) if way != "direct" else reference
    return report(suite.name, way, reference, results)


def run(suite, way, program, reference=None):
    """One suite on a cluster of its own: test name to `Result`."""
    started = time.monotonic()
    tools = os.environ.get("PGREGENT_PG_BIN", "/usr/lib/postgresql/15/bin")
    with Rig(way, tools, program) as rig:
        suite.make_databases(rig)
        results = suite.run(rig)
        if not any(result.passed for result in results.values()):
            raise Failure(f"{suite.name} {way}: no test passed, see {suite.place}")
        second_chance(suite, rig, reference, results)
        with open(suite.path(f"{way}.proxy.log"), "w", encoding="utf-8") as file:
            file.write("" if way == "direct" else rig.log(way))
    passed = sum(result.passed for result in results.values())
    print(f"{suite.name} {way}: {passed} of {len(results)} pass, {time.monotonic() - started:.0f} s", flush=True)
    return results


def second_chance(suite, rig, reference, results):
    """Runs again what failed (here only, if there is a reference, and is not expected to); keeps what passes."""
    listed = known(suite.name)
    names = results if reference is None else [name for name in differences(reference, results) if name not in listed]
    again = [name for name in names if name in results and not results[name].passed]
    for name, result in suite.again(rig, again).items():
        if result.passed and name in results:
            print(f"  {name}: passed at the second try")
            results[name] = result


def report(name, way, reference, results):
    """Prints the summary; 0 if nothing is unexpected."""
    listed = known(name) if way == "pgregent" else {}
    found = differences(reference, results)
    new = sorted(test for test in found if test not in listed)
    gone = vanished(listed, found)
    for test in new[:NAMES_SHOWN]:
        print(f"  {test}: {first_line(found[test])}")
    if len(new) > NAMES_SHOWN:
        print(f"  and {len(new) - NAMES_SHOWN} more")
    for test in gone:
        print(f"  {test}: listed as a known difference, but it does not differ (any more)")
    passed = sum(result.passed for result in results.values())
    both = sum(not result.passed and test not in found for test, result in results.items())
    print(
        f"suite-{name}{'' if way == 'pgregent' else ' (' + way + ')'}: {passed} passed, {both} failed directly too, "
        f"{len(found) - len(new)} known differences, {len(new)} new differences",
        flush=True,
    )
    return 1 if (new or gone) and way == "pgregent" else 0


def first_line(text):
    """The beginning of a text, for a list."""
    lines = text.strip().splitlines() or [""]
    return lines[0][:160]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"suites: {failure}", file=sys.stderr)
        sys.exit(1)
