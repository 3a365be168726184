"""asyncpg through whatever PGHOST and PGPORT lead to; the output is compared with a direct run.

All of it is the extended protocol with binary values, and statements that asyncpg caches by name. Prints results
only: nothing that differs between two correct peers. argv[1] makes names unique.
"""
import asyncio
import sys

import asyncpg

table = "asyncpg_" + sys.argv[1]


async def basics(conn):
    row = await conn.fetchrow("SELECT $1::int AS a, $2::text AS b, $3::numeric AS c, $4::bytea AS d, $5::int[] AS e",
                              1, "zwei", 3, b"\x00\xff", [4, None, 6])
    print(dict(row))
    print(await conn.fetchval("SELECT timestamptz '2020-02-03 04:05:06+00'"), conn.get_settings().server_encoding)
    await conn.set_type_codec("json", encoder=str, decoder=str.upper, schema="pg_catalog")
    print(await conn.fetchval("SELECT '{\"a\": 1}'::json"))


async def prepared(conn):
    one = await conn.prepare("SELECT $1::int + 1 AS next")
    two = await conn.prepare("SELECT n FROM generate_series(1, $1::int) AS n")
    print([p.name for p in one.get_parameters()], [a.name for a in two.get_attributes()])
    print(await one.fetchval(41), len(await two.fetch(1000)))
    # More statements than asyncpg keeps: it closes the oldest.
    for i in range(120):
        assert await conn.fetchval(f"SELECT $1::int * {i}", 3) == 3 * i
    print(await one.fetchval(41))


async def transactions(conn):
    await conn.execute(f"CREATE TABLE {table} (i int PRIMARY KEY, t text)")
    async with conn.transaction():
        await conn.execute(f"INSERT INTO {table} VALUES ($1, $2)", 1, "one")
        try:
            async with conn.transaction():
                await conn.execute(f"INSERT INTO {table} VALUES ($1, $2)", 2, "two")
                await conn.execute("SELECT 1/0")
        except asyncpg.DivisionByZeroError as error:
            print(error.sqlstate, conn.is_in_transaction())
    try:
        async with conn.transaction(readonly=True, isolation="repeatable_read"):
            print(await conn.fetch(f"SELECT * FROM {table}"))
            await conn.execute(f"DELETE FROM {table}")
    except asyncpg.ReadOnlySQLTransactionError as error:
        print(error.sqlstate)
    await conn.executemany(f"INSERT INTO {table} VALUES ($1, $2)", [(i, str(i)) for i in range(10, 40)])
    try:
        await conn.executemany(f"INSERT INTO {table} VALUES ($1, $2)", [(50, "new"), (10, "twice"), (51, "new")])
    except asyncpg.UniqueViolationError as error:
        print(error.sqlstate, await conn.fetchval(f"SELECT count(*) FROM {table}"))


async def cursors(conn):
    async with conn.transaction():
        rows = [row["n"] async for row in conn.cursor("SELECT generate_series(1, 500) AS n", prefetch=7)]
        cursor = await conn.cursor("SELECT generate_series(1, 20) AS n")
        await cursor.forward(5)
        print(sum(rows), await cursor.fetchrow(), len(await cursor.fetch(100)))


async def copies(conn):
    records = [(i, f"row {i}") for i in range(100, 2100)]
    print(await conn.copy_records_to_table(table, records=records))
    out = bytearray()

    async def keep(data):
        out.extend(data)

    print(await conn.copy_from_query(f"SELECT i FROM {table} WHERE i >= $1 ORDER BY i", 2095, output=keep), bytes(out))


async def notifications(conn):
    heard = asyncio.Queue()
    await conn.add_listener(table, lambda _conn, _pid, channel, payload: heard.put_nowait((channel, payload)))
    other = await asyncpg.connect()
    await other.execute(f"NOTIFY {table}, 'hello'")
    await other.close()
    print((await asyncio.wait_for(heard.get(), 10))[1])
    await conn.reset()


async def cancelling(conn):
    try:
        await conn.execute("SELECT pg_sleep(30)", timeout=0.5)
    except asyncio.TimeoutError:
        print("timed out, then", await conn.fetchval("SELECT 'alive'"))


async def changed_types(conn):
    # The client decodes by what it was told once, so the server has to say when that is no longer true.
    changing = table + "_changing"
    await conn.execute(f"CREATE TABLE {changing} (a int, b int)")
    await conn.execute(f"INSERT INTO {changing} VALUES (1, 2)")
    statement = await conn.prepare(f"SELECT * FROM {changing}")
    print(tuple(await statement.fetchrow()))
    await conn.execute(f"ALTER TABLE {changing} ALTER COLUMN b SET DATA TYPE text")
    try:
        print(tuple(await statement.fetchrow()))
    except asyncpg.InvalidCachedStatementError as error:
        print(error.sqlstate)
    print(tuple(await conn.fetchrow(f"SELECT * FROM {changing}")))
    await conn.execute(f"DROP TABLE {changing}")


async def pools():
    # A pool resets what it takes back: pg_advisory_unlock_all, CLOSE ALL, UNLISTEN *, RESET ALL.
    async with asyncpg.create_pool(min_size=2, max_size=6, server_settings={"application_name": "pooled"}) as pool:
        async def one(number):
            async with pool.acquire() as conn:
                await conn.execute(f"SET work_mem = '{number + 64}kB'")
                await asyncio.sleep(0.01)
                return await conn.fetchval("SHOW work_mem")

        print(await asyncio.gather(*(one(number) for number in range(20))))
        print(await pool.fetchrow("SELECT current_setting('work_mem'), current_setting('application_name')"))


async def main():
    conn = await asyncpg.connect()
    for part in (basics, prepared, transactions, cursors, copies, notifications, cancelling, changed_types):
        await part(conn)
    await pools()
    await conn.execute(f"DROP TABLE {table}")
    await conn.close()


asyncio.run(main())
