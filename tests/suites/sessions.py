"""Random sessions, told by psql to the primary and through a way: every answer must be the same.

Each client plays a script made from a seed: settings with every kind of SET and RESET, transactions with savepoints
and chains, several statements in one message, COPY, errors, prepared statements in SQL; it often looks at what
it has set. Many clients at once share few backends, so what one leaves behind another would see. SUITES_SEEDS
names other seeds (`SUITES_SEEDS="17 18"`).
"""

import concurrent.futures
import os
import random

from outcome import Result
from rig import Failure

SEEDS = (1, 2, 3)
CLIENTS = 8
STEPS = 80
TIMEOUT_S = 240.0
DATABASE = "sessions"
LOOK = (
    "SELECT interval '1 day -2 hours 3 sec' i, timestamptz '2001-02-03 04:05:06+00' t, current_setting('my.tok', true) k,"
    " current_setting('work_mem') w, 0.1::float8 * 3 f;",
    "SHOW datestyle;",
    "SHOW intervalstyle;",
    "SHOW search_path;",
    "SELECT current_setting('timezone'), current_setting('enable_seqscan');",
    "SHOW application_name;",
    "SELECT current_user, session_user;",
)


def sessions(rig, _source):
    """Every client of every seed is a test."""
    results = {}
    for seed in [int(word) for word in os.environ.get("SUITES_SEEDS", "").split()] or SEEDS:
        texts = [_play(rig, port, seed) for port in (rig.node_ports[0], rig.port)]
        for client, (wanted, got) in enumerate(zip(*texts)):
            detail = "" if wanted == got else _difference(wanted, got)
            results[f"{seed}.{client}"] = Result(wanted == got, detail, detail)
    return results


def _play(rig, port, seed):
    """All clients at once, in a new database; what each saw."""
    rig.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    rig.sql(f"CREATE DATABASE {DATABASE}")
    rig.sql("DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'clerk') THEN CREATE ROLE clerk; END IF; END $$")
    rig.settle()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda client: _client(rig, port, seed, client), range(CLIENTS)))


def _client(rig, port, seed, client):
    env = {
        "PGDATABASE": DATABASE,
        "PGDATESTYLE": ("Postgres, MDY", "ISO, DMY")[client % 2],
        "PGTZ": "PST8PDT",
        "PGOPTIONS": "-c intervalstyle=" + ("postgres_verbose", "iso_8601")[client // 2 % 2],
    }
    argv = [rig.tool("psql"), "-X", "-a", "-q", "-f", "-"]
    text = Script(seed, client).text()
    code, out, err = rig.run(argv, port=port, env=env, stdin_text=text, timeout=TIMEOUT_S, cwd=rig.directory)
    if code == 124:
        raise Failure(f"seed {seed}, client {client}: {err}")
    return out + err


def _difference(wanted, got):
    left, right = wanted.splitlines(), got.splitlines()
    for number, (a, b) in enumerate(zip(left, right)):
        if a != b:
            before = "\n".join(left[max(0, number - 12) : number])
            return f"{before}\nwanted: {a}\ngot:    {b}\n"
    return f"wanted {len(left)} lines, got {len(right)}\n"


class Script:
    """What one client says."""

    def __init__(self, seed, client):
        self.random = random.Random(seed * 1000 + client)
        self.client = client
        self.table = f"t{client}"
        self.lines = [f"CREATE TABLE {self.table} (a int, b text);"]

    def text(self):
        """The whole script."""
        for step in range(STEPS):
            self._step(step)
        return "\n".join(self.lines) + "\n"

    def _one_of(self, *choices):
        return self.random.choice(choices)

    def _step(self, step):
        kind = self.random.random()
        if kind < 0.30:
            self.lines.append(self._setting())
        elif kind < 0.60:
            self.lines.append(self._one_of(*LOOK))
        elif kind < 0.70:
            self.lines.append(f"INSERT INTO {self.table} VALUES ({step}, 'x') RETURNING a;")
        elif kind < 0.75:
            self.lines.append(f"COPY {self.table} FROM stdin;\n{step}\ty\n\\.")
        elif kind < 0.80:
            self.lines.append(f"SELECT count(*), max(a) FROM {self.table};")
        elif kind < 0.82:
            self.lines.append("SELECT 1 / 0;")
        elif kind < 0.86:
            self.lines.append(self._prepared(step))
        elif kind < 0.90:
            self.lines.append(f"SELECT 5 \\; {self._setting()[:-1]} \\; SELECT 6;")
        else:
            self._transaction()

    def _prepared(self, step):
        return self._one_of(
            f"PREPARE q{step} AS SELECT {step};\nEXECUTE q{step};",
            f"EXECUTE q{step - 1};",
            "DEALLOCATE ALL;",
            "DEALLOCATE PREPARE ALL;",
            f"DEALLOCATE PREPARE q{step - 1};",
            "SELECT name FROM pg_prepared_statements ORDER BY 1;",
        )

    def _setting(self):
        number = self.random.randint(0, 99)
        return self._one_of(
            "SET intervalstyle TO " + self._one_of("postgres", "postgres_verbose", "sql_standard", "iso_8601") + ";",
            "SET datestyle TO " + self._one_of("iso", "'postgres'", "ymd", "'german, dmy'", "sql", "dmy") + ";",
            f"SET extra_float_digits TO {number % 7 - 3};",
            f"SET work_mem = '{64 + number}kB';",
            f"SET my.tok = '{self.client}-{number}';",
            "RESET " + self._one_of("intervalstyle", "datestyle", "work_mem", "timezone", "extra_float_digits", "my.tok") + ";",
            self._one_of("RESET ALL;", "SET datestyle TO DEFAULT;", "SET work_mem TO DEFAULT;"),
            "SET timezone = '" + self._one_of("UTC", "Asia/Tokyo") + "';",
            "SET enable_seqscan = " + self._one_of("on", "off") + ";",
            f"SELECT set_config('work_mem', '{64 + number}kB', {self._one_of('true', 'false')});",
            "SET search_path = " + self._one_of("public", "pg_catalog, public", "'$user', public") + ";",
            f"SET application_name = 'a{number % 10}';",
            self._one_of("SET ROLE clerk;", "RESET ROLE;", "RESET ROLE;", "SET SESSION AUTHORIZATION DEFAULT;"),
            self._one_of("DISCARD ALL;", "DISCARD PLANS;", "DISCARD SEQUENCES;"),
        )

    def _transaction(self):
        self.lines.append(self._one_of("BEGIN;", "BEGIN READ ONLY;", "BEGIN ISOLATION LEVEL REPEATABLE READ;"))
        for _ in range(self.random.randint(0, 6)):
            self.lines.append(
                self._one_of(
                    self._setting(),
                    self._setting(),
                    self._one_of(*LOOK),
                    "SAVEPOINT s;",
                    "SAVEPOINT s;",
                    "ROLLBACK TO s;",
                    "RELEASE s;",
                    self._one_of("SET LOCAL datestyle TO sql, dmy;", "SET LOCAL work_mem = '77kB';", "SELECT 1 / 0;"),
                )
            )
        look = self._one_of(*LOOK)
        self.lines.append(self._one_of("COMMIT;", "ROLLBACK;", f"COMMIT AND CHAIN;\n{look}\nCOMMIT;", f"ROLLBACK AND CHAIN;\n{look}\nROLLBACK;"))
        self.lines.append(self._one_of(*LOOK))
