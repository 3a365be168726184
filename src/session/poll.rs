//! The session's one wait: what to read, what to write, what to wake for.
//!
//! Invariants: nothing is read from a node while the client has not taken what it was sent, and the
//! other way round (backpressure); one poll goes on until nothing more moves. Cancel-safe in the sense
//! that dropping the session drops its checkout, which discards the backend. Absent on purpose: what
//! messages mean.

use super::attach::Denied;
use super::forward::Forwarded;
use super::local::Pumped;
use super::loss::Loss;
use super::replies::Progress;
use super::{Attachment, Gate, Session, SessionEnd, Stage, Transaction};
use crate::client::{Signal, send_last};
use crate::error::{ClientError, SqlState};
use crate::metrics::Direction;
use crate::net::BUFFER_LEN;
use crate::pool::DiscardReason;
use crate::wire::encode;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Something moved; look again.
struct Again;

impl Session {
    /// Serves the client until it leaves or the session must end.
    /// Boxed, so that the task of an idle client holds a pointer and not its moves.
    pub async fn run(mut self: Box<Self>) -> SessionEnd {
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.leave(end);
        if matches!(
            end,
            SessionEnd::Drained | SessionEnd::Terminated | SessionEnd::IdleTimeout | SessionEnd::TransactionTimeout
        ) {
            Box::pin(self.say_goodbye(end)).await;
        }
        end
    }

    async fn say_goodbye(&mut self, end: SessionEnd) {
        let error = match end {
            SessionEnd::TransactionTimeout => {
                ClientError::fatal(SqlState("25P03"), "terminating connection due to idle-in-transaction timeout")
            }
            SessionEnd::IdleTimeout => {
                ClientError::fatal(SqlState("57P05"), "terminating connection due to idle-session timeout")
            }
            SessionEnd::Terminated => {
                ClientError::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
            }
            _ => ClientError::fatal(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection because the proxy is shutting down",
            ),
        };
        let mut out = Vec::new();
        encode::error(&mut out, &error);
        send_last(&mut self.stream, &out).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        self.handle.set_waker(cx.waker());
        loop {
            if self.handle.has_signals()
                && let Some(end) = self.on_signals()
            {
                return Poll::Ready(end);
            }
            let before = self.outbox.len();
            let flushed = self.outbox.poll_flush(&mut self.stream, cx);
            self.count(Direction::ToClients, before - self.outbox.len());
            let open = match flushed {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => return Poll::Ready(SessionEnd::ClientLost),
                Poll::Pending => false,
            };
            // Once more: a drain waits for the flush that has just been done.
            if open
                && self.handle.has_signals()
                && let Some(end) = self.on_signals()
            {
                return Poll::Ready(end);
            }
            if let Some(end) = self.ending
                && open
            {
                return Poll::Ready(end);
            }
            if !open {
                let limit = self.deps.tunables.load().client_write_timeout;
                ready!(self.poll_timer(cx, Some(limit)));
                return Poll::Ready(SessionEnd::ClientStalled);
            }
            let looked = match &self.stage {
                Stage::Detached => ready!(self.poll_detached(cx)),
                Stage::WaitingForRoute(_) => ready!(self.poll_route(cx)),
                Stage::WaitingForBackend(_) => ready!(self.poll_queue(cx)),
                Stage::Attached(_) => ready!(self.poll_attached(cx)),
            };
            match looked {
                Ok(Again) => self.timer = None,
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    fn count(&self, direction: Direction, bytes: usize) {
        if bytes > 0 {
            self.deps.metrics.clients.bytes(direction).inc_by(bytes as u64);
        }
    }

    /// Ready when nothing has moved for `limit`.
    fn poll_timer(&mut self, cx: &mut Context<'_>, limit: Option<Duration>) -> Poll<()> {
        let Some(limit) = limit else { return Poll::Pending };
        self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx)
    }

    fn on_signals(&mut self) -> Option<SessionEnd> {
        if self.handle.is_signaled(Signal::Kill) {
            return Some(SessionEnd::Drained);
        }
        if self.handle.is_signaled(Signal::Terminate) {
            return Some(SessionEnd::Terminated);
        }
        if self.handle.is_signaled(Signal::CancelWait) {
            self.handle.clear(Signal::CancelWait);
            match std::mem::replace(&mut self.stage, Stage::Detached) {
                Stage::WaitingForRoute(_) => self.deny(&Denied::Canceled),
                Stage::WaitingForBackend(wait) => {
                    self.leave_queue(&wait);
                    self.deny(&Denied::Canceled);
                }
                stage => self.stage = stage,
            }
        }
        let between =
            matches!(self.stage, Stage::Detached) && self.transaction.is_none() && !self.outbox.has_sendable();
        let idle_pinned = match &self.stage {
            Stage::Attached(attachment) => {
                attachment.checkout.is_clean() && self.sent.is_empty() && self.transaction.is_none()
            }
            _ => false,
        };
        let drained = self.handle.is_signaled(Signal::Drain) && (between || idle_pinned) && !self.inbox.has_unread();
        drained.then_some(SessionEnd::Drained)
    }

    fn poll_detached(&mut self, cx: &mut Context<'_>) -> Poll<Result<Again, SessionEnd>> {
        match self.pump() {
            Pumped::Moved => return Poll::Ready(Ok(Again)),
            Pumped::End(end) => {
                self.ending = Some(end);
                return Poll::Ready(Ok(Again));
            }
            Pumped::Hungry => {}
        }
        match self.poll_client(cx) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => {
                let limit =
                    if self.transaction.is_none() { self.deps.tunables.load().client_idle_timeout } else { None };
                ready!(self.poll_timer(cx, limit));
                Poll::Ready(Err(SessionEnd::IdleTimeout))
            }
        }
    }

    /// Reads from the client; the end of its stream ends the session.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<Again, SessionEnd>> {
        match ready!(self.inbox.poll_fill(&mut self.stream, cx, self.wanted)) {
            Ok(0) => {
                let between =
                    self.inbox.is_empty() && self.transaction.is_none() && matches!(self.stage, Stage::Detached);
                Poll::Ready(Err(if between { SessionEnd::ClientLeft } else { SessionEnd::ClientLost }))
            }
            Ok(read) => {
                self.count(Direction::FromClients, read);
                self.wanted = 0;
                Poll::Ready(Ok(Again))
            }
            Err(_) => Poll::Ready(Err(SessionEnd::ClientLost)),
        }
    }

    /// While waiting: notices that the client has gone, and takes what it sends meanwhile.
    fn poll_client_aside(&mut self, cx: &mut Context<'_>) -> Poll<Result<Again, SessionEnd>> {
        if self.inbox.has_room() { self.poll_client(cx) } else { Poll::Pending }
    }

    fn poll_route(&mut self, cx: &mut Context<'_>) -> Poll<Result<Again, SessionEnd>> {
        if let Stage::WaitingForRoute(wait) = &mut self.stage {
            if wait.news.as_mut().poll(cx).is_ready() {
                self.stage = Stage::Detached;
                self.seek(self.wanted_unit);
                return Poll::Ready(Ok(Again));
            }
            if wait.deadline.as_mut().poll(cx).is_ready() {
                let why = wait.why.clone();
                self.stage = Stage::Detached;
                match why {
                    Some(why) => self.deny(&Denied::NoRoute(why)),
                    None => self.seek(self.wanted_unit),
                }
                return Poll::Ready(Ok(Again));
            }
        }
        self.poll_client_aside(cx)
    }

    fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<Result<Again, SessionEnd>> {
        if let Stage::WaitingForBackend(wait) = &mut self.stage {
            let clock = &self.deps.clock;
            if let Poll::Ready(outcome) = wait.pool.poll_ticket(wait.ticket, cx, || clock.now()) {
                let (target, since) = (wait.target, wait.since);
                self.granted(target, since, outcome);
                return Poll::Ready(Ok(Again));
            }
        }
        self.poll_client_aside(cx)
    }

    fn poll_attached(&mut self, cx: &mut Context<'_>) -> Poll<Result<Again, SessionEnd>> {
        let Stage::Attached(mut attachment) = std::mem::replace(&mut self.stage, Stage::Detached) else {
            return Poll::Ready(Ok(Again));
        };
        if attachment.input.is_empty() && self.can_release(&attachment) {
            // Something followed its last ReadyForQuery; now nothing does.
            self.act(attachment, Progress::Release);
            return Poll::Ready(Ok(Again));
        }
        if self.inbox.has_unread() {
            match self.poll_permit(cx, &mut attachment) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(loss)) => {
                    self.on_loss(attachment, &loss);
                    return Poll::Ready(Ok(Again));
                }
                Poll::Pending => {
                    self.stage = Stage::Attached(attachment);
                    return self.poll_client_aside(cx);
                }
            }
        }
        let full = match self.forward(&mut attachment) {
            Ok(forwarded @ (Forwarded::Done | Forwarded::Full)) => {
                self.emit_invented(&mut attachment);
                forwarded == Forwarded::Full
            }
            Ok(Forwarded::Terminate) => {
                self.stage = Stage::Attached(attachment);
                return Poll::Ready(Err(SessionEnd::ClientLeft));
            }
            Ok(away @ (Forwarded::Misplaced | Forwarded::Moves | Forwarded::Disagreed)) => {
                self.leave_node(attachment, away);
                return Poll::Ready(Ok(Again));
            }
            Err(violation) => {
                self.end_violated(&violation);
                self.stage = Stage::Attached(attachment);
                return Poll::Ready(Ok(Again));
            }
        };
        self.flush_node(cx, &mut attachment);
        match self.poll_node(cx, &mut attachment) {
            Poll::Ready(Ok(progress)) => {
                self.act(attachment, progress);
                return Poll::Ready(Ok(Again));
            }
            Poll::Ready(Err(loss)) => {
                let loss = if attachment.checkout.control.is_fenced() { Loss::Fenced } else { loss };
                self.on_loss(attachment, &loss);
                return Poll::Ready(Ok(Again));
            }
            Poll::Pending => {}
        }
        if full && attachment.outbox.is_empty() {
            // The node has taken everything: the rest of the inbox can follow.
            self.stage = Stage::Attached(attachment);
            return Poll::Ready(Ok(Again));
        }
        if self.outbox.has_sendable() {
            // An invented reply: to be flushed before waiting.
            self.stage = Stage::Attached(attachment);
            return Poll::Ready(Ok(Again));
        }
        let takes = attachment.gate != Gate::Shut && attachment.outbox.is_empty();
        let client = if takes { self.poll_client(cx) } else { self.poll_client_aside(cx) };
        let idle = self.transaction.is_open() && attachment.checkout.owed.is_empty() && attachment.lapse.is_none();
        self.stage = Stage::Attached(attachment);
        if client.is_ready() { client } else { self.poll_idle_in_transaction(cx, idle) }
    }

    fn poll_idle_in_transaction(&mut self, cx: &mut Context<'_>, idle: bool) -> Poll<Result<Again, SessionEnd>> {
        let limit = if idle { self.deps.tunables.load().transaction_idle_timeout } else { None };
        ready!(self.poll_timer(cx, limit));
        Poll::Ready(Err(SessionEnd::TransactionTimeout))
    }

    /// What the client sent cannot go on where its transaction is.
    fn leave_node(&mut self, attachment: Attachment, why: Forwarded) {
        match why {
            Forwarded::Moves => self.move_trial(attachment),
            Forwarded::Disagreed => self.fail_trial(attachment),
            _ => self.misplaced(attachment),
        }
    }

    fn flush_node(&self, cx: &mut Context<'_>, attachment: &mut Attachment) {
        if attachment.ours == attachment.hidden.is_empty() {
            attachment.ours = !attachment.ours;
            self.handle.note_ours(attachment.ours);
        }
        let before = attachment.outbox.len();
        let flushed = attachment.outbox.poll_flush(&mut attachment.checkout.stream, cx);
        let sent = before - attachment.outbox.len();
        self.count(Direction::ToNodes, sent);
        attachment.checkout.count_sent(sent);
        if let Poll::Ready(Err(_)) = flushed {
            // A node that has closed may have said why; reading tells.
            attachment.outbox.clear();
        }
    }

    fn poll_node(&mut self, cx: &mut Context<'_>, attachment: &mut Attachment) -> Poll<Result<Progress, Loss>> {
        if attachment.lapse.is_some() {
            ready!(self.poll_permit(cx, attachment))?;
            if std::mem::take(&mut attachment.unbelieved) {
                return Poll::Ready(self.on_node_bytes(attachment));
            }
        }
        attachment.input.reserve();
        if attachment.input.len() == attachment.input.capacity() {
            attachment.input.reserve_more(BUFFER_LEN);
        }
        let outcome = attachment.checkout.stream.poll_read(cx, &mut attachment.input);
        if outcome.is_pending() && attachment.input.is_empty() {
            attachment.input.give_back();
        }
        match ready!(outcome) {
            Ok(0) | Err(_) => Poll::Ready(Err(Loss::Eof)),
            // What a fenced backend says must not be believed.
            Ok(_) if attachment.checkout.control.is_fenced() => Poll::Ready(Err(Loss::Fenced)),
            Ok(read) => {
                self.count(Direction::FromNodes, read);
                self.deps.facts.heard(attachment.target.node);
                attachment.checkout.count_received(read);
                // Nor what a primary says of which we do not know that it still is one: asked once per read, after
                // it. A pause before this is caught by the deadline, and one behind it delays what was heard in time.
                attachment.unbelieved = true;
                ready!(self.poll_permit(cx, attachment))?;
                attachment.unbelieved = false;
                Poll::Ready(self.on_node_bytes(attachment))
            }
        }
    }

    fn act(&mut self, mut attachment: Attachment, progress: Progress) {
        match progress {
            Progress::Stay => self.stage = Stage::Attached(attachment),
            Progress::Release => {
                self.inbox.settle();
                self.detach(attachment);
            }
            Progress::Reroute => {
                self.defer_again(&mut attachment);
                self.forget_unit();
                self.inbox.rewind();
                self.detach(attachment);
                self.query_class = None;
                self.seek(self.wanted_unit);
            }
            Progress::ReplayFailed(body) if self.has_passed_on(&attachment) => {
                let view = crate::wire::backend::error(&body);
                let why =
                    view.map_or_else(|_| String::new(), |view| String::from_utf8_lossy(view.message).into_owned());
                self.on_loss(attachment, &Loss::Unprepared(why));
            }
            Progress::ReplayFailed(body) => {
                self.abandon(attachment, DiscardReason::Dirty);
                self.replay_failed(&body);
            }
        }
    }

    /// Has the node been given something of the client's that cannot be given to another?
    fn has_passed_on(&self, attachment: &Attachment) -> bool {
        attachment.gate == Gate::Free && (!self.sent.is_empty() || self.unit.begun || attachment.to_node > 0)
    }

    /// The transaction runs on a standby and cannot go on there: it ends, and the client is told.
    fn misplaced(&mut self, attachment: Attachment) {
        self.abandon(attachment, DiscardReason::Dirty);
        self.forget_unit();
        self.transaction = Transaction::Lost { told: true };
        self.deny_with(&Denied::Misplaced);
    }

    /// The node refused the session's settings (or its BEGIN): the unit cannot run.
    fn replay_failed(&mut self, body: &[u8]) {
        self.outbox.drop_held();
        self.forget_unit();
        self.inbox.rewind();
        if self.transaction.is_open() {
            self.transaction = Transaction::Lost { told: true };
        }
        let message = String::from_utf8_lossy(crate::wire::backend::error(body).map_or(&b""[..], |view| view.message))
            .into_owned();
        self.deny_with(&super::greet::GreetError::Refused { body: body.into(), message });
    }
}
