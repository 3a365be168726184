"""PostgreSQL's own programs through a way: psql, pgbench, pg_dump and its family, maintenance programs.

Each check runs a program as people do and compares with what the primary itself says afterwards, asked without
the proxy: a dump taken through the proxy is the dump taken directly, a restored database is the original one,
pgbench's balances add up. A check passes or says why not.
"""

import os
import re
import signal
import subprocess
import time

from outcome import Result
from rig import Failure

TIMEOUT_S = 120.0
CANCEL_AFTER_S = 1.5
HERE = os.path.dirname(os.path.abspath(__file__))
CHECKS = {}


def check(function):
    """Registers a check under its name."""
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


def programs(rig, _source):
    """Every check, in order: later ones use the databases of earlier ones."""
    results = {}
    rig.sql("CREATE DATABASE shop")
    rig.settle()
    for name, function in CHECKS.items():
        print(f"  {name}", flush=True)
        try:
            function(rig)
            results[name] = Result(True)
        except (Failure, AssertionError) as failure:
            results[name] = Result(False, f"{failure}\n", str(failure))
    return results


def must(rig, tool, *argv, database=None, direct=False, **options):
    """Runs a program that has to succeed; its output."""
    env = {"PGDATABASE": database} if database else {}
    port = rig.node_ports[0] if direct else None
    code, out, err = rig.run([rig.tool(tool), *argv], timeout=TIMEOUT_S, env={**env, **options.pop("env", {})}, port=port, **options)
    if code != 0:
        raise Failure(f"{tool} {' '.join(argv)}: exit code {code}: {err[-1500:]}{out[-500:]}")
    return out + err


def same(what, wanted, got):
    """Compares two texts."""
    if wanted != got:
        left, right = wanted.splitlines(), got.splitlines()
        line = next((pair for pair in zip(left, right) if pair[0] != pair[1]), (f"{len(left)} lines", f"{len(right)} lines"))
        raise Failure(f"{what}: wanted {line[0]!r}, got {line[1]!r}")


# --- psql ---------------------------------------------------------------------------------------------------


@check
def psql_meta_commands(rig):
    """The script beside this file, run through the way and then directly: the same text."""
    texts = []
    for direct in (False, True):
        must(rig, "psql", "-X", "-q", "-c", "DROP SCHEMA IF EXISTS play CASCADE", database="shop", direct=direct)
        script = os.path.join(HERE, "psql-script.sql")
        with open(script, encoding="utf-8") as file:
            text = must(rig, "psql", "-X", "-q", "-f", "-", database="shop", direct=direct, stdin_text=file.read())
        # Large objects' numbers and process ids differ from run to run.
        texts.append(re.sub(r"PID \d+|\b\d{5,}\b", "N", text))
    same("psql's output", texts[1], texts[0])


@check
def psql_single_transaction(rig):
    """-1 with an error leaves nothing behind; without one, everything."""
    code, _, _ = rig.run(
        [rig.tool("psql"), "-X", "-1", "-v", "ON_ERROR_STOP=1", "-d", "shop", "-c", "CREATE TABLE once (a int)", "-c", "SELECT 1/0"]
    )
    assert code != 0, "an error with -1 was not seen"
    same("tables", "0", rig.sql("SELECT count(*) FROM pg_class WHERE relname = 'once'", database="shop"))
    must(rig, "psql", "-X", "-1", "-c", "CREATE TABLE once (a int)", "-c", "INSERT INTO once VALUES (1)", database="shop")
    same("rows", "1", rig.sql("SELECT count(*) FROM once", database="shop"))


@check
def psql_cancel(rig):
    """Ctrl-C cancels the statement, of a read and of a write, on the node that runs it."""
    for statement in ("SELECT pg_sleep(60)", "CREATE TABLE never AS SELECT 1 AS i FROM pg_sleep(60)"):
        argv = [rig.tool("psql"), "-X", "-d", "shop", "-c", statement]
        child = rig.children.start(
            "psql", argv, user=rig.user, env=rig.environment(), cwd=rig.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        time.sleep(CANCEL_AFTER_S)
        child.process.send_signal(signal.SIGINT)
        try:
            out = child.process.communicate(timeout=15)[0].decode()
        except subprocess.TimeoutExpired as error:
            raise Failure(f"{statement} was not cancelled") from error
        finally:
            rig.children.stop(child)
        assert "canceling statement due to user request" in out, f"{statement}: {out!r}"
        for port in rig.node_ports:
            running = rig.sql("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)'", port=port)
            same("statements still running", "0", running)


# --- pgbench ------------------------------------------------------------------------------------------------


@check
def pgbench_initialize(rig):
    """All steps of initialization, foreign keys and partitions included."""
    must(rig, "pgbench", "-i", "-s", "2", "-I", "dtgvpf", "-q", database="shop")
    must(rig, "pgbench", "-i", "-s", "1", "-I", "dtGvp", "-q", "--partitions=3", database="postgres")


def bench(rig, *argv, transactions, database="shop"):
    """Runs pgbench; nothing may fail and the balances must add up."""
    out = must(rig, "pgbench", "-n", *argv, database=database)
    assert f"processed: {transactions}/{transactions}" in out, out[-600:]
    assert "failed transactions: 0 " in out, out[-600:]
    sums = rig.sql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history),"
        " (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)",
        database=database,
    )
    same("balances agree", "t|t", sums)


@check
def pgbench_protocols(rig):
    """The built-in transactions with every protocol, in each pooled."""
    for protocol in ("simple", "extended", "prepared"):
        bench(rig, "-M", protocol, "-c", "8", "-t", "50", "-b", "tpcb-like@1", "-b", "simple-update@1", transactions=400)
        bench(rig, "-M", protocol, "-c", "8", "-t", "50", "-b", "select-only", transactions=400)


@check
def pgbench_connects(rig):
    """A connection for every transaction (-C), and the partitioned tables."""
    bench(rig, "-C", "-c", "4", "-t", "20", transactions=80)
    bench(rig, "-M", "prepared", "-c", "4", "-t", "20", transactions=80, database="postgres")


@check
def pgbench_scripts(rig):
    """Files with \\gset, \\aset, \\if, and with pipelines; errors of serialization are tried again."""
    scripts = {
        "gset": "\\set a random(1, 100000 * :scale)\nSELECT abalance AS b FROM pgbench_accounts WHERE aid = :a \\gset\n"
        "SELECT 1 AS x \\gset\nSELECT 2 AS y \\aset\n\\if :x + 1 = :y\nSELECT :b;\n\\else\nSELECT 1/0;\n\\endif\n",
        "pipeline": "\\set a random(1, 100000)\n\\startpipeline\nBEGIN;\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :a;\n"
        "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, :a, 1, now());\nEND;\n\\endpipeline\n"
        "\\startpipeline\nSELECT abalance FROM pgbench_accounts WHERE aid = :a;\nSELECT 1;\nSELECT 2;\n\\endpipeline\n",
        "reads": "\\startpipeline\nSELECT 1;\nSELECT count(*) FROM pgbench_branches;\n\\endpipeline\n",
    }
    files = {}
    for name, text in scripts.items():
        files[name] = rig.path(name + ".pgbench")
        with open(files[name], "w", encoding="ascii") as file:
            file.write(text)
        rig.own(files[name])
    for protocol in ("simple", "extended", "prepared"):
        bench(rig, "-M", protocol, "-c", "4", "-t", "50", "-f", files["gset"], transactions=200)
        if protocol != "simple":
            bench(rig, "-M", protocol, "-c", "4", "-t", "50", "-f", files["pipeline"] + "@2", "-f", files["reads"] + "@1", transactions=200)
    env = {"PGOPTIONS": "-c default_transaction_isolation=serializable"}
    out = must(rig, "pgbench", "-n", "-c", "8", "-t", "20", "--max-tries=200", database="shop", env=env)
    assert "failed transactions: 0 " in out, out[-600:]


# --- dump and restore -----------------------------------------------------------------------------------------


def dump(rig, database, *argv, direct):
    """The text of a dump, without what every dump makes up anew."""
    text = must(rig, "pg_dump", *argv, database=database, direct=direct)
    return re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)


@check
def pg_dump_plain(rig):
    """Three ways to dump, all equal to the direct one."""
    must(rig, "psql", "-X", "-q", "-f", "-", database="shop", direct=True, stdin_text=CONTENT)
    rig.settle()
    for argv in ((), ("--inserts", "--rows-per-insert=7"), ("--serializable-deferrable",), ("--schema-only",), ("-t", "content", "-a")):
        same(f"dump {argv}", dump(rig, "shop", *argv, direct=True), dump(rig, "shop", *argv, direct=False))


@check
def pg_dump_restore(rig):
    """Custom and directory format, in parallel, restored into a new database through the way, and dumped again."""
    wanted = dump(rig, "shop", direct=True)
    for number, (form, jobs) in enumerate((("custom", 1), ("custom", 4), ("directory", 4), ("tar", 1))):
        path, copy = rig.path(f"dump{number}"), f"copy{number}"
        parallel = [f"-j{jobs}"] if form == "directory" else []
        must(rig, "pg_dump", "-F", form, *parallel, "-f", path, database="shop")
        must(rig, "createdb", copy)
        must(rig, "pg_restore", "--exit-on-error", "-d", copy, *([f"-j{jobs}"] if jobs > 1 else []), path)
        same(f"{form} with {jobs} jobs", wanted, dump(rig, copy, direct=True))
        must(rig, "dropdb", copy)


@check
def pg_dumpall(rig):
    """Roles, databases, all."""
    texts = [re.sub(r"(?m)^\\(un)?restrict .*\n", "", must(rig, "pg_dumpall", direct=direct)) for direct in (True, False)]
    same("pg_dumpall", *texts)


@check
def snapshots(rig):
    """A snapshot exported by one session is what others see, also on another connection."""
    script = (
        "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT pg_export_snapshot() AS id \\gset\n"
        "\\setenv SNAPSHOT :id\nCREATE TABLE IF NOT EXISTS snap (a int);\nCOMMIT;\n"
        "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT pg_export_snapshot() AS id \\gset\n\\setenv SNAPSHOT :id\n"
        "\\! psql -X -q -d shop -c 'INSERT INTO snap VALUES (1)'\n"
        "\\! psql -X -q -A -t -d shop -c 'BEGIN ISOLATION LEVEL REPEATABLE READ' -c \"SET TRANSACTION SNAPSHOT '$SNAPSHOT'\""
        " -c 'SELECT count(*) FROM snap' -c COMMIT\nCOMMIT;\nDROP TABLE snap;\n"
    )
    same("rows seen", "0", must(rig, "psql", "-X", "-q", "-A", "-t", "-f", "-", database="shop", stdin_text=script).strip())


# --- the smaller programs -------------------------------------------------------------------------------------


@check
def maintenance(rig):
    """vacuumdb, reindexdb, clusterdb and pg_amcheck, in parallel where they can."""
    must(rig, "vacuumdb", "-a", "-z", "-j", "4")
    must(rig, "vacuumdb", "--analyze-in-stages", "-d", "shop")
    must(rig, "vacuumdb", "-f", "-d", "shop", "-t", "pgbench_history")
    must(rig, "reindexdb", "-d", "shop", "-j", "4")
    must(rig, "reindexdb", "-d", "shop", "--concurrently", "-t", "pgbench_accounts")
    must(rig, "reindexdb", "-s", "-d", "shop")
    must(rig, "psql", "-X", "-q", "-c", "CLUSTER pgbench_branches USING pgbench_branches_pkey", database="shop")
    must(rig, "clusterdb", "-a")
    must(rig, "pg_amcheck", "--install-missing", "-d", "shop", "-j", "4")


@check
def creating(rig):
    """createdb, createuser and their opposites, each seen at once by the next."""
    for _ in range(5):
        must(rig, "createuser", "-l", "clerk")
        must(rig, "createdb", "-O", "clerk", "office")
        must(rig, "psql", "-X", "-c", "CREATE TABLE desk (a int)", "-U", "clerk", database="office")
        same("desks", "0", must(rig, "psql", "-X", "-A", "-t", "-c", "SELECT count(*) FROM desk", "-U", "clerk", database="office").strip())
        must(rig, "dropdb", "office")
        must(rig, "dropuser", "clerk")


@check
def pg_isready(rig):
    """Accepts connections, also for a database that does not exist."""
    assert "accepting connections" in must(rig, "pg_isready")
    assert "accepting connections" in must(rig, "pg_isready", "-d", "nowhere")


@check
def pg_basebackup(rig):
    """A base backup over a replication connection."""
    must(rig, "pg_basebackup", "-D", rig.path("backup"), "-X", "stream", "-c", "fast", "--no-sync")


CONTENT = """
DROP TABLE IF EXISTS content CASCADE;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE content (id serial PRIMARY KEY, t text, m mood, a int[], j jsonb, b bytea, f float8, d timestamptz, n numeric);
INSERT INTO content (t, m, a, j, b, f, d, n)
  SELECT repeat('x', i % 300) || E'\\n\\t\\\\', CASE WHEN i % 2 = 0 THEN 'ok'::mood END, ARRAY[i, NULL], jsonb_build_object('k', i),
    decode(md5(i::text), 'hex'), i / 3.0::float8, timestamptz '2024-01-01 UTC' + i * interval '1 min', i / 7.0
  FROM generate_series(1, 3000) i;
CREATE VIEW seen AS SELECT id, t FROM content WHERE m = 'ok';
CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM content;
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2';
CREATE INDEX ON content (t);
SELECT lo_from_bytea(0, decode(repeat('ab', 5000), 'hex')) IS NOT NULL;
COMMENT ON TABLE content IS 'what is dumped';
"""
