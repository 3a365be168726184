"""libpq's own programs through a way: the pipeline test program with its protocol traces, and the examples.

`libpq_pipeline` plays pipelines message by message and aborts at the first surprise; for nine of its tests
PostgreSQL keeps the exact messages in both directions, which must be the same through a proxy. The example
programs (cursors, notifications, binary formats, large objects) print what PostgreSQL's manual promises.
"""

import os
import shutil

from outcome import Result

ROWS = "700"
"""As PostgreSQL's own test runs it: enough that a pipeline does not fit into socket buffers."""
TIMEOUT_S = 900.0
"""`uniqviol` fills every buffer on the way, 400,000 statements, before it reads."""
EXAMPLES = ("testlibpq", "testlibpq3", "testlibpq4", "testlo", "testlo64")


def pipeline(rig, source):
    """Every test of libpq_pipeline, and its traces as tests of their own (`name/trace`)."""
    origin = os.path.join(source, "src", "test", "modules", "libpq_pipeline")
    home = rig.make_directory("pipeline")
    program = _program(rig, os.path.join(origin, "libpq_pipeline"), home)
    results = {}
    names = rig.run([program, "tests"])[1].split()
    for name in names:
        expected = _read(os.path.join(origin, "traces", name + ".trace"))
        trace = os.path.join(home, name + ".trace")
        argv = [program, "-r", ROWS, *(["-t", trace] if expected else []), name, "dbname=postgres"]
        code, out, err = rig.run(argv, timeout=TIMEOUT_S)
        results[name] = Result(code == 0, f"exit code {code}\n{out[-2000:]}{err[-2000:]}", f"exit code {code}")
        if expected:
            got = _read(trace)
            results[name + "/trace"] = Result(got == expected, _first_difference(expected, got), got)
    results.update(_examples(rig, source, home))
    return results


def _examples(rig, source, home):
    """The example programs. They pass when they end well; what they print is compared between ways."""
    origin = os.path.join(source, "src", "test", "examples")
    rig.sql("CREATE DATABASE examples")
    for script in ("testlibpq3.sql",):
        rig.sql(_read(os.path.join(origin, script)), database="examples")
    rig.sql("CREATE TABLE deftest (a int, b text)", database="examples")
    rig.settle()
    image = os.path.join(home, "image")
    with open(image, "wb") as file:
        file.write(bytes(range(256)) * 400)
    rig.own(image)
    arguments = {
        "testlibpq4": ["deftest", "examples", "examples"],
        "testlo": ["examples", image, os.path.join(home, "image.out")],
        "testlo64": ["examples", image, os.path.join(home, "image64.1"), os.path.join(home, "image64.2")],
    }
    results = {}
    for name in EXAMPLES:
        program = _program(rig, os.path.join(origin, name), home)
        code, out, err = rig.run([program, *arguments.get(name, ["dbname=examples"])], timeout=TIMEOUT_S, cwd=home)
        text = "".join(line for line in (out + err).splitlines(True) if "object" not in line and "open_database" not in line)
        # Everything is compared with the direct run, so `passed` says only that it ran to its end.
        results["examples/" + name] = Result(code == 0, f"exit code {code}\n{out}{err}", f"exit code {code}\n{text}")
    return results


def _program(rig, path, home):
    copy = shutil.copy(path, home)
    rig.own(copy)
    os.chmod(copy, 0o755)
    return copy


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _first_difference(expected, got):
    wanted, have = expected.splitlines(), got.splitlines()
    for number, (left, right) in enumerate(zip(wanted, have), 1):
        if left != right:
            return f"line {number}: expected {left!r}, got {right!r}\n"
    return f"expected {len(wanted)} lines, got {len(have)}\n"
