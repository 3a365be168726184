#!/bin/sh
# Fuzzes every target for some seconds each: scripts/fuzz-quick.sh [SECONDS]
# Stops at the first crash; its input is then under fuzz/artifacts/. Installs nothing.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-10}

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz: no nightly toolchain; install it with: rustup toolchain install nightly" >&2
    exit 1
fi
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "fuzz: no cargo-fuzz; install it with: cargo install cargo-fuzz --locked" >&2
    exit 1
fi

# The parser's C sources hold equal static tables, which the sanitizer takes for one defined twice.
ASAN_OPTIONS=${ASAN_OPTIONS:-detect_odr_violation=0}
export ASAN_OPTIONS

for target in $(cargo +nightly fuzz list); do
    echo "fuzz: $target, ${seconds}s"
    mkdir -p "fuzz/corpus/$target"
    seeds=
    [ ! -d "fuzz/seeds/$target" ] || seeds="fuzz/seeds/$target"
    # shellcheck disable=SC2086 # no seeds, no argument
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" $seeds -- -max_total_time="$seconds" -print_final_stats=1
done
