#!/bin/sh
# Run once by the image's entrypoint when pg1 is made: the roles, and who may come.
set -eu
psql -v ON_ERROR_STOP=1 -U postgres -d postgres <<'SQL'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'play';
CREATE ROLE pgregent LOGIN REPLICATION PASSWORD 'play';
GRANT pg_monitor, pg_signal_backend TO pgregent;
GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf() TO pgregent;
GRANT ALTER SYSTEM ON PARAMETER primary_conninfo, primary_slot_name, default_transaction_read_only, synchronous_standby_names TO pgregent;
SQL
echo 'host replication replicator all scram-sha-256' >>"$PGDATA/pg_hba.conf"
