#!/bin/sh
# Fetches PostgreSQL's own source package and builds its test programs, for `make suite-...`.
#
# Nothing of PostgreSQL is kept in this repository: the source of the very version that is installed comes from
# Debian's archive (deb-src lists are read into a directory of our own, the system's are left alone) and is
# unpacked and built in target/suites. Only test programs are built; servers and clients are Debian's.
# Prints the source directory, and the directory of server programs of the same version. Usage: tests/suites/setup.sh
set -eu

cd "$(dirname "$0")/../.."
step() { printf 'suites: %s\n' "$*" >&2; }
fail() { step "$*"; exit 1; }

# --- packages -------------------------------------------------------------------------------------------
missing=""
need() { command -v "$2" >/dev/null 2>&1 || missing="$missing $1"; }
need gcc gcc
need make make
need perl perl
need bzip2 bzip2
need xz-utils xz
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
if [ -n "$missing" ]; then
    step "installing the packages:$missing"
    as_root=""
    [ "$(id -u)" -eq 0 ] || as_root="sudo"
    # shellcheck disable=SC2086 # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
fi

# --- which version --------------------------------------------------------------------------------------
bin=${PGREGENT_PG_BIN:-/usr/lib/postgresql/15/bin}
[ -x "$bin/postgres" ] || fail "no PostgreSQL in $bin (PGREGENT_PG_BIN names another directory)"
said=$("$bin/postgres" --version) # postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
version=$(printf '%s' "$said" | sed -n 's/.*(PostgreSQL) \([0-9.]*\).*/\1/p')
package=$(printf '%s' "$said" | sed -n 's/.*(Debian \(.*\))$/\1/p')
[ -n "$version" ] && [ -n "$package" ] || fail "not a Debian build of PostgreSQL: $said"
name="postgresql-${version%%.*}"
place="$PWD/target/suites"
source="$place/$name"

# --- source ---------------------------------------------------------------------------------------------
apt="$place/apt"
# Our own package lists: nothing of the system's is changed.
aptly() {
    tool=$1
    shift
    "$tool" -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$apt/sources" \
        -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root "$@"
}
if [ "$(cat "$source/.for" 2>/dev/null)" != "$package" ]; then
    mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial"
    for list in /etc/apt/sources.list.d/debian*.sources; do
        [ ! -e "$list" ] || sed 's/^Types:.*/Types: deb-src/' "$list" >"$apt/sources/$(basename "$list")"
    done
    [ ! -e /etc/apt/sources.list ] || sed -n 's/^deb \(.*debian\.org.*\)/deb-src \1/p' /etc/apt/sources.list >"$apt/sources/main.list"
    step "fetching the source of $name $package from Debian"
    aptly apt-get update >&2
    rm -rf "$source" "$place/fetched"
    mkdir -p "$place/fetched"
    # The very version, or else (mirrors drop some) the newest of the same major that is to be had.
    others=$(aptly apt-cache showsrc "$name" | sed -n 's/^Version: //p' | sort -rVu)
    for wanted in "$package" $others; do
        (cd "$place/fetched" && aptly apt-get source --download-only "$name=$wanted" >"$place/fetch.log" 2>&1) && break
        step "no source of $wanted there"
    done
    tarball=$(find "$place/fetched" -name "${name}_*.orig.tar.bz2")
    [ -n "$tarball" ] || fail "no source of $name to be had, see $place/fetch.log"
    mkdir "$place/fetched/tree"
    tar -C "$place/fetched/tree" --strip-components=1 -xjf "$tarball"
    mv "$place/fetched/tree" "$source"
    echo "$package" >"$source/.for"
    # Test and server must be of one version, to the last digit. Binary packages are unpacked, not installed.
    rm -rf "$place/server"
    if [ "$wanted" != "$package" ]; then
        step "fetching the server of $wanted as well"
        mkdir "$place/fetched/server"
        (cd "$place/fetched" && apt-get -qq download "$name=$wanted" "postgresql-client-${name#*-}=$wanted" >&2)
        for deb in "$place"/fetched/*.deb; do dpkg -x "$deb" "$place/fetched/server"; done
        mv "$place/fetched/server" "$place/server"
    fi
fi

# --- test programs --------------------------------------------------------------------------------------
built="$source/.test-programs-built"
if [ ! -e "$built" ]; then
    step "building PostgreSQL's test programs (two minutes)"
    log="$place/build.log"
    (
        cd "$source"
        # Optional libraries change nothing in the programs below; without them there is less to install.
        ./configure --without-readline --without-zlib --without-icu CFLAGS=-O1
        make -C src/backend generated-headers
        make -C src/interfaces/libpq
        make -C src/test/regress regress.so pg_regress
        for part in test/isolation test/modules/libpq_pipeline interfaces/libpq/test test/examples; do
            make -C "src/$part"
        done
    ) >"$log" 2>&1 || fail "the build failed, see $log"
    : >"$built"
fi
echo "$source"
[ ! -d "$place/server" ] || bin="$place/server/usr/lib/postgresql/${name#*-}/bin"
echo "$bin"
