#!/bin/sh
# Runs the tests that need real nodes against other PostgreSQL majors. Usage: scripts/test-matrix.sh [MAJOR...]
# TESTS names the test binaries (default below), MATRIX_TESTS a part of the names of their tests.
#
# PostgreSQL runs as an unprivileged user when we are root, and then must be able to reach its programs,
# so they are copied to a directory that everybody can enter.
set -eu

cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 14 16 17 18
tests=${TESTS:-cluster hba permit voters failover_postgres}
copies=$(mktemp -d)
trap 'rm -rf "$copies"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$copies"
for major in "$@"; do
    bin=$(scripts/fetch-postgres.sh "$major")
    cp -a "${bin%/bin}" "$copies/$major"
    echo "test-matrix: $("$bin/postgres" --version)"
    for test in $tests; do
        # The packages hold no pg_rewind, which one of these tests is about.
        PGREGENT_PG_BIN="$copies/$major/bin" \
            cargo test --test "$test" ${MATRIX_TESTS:-} -- --test-threads 2 --skip an_old_primary
    done
done
