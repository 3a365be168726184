//! What a standby refuses for being one.
//!
//! Invariants: known by the code and by the name of the server's function, never by a message, which comes in the
//! node's language. Pure. Absent on purpose: what is done about it (`errors`).

use crate::error::{Classify, ClientError, Fault, Retry, SqlState};

/// Says "cannot access temporary or unlogged relations during recovery".
const UNLOGGED: &[u8] = b"get_relation_info";
/// Say that WAL, transaction numbers or OIDs cannot be had in recovery.
const WAL: [&[u8]; 5] =
    [b"XLogBeginInsert", b"XLogInsertRecord", b"GetNewTransactionId", b"GetNewMultiXactId", b"GetNewObjectId"];

/// Why a standby did not do a read that the primary (or another standby) would do. The cases were measured on
/// PostgreSQL 15 (docs/decisions/0003-healing.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It was no read.
    ReadOnly,
    /// It reads an unlogged table.
    Unlogged,
    /// It writes WAL, or needs a number that only a primary gives.
    Wal,
    /// It may need something that only a primary has: 0A000 for whatever other reason.
    Unsupported,
    /// The same: 55000, "recovery is in progress" perhaps.
    InRecovery,
    /// The same: XX000 for whatever other reason.
    Internal,
    /// It names what may not have been replayed yet.
    Behind,
    /// Replay needed what the read held.
    Conflict,
    /// Replay and the read waited for one another.
    Deadlock,
}

impl Refusal {
    /// By the code and the server's function.
    pub fn of(sqlstate: &[u8], routine: &[u8]) -> Option<Self> {
        Some(match sqlstate {
            b"25006" => Self::ReadOnly,
            b"0A000" if routine == UNLOGGED => Self::Unlogged,
            b"XX000" if WAL.contains(&routine) => Self::Wal,
            // A read that fails on the primary too fails there with the same error, so asking twice is harmless.
            b"0A000" => Self::Unsupported,
            b"55000" => Self::InRecovery,
            b"XX000" => Self::Internal,
            // What was made, renamed or granted a moment ago may not have been replayed.
            b"42P01" | b"42703" | b"42704" | b"42883" | b"42501" | b"3F000" | b"3D000" => Self::Behind,
            b"40001" => Self::Conflict,
            b"40P01" => Self::Deadlock,
            _ => return None,
        })
    }

    /// Would every standby refuse it at any time?
    pub fn is_certain(self) -> bool {
        matches!(self, Self::ReadOnly | Self::Unlogged | Self::Wal)
    }

    /// Is a statement that fails so on a standby, and not on the primary, one for the primary?
    pub fn teaches(self) -> bool {
        matches!(self, Self::Unsupported | Self::InRecovery | Self::Internal) || self.is_certain()
    }

    /// Would another standby do it?
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::Conflict | Self::Deadlock)
    }

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Unlogged => "recovery_unlogged",
            Self::Wal => "recovery_wal",
            Self::Unsupported => "unsupported",
            Self::InRecovery => "in_recovery",
            Self::Internal => "internal",
            Self::Behind => "behind",
            Self::Conflict => "conflict",
            Self::Deadlock => "deadlock",
        }
    }
}

/// A standby refused a statement as a write when part of its answer had already left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Misrouted;

impl Classify for Misrouted {
    fn fault(&self) -> Fault {
        Fault::Proxy
    }

    fn retry(&self) -> Retry {
        Retry::Later
    }

    fn client(&self) -> ClientError {
        ClientError::error(
            SqlState::SERIALIZATION_FAILURE,
            "the statement could not be finished on the standby that had begun to answer it",
        )
        .detail("It does something that only the primary can do; nothing of it was carried out.")
        .hint("The statement can be retried: from now on it runs on the primary. Name its functions in [route] write_functions.")
    }

    fn label(&self) -> &'static str {
        "misrouted"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certain_is_known_by_code_and_routine() {
        for (sqlstate, routine, refusal, certain) in [
            ("25006", "PreventCommandIfReadOnly", Refusal::ReadOnly, true),
            ("0A000", "get_relation_info", Refusal::Unlogged, true),
            ("0A000", "transformSelectStmt", Refusal::Unsupported, false),
            ("XX000", "GetNewObjectId", Refusal::Wal, true),
            ("XX000", "XLogBeginInsert", Refusal::Wal, true),
            ("XX000", "cache_lookup", Refusal::Internal, false),
            ("55000", "pg_switch_wal", Refusal::InRecovery, false),
            ("42P01", "parserOpenTable", Refusal::Behind, false),
            ("40001", "ProcessInterrupts", Refusal::Conflict, false),
            ("40P01", "CheckRecoveryConflictDeadlock", Refusal::Deadlock, false),
        ] {
            let got = Refusal::of(sqlstate.as_bytes(), routine.as_bytes()).unwrap();
            assert_eq!((got, got.is_certain()), (refusal, certain), "{sqlstate} {routine}");
            // What another standby would do teaches nothing about the statement.
            assert!(!(got.is_conflict() && got.teaches()), "{sqlstate} {routine}");
        }
        for sqlstate in ["22012", "57014", "53200", "25P02"] {
            assert_eq!(Refusal::of(sqlstate.as_bytes(), b"get_relation_info"), None, "{sqlstate}");
        }
    }
}
