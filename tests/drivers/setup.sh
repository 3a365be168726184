#!/bin/sh
# Installs the drivers that tests/drivers.rs runs, below target/drivers, from their public registries:
# psycopg 3, asyncpg and SQLAlchemy (pip, in a virtual environment), pg (npm), pgjdbc (Debian's package, unpacked);
# and Patroni for tests/follow, in an environment of its own.
# Idempotent: does nothing when the versions below are there. Needs python3-venv, npm, and for pgjdbc
# a JDK; a language that is not installed is named and left out.
set -eu

PYTHON='psycopg[binary]>=3.2,<4 asyncpg>=0.29,<1 sqlalchemy>=2,<3'
PATRONI='patroni[etcd3]>=4,<5 psycopg[binary]>=3.2,<4'
NODE_PG='pg@8'
PGJDBC=libpostgresql-jdbc-java

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
drivers=${CARGO_TARGET_DIR:-$root/target}/drivers
mkdir -p "$drivers"

# Two test runs at once must not install into the same place.
exec 9>"$drivers/.lock"
flock 9

installed() { [ "$(cat "$drivers/$1.version" 2>/dev/null || true)" = "$2" ]; }
record() { printf '%s\n' "$2" >"$drivers/$1.version"; }

if installed python "$PYTHON"; then :; elif command -v python3 >/dev/null; then
    echo "drivers: installing $PYTHON into $drivers/python"
    python3 -m venv --clear "$drivers/python"
    # shellcheck disable=SC2086 # a list of requirements
    "$drivers/python/bin/pip" install --quiet --disable-pip-version-check $PYTHON
    record python "$PYTHON"
else
    echo "drivers: no python3, psycopg and asyncpg are left out (apt-get install python3-venv)" >&2
fi

# Patroni runs as PostgreSQL's user, who must be able to run its Python: the system's, where there is one.
if installed patroni "$PATRONI"; then :; elif installed python "$PYTHON"; then
    echo "drivers: installing $PATRONI into $drivers/patroni"
    python=$(PATH="/usr/bin:$PATH" command -v python3)
    "$python" -m venv --clear --without-pip "$drivers/patroni"
    # shellcheck disable=SC2086 # a list of requirements
    "$drivers/python/bin/pip" --quiet --disable-pip-version-check --python "$drivers/patroni/bin/python3" install $PATRONI
    record patroni "$PATRONI"
fi

if installed node "$NODE_PG"; then :; elif command -v npm >/dev/null; then
    echo "drivers: installing $NODE_PG into $drivers/node"
    mkdir -p "$drivers/node"
    npm install --silent --no-audit --no-fund --prefix "$drivers/node" "$NODE_PG"
    record node "$NODE_PG"
else
    echo "drivers: no npm, node-postgres is left out (apt-get install npm)" >&2
fi

if installed java "$PGJDBC"; then :; elif command -v apt-get >/dev/null && command -v javac >/dev/null; then
    echo "drivers: unpacking Debian's $PGJDBC into $drivers/java"
    rm -rf "$drivers/java"
    mkdir -p "$drivers/java"
    # Downloaded and unpacked, not installed: the system stays as it is.
    (cd "$drivers/java" && apt-get download --quiet=2 "$PGJDBC" 2>/dev/null && dpkg-deb -x ./*.deb . && rm ./*.deb)
    cp "$drivers/java/usr/share/java/postgresql.jar" "$drivers/java/postgresql.jar"
    record java "$PGJDBC"
else
    echo "drivers: no JDK, pgjdbc is left out (apt-get install default-jdk-headless)" >&2
fi
