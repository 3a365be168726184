"""PostgreSQL's regression suites through a way: pg_regress with the core schedule, contrib's, and isolation's.

Tests of a group run at the same time in one database, as in `make installcheck-parallel`. A test passed when its
output is one of the expected ones; its detail is then empty, else what differs. Results of a test that fails
directly as well are compared by their text (`Result.output`).
"""

import os
import re
import shutil

from outcome import Result
from rig import SUPERUSER, Failure

TIMEOUT_S = 3000.0
TEST_TIMEOUT_S = 600
"""One test that hangs must not take the others along: its client is ended."""
LINE = re.compile(r"^(?:test)?\s*(\S+)\s+\.\.\. (ok|FAILED|failed)\b", re.MULTILINE)
CONTRIB = ("pgcrypto", "hstore", "ltree", "citext", "cube", "seg", "tablefunc", "dblink", "postgres_fdw")
"""Contrib modules whose own tests run: types, functions, and the two that connect back to the server."""


def core(rig, source):
    """The core regression suite, whole."""
    home = _copy(rig, os.path.join(source, "src", "test", "regress"), "regress")
    library = os.path.join(source, "src", "test", "regress", "regress.so")
    for path in (library, *(os.path.join(_libdir(rig), name) for name in ("refint.so", "autoinc.so"))):
        rig.own(shutil.copy(path, home))
    return _pg_regress(rig, "regress", home, ["--dlpath", home, "--max-concurrent-tests=20", "--schedule", f"{home}/parallel_schedule"])


def contrib(rig, source):
    """The suites of contrib modules, each in a database of its own. Names are module/test."""
    results = {}
    for module in CONTRIB:
        origin = os.path.join(source, "contrib", module)
        home = _copy(rig, origin, module)
        tests = _makefile_words(os.path.join(origin, "Makefile"), "REGRESS")
        rig.own(shutil.copy(os.path.join(source, "src", "test", "regress", "regress.so"), home))
        part = _pg_regress(rig, "regress", home, [f"--dlpath={home}", f"--dbname=contrib_{module}", *tests])
        results.update({f"{module}/{name}": result for name, result in part.items()})
    return results


def isolation(rig, source):
    """The isolation tests in which no session waits for another.

    The others cannot run through a pooler: isolationtester finds out who waits by asking for locks of the
    process ids that PQbackendPID gives, and behind a pooler a session is not one process.
    """
    origin = os.path.join(source, "src", "test", "isolation")
    home = _copy(rig, origin, "isolation")
    with open(os.path.join(home, "isolation_schedule"), encoding="ascii") as file:
        names = [name for line in file if line.startswith("test:") for name in line.split()[1:]]
    tests = [name for name in names if not _waits(home, name)]
    print(f"isolation: {len(tests)} of {len(names)} tests, those in which nobody waits", flush=True)
    return _pg_regress(rig, "isolation", home, ["--dbname=isolation_regression", *tests])


def _waits(home, name):
    with open(os.path.join(home, "specs", name + ".spec"), encoding="utf-8") as file:
        by_spec = "pg_stat_activity" in file.read()
    directory = os.path.join(home, "expected")
    texts = [_read(os.path.join(directory, file)) for file in os.listdir(directory) if re.fullmatch(rf"{name}(_\d)?\.out", file)]
    return by_spec or any("<waiting" in text for text in texts)


def _read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _copy(rig, origin, name):
    """Copies what a suite reads to where the servers may read it, and write results."""
    home = rig.make_directory(name)
    for part in ("sql", "specs", "expected", "data", "input", "output", "results"):
        if os.path.isdir(os.path.join(origin, part)):
            shutil.copytree(os.path.join(origin, part), os.path.join(home, part))
    for part in ("parallel_schedule", "isolation_schedule", "resultmap"):
        if os.path.exists(os.path.join(origin, part)):
            shutil.copy(os.path.join(origin, part), home)
    for directory, _, files in os.walk(home):
        rig.own(directory)
        for file in files:
            rig.own(os.path.join(directory, file))
    return home


def _libdir(rig):
    code, out, err = rig.run(["/usr/bin/env", rig.tool("pg_config"), "--pkglibdir"], port=1)
    if code != 0:
        raise Failure(f"pg_config: {err}")
    return out.strip()


def _makefile_words(path, variable):
    with open(path, encoding="ascii") as file:
        text = file.read().replace("\\\n", " ")
    found = re.search(rf"^{variable} *= *(.*)$", text, re.MULTILINE)
    return found[1].split() if found else []


def _pg_regress(rig, kind, home, argv):
    """Runs a schedule or tests and reads what came out, test by test."""
    program = {"regress": "pg_regress", "isolation": "pg_isolation_regress"}[kind]
    # Debian's: found beside isolationtester, in the tree that pgxs uses.
    program = os.path.join(_libdir(rig), "pgxs", "src", "test", kind, program)
    base = [program, f"--bindir={rig.tools}", f"--inputdir={home}", f"--outputdir={home}"]
    base += ["--host=127.0.0.1", f"--port={rig.port}", f"--user={SUPERUSER}", "--no-locale", "--encoding=UTF8"]
    base += [f"--launcher=timeout {TEST_TIMEOUT_S}"]
    if tests := os.environ.get("SUITES_TESTS"):
        # For debugging: these tests only, one after the other.
        argv = [word for word in argv if word.startswith("--d") or word == home] + tests.split()
    if os.environ.get("SUITES_EXISTING"):
        # For debugging: the database is made before, on the primary itself.
        name = next((word.split("=")[1] for word in argv if word.startswith("--dbname=")), "regression")
        rig.sql(f"CREATE DATABASE {name} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        for setting in ("lc_messages", "lc_monetary", "lc_numeric", "lc_time"):
            rig.sql(f"ALTER DATABASE {name} SET {setting} TO 'C'")
        rig.sql(f"ALTER DATABASE {name} SET bytea_output TO 'hex'")
        rig.settle()
        base.append("--use-existing")
    # isolationtester gives a step up that takes longer.
    code, out, err = rig.run(base + argv, timeout=TIMEOUT_S, cwd=home, env={"PGISOLATIONTIMEOUT": "60"})
    states = {name: state == "ok" for name, state in LINE.findall(out)}
    if not states:
        raise Failure(f"{os.path.basename(program)} ran no test (code {code}):\n{out[-2000:]}{err[-2000:]}")
    diffs = _diffs(os.path.join(home, "regression.diffs"), os.path.join(home, "output_iso", "regression.diffs"))
    output = {name: _output(home, name).replace(rig.directory, "") for name in states}
    return {name: Result(passed, diffs.get(name, ""), output[name]) for name, passed in states.items()}


def _output(home, name):
    """What a test printed. Where its servers live is no difference."""
    for directory in ("results", "output_iso/results"):
        path = os.path.join(home, directory, name + ".out")
        if os.path.exists(path):
            return _read(path)
    return ""


def _diffs(*paths):
    """The parts of regression.diffs by test."""
    parts = {}
    for path in paths:
        if not os.path.exists(path):
            continue
        for part in re.split(r"(?m)^(?=diff )", _read(path)):
            found = re.match(r"diff .*/([^/\s]+)\.out\n", part)
            if found:
                parts[found[1]] = part
    return parts
