//! What a probe of one node brought back. Shared vocabulary of `monitor` and `failover`.
//!
//! An [`Observation`] is the outcome of the probe, a question on a session that is kept. A [`Sign`] is what other
//! sessions with the node said besides. Invariants: both are timed and hold no judgement; lists and texts from a node
//! are bounded.

use super::Ancestry;
use crate::clock::Time;
use crate::ids::{Lsn, NodeId, SystemId, TimelineId};
use std::time::Duration;

/// What a standby's WAL receiver says (`pg_stat_wal_receiver`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverView {
    /// `status = 'streaming'`.
    pub streaming: bool,
    /// `sender_host:sender_port`.
    pub upstream: String,
    /// Time since the last message from the upstream (`last_msg_receipt_time`).
    pub last_message_age: Duration,
}

/// Rows of `pg_stat_replication` that are read; a node that has as many counts as not known.
pub const SYNC_STANDBYS_MAX: usize = 64;
/// Longest `synchronous_standby_names` that is read, bytes.
pub const SYNC_NAMES_BYTES_MAX: usize = 16 * 1024;

/// Who must confirm a commit, and who streams: `synchronous_standby_names` and `pg_stat_replication` of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncView {
    /// `synchronous_standby_names`, as it is written.
    pub standby_names: String,
    /// All who stream from the node, fewer than [`SYNC_STANDBYS_MAX`].
    pub standbys: Vec<SyncStandby>,
}

/// One row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncStandby {
    /// `application_name`, by which `synchronous_standby_names` knows it.
    pub application_name: String,
    /// `state = 'streaming'`.
    pub streaming: bool,
    /// `sync_state`.
    pub sync_state: SyncState,
    /// What it has confirmed as flushed; `None` before it has said so.
    pub flush_lsn: Option<Lsn>,
}

/// What a standby's confirmation means to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncState {
    /// Nothing.
    Async,
    /// Nothing yet; it may take the place of one that counts.
    Potential,
    /// It is waited for.
    Sync,
    /// It counts towards `ANY k (…)`.
    Quorum,
}

/// A commit of the write probe that the node itself calls unfinished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingWrite {
    /// How long it has been so, by the node's clock.
    pub age: Duration,
    /// What it waits for (`wait_event_type:wait_event`), if anything.
    pub wait: String,
}

/// Whether `postgresql.auto.conf` makes a node read-only (`default_transaction_read_only`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadOnly {
    /// It does not.
    #[default]
    No,
    /// It does; by whom is not known.
    Set,
    /// It does, and a fence of ours left its mark beside.
    Fenced,
}

/// One node's answer to the probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// When the probe was sent: every write acknowledged before lies at or below `flush_lsn`.
    pub sent_at: Time,
    /// `pg_control_system().system_identifier`.
    pub system_id: SystemId,
    /// `pg_is_in_recovery()`: the observed role.
    pub in_recovery: bool,
    /// Current timeline: by WAL file name on a primary, by receiver or control file on a standby.
    pub timeline: TimelineId,
    /// Primary: `pg_current_wal_flush_lsn()`. Standby: `pg_last_wal_receive_lsn()`.
    pub flush_lsn: Lsn,
    /// Primary: `pg_current_wal_insert_lsn()`. Standby: `pg_last_wal_replay_lsn()`.
    pub replay_lsn: Lsn,
    /// `pg_is_wal_replay_paused()`.
    pub replay_paused: bool,
    /// The WAL receiver of a standby; `None` when it has none or on a primary.
    pub receiver: Option<ReceiverView>,
    /// Changes whenever shared memory was re-created (checkpointer's `backend_start`, microseconds).
    pub incarnation: i64,
    /// Where a crash recovery would begin (`pg_control_checkpoint().redo_lsn`); 0: not known.
    pub redo_lsn: Lsn,
    /// `server_version_num`.
    pub version_num: u32,
    /// Synchronous replication, on a standby as it would be after its promotion; `None` when it is not known (which is
    /// not the same as none).
    pub sync: Option<SyncView>,
    /// The oldest commit of a write probe, this proxy's or another's, that is not finished.
    pub pending_write: Option<PendingWrite>,
    /// Whether it was made read-only by SQL.
    pub read_only: ReadOnly,
    /// Where its WAL comes from; when known, a history of `timeline`.
    pub ancestry: Ancestry,
}

/// Why a probe brought no report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeFailure {
    /// ECONNREFUSED: nothing listens.
    Refused,
    /// No route, name not resolved.
    Unreachable,
    /// No answer within the probe's time limit.
    TimedOut,
    /// The held probe session ended (EOF, reset, 57P01).
    SessionLost,
    /// 57P03 while starting or in crash recovery: will come back by itself.
    StartingUp,
    /// 57P03 while shutting down, or 57P01 on connect.
    ShuttingDown,
    /// 53300: alive, no connection free.
    TooManyConnections,
    /// The node answered and refused the monitor (password, privilege, protocol): alive.
    Rejected(String),
    /// No answer, but this process itself did not run for most of that time: void.
    Starved,
}

impl ProbeFailure {
    /// The metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::SessionLost => "session_lost",
            Self::StartingUp => "starting_up",
            Self::ShuttingDown => "shutting_down",
            Self::TooManyConnections => "too_many_connections",
            Self::Rejected(_) => "rejected",
            Self::Starved => "starved",
        }
    }
}

/// One timed report about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Which node.
    pub node: NodeId,
    /// When the probe began: what was heard from the node later contradicts a probe without an answer.
    pub began: Time,
    /// When the outcome was known.
    pub at: Time,
    /// What it was.
    pub outcome: Result<NodeReport, ProbeFailure>,
}

/// What another session than the probe's said about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sign {
    /// Which node.
    pub node: NodeId,
    /// When the question was put; for a commit that is not finished, when it was begun.
    pub began: Time,
    /// When this was known.
    pub at: Time,
    /// What it was.
    pub what: SignKind,
}

/// Which session, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignKind {
    /// A fresh connection: ready for a query, or why not.
    Connect(Result<(), ProbeFailure>),
    /// The write probe of a primary.
    Write(WriteSign),
    /// A client's session had a byte from it.
    Traffic,
    /// The Patroni beside it spoke of it.
    Patroni(PatroniWord),
}

/// What Patroni says of one of its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatroniWord {
    /// It is the primary and holds Patroni's lock.
    Primary,
    /// It does not hold the lock, or is no primary.
    Member,
    /// Nothing is known, for this reason.
    Unknown(PatroniSilence),
}

/// Why Patroni said nothing that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatroniSilence {
    /// There is no connection to it, or it ended before the answer.
    NotReached,
    /// It took too long.
    Late,
    /// Who answers over https is not who it should be, or does not speak TLS.
    NotTrusted,
    /// The answer is not one of Patroni's.
    NotPatroni,
}

impl PatroniWord {
    /// As Patroni's own tools call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Primary => "leader",
            Self::Member => "member",
            Self::Unknown(_) => "unknown",
        }
    }

    /// For metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Primary | Self::Member => self.word(),
            Self::Unknown(PatroniSilence::NotReached) => "not_reached",
            Self::Unknown(PatroniSilence::Late) => "late",
            Self::Unknown(PatroniSilence::NotTrusted) => "not_trusted",
            Self::Unknown(PatroniSilence::NotPatroni) => "not_patroni",
        }
    }

    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Primary | Self::Member => self.word(),
            Self::Unknown(PatroniSilence::NotReached) => "unknown (no connection)",
            Self::Unknown(PatroniSilence::Late) => "unknown (no answer in time)",
            Self::Unknown(PatroniSilence::NotTrusted) => {
                "unknown (its certificate is not trusted, or it does not speak TLS)"
            }
            Self::Unknown(PatroniSilence::NotPatroni) => "unknown (not an answer of Patroni)",
        }
    }
}

/// What became of a commit that needs WAL and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteSign {
    /// It is flushed.
    Committed,
    /// It is not finished; told again and again.
    Pending,
    /// 53100: no space for WAL.
    DiskFull,
    /// 58030: the disk failed.
    DiskFailed,
    /// The role may not do it.
    Forbidden(String),
    /// The node said that it takes no writes (in recovery, read-only).
    ReadOnly,
    /// Session lost, cancelled, no session to be had: this says nothing about the disk.
    Unknown,
}

impl WriteSign {
    /// The metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Committed => "ok",
            Self::Pending => "pending",
            Self::DiskFull => "disk_full",
            Self::DiskFailed => "disk_failed",
            Self::Forbidden(_) => "forbidden",
            Self::ReadOnly => "read_only",
            Self::Unknown => "unknown",
        }
    }
}
