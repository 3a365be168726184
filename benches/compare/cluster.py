"""A throwaway PostgreSQL cluster: one primary and two streaming standbys on loopback ports.

Made with PostgreSQL's own tools; everything lives in one temporary directory. Durability is off, so that the
disk does not measure itself: never copy these settings.
"""

import glob
import os
import re
import secrets
import shutil
import signal
from dataclasses import dataclass

from processes import Child, Failure, clean_environment, free_port, server_user, wait_until

SUPERUSER = "postgres"
USER = "bench"
DATABASE = "bench"
MONITOR_USER = "pgregent"
STANDBYS = 2
START_TIMEOUT_S = 30.0
CONNECTIONS_MAX = 400
"""max_connections: every pool of every proxy at once, and 64 direct clients."""

SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": str(CONNECTIONS_MAX),
    "shared_buffers": "256MB",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "password_encryption": "'scram-sha-256'",
    "wal_level": "replica",
    "hot_standby": "on",
    "max_wal_senders": "10",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "wal_retrieve_retry_interval": "200ms",
}


def find_tools():
    """The directory of PostgreSQL's server programs: PGREGENT_PG_BIN, else Debian's 15, else the oldest from 15 on."""
    named = os.environ.get("PGREGENT_PG_BIN")
    if named:
        return named
    found = {}
    for path in glob.glob("/usr/lib/postgresql/*/bin/initdb"):
        version = re.search(r"/postgresql/(\d+)/", path)
        if version and int(version[1]) >= 15:
            found[int(version[1])] = os.path.dirname(path)
    if found:
        return found[min(found)]
    initdb = shutil.which("initdb")
    if initdb:
        return os.path.dirname(os.path.realpath(initdb))
    raise Failure("PostgreSQL 15 or newer is not installed (apt-get install postgresql-15)")


@dataclass
class Node:
    """One PostgreSQL instance."""

    name: str
    port: int
    directory: str
    log_path: str
    child: Child | None = None


class Cluster:
    """Creates, starts and asks the nodes. `nodes[0]` is the primary."""

    def __init__(self, children, directory, scale):
        self.children = children
        self.directory = os.path.join(directory, "nodes")
        self.tools = find_tools()
        self.scale = scale
        self.user = server_user()
        self.superuser_password = secrets.token_hex(16)
        self.password = secrets.token_hex(16)
        self.monitor_password = secrets.token_hex(16)
        self.nodes = []
        os.mkdir(self.directory, 0o700)
        if self.user:
            shutil.chown(self.directory, self.user, self.user)

    @property
    def primary(self):
        """The node that accepts writes."""
        return self.nodes[0]

    def tool(self, name):
        """Path of a PostgreSQL program."""
        path = os.path.join(self.tools, name)
        return path if os.path.exists(path) else name

    def version(self):
        """As `postgres --version` says."""
        return self.children.run("postgres --version", [self.tool("postgres"), "--version"])[1].strip()

    def create(self):
        """Makes the primary with its roles and data, then the standbys, and waits until they stream."""
        self._create_primary()
        for number in range(2, 2 + STANDBYS):
            self._create_standby(self._node(number))
        wait_until("standbys stream and have replayed", self._standbys_level, START_TIMEOUT_S)

    def query(self, node, sql, database="postgres"):
        """Runs SQL on a node as superuser; rows as lists of texts."""
        argv = [self.tool("psql"), "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
        argv += ["-h", "127.0.0.1", "-p", str(node.port), "-U", SUPERUSER, "-d", database, "-f", "-"]
        environment = clean_environment(PGPASSWORD=self.superuser_password)
        out = self.children.run(f"psql to {node.name}", argv, env=environment, stdin_text=sql)[1]
        return [line.split("\t") for line in out.splitlines() if line]

    def transactions(self):
        """Transactions committed in the benchmark's database so far, by node name."""
        sql = f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{DATABASE}'"
        return {node.name: int(self.query(node, sql)[0][0]) for node in self.nodes}

    def backends(self):
        """Sessions in the benchmark's database, on all nodes."""
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{DATABASE}'"
        return sum(int(self.query(node, sql)[0][0]) for node in self.nodes)

    def pids(self):
        """The postmasters."""
        return [node.child.pid for node in self.nodes if node.child]

    def _node(self, number):
        directory = os.path.join(self.directory, f"pg{number}")
        node = Node(f"pg{number}", free_port(), directory, directory + ".log")
        self.nodes.append(node)
        return node

    def _create_primary(self):
        node = self._node(1)
        password_file = os.path.join(self.directory, "password")
        with open(password_file, "w", encoding="ascii") as file:
            file.write(self.superuser_password)
        if self.user:
            shutil.chown(password_file, self.user, self.user)
        argv = [self.tool("initdb"), "-D", node.directory, "-U", SUPERUSER, "-A", "scram-sha-256"]
        argv += [f"--pwfile={password_file}", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
        self.children.run("initdb", argv, user=self.user, cwd=self.directory)
        with open(os.path.join(node.directory, "postgresql.conf"), "a", encoding="ascii") as file:
            file.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
        self._start(node)
        self.query(node, self._roles())
        argv = [self.tool("pgbench"), "-i", "-q", "-s", str(self.scale), "-h", "127.0.0.1"]
        argv += ["-p", str(node.port), "-U", USER, "-d", DATABASE]
        self.children.run("pgbench -i", argv, env=clean_environment(PGPASSWORD=self.password))

    def _roles(self):
        """Roles and database: the client's, and the monitor's with exactly the rights its manual asks for."""
        return (
            f"CREATE ROLE {USER} LOGIN PASSWORD '{self.password}';\n"
            f"CREATE DATABASE {DATABASE} OWNER {USER};\n"
            f"CREATE ROLE {MONITOR_USER} LOGIN PASSWORD '{self.monitor_password}';\n"
            f"GRANT pg_monitor, pg_signal_backend TO {MONITOR_USER};\n"
            f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO {MONITOR_USER};\n"
            f"GRANT ALTER SYSTEM ON PARAMETER primary_conninfo, primary_slot_name TO {MONITOR_USER};\n"
        )

    def _create_standby(self, node):
        argv = [self.tool("pg_basebackup"), "-D", node.directory, "-R", "-C", "-S", f"bench_{node.name}"]
        argv += ["-X", "stream", "-c", "fast", "--no-sync"]
        argv += ["-h", "127.0.0.1", "-p", str(self.primary.port), "-U", SUPERUSER]
        environment = clean_environment(PGPASSWORD=self.superuser_password)
        self.children.run("pg_basebackup", argv, user=self.user, env=environment, cwd=self.directory)
        self._start(node)

    def _start(self, node):
        argv = [self.tool("postgres"), "-D", node.directory, "-p", str(node.port)]
        node.child = self.children.start(
            node.name,
            argv,
            log_path=node.log_path,
            user=self.user,
            stop_signal=signal.SIGINT,
            cwd=self.directory,
        )

        def answers():
            node.child.require_alive()
            argv = [self.tool("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(node.port)]
            return self.children.run("pg_isready", argv, check=False)[0] == 0

        wait_until(f"{node.name} accepts connections", answers, START_TIMEOUT_S)

    def _standbys_level(self):
        sql = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
        return int(self.query(self.primary, sql)[0][0]) == STANDBYS
