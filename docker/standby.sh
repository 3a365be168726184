#!/bin/sh
# Entrypoint of pg2 and pg3: a copy of pg1 on the first start, then PostgreSQL.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    until pg_basebackup -d "host=pg1 user=replicator password=play" -D "$PGDATA" -R -X stream -c fast; do
        sleep 1
    done
    chmod 0700 "$PGDATA"
fi
exec postgres -c wal_log_hints=on -c wal_retrieve_retry_interval=200ms -c wal_keep_size=1GB
