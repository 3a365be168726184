#!/bin/sh
# Plays the soak against the release build of the proxy: scripts/soak.sh
# SOAK_MINUTES=30 is how long; PGREGENT_PROGRAM names another program. Needs what `make setup` installs.
set -eu
cd "$(dirname "$0")/.."
: "${SOAK_MINUTES:=30}" "${CARGO:=cargo}"
: "${PGREGENT_PROGRAM:=${CARGO_TARGET_DIR:-target}/release/pgregent}"
case $PGREGENT_PROGRAM in /*) ;; *) PGREGENT_PROGRAM=$PWD/$PGREGENT_PROGRAM ;; esac
export SOAK_MINUTES PGREGENT_PROGRAM
if [ ! -x "$PGREGENT_PROGRAM" ]; then
    echo "soak: there is no $PGREGENT_PROGRAM; run: make build" >&2
    exit 2
fi
echo "soak: $SOAK_MINUTES minutes of $("$PGREGENT_PROGRAM" --version)"
exec "$CARGO" test --test soak -- --nocapture --exact the_proxy_stays_as_it_was
