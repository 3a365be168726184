//! From what the file says to what is valid: builds a [`Config`], section by section.
//!
//! Invariants: checking never stops at the first problem; a [`Config`] that comes with problems is
//! never given out. Absent on purpose: defaults and ranges (see `settings`), and rules over several
//! sections (see `rules`).

use super::problem::Notes;
use super::raw::{Fields, Raw};
use super::value::{Flaw, HttpAddress, parse_http, quoted};
use super::{
    AdminConfig, AuthConfig, ClusterConfig, Config, EtcdConfig, HooksConfig, LogConfig, NodeConfig, NodeTlsConfig,
    Pattern, PoolConfig, RedirectConfig, RouteConfig, Secret, ServerConfig, TlsFiles, UserConfig, WitnessConfig, files,
    pem, tls,
};
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The tables of the file, kept for the rules that look at several of them.
pub(super) struct Tables<'t, 'i> {
    pub(super) server: Fields<'t, 'i>,
    pub(super) tls: Fields<'t, 'i>,
    pub(super) admin: Fields<'t, 'i>,
    pub(super) cluster: Fields<'t, 'i>,
    pub(super) etcd: Fields<'t, 'i>,
    pub(super) hooks: Fields<'t, 'i>,
    pub(super) nodes: Vec<Fields<'t, 'i>>,
    pub(super) witnesses: Vec<Fields<'t, 'i>>,
    pub(super) pool: Fields<'t, 'i>,
    pub(super) route: Fields<'t, 'i>,
    pub(super) redirects: Vec<Fields<'t, 'i>>,
    pub(super) auth: Fields<'t, 'i>,
    pub(super) users: Vec<Fields<'t, 'i>>,
    pub(super) log: Fields<'t, 'i>,
}

impl<'t, 'i> Tables<'t, 'i> {
    pub(super) fn of(raw: &Raw<'t, 'i>, notes: &mut Notes) -> Self {
        Self {
            server: raw.one("server", notes),
            tls: raw.one("tls", notes),
            admin: raw.one("admin", notes),
            cluster: raw.one("cluster", notes),
            etcd: raw.one("etcd", notes),
            hooks: raw.one("hooks", notes),
            nodes: raw.many("node", notes),
            witnesses: raw.many("witness", notes),
            pool: raw.one("pool", notes),
            route: raw.one("route", notes),
            redirects: raw.many("route.redirect", notes),
            auth: raw.one("auth", notes),
            users: raw.many("auth.user", notes),
            log: raw.one("log", notes),
        }
    }

    /// The configuration, to be believed only if `notes` holds no problem.
    pub(super) fn config(&self, folder: &Path, notes: &mut Notes) -> Config {
        let mut cluster = cluster(&self.cluster, folder, notes);
        cluster.witnesses = self.witnesses.iter().map(|fields| witness(fields, &cluster.tls, notes)).collect();
        let pool = pool(&self.pool, notes);
        let users = self.users.iter().map(|fields| user(fields, folder, notes)).collect();
        Config {
            server: server(&self.server, folder, notes),
            tls: tls::towards_clients(&self.tls, folder, notes),
            admin: admin(&self.admin, notes),
            etcd: etcd(&self.etcd, folder, notes),
            nodes: self
                .nodes
                .iter()
                .map(|fields| node(fields, pool.node_budget, &cluster.tls, folder, notes))
                .collect(),
            route: route(&self.route, self.redirects.iter().map(|fields| redirect(fields, notes)).collect(), notes),
            auth: auth(&self.auth, users, &cluster, folder, notes),
            log: log(&self.log, notes),
            hooks: hooks(&self.hooks, notes),
            cluster,
            pool,
        }
    }
}

fn server(f: &Fields<'_, '_>, folder: &Path, notes: &mut Notes) -> ServerConfig {
    ServerConfig {
        listen: f.listens("listen", notes).unwrap_or_default(),
        unix_socket_dir: f.path("unix_socket_dir", notes).map(|path| folder.join(path)),
        unix_socket_permissions: permissions(f, "unix_socket_permissions", notes),
        proxy_protocol_from: networks(f, "proxy_protocol_from", notes),
        max_client_connections: f.count("max_client_connections", notes),
        accept_queue: f.count("accept_queue", notes),
        accept_queue_timeout: f.duration("accept_queue_timeout", notes),
        login_timeout: f.duration("login_timeout", notes),
        drain_timeout: f.duration("drain_timeout", notes),
        workers: f.count("workers", notes),
        message_bytes_max: f.count("message_bytes_max", notes),
        client_write_timeout: f.duration("client_write_timeout", notes),
        client_idle_timeout: f.duration_or_off("client_idle_timeout", notes),
        zone: f.text("zone", notes),
    }
}

fn admin(f: &Fields<'_, '_>, notes: &mut Notes) -> AdminConfig {
    AdminConfig {
        listen: f.listen("listen", notes).flatten(),
        console: f.flag("console", notes).unwrap_or_default(),
        console_users: f.texts("console_users", notes).unwrap_or_default(),
        console_readers: f.texts("console_readers", notes).unwrap_or_default(),
    }
}

/// Permissions as `chmod` takes them.
fn permissions(f: &Fields<'_, '_>, key: &str, notes: &mut Notes) -> u32 {
    let text = f.text(key, notes).unwrap_or_default();
    let octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if octal && mode <= 0o777 => mode,
        _ => {
            let flaw = Flaw::new(format!("{} is not a set of permissions", quoted(&text)));
            f.problem(key, flaw.suggest("write three octal digits, such as \"0770\""), notes);
            0
        }
    }
}

/// Networks as `10.0.0.0/8`, or single addresses.
fn networks(f: &Fields<'_, '_>, key: &str, notes: &mut Notes) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in f.texts(key, notes).unwrap_or_default() {
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(network),
            Err(_) => {
                let flaw = Flaw::new(format!("{} is not a network", quoted(&text)));
                f.problem(key, flaw.suggest("write one such as \"10.0.0.0/8\", or an IP address"), notes);
            }
        }
    }
    networks
}

fn cluster(f: &Fields<'_, '_>, folder: &Path, notes: &mut Notes) -> ClusterConfig {
    let patroni_ca = pem::file(f, "patroni_ca_file", folder, notes);
    ClusterConfig {
        name: f.text("name", notes).unwrap_or_default(),
        monitor_user: f.text("monitor_user", notes).unwrap_or_default(),
        monitor_password: secret(f, "monitor_password", "monitor_password_file", folder, notes).unwrap_or_default(),
        monitor_database: f.text("monitor_database", notes).unwrap_or_default(),
        failover: f.choice("failover", notes),
        coordination: f.choice("coordination", notes),
        lease_duration: f.duration("lease_duration", notes),
        on_quorum_loss: f.choice("on_quorum_loss", notes),
        witnesses: Vec::new(),
        state_dir: folder.join(f.path("state_dir", notes).unwrap_or_default()),
        probe_interval: f.duration("probe_interval", notes),
        probe_suspect_interval: f.duration("probe_suspect_interval", notes),
        probe_timeout: f.duration("probe_timeout", notes),
        probe_fall: f.count32("probe_fall", notes),
        probe_rise: f.count32("probe_rise", notes),
        write_probe_interval: f.duration("write_probe_interval", notes),
        write_probe_warn: f.duration("write_probe_warn", notes),
        write_probe_fail: f.duration("write_probe_fail", notes),
        connect_probe_interval: f.duration("connect_probe_interval", notes),
        connect_probe_fail: f.duration("connect_probe_fail", notes),
        sample_interval: f.duration("sample_interval", notes),
        failover_min_gap: f.duration("failover_min_gap", notes),
        failover_max_per_hour: f.count32("failover_max_per_hour", notes),
        primary_start_timeout: f.duration("primary_start_timeout", notes),
        failover_lag_bytes_max: f.number("failover_lag_bytes_max", notes).unwrap_or_default(),
        promote_timeout: f.duration("promote_timeout", notes),
        fencing: f.choice("fencing", notes),
        fence_sql: f.flag("fence_sql", notes).unwrap_or_default(),
        synchronous_standbys: f.count("synchronous_standbys", notes),
        synchronous_degrade: f.choice("synchronous_degrade", notes),
        patroni_authorities: pem::authorities(f, ("patroni_ca_file", patroni_ca.as_deref()), ("", None), notes),
        patroni_ca_file: patroni_ca,
        tls: tls::towards_nodes(f, None, folder, notes),
    }
}

fn witness(f: &Fields<'_, '_>, tls: &NodeTlsConfig, notes: &mut Notes) -> WitnessConfig {
    let (host, port) = f.address("address", notes).unwrap_or_default();
    WitnessConfig { name: Arc::from(f.text("name", notes).unwrap_or_default()), host, port, tls: tls.clone() }
}

fn etcd(f: &Fields<'_, '_>, folder: &Path, notes: &mut Notes) -> EtcdConfig {
    let file = |key: &str, notes: &mut Notes| pem::file(f, key, folder, notes);
    let (cert, key, ca) = (file("cert_file", notes), file("key_file", notes), file("ca_file", notes));
    let files = TlsFiles { cert, key, ca, ..TlsFiles::default() };
    let cert = ("cert_file", files.cert.as_deref());
    EtcdConfig {
        endpoints: f.texts("endpoints", notes).unwrap_or_default(),
        prefix: f.text("prefix", notes).unwrap_or_default(),
        user: f.text("user", notes),
        password: secret(f, "password", "password_file", folder, notes).unwrap_or_default(),
        authorities: pem::authorities(f, ("ca_file", files.ca.as_deref()), ("", None), notes),
        identity: pem::identity(f, cert, ("key_file", files.key.as_deref()), notes),
        files,
    }
}

fn hooks(f: &Fields<'_, '_>, notes: &mut Notes) -> HooksConfig {
    let mut program = |key| f.texts(key, notes).unwrap_or_default();
    HooksConfig {
        fence_command: program("fence_command"),
        before_promotion: program("before_promotion"),
        after_promotion: program("after_promotion"),
        on_role_change: program("on_role_change"),
        on_rejoin: program("on_rejoin"),
        timeout: f.duration("timeout", notes),
    }
}

fn node(f: &Fields<'_, '_>, node_budget: usize, tls: &NodeTlsConfig, folder: &Path, notes: &mut Notes) -> NodeConfig {
    let (host, port) = f.address("address", notes).unwrap_or_default();
    let replication = f.address("replication_address", notes);
    let (replication_host, replication_port) = replication.unwrap_or_else(|| (host.clone(), port));
    let budget = f.number("budget", notes).map(|budget| usize::try_from(budget).unwrap_or(usize::MAX));
    let name: Arc<str> = Arc::from(f.text("name", notes).unwrap_or_default());
    NodeConfig {
        application_name: f.text("application_name", notes).map_or_else(|| Arc::clone(&name), Arc::from),
        name,
        host,
        port,
        replication_host,
        replication_port,
        weight: f.count32("weight", notes),
        zone: f.text("zone", notes),
        drain: f.flag("drain", notes).unwrap_or_default(),
        failover_priority: f.count32("failover_priority", notes),
        patroni_url: patroni_url(f, notes),
        budget: budget.unwrap_or(node_budget),
        tls: tls::towards_nodes(f, Some(tls), folder, notes),
    }
}

fn patroni_url(f: &Fields<'_, '_>, notes: &mut Notes) -> Option<HttpAddress> {
    let key = "patroni_url";
    parse_http(&f.text(key, notes)?).map_err(|flaw| f.problem(key, flaw, notes)).ok()
}

fn pool(f: &Fields<'_, '_>, notes: &mut Notes) -> PoolConfig {
    PoolConfig {
        mode: f.choice("mode", notes),
        size: f.count("size", notes),
        node_budget: f.count("node_budget", notes),
        replication_connections_max: f.count("replication_connections_max", notes),
        queue_timeout: f.duration("queue_timeout", notes),
        idle_timeout: f.duration_or_off("idle_timeout", notes),
        lifetime: f.duration_or_off("lifetime", notes),
        connects_max: f.count("connects_max", notes),
        connect_timeout: f.duration("connect_timeout", notes),
        prepared_statements_max: f.count("prepared_statements_max", notes),
        prepared_bytes_max: f.count("prepared_bytes_max", notes),
        pinning: f.choice("pinning", notes),
        transaction_idle_timeout: f.duration_or_off("transaction_idle_timeout", notes),
    }
}

fn route(f: &Fields<'_, '_>, redirects: Vec<RedirectConfig>, notes: &mut Notes) -> RouteConfig {
    RouteConfig {
        read_write_split: f.flag("read_write_split", notes).unwrap_or_default(),
        consistency: f.choice("consistency", notes),
        balance: f.choice("balance", notes),
        slow_start: f.duration("slow_start", notes),
        lag_bytes_max: f.number("lag_bytes_max", notes).filter(|&bytes| bytes > 0),
        replay_lag_max: f.duration_or_off("replay_lag_max", notes),
        classify_bytes_max: f.count("classify_bytes_max", notes),
        retry_budget_percent: f.number("retry_budget_percent", notes).unwrap_or_default(),
        learned_ttl: f.duration("learned_ttl", notes),
        read_functions: f.texts("read_functions", notes).unwrap_or_default(),
        write_functions: f.texts("write_functions", notes).unwrap_or_default(),
        catalog: f.flag("catalog", notes).unwrap_or_default(),
        catalog_interval: f.duration_or_off("catalog_interval", notes),
        foreign_tables: f.choice("foreign_tables", notes),
        optimistic_transactions: f.flag("optimistic_transactions", notes).unwrap_or_default(),
        shadow: f.flag("shadow", notes).unwrap_or_default(),
        fresh_wait: f.duration("fresh_wait", notes),
        redirects,
    }
}

fn redirect(f: &Fields<'_, '_>, notes: &mut Notes) -> RedirectConfig {
    RedirectConfig {
        name: f.text("name", notes).unwrap_or_default(),
        users: patterns(f, "user", notes),
        databases: patterns(f, "database", notes),
        application_names: patterns(f, "application_name", notes),
        port: f.number("port", notes).and_then(|port| u16::try_from(port).ok()),
        target_session_attrs: f.choice("target_session_attrs", notes),
        nodes: f.texts("nodes", notes).unwrap_or_default(),
    }
}

/// Names, or `/` and regular expressions.
fn patterns(f: &Fields<'_, '_>, key: &str, notes: &mut Notes) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for text in f.texts(key, notes).unwrap_or_default() {
        match Pattern::parse(&text) {
            Ok(pattern) => patterns.push(pattern),
            Err(flaw) => f.problem(key, flaw, notes),
        }
    }
    patterns
}

fn auth(
    f: &Fields<'_, '_>,
    users: Vec<UserConfig>,
    cluster: &ClusterConfig,
    folder: &Path,
    notes: &mut Notes,
) -> AuthConfig {
    let userlist = f.path("userlist", notes).map(|path| folder.join(path));
    if let Some(path) = &userlist {
        match files::readable(path) {
            Ok(()) => warn_if_public(f, "userlist", path, notes),
            Err(flaw) => f.problem("userlist", flaw, notes),
        }
    }
    let [hba_file, ident_file] = ["hba_file", "ident_file"].map(|key| {
        let path = f.path(key, notes).map(|path| folder.join(path));
        if let Some(Err(flaw)) = path.as_deref().map(files::readable) {
            f.problem(key, flaw, notes);
        }
        path
    });
    let query_user = f.text("auth_query_user", notes).unwrap_or_else(|| cluster.monitor_user.clone());
    let own = secret(f, "auth_query_password", "auth_query_password_file", folder, notes);
    let inherited =
        if query_user == cluster.monitor_user { cluster.monitor_password.clone() } else { Secret::default() };
    AuthConfig {
        method: f.choice("method", notes),
        hba_file,
        ident_file,
        users,
        userlist,
        auth_query: f.text("auth_query", notes),
        auth_query_user: query_user,
        auth_query_password: own.unwrap_or(inherited),
        auth_query_database: f.text("auth_query_database", notes).unwrap_or_else(|| cluster.monitor_database.clone()),
        auth_query_ttl: f.duration("auth_query_ttl", notes),
        failed_logins_per_address: f.count32("failed_logins_per_address", notes),
        failed_logins_per_user: f.count32("failed_logins_per_user", notes),
    }
}

fn user(f: &Fields<'_, '_>, folder: &Path, notes: &mut Notes) -> UserConfig {
    UserConfig {
        name: f.text("name", notes).unwrap_or_default(),
        secret: secret(f, "password", "password_file", folder, notes).unwrap_or_default(),
    }
}

fn log(f: &Fields<'_, '_>, notes: &mut Notes) -> LogConfig {
    let filter = f.text("filter", notes).unwrap_or_default();
    if let Err(e) = tracing_subscriber::EnvFilter::try_new(&filter) {
        let flaw = Flaw::new(format!("is not a log filter: {e}"));
        f.problem("filter", flaw.suggest(r#"write a level, such as "info", or "info,pgregent::pool=debug""#), notes);
    }
    LogConfig {
        json: f.flag("json", notes).unwrap_or_default(),
        filter,
        slow_statement: f.duration_or_off("slow_statement", notes),
        failed_statements: f.flag("failed_statements", notes).unwrap_or_default(),
    }
}

/// A secret, given in the file itself or in a file of its own.
fn secret(f: &Fields<'_, '_>, key: &str, file_key: &str, folder: &Path, notes: &mut Notes) -> Option<Secret> {
    if f.has(key) && f.has(file_key) {
        let flaw = Flaw::new(format!("given twice, as {key} and as {file_key}"));
        f.problem(file_key, flaw.suggest("keep one of them"), notes);
    }
    if !f.has(file_key) {
        return f.text(key, notes).map(Secret::new);
    }
    let path: PathBuf = folder.join(f.path(file_key, notes)?);
    match files::read_secret(&path) {
        Ok(secret) => {
            warn_if_public(f, file_key, &path, notes);
            Some(secret)
        }
        Err(flaw) => {
            f.problem(file_key, flaw, notes);
            None
        }
    }
}

fn warn_if_public(f: &Fields<'_, '_>, key: &str, path: &Path, notes: &mut Notes) {
    if files::public(path) {
        let flaw = Flaw::new(format!("everybody on this machine can read {}", path.display()));
        f.warn(key, flaw.suggest(format!("run: chmod o-r {}", path.display())), notes);
    }
}
