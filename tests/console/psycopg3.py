# Asks the console through psycopg 3, with its defaults (a transaction around everything) and prepared.
import sys
import psycopg

with psycopg.connect(dbname=sys.argv[1], application_name="psycopg") as connection:
    version = connection.execute("SHOW VERSION").fetchone()[0]
    print("version", version.startswith("pgregent "))
    cursor = connection.execute("SHOW POOLS")
    print("pools", [column.name for column in cursor.description][:3], len(cursor.fetchall()) >= 1)
    for _ in range(3):
        rows = connection.execute("SHOW LISTS", prepare=True, binary=True).fetchall()
    print("lists", rows[2])
    try:
        connection.execute("SHOW NONSENSE")
    except psycopg.Error as error:
        print("error", error.sqlstate, connection.info.transaction_status.name)
    connection.rollback()
    connection.execute("SET extra_float_digits = 3")
    print("float", connection.execute("SHOW extra_float_digits").fetchone())
    mine = [row for row in connection.execute("SHOW CLIENTS").fetchall() if "psycopg" in row]
    print("clients", len(mine))
with psycopg.connect(dbname=sys.argv[1], autocommit=True) as connection:
    print("select", connection.execute("SELECT 1").fetchone())
