"""From measurements to verdicts and a Markdown report. Pure: no clock, no process, no file.

A result is one dictionary, the same that is written as JSON:
`cells[round][workload][entry]` (see `measure.Cell`), `details[entry]` (memory, reads per node),
`errors` (list of texts), `setup` (what was measured, where), `notes` (entry: workload: text).
Ratios are taken within a round, entry to PgBouncer, and then the median over rounds: other work on the machine
then hits both sides.
"""

from dataclasses import dataclass
from statistics import median

from measure import BAR_CLIENTS, PROTOCOLS

SUBJECT = "pgregent"
PEER = "pgbouncer"

CPU_RATIO_MAX = 1.3
"""Proxy CPU per statement relative to PgBouncer, at BAR_CLIENTS clients, each protocol."""
SYSTEM_CALLS_MAX = 4.4
"""Per statement, at BAR_CLIENTS clients, each protocol."""
IDLE_KIB_MAX = 4.0
"""Per idle client that has run a query."""
STANDBY_SHARE_MIN = 0.25
"""Share of the reads that each standby must have served: else splitting was off, and the CPU figures mean nothing."""


@dataclass(frozen=True)
class Verdict:
    """One bar: `measured` None means it was not measured, which counts as missed."""

    bar: str
    measured: float | None
    limit: float
    at_least: bool = False
    peer: float | None = None
    """What PgBouncer needed in the same run, where that is the same question."""

    @property
    def met(self):
        """Whether the bar is met."""
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def figures(result, workload, entry, field):
    """A field of a cell over all rounds in which it was measured."""
    values = (cells.get(workload, {}).get(entry, {}).get(field) for cells in result["cells"])
    return [value for value in values if value is not None]


def middle(values):
    """Median, or None of nothing."""
    return median(values) if values else None


def ratios(result, workload, entry, field):
    """The field relative to the peer, per round in which both were measured."""
    found = []
    for cells in result["cells"]:
        ours = cells.get(workload, {}).get(entry, {}).get(field)
        peers = cells.get(workload, {}).get(PEER, {}).get(field)
        if ours is not None and peers:
            found.append(ours / peers)
    return found


def bar_workload(protocol):
    """The workload that a bar is about."""
    return f"select {protocol} {BAR_CLIENTS}"


def system_calls(result, entry, protocol):
    """System calls per statement, medians over rounds: {"total": …, name: …}; empty if they were not counted."""
    rounds = figures(result, bar_workload(protocol), entry, "system_calls")
    names = {name for counts in rounds for name in counts}
    return {name: median(counts.get(name, 0) for counts in rounds) for name in names}


def idle_kib(result, entry):
    """KiB per idle client that ran a query, or None."""
    return (result["details"].get(entry, {}).get("memory") or {}).get("used_kib_per_client")


def verdicts(result):
    """All bars, in the order of the report."""
    found = []
    for protocol in PROTOCOLS:
        ratio = middle(ratios(result, bar_workload(protocol), SUBJECT, "proxy_us"))
        found.append(Verdict(f"CPU per statement relative to PgBouncer, {protocol}, {BAR_CLIENTS} clients", ratio, CPU_RATIO_MAX))
    for protocol in PROTOCOLS:
        ours, peers = (system_calls(result, entry, protocol).get("total") for entry in (SUBJECT, PEER))
        bar = f"system calls per statement, {protocol}, {BAR_CLIENTS} clients"
        found.append(Verdict(bar, ours, SYSTEM_CALLS_MAX, peer=peers))
    memory = idle_kib(result, SUBJECT)
    found.append(Verdict("KiB per idle client that ran a query", memory, IDLE_KIB_MAX, peer=idle_kib(result, PEER)))
    shares = read_shares(result["details"].get(SUBJECT, {}).get("transactions_per_node"))
    least = min(list(shares.values())[1:], default=None)
    found.append(Verdict("least share of the reads on a standby", least, STANDBY_SHARE_MIN, at_least=True))
    return found


def read_shares(counts):
    """Share per node, primary first; empty if nothing was counted."""
    total = sum(counts.values()) if counts else 0
    return {name: count / total for name, count in counts.items()} if total else {}


def exit_code(result, check):
    """0 good; 1 a bar was missed and `check` asks for it; 2 something failed to run."""
    if result["errors"]:
        return 2
    return 1 if check and not all(verdict.met for verdict in verdicts(result)) else 0


def number(value, digits=1):
    """A figure for a table cell."""
    return "-" if value is None else f"{value:,.{digits}f}"


def with_ratio(value, ratio_list, digits):
    """A figure and, in brackets, its ratio to the peer."""
    ratio = middle(ratio_list)
    return number(value, digits) + (f" ({ratio:.2f})" if ratio is not None else "")


def table(header, rows):
    """A Markdown table, first column left, the others right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def field_table(result, field, digits, relative=True, proxies_only=False):
    """One row per workload, one column per entry: median over rounds, and the median ratio to the peer."""
    entries = [name for name in result["setup"]["entries"] if not (proxies_only and name == "direct")]
    rows = []
    for workload in result["setup"]["workloads"]:
        row = [workload]
        for entry in entries:
            ratio_list = ratios(result, workload, entry, field) if relative and entry != PEER else []
            text = with_ratio(middle(figures(result, workload, entry, field)), ratio_list, digits)
            row.append(text + (" ¹" if result["notes"].get(entry, {}).get(workload) else ""))
        rows.append(row)
    return table(["workload", *entries], rows)


def spread_table(result):
    """How far apart the rounds were for the ratios that the bars are about."""
    rows = []
    for entry in result["setup"]["entries"]:
        for protocol in PROTOCOLS if entry not in (PEER, "direct") else ():
            found = ratios(result, bar_workload(protocol), entry, "proxy_us")
            if found:
                rows.append([f"{entry}, {protocol}", *(number(v, 2) for v in (min(found), median(found), max(found)))])
    return table(["CPU ratio to PgBouncer per round, 16 clients", "least", "median", "most"], rows) if rows else []


def latency_table(result):
    """Mean, p50 and p99 in one cell."""
    entries = result["setup"]["entries"]
    rows = []
    for workload in result["setup"]["workloads"]:
        cells = []
        for entry in entries:
            parts = [middle(figures(result, workload, entry, field)) for field in ("latency_ms", "p50_ms", "p99_ms")]
            cells.append(" / ".join(number(part, 2) for part in parts))
        rows.append([workload, *cells])
    return table(["workload", *entries], rows)


def details_tables(result):
    """System calls, memory and reads per node."""
    lines, rows = ["### System calls per statement", ""], []
    for entry in result["setup"]["entries"]:
        for protocol in PROTOCOLS:
            calls = system_calls(result, entry, protocol)
            if calls:
                parts = sorted(((c, n) for n, c in calls.items() if n != "total" and c >= 0.005), reverse=True)
                told = ", ".join(f"{name} {count:.2f}" for count, name in parts)
                rows.append([f"{entry}, {protocol}", number(calls["total"], 2), told])
    lines += table([f"{BAR_CLIENTS} clients", "total", "of it"], rows)
    lines += [f"Counted with {result['setup']['call_counter'] or 'nothing: neither perf nor strace works here'}.", ""]
    rows = []
    for entry, details in result["details"].items():
        memory = details.get("memory")
        if memory:
            per_client = [number(memory[f"{kind}_kib_per_client"], 2) for kind in ("fresh", "used")]
            rows.append([entry, str(memory["clients"]), number(memory["before_kib"] / 1024), *per_client])
    lines += ["### Memory of an idle client", ""]
    header = ["", "clients", "MiB before", "KiB each, just logged in", "KiB each, ran a query"]
    lines += table(header, rows)
    lines += ["Resident memory of the proxy; the kernel's socket buffers are not in it.", ""]
    lines += ["### Where the reads went", ""]
    rows = []
    for entry, details in result["details"].items():
        counts = details.get("transactions_per_node") or {}
        shares = read_shares(counts)
        if shares:
            rows.append([entry, *(f"{counts[name]:,} ({share:.0%})" for name, share in shares.items())])
    lines += table(["transactions committed", *result["setup"]["nodes"]], rows)
    return lines


def verdict_lines(result):
    """The bars as a table."""
    rows = []
    for verdict in verdicts(result):
        sign = ">=" if verdict.at_least else "<="
        outcome = "met" if verdict.met else ("not measured" if verdict.measured is None else "MISSED")
        measured, peer = number(verdict.measured, 2), number(verdict.peer, 2)
        rows.append([verdict.bar, measured, f"{sign} {verdict.limit:g}", outcome, peer])
    return table(["bar", "measured", "limit", "", "PgBouncer"], rows)


def markdown(result):
    """The whole report."""
    setup = result["setup"]
    lines = [f"# pgregent beside PgBouncer, {setup['when']}", "", *verdict_lines(result)]
    if result["errors"]:
        lines += ["**Not everything ran:**", "", *(f"* {error}" for error in result["errors"]), ""]
    lines += ["### Proxy CPU, µs per statement (ratio to PgBouncer)", ""]
    lines += field_table(result, "proxy_us", 1, proxies_only=True) + spread_table(result)
    lines += ["### Of it in user space, µs per statement (clock ticks)", ""]
    lines += field_table(result, "proxy_user_us", 1, proxies_only=True)
    lines += ["### PostgreSQL CPU, µs per statement, all nodes (ratio to PgBouncer)", "", *field_table(result, "postgres_us", 1)]
    lines += ["### Transactions per second (ratio to PgBouncer)", "", *field_table(result, "tps", 0)]
    lines += ["### Latency, ms: mean / p50 / p99", "", *latency_table(result), *details_tables(result)]
    lines += ["### Other load on the machine, share of all cores", "", *field_table(result, "other_load", 2, relative=False)]
    lines += ["### Set-up", "", *(f"* {name}: {text}" for name, text in setup["facts"].items())]
    lines += [f"* {name}: {text}" for name, text in setup["descriptions"].items()]
    if any(result["notes"].values()):
        lines += ["", "¹ PgBouncer in session mode: this version keeps no prepared statements in transaction mode."]
    return "\n".join(lines) + "\n"
