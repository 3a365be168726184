//! Bytes both ways until either side ends, or the connection must.
//!
//! Invariants: one bounded buffer per direction, nothing is read while it holds something
//! (backpressure); a client that must be cut is told why only where a message may begin; what a fenced
//! node said and has not left yet is dropped. Absent on purpose: what the bytes mean.

use super::Passthrough;
use crate::client::{Signal, send_last};
use crate::error::{ClientError, SqlState};
use crate::metrics::{Direction, Metrics};
use crate::net::{Buffer, Stream};
use crate::pool::DiscardReason;
use crate::wire::{encode, frontend};
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// How long a node may say nothing more after its client has said that it will not.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(30);

/// Terminate, the last message of a client. (What only looks like it changes a label, nothing else.)
const TERMINATE: [u8; 5] = [frontend::TERMINATE, 0, 0, 0, 4];

/// Why a replication connection ended. The label is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassthroughEnd {
    /// The client said all it had to say, or closed.
    ClientLeft,
    /// The connection to the client broke.
    ClientLost,
    /// The client read nothing for too long.
    ClientStalled,
    /// The node ended the connection.
    NodeClosed,
    /// The connection to the node broke.
    NodeLost,
    /// The node was fenced.
    Fenced,
    /// It was chosen as the primary, and the permit of that epoch was over when it said something.
    Unpermitted,
    /// The proxy stops.
    Drained,
}

impl PassthroughEnd {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientLeft => "client_left",
            Self::ClientLost => "client_lost",
            Self::ClientStalled => "client_stalled",
            Self::NodeClosed => "node_closed",
            Self::NodeLost => "node_lost",
            Self::Fenced => "fenced",
            Self::Unpermitted => "unpermitted",
            Self::Drained => "drained",
        }
    }

    /// What the client is told; `None`: the end of the stream says it, as without a proxy.
    fn message(self) -> Option<ClientError> {
        match self {
            Self::Fenced | Self::Unpermitted => Some(
                ClientError::fatal(
                    SqlState::ADMIN_SHUTDOWN,
                    "terminating replication connection because its node is not used any more",
                )
                .hint("Connect again: the proxy knows which node is primary."),
            ),
            Self::Drained => Some(ClientError::fatal(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection because the proxy is shutting down",
            )),
            _ => None,
        }
    }

    fn discard(self) -> DiscardReason {
        match self {
            Self::ClientLeft | Self::ClientLost | Self::ClientStalled => DiscardReason::Abandoned,
            Self::NodeClosed | Self::NodeLost => DiscardReason::Lost,
            Self::Fenced => DiscardReason::Fenced,
            Self::Unpermitted => DiscardReason::Unpermitted,
            Self::Drained => DiscardReason::Closing,
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Lane {
    buffer: Buffer,
    start: usize,
    /// Bytes of a write that is pending: it may have taken them (TLS), so they must be offered again.
    offered: usize,
    /// The source has ended.
    ended: bool,
    /// The sink has been told so.
    shut: bool,
    /// The sink takes nothing any more.
    refused: bool,
}

/// What a step of a lane came to.
#[derive(Debug)]
enum Step {
    /// So many bytes were read from the source.
    Read(usize),
    /// So many bytes of those in the buffer were written to the sink.
    Wrote(usize),
    /// The end was passed on.
    Shut,
    /// Reading failed.
    SourceFailed,
    /// Writing failed.
    SinkFailed,
}

impl Lane {
    /// A lane that has something to pass on.
    pub(super) fn holding(fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut lane = Self::default();
        lane.buffer.reserve();
        fill(&mut lane.buffer);
        lane
    }

    fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Writes what is there, at most `most` bytes, else reads more, else passes the end on.
    fn poll_step(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream, most: usize) -> Poll<Step> {
        if self.refused {
            return Poll::Pending;
        }
        if self.start < self.buffer.len() {
            let end = self.buffer.len().min(self.start.saturating_add(most.max(self.offered)));
            self.offered = end - self.start;
            let written = ready!(to.poll_write(cx, &self.buffer[self.start..end]));
            self.offered = 0;
            return Poll::Ready(match written {
                Ok(0) | Err(_) => Step::SinkFailed,
                Ok(written) => Step::Wrote(written),
            });
        }
        if self.ended {
            if self.shut {
                return Poll::Pending;
            }
            let told: io::Result<()> = ready!(to.poll_shutdown(cx));
            self.shut = true;
            return Poll::Ready(told.map_or(Step::SinkFailed, |()| Step::Shut));
        }
        self.buffer.reserve();
        let read = from.poll_read(cx, &mut self.buffer);
        if read.is_pending() {
            // A connection that is quiet holds no memory.
            self.buffer.give_back();
        }
        Poll::Ready(match ready!(read) {
            Ok(0) => {
                self.ended = true;
                Step::Read(0)
            }
            Ok(read) => Step::Read(read),
            Err(_) => Step::SourceFailed,
        })
    }

    fn wrote(&mut self, written: usize) {
        self.start += written;
        if self.start >= self.buffer.len() {
            self.drop_rest();
        }
    }

    /// Is a write under way, of which nobody knows how much has left?
    fn is_writing(&self) -> bool {
        self.offered > 0
    }

    fn drop_rest(&mut self) {
        self.buffer.clear();
        self.start = 0;
    }
}

fn count(metrics: &Metrics, direction: Direction, bytes: usize) {
    metrics.clients.bytes(direction).inc_by(bytes as u64);
}

impl Passthrough {
    /// Passes bytes on until the end.
    pub async fn run(mut self: Box<Self>) -> PassthroughEnd {
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.deps.metrics.clients.replication_ends.inc(end.label());
        self.handle.detach();
        let fits = self.edge.is_between() && !self.to_client.is_writing();
        let Self { mut backend, mut client, .. } = *self;
        // Closed before the client is told: it may come back at once, and needs the slot that it had.
        backend.ends_for(end.discard());
        drop(backend);
        if let Some(message) = end.message().filter(|_| fits) {
            let mut out = Vec::new();
            encode::error(&mut out, &message);
            Box::pin(send_last(&mut client, &out)).await;
        }
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PassthroughEnd> {
        self.handle.set_waker(cx.waker());
        loop {
            if self.fenced.as_mut().poll(cx).is_ready() {
                return Poll::Ready(PassthroughEnd::Fenced);
            }
            let draining = self.handle.is_signaled(Signal::Drain);
            if self.handle.is_signaled(Signal::Kill) || draining && self.edge.is_between() {
                return Poll::Ready(PassthroughEnd::Drained);
            }
            let down = self.poll_down(cx, draining);
            if let Poll::Ready(Some(end)) = down {
                return Poll::Ready(end);
            }
            let up = self.poll_up(cx);
            if let Poll::Ready(Some(end)) = up {
                return Poll::Ready(end);
            }
            if down.is_ready() || up.is_ready() {
                self.timing = false;
                continue;
            }
            return self.poll_patience(cx);
        }
    }

    /// From the node to the client. When the proxy stops, only to the end of the message that is half sent.
    fn poll_down(&mut self, cx: &mut Context<'_>, draining: bool) -> Poll<Option<PassthroughEnd>> {
        let most = if draining { self.edge.until() } else { usize::MAX };
        let metrics = &self.deps.metrics;
        let step = ready!(self.to_client.poll_step(cx, &mut self.backend.stream, &mut self.client, most));
        Poll::Ready(match step {
            // What a fenced backend says must not be believed.
            Step::Read(_) | Step::SourceFailed if self.backend.control.is_fenced() => Some(PassthroughEnd::Fenced),
            Step::Read(read) if read > 0 && self.target.is_some_and(|target| !self.deps.permits(&target)) => {
                self.to_client.drop_rest();
                Some(PassthroughEnd::Unpermitted)
            }
            Step::Read(read) => {
                count(metrics, Direction::FromNodes, read);
                None
            }
            Step::Wrote(written) => {
                count(metrics, Direction::ToClients, written);
                self.edge.advance(&self.to_client.pending()[..written]);
                self.to_client.wrote(written);
                None
            }
            Step::Shut if self.to_node.ended || self.said_goodbye => Some(PassthroughEnd::ClientLeft),
            Step::Shut => Some(PassthroughEnd::NodeClosed),
            Step::SourceFailed => Some(PassthroughEnd::NodeLost),
            Step::SinkFailed if self.to_node.ended || self.said_goodbye => Some(PassthroughEnd::ClientLeft),
            Step::SinkFailed => Some(PassthroughEnd::ClientLost),
        })
    }

    /// From the client to the node.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Option<PassthroughEnd>> {
        let metrics = &self.deps.metrics;
        let step = ready!(self.to_node.poll_step(cx, &mut self.client, &mut self.backend.stream, usize::MAX));
        Poll::Ready(match step {
            Step::Read(read) => {
                count(metrics, Direction::FromClients, read);
                None
            }
            Step::Wrote(written) => {
                count(metrics, Direction::ToNodes, written);
                self.said_goodbye = self.to_node.pending()[..written].ends_with(&TERMINATE);
                self.to_node.wrote(written);
                None
            }
            Step::Shut => None,
            Step::SourceFailed => Some(PassthroughEnd::ClientLost),
            // A node that has closed may have said why: reading tells. What the client says goes nowhere.
            Step::SinkFailed => {
                self.to_node.drop_rest();
                self.to_node.refused = true;
                None
            }
        })
    }

    /// Nothing moves: a client that reads nothing, or a node that has nothing to say to one that has left, is
    /// not waited for for ever.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<PassthroughEnd> {
        let stalled = !self.to_client.pending().is_empty();
        let (limit, end) = if stalled {
            (self.deps.tunables.load().client_write_timeout, PassthroughEnd::ClientStalled)
        } else if self.to_node.ended {
            (HALF_CLOSED_MAX, PassthroughEnd::ClientLeft)
        } else {
            return Poll::Pending;
        };
        if !self.timing {
            self.timing = true;
            let clock = &self.deps.clock;
            self.timer.as_mut().reset(clock.instant(clock.now() + limit));
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(end)
    }
}
