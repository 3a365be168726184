//! Facts from the data plane to the control plane: bounded, lossy, counted.
//!
//! Invariants: sending never blocks and never allocates; a storm of failures drops facts, counts
//! them, and cannot stop the control plane. Facts hold no judgement.

use super::Floor;
use crate::clock::Time;
use crate::ids::NodeId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Facts that fit in the channel before the next ones are dropped.
pub const FACTS_MAX: usize = 1024;

/// One thing that live traffic saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A connect was refused (nothing listens).
    ConnectRefused(NodeId),
    /// A connect did not finish in time, or the host cannot be reached.
    ConnectTimedOut(NodeId),
    /// A backend ended without being asked to (EOF or reset).
    BackendLost(NodeId),
    /// A backend said 57P01, 57P02 or 57P03: shutting down, crashed or starting.
    ShutdownSaid(NodeId),
    /// The node we call primary refused a write with 25006.
    WriteRefused(NodeId),
    /// A backend reported that recovery began or ended there (`in_hot_standby`).
    RoleChanged(NodeId),
}

impl Fact {
    /// The node the fact is about.
    #[must_use]
    pub fn node(self) -> NodeId {
        match self {
            Self::ConnectRefused(n)
            | Self::ConnectTimedOut(n)
            | Self::BackendLost(n)
            | Self::ShutdownSaid(n)
            | Self::WriteRefused(n)
            | Self::RoleChanged(n) => n,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    /// See [`Floor`]: its fields, in nanoseconds.
    flushed: AtomicU64,
    lazy: AtomicU64,
    lazy_flushed_by: AtomicU64,
    sample_wanted: AtomicBool,
    wake: Notify,
    /// A bit per node that sent a byte since somebody last began to listen.
    heard: AtomicU64,
}

impl Shared {
    fn floor(&self) -> Floor {
        let time = |nanos: &AtomicU64| Time::from_nanos(nanos.load(Ordering::Acquire));
        // In this order: a time that is seen comes with the end of its delay.
        let (flushed, lazy) = (time(&self.flushed), time(&self.lazy));
        Floor { flushed, lazy, lazy_flushed_by: time(&self.lazy_flushed_by), token: None }
    }
}

/// The data plane's end.
#[derive(Clone, Debug)]
pub struct FactSender {
    facts: mpsc::Sender<Fact>,
    shared: Arc<Shared>,
}

impl FactSender {
    /// Hands a fact over, or drops and counts it when the control plane is behind.
    pub fn send(&self, fact: Fact) {
        if self.facts.try_send(fact).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes that a session's write was acknowledged at `now`, so that a WAL sample is wanted. `unflushed_for`: how
    /// long it may stay unflushed, if nobody waited for that.
    pub fn wrote(&self, now: Time, unflushed_for: Option<Duration>) {
        match unflushed_for {
            None => drop(self.shared.flushed.fetch_max(now.as_nanos(), Ordering::AcqRel)),
            Some(delay) => {
                self.shared.lazy_flushed_by.fetch_max((now + delay).as_nanos(), Ordering::AcqRel);
                self.shared.lazy.fetch_max(now.as_nanos(), Ordering::AcqRel);
            }
        }
        self.want_sample();
    }

    /// Asks for a WAL sample: somebody waits for standbys to reach what the primary has now.
    pub fn want_sample(&self) {
        // Only the first one after a sample pays for the wake-up.
        if !self.shared.sample_wanted.load(Ordering::Acquire) && !self.shared.sample_wanted.swap(true, Ordering::AcqRel)
        {
            self.shared.wake.notify_one();
        }
    }

    /// Notes that a node sent something to a client's session. Nearly always one look at a word that nobody changes.
    pub fn heard(&self, node: NodeId) {
        let bit = bit_of(node);
        if self.shared.heard.load(Ordering::Relaxed) & bit != bit {
            self.shared.heard.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// What every session of this proxy together has written.
    #[must_use]
    pub fn floor(&self) -> Floor {
        self.shared.floor()
    }

    /// Facts dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

/// The control plane's end.
#[derive(Debug)]
pub struct FactReceiver {
    facts: mpsc::Receiver<Fact>,
    shared: Arc<Shared>,
}

impl FactReceiver {
    /// The next fact; `None` when every sender is gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Fact> {
        self.facts.recv().await
    }

    /// The handle by which a sampler waits for writes, separate from the fact stream.
    #[must_use]
    pub fn write_demand(&self) -> WriteDemand {
        WriteDemand { shared: Arc::clone(&self.shared) }
    }
}

/// Tells the sampler that some session has written since the last sample.
#[derive(Clone, Debug)]
pub struct WriteDemand {
    shared: Arc<Shared>,
}

impl WriteDemand {
    /// Waits until a write was acknowledged after the last [`WriteDemand::take`]. Cancel-safe.
    pub async fn wanted(&self) {
        while !self.shared.sample_wanted.load(Ordering::Acquire) {
            self.shared.wake.notified().await;
        }
    }

    /// Resets the demand; to be called right before a sample is sent.
    pub fn take(&self) {
        self.shared.sample_wanted.store(false, Ordering::Release);
    }

    /// What the sessions together have written.
    #[must_use]
    pub fn floor(&self) -> Floor {
        self.shared.floor()
    }

    /// The handle by which a probe hears what else a node sent.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic { shared: Arc::clone(&self.shared) }
    }
}

/// Tells whether clients' sessions hear from a node.
#[derive(Clone, Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
}

impl Traffic {
    /// Forgets what was heard from the node so far.
    pub fn listen(&self, node: NodeId) {
        self.shared.heard.fetch_and(!bit_of(node), Ordering::Relaxed);
    }

    /// Whether some session had a byte from the node since the last [`Traffic::listen`].
    #[must_use]
    pub fn heard(&self, node: NodeId) -> bool {
        self.shared.heard.load(Ordering::Relaxed) & bit_of(node) != 0
    }
}

/// Nodes beyond the word have none, and are never heard.
fn bit_of(node: NodeId) -> u64 {
    1u64.checked_shl(u32::from(node.0)).unwrap_or(0)
}

/// Makes the two ends.
#[must_use]
pub fn fact_channel() -> (FactSender, FactReceiver) {
    let (tx, rx) = mpsc::channel(FACTS_MAX);
    let shared = Arc::new(Shared::default());
    (FactSender { facts: tx, shared: Arc::clone(&shared) }, FactReceiver { facts: rx, shared })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_channel_drops_and_counts() {
        let (tx, _rx) = fact_channel();
        for _ in 0..FACTS_MAX + 7 {
            tx.send(Fact::BackendLost(NodeId(0)));
        }
        assert_eq!(tx.dropped(), 7);
    }

    #[test]
    fn a_byte_is_heard_by_who_listens_before() {
        let (tx, rx) = fact_channel();
        let traffic = rx.write_demand().traffic();
        traffic.listen(NodeId(1));
        (0..2).for_each(|_| tx.heard(NodeId(1)));
        tx.heard(NodeId(200));
        assert!(traffic.heard(NodeId(1)) && !traffic.heard(NodeId(0)) && !traffic.heard(NodeId(200)));
        traffic.listen(NodeId(1));
        assert!(!traffic.heard(NodeId(1)));
    }

    #[tokio::test]
    async fn a_write_wakes_the_sampler_once() {
        let (tx, rx) = fact_channel();
        let demand = rx.write_demand();
        tx.wrote(Time::from_nanos(5), None);
        tx.wrote(Time::from_nanos(3), None);
        demand.wanted().await;
        assert_eq!(demand.floor().flushed, Time::from_nanos(5));
        tx.wrote(Time::from_nanos(7), Some(Duration::from_nanos(4)));
        assert_eq!((demand.floor().lazy, demand.floor().lazy_flushed_by), (Time::from_nanos(7), Time::from_nanos(11)));
        demand.take();
        assert!(!demand.shared.sample_wanted.load(Ordering::Acquire));
    }
}
