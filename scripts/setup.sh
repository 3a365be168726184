#!/bin/sh
# Installs the Debian packages that building, testing and the demo need, and only those that are missing.
# Starts no service and makes no cluster of its own: tests and the demo make theirs, in a temporary directory.
set -eu

step() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

command -v cargo >/dev/null 2>&1 || fail "no Rust toolchain (cargo): see https://rustup.rs, 1.90 or newer is needed"

# A PostgreSQL server of 15 or newer, from whatever package, is enough.
has_postgres() {
    for initdb in /usr/lib/postgresql/*/bin/initdb "${PGREGENT_PG_BIN:-/nowhere}/initdb"; do
        [ -x "$initdb" ] || continue
        major=$("$initdb" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
        [ "$major" -ge 15 ] && [ -x "${initdb%initdb}pg_basebackup" ] && return 0
    done
    return 1
}

missing=""
need() { # need PACKAGE COMMAND...: the package is needed if the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_one_of() { for file in "$@"; do [ -e "$file" ] && return 0; done; return 1; }
has_libclang() { # the library, and the headers that come beside it
    has_one_of /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* &&
        has_one_of /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h
}

has_postgres || missing="$missing postgresql-15 postgresql-client-15 postgresql-contrib"
need libclang-dev has_libclang
need gcc command -v gcc
need libc6-dev test -e /usr/include/stdio.h
need make command -v make
need pkg-config command -v pkg-config
need pgbouncer has_one_of /usr/sbin/pgbouncer /usr/bin/pgbouncer
need openssl command -v openssl
need etcd-server command -v etcd
need sqlsmith command -v sqlsmith
need python3 command -v python3
need util-linux command -v ipcrm
need iproute2 command -v ip

if [ -z "$missing" ]; then
    step "everything is there"
    exit 0
fi

command -v apt-get >/dev/null 2>&1 ||
    fail "this is not a Debian system; install the equivalents of:$missing"

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; } ||
        fail "needs root and there is no sudo; run this as root: apt-get update && apt-get install -y$missing"
    as_root="sudo"
fi

step "installing the packages:$missing"

# Debian starts what it installs, and makes a cluster in /var/lib/postgresql. Neither is wanted, so both
# are turned off while the installation runs, and only where nobody has set them up otherwise.
policy=/usr/sbin/policy-rc.d
cluster_conf=/etc/postgresql-common/createcluster.d/pgregent-setup.conf
undo=""
# shellcheck disable=SC2086 # a list of files
clean_up() { [ -z "$undo" ] || $as_root rm -f $undo; }
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e "$policy" ]; then
    undo="$undo $policy"
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
if [ ! -e /usr/bin/pg_createcluster ]; then
    undo="$undo $cluster_conf"
    $as_root mkdir -p "${cluster_conf%/*}"
    echo "create_main_cluster = false" | $as_root tee "$cluster_conf" >/dev/null
fi

# shellcheck disable=SC2086 # a list of packages
install() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; }

if ! install; then
    step "trying again with fresh package lists (apt-get update)"
    $as_root apt-get update -qq
    install || fail "apt-get could not install:$missing"
fi
step "done"
