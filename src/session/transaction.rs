//! The transaction as the client sees it, which may differ from what any backend knows.
//!
//! Pure. Invariants: a client whose transaction was lost gets nothing but errors until it ends it;
//! a deferred BEGIN READ ONLY has reached no node. Absent on purpose: settings (see `effects`).

use crate::wire::TxStatus;

/// The client's transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transaction {
    /// None is open.
    #[default]
    None,
    /// BEGIN READ ONLY was answered by us; the text goes in front of the first statement.
    Deferred(Box<[u8]>),
    /// Open on the attached backend.
    Open {
        /// It was begun READ ONLY and runs on a standby.
        on_standby: bool,
        /// Something in it may have written.
        wrote: bool,
        /// It failed.
        failed: bool,
    },
    /// It was lost with its backend; the node can only have rolled it back.
    Lost {
        /// The client was told.
        told: bool,
    },
}

impl Transaction {
    /// What ReadyForQuery says to the client.
    #[must_use]
    pub fn status(&self) -> TxStatus {
        match self {
            Self::None => TxStatus::Idle,
            Self::Deferred(_) | Self::Open { failed: false, .. } => TxStatus::InTransaction,
            Self::Open { failed: true, .. } | Self::Lost { .. } => TxStatus::Failed,
        }
    }

    /// Is no transaction open, whatever kind?
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Is one open on a backend?
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// The backend said ReadyForQuery. `wrote`: the unit before it may have written.
    pub fn on_ready(&mut self, status: TxStatus, on_standby: bool, wrote: bool) {
        let before = matches!(self, Self::Open { wrote: true, .. });
        *self = match status {
            TxStatus::Idle => Self::None,
            other => Self::Open { on_standby, wrote: wrote || before, failed: other == TxStatus::Failed },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_remembered_until_the_transaction_ends() {
        let mut tx = Transaction::default();
        tx.on_ready(TxStatus::InTransaction, false, false);
        tx.on_ready(TxStatus::InTransaction, false, true);
        tx.on_ready(TxStatus::Failed, false, false);
        assert_eq!(tx, Transaction::Open { on_standby: false, wrote: true, failed: true });
        assert_eq!(tx.status(), TxStatus::Failed);
        tx.on_ready(TxStatus::Idle, false, false);
        assert!(tx.is_none());
    }
}
