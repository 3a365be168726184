//! The texts a cluster runs with: `postgresql.conf`, `pg_hba.conf`, and a `pgregent.toml` for a proxy
//! in front of it.
//!
//! Invariants: `postgresql.conf` is the same on all nodes, since `pg_basebackup` and `pg_rewind` copy
//! it; what differs (address, port, socket, name) is on each postmaster's command line. Absent on purpose:
//! TLS, and reading any of these texts back.

use super::roles::{APP_USER, AUTH_QUERY, MONITOR_DATABASE, MONITOR_USER, Passwords};
use super::{ClusterOptions, Node};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Everybody proves a password by SCRAM, replication included; there is no trust anywhere.
const HBA: &str = "\
local   all          all                 scram-sha-256
host    all          all  127.0.0.1/32   scram-sha-256
host    replication  all  127.0.0.1/32   scram-sha-256
";

/// Nodes with addresses of their own also meet each other, and the proxies, in one network.
const HBA_HOSTS: &str = "\
host    all          all  samenet        scram-sha-256
host    replication  all  samenet        scram-sha-256
";

/// A new `pg_hba.conf`.
pub(super) fn hba(options: &ClusterOptions) -> String {
    let hosts = if options.hosts.is_empty() { "" } else { HBA_HOSTS };
    format!("{HBA}{hosts}")
}

/// A new `postgresql.conf`.
pub(super) fn postgresql_conf(options: &ClusterOptions) -> String {
    let on = |flag: bool| if flag { "on" } else { "off" };
    let retry_ms = options.wal_retrieve_retry_interval.as_millis();
    let mut text = format!(
        "max_connections = {connections}\n\
         password_encryption = 'scram-sha-256'\n\
         shared_buffers = '32MB'\n\
         dynamic_shared_memory_type = mmap   # inside the data directory: gone with it\n\
         fsync = {fsync}\n\
         wal_level = replica\n\
         wal_log_hints = on                  # pg_rewind needs it\n\
         wal_keep_size = '64MB'\n\
         max_wal_senders = 10\n\
         max_replication_slots = 10\n\
         max_slot_wal_keep_size = '1GB'\n\
         max_prepared_transactions = 10\n\
         hot_standby = on\n\
         hot_standby_feedback = {feedback}\n\
         wal_receiver_status_interval = '1s'\n\
         wal_retrieve_retry_interval = '{retry_ms}ms'   # the default 5s can add 5s to a promotion\n\
         log_line_prefix = '%m [%p] %q%u@%d '\n\
         log_timezone = 'UTC'\n\
         timezone = 'UTC'\n\
         lc_messages = 'C'\n",
        connections = options.max_connections,
        fsync = on(options.fsync),
        feedback = on(options.hot_standby_feedback),
    );
    for (name, value) in &options.settings {
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
    }
    text
}

/// Where a proxy gets its users from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthSource {
    /// The application's password stands in the file.
    #[default]
    Users,
    /// The nodes are asked; the file holds no client's password. Needs [`ClusterOptions::auth_query`].
    Query,
}

/// What differs between proxies in front of the same cluster.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Loopback port for clients.
    pub port: u16,
    /// Loopback port for `/metrics` and the API.
    pub admin_port: u16,
    /// Where the proxy keeps its state file.
    pub state_dir: PathBuf,
    /// Where it gets its users from.
    pub auth: AuthSource,
    /// Lines by section: `("cluster", "failover_min_gap = \"5s\"")`. They win over nothing: a key that
    /// is already written is an error of the file.
    pub extra: Vec<(&'static str, String)>,
}

/// A `pgregent.toml` for a proxy in front of these nodes, with automatic failover.
pub(super) fn pgregent_toml(nodes: &[Node], passwords: &Passwords, options: &ProxyOptions) -> String {
    let mut sections = vec![
        ("server", vec![format!("listen = [\"127.0.0.1:{}\"]", options.port)]),
        ("admin", vec![format!("listen = \"127.0.0.1:{}\"", options.admin_port)]),
        (
            "cluster",
            vec![
                "name = \"playground\"".to_owned(),
                format!("monitor_user = {}", quote(MONITOR_USER)),
                format!("monitor_password = {}", quote(&passwords.monitor)),
                format!("monitor_database = {}", quote(MONITOR_DATABASE)),
                "failover = \"automatic\"".to_owned(),
                "coordination = \"single\"".to_owned(),
                format!("state_dir = {}", quote(&options.state_dir.display().to_string())),
            ],
        ),
        ("pool", vec!["mode = \"transaction\"".to_owned()]),
        ("route", vec!["read_write_split = true".to_owned(), "consistency = \"session\"".to_owned()]),
        ("auth", vec!["method = \"scram-sha-256\"".to_owned()]),
    ];
    if options.auth == AuthSource::Query {
        sections[5].1.push(format!("auth_query = {}", quote(AUTH_QUERY)));
    }
    for (section, line) in &options.extra {
        match sections.iter_mut().find(|(name, _)| name == section) {
            Some((_, lines)) => lines.push(line.clone()),
            None => sections.push((section, vec![line.clone()])),
        }
    }
    let mut text = String::new();
    for (name, lines) in sections {
        let _ = writeln!(text, "[{name}]\n{}\n", lines.join("\n"));
    }
    for node in nodes {
        let _ = writeln!(
            text,
            "[[node]]\nname = {}\naddress = \"{}:{}\"\n",
            quote(node.name()),
            node.address(),
            node.port()
        );
    }
    if options.auth == AuthSource::Users {
        let _ = writeln!(text, "[[auth.user]]\nname = {}\npassword = {}", quote(APP_USER), quote(&passwords.app));
    }
    text
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(auth: AuthSource, extra: Vec<(&'static str, String)>) -> toml::Table {
        let cluster = ClusterOptions { app_password: "it's \"quoted\"".to_owned(), ..ClusterOptions::default() };
        let passwords = Passwords::new(&cluster);
        let options = ProxyOptions { port: 6432, admin_port: 9187, state_dir: "/tmp/state".into(), auth, extra };
        pgregent_toml(&[], &passwords, &options).parse().unwrap()
    }

    #[test]
    fn the_proxy_file_is_toml_and_carries_extras_in_their_section() {
        let extra = vec![("pool", "size = 5".to_owned()), ("log", "json = true".to_owned())];
        let table = render(AuthSource::Users, extra);
        assert_eq!(table["server"]["listen"][0].as_str(), Some("127.0.0.1:6432"));
        assert_eq!(table["pool"]["size"].as_integer(), Some(5));
        assert_eq!(table["log"]["json"].as_bool(), Some(true));
        assert_eq!(table["auth"]["user"][0]["password"].as_str(), Some("it's \"quoted\""));
    }

    #[test]
    fn with_auth_query_no_client_password_is_written() {
        let table = render(AuthSource::Query, Vec::new());
        assert_eq!(table["auth"]["auth_query"].as_str(), Some(AUTH_QUERY));
        assert!(table["auth"].get("user").is_none());
    }

    #[test]
    fn settings_of_the_caller_come_last_and_are_quoted() {
        let settings = vec![("search_path".to_owned(), "it's".to_owned())];
        let text = postgresql_conf(&ClusterOptions { settings, ..ClusterOptions::default() });
        assert!(text.ends_with("search_path = 'it''s'\n"), "{text}");
    }
}
