//! Rows of `[cluster]` and `[[node]]`: who is watched, and who promotes.
//!
//! Invariants: what the control plane needs is not reloadable, because it reads these rows once. Absent on
//! purpose: rules over several rows (see `config::check`).

use super::Default::{Required, Told, Toml};
use super::View::{Node, Whole, Within, Witness};
use super::{HOUR, Kind, MINUTE, SECOND, Section, Shape, Shown, TIB, count, duration, live, row, size};
use crate::config::choice::Choice;
use crate::config::value::{format_address, format_size};
use crate::config::{ChannelBinding, CoordinationKind, Degrade, FailoverMode, Fencing, QuorumLoss, SslMode};

pub(super) static CLUSTER: Section = Section {
    path: "cluster",
    shape: Shape::One,
    doc: "The cluster: who watches it, and who promotes.",
    settings: &[
        row(
            "name",
            Kind::Name,
            Toml(r#""main""#),
            Whole(|c| Shown::of(&c.cluster.name)),
            "Name in logs, metrics and the name of the state file.",
        ),
        row(
            "monitor_user",
            Kind::Text,
            Toml(r#""pgregent""#),
            Whole(|c| Shown::of(&c.cluster.monitor_user)),
            "Role used for probes and promotion. `pgregent check --connect` says which rights it lacks.",
        ),
        row(
            "monitor_password",
            Kind::Secret,
            Told("empty: the nodes must trust it", r#""change me""#),
            Whole(|c| Shown::Hidden(c.cluster.monitor_password.clone())),
            "Its password.",
        ),
        row(
            "monitor_password_file",
            Kind::Path,
            Told("none", r#""monitor.password""#),
            Within("monitor_password"),
            "File that holds the password, instead of monitor_password.",
        ),
        row(
            "monitor_database",
            Kind::Text,
            Toml(r#""postgres""#),
            Whole(|c| Shown::of(&c.cluster.monitor_database)),
            "Database the monitor connects to.",
        ),
        row(
            "failover",
            Kind::Word(FailoverMode::WORDS),
            Toml(r#""automatic""#),
            Whole(|c| Shown::of(c.cluster.failover.word())),
            "automatic: pgregent promotes a standby when the primary is lost. manual: a person does, through pgregent. \
             follow: something else does (Patroni, say), and pgregent follows.",
        ),
        row(
            "coordination",
            Kind::Word(CoordinationKind::WORDS),
            Toml(r#""single""#),
            Whole(|c| Shown::of(c.cluster.coordination.word())),
            "Where the right to change the primary is kept. single: in this one proxy. voters: on the nodes and witnesses \
             themselves, for two or more proxies; all of them must use the same nodes, witnesses, name and monitor_database. \
             etcd: in etcd, for two or more proxies; see [etcd].",
        ),
        row(
            "lease_duration",
            duration(500, MINUTE),
            Toml(r#""2s""#),
            Whole(|c| Shown::duration(c.cluster.lease_duration)),
            "How long a proxy may route writes without hearing from most voters, and how long others wait for a proxy that \
             fell silent. The same in all proxies. Not used by single.",
        ),
        row(
            "on_quorum_loss",
            Kind::Word(QuorumLoss::WORDS),
            Toml(r#""stop_writes""#),
            Whole(|c| Shown::of(c.cluster.on_quorum_loss.word())),
            "What happens to writes when most voters do not answer. keep_primary: they go on to the last primary, and two \
             proxies that are cut off from each other may write to two nodes. Not used by single.",
        ),
        row(
            "state_dir",
            Kind::Path,
            Toml(r#""/var/lib/pgregent""#),
            Whole(|c| Shown::of(c.cluster.state_dir.display())),
            "Directory for the small state file (epoch, primary, system identifier).",
        ),
        row(
            "probe_interval",
            duration(10, MINUTE),
            Toml(r#""500ms""#),
            Whole(|c| Shown::duration(c.cluster.probe_interval)),
            "Between two probes of a healthy node.",
        ),
        row(
            "probe_suspect_interval",
            duration(10, MINUTE),
            Toml(r#""100ms""#),
            Whole(|c| Shown::duration(c.cluster.probe_suspect_interval)),
            "Between two probes of a suspect node. At most probe_interval.",
        ),
        row(
            "probe_timeout",
            duration(10, MINUTE),
            Toml(r#""1s""#),
            Whole(|c| Shown::duration(c.cluster.probe_timeout)),
            "Time limit of one probe.",
        ),
        row(
            "probe_fall",
            count(1, 100),
            Toml("3"),
            Whole(|c| Shown::of(c.cluster.probe_fall)),
            "Missed probes until a node is down.",
        ),
        row(
            "probe_rise",
            count(1, 100),
            Toml("2"),
            Whole(|c| Shown::of(c.cluster.probe_rise)),
            "Good probes until a node that was down is healthy.",
        ),
        row(
            "write_probe_interval",
            duration(0, MINUTE),
            Toml(r#""500ms""#),
            Whole(|c| Shown::duration(c.cluster.write_probe_interval)),
            "Between two commits that only prove that the primary can write WAL (no table is touched). 0s: none.",
        ),
        row(
            "write_probe_warn",
            duration(100, HOUR),
            Toml(r#""2s""#),
            Whole(|c| Shown::duration(c.cluster.write_probe_warn)),
            "A commit of the write probe that takes longer is told as a warning.",
        ),
        row(
            "write_probe_fail",
            duration(100, HOUR),
            Toml(r#""5s""#),
            Whole(|c| Shown::duration(c.cluster.write_probe_fail)),
            "A primary that could write no WAL for this long, though it answers, is given up if a standby can take over.",
        ),
        row(
            "connect_probe_interval",
            duration(0, MINUTE),
            Toml(r#""2s""#),
            Whole(|c| Shown::duration(c.cluster.connect_probe_interval)),
            "Between two fresh connections that prove that a node accepts any. 0s: none.",
        ),
        row(
            "connect_probe_fail",
            duration(SECOND, HOUR),
            Toml(r#""10s""#),
            Whole(|c| Shown::duration(c.cluster.connect_probe_fail)),
            "A primary on which fresh connections hung for this long, though older ones answer, is given up if a standby can take over.",
        ),
        row(
            "sample_interval",
            duration(1, SECOND),
            Toml(r#""5ms""#),
            Whole(|c| Shown::duration(c.cluster.sample_interval)),
            "Least time between two samples of the primary's WAL position, which prove how fresh standbys are.",
        ),
        row(
            "failover_min_gap",
            duration(0, 24 * HOUR),
            Toml(r#""1min""#),
            Whole(|c| Shown::duration(c.cluster.failover_min_gap)),
            "Least time between two automatic failovers.",
        ),
        row(
            "failover_max_per_hour",
            count(0, 1_000),
            Toml("3"),
            Whole(|c| Shown::of(c.cluster.failover_max_per_hour)),
            "Automatic failovers within an hour. More need a person.",
        ),
        row(
            "primary_start_timeout",
            duration(0, HOUR),
            Toml(r#""30s""#),
            Whole(|c| Shown::duration(c.cluster.primary_start_timeout)),
            "How long a primary that restarts in place is waited for before a standby is promoted.",
        ),
        row(
            "failover_lag_bytes_max",
            size(0, TIB),
            Toml(r#""1MiB""#),
            Whole(|c| Shown::Text(format_size(c.cluster.failover_lag_bytes_max))),
            "A standby that lacks more WAL than this, against the highest position seen, is not promoted.",
        ),
        row(
            "promote_timeout",
            duration(SECOND, HOUR),
            Toml(r#""30s""#),
            Whole(|c| Shown::duration(c.cluster.promote_timeout)),
            "How long a promotion may take before the next candidate is tried.",
        ),
        row(
            "fencing",
            Kind::Word(Fencing::WORDS),
            Toml(r#""proxy""#),
            Whole(|c| Shown::of(c.cluster.fencing.word())),
            "What a promotion waits for. proxy: this proxy's sessions with the old primary are cut, which is enough where all \
             clients come through proxies. command: also that [hooks] fence_command says that the old primary is off.",
        ),
        row(
            "fence_sql",
            Kind::Bool,
            Toml("true"),
            Whole(|c| Shown::of(c.cluster.fence_sql)),
            "Make a former primary that still takes writes read-only (default_transaction_read_only) and end its sessions. \
             Needs GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only; without it this is told and left.",
        ),
        row(
            "synchronous_standbys",
            count(0, 16),
            Toml("0"),
            Whole(|c| Shown::of(c.cluster.synchronous_standbys)),
            "Standbys that must have a commit before it is acknowledged: pgregent keeps synchronous_standby_names at \
             ANY so many of those that stream. 0: it leaves the setting alone.",
        ),
        row(
            "synchronous_degrade",
            Kind::Word(Degrade::WORDS),
            Toml(r#""never""#),
            Whole(|c| Shown::of(c.cluster.synchronous_degrade.word())),
            "When fewer stream than synchronous_standbys. never: commits wait for them. allow: commits wait for those that are \
             there, if any, and may be lost with the primary.",
        ),
        row(
            "patroni_ca_file",
            Kind::Path,
            Told("none", r#""patroni-ca.crt""#),
            Whole(|c| Shown::file(c.cluster.patroni_ca_file.as_ref())),
            "Certificates of the authorities that vouch for Patroni's REST API. Needed where [[node]] patroni_url begins with \
             https://; the certificate must have the host of the URL among its alternative names.",
        ),
        row(
            "sslmode",
            Kind::Word(SslMode::WORDS),
            Toml(r#""prefer""#),
            Whole(|c| Shown::of(c.cluster.tls.mode.word())),
            "Whether connections to nodes are encrypted, as libpq understands it. All of them: for clients, probes, promotion, auth_query and cancel requests. verify-full is the only one that a man in the middle cannot defeat. With require, ssl_ca_file makes it verify-ca.",
        ),
        row(
            "channel_binding",
            Kind::Word(ChannelBinding::WORDS),
            Toml(r#""prefer""#),
            Whole(|c| Shown::of(c.cluster.tls.channel_binding.word())),
            "Whether SCRAM logins to nodes are tied to the TLS channel, as libpq understands it. require: only to nodes that do; it takes sslmode require or stronger.",
        ),
        row(
            "ssl_ca_file",
            Kind::Path,
            Told("none", r#""ca.crt""#),
            Whole(|c| Shown::file(c.cluster.tls.files.ca.as_ref())),
            "Certificates of the authorities that vouch for nodes (libpq: sslrootcert). A node's own certificate will do.",
        ),
        row(
            "ssl_crl_file",
            Kind::Path,
            Told("none", r#""ca.crl""#),
            Whole(|c| Shown::file(c.cluster.tls.files.crl.as_ref())),
            "Certificates that the authorities have taken back.",
        ),
        row(
            "ssl_cert_file",
            Kind::Path,
            Told("none", r#""pgregent.crt""#),
            Whole(|c| Shown::file(c.cluster.tls.files.cert.as_ref())),
            "Certificate to present to nodes that ask for one (libpq: sslcert).",
        ),
        row(
            "ssl_key_file",
            Kind::Path,
            Told("none", r#""pgregent.key""#),
            Whole(|c| Shown::file(c.cluster.tls.files.key.as_ref())),
            "Its private key.",
        ),
    ],
};

pub(super) static NODE: Section = Section {
    path: "node",
    shape: Shape::Many,
    doc: "One PostgreSQL instance. Which one is the primary is found out, not configured.",
    settings: &[
        row(
            "name",
            Kind::Name,
            Required(r#""pg1""#),
            Node(|n| Shown::of(&n.name)),
            "Name, unique. Not after its role: roles move.",
        ),
        row(
            "address",
            Kind::Address,
            Required(r#""10.0.0.11:5432""#),
            Node(|n| Shown::Text(format_address(&n.host, n.port))),
            "Host name or IP address, and port (5432 if left out).",
        ),
        row(
            "replication_address",
            Kind::Address,
            Told("address", r#""10.0.1.11:5432""#),
            Node(|n| Shown::Text(format_address(&n.replication_host, n.replication_port))),
            "The address other nodes stream from, where it is another one.",
        ),
        live(
            "weight",
            count(0, 1_000),
            Toml("100"),
            Node(|n| Shown::of(n.weight)),
            "Share of reads relative to the other nodes. 0: none while others can.",
        ),
        live(
            "zone",
            Kind::Name,
            Told("none", r#""eu-1a""#),
            Node(|n| Shown::of(n.zone.as_deref().unwrap_or_default())),
            "Where it stands (a data centre, an availability zone). Reads go to standbys in the proxy's own zone \
             ([server] zone) first; of equal candidates for promotion the one there is preferred (as of the start).",
        ),
        live(
            "drain",
            Kind::Bool,
            Toml("false"),
            Node(|n| Shown::of(n.drain)),
            "Let it take no new reads while another node can; the same as DRAIN NODE in the console, but it outlives a \
             restart. A primary takes writes all the same.",
        ),
        row(
            "failover_priority",
            count(0, 1_000),
            Toml("100"),
            Node(|n| Shown::of(n.failover_priority)),
            "Preference among standbys that are equally advanced, higher first. 0: never promoted.",
        ),
        row(
            "application_name",
            Kind::Text,
            Told("name", r#""pg1""#),
            Node(|n| Shown::of(&n.application_name)),
            "How the node calls itself when it streams (application_name in its primary_conninfo, or else cluster_name). \
             By this name synchronous_standby_names of a primary knows it.",
        ),
        row(
            "patroni_url",
            Kind::Text,
            Told("none", r#""http://10.0.0.11:8008""#),
            Node(|n| Shown::Text(n.patroni_url.as_ref().map(ToString::to_string).unwrap_or_default())),
            "REST API of the Patroni of this node (http or https), with failover = \"follow\": then another node is followed as \
             primary only if its Patroni says that it holds the lock. Without an answer two probes in a row must find it primary.",
        ),
        row(
            "budget",
            count(1, 100_000),
            Told("[pool] node_budget", "90"),
            Node(|n| Shown::of(n.budget)),
            "Backends to this node over all pools.",
        ),
        row(
            "sslmode",
            Kind::Word(SslMode::WORDS),
            Told("as in [cluster]", r#""prefer""#),
            Node(|n| Shown::of(n.tls.mode.word())),
            "Whether connections to this node are encrypted, instead of the cluster's.",
        ),
        row(
            "channel_binding",
            Kind::Word(ChannelBinding::WORDS),
            Told("as in [cluster]", r#""prefer""#),
            Node(|n| Shown::of(n.tls.channel_binding.word())),
            "Whether SCRAM logins to this node are tied to the TLS channel.",
        ),
        row(
            "ssl_ca_file",
            Kind::Path,
            Told("as in [cluster]", r#""ca.crt""#),
            Node(|n| Shown::file(n.tls.files.ca.as_ref())),
            "Certificates of the authorities that vouch for this node.",
        ),
        row(
            "ssl_crl_file",
            Kind::Path,
            Told("as in [cluster]", r#""ca.crl""#),
            Node(|n| Shown::file(n.tls.files.crl.as_ref())),
            "Certificates that the authorities have taken back.",
        ),
        row(
            "ssl_cert_file",
            Kind::Path,
            Told("as in [cluster]", r#""pgregent.crt""#),
            Node(|n| Shown::file(n.tls.files.cert.as_ref())),
            "Certificate to present to this node.",
        ),
        row(
            "ssl_key_file",
            Kind::Path,
            Told("as in [cluster]", r#""pgregent.key""#),
            Node(|n| Shown::file(n.tls.files.key.as_ref())),
            "Its private key.",
        ),
    ],
};

pub(super) static WITNESS: Section = Section {
    path: "witness",
    shape: Shape::Many,
    doc: "A PostgreSQL server that only votes (coordination = \"voters\"): any small one, outside the cluster. It is entered with the \
          monitor's role, password and database, and keeps one table of one row there.",
    settings: &[
        row(
            "name",
            Kind::Name,
            Required(r#""witness1""#),
            Witness(|w| Shown::of(&w.name)),
            "Name, unique among nodes too.",
        ),
        row(
            "address",
            Kind::Address,
            Required(r#""10.0.0.21:5432""#),
            Witness(|w| Shown::Text(format_address(&w.host, w.port))),
            "Host name or IP address, and port (5432 if left out).",
        ),
    ],
};
