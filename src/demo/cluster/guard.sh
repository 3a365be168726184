# Removes a throwaway cluster: every process that works inside its directory, its shared memory, the
# directory. Waits for the end of standard input first, which comes when the owner drops the cluster or
# dies, by whatever signal. Usage: sh guard.sh DIRECTORY
trap '' HUP INT TERM
dir=$1
case $dir in /*/pgregent-cluster-*) ;; *) exit 2 ;; esac
while read -r _; do :; done

# Ours are the programs below whose working directory is the cluster's or a node's. An operator's shell
# may stand there too, so names are compared as well.
ours() {
    for process in /proc/[0-9]*; do
        read -r name <"$process/comm" || continue
        case $name in postgres | initdb | pg_basebackup | pg_rewind | pgregent) ;; *) continue ;; esac
        for place in "$dir" "$dir"/*/; do
            if [ "$process/cwd" -ef "$place" ]; then
                echo "${process#/proc/}"
                break
            fi
        done
    done
}

# SIGQUIT is PostgreSQL's immediate shutdown: it frees the shared memory, which SIGKILL does not.
# shellcheck disable=SC2046 # one word per process is what kill wants
end() {
    pids=$(ours)
    [ -n "$pids" ] || return 0
    kill -"$1" $pids
    kill -CONT $pids
    tries=150
    while [ "$tries" -gt 0 ]; do
        [ -n "$(ours)" ] || return 0
        sleep 0.02
        tries=$((tries - 1))
    done
}
end QUIT
end KILL

# Line 7 of postmaster.pid: key and id of the System V segment that a killed postmaster left behind.
for lock in "$dir"/*/postmaster.pid; do
    [ -f "$lock" ] || continue
    segment=$(sed -n '7s/^ *[0-9]* *//p' "$lock")
    [ -z "$segment" ] || ipcrm -m "$segment"
done
rm -rf "$dir"
[ ! -e "$dir" ]
