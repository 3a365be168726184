"""What the suites run on: a throwaway primary with two standbys, and one way to reach it.

A way is `direct` (the primary itself), `pgregent` (transaction pooling, reads on standbys) or `pgbouncer`
(transaction pooling, the primary only, for comparison). PostgreSQL's suites log in as many roles, superusers
included, so nodes and proxies trust whoever is on loopback; proofs of identity are other tests' business.

Invariants: every process and file made here is gone when `Rig.close` returns. Nodes run as an unprivileged user
and must read what suites hand them by path, so everything lives in a directory of that user.
"""

import os
import shutil
import signal
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "benches", "compare"))

from processes import Children, Failure, clean_environment, free_port, server_user, wait_until  # noqa: E402

WAYS = ("direct", "pgregent", "pgbouncer")
SUPERUSER = "postgres"
MONITOR = "pgregent"
STANDBYS = 2
POOL_SIZE = 60
"""Above the 20 sessions of pg_regress's largest group: a suite must not measure queueing."""
NODE_BUDGET = 200
START_TIMEOUT_S = 60.0
INITDB_OPTIONS = ("--no-locale", "-E", "UTF8")
SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "300",
    "max_prepared_transactions": "10",
    "shared_buffers": "128MB",
    "fsync": "off",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_wal_size": "2GB",
    "wal_retrieve_retry_interval": "200ms",
    "log_line_prefix": "'%m [%p] %q%a '",
}


class Rig:
    """The cluster and the way to it. `port` is where a suite connects."""

    def __init__(self, way, tools, program=None, consistency="session"):
        self.way = way
        self.program = program
        self.consistency = consistency
        self.children = Children()
        self.user = server_user()
        # Short and outside of homes: the unprivileged user must reach it.
        self.directory = tempfile.mkdtemp(prefix="pgregent-suite-", dir="/tmp")
        self.own(self.directory)
        self.tools = self._reachable(tools)
        self.node_ports = []
        self.port = None

    def __enter__(self):
        try:
            self._start_nodes()
            self._start_way()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Stops everything and removes it, unless SUITES_KEEP is set."""
        self.children.stop_all()
        if os.environ.get("SUITES_KEEP"):
            print(f"kept: {self.directory}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def own(self, path):
        """Gives a path to the user that servers run as."""
        os.chmod(path, 0o755 if os.path.isdir(path) else 0o644)
        if self.user:
            shutil.chown(path, self.user, self.user)

    def tool(self, name):
        """Path of a PostgreSQL program."""
        path = os.path.join(self.tools, name)
        return path if os.path.exists(path) else name

    def path(self, *parts):
        """A path inside the rig's directory."""
        return os.path.join(self.directory, *parts)

    def make_directory(self, name):
        """A directory that servers may write to."""
        path = self.path(name)
        os.makedirs(path)
        self.own(path)
        return path

    def environment(self, port=None, **extra):
        """Where PostgreSQL's programs connect, in their terms."""
        return clean_environment(
            PGHOST="127.0.0.1", PGPORT=str(port or self.port), PGUSER=SUPERUSER, PGDATABASE="postgres", **extra
        )

    def run(self, argv, *, port=None, timeout=600.0, cwd=None, env=None, **options):
        """Runs a command as the servers' user: (exit code, standard output, standard error). Code 124: took too long."""
        options = {"user": self.user, "cwd": cwd or self.directory, "env": self.environment(port, **(env or {})), **options}
        name = os.path.basename(argv[0])
        try:
            return self.children.run(name, argv, timeout=timeout, check=False, errors="replace", **options)
        except Failure as failure:
            return 124, "", str(failure)

    def sql(self, text, port=None, database="postgres"):
        """Runs SQL; the output of psql without decoration. Raises `Failure`."""
        argv = [self.tool("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
        code, out, err = self.run(argv, port=port or self.node_ports[0], stdin_text=text, timeout=60)
        if code != 0:
            raise Failure(f"{text!r}: {err}")
        return out.strip()

    def settle(self):
        """Waits until the standbys have replayed everything."""
        wait_until("standbys have replayed", self._level, START_TIMEOUT_S)

    def _level(self):
        sql = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_flush_lsn()"
        return int(self.sql(sql)) == STANDBYS

    def _reachable(self, tools):
        """Server programs in the working tree are copied to where the servers' user may go, with what belongs to them."""
        if not tools.startswith(ROOT):
            return tools
        top, inside = tools.split("/usr/", 1)
        shutil.copytree(os.path.join(top, "usr"), self.path("server", "usr"), symlinks=True)
        os.chmod(self.path("server"), 0o755)
        return self.path("server", "usr", inside)

    def _start_nodes(self):
        data = self.path("pg1")
        self._must("initdb", ["-D", data, "-U", SUPERUSER, "-A", "trust", "--no-sync", *INITDB_OPTIONS])
        with open(os.path.join(data, "postgresql.conf"), "a", encoding="ascii") as file:
            file.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
        self._start_node("pg1")
        self.sql(
            f"CREATE ROLE {MONITOR} LOGIN REPLICATION IN ROLE pg_monitor, pg_signal_backend;"
            f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO {MONITOR};"
        )
        for number in range(2, 2 + STANDBYS):
            name = f"pg{number}"
            argv = ["-D", self.path(name), "-R", "-C", "-S", name, "-X", "stream", "-c", "fast", "--no-sync"]
            self._must("pg_basebackup", argv, self.node_ports[0])
            self._start_node(name)
        self.settle()

    def _must(self, tool, argv, port=None):
        code, out, err = self.run([self.tool(tool), *argv], port=port or 1)
        if code != 0:
            raise Failure(f"{tool}: {err or out}")

    def _start_node(self, name):
        port = free_port()
        self.node_ports.append(port)
        argv = [self.tool("postgres"), "-D", self.path(name), "-p", str(port)]
        child = self.children.start(
            name, argv, log_path=self.path(name + ".log"), user=self.user, stop_signal=signal.SIGINT, cwd=self.directory
        )
        self._await_answer(child, port)

    def _await_answer(self, child, port):
        def answers():
            child.require_alive()
            try:
                return self.sql("SELECT 1", port=port) == "1"
            except Failure:
                return False

        wait_until(f"{child.name} answers", answers, START_TIMEOUT_S, 0.1)

    def _start_way(self):
        if self.way == "direct":
            self.port = self.node_ports[0]
            return
        self.port = free_port()
        start = {"pgregent": self._start_pgregent, "pgbouncer": self._start_pgbouncer}[self.way]
        self._await_answer(start(), self.port)

    def _start_pgregent(self):
        nodes = "".join(
            f'[[node]]\nname = "pg{number}"\naddress = "127.0.0.1:{port}"\n\n'
            for number, port in enumerate(self.node_ports, 1)
        )
        state = self.make_directory("state")
        config = (
            f'[server]\nlisten = ["127.0.0.1:{self.port}"]\n\n[admin]\nlisten = "127.0.0.1:{free_port()}"\n\n'
            f'[cluster]\nname = "suites"\nmonitor_user = "{MONITOR}"\nfailover = "manual"\nstate_dir = "{state}"\n\n'
            f'{nodes}[pool]\nmode = "transaction"\nsize = {POOL_SIZE}\nnode_budget = {NODE_BUDGET}\n\n'
            f'[route]\nread_write_split = true\nconsistency = "{self.consistency}"\n\n[auth]\nmethod = "trust"\n\n'
            f'[log]\nfilter = "{os.environ.get("SUITES_LOG", "info")}"\n'
        )
        return self._start_proxy("pgregent", "pgregent.toml", config, lambda path: [self.program, "serve", "--config", path])

    def _start_pgbouncer(self):
        program = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if not program:
            raise Failure("PgBouncer is not installed (apt-get install pgbouncer)")
        self.program = program
        users = self.path("users.txt")
        with open(users, "w", encoding="ascii") as file:
            file.write(f'"{SUPERUSER}" ""\n')
        self.own(users)
        config = (
            f"[databases]\n* = host=127.0.0.1 port={self.node_ports[0]}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = 1000\n"
            # It takes no `options` before 1.20; refused otherwise.
            "ignore_startup_parameters = options,extra_float_digits\n"
        )
        return self._start_proxy("pgbouncer", "pgbouncer.ini", config, lambda path: [program, "-q", path])

    def _start_proxy(self, name, file_name, config, command):
        path = self.path(file_name)
        with open(path, "w", encoding="ascii") as file:
            file.write(config)
        self.own(path)
        return self.children.start(
            name, command(path), log_path=self.path(name + ".log"), user=self.user, stop_signal=signal.SIGTERM, cwd=self.directory
        )

    def log(self, name):
        """What a child wrote: `pg1` to `pg3`, `pgregent`, `pgbouncer`."""
        with open(self.path(name + ".log"), encoding="utf-8", errors="replace") as file:
            return file.read()
