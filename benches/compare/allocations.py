#!/usr/bin/env python3
"""Counts without noise: heap allocations and user-space instructions per transaction, per protocol.

The proxy runs under valgrind's callgrind. After a warm-up the counters are dumped around a short and a long
pgbench run; the difference between the two is steady work only: start-up, logins and first connections cancel
out. Only threads that move data count: the control plane works by the clock, not per transaction. The figures
do not depend on the load of the machine, so they can be compared between commits.

Options are environment variables: TRANSACTIONS=1000 (per client, by which the long run is longer), and of run.py's
ENTRIES, CHECK, BUILD, PGREGENT, PGBOUNCER, SCALE and WORKERS. The report goes to standard output and
target/bench-compare/allocations.md and .json. With CHECK=1 the exit code is 1 if pgregent allocates per transaction.
"""

import glob
import os
import re
import shutil
import sys
import time

import run
from cluster import Cluster
from entries import PgBouncer
from measure import PROTOCOLS, Meter, Workload
from processes import Failure, server_user, wait_until

CLIENTS = 4
SHORT_RUN = 250
"""Transactions per client."""
ALLOCATIONS_MAX = 0.05
"""Per transaction: caches and queues may still grow now and then, but nothing may be allocated per statement."""
CALLERS = 8
"""How many callers deep an allocation is told."""
TOLD = 6
"""Origins told per protocol."""
RUN_TIMEOUT_S = 300.0
ALLOCATORS = ("malloc", "calloc", "realloc", "memalign", "posix_memalign", "aligned_alloc")
DATA_PLANE = re.compile(r"pgregent(::|\d+)(session|relay|client)")
"""A thread that runs any function of these modules moves data."""


class Profile:
    """What one callgrind file says: instructions, and calls of allocators by chain of callers."""

    def __init__(self, lines):
        self.instructions = 0
        self.allocations = {}
        self.moves_data = False
        names = {}
        callee = ""
        for line in lines:
            if line.startswith(("fn=", "cfn=")):
                name = self._name(line.partition("=")[2].strip(), names)
                if line.startswith("cfn="):
                    callee = name
                elif DATA_PLANE.search(name):
                    self.moves_data = True
            elif line.startswith("calls=") and callee:
                self._add_calls(callee, int(line[6:].split()[0]))
                callee = ""
            elif line.startswith(("totals:", "summary:")):
                self.instructions = int(line.split()[1])

    @staticmethod
    def _name(text, names):
        """Function names are written out once, then called by number: "(7) name", "(7)"."""
        found = re.match(r"\((\d+)\)\s*(.*)", text)
        if not found:
            return text
        if found[2]:
            names[found[1]] = found[2]
        return names.get(found[1], "")

    def _add_calls(self, callee, count):
        # "malloc'caller'caller's caller": one allocator calling another is one allocation.
        chain = callee.split("'")
        if chain[0] in ALLOCATORS and (len(chain) < 2 or chain[1] not in ALLOCATORS):
            self.allocations[callee] = self.allocations.get(callee, 0) + count


def add_profiles(profiles):
    """The sum over the threads that move data, or over all if none can be told apart."""
    moving = [profile for profile in profiles if profile.moves_data] or profiles
    total = Profile([])
    for profile in moving:
        total.instructions += profile.instructions
        for chain, count in profile.allocations.items():
            total.allocations[chain] = total.allocations.get(chain, 0) + count
    return total


def per_transaction(short, long, transactions):
    """The difference of two profiles, per transaction."""
    origins = {}
    for chain in short.allocations.keys() | long.allocations.keys():
        count = (long.allocations.get(chain, 0) - short.allocations.get(chain, 0)) / transactions
        if abs(count) >= 0.001:
            origins[chain] = count
    return {
        "instructions": (long.instructions - short.instructions) / transactions,
        "allocations": (sum(long.allocations.values()) - sum(short.allocations.values())) / transactions,
        "origins": dict(sorted(origins.items(), key=lambda item: -abs(item[1]))),
    }


class Profiled:
    """An entry's process under callgrind."""

    def __init__(self, entry, meter, workload):
        self.entry = entry
        self.meter = meter
        self.workload = workload
        self.user = server_user() if isinstance(entry, PgBouncer) else None
        self.directory = os.path.join(entry.directory, f"callgrind-{workload.protocol}")
        os.mkdir(self.directory, 0o700)
        if self.user:
            shutil.chown(self.directory, self.user, self.user)
        self.dumps = 0
        self.child = None

    def start(self):
        """Starts it and waits for its first answer, which takes longer than usual."""
        argv = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--vgdb-prefix={self.directory}/vgdb"]
        argv += [f"--separate-callers{CALLERS}={name}" for name in ALLOCATORS]
        argv += [f"--callgrind-out-file={self.directory}/out", *self.command()]
        log_path = os.path.join(self.directory, "log")
        self.child = self.meter.children.start(
            f"{self.entry.name} under callgrind", argv, log_path=log_path, user=self.user, cwd="/"
        )
        self.entry.await_answer(self.child, self.entry.port(self.workload))
        time.sleep(run.SETTLE_S)

    def command(self):
        """The command line of the process to be profiled."""
        if isinstance(self.entry, PgBouncer):
            return self.entry.command(self.workload)
        return self.entry.command()

    def dump(self):
        """Writes the counters, sets them to zero, and returns what they were."""
        self.dumps += 1
        argv = ["vgdb", f"--pid={self.child.pid}", f"--vgdb-prefix={self.directory}/vgdb", "dump"]
        self.meter.children.run("vgdb", argv, user=self.user, timeout=60)
        pattern = os.path.join(self.directory, f"out.{self.dumps}-*")
        paths = wait_until("callgrind writes its counters", lambda: glob.glob(pattern), 30)
        profiles = []
        for path in paths:
            with open(path, encoding="utf-8", errors="replace") as file:
                profiles.append(Profile(file))
        return add_profiles(profiles)

    def transactions(self, count):
        """Runs `count` transactions per client."""
        self.meter.run_pgbench(self.meter.pgbench(self.entry, self.workload, ("-t", count)), RUN_TIMEOUT_S)

    def stop(self):
        """Ends it."""
        if self.child:
            self.meter.children.stop(self.child)


def count_one(entry, meter, protocol, longer_by):
    """Instructions and allocations per transaction of one entry in one protocol."""
    profiled = Profiled(entry, meter, Workload("select", protocol, CLIENTS))
    try:
        profiled.start()
        # Twice: backends, caches and the allocator's own lists are then as they will stay.
        profiled.transactions(SHORT_RUN)
        profiled.transactions(SHORT_RUN)
        profiled.dump()
        profiled.transactions(SHORT_RUN)
        short = profiled.dump()
        profiled.transactions(SHORT_RUN + longer_by)
        long = profiled.dump()
    finally:
        profiled.stop()
    return per_transaction(short, long, longer_by * CLIENTS)


def measure(cluster, children, directory, entries, errors, longer_by=1000):
    """All proxies in all protocols: {entry: {protocol: counts}}."""
    if not shutil.which("valgrind") or not shutil.which("vgdb"):
        errors.append("allocations: valgrind is not installed (apt-get install valgrind)")
        return {}
    folder = os.path.join(directory, "profiled")
    os.mkdir(folder)
    meter = Meter(cluster, children, folder)
    found = {}
    for entry in entries:
        for protocol in PROTOCOLS if entry.is_proxy else ():
            run.say(f"{entry.name}, {protocol}: counting instructions and allocations")
            try:
                counts = count_one(entry, meter, protocol, longer_by)
            except Failure as failure:
                errors.append(f"{entry.name}, {protocol}, allocations: {failure}")
                run.say(errors[-1])
            else:
                found.setdefault(entry.name, {})[protocol] = counts
    return found


def bars_met(found):
    """Whether pgregent was counted in every protocol and allocates in none."""
    counts = found.get("pgregent", {})
    return all(counts[p]["allocations"] <= ALLOCATIONS_MAX if p in counts else False for p in PROTOCOLS)


def shown(chain):
    """A chain of callers for people: hashes and generic arguments removed, allocator's own frames too."""
    names = [re.sub(r"::h[0-9a-f]{16}$", "", name) for name in chain.split("'")]
    hidden = re.compile(r"^(__rust|__rdl|alloc::alloc|alloc::raw_vec|<alloc::alloc|__libc|\(below)")
    return " < ".join(name for name in names if not hidden.match(name))[:400]


def markdown(found):
    """The counts as Markdown."""
    lines = [f"### Per transaction (select, {CLIENTS} clients), without noise", ""]
    lines += ["| | user instructions | heap allocations |", "|---|---:|---:|"]
    for entry, protocols in found.items():
        for protocol, counts in protocols.items():
            lines.append(f"| {entry}, {protocol} | {counts['instructions']:,.0f} | {counts['allocations']:.3f} |")
    lines += ["", f"Bar for pgregent: at most {ALLOCATIONS_MAX:g} allocations per transaction in every protocol: "]
    lines[-1] += "met." if bars_met(found) else "MISSED." if "pgregent" in found else "not measured."
    for protocol, counts in found.get("pgregent", {}).items():
        for chain, count in list(counts["origins"].items())[:TOLD]:
            lines.append(f"* {protocol}, {count:.2f} per transaction: `{shown(chain)}`")
    return "\n".join(lines) + "\n"


def main():
    """The command."""
    errors = []

    def work(children, directory):
        cluster = Cluster(children, directory, options.scale)
        run.say("creating one primary and two standbys")
        cluster.create()
        entries = run.make_entries(options, cluster, children, directory, errors)
        return measure(cluster, children, directory, entries, errors, longer_by)

    try:
        options = run.Options.read(os.environ)
        longer_by = int(os.environ.get("TRANSACTIONS") or 1000)
        if options.build and not os.environ.get("PGREGENT"):
            run.build()
        found = run.in_fresh_directory(work)
    except (Failure, ValueError) as failure:
        run.say(f"allocations: {failure}")
        return 2
    except KeyboardInterrupt:
        return 130
    text = markdown(found) + "".join(f"\n**{error}**\n" for error in errors)
    run.write({"allocations": found, "errors": errors}, text, "allocations")
    print(text)
    if errors:
        return 2
    return 1 if options.check and not bars_met(found) else 0


if __name__ == "__main__":
    sys.exit(main())
