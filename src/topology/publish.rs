//! The one publisher of topology snapshots, and its readers.
//!
//! Invariants: exactly one publisher exists per channel; the epoch never falls (a publisher that
//! tries stops the control plane, because something worse would follow).

use super::{Topology, WritePermit};
use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use tokio::sync::watch;

/// Publishes snapshots. Neither `Clone` nor constructible outside [`topology_channel`].
#[derive(Debug)]
pub struct TopologyPublisher {
    current: Arc<ArcSwap<Topology>>,
    permit: Arc<WritePermit>,
    version: watch::Sender<u64>,
}

/// Reads snapshots, wait-free.
#[derive(Clone, Debug)]
pub struct TopologyReader {
    current: Arc<ArcSwap<Topology>>,
    permit: Arc<WritePermit>,
    version: watch::Receiver<u64>,
}

/// Makes the one publisher and a first reader.
#[must_use]
pub fn topology_channel(first: Topology) -> (TopologyPublisher, TopologyReader) {
    let current = Arc::new(ArcSwap::from_pointee(first));
    let permit = Arc::new(WritePermit::default());
    let (tx, rx) = watch::channel(0);
    let reader = TopologyReader { current: Arc::clone(&current), permit: Arc::clone(&permit), version: rx };
    (TopologyPublisher { current, permit, version: tx }, reader)
}

impl TopologyPublisher {
    /// Replaces the snapshot and wakes everyone who waits for a change.
    ///
    /// # Panics
    /// If the epoch would fall: that is a defect of ours, and going on could mean two primaries.
    pub fn publish(&self, next: Topology) {
        let current = self.current.load();
        assert!(next.epoch >= current.epoch, "epoch moved backwards: {} -> {}", current.epoch, next.epoch);
        self.current.store(Arc::new(next));
        self.version.send_modify(|version| *version += 1);
    }

    /// The permit that travels with the snapshots.
    #[must_use]
    pub fn permit(&self) -> &WritePermit {
        &self.permit
    }
}

impl TopologyReader {
    /// The present snapshot. Do not hold the guard across an await.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Topology>> {
        self.current.load()
    }

    /// The present snapshot, to keep.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Topology> {
        self.current.load_full()
    }

    /// The write permit.
    #[must_use]
    pub fn permit(&self) -> &WritePermit {
        &self.permit
    }

    /// Waits for a snapshot newer than the last one waited for (the first call returns at once if
    /// anything was published since this reader was cloned). Cancel-safe. Pends for ever when the
    /// publisher is gone.
    pub async fn changed(&mut self) {
        if self.version.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends like [`Self::changed`], and when the write permit is extended after this call: for whoever waits for a node
    /// that will do, and looks once more between this call and the wait.
    pub fn news(mut self) -> impl Future<Output = ()> + Send + 'static {
        let extended = self.permit.extended();
        async move {
            tokio::select! {
                () = self.changed() => {}
                () = extended => {}
            }
        }
    }

    /// Marks the present snapshot as seen, so that [`Self::changed`] waits for the next one.
    pub fn mark_seen(&mut self) {
        self.version.mark_unchanged();
        self.version.borrow_and_update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    #[tokio::test]
    async fn readers_see_what_is_published_and_are_woken() {
        let (publisher, mut reader) = topology_channel(Topology::starting(&["a".into()]));
        let next = Topology { epoch: Epoch(3), ..Topology::starting(&["a".into()]) };
        publisher.publish(next);
        reader.changed().await;
        assert_eq!(reader.load().epoch, Epoch(3));
    }

    #[tokio::test]
    async fn an_extended_permit_is_news_even_between_the_call_and_the_wait() {
        let (publisher, mut reader) = topology_channel(Topology::starting(&[]));
        reader.mark_seen();
        let (news, others) = (reader.clone().news(), reader.clone().news());
        publisher.permit().extend(Epoch(1), crate::clock::Time::NEVER);
        news.await;
        others.await;
        let nothing = tokio::time::timeout(std::time::Duration::from_millis(10), reader.clone().news()).await;
        assert!(nothing.is_err(), "neither a snapshot nor an extension since");
    }

    #[test]
    #[should_panic(expected = "epoch moved backwards")]
    fn the_epoch_never_falls() {
        let (publisher, _reader) = topology_channel(Topology::starting(&[]));
        publisher.publish(Topology { epoch: Epoch(3), ..Topology::starting(&[]) });
        publisher.publish(Topology { epoch: Epoch(2), ..Topology::starting(&[]) });
    }
}
