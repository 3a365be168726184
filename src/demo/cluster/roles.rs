//! The roles of a throwaway cluster and what each may do.
//!
//! Invariants: the monitor's role gets exactly the documented least rights, so that whatever works
//! here works without a superuser (from PostgreSQL 15 on; before, nobody else may set parameters). Absent on purpose: passwords that are the same everywhere; only the
//! application's is chosen by people, and its role may do nothing but use its own database.

use super::ClusterOptions;

/// The superuser that `initdb` makes.
pub const SUPERUSER: &str = "postgres";
/// What standbys stream as.
pub const REPLICATION_USER: &str = "replicator";
/// What pgregent watches and promotes as.
pub const MONITOR_USER: &str = "pgregent";
/// What clients log in as; also the name of its database.
pub const APP_USER: &str = "app";
/// The application's database.
pub const APP_DATABASE: &str = "app";
/// Where the monitor connects to, and where `auth_query` runs.
pub const MONITOR_DATABASE: &str = "postgres";
/// Reads a role's secret through the function that [`AuthSource::Query`](super::AuthSource) needs.
pub const AUTH_QUERY: &str = "SELECT name, secret, valid_until FROM public.pgregent_secret($1)";

/// Random, letters and digits only, so that it needs no quoting anywhere.
const PASSWORD_CHARACTERS: usize = 24;

/// Passwords of the roles.
#[derive(Clone)]
pub struct Passwords {
    /// Of [`SUPERUSER`].
    pub superuser: String,
    /// Of [`REPLICATION_USER`].
    pub replication: String,
    /// Of [`MONITOR_USER`].
    pub monitor: String,
    /// Of [`APP_USER`].
    pub app: String,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords(…)")
    }
}

impl Passwords {
    pub(super) fn new(options: &ClusterOptions) -> Self {
        let random = || {
            let letters = rand::Rng::sample_iter(rand::rng(), rand::distr::Alphanumeric);
            letters.take(PASSWORD_CHARACTERS).map(char::from).collect()
        };
        Self { superuser: random(), replication: random(), monitor: random(), app: options.app_password.clone() }
    }
}

/// Statements for the database `postgres` of a new primary: all roles, and the monitor's rights. The
/// rights on functions hold per database, so the monitor must connect to this one.
pub(super) fn statements(passwords: &Passwords) -> String {
    let Passwords { replication, monitor, app, .. } = passwords;
    let app = app.replace('\'', "''");
    format!(
        "CREATE ROLE {REPLICATION_USER} LOGIN REPLICATION PASSWORD '{replication}';\n\
         CREATE ROLE {MONITOR_USER} LOGIN REPLICATION PASSWORD '{monitor}' IN ROLE pg_monitor, pg_signal_backend;\n\
         GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer) TO {MONITOR_USER};\n\
         GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO {MONITOR_USER};\n\
         DO $$ BEGIN IF current_setting('server_version_num')::int < 150000 THEN \
          ALTER ROLE {MONITOR_USER} SUPERUSER; ELSE \
          EXECUTE 'GRANT ALTER SYSTEM ON PARAMETER primary_conninfo, primary_slot_name, \
          default_transaction_read_only, synchronous_standby_names TO {MONITOR_USER}'; END IF; END $$;\n\
         CREATE ROLE {APP_USER} LOGIN PASSWORD '{app}';\n"
    )
}

/// Cannot run in a transaction block, so it is sent alone.
pub(super) const CREATE_DATABASE: &str = "CREATE DATABASE app OWNER app";

/// Lets the monitor's role read the secrets of ordinary roles, one at a time, and nothing else of
/// `pg_authid`.
pub(super) const SECRET_FUNCTION: &str = "\
CREATE FUNCTION public.pgregent_secret(wanted name, OUT name name, OUT secret text, OUT valid_until timestamptz)
RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'SELECT rolname, rolpassword, rolvaliduntil FROM pg_authid WHERE rolname = wanted AND rolcanlogin AND NOT rolsuper';
REVOKE ALL ON FUNCTION public.pgregent_secret(name) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.pgregent_secret(name) TO pgregent;";
