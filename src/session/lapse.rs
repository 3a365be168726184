//! A backend of the primary while its write permit is over and may come back.
//!
//! Nothing more is sent to it, and what it says waits unread or unlooked at. Epochs do not come back: a permit of the
//! same epoch that is live later proves that no other primary was chosen in between, so what was heard meanwhile counts
//! after all. Invariants: nothing that was read is looked at under a permit that is over; the wait ends when the topology
//! has gone on to another epoch or fenced the node, and after `[pool] queue_timeout` at the latest. Absent on purpose: who
//! extends the permit, and what the loss means (`loss`).

use super::loss::Loss;
use super::{Attachment, News, Session};
use crate::route::Target;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Waiting for the permit to be extended.
pub(super) struct Lapse {
    news: News,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

impl std::fmt::Debug for Lapse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lapse").finish_non_exhaustive()
    }
}

impl Session {
    /// Ready while the permit of this backend's epoch is live, or once it will not be any more. The clock is read once,
    /// and only where the permit has a deadline.
    pub(super) fn poll_permit(&self, cx: &mut Context<'_>, attachment: &mut Attachment) -> Poll<Result<(), Loss>> {
        let target = attachment.target;
        loop {
            if self.deps.permits(&target) {
                attachment.lapse = None;
                return Poll::Ready(Ok(()));
            }
            if self.is_superseded(&target) {
                return Poll::Ready(Err(Loss::Unpermitted(target.epoch)));
            }
            let Some(lapse) = &mut attachment.lapse else {
                attachment.lapse = Some(Box::new(self.lapse()));
                // Looked at once more: it may have been extended before there was anybody to be woken.
                continue;
            };
            if lapse.news.as_mut().poll(cx).is_ready() {
                lapse.news = self.news();
                continue;
            }
            if lapse.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Loss::Unpermitted(target.epoch)));
            }
            return Poll::Pending;
        }
    }

    fn news(&self) -> News {
        let mut reader = self.deps.topology.clone();
        reader.mark_seen();
        Box::pin(reader.news())
    }

    fn lapse(&self) -> Lapse {
        let clock = &self.deps.clock;
        let until = clock.now() + self.deps.tunables.load().queue_timeout;
        Lapse { news: self.news(), deadline: Box::pin(tokio::time::sleep_until(clock.instant(until))) }
    }

    /// Has the topology gone on, so that a permit of this epoch cannot come back?
    fn is_superseded(&self, target: &Target) -> bool {
        let topology = self.deps.topology.load();
        topology.epoch != target.epoch || topology.node(target.node).is_none_or(|view| view.fence != target.fence)
    }
}
