"""How each driver's own suite is fetched, run, and read.

Invariants: versions are pinned where the registry keeps old ones; everything fetched or built is below
target/suites/drivers/NAME; a suite never talks to another server than the rig's. Absent on purpose: changing a
suite's tests. What cannot run anywhere (a test of the driver's own source code, say) fails both ways and is counted
as that.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from driver_fetch import cargo_source, debian_packages, debian_source, fresh, run, sdist, venv
from outcome import Result
from rig import ROOT, SUPERUSER, Failure

DATABASE = "drivers"
TEST_TIMEOUT_S = 60
SUITE_TIMEOUT_S = 1500
AGAIN_MAX = 60
"""More than this is not chance."""


class Suite:
    """What all suites share. A subclass says how to `prepare`, `run`, and run some tests `again`."""

    databases = (DATABASE,)
    statements = ()
    """Run in each database before the suite."""

    def __init__(self, name):
        self.name = name
        self.place = os.path.join(ROOT, "target", "suites", "drivers", name)
        os.makedirs(self.place, exist_ok=True)

    def path(self, *parts):
        """A path of this suite's."""
        return os.path.join(self.place, *parts)

    def prepare(self):
        """Fetches and builds; does nothing when that is done."""
        raise NotImplementedError

    def run(self, rig):
        """All tests: name to `Result`."""
        raise NotImplementedError

    def again(self, _rig, _names):
        """Some tests once more, where the suite can choose."""
        return {}

    def make_databases(self, rig):
        """Makes what the suite expects to find, on the primary itself."""
        for database in self.databases:
            if database != "postgres":
                rig.sql(f"CREATE DATABASE {database}")
            for statement in self.statements:
                rig.sql(statement, database=database)
        rig.settle()

    def environment(self, rig, **extra):
        """Where to connect, in libpq's terms."""
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(rig.port), "PGUSER": SUPERUSER, "PGDATABASE": self.databases[0]}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**kept, **place, "PGPASSWORD": "unused", "LC_ALL": "C.UTF-8", **extra}

    def command(self, rig, argv, cwd, log, **extra):
        """Runs a command with its output in a file; returns that."""
        path = self.path(f"{rig.way}.{log}.log")
        with open(path, "w", encoding="utf-8") as file:
            run(argv, cwd=cwd, env=self.environment(rig, **extra), stdout=file, timeout=SUITE_TIMEOUT_S, check=False)
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()


class Pytest(Suite):
    """A Python driver whose source distribution carries its tests."""

    source = ""
    """As pip names it."""
    packages = ()
    """What is installed to run it."""
    arguments = ("tests",)
    debian = ("gcc", "libc6-dev", "libpq-dev")

    def prepare(self):
        stamp = " ".join((self.source, *self.packages))
        if not fresh(self.place, stamp):
            return
        debian_packages(*self.debian)
        venv(self.path("venv"), "pytest==8.4.2", "pytest-timeout==2.4.0", *self.packages)
        sdist(self.path("venv"), self.source, self.path("source"))
        # Tests alone: the source beside them would be imported instead of what is installed.
        shutil.copytree(self.path("source", "tests"), self.path("work", "tests"))
        fresh(self.place, stamp, done=True)

    def options(self, _rig):
        """Arguments that tell where to connect."""
        return []

    def run(self, rig):
        return self.pytest(rig, "run", self.arguments)

    def again(self, rig, names):
        if not names or len(names) > AGAIN_MAX:
            return {}
        wanted = [self.identifiers[name] for name in names if name in self.identifiers]
        return self.pytest(rig, "again", wanted) if wanted else {}

    def pytest(self, rig, label, arguments):
        """One run of pytest, read from its XML report."""
        report = self.path(f"{rig.way}.{label}.xml")
        if os.path.exists(report):
            os.remove(report)
        argv = [self.path("venv", "bin", "python"), "-m", "pytest", "-q", "--tb=native", "-p", "no:cacheprovider"]
        argv += ["-o", "junit_family=xunit1", f"--timeout={TEST_TIMEOUT_S}", f"--junitxml={report}"]
        argv += [*self.options(rig), *arguments]
        self.command(rig, argv, self.path("work"), label, **self.variables(rig))
        return self.read(report)

    def variables(self, _rig):
        """More environment."""
        return {}

    def read(self, report):
        """Name to `Result`; remembers what pytest calls them."""
        results = {}
        self.identifiers = getattr(self, "identifiers", {})
        if not os.path.exists(report):
            return results
        for case in ElementTree.parse(report).iter("testcase"):
            if case.find("skipped") is not None:
                continue
            file, words = case.get("file") or "", case.get("classname").split(".")
            stem = os.path.basename(file).removesuffix(".py")
            inside = words[words.index(stem) + 1 :] if stem in words else []
            identifier = "::".join([file, *inside, case.get("name")])
            name = re.sub(r"\s+", "_", identifier)
            bad = case.find("failure") if case.find("failure") is not None else case.find("error")
            before = results.get(name)
            detail = "" if bad is None else (bad.get("message") or "failed")
            if before is None or before.passed:
                results[name] = Result(bad is None, detail)
            self.identifiers[name] = identifier
        return results


class Psycopg2(Pytest):
    """psycopg2: libpq, simple protocol, COPY, notifications, large objects, two-phase commit, green threads."""

    source = "psycopg2==2.9.13"
    packages = ("psycopg2-binary==2.9.13",)

    def variables(self, rig):
        return {
            "PSYCOPG2_TESTDB": DATABASE,
            "PSYCOPG2_TESTDB_HOST": "127.0.0.1",
            "PSYCOPG2_TESTDB_PORT": str(rig.port),
            "PSYCOPG2_TESTDB_USER": SUPERUSER,
        }


class Asyncpg(Pytest):
    """asyncpg: the extended protocol in binary, statement caches, cursors, COPY, pools that reset connections."""

    source = "asyncpg==0.32.0"
    packages = ("asyncpg==0.32.0", "distro==1.9.0")
    databases = ("postgres",)


class Tap(Suite):
    """DBD::Pg, Perl's driver: prepared statements of both kinds, COPY, asynchronous queries, savepoints, types."""

    def prepare(self):
        debian_packages("gcc", "libc6-dev", "make", "perl", "libdbi-perl", "libpq-dev", "xz-utils")
        if not fresh(self.place, "libdbd-pg-perl"):
            return
        debian_source("libdbd-pg-perl", self.path("source"))
        run(["perl", "Makefile.PL"], cwd=self.path("source"))
        run(["make"], cwd=self.path("source"))
        fresh(self.place, "libdbd-pg-perl", done=True)

    def run(self, rig):
        dsn = f"dbi:Pg:dbname={DATABASE};host=127.0.0.1;port={rig.port}"
        results = {}
        # Where it remembers the server it used last. It makes one of its own where it cannot connect.
        remembered = self.path("source", "README.testdatabase")
        if os.path.exists(remembered):
            os.remove(remembered)
        login = {"DBI_DSN": dsn, "DBI_USER": SUPERUSER, "DBI_PASS": "unused"}
        for file in sorted(glob.glob(self.path("source", "t", "[0-8]*.t"))):
            name = os.path.basename(file)
            said = self.command(rig, ["perl", "-Mblib", f"t/{name}"], self.path("source"), name, **login)
            for line in said.splitlines():
                seen = re.match(r"(not )?ok (\d+)(?: - (.*))?", line)
                if seen and "# SKIP" not in line.upper():
                    results[f"{name}:{seen[2]}"] = Result(not seen[1], seen[3] or "")
        with open(remembered, encoding="utf-8") as file:
            if f"port={rig.port}" not in file.read():
                raise Failure(f"{self.name} did not use the server it was given, see {remembered}")
        return results


class Go(Suite):
    """A Go driver whose Debian package carries its tests."""

    debian = ()
    packages = ()
    """(import path, whether its directory holds what tests read)"""

    def prepare(self):
        debian_packages("golang-go", *self.debian)
        if not fresh(self.place, " ".join(self.packages)):
            return
        # Its own tree: Debian's is read-only, and some packages are links out of it.
        shutil.copytree("/usr/share/gocode/src", self.path("go", "src"))
        for package in self.packages:
            env = {**os.environ, "GOPATH": self.path("go"), "GO111MODULE": "off", "GOFLAGS": ""}
            out = self.path(self.binary(package))
            run(["go", "test", "-c", "-o", out, "."], cwd=self.path("go", "src", package), env=env, timeout=600)
        fresh(self.place, " ".join(self.packages), done=True)

    @staticmethod
    def binary(package):
        """What the compiled tests of a package are called."""
        return package.replace("/", "-") + ".test"

    def variables(self, _rig):
        """More environment."""
        return {}

    def run(self, rig):
        results = {}
        for package in self.packages:
            results |= self.tests(rig, package, [])
        return results

    def again(self, rig, names):
        results = {}
        for package in self.packages if len(names) <= AGAIN_MAX else ():
            tops = {name.split(":", 1)[1].split("/")[0] for name in names if name.startswith(package + ":")}
            if tops:
                results |= self.tests(rig, package, ["-test.run", "^(" + "|".join(sorted(tops)) + ")$"])
        return results

    def tests(self, rig, package, arguments):
        """Runs one package's tests."""
        argv = [self.path(self.binary(package)), "-test.v", *arguments]
        cwd = self.path("go", "src", package)
        said = self.command(rig, argv, cwd, package.replace("/", "-") + "-again" * bool(arguments), **self.variables(rig))
        found = re.findall(r"^\s*--- (PASS|FAIL): (\S+)", said, re.MULTILINE)
        return {f"{package}:{name}": Result(outcome == "PASS", "failed") for outcome, name in found}


class Pgx(Go):
    """pgx 4 with pgconn and its pool: statement caches, batches, binary COPY, notifications, cancellation."""

    debian = ("golang-github-jackc-pgx-v4-dev", "golang-github-jackc-pgmock-dev")
    packages = ("github.com/jackc/pgx/v4", "github.com/jackc/pgx/v4/pgxpool", "github.com/jackc/pgconn")
    statements = ("CREATE EXTENSION hstore", "CREATE DOMAIN uint64 AS numeric(20,0)")

    def variables(self, rig):
        dsn = f"host=127.0.0.1 port={rig.port} user={SUPERUSER} database={DATABASE}"
        return {f"PGX_TEST_{name}": dsn for name in ("DATABASE", "CONN_STRING", "TCP_CONN_STRING")}


class LibPq(Go):
    """lib/pq, Go's older driver: simple queries, unnamed statements, COPY, LISTEN, SSL modes."""

    debian = ("golang-github-lib-pq-dev",)
    packages = ("github.com/lib/pq",)
    databases = ("pqgotest",)

    def variables(self, _rig):
        return {"PGSSLMODE": "disable"}


class TokioPostgres(Suite):
    """tokio-postgres, Rust: pipelined extended protocol, typed statements, binary COPY, cancellation."""

    databases = ("postgres",)
    port = "5433"
    """Where its tests look for a server; replaced."""

    def prepare(self):
        source = cargo_source("tokio-postgres")
        if not fresh(self.place, source):
            return
        shutil.rmtree(self.path("source"), ignore_errors=True)
        shutil.copytree(source, self.path("source"))
        with open(self.path("source", "Cargo.toml"), "a", encoding="utf-8") as file:
            file.write("\n[workspace]\n")
        fresh(self.place, source, done=True)

    def make_databases(self, rig):
        rig.sql("CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree")
        for role in ("pass_user", "md5_user", "scram_user"):
            rig.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'password'")
        rig.settle()

    def run(self, rig):
        self.point_to(rig.port)
        argv = ["cargo", "test", "--test", "test", "--", "--test-threads=4"]
        said = self.command(rig, argv, self.path("source"), "run", CARGO_TARGET_DIR=self.path("target"))
        found = re.findall(r"^test (\S+) (?:- should panic )?\.\.\. (ok|FAILED)$", said, re.MULTILINE)
        return {name: Result(outcome == "ok", "failed") for name, outcome in found}

    def point_to(self, port):
        """Its tests have the port in their text."""
        for file in glob.glob(self.path("source", "tests", "test", "*.rs")):
            with open(file, encoding="utf-8") as stream:
                text = stream.read()
            with open(file, "w", encoding="utf-8") as stream:
                stream.write(re.sub(rf"\b{self.port}\b", str(port), text))
        self.port = str(port)


class NodePostgres(Suite):
    """node-postgres: the integration tests of `pg`, one result a file."""

    modules = ("async@2.6.4", "bluebird@3.7.2", "co@4.6.0", "pg-copy-streams@0.3.0")

    def prepare(self):
        debian_packages("xz-utils")
        if not fresh(self.place, "node-postgres"):
            return
        debian_source("node-postgres", self.path("source"))
        package = self.path("source", "packages", "pg")
        # As a workspace its parts would be linked as sources, which need a compiler; the registry has them built.
        os.remove(self.path("source", "package.json"))
        # What only other kinds of its tests need is large.
        text = open(os.path.join(package, "package.json"), encoding="utf-8").read()
        with open(os.path.join(package, "package.json"), "w", encoding="utf-8") as file:
            file.write(text.replace('"devDependencies"', '"notNeeded"').replace('"peerDependencies"', '"notNeededEither"'))
        run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *self.modules], cwd=package)
        fresh(self.place, "node-postgres", done=True)

    def run(self, rig):
        package = self.path("source", "packages", "pg")
        self.command(rig, ["node", "script/create-test-tables.js", "postgres://"], package, "tables")
        found = glob.glob(os.path.join(package, "test", "integration", "**", "*-tests.js"), recursive=True)
        return self.files(rig, sorted(os.path.relpath(path, package) for path in found))

    def again(self, rig, names):
        return self.files(rig, names[:AGAIN_MAX])

    def files(self, rig, files):
        """Runs test files; the exit code is the result."""
        package, results = self.path("source", "packages", "pg"), {}
        for file in files:
            log = self.path(f"{rig.way}.{os.path.basename(file)}.log")
            with open(log, "w", encoding="utf-8") as stream:
                code = run(
                    ["node", file, "postgres://"],
                    cwd=package,
                    env=self.environment(rig, NODE_NO_WARNINGS="1"),
                    stdout=stream,
                    timeout=TEST_TIMEOUT_S,
                    check=False,
                )
            results[file] = Result(code == 0, f"see {log}")
        return results


SUITES = {
    "dbd-pg": Tap,
    "psycopg2": Psycopg2,
    "asyncpg": Asyncpg,
    "pgx": Pgx,
    "lib-pq": LibPq,
    "node-postgres": NodePostgres,
    "tokio-postgres": TokioPostgres,
}
