#!/usr/bin/env python3
"""Runs other people's test suites directly and through a proxy, and compares.

Usage: run.py SUITE [--way pgregent|pgbouncer|direct] [--consistency session|global|eventual]
PGREGENT names the binary (default: target/release/pgregent). Details go to target/suites/report/WAY-SUITE/.
Exit code 1: a difference that is not listed in known-differences.txt, or a listed one that did not happen.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time

import pipeline
import programs
import regress
import sessions
from outcome import differences, known, vanished
from rig import ROOT, WAYS, Failure, Rig

SUITES = {
    "regress": regress.core,
    "contrib": regress.contrib,
    "isolation": regress.isolation,
    "pipeline": pipeline.pipeline,
    "programs": programs.programs,
    "sessions": sessions.sessions,
}


def main():
    """The command line."""
    # Asked to stop, it removes what it made: nobody should have to tell such leftovers from a rig in use.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--way", choices=WAYS, default="pgregent")
    parser.add_argument("--consistency", choices=("eventual", "session", "global"), default="session")
    arguments = parser.parse_args()
    program = os.path.abspath(os.environ.get("PGREGENT") or os.path.join(ROOT, "target", "release", "pgregent"))
    if arguments.way == "pgregent" and not os.access(program, os.X_OK):
        raise Failure(f"{program} is not there: make build, or set PGREGENT")
    setup = subprocess.run([os.path.join(ROOT, "tests", "suites", "setup.sh")], check=False, stdout=subprocess.PIPE, text=True)
    if setup.returncode != 0:
        return 1
    source, tools = setup.stdout.split()
    reference = run(arguments.suite, Rig("direct", tools), source)
    if arguments.way == "direct":
        results = reference
    else:
        results = run(arguments.suite, Rig(arguments.way, tools, program, arguments.consistency), source)
    return report(arguments.suite, arguments.way, reference, results)


def run(suite, rig, source):
    """One suite on a rig of its own, results kept for people."""
    started = time.monotonic()
    with rig:
        results = SUITES[suite](rig, source)
        directory = os.path.join(ROOT, "target", "suites", "report", f"{rig.way}-{suite}")
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        for name, result in results.items():
            write(directory, name.replace("/", "-") + ".out", result.output)
            if not result.passed:
                write(directory, name.replace("/", "-") + ".diff", result.detail)
        for name in ("pg1", "pg2", "pg3", *(() if rig.way == "direct" else (rig.way,))):
            write(directory, name + ".log", rig.log(name))
    passed = sum(result.passed for result in results.values())
    print(f"{suite} {rig.way}: {passed} of {len(results)} pass, {time.monotonic() - started:.0f} s", flush=True)
    return results


def write(directory, name, text):
    """Keeps a text."""
    with open(os.path.join(directory, name), "w", encoding="utf-8", errors="replace") as file:
        file.write(text)


def report(suite, way, reference, results):
    """Prints the summary line; 0 if nothing is unexpected."""
    listed = known(suite) if way == "pgregent" else {}
    found = differences(reference, results)
    unexpected = [name for name in found if name not in listed]
    gone = vanished(listed, found)
    for name in unexpected:
        print(f"  {name}: {found[name].strip().splitlines()[0] if way == 'direct' else 'differs from direct'}")
    for name in gone:
        print(f"  {name}: listed as a known difference, but it does not differ (any more)")
    passed = sum(result.passed for name, result in results.items() if name not in found)
    expected = len(found) - len(unexpected)
    print(f"suite-{suite}: {passed} passed, {len(unexpected) + len(gone)} failed, {expected} known differences")
    return 1 if (unexpected or gone) and way != "pgbouncer" else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"suites: {failure}", file=sys.stderr)
        sys.exit(1)
