#!/usr/bin/env python3
"""Measures direct connections, PgBouncer and pgregent side by side, on a cluster made for it.

Options are environment variables:
  ROUNDS=3          rounds; within one, every workload visits every entry, in rotated order
  SECONDS=3         seconds per cell
  CHECK=1           exit code 1 if a bar is missed
  ENTRIES=a,b       of direct, pgbouncer, pgregent, pgregent-nosplit (default: the first three)
  WORKLOADS=text    only workloads whose name contains one of these, comma separated ("simple 16,tpcb")
  IDLE_CLIENTS=2000 clients of the memory measurement; 0: none
  SCALE=10          pgbench scale
  WORKERS=0         pgregent's worker threads; 0: one per core
  BUILD=0           do not run cargo build --release first
  PGREGENT=path     another binary of pgregent        PGBOUNCER=path  another PgBouncer
  PGREGENT_PG_BIN=path  PostgreSQL's programs         ALLOCATIONS=1   also run allocations.py's counts

The report goes to standard output, target/bench-compare/latest.md and latest.json; progress to standard error.
Exit code: 0 good, 1 a bar missed (CHECK=1), 2 something did not run, 130 stopped.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import idle
import report
from cluster import Cluster
from entries import Direct, Pgregent, PgregentWhole, PgBouncer, allow_open_files, find_pgbouncer, why_pgregent_cannot_serve
from measure import BAR_CLIENTS, PROTOCOLS, Meter, Workload, all_workloads
from processes import Children, Failure, wait_until

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEFAULT_ENTRIES = ("direct", "pgbouncer", "pgregent")
SETTLE_S = 2.0
"""After a proxy answers: pgregent believes a standby only after a few good probes."""
READING_S = 2
"""Seconds of each run that shows on which nodes reads arrive."""
STATISTICS_TIMEOUT_S = 10.0
"""How long the nodes may take to add up what ended backends did."""


@dataclass(frozen=True)
class Options:
    """The environment, checked."""

    rounds: int
    seconds: int
    check: bool
    entries: tuple
    workloads: tuple
    idle_clients: int
    scale: int
    workers: int
    build: bool
    allocations: bool
    binary: str

    @staticmethod
    def read(environment):
        """Raises `Failure` that names every variable it cannot use."""
        problems = []

        def count(name, default, least, most):
            text = environment.get(name, "") or str(default)
            if text.isascii() and text.isdigit() and least <= int(text) <= most:
                return int(text)
            problems.append(f"{name}={text}: must be a number from {least} to {most}")
            return default

        entries = tuple(environment.get("ENTRIES", "").split(",")) if environment.get("ENTRIES") else DEFAULT_ENTRIES
        known = (*DEFAULT_ENTRIES, "pgregent-nosplit")
        problems += [f"ENTRIES: {name!r} is none of {', '.join(known)}" for name in entries if name not in known]
        wanted = [part.strip() for part in environment.get("WORKLOADS", "").split(",") if part.strip()]
        # Whole words: "simple 1" must not mean "simple 16" too.
        chosen = [w for w in all_workloads() if not wanted or any(f" {p} " in f" {w.name} " for p in wanted)]
        if not chosen:
            problems.append(f"WORKLOADS: no workload is called so; there are {', '.join(w.name for w in all_workloads())}")
        options = Options(
            rounds=count("ROUNDS", 3, 1, 1000),
            seconds=count("SECONDS", 3, 1, 3600),
            check=environment.get("CHECK", "") not in ("", "0"),
            entries=entries,
            workloads=tuple(chosen),
            idle_clients=count("IDLE_CLIENTS", 2000, 0, 9000),
            scale=count("SCALE", 10, 1, 1000),
            workers=count("WORKERS", 0, 0, 1024),
            build=environment.get("BUILD", "1") != "0",
            allocations=environment.get("ALLOCATIONS", "") not in ("", "0"),
            binary=environment.get("PGREGENT") or os.path.join(ROOT, "target", "release", "pgregent"),
        )
        if problems:
            raise Failure("\n".join(problems))
        return options


def say(text):
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def build():
    """Builds the release binary; nothing to do for cargo if it is fresh."""
    say("building target/release/pgregent")
    if subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=False, stdout=sys.stderr).returncode != 0:
        raise Failure("cargo build --release failed")


def make_entries(options, cluster, children, directory, errors):
    """The entries that can run; for the others the reason is added to `errors`."""
    made = []
    unable = why_pgregent_cannot_serve(options.binary) if any(e.startswith("pgregent") for e in options.entries) else None
    for name in options.entries:
        if name == "direct":
            made.append(Direct(cluster, children, directory))
        elif name == "pgbouncer":
            made.append(PgBouncer(cluster, children, directory, find_pgbouncer()))
        elif unable:
            errors.append(f"{name} left out: {unable}")
            say(errors[-1])
        else:
            kind = Pgregent if name == "pgregent" else PgregentWhole
            made.append(kind(cluster, children, directory, options.binary, options.workers))
    return made


def start_entries(entries, errors):
    """Starts them; those that cannot are left out, with the reason in `errors`."""
    started = []
    for entry in entries:
        try:
            entry.start()
            started.append(entry)
        except Failure as failure:
            errors.append(f"{entry.name} did not start: {failure}")
            say(errors[-1])
            entry.stop()
    time.sleep(SETTLE_S)
    return started


def measure_rounds(options, entries, meter, errors):
    """All cells: a list of {workload: {entry: cell}}."""
    rounds = []
    for number in range(options.rounds):
        cells = {}
        for index, workload in enumerate(options.workloads):
            row = cells.setdefault(workload.name, {})
            shift = (number + index) % len(entries)
            for entry in entries[shift:] + entries[:shift]:
                if not entry.serves(workload):
                    continue
                try:
                    cell = meter.cell(entry, workload, options.seconds)
                except Failure as failure:
                    errors.append(f"round {number + 1}, {workload.name}, {entry.name}: {failure}")
                    say(errors[-1])
                    continue
                if cell.failed:
                    errors.append(f"round {number + 1}, {workload.name}, {entry.name}: {cell.failed} failed transactions")
                row[entry.name] = cell.as_dict()
                cpu = f", proxy {cell.proxy_us:.1f} µs/statement" if cell.proxy_us is not None else ""
                say(f"round {number + 1} {workload.name:22} {entry.name:16} {cell.tps:9,.0f} tps{cpu}")
        rounds.append(cells)
    return rounds


def measure_details(options, entry, meter, errors):
    """Memory and reads per node of one proxy, each on a freshly started one."""
    found = {}
    plain = Workload("select", "simple", BAR_CLIENTS)
    if options.idle_clients:
        say(f"{entry.name}: {options.idle_clients} idle clients")
        entry.start()
        try:
            time.sleep(SETTLE_S)
            port, pids = entry.port(plain), entry.pids(plain)
            found["memory"] = idle.measure(meter.children, entry.directory, port, pids, options.idle_clients)
        except Failure as failure:
            errors.append(f"{entry.name}, memory: {failure}")
        finally:
            entry.stop()
    wait_until("backends close", lambda: meter.cluster.backends() == 0, STATISTICS_TIMEOUT_S)
    before = meter.cluster.transactions()
    say(f"{entry.name}: reads per node")
    entry.start()
    try:
        time.sleep(SETTLE_S)
        for protocol in PROTOCOLS:
            workload = Workload("select", protocol, BAR_CLIENTS)
            meter.run_pgbench(meter.pgbench(entry, workload, ("-T", READING_S)), READING_S)
    except Failure as failure:
        errors.append(f"{entry.name}, reads per node: {failure}")
    finally:
        entry.stop()
    # A backend reports what it did when it ends, so the counts are complete once none is left.
    wait_until("backends close", lambda: meter.cluster.backends() == 0, STATISTICS_TIMEOUT_S)
    after = meter.cluster.transactions()
    found["transactions_per_node"] = {name: after[name] - before[name] for name in after}
    return found


def facts(options, cluster, binary_note):
    """Where and how, for the report. No names of machines or directories."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    load = os.getloadavg()
    return {
        "machine": f"{os.cpu_count()} cores, {model}, Linux {platform.release()}; load at the start {load[0]:.2f}",
        "cluster": f"{cluster.version()}, primary and two streaming standbys, scale {options.scale}, durability off, "
        "scram-sha-256 towards the nodes",
        "clients": "pgbench over TCP on loopback, no TLS, no password asked by the proxies; login: a connection per SELECT",
        "rounds": f"{options.rounds} of {options.seconds} s per cell after a warm-up; medians over rounds",
        "pgregent binary": binary_note,
    }


def binary_note(path):
    """Which pgregent this is: version and commit."""
    try:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL)
        commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return f"{version.stdout.strip() or 'unknown version'}, sources at {commit.stdout.strip() or 'an unknown commit'}"


def measure(options, children, directory):
    """The whole measurement: the result that `report` describes."""
    errors = []
    say("creating one primary and two standbys")
    cluster = Cluster(children, directory, options.scale)
    cluster.create()
    meter = Meter(cluster, children, directory)
    entries = make_entries(options, cluster, children, directory, errors)
    setup = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "entries": [entry.name for entry in entries],
        "workloads": [workload.name for workload in options.workloads],
        "nodes": [node.name for node in cluster.nodes],
        "call_counter": meter.counter.name if meter.counter else None,
        "facts": facts(options, cluster, binary_note(options.binary)),
        "descriptions": {entry.name: entry.description() for entry in entries},
    }
    for entry in entries:
        entry.logins = any(workload.is_login for workload in options.workloads)
    notes = {e.name: {w.name: e.note(w) for w in options.workloads if e.note(w)} for e in entries}
    started = start_entries(entries, errors)
    cells = measure_rounds(options, started, meter, errors)
    for entry in started:
        entry.stop()
    details = {}
    for entry in started:
        if entry.is_proxy:
            try:
                details[entry.name] = measure_details(options, entry, meter, errors)
            except Failure as failure:
                errors.append(f"{entry.name}, details: {failure}")
    result = {"setup": setup, "cells": cells, "details": details, "notes": notes, "errors": errors}
    if options.allocations:
        import allocations

        result["allocations"] = allocations.measure(cluster, children, directory, started, errors)
    return result


def stop_on_signals():
    """SIGTERM and SIGHUP end the run like Ctrl-C: through every `finally`."""

    def stop(number, _frame):
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def in_fresh_directory(work):
    """Calls `work(children, directory)`, then stops every child and removes the directory, whatever happened."""
    stop_on_signals()
    allow_open_files()
    children = Children()
    directory = tempfile.mkdtemp(prefix="pgregent-bench-")
    try:
        # Others must pass through it to their own parts; those are private.
        os.chmod(directory, 0o711)
        return work(children, directory)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        children.stop_all()
        shutil.rmtree(directory, ignore_errors=True)


def write(result, text, name="latest"):
    """The report and its figures, under target/."""
    folder = os.path.join(ROOT, "target", "bench-compare")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{name}.md"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)


def main():
    """The command."""
    try:
        options = Options.read(os.environ)
        if options.build and not os.environ.get("PGREGENT") and any(e.startswith("pgregent") for e in options.entries):
            build()
        result = in_fresh_directory(lambda children, directory: measure(options, children, directory))
    except Failure as failure:
        say(f"bench-compare: {failure}")
        return 2
    except KeyboardInterrupt:
        say("bench-compare: stopped")
        return 130
    text = report.markdown(result)
    if options.allocations:
        import allocations

        text += "\n" + allocations.markdown(result["allocations"])
    write(result, text)
    print(text)
    code = report.exit_code(result, options.check)
    if code == 0 and options.check and options.allocations:
        return 0 if allocations.bars_met(result["allocations"]) else 1
    return code


if __name__ == "__main__":
    sys.exit(main())
