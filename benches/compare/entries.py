"""What is compared: direct connections, PgBouncer, and pgregent with and without read/write splitting.

Every entry takes the same clients (no proof asked on loopback) and logs in to the nodes with SCRAM. Login workloads
that ask for a proof or TLS have processes of their own. An entry says for each workload which port clients use and
which processes then do the work.
"""

import os
import re
import resource
import shutil
import signal
import subprocess

from cluster import DATABASE, MONITOR_USER, USER
from processes import Failure, clean_environment, free_port, server_user, wait_until

POOL_SIZE = 20
SESSION_POOL_SIZE = 100
"""PgBouncer's pool where it must pool sessions: one backend per client, 64 and some to spare."""
CLIENTS_MAX = 10000
START_TIMEOUT_S = 20.0
PREPARED_SINCE = (1, 21)
"""First PgBouncer that keeps prepared statements apart in transaction mode."""


LOGIN_MODES = ("trust", "scram-sha-256")
"""What the processes for login workloads ask their clients for."""


def make_certificate(children, directory):
    """A self-signed certificate and its key, the same kind for every proxy; made once per directory."""
    certificate, key = os.path.join(directory, "server.crt"), os.path.join(directory, "server.key")
    if not os.path.exists(certificate):
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        argv += ["-days", "30", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
        children.run("openssl req", argv)
        os.chmod(key, 0o600)
    return certificate, key


def allow_open_files():
    """Raises the soft limit of open files to the hard one, for us and what we start; returns it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Entry:
    """One column of the tables. Started and stopped as often as needed."""

    name = ""
    is_proxy = True

    def __init__(self, cluster, children, directory):
        self.cluster = cluster
        self.children = children
        self.directory = os.path.join(directory, self.name)
        self.running = []
        self.logins = False
        os.mkdir(self.directory, 0o700)

    def serves(self, workload):
        """Whether this workload means something here."""
        return True

    def description(self):
        """What it is and how it is configured, one line for the report."""
        raise NotImplementedError

    def start(self):
        """Starts it and waits until it answers a query."""

    def stop(self):
        """Stops it; its backends close."""
        for child in self.running:
            self.children.stop(child)
        self.running = []

    def port(self, workload):
        """Where clients of this workload connect."""
        raise NotImplementedError

    def pids(self, workload):
        """The processes whose CPU and system calls this workload costs, children excluded."""
        return [child.pid for child in self.running]

    def note(self, workload):
        """What differs for this workload, or an empty text."""
        return ""

    def await_answer(self, child, port):
        """Waits until a query through the port is answered. Raises `Failure` with the end of the log."""
        argv = [self.cluster.tool("psql"), "-X", "-A", "-t", "-h", "127.0.0.1", "-p", str(port)]
        argv += ["-U", USER, "-d", DATABASE, "-c", "SELECT 1"]

        def answers():
            child.require_alive()
            environment = clean_environment(PGCONNECT_TIMEOUT="2", PGPASSWORD=self.cluster.password, PGSSLMODE="disable")
            code, out, _ = self.children.run("psql", argv, check=False, env=environment)
            return code == 0 and out.strip() == "1"

        try:
            wait_until(f"{child.name} answers", answers, START_TIMEOUT_S, 0.1)
        except Failure as failure:
            raise Failure(f"{failure}\n{child.log_tail()}") from failure


class Direct(Entry):
    """pgbench connected straight to the primary."""

    name = "direct"
    is_proxy = False

    def description(self):
        return "pgbench connected to the primary"

    def serves(self, workload):
        # The nodes ask for SCRAM and speak no TLS.
        return not workload.is_login or workload.protocol == "scram"

    def port(self, workload):
        return self.cluster.primary.port

    def pids(self, workload):
        return []


class PgBouncer(Entry):
    """PgBouncer in front of the primary.

    Before 1.21 it cannot keep prepared statements apart in transaction mode, so there a second instance, in
    session mode, serves the prepared workloads. That is the harder comparison: it does no bookkeeping at all.
    """

    name = "pgbouncer"

    def __init__(self, cluster, children, directory, program):
        super().__init__(cluster, children, directory)
        self.program = program
        text = children.run("pgbouncer --version", [program, "--version"])[1]
        found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
        if not found:
            raise Failure(f"{program} --version says {text!r}")
        self.version = tuple(int(part) for part in found.groups())
        self.ports = {"transaction": free_port()}
        if not self.keeps_prepared:
            self.ports["session"] = free_port()

    @property
    def keeps_prepared(self):
        """Whether transaction mode serves prepared statements."""
        return self.version[:2] >= PREPARED_SINCE

    def description(self):
        mode = "transaction mode"
        if not self.keeps_prepared:
            mode += f"; prepared workloads: session mode, pool {SESSION_POOL_SIZE} (no prepared statements before 1.21)"
        return f"PgBouncer {'.'.join(map(str, self.version))}, {mode}, pool {POOL_SIZE}, primary only"

    def start(self):
        if self.logins:
            self.ports.setdefault("trust", free_port())
            self.ports.setdefault("scram-sha-256", free_port())
        for mode, port in self.ports.items():
            child = self.children.start(
                f"pgbouncer ({mode})",
                self._command(mode),
                log_path=os.path.join(self.directory, f"{mode}.log"),
                user=server_user(),
                # SIGTERM is its immediate shutdown; SIGINT would wait for clients.
                stop_signal=signal.SIGTERM,
                cwd="/",
            )
            self.running.append(child)
            self.await_answer(child, port)

    def port(self, workload):
        return self.ports[self._mode(workload)]

    def pids(self, workload):
        return [self.running[list(self.ports).index(self._mode(workload))].pid]

    def note(self, workload):
        return "session mode" if self._mode(workload) == "session" else ""

    def command(self, workload):
        """Writes the config of the instance that serves this workload and returns its command line."""
        return self._command(self._mode(workload))

    def _command(self, mode):
        return [self.program, "-q", self._write_config(mode, self.ports[mode])]

    def _mode(self, workload):
        if workload.is_login:
            return "scram-sha-256" if workload.asks_password else "trust"
        return "session" if workload.protocol == "prepared" and not self.keeps_prepared else "transaction"

    def _write_config(self, mode, port):
        users = os.path.join(self.directory, "users.txt")
        path = os.path.join(self.directory, f"{mode}.ini")
        size = SESSION_POOL_SIZE if mode == "session" else POOL_SIZE
        lines = [
            "[databases]",
            f"{DATABASE} = host=127.0.0.1 port={self.cluster.primary.port} dbname={DATABASE}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            f"auth_type = {mode if mode == 'scram-sha-256' else 'trust'}",
            f"auth_file = {users}",
            f"pool_mode = {'session' if mode == 'session' else 'transaction'}",
            f"default_pool_size = {size}",
            f"max_client_conn = {CLIENTS_MAX}",
            "ignore_startup_parameters = extra_float_digits",
            "log_connections = 0",
            "log_disconnections = 0",
            "stats_period = 600",
        ]
        if self.keeps_prepared:
            lines.append("max_prepared_statements = 200")
        if mode in LOGIN_MODES:
            certificate, key = make_certificate(self.children, self.directory)
            lines += ["client_tls_sslmode = allow", f"client_tls_cert_file = {certificate}", f"client_tls_key_file = {key}"]
            if server_user():
                for owned in (certificate, key):
                    shutil.chown(owned, server_user(), server_user())
        for file_path, text in ((users, f'"{USER}" "{self.cluster.password}"\n'), (path, "\n".join(lines) + "\n")):
            with open(file_path, "w", encoding="ascii") as file:
                file.write(text)
            os.chmod(file_path, 0o600)
        if server_user():
            for owned in (self.directory, users, path):
                shutil.chown(owned, server_user(), server_user())
        return path


class Pgregent(Entry):
    """pgregent in front of all three nodes, reads on the standbys."""

    name = "pgregent"
    split = True

    def __init__(self, cluster, children, directory, program, workers):
        super().__init__(cluster, children, directory)
        self.program = program
        self.workers = workers
        self.client_port = free_port()
        self.admin_port = free_port()
        self.login_ports = {}

    def description(self):
        split = "on" if self.split else "off"
        threads = self.workers or "one per core"
        return f"pgregent, transaction mode, read/write split {split}, three nodes, pool {POOL_SIZE}, workers: {threads}"

    def start(self):
        child = self.children.start(
            self.name,
            self.command(),
            log_path=os.path.join(self.directory, "log"),
        )
        self.running.append(child)
        self.await_answer(child, self.client_port)
        for method in LOGIN_MODES if self.logins else ():
            port = self.login_ports.setdefault(method, free_port())
            log_path = os.path.join(self.directory, f"{method}.log")
            child = self.children.start(f"{self.name} ({method})", self.login_command(method, port), log_path=log_path)
            self.running.append(child)
            self.await_answer(child, port)

    def command(self):
        """Writes the config and returns the command line."""
        return self._serve("pgregent.toml", self.config())

    def _serve(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(path, 0o600)
        return [self.program, "serve", "--config", path]

    def login_command(self, method, port):
        """The same proxy for the login workloads: another port, this proof, TLS for who wants it."""
        certificate, key = make_certificate(self.children, self.directory)
        text = self.config().replace(f"127.0.0.1:{self.client_port}", f"127.0.0.1:{port}")
        text = text.replace(f"127.0.0.1:{self.admin_port}", f"127.0.0.1:{free_port()}")
        text = text.replace('method = "trust"', f'method = "{method}"').replace('name = "bench"', f'name = "bench-{method}"', 1)
        return self._serve(f"{method}.toml", f'[tls]\ncert_file = "{certificate}"\nkey_file = "{key}"\n\n{text}')

    def config(self):
        """The config file's text."""
        nodes = "".join(
            f'[[node]]\nname = "{node.name}"\naddress = "127.0.0.1:{node.port}"\n\n' for node in self.cluster.nodes
        )
        return (
            f'[server]\nlisten = ["127.0.0.1:{self.client_port}"]\nworkers = {self.workers}\n'
            f"max_client_connections = {CLIENTS_MAX}\n\n"
            f'[admin]\nlisten = "127.0.0.1:{self.admin_port}"\n\n'
            f'[cluster]\nname = "bench"\nmonitor_user = "{MONITOR_USER}"\n'
            f'monitor_password = "{self.cluster.monitor_password}"\n'
            f'failover = "manual"\ncoordination = "single"\nstate_dir = "{self.directory}"\n\n'
            f"{nodes}"
            f'[pool]\nmode = "transaction"\nsize = {POOL_SIZE}\n\n'
            f"[route]\nread_write_split = {'true' if self.split else 'false'}\n\n"
            f'[auth]\nmethod = "trust"\n\n'
            f'[[auth.user]]\nname = "{USER}"\npassword = "{self.cluster.password}"\n'
        )

    def _login_method(self, workload):
        return "scram-sha-256" if workload.asks_password else "trust"

    def port(self, workload):
        return self.login_ports[self._login_method(workload)] if workload.is_login else self.client_port

    def pids(self, workload):
        index = 1 + LOGIN_MODES.index(self._login_method(workload)) if workload.is_login else 0
        return [child.pid for child in self.running[index : index + 1]]


class PgregentWhole(Pgregent):
    """pgregent with splitting off: everything on the primary, as PgBouncer does it."""

    name = "pgregent-nosplit"
    split = False


def find_pgbouncer():
    """PGBOUNCER, or the Debian package's program."""
    named = os.environ.get("PGBOUNCER")
    found = named or shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin")
    if not found:
        raise Failure("PgBouncer is not installed (apt-get install pgbouncer)")
    return found


def why_pgregent_cannot_serve(program):
    """None if the binary has its `serve --config` command, else the reason in one line."""
    try:
        answer = subprocess.run(
            [program, "serve", "--help"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{os.path.basename(program)}: {error.__class__.__name__}"
    if answer.returncode != 0 or "--config" not in answer.stdout:
        return "this build has no `serve --config` command"
    return None
