//! Rows of `[server]`, `[admin]`, `[auth]`, `[[auth.user]]` and `[log]`: where clients and people come in.
//!
//! Invariants: what is bound or opened at the start is not reloadable; secrets are shown hidden.
//! Absent on purpose: rules over several rows (see `config::check`).

use super::Default::{Required, Told, Toml};
use super::View::{User, Whole, Within};
use super::{DAY, GIB, HOUR, KIB, Kind, Section, Shape, Shown};
use super::{count, duration, duration_or_off, live, row, size};
use crate::config::AuthMethod;
use crate::config::choice::Choice;
use std::path::PathBuf;

fn shown_path(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

pub(super) static SERVER: Section = Section {
    path: "server",
    shape: Shape::One,
    doc: "Where clients connect, and how many.",
    settings: &[
        row(
            "listen",
            Kind::Listens,
            Toml(r#"["0.0.0.0:5432"]"#),
            Whole(|c| Shown::list(&c.server.listen)),
            "Addresses for clients. \"[::]:5432\" is every IPv6 address.",
        ),
        row(
            "unix_socket_dir",
            Kind::Path,
            Told("none", r#""/run/pgregent""#),
            Whole(|c| Shown::file(c.server.unix_socket_dir.as_ref())),
            "Directory of a Unix socket for clients on this machine, named after the first port of listen (.s.PGSQL.5432).",
        ),
        row(
            "unix_socket_permissions",
            Kind::Text,
            Toml(r#""0777""#),
            Whole(|c| Shown::Text(format!("{:04o}", c.server.unix_socket_permissions))),
            "Who may connect to it, as chmod takes it. Writing is what counts.",
        ),
        live(
            "proxy_protocol_from",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.server.proxy_protocol_from)),
            "Networks of load balancers, such as \"10.0.0.0/8\", whose connections must begin with a PROXY header (version 1 or 2).",
        ),
        live(
            "max_client_connections",
            count(1, 1_000_000),
            Toml("10000"),
            Whole(|c| Shown::of(c.server.max_client_connections)),
            "Clients served at once. More wait in the accept queue.",
        ),
        live(
            "accept_queue",
            count(0, 1_000_000),
            Toml("1000"),
            Whole(|c| Shown::of(c.server.accept_queue)),
            "Clients that may wait for a place. More are refused with 53300.",
        ),
        live(
            "accept_queue_timeout",
            duration(1, HOUR),
            Toml(r#""30s""#),
            Whole(|c| Shown::duration(c.server.accept_queue_timeout)),
            "How long a client waits for a place before it is refused with 53300.",
        ),
        live(
            "login_timeout",
            duration(100, HOUR),
            Toml(r#""1min""#),
            Whole(|c| Shown::duration(c.server.login_timeout)),
            "From accept to the end of authentication, as PostgreSQL's authentication_timeout.",
        ),
        live(
            "drain_timeout",
            duration(0, DAY),
            Toml(r#""30s""#),
            Whole(|c| Shown::duration(c.server.drain_timeout)),
            "How long SIGTERM lets transactions finish. \"0s\": not at all.",
        ),
        row(
            "workers",
            count(0, 1_024),
            Toml("0"),
            Whole(|c| Shown::of(c.server.workers)),
            "Threads that move data. 0: one per core less one (the kernel and the control plane need theirs), at least one.",
        ),
        live(
            "message_bytes_max",
            size(64 * KIB, GIB),
            Toml(r#""1GiB""#),
            Whole(|c| Shown::size(c.server.message_bytes_max)),
            "Longest message accepted from a client. PostgreSQL's own limit is 1GiB.",
        ),
        live(
            "client_write_timeout",
            duration(100, DAY),
            Toml(r#""5min""#),
            Whole(|c| Shown::duration(c.server.client_write_timeout)),
            "A client that reads nothing for this long while there is something to read is cut.",
        ),
        live(
            "client_idle_timeout",
            duration_or_off(100, 30 * DAY),
            Toml(r#""0s""#),
            Whole(|c| Shown::duration_or_off(c.server.client_idle_timeout)),
            "A client idle outside a transaction for this long is cut. \"0s\": never.",
        ),
        live(
            "zone",
            Kind::Name,
            Told("none", r#""eu-1a""#),
            Whole(|c| Shown::of(c.server.zone.as_deref().unwrap_or_default())),
            "Where this proxy stands. Standbys of the same zone ([[node]] zone) take its reads; those of other zones only if \
             none can, or if a read would wait a quarter as long there.",
        ),
    ],
};

pub(super) static ADMIN: Section = Section {
    path: "admin",
    shape: Shape::One,
    doc: "Metrics, health and API over HTTP, without a login: keep it on an address only operators reach. And the \
          console: databases \"pgregent\" and \"pgbouncer\" on the client port, with a login.",
    settings: &[
        row(
            "listen",
            Kind::Listen,
            Toml(r#""127.0.0.1:9187""#),
            Whole(|c| Shown::Text(c.admin.listen.map(|a| a.to_string()).unwrap_or_default())),
            "Address for /metrics, /health/*, /api/v1/* and the dashboard. \"\": off.",
        ),
        live(
            "console",
            Kind::Bool,
            Toml("true"),
            Whole(|c| Shown::of(c.admin.console)),
            "Whether the databases \"pgregent\" and \"pgbouncer\" are the console. false: they are databases of the \
             cluster, if it has them.",
        ),
        live(
            "console_users",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.admin.console_users)),
            "Who may use the console. They log in like every user.",
        ),
        live(
            "console_readers",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.admin.console_readers)),
            "Who may look in the console, and change nothing.",
        ),
    ],
};

pub(super) static AUTH: Section = Section {
    path: "auth",
    shape: Shape::One,
    doc: "How clients prove who they are. Secrets are looked for in [[auth.user]], then userlist, then auth_query.",
    settings: &[
        live(
            "method",
            Kind::Word(AuthMethod::WORDS),
            Toml(r#""scram-sha-256""#),
            Whole(|c| Shown::of(c.auth.method.word())),
            "What clients are asked for, without hba_file. trust asks for nothing.",
        ),
        live(
            "hba_file",
            Kind::Path,
            Told("none: method counts for everybody", r#""pg_hba.conf""#),
            Whole(|c| Shown::Text(shown_path(c.auth.hba_file.as_ref()))),
            "Rules of who may log in from where and how, in the format of PostgreSQL's pg_hba.conf.",
        ),
        live(
            "ident_file",
            Kind::Path,
            Told("none", r#""pg_ident.conf""#),
            Whole(|c| Shown::Text(shown_path(c.auth.ident_file.as_ref()))),
            "Maps of system users and certificates to roles, for map= in hba_file, in the format of pg_ident.conf.",
        ),
        live(
            "userlist",
            Kind::Path,
            Told("none", r#""userlist.txt""#),
            Whole(|c| Shown::Text(shown_path(c.auth.userlist.as_ref()))),
            "File of \"name\" \"secret\" lines, as PgBouncer's auth_file.",
        ),
        live(
            "auth_query",
            Kind::Text,
            Told("none", r#""SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin""#),
            Whole(|c| Shown::Text(c.auth.auth_query.clone().unwrap_or_default())),
            "Query run on the cluster that returns name, secret and, if you like, valid_until of user $1.",
        ),
        live(
            "auth_query_user",
            Kind::Text,
            Told("that of [cluster] monitor_user", r#""pgregent""#),
            Whole(|c| Shown::of(&c.auth.auth_query_user)),
            "Role that runs auth_query. It needs the right to read what the query reads.",
        ),
        live(
            "auth_query_password",
            Kind::Secret,
            Told("the monitor's, if auth_query_user is the monitor's; else empty", r#""change me""#),
            Whole(|c| Shown::Hidden(c.auth.auth_query_password.clone())),
            "Its password. Empty: the nodes must trust it.",
        ),
        live(
            "auth_query_password_file",
            Kind::Path,
            Told("none", r#""auth_query.password""#),
            Within("auth_query_password"),
            "File that holds the password, instead of auth_query_password.",
        ),
        live(
            "auth_query_database",
            Kind::Text,
            Told("that of [cluster] monitor_database", r#""postgres""#),
            Whole(|c| Shown::of(&c.auth.auth_query_database)),
            "Database auth_query runs in.",
        ),
        live(
            "auth_query_ttl",
            duration(0, DAY),
            Toml(r#""0s""#),
            Whole(|c| Shown::duration(c.auth.auth_query_ttl)),
            "How long an answer of auth_query is kept. \"0s\": asked at each login, so that a new password counts at once.",
        ),
        live(
            "failed_logins_per_address",
            count(0, 1_000_000),
            Toml("600"),
            Whole(|c| Shown::of(c.auth.failed_logins_per_address)),
            "Failed logins per minute from one address (IPv6: /64) before answers to failures come late; at twice as many its logins are refused for a while. 0: no limit.",
        ),
        live(
            "failed_logins_per_user",
            count(0, 1_000_000),
            Toml("120"),
            Whole(|c| Shown::of(c.auth.failed_logins_per_user)),
            "Failed logins per minute as one user before answers to failures come late; right passwords are never held up. 0: no limit.",
        ),
    ],
};

pub(super) static USER: Section = Section {
    path: "auth.user",
    shape: Shape::Many,
    doc: "A user of this file.",
    settings: &[
        live("name", Kind::Text, Required(r#""alice""#), User(|u| Shown::of(&u.name)), "Role name, unique."),
        live(
            "password",
            Kind::Secret,
            Required(r#""change me""#),
            User(|u| Shown::Hidden(u.secret.clone())),
            "Password, or a stored secret as in pg_authid (SCRAM-SHA-256$… or md5…).",
        ),
        live(
            "password_file",
            Kind::Path,
            Told("none", r#""alice.password""#),
            Within("password"),
            "File that holds it, instead of password.",
        ),
    ],
};

pub(super) static LOG: Section = Section {
    path: "log",
    shape: Shape::One,
    doc: "What is logged, to standard error.",
    settings: &[
        row(
            "json",
            Kind::Bool,
            Toml("false"),
            Whole(|c| Shown::of(c.log.json)),
            "JSON objects instead of lines for people.",
        ),
        row(
            "filter",
            Kind::Text,
            Toml(r#""info""#),
            Whole(|c| Shown::of(&c.log.filter)),
            "What is logged: error, warn, info, debug, trace; also per module, as in \"info,pgregent::pool=debug\".",
        ),
        live(
            "slow_statement",
            duration_or_off(1, DAY),
            Toml(r#""0s""#),
            Whole(|c| Shown::duration_or_off(c.log.slow_statement)),
            "Statements that took longer are logged, with where they went and why. \"0s\": none.",
        ),
        live(
            "failed_statements",
            Kind::Bool,
            Toml("false"),
            Whole(|c| Shown::of(c.log.failed_statements)),
            "So are statements that failed, with their SQLSTATE.",
        ),
    ],
};
