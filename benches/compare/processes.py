"""Child processes that never outlive the run.

Invariants: every process started here is in its own session, is known to `Children`, and dies with this
process even if that is killed (parent death signal). Only processes of `Children` are ever signalled.
Deliberately absent: finding processes by name.
"""

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field

STOP_TIMEOUT_S = 10.0
"""How long a child may take to stop before it is killed."""
COMMAND_TIMEOUT_S = 120.0
"""Default time limit of a command that is run to its end."""
PORT_RANGE = (20000, 32000)
"""Below Linux's usual range of outgoing ports, so that no client socket takes a port before its server does."""
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """Something the benchmark needs does not work; the text is for the person who started it."""


def server_user():
    """The user that PostgreSQL and PgBouncer run as: both refuse root. None: the current one."""
    return "postgres" if os.geteuid() == 0 else None


def clean_environment(**extra):
    """A small environment: no PG* variable of the caller changes a result."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C", **extra}


def free_port():
    """A loopback TCP port that nobody listens on now. Never returns the same one twice."""
    for _ in range(1000):
        port = random.randrange(*PORT_RANGE)
        if port in free_port.given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free_port.given.add(port)
        return port
    raise Failure("no free TCP port on 127.0.0.1")


free_port.given = set()


@dataclass
class Child:
    """A process started by us."""

    name: str
    process: subprocess.Popen
    stop_signal: int
    log_path: str = ""

    @property
    def pid(self):
        """Its process id."""
        return self.process.pid

    def log_tail(self, lines=15):
        """The end of what it wrote, for error messages."""
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as log:
                return "".join(log.readlines()[-lines:])
        except OSError:
            return ""

    def require_alive(self):
        """Raises `Failure` if it has ended."""
        if self.process.poll() is not None:
            raise Failure(f"{self.name} ended with code {self.process.returncode}:\n{self.log_tail()}")

    def stop(self):
        """Asks it to stop, waits, and kills its whole session in the end. Does not raise."""
        # PostgreSQL asked to stop (SIGINT) may be told once more (SIGQUIT) before it is killed.
        signals = [self.stop_signal] + ([signal.SIGQUIT] if self.stop_signal == signal.SIGINT else [])
        for number in signals:
            if self.process.poll() is None:
                self.process.send_signal(number)
                try:
                    self.process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    pass
        self.kill_session()
        self.process.wait()

    def kill_session(self):
        """Kills what is left of its process group (the group's id is the pid: it leads its session)."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@dataclass
class Children:
    """All processes of this run."""

    running: list = field(default_factory=list)

    def start(self, name, argv, *, log_path=None, user=None, stop_signal=signal.SIGTERM, env=None, **popen):
        """Starts a process in its own session. With `log_path`, its output goes there."""
        log = open(log_path, "ab") if log_path else None
        identity = {"user": user, "group": user, "extra_groups": []} if user else {}
        parent = os.getpid()
        # With PostgreSQL SIGQUIT is the immediate shutdown: SIGKILL would leave its children and shared memory.
        death_signal = signal.SIGQUIT if stop_signal == signal.SIGINT else signal.SIGKILL

        def before_exec():
            _libc.prctl(PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                os._exit(1)

        try:
            process = subprocess.Popen(
                argv,
                stdin=popen.pop("stdin", subprocess.DEVNULL),
                stdout=popen.pop("stdout", log or subprocess.DEVNULL),
                stderr=popen.pop("stderr", log or subprocess.DEVNULL),
                env=env or clean_environment(),
                start_new_session=True,
                preexec_fn=before_exec,
                **identity,
                **popen,
            )
        except OSError as error:
            raise Failure(f"cannot start {name} ({argv[0]}): {error}") from error
        finally:
            if log:
                log.close()
        child = Child(name, process, stop_signal, log_path or "")
        self.running.append(child)
        return child

    def run(self, name, argv, *, timeout=COMMAND_TIMEOUT_S, check=True, stdin_text=None, **options):
        """Runs a command to its end: (exit code, standard output, standard error). Bounded by `timeout` seconds."""
        stdin = subprocess.PIPE if stdin_text is not None else subprocess.DEVNULL
        child = self.start(
            name, argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        try:
            out, err = child.process.communicate(stdin_text, timeout)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"{name} took more than {timeout:.0f} s") from error
        finally:
            self.stop(child)
        if check and child.process.returncode != 0:
            raise Failure(f"{name} failed with code {child.process.returncode}: {(err or out).strip()[-2000:]}")
        return child.process.returncode, out, err

    def stop(self, child):
        """Stops one child."""
        child.stop()
        if child in self.running:
            self.running.remove(child)

    def stop_all(self):
        """Stops every child, latest first."""
        for child in reversed(self.running[:]):
            self.stop(child)


def wait_until(what, condition, timeout, interval=0.05):
    """Polls `condition` until it returns something true, and returns that. Raises `Failure` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)
