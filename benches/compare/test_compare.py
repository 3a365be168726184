"""Tests of the parts that judge and parse: python3 -m unittest discover -s benches/compare

What needs servers is tested by running run.py.
"""

import os
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import allocations
import idle
import measure
import report
import run
from processes import Children, Failure, free_port

PGBENCH = """pgbench (15.20)
transaction type: <builtin: select only>
number of transactions actually processed: 48640
number of failed transactions: 3 (0.006%)
latency average = 0.658 ms
initial connection time = 12.345 ms
tps = 24319.250000 (without initial connection time)
"""

PERF = """# started on Sat Nov 21 04:45:00 2026

403,,raw_syscalls:sys_enter,1000,100.00,,
200,,syscalls:sys_enter_sendto,1000,100.00,,
203,,syscalls:sys_enter_recvfrom,1000,100.00,,
<not counted>,,syscalls:sys_enter_poll,0,0.00,,
"""

STRACE = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.100000           5     20000         7 recvfrom
 40.00    0.090000           4     20100           sendto
------ ----------- ----------- --------- --------- ----------------
100.00    0.190000           4     40100         7 total
"""

CALLGRIND = """version: 1
thread: 2
fn=(1) pgregent::session::run
10 500
cfn=(2) malloc'alloc::alloc::alloc'pgregent::session::run::h0123456789abcdef
calls=3 0
10 90
fn=(3) pgregent::relay::pass
cfn=(2)
calls=4 0
cfn=(4) malloc'realloc'grow
calls=100 0
cfn=(5) realloc'grow
calls=2 0
cfn=(6) memcpy
calls=9 0
totals: 12345
"""


def result_with(ours, peers, calls=4.0, memory=3.0, nodes=(0, 500, 500)):
    """A result in which every protocol has the same figures; `ours` and `peers` are CPU per round."""
    cells = []
    for mine, other in zip(ours, peers, strict=True):
        counted = {"total": calls, "sendto": calls / 2}
        pair = {"pgregent": {"proxy_us": mine, "system_calls": counted}, "pgbouncer": {"proxy_us": other}}
        cells.append({report.bar_workload(protocol): pair for protocol in measure.PROTOCOLS})
    details = {
        "memory": {"clients": 10, "before_kib": 9, "fresh_kib_per_client": 1.0, "used_kib_per_client": memory},
        "transactions_per_node": dict(zip(("pg1", "pg2", "pg3"), nodes, strict=True)),
    }
    setup = {
        "when": "now",
        "entries": ["pgbouncer", "pgregent"],
        "workloads": [report.bar_workload(p) for p in measure.PROTOCOLS],
        "nodes": ["pg1", "pg2", "pg3"],
        "call_counter": None,
        "facts": {},
        "descriptions": {},
    }
    return {"cells": cells, "details": {"pgregent": details}, "errors": [], "setup": setup, "notes": {}}


def missed(result):
    """Names of the bars that are not met."""
    return [verdict.bar for verdict in report.verdicts(result) if not verdict.met]


class Parsing(unittest.TestCase):
    def test_pgbench_summary(self):
        self.assertEqual(
            measure.parse_pgbench(PGBENCH), {"transactions": 48640, "failed": 3, "tps": 24319.25, "latency_ms": 0.658}
        )

    def test_pgbench_with_a_connection_per_transaction(self):
        text = PGBENCH.replace("(without initial connection time)", "(including reconnection times)")
        self.assertEqual(measure.parse_pgbench(text)["tps"], 24319.25)

    def test_login_workloads_say_what_they_ask(self):
        logins = {w.name: (w.asks_password, w.is_encrypted) for w in measure.all_workloads() if w.is_login}
        ways = [(False, False), (True, False), (False, True), (True, True)]
        self.assertEqual(logins, dict(zip((f"login {way} 8" for way in measure.LOGINS), ways, strict=True)))
        self.assertFalse(any(w.asks_password or w.is_encrypted for w in measure.all_workloads() if not w.is_login))

    def test_pgbench_without_a_summary_is_a_failure(self):
        with self.assertRaises(Failure):
            measure.parse_pgbench("pgbench: error: connection refused")

    def test_perf_keeps_the_total_apart_and_leaves_out_what_was_not_counted(self):
        self.assertEqual(measure.parse_perf(PERF), {"total": 403, "sendto": 200, "recvfrom": 203})

    def test_strace_with_and_without_errors(self):
        self.assertEqual(measure.parse_strace(STRACE), {"recvfrom": 20000, "sendto": 20100, "total": 40100})
        with self.assertRaises(Failure):
            measure.parse_strace("")

    def test_percentile_is_nearest_rank(self):
        values = list(range(1, 101))
        self.assertEqual(measure.percentile(values, 0.50), 50)
        self.assertEqual(measure.percentile(values, 0.99), 99)
        self.assertEqual(measure.percentile([7], 0.99), 7)
        self.assertIsNone(measure.percentile([], 0.5))

    def test_messages_are_split_wherever_the_bytes_are_cut(self):
        whole = bytearray(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
        self.assertEqual(idle.split_messages(bytearray(whole)), [("R", b"\0\0\0\0"), ("Z", b"I")])
        for cut in range(len(whole)):
            buffer, messages = bytearray(), []
            for part in (whole[:cut], whole[cut:]):
                buffer += part
                messages += idle.split_messages(buffer)
            self.assertEqual([tag for tag, _ in messages], ["R", "Z"], f"cut at {cut}")
        with self.assertRaises(ValueError):
            idle.split_messages(bytearray(b"Z\0\0\0\x03"))

    def test_callgrind_counts_each_allocation_once(self):
        profile = allocations.Profile(CALLGRIND.splitlines())
        self.assertEqual(profile.instructions, 12345)
        self.assertTrue(profile.moves_data)
        self.assertEqual(sum(profile.allocations.values()), 3 + 4 + 2)

    def test_only_threads_that_move_data_count(self):
        data = allocations.Profile(CALLGRIND.splitlines())
        control = allocations.Profile(["fn=(1) pgregent::monitor::probe", "cfn=(2) malloc'x", "calls=7 0", "totals: 5"])
        self.assertEqual(allocations.add_profiles([data, control]).instructions, 12345)
        self.assertEqual(allocations.add_profiles([control, control]).instructions, 10)

    def test_the_difference_of_two_profiles_is_per_transaction(self):
        short, long = (allocations.Profile(["cfn=(1) malloc'f", f"calls={n} 0", f"totals: {n}"]) for n in (100, 300))
        counts = allocations.per_transaction(short, long, 50)
        self.assertEqual((counts["allocations"], counts["instructions"]), (4.0, 4.0))
        self.assertEqual(counts["origins"], {"malloc'f": 4.0})


class Verdicts(unittest.TestCase):
    def test_all_bars_met(self):
        self.assertEqual(missed(result_with([12, 13], [10, 10])), [])
        self.assertEqual(report.exit_code(result_with([12, 13], [10, 10]), check=True), 0)

    def test_ratios_are_taken_within_a_round(self):
        # Medians over rounds would say 20/20; each round by itself says 1.5, 1.5 and 0.1.
        result = result_with([15, 30, 20], [10, 20, 200])
        self.assertAlmostEqual(report.verdicts(result)[0].measured, 1.5)

    def test_each_bar_can_be_missed(self):
        good = {"ours": [10], "peers": [10]}
        self.assertEqual(len(missed(result_with([13.1], [10]))), 3)
        self.assertEqual(len(missed(result_with(**good, calls=4.41))), 3)
        self.assertEqual(missed(result_with(**good, memory=4.1)), ["KiB per idle client that ran a query"])
        for nodes in ((1000, 0, 0), (0, 1000, 0), (300, 500, 200)):
            bars = missed(result_with(**good, nodes=nodes))
            self.assertEqual(bars, ["least share of the reads on a standby"], nodes)

    def test_what_was_not_measured_is_missed(self):
        result = result_with([10], [10])
        result["details"] = {}
        self.assertEqual(len(missed(result)), 2)
        result["cells"] = []
        self.assertEqual(len(missed(result)), 8)
        self.assertEqual(report.exit_code(result, check=True), 1)
        self.assertEqual(report.exit_code(result, check=False), 0)

    def test_errors_win_over_bars(self):
        result = result_with([10], [10])
        result["errors"].append("pgregent did not start")
        self.assertEqual(report.exit_code(result, check=False), 2)

    def test_the_report_names_missed_bars_and_errors(self):
        result = result_with([20], [10])
        result["errors"].append("pgregent fell over")
        text = report.markdown(result)
        self.assertIn("| 2.00 | <= 1.3 | MISSED | - |", text)
        self.assertIn("| pgregent, simple | 4.00 | sendto 2.00 |", text)
        self.assertIn("pgregent fell over", text)
        self.assertIn("20.0 (2.00)", text)

    def test_allocations_must_be_counted_in_every_protocol(self):
        counts = {"pgregent": {protocol: {"allocations": 0.01} for protocol in measure.PROTOCOLS}}
        self.assertTrue(allocations.bars_met(counts))
        counts["pgregent"]["simple"]["allocations"] = 1.0
        self.assertFalse(allocations.bars_met(counts))
        del counts["pgregent"]["simple"]
        self.assertFalse(allocations.bars_met(counts))


class OptionsFromEnvironment(unittest.TestCase):
    def test_all_problems_at_once(self):
        with self.assertRaises(Failure) as caught:
            run.Options.read({"ROUNDS": "0", "SECONDS": "x", "ENTRIES": "nginx", "WORKLOADS": "nothing"})
        for name in ("ROUNDS", "SECONDS", "ENTRIES", "WORKLOADS"):
            self.assertIn(name, str(caught.exception))

    def test_workloads_are_chosen_by_whole_words(self):
        names = [w.name for w in run.Options.read({"WORKLOADS": "simple 1, tpcb"}).workloads]
        self.assertEqual(names, ["select simple 1", "tpcb prepared 16"])
        self.assertEqual(len(run.Options.read({}).workloads), 14)


class Processes(unittest.TestCase):
    def test_cpu_clock_counts_work_and_not_sleep(self):
        children = Children()
        child = children.start("worker", [sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass\ntime.sleep(9)"])
        try:
            time.sleep(0.1)
            deadline = time.monotonic() + 10
            while measure.cpu_ns(child.pid) < 200_000_000 and time.monotonic() < deadline:
                time.sleep(0.02)
            first = measure.cpu_ns(child.pid)
            time.sleep(0.2)
            self.assertGreaterEqual(first, 200_000_000)
            self.assertLess(measure.cpu_ns(child.pid) - first, 50_000_000)
        finally:
            children.stop_all()
        self.assertEqual(measure.cpu_ns(child.pid), 0)

    def test_a_child_that_ignores_the_request_is_killed_with_its_children(self):
        script = "trap '' TERM; sleep 20 & echo $!; wait; wait"
        children = Children()
        child = children.start("stubborn", ["sh", "-c", script], stdout=subprocess.PIPE, text=True)
        grandchild = int(child.process.stdout.readline())
        import processes

        usual, processes.STOP_TIMEOUT_S = processes.STOP_TIMEOUT_S, 0.2
        started = time.monotonic()
        try:
            children.stop_all()
        finally:
            processes.STOP_TIMEOUT_S = usual
            child.process.stdout.close()
        self.assertEqual(children.running, [])
        self.assertLess(time.monotonic() - started, 10, "it was waited for, not killed")
        deadline = time.monotonic() + 5
        while alive(grandchild) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertFalse(alive(grandchild))

    def test_children_die_with_a_killed_parent(self):
        code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom processes import Children\n"
        code += "print(Children().start('sleeper', ['sleep', '60']).pid, flush=True)\nimport time; time.sleep(60)"
        here = os.path.dirname(os.path.abspath(__file__))
        with subprocess.Popen([sys.executable, "-c", code, here], stdout=subprocess.PIPE, text=True) as parent:
            pid = int(parent.stdout.readline())
            self.assertTrue(alive(pid))
            parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertFalse(alive(pid))

    def test_ports_are_not_given_twice(self):
        self.assertEqual(len({free_port() for _ in range(50)}), 50)


def alive(pid):
    """Whether the process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
