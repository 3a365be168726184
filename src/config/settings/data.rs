//! Rows of `[pool]`, `[route]` and `[[route.redirect]]`: how statements reach nodes.
//!
//! Invariants: every one of these rows is reloadable. Absent on purpose: rules over several rows (see
//! `config::check`).

use super::Default::{Required, Told, Toml};
use super::View::{Redirect, Whole};
use super::{
    DAY, GIB, HOUR, KIB, Kind, MINUTE, Section, Shape, Shown, TIB, count, duration, duration_or_off, live, size,
    size_or_off,
};
use crate::config::choice::Choice;
use crate::config::value::format_size;
use crate::config::{BalanceKind, Consistency, ForeignTables, Pinning, PoolMode, TargetSessionAttrs};

pub(super) static POOL: Section = Section {
    path: "pool",
    shape: Shape::One,
    doc: "Backends: how many, and for how long.",
    settings: &[
        live(
            "mode",
            Kind::Word(PoolMode::WORDS),
            Toml(r#""transaction""#),
            Whole(|c| Shown::of(c.pool.mode.word())),
            "When a backend goes back to its pool: at the end of the session, the transaction or the statement.",
        ),
        live(
            "size",
            count(1, 10_000),
            Toml("20"),
            Whole(|c| Shown::of(c.pool.size)),
            "Backends per (node, database, user).",
        ),
        live(
            "node_budget",
            count(1, 100_000),
            Toml("90"),
            Whole(|c| Shown::of(c.pool.node_budget)),
            "Backends per node over all pools, unless the node has its own budget. Below the node's max_connections.",
        ),
        live(
            "replication_connections_max",
            count(0, 10_000),
            Toml("10"),
            Whole(|c| Shown::of(c.pool.replication_connections_max)),
            "Replication connections (pg_basebackup, pg_receivewal, subscriptions) per node: part of its budget, and \
             always fewer than it. 0: refused.",
        ),
        live(
            "queue_timeout",
            duration(1, DAY),
            Toml(r#""30s""#),
            Whole(|c| Shown::duration(c.pool.queue_timeout)),
            "How long a session waits for a backend before its statement fails with 53300.",
        ),
        live(
            "idle_timeout",
            duration_or_off(100, 30 * DAY),
            Toml(r#""10min""#),
            Whole(|c| Shown::duration_or_off(c.pool.idle_timeout)),
            "Idle backends are closed after this. \"0s\": never.",
        ),
        live(
            "lifetime",
            duration_or_off(1_000, 30 * DAY),
            Toml(r#""1h""#),
            Whole(|c| Shown::duration_or_off(c.pool.lifetime)),
            "Backends this old are closed when they are released. \"0s\": never.",
        ),
        live(
            "connects_max",
            count(1, 1_000),
            Toml("8"),
            Whole(|c| Shown::of(c.pool.connects_max)),
            "Connects under way at once per node.",
        ),
        live(
            "connect_timeout",
            duration(10, 10 * MINUTE),
            Toml(r#""5s""#),
            Whole(|c| Shown::duration(c.pool.connect_timeout)),
            "Time limit of one connect, login included.",
        ),
        live(
            "prepared_statements_max",
            count(1, 1_000_000),
            Toml("500"),
            Whole(|c| Shown::of(c.pool.prepared_statements_max)),
            "Prepared statements kept per backend before the least recently used is closed.",
        ),
        live(
            "prepared_bytes_max",
            size(64 * KIB, GIB),
            Toml(r#""16MiB""#),
            Whole(|c| Shown::size(c.pool.prepared_bytes_max)),
            "Bytes of their texts kept per backend, likewise.",
        ),
        live(
            "pinning",
            Kind::Word(Pinning::WORDS),
            Toml(r#""allow""#),
            Whole(|c| Shown::of(c.pool.pinning.word())),
            "What happens to a statement whose effect cannot move to another backend (a temporary table, LISTEN, a session \
             lock): the session keeps its backend as long as it must, or the statement is refused with 0A000.",
        ),
        live(
            "transaction_idle_timeout",
            duration_or_off(100, 30 * DAY),
            Toml(r#""0s""#),
            Whole(|c| Shown::duration_or_off(c.pool.transaction_idle_timeout)),
            "A client idle inside a transaction for this long is cut. \"0s\": never.",
        ),
    ],
};

pub(super) static ROUTE: Section = Section {
    path: "route",
    shape: Shape::One,
    doc: "Which statement goes where.",
    settings: &[
        live(
            "read_write_split",
            Kind::Bool,
            Toml("true"),
            Whole(|c| Shown::of(c.route.read_write_split)),
            "Send reads to standbys. false: everything goes to the primary.",
        ),
        live(
            "consistency",
            Kind::Word(Consistency::WORDS),
            Toml(r#""session""#),
            Whole(|c| Shown::of(c.route.consistency.word())),
            "How fresh a read is. eventual: within the lag limits. session: a session sees its own acknowledged writes. \
             global: it sees every write acknowledged through this proxy.",
        ),
        live(
            "balance",
            Kind::Word(BalanceKind::WORDS),
            Toml(r#""random2""#),
            Whole(|c| Shown::of(c.route.balance.word())),
            "How one of several standbys is chosen. random2: the better of two random ones, by work in flight and by how \
             long its reads take. round_robin: in turn. least_connections: the least busy. All by weight.",
        ),
        live(
            "slow_start",
            duration(0, HOUR),
            Toml(r#""10s""#),
            Whole(|c| Shown::duration(c.route.slow_start)),
            "A standby that has just come back is given few reads at first and its whole share after this time. \"0s\": at \
             once.",
        ),
        live(
            "lag_bytes_max",
            size_or_off(1, TIB),
            Toml(r#""16MiB""#),
            Whole(|c| Shown::Text(format_size(c.route.lag_bytes_max.unwrap_or_default()))),
            "Standbys further behind than this take no reads. 0: no limit.",
        ),
        live(
            "replay_lag_max",
            duration_or_off(1, DAY),
            Toml(r#""10s""#),
            Whole(|c| Shown::duration_or_off(c.route.replay_lag_max)),
            "Standbys further behind than this take no reads. \"0s\": no limit.",
        ),
        live(
            "classify_bytes_max",
            size(0, 1 << 24),
            Toml(r#""8MiB""#),
            Whole(|c| Shown::size(c.route.classify_bytes_max)),
            "Longer statements are not classified and go to the primary. A read is held in memory until all of it has come.",
        ),
        live(
            "retry_budget_percent",
            count(0, 100),
            Toml("20"),
            Whole(|c| Shown::of(c.route.retry_budget_percent)),
            "Of 100 requests so many reads may run again elsewhere because a node lost or cancelled them; ten per second \
             may in any case. Statements that a standby refuses as writes always run again on the primary.",
        ),
        live(
            "learned_ttl",
            duration(1_000, 30 * DAY),
            Toml(r#""10min""#),
            Whole(|c| Shown::duration(c.route.learned_ttl)),
            "How long the shape of a statement that standbys refused goes to the primary before a standby is asked again.",
        ),
        live(
            "read_functions",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.route.read_functions)),
            "Functions that are harmless to run on a standby, besides PostgreSQL's own.",
        ),
        live(
            "write_functions",
            Kind::Texts,
            Toml("[]"),
            Whole(|c| Shown::list(&c.route.write_functions)),
            "Functions that must run on the primary, whatever the built-in list and the catalog say.",
        ),
        live(
            "catalog",
            Kind::Bool,
            Toml("true"),
            Whole(|c| Shown::of(c.route.catalog)),
            "Read the catalog of each database in use, so that its functions and views are told to be reads or writes. \
             The monitor's role must be allowed to connect to the database.",
        ),
        live(
            "catalog_interval",
            duration_or_off(100, DAY),
            Toml(r#""1min""#),
            Whole(|c| Shown::duration_or_off(c.route.catalog_interval)),
            "How often a catalog is looked at for changes that did not pass through this proxy. \"0s\": never.",
        ),
        live(
            "foreign_tables",
            Kind::Word(ForeignTables::WORDS),
            Toml(r#""primary""#),
            Whole(|c| Shown::of(c.route.foreign_tables.word())),
            "Where foreign tables are read. any: where other reads go.",
        ),
        live(
            "optimistic_transactions",
            Kind::Bool,
            Toml("false"),
            Whole(|c| Shown::of(c.route.optimistic_transactions)),
            "Transactions that begin with reads begin on a standby. With the first write they move: the reads are sent to the \
             primary again, and only if it answers the same does the transaction go on; otherwise 40001.",
        ),
        live(
            "shadow",
            Kind::Bool,
            Toml("false"),
            Whole(|c| Shown::of(c.route.shadow)),
            "Shadow mode: everything goes to the primary, and where it would have gone is counted (shadow_route_total) and \
             listed (SHOW DECISIONS). Sessions that only standbys serve stay there.",
        ),
        live(
            "fresh_wait",
            duration(0, MINUTE),
            Toml(r#""0s""#),
            Whole(|c| Shown::duration(c.route.fresh_wait)),
            "How long a read waits for a standby that shows what its session must see. Then it goes to the primary.",
        ),
    ],
};

pub(super) static REDIRECT: Section = Section {
    path: "route.redirect",
    shape: Shape::Many,
    doc: "Sessions that are served elsewhere than others. The first redirect that fits counts.",
    settings: &[
        live("name", Kind::Name, Required(r#""reports""#), Redirect(|r| Shown::of(&r.name)), "Name, unique."),
        live(
            "user",
            Kind::Texts,
            Toml("[]"),
            Redirect(|r| Shown::list(&r.users)),
            "Users it is for: names, or \"/\" and a regular expression. []: all.",
        ),
        live(
            "database",
            Kind::Texts,
            Toml("[]"),
            Redirect(|r| Shown::list(&r.databases)),
            "Databases it is for, likewise.",
        ),
        live(
            "application_name",
            Kind::Texts,
            Toml("[]"),
            Redirect(|r| Shown::list(&r.application_names)),
            "Values of application_name it is for, likewise. A later SET counts as well.",
        ),
        live(
            "port",
            count(1, 65_535),
            Told("any", "5432"),
            Redirect(|r| Shown::Text(r.port.map(|port| port.to_string()).unwrap_or_default())),
            "The port that the client connected to, one of [server] listen.",
        ),
        live(
            "target_session_attrs",
            Kind::Word(TargetSessionAttrs::WORDS),
            Toml(r#""any""#),
            Redirect(|r| Shown::of(r.target_session_attrs.word())),
            "Where its sessions are served, in libpq's words. any, prefer-standby: writes on the primary, reads on standbys. \
             read-write, primary: everything on the primary. read-only: as any, and transactions are read-only by default. \
             standby: everything on standbys, which refuse writes; without a standby it waits.",
        ),
        live(
            "nodes",
            Kind::Texts,
            Toml("[]"),
            Redirect(|r| Shown::list(&r.nodes)),
            "Nodes that take its reads, by name. []: all.",
        ),
    ],
};
