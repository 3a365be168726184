//! Remembers durably who is primary at which epoch, so that no restart goes backwards.
//!
//! Invariants: a record that was confirmed is what every later [`Store::recall`] returns, until a
//! later one replaces it; a record that would go backwards is refused. Absent on purpose: any
//! knowledge of PostgreSQL roles, and any decision. `single`: one proxy, a local file; `voters`: several, on
//! the nodes themselves; `etcd`: several, in etcd; all pass [`conformance`].

pub mod conformance;
pub mod etcd;
mod single;
pub mod voters;

pub use etcd::{EtcdError, EtcdStore};
pub use single::SingleStore;
pub(crate) use single::replace_file;

use crate::failover::event::Record;
use crate::failover::standing::{Claim, Standing};
use crate::ids::{Epoch, SystemId, TimelineId};
use futures::future::BoxFuture;
use std::path::PathBuf;
use tokio::sync::watch;

/// Keeps the record.
pub trait Store: Send + Sync {
    /// The word used in the configuration, logs and status.
    fn name(&self) -> &'static str;

    /// What is remembered; `None` when nothing ever was. Fails when that cannot be known now.
    fn recall(&self) -> BoxFuture<'_, Result<Option<Record>, StoreError>>;

    /// Remembers `record`. When this returns `Ok` it survives a crash; when it fails, it may or may
    /// not have been remembered. Calls take effect in the order in which they were first polled.
    ///
    /// A store that several proxies share accepts it only under the right to change the primary, and
    /// waits for that right for as long as the caller waits.
    fn record(&self, record: Record) -> BoxFuture<'_, Result<(), StoreError>>;

    /// What this proxy wants from now on. Returns at once; a store for one proxy has nothing to give.
    fn claim(&self, _: Claim) {}

    /// What must run beside the controller for the store to work; given once.
    fn task(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// Where this proxy stands, newest value only; `None` for a store that one proxy uses alone: it may
    /// do everything at any time.
    fn standing(&self) -> Option<watch::Receiver<Standing>> {
        None
    }
}

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the state.
    #[error(
        "another process uses the state directory (lock file {path}); two proxies with coordination = \"single\" must not share one"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The file or directory could not be used.
    #[error("cannot {act} {path}: {cause}")]
    Io {
        /// What was tried: `open`, `write`, …
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// The content is not a record.
    #[error("state file {path} is damaged ({why}); repair it or move it away if you are sure which node is primary")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The record would contradict or precede what is remembered.
    #[error("refused to go backwards: {0}")]
    Backwards(Backwards),
    /// The right to change the primary was let go before the record was written.
    #[error("the right to change the primary was given up")]
    NotOurs,
    /// Too few voters have it; some may.
    #[error("{needed} voters must have it, the primary among them ({why})")]
    NoMajority {
        /// How many.
        needed: usize,
        /// What kept the others from it.
        why: String,
    },
    /// Too few voters answer, or they follow different nodes.
    #[error("no majority of the voters answers and follows one primary")]
    Undecided,
    /// etcd did not do it.
    #[error(transparent)]
    Etcd(EtcdError),
    /// The store's worker ended (the process is stopping).
    #[error("the store is stopping")]
    Stopping,
}

/// In what way a record goes backwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Backwards {
    /// A lower epoch.
    #[error("epoch {asked} after {stored}")]
    Epoch {
        /// Remembered.
        stored: Epoch,
        /// Asked for.
        asked: Epoch,
    },
    /// Another primary in the same epoch.
    #[error("epoch {epoch} belongs to {stored:?}, not to {asked:?}")]
    Primary {
        /// The epoch.
        epoch: Epoch,
        /// Remembered.
        stored: String,
        /// Asked for.
        asked: String,
    },
    /// A lower timeline.
    #[error("timeline {asked} after {stored}")]
    Timeline {
        /// Remembered.
        stored: TimelineId,
        /// Asked for.
        asked: TimelineId,
    },
    /// Another cluster.
    #[error("the state belongs to system identifier {stored}, not {asked}")]
    System {
        /// Remembered.
        stored: SystemId,
        /// Asked for.
        asked: SystemId,
    },
}

/// May `asked` follow `stored`? Every store refuses what this refuses.
///
/// # Errors
/// When epoch or timeline fall, the epoch's primary changes, or the cluster does.
pub fn may_follow(stored: &Record, asked: &Record) -> Result<(), Backwards> {
    if asked.system_id != stored.system_id {
        return Err(Backwards::System { stored: stored.system_id, asked: asked.system_id });
    }
    if asked.epoch < stored.epoch {
        return Err(Backwards::Epoch { stored: stored.epoch, asked: asked.epoch });
    }
    if asked.epoch == stored.epoch && asked.primary != stored.primary {
        let (stored, asked) = (stored.clone(), asked.clone());
        return Err(Backwards::Primary { epoch: stored.epoch, stored: stored.primary, asked: asked.primary });
    }
    if asked.timeline < stored.timeline {
        return Err(Backwards::Timeline { stored: stored.timeline, asked: asked.timeline });
    }
    Ok(())
}
