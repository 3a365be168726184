"""What one cell of the tables is, and how it is measured.

CPU time comes from the kernel's process clocks (nanoseconds, threads that ended included), not from sampling.
A cell is one pgbench run; system calls are counted in a run of their own, because counting costs time.
"""

import glob
import math
import os
import re
import resource
import shutil
import signal
import time
from dataclasses import asdict, dataclass

from cluster import DATABASE, USER
from processes import Failure, clean_environment

PROTOCOLS = ("simple", "extended", "prepared")
CLIENT_COUNTS = (1, 16, 64)
LOGINS = ("trust", "scram", "tls", "scram+tls")
"""How clients of the login workloads prove themselves, and whether over TLS."""
LOGIN_CLIENTS = 8
BAR_CLIENTS = 16
SAMPLING_RATE = 0.1
"""Share of transactions whose latency pgbench logs."""
WARM_UP_TRANSACTIONS = 100
"""Per client, before each cell; not counted."""
TPCB_STATEMENTS = 7
"""BEGIN, UPDATE, SELECT, UPDATE, UPDATE, INSERT, END."""
COUNTING_S = 2
"""Seconds of the extra run in which system calls are counted."""
CELL_GRACE_S = 60.0
"""How much longer than asked a pgbench run may take."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2

SYSTEM_CALLS = (
    "sendto recvfrom sendmsg recvmsg write writev read readv epoll_wait epoll_pwait epoll_ctl futex "
    "poll ppoll sched_yield madvise io_uring_enter"
).split()
"""Told one by one in the breakdown; the total counts all."""


@dataclass(frozen=True)
class Workload:
    """One row of the tables."""

    script: str
    protocol: str
    clients: int

    @property
    def name(self):
        """As shown."""
        return f"{self.script} {self.protocol} {self.clients}"

    @property
    def is_login(self):
        """Whether every transaction is a connection of its own."""
        return self.script == "login"

    @property
    def is_encrypted(self):
        """Whether clients speak TLS."""
        return self.is_login and self.protocol.endswith("tls")

    @property
    def asks_password(self):
        """Whether clients log in with SCRAM."""
        return self.is_login and self.protocol.startswith("scram")

    @property
    def is_barred(self):
        """Whether the bars are about this workload."""
        return self.script == "select" and self.clients == BAR_CLIENTS

    @property
    def statements(self):
        """Statements per transaction."""
        return TPCB_STATEMENTS if self.script == "tpcb" else 1


def all_workloads():
    """Select-only in three protocols at three client counts, the TPC-B-like script, and a login per SELECT."""
    selects = [Workload("select", protocol, clients) for protocol in PROTOCOLS for clients in CLIENT_COUNTS]
    logins = [Workload("login", way, LOGIN_CLIENTS) for way in LOGINS]
    return [*selects, Workload("tpcb", "prepared", BAR_CLIENTS), *logins]


@dataclass
class Cell:
    """What one pgbench run gave. CPU figures are microseconds per statement."""

    transactions: int
    failed: int
    tps: float
    latency_ms: float
    p50_ms: float | None
    p99_ms: float | None
    proxy_us: float | None
    proxy_user_us: float | None
    postgres_us: float
    other_load: float
    """Share of all cores used by neither pgbench, proxy nor PostgreSQL, 0 to 1."""
    system_calls: dict | None = None
    """Per statement, "total" and some by name; only where a bar asks for them."""

    def as_dict(self):
        """For JSON."""
        return asdict(self)


def cpu_ns(pid):
    """CPU time of all threads of a process so far, dead ones included; 0 if it is gone."""
    try:
        return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)
    except OSError:
        return 0


def tree(pids):
    """These processes and all their descendants."""
    found, todo = [], list(pids)
    while todo:
        pid = todo.pop()
        found.append(pid)
        for path in glob.glob(f"/proc/{pid}/task/*/children"):
            try:
                with open(path, encoding="ascii") as file:
                    todo.extend(int(child) for child in file.read().split())
            except OSError:
                pass
    return found


def stat_ticks(pid):
    """(user, system, children's user and system) clock ticks of a process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0, 0, 0
    user, system, child_user, child_system = (int(field) for field in fields[11:15])
    return user, system, child_user + child_system


@dataclass
class CpuSample:
    """CPU used so far by the parts of a run."""

    proxy_ns: int
    proxy_user_share: tuple
    postgres_ns: int
    client_s: float
    busy_s: float
    at: float

    @staticmethod
    def take(proxy_pids, postmasters):
        """Reads all clocks now."""
        proxies = tree(proxy_pids)
        ticks = [stat_ticks(pid) for pid in proxies]
        # Backends that ended were waited for by their postmaster and are in its children's time.
        reaped = sum(stat_ticks(pid)[2] for pid in postmasters)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return CpuSample(
            proxy_ns=sum(cpu_ns(pid) for pid in proxies),
            proxy_user_share=(sum(t[0] for t in ticks), sum(t[0] + t[1] for t in ticks)),
            postgres_ns=sum(cpu_ns(pid) for pid in tree(postmasters)) + reaped * 10**9 // TICKS_PER_S,
            client_s=usage.ru_utime + usage.ru_stime,
            busy_s=machine_busy_s(),
            at=time.monotonic(),
        )


def machine_busy_s():
    """Seconds of CPU the whole machine has spent since boot: user, nice, system, interrupts."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:]]
    return (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / TICKS_PER_S


def parse_pgbench(text):
    """Transactions, failed ones, TPS and mean latency (ms) from pgbench's summary."""

    def number(pattern, default=None):
        found = re.search(pattern, text)
        if found:
            return float(found[1])
        if default is None:
            raise Failure(f"pgbench said neither what was asked nor why: {text[-500:]}")
        return default

    return {
        "transactions": int(number(r"transactions actually processed: (\d+)")),
        "failed": int(number(r"number of failed transactions: (\d+)", 0)),
        "tps": number(r"tps = ([\d.]+) \((?:without initial|including reconnection)"),
        "latency_ms": number(r"latency average = ([\d.]+) ms"),
    }


def percentile(ordered, share):
    """The value below which `share` (0 to 1) of a sorted list lies (nearest rank); None if it is empty."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def logged_latencies(paths):
    """Latencies (ms, sorted) from pgbench's per-transaction logs."""
    values = []
    for path in paths:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                fields = line.split()
                if len(fields) >= 6 and fields[2].isdigit():
                    values.append(int(fields[2]) / 1000)
    return sorted(values)


class Meter:
    """Runs pgbench against entries and reads the clocks around it."""

    def __init__(self, cluster, children, directory):
        self.cluster = cluster
        self.children = children
        self.directory = os.path.join(directory, "pgbench")
        os.mkdir(self.directory)
        self.counter = find_counter(children)

    def pgbench(self, entry, workload, bound, *extra):
        """The command line; `bound` is ("-T", seconds) or ("-t", transactions)."""
        script = "tpcb-like" if workload.script == "tpcb" else "select-only"
        protocol = ["-M", "simple", "-C"] if workload.is_login else ["-M", workload.protocol]
        argv = [self.cluster.tool("pgbench"), "-n", "-b", script, *protocol]
        argv += ["-c", str(workload.clients), "-j", str(min(workload.clients, 2)), *map(str, bound), *extra]
        database = f"dbname={DATABASE} sslmode={'require' if workload.is_encrypted else 'disable'}"
        return argv + ["-h", "127.0.0.1", "-p", str(entry.port(workload)), "-U", USER, "-d", database]

    def run_pgbench(self, argv, seconds):
        """Runs it and returns its figures. Raises `Failure` if it failed or a client was aborted."""
        environment = clean_environment(PGPASSWORD=self.cluster.password)
        code, out, err = self.children.run(
            "pgbench", argv, timeout=seconds + CELL_GRACE_S, check=False, env=environment, cwd=self.directory
        )
        # Clients fail with the same text, and pgbench's exit code does not always tell.
        complaints = list(dict.fromkeys(line for line in err.splitlines() if re.search(r"error|fatal|abort", line, re.I)))
        if code != 0 or complaints:
            raise Failure(f"pgbench ended with code {code}: {' / '.join(complaints[:3]) or err.strip()[-300:]}")
        return parse_pgbench(out)

    def cell(self, entry, workload, seconds):
        """Warms up and measures one cell."""
        warm_up = ("-t", WARM_UP_TRANSACTIONS)
        self.run_pgbench(self.pgbench(entry, workload, warm_up), 0)
        prefix = os.path.join(self.directory, "latency")
        logging = ("-l", f"--sampling-rate={SAMPLING_RATE}", f"--log-prefix={prefix}")
        before = CpuSample.take(entry.pids(workload), self.cluster.pids())
        figures = self.run_pgbench(self.pgbench(entry, workload, ("-T", seconds), *logging), seconds)
        after = CpuSample.take(entry.pids(workload), self.cluster.pids())
        logs = glob.glob(prefix + ".*")
        latencies = logged_latencies(logs)
        for path in logs:
            os.unlink(path)
        cell = make_cell(figures, latencies, before, after, workload, entry.is_proxy)
        if workload.is_barred:
            cell.system_calls = self.system_calls(entry, workload, COUNTING_S)
        return cell

    def system_calls(self, entry, workload, seconds):
        """System calls per statement of the entry's processes: {"total": …, name: …}; None if nothing can count them."""
        if not self.counter or not entry.is_proxy:
            return None
        argv = self.pgbench(entry, workload, ("-T", seconds))
        figures, counts = self.counter.count(self, tree(entry.pids(workload)), argv, seconds)
        statements = figures["transactions"] * workload.statements
        return {name: count / statements for name, count in counts.items() if name == "total" or count}


def make_cell(figures, latencies, before, after, workload, is_proxy):
    """Puts the readings of one run together."""
    statements = max(1, figures["transactions"]) * workload.statements
    proxy_us = (after.proxy_ns - before.proxy_ns) / 1000 / statements
    user = after.proxy_user_share[0] - before.proxy_user_share[0]
    total = after.proxy_user_share[1] - before.proxy_user_share[1]
    postgres_s = (after.postgres_ns - before.postgres_ns) / 1e9
    ours = postgres_s + (after.client_s - before.client_s) + (after.proxy_ns - before.proxy_ns) / 1e9
    capacity = (after.at - before.at) * (os.cpu_count() or 1)
    return Cell(
        **figures,
        p50_ms=percentile(latencies, 0.50),
        p99_ms=percentile(latencies, 0.99),
        proxy_us=proxy_us if is_proxy else None,
        proxy_user_us=proxy_us * user / total if is_proxy and total else None,
        postgres_us=postgres_s * 1e6 / statements,
        other_load=max(0.0, (after.busy_s - before.busy_s - ours) / capacity),
    )


class Perf:
    """Counts by the kernel's trace points: exact and cheap, but usually for root only."""

    name = "perf, trace point raw_syscalls:sys_enter"

    @staticmethod
    def works(children):
        """Whether perf is there and may count system calls."""
        argv = ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "true"]
        if not shutil.which("perf"):
            return False
        code, _, err = children.run("perf", argv, check=False)
        return code == 0 and parse_perf(err).get("total", 0) > 0

    @staticmethod
    def count(meter, pids, argv, seconds):
        """pgbench's figures and the counts while it ran."""
        path = os.path.join(meter.directory, "perf.csv")
        events = ",".join(["raw_syscalls:sys_enter", *(f"syscalls:sys_enter_{name}" for name in known_calls())])
        prefix = ["perf", "stat", "-x", ",", "-o", path, "-e", events, "-p", ",".join(map(str, pids)), "--"]
        figures = meter.run_pgbench(prefix + argv, seconds)
        with open(path, encoding="utf-8") as file:
            return figures, parse_perf(file.read())


class Strace:
    """Counts by stopping the process at each call: exact counts, but of a process that was slowed down."""

    name = "strace -c (slows the proxy down, which changes how much it batches)"

    @staticmethod
    def works(children):
        """Whether strace is there and may trace."""
        return bool(shutil.which("strace")) and children.run("strace", ["strace", "-qq", "true"], check=False)[0] == 0

    @staticmethod
    def count(meter, pids, argv, seconds):
        """pgbench's figures and the counts while it ran."""
        path = os.path.join(meter.directory, "strace.txt")
        targets = [part for pid in pids for part in ("-p", str(pid))]
        tracer = meter.children.start("strace", ["strace", "-c", "-f", "-o", path, *targets], stop_signal=signal.SIGINT)
        time.sleep(0.5)
        tracer.require_alive()
        try:
            figures = meter.run_pgbench(argv, seconds)
        finally:
            meter.children.stop(tracer)
        with open(path, encoding="utf-8") as file:
            return figures, parse_strace(file.read())


def known_calls():
    """Those of SYSTEM_CALLS that this kernel has trace points for."""
    return [n for n in SYSTEM_CALLS if os.path.isdir(f"/sys/kernel/tracing/events/syscalls/sys_enter_{n}")]


def find_counter(children):
    """The best way to count system calls here, or None."""
    return next((counter for counter in (Perf, Strace) if counter.works(children)), None)


def parse_perf(text):
    """Counts from `perf stat -x,`: {"total": …, name: …}. Events that were not counted are left out."""
    counts = {}
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) < 3 or not fields[0].isdigit():
            continue
        name = fields[2].rpartition("sys_enter")[2].lstrip("_") or "total"
        counts[name] = counts.get(name, 0) + int(fields[0])
    return counts


def parse_strace(text):
    """Counts from `strace -c`: {"total": …, name: …}."""
    counts = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 5 and re.fullmatch(r"[\d.]+", fields[0]) and fields[3].isdigit():
            counts[fields[-1]] = int(fields[3])
    if "total" not in counts:
        raise Failure(f"strace gave no summary: {text[-300:]}")
    return counts
