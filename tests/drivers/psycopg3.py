"""psycopg 3 through whatever PGHOST and PGPORT lead to; the output is compared with a direct run.

Prints results only: nothing that differs between two correct peers. argv[1] makes names unique.
"""
import asyncio
import sys
import threading
import time

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Json

table = sql.Identifier("psycopg_" + sys.argv[1])


def q(text):
    return sql.SQL(text).format(t=table)


def basics(conn):
    cur = conn.execute("SELECT %s::int, %s::text, %s::numeric, %s::bytea, %s::int[], %s::jsonb",
                       (1, "zwei", 3.5, b"\x00\xff", [4, None, 6], Json({"seven": [8]})))
    print(cur.fetchone(), [c.name for c in cur.description])
    print(conn.execute("SELECT timestamptz '2020-02-03 04:05:06+00', interval '1 day', NULL").fetchone()[2])
    print(conn.cursor(row_factory=dict_row).execute("SELECT 1 AS a, 'b' AS b").fetchone())
    print(conn.info.encoding, conn.info.parameter_status("integer_datetimes"), conn.info.transaction_status.name)


def prepared(conn):
    conn.prepare_threshold = 2
    for i in range(12):
        assert conn.execute("SELECT %s::int + 1", (i,)).fetchone() == (i + 1,)
    conn.execute("SELECT 1", prepare=True)
    with conn.cursor(binary=True) as cur:
        print(cur.execute("SELECT %b::int8, %b::text", (2**40, "binary")).fetchone())
    # More statements than psycopg keeps: it deallocates the oldest.
    conn.prepared_max = 5
    for i in range(15):
        assert conn.execute(f"SELECT %s::int * {i}", (3,), prepare=True).fetchone() == (3 * i,)
    print("prepared")


def transactions(conn):
    conn.execute(q("CREATE TABLE {t} (i int PRIMARY KEY, t text)"))
    with conn.transaction():
        conn.execute(q("INSERT INTO {t} VALUES (1, 'one')"))
        try:
            with conn.transaction():
                conn.execute(q("INSERT INTO {t} VALUES (2, 'two')"))
                conn.execute("SELECT 1/0")
        except psycopg.errors.DivisionByZero as error:
            print(error.sqlstate, error.diag.message_primary, conn.info.transaction_status.name)
        conn.execute(q("INSERT INTO {t} VALUES (3, 'three')"))
    print(conn.execute(q("SELECT i FROM {t} ORDER BY i")).fetchall())
    try:
        conn.execute(q("INSERT INTO {t} VALUES (3, 'twice')"))
    except psycopg.errors.UniqueViolation as error:
        print(error.sqlstate, error.diag.constraint_name.rsplit("_", 1)[-1])
    conn.rollback()
    cur = conn.cursor()
    cur.executemany(q("INSERT INTO {t} VALUES (%s, %s)"), [(i, str(i)) for i in range(10, 40)])
    print(cur.rowcount, conn.execute(q("SELECT count(*) FROM {t}")).fetchone())


def copies(conn):
    with conn.cursor() as cur:
        with cur.copy(q("COPY {t} FROM STDIN")) as copy:
            for i in range(100, 2100):
                copy.write_row((i, "row %d" % i))
        with cur.copy(q("COPY (SELECT * FROM {t} WHERE i >= 2090 ORDER BY i) TO STDOUT")) as copy:
            print(list(copy.rows()))
        try:
            with cur.copy(q("COPY {t} FROM STDIN")) as copy:
                copy.write("not a number\tx\n")
        except psycopg.errors.InvalidTextRepresentation as error:
            print(error.sqlstate)


def cursors(conn):
    with conn.transaction(), conn.cursor(name="server_side") as cur:
        cur.itersize = 300
        cur.execute(q("SELECT i FROM {t} WHERE i >= 100 ORDER BY i"))
        print(sum(row[0] for row in cur))
    with conn.cursor() as cur:
        print(sum(row[0] for row in cur.stream("SELECT generate_series(1, 5000)")))


def pipelines(conn):
    with conn.pipeline() as pipe:
        cursors = [conn.execute("SELECT %s::int * 2", (i,)) for i in range(20)]
        conn.execute(q("INSERT INTO {t} VALUES (5000, 'pipelined')"))
        pipe.sync()
        print([c.fetchone()[0] for c in cursors])
    try:
        with conn.pipeline():
            conn.execute("SELECT 1/0")
            conn.execute(q("INSERT INTO {t} VALUES (5001, 'skipped')"))
    except psycopg.errors.DivisionByZero:
        print("division by zero in a pipeline")
    print(conn.execute(q("SELECT count(*) FROM {t} WHERE i >= 5000")).fetchone())


def modes():
    with psycopg.connect() as conn:
        conn.read_only = True
        print(conn.execute(q("SELECT count(*) FROM {t}")).fetchone())
        try:
            conn.execute(q("DELETE FROM {t}"))
        except psycopg.errors.ReadOnlySqlTransaction as error:
            print(error.sqlstate)
    with psycopg.connect() as conn:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        print(conn.execute("SHOW transaction_isolation").fetchone())


def notifications(conn):
    channel = sys.argv[1] + "_channel"
    conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    with psycopg.connect(autocommit=True) as other:
        other.execute("SELECT pg_notify(%s, 'hello')", (channel,))
    for note in conn.notifies(timeout=10, stop_after=1):
        print(note.payload)


def cancelling(conn):
    threading.Timer(0.5, conn.cancel).start()
    started = time.monotonic()
    try:
        conn.execute("SELECT pg_sleep(30)")
    except psycopg.errors.QueryCanceled as error:
        print(error.sqlstate, time.monotonic() - started < 15)
    print(conn.execute("SELECT 'alive'").fetchone())


async def concurrent():
    async def one(number):
        async with await psycopg.AsyncConnection.connect() as conn:
            await conn.execute("SELECT set_config('application_name', %s, false)", (f"n{number}",))
            await conn.commit()
            for _ in range(10):
                row = await (await conn.execute("SELECT current_setting('application_name')")).fetchone()
                await conn.commit()
                assert row == (f"n{number}",), row
    await asyncio.gather(*(one(number) for number in range(15)))
    print("concurrent")


with psycopg.connect(autocommit=True) as conn:
    conn.add_notice_handler(lambda notice: print(notice.severity, notice.message_primary))
    basics(conn)
    prepared(conn)
    transactions(conn)
    copies(conn)
    # Before the cursors: libpq stays in single-row mode when a pipeline follows a stream.
    pipelines(conn)
    cursors(conn)
    modes()
    notifications(conn)
    cancelling(conn)
    conn.execute("DO $$ BEGIN RAISE NOTICE 'noted'; END $$")
    asyncio.run(concurrent())
    conn.execute(q("DROP TABLE {t}"))
