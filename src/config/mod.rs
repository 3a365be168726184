//! The file, checked: what the proxy runs with.
//!
//! | file | what |
//! |---|---|
//! | `load` | [`Config::load`], [`Config::parse`] and, with warnings, [`Report`] |
//! | [`settings`] | the table of settings: kinds, ranges, defaults, docs; the single source of all below |
//! | `raw`, `typed` | the tables of the file and their values, each checked against its row |
//! | `check`, `rules` | builds a [`Config`]; what is valid only together |
//! | `changes`, `reference` | what a reload would change; `config/reference.toml` |
//!
//! Three stages: `raw` is what the file says, [`Config`] is what is valid, the running values live
//! in the modules that were given them. Invariants: a [`Config`] is valid as a whole; checking
//! reports all problems at once. Absent on purpose: reaching into other modules.

mod changes;
mod check;
mod choice;
mod cipher;
mod files;
mod load;
mod pattern;
mod pem;
mod problem;
mod raw;
mod reference;
mod rules;
pub mod settings;
mod suggest;
mod tls;
mod typed;
pub mod value;

pub use changes::{Change, SettingInUse};
pub use choice::Choice;
pub use cipher::{cipher_name, cipher_of_name};
pub use load::Report;
pub use pattern::Pattern;
pub use pem::{Authorities, Identity};
pub use problem::{Problem, Problems};
pub use reference::reference;
pub use tls::{ChannelBinding, NodeTlsConfig, SslMode, TlsConfig, TlsFiles, TlsMode, TlsVersion};
pub use value::HttpAddress;

use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[tls]`
    pub tls: TlsConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[cluster]`
    pub cluster: ClusterConfig,
    /// `[etcd]`, for `coordination = "etcd"`.
    pub etcd: EtcdConfig,
    /// `[[node]]`, in file order; the index is the `NodeId`.
    pub nodes: Vec<NodeConfig>,
    /// `[hooks]`
    pub hooks: HooksConfig,
    /// `[pool]`
    pub pool: PoolConfig,
    /// `[route]`
    pub route: RouteConfig,
    /// `[auth]`
    pub auth: AuthConfig,
    /// `[log]`
    pub log: LogConfig,
}

/// `[server]`: where clients connect, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// TCP addresses to listen on. Default `["0.0.0.0:5432"]`.
    pub listen: Vec<SocketAddr>,
    /// Directory of a Unix socket to listen on, too; `None`: no such socket.
    pub unix_socket_dir: Option<PathBuf>,
    /// Its permissions. Default 0777.
    pub unix_socket_permissions: u32,
    /// Networks of load balancers whose connections begin with a PROXY header.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Clients served at once; more wait in the accept queue. Default 10000.
    pub max_client_connections: usize,
    /// Clients that may wait in the accept queue; more are refused. Default 1000.
    pub accept_queue: usize,
    /// How long a client waits in the accept queue. Default 30 s.
    pub accept_queue_timeout: Duration,
    /// From accept to the end of authentication. Default 60 s (PostgreSQL's authentication_timeout).
    pub login_timeout: Duration,
    /// How long SIGTERM lets transactions finish. Default 30 s.
    pub drain_timeout: Duration,
    /// Threads of the data plane; 0 means one per core less one, at least one. Default 0.
    pub workers: usize,
    /// Longest message accepted from a client, bytes. Default 1 GiB (PostgreSQL's limit), range 64 KiB..=1 GiB.
    pub message_bytes_max: usize,
    /// A client that reads nothing for this long while we have bytes for it is cut. Default 5 min.
    pub client_write_timeout: Duration,
    /// A client idle outside a transaction for this long is cut; `None` (`"0s"`): never. Default never.
    pub client_idle_timeout: Option<Duration>,
    /// The zone that this proxy is in; `None`: zones do not matter. Default none.
    pub zone: Option<String>,
}

/// `[admin]`: metrics, health and API over HTTP, and the console.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    /// Address to listen on; `None` turns it off. Default `127.0.0.1:9187`.
    pub listen: Option<SocketAddr>,
    /// Whether the databases `pgregent` and `pgbouncer` are the console. Default true.
    pub console: bool,
    /// Users of the console. Default none.
    pub console_users: Vec<String>,
    /// Users that may look only. Default none.
    pub console_readers: Vec<String>,
}

/// Who promotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverMode {
    /// The proxy promotes a standby when the primary is lost.
    Automatic,
    /// The proxy only follows roles; a person promotes.
    Manual,
    /// Another tool (Patroni, repmgr, …) promotes; the proxy follows.
    Follow,
}

/// What a promotion waits for, so that the old primary writes nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fencing {
    /// That the proxy's own sessions with it are cut.
    #[default]
    Proxy,
    /// That `fence_command` ends with exit status 0, too.
    Command,
}

/// Whether commits may stop waiting for standbys that are not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Degrade {
    /// They wait.
    #[default]
    Never,
    /// They wait for those that are there.
    Allow,
}

/// `[hooks]`: programs that run when the primary changes; an empty list is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HooksConfig {
    /// Turns the old primary off.
    pub fence_command: Vec<String>,
    /// May speak against a candidate.
    pub before_promotion: Vec<String>,
    /// After a promotion of this proxy's.
    pub after_promotion: Vec<String>,
    /// After any change of primary.
    pub on_role_change: Vec<String>,
    /// When a former primary streams as a standby again.
    pub on_rejoin: Vec<String>,
    /// How long each may run. Default 30 s.
    pub timeout: Duration,
}

/// Where the right to change the primary is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoordinationKind {
    /// One proxy only.
    Single,
    /// Several proxies, on the nodes and witnesses themselves.
    Voters,
    /// Several proxies, in etcd.
    Etcd,
}

/// What a proxy does with writes when most voters do not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumLoss {
    /// Writes stop when the lease ends.
    StopWrites,
    /// Writes go on to the last primary; two proxies that are cut off from each other may then use two.
    KeepPrimary,
}

/// `[etcd]`: where proxies that share the nodes agree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EtcdConfig {
    /// Client URLs of its members.
    pub endpoints: Vec<String>,
    /// Before all keys. Default `pgregent`.
    pub prefix: String,
    /// Login, if etcd asks for one.
    pub user: Option<String>,
    /// Its password.
    pub password: Secret,
    /// Who vouches for the members' certificates.
    pub authorities: Option<Authorities>,
    /// What we present if a member asks.
    pub identity: Option<Identity>,
    /// The files named.
    pub files: TlsFiles,
}

/// `[cluster]`: the cluster, its monitor and its failover policy.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Name for logs, metrics and the state file.
    pub name: String,
    /// Role used for probes and promotion.
    pub monitor_user: String,
    /// Its password; empty for trust.
    pub monitor_password: Secret,
    /// Database the monitor connects to. Default `postgres`.
    pub monitor_database: String,
    /// Who promotes. Default automatic.
    pub failover: FailoverMode,
    /// Coordination store. Default single.
    pub coordination: CoordinationKind,
    /// How long a lease to route writes lasts without being renewed. Default 2 s.
    pub lease_duration: Duration,
    /// What happens to writes when most voters do not answer. Default stop_writes.
    pub on_quorum_loss: QuorumLoss,
    /// `[[witness]]`: voters that are no nodes.
    pub witnesses: Vec<WitnessConfig>,
    /// Directory for the small state file (epoch, primary, system identifier). Default `/var/lib/pgregent`.
    pub state_dir: PathBuf,
    /// Interval of probes to a healthy node. Default 500 ms.
    pub probe_interval: Duration,
    /// Interval of probes to a suspect node. Default 100 ms.
    pub probe_suspect_interval: Duration,
    /// Time limit of one probe. Default 1 s.
    pub probe_timeout: Duration,
    /// Missed probes until a node is down. Default 3.
    pub probe_fall: u32,
    /// Good probes until a node that was down is healthy. Default 2.
    pub probe_rise: u32,
    /// Interval of commits that prove that the primary can write; zero: none. Default 500 ms.
    pub write_probe_interval: Duration,
    /// A slower one is told. Default 2 s.
    pub write_probe_warn: Duration,
    /// A primary that could not write for this long is given up. Default 5 s.
    pub write_probe_fail: Duration,
    /// Interval of fresh connections to each node; zero: none. Default 2 s.
    pub connect_probe_interval: Duration,
    /// A primary that accepted none for this long is given up. Default 10 s.
    pub connect_probe_fail: Duration,
    /// Least time between two WAL position samples for read-your-writes. Default 5 ms.
    pub sample_interval: Duration,
    /// Least time between two automatic failovers. Default 60 s.
    pub failover_min_gap: Duration,
    /// Automatic failovers per hour; more need a person. Default 3.
    pub failover_max_per_hour: u32,
    /// How long a primary that restarts in place is waited for before failing over. Default 30 s.
    pub primary_start_timeout: Duration,
    /// A candidate that lacks more WAL than this (against the highest position seen) is not promoted. Default 1 MiB.
    pub failover_lag_bytes_max: u64,
    /// How long a promotion may take before the next candidate is tried. Default 30 s.
    pub promote_timeout: Duration,
    /// What a promotion waits for. Default proxy.
    pub fencing: Fencing,
    /// Whether a former primary that still takes writes is made read-only and its sessions are ended. Default true.
    pub fence_sql: bool,
    /// The k of `ANY k (…)` that is kept on the primary; 0: the setting is left alone. Default 0.
    pub synchronous_standbys: usize,
    /// Whether k may shrink while standbys are missing. Default never.
    pub synchronous_degrade: Degrade,
    /// Who vouches for the certificates of Patroni's REST API, where it speaks https.
    pub patroni_authorities: Option<Authorities>,
    /// The file that holds them. Default none.
    pub patroni_ca_file: Option<PathBuf>,
    /// How connections to nodes are protected, where a node does not say otherwise.
    pub tls: NodeTlsConfig,
}

/// `[[node]]`: one PostgreSQL instance.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// Name, unique; letters, digits, `-`, `_`, `.`.
    pub name: Arc<str>,
    /// Host name or address.
    pub host: String,
    /// Port. Default 5432.
    pub port: u16,
    /// The address that other nodes stream from, if not `host:port` (the `host=… port=…` of primary_conninfo).
    pub replication_host: String,
    /// Its port.
    pub replication_port: u16,
    /// Share of reads relative to the others; 0: no reads while others can. Default 100, range 0..=1000.
    pub weight: u32,
    /// The zone that it is in. Default none.
    pub zone: Option<String>,
    /// Takes no new reads. Default false.
    pub drain: bool,
    /// Preference among equally advanced candidates, higher first; 0: never promoted. Default 100, range 0..=1000.
    pub failover_priority: u32,
    /// How the node calls itself when it streams. Default: its name.
    pub application_name: Arc<str>,
    /// Patroni's REST API beside it. Default none.
    pub patroni_url: Option<HttpAddress>,
    /// Backends to this node over all pools. Default: from `[pool] node_budget`.
    pub budget: usize,
    /// How connections to it are protected.
    pub tls: NodeTlsConfig,
}

/// When a backend goes back to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client disconnects.
    Session,
    /// When the transaction ends.
    Transaction,
    /// When the statement ends; explicit transactions are refused.
    Statement,
}

/// What happens to a statement that would pin its session to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// The session keeps its backend as long as it must.
    Allow,
    /// The statement is refused.
    Refuse,
}

/// `[pool]`
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// Default transaction.
    pub mode: PoolMode,
    /// Backends per (node, database, user). Default 20.
    pub size: usize,
    /// Backends per node over all pools (unless the node says otherwise). Default 90.
    pub node_budget: usize,
    /// Replication connections per node, part of its budget and always fewer. Default 10; 0: refused.
    pub replication_connections_max: usize,
    /// How long a session waits for a backend. Default 30 s.
    pub queue_timeout: Duration,
    /// Idle backends are closed after this; `None`: never. Default 10 min.
    pub idle_timeout: Option<Duration>,
    /// Backends are closed at release once this old; `None`: never. Default 1 h.
    pub lifetime: Option<Duration>,
    /// Connects under way at once per node. Default 8.
    pub connects_max: usize,
    /// Time limit of one connect including login. Default 5 s.
    pub connect_timeout: Duration,
    /// Prepared statements kept per backend before the least recently used is closed. Default 500.
    pub prepared_statements_max: usize,
    /// Bytes of their texts kept per backend, likewise. Default 16 MiB.
    pub prepared_bytes_max: usize,
    /// Default allow.
    pub pinning: Pinning,
    /// Idle transactions are cut after this; `None`: never. Default never.
    pub transaction_idle_timeout: Option<Duration>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Lag limits only.
    Eventual,
    /// A session sees its own acknowledged writes.
    Session,
    /// A session sees every write acknowledged through this proxy.
    Global,
}

/// How one of several eligible standbys is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalanceKind {
    /// The better of two random ones, by work in flight, latency and weight.
    Random2,
    /// In turn, by weight.
    RoundRobin,
    /// The one with least work in flight.
    LeastConnections,
}

/// Where foreign tables are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignTables {
    /// On the primary.
    Primary,
    /// Where any read goes.
    Any,
}

/// `[route]`
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// Send reads to standbys. Default true.
    pub read_write_split: bool,
    /// Default session.
    pub consistency: Consistency,
    /// Default random2.
    pub balance: BalanceKind,
    /// For how long a standby that just came back takes less than its share. Default 10 s.
    pub slow_start: Duration,
    /// Standbys further behind than this take no reads; `None`: no limit. Default 16 MiB.
    pub lag_bytes_max: Option<u64>,
    /// Standbys further behind than this take no reads; `None`: no limit. Default 10 s.
    pub replay_lag_max: Option<Duration>,
    /// Longer statements are not classified and go to the primary, bytes. Default 8 MiB.
    pub classify_bytes_max: usize,
    /// The share of requests that may run again because a node lost or cancelled them, in percent. Default 20.
    pub retry_budget_percent: u64,
    /// How long a statement that standbys refused is known as one for the primary. Default 10 minutes.
    pub learned_ttl: Duration,
    /// Functions known to be harmless to run on a standby, besides PostgreSQL's own.
    pub read_functions: Vec<String>,
    /// Functions that must run on the primary whatever the built-in list and the catalog say.
    pub write_functions: Vec<String>,
    /// Read the catalogs of databases in use. Default true.
    pub catalog: bool,
    /// How often a catalog is looked at for changes that did not pass through; `None`: never. Default 1 min.
    pub catalog_interval: Option<Duration>,
    /// Where foreign tables are read. Default primary.
    pub foreign_tables: ForeignTables,
    /// Begin transactions on a standby, and move them to the primary with their first write. Default false.
    pub optimistic_transactions: bool,
    /// Send everything to the primary and only count where it would go. Default false.
    pub shadow: bool,
    /// How long a read waits for a standby that shows what its session must see, before it goes to the primary.
    /// Default 0.
    pub fresh_wait: Duration,
    /// `[[route.redirect]]`, the first that fits a session counts.
    pub redirects: Vec<RedirectConfig>,
}

/// Which nodes serve a session, in libpq's words (PostgreSQL docs, "target_session_attrs").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Writes the primary, reads the standbys.
    #[default]
    Any,
    /// Everything the primary.
    ReadWrite,
    /// As `any`, and nothing is written: transactions are read-only by default.
    ReadOnly,
    /// As `read-write`.
    Primary,
    /// Everything a standby.
    Standby,
    /// As `any`.
    PreferStandby,
}

/// `[[witness]]`: a PostgreSQL server that only votes.
#[derive(Clone, Debug, PartialEq)]
pub struct WitnessConfig {
    /// Name, unique among nodes and witnesses.
    pub name: Arc<str>,
    /// Host name or address.
    pub host: String,
    /// Port. Default 5432.
    pub port: u16,
    /// How connections to it are protected.
    pub tls: NodeTlsConfig,
}

/// `[[route.redirect]]`
#[derive(Clone, Debug, PartialEq)]
pub struct RedirectConfig {
    /// Its name, for people.
    pub name: String,
    /// Users it is for; empty: all.
    pub users: Vec<Pattern>,
    /// Databases it is for; empty: all.
    pub databases: Vec<Pattern>,
    /// Values of `application_name` it is for; empty: all.
    pub application_names: Vec<Pattern>,
    /// The port that clients connected to; `None`: any.
    pub port: Option<u16>,
    /// Where the sessions are served.
    pub target_session_attrs: TargetSessionAttrs,
    /// Nodes that their reads prefer; empty: all.
    pub nodes: Vec<String>,
}

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// No proof.
    Trust,
    /// Clear-text password.
    Password,
    /// MD5 challenge.
    Md5,
    /// SCRAM-SHA-256 (also accepts nothing weaker).
    ScramSha256,
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq)]
pub struct AuthConfig {
    /// Default scram-sha-256. Not used where `hba_file` is set.
    pub method: AuthMethod,
    /// Rules in the format of `pg_hba.conf`; `None`: `method` for everybody.
    pub hba_file: Option<PathBuf>,
    /// Maps in the format of `pg_ident.conf`.
    pub ident_file: Option<PathBuf>,
    /// `[[auth.user]]`
    pub users: Vec<UserConfig>,
    /// A PgBouncer-style userlist file.
    pub userlist: Option<PathBuf>,
    /// Query that returns (name, secret[, valid_until]) for `$1`, or `None`: not used.
    pub auth_query: Option<String>,
    /// Role that runs `auth_query`; default: the monitor's.
    pub auth_query_user: String,
    /// Its password.
    pub auth_query_password: Secret,
    /// Database it runs in; default: the monitor's.
    pub auth_query_database: String,
    /// How long an answer of `auth_query` is kept; zero: asked at each login. Default 0.
    pub auth_query_ttl: Duration,
    /// Failed logins per minute from one address before answers come late; 0: no limit. Default 600.
    pub failed_logins_per_address: u32,
    /// Failed logins per minute as one user before answers come late; 0: no limit. Default 120.
    pub failed_logins_per_user: u32,
}

/// `[[auth.user]]`
#[derive(Clone, Debug, PartialEq)]
pub struct UserConfig {
    /// Role name.
    pub name: String,
    /// Password, or a stored secret as in `pg_authid` (`SCRAM-SHA-256$…` or `md5…`).
    pub secret: Secret,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// Text or JSON lines. Default text.
    pub json: bool,
    /// A `tracing` filter. Default `info`.
    pub filter: String,
    /// Statements that took longer are logged with where they went and why; `None`: none. Default none.
    pub slow_statement: Option<Duration>,
    /// So are those that failed. Default false.
    pub failed_statements: bool,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub zeroize::Zeroizing<String>);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(zeroize::Zeroizing::new(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests;
