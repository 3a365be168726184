//! Getting a backend for a unit: route, checkout or queue, bring the backend to the session's state.
//!
//! Invariants: a unit is sent under the epoch of the snapshot it was routed by; a session that waits
//! has a deadline; settings are replayed before anything of the client. Absent on purpose: how nodes
//! are chosen (`route`) and how backends are opened (`pool`).

use super::effects::Pins;
use super::hidden::Hidden;
use super::preference::Preference;
use super::unit::Unit;
use super::{
    Attachment, BackendWait, Describing, Gate, News, RouteWait, Session, SessionEnd, Stage, Streamed, Tunables,
};
use crate::backend::text_of;
use crate::clock::Time;
use crate::config::{Consistency, PoolMode};
use crate::decision::{Decision, Excerpt};
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};
use crate::ids::{NodeId, PoolKey};
use crate::net::Buffer;
use crate::pool::{Checkout, CheckoutError, DiscardReason, Pool};
use crate::relay::{NodeScan, Outbox};
use crate::route::{NoRoute, Reach, Target, Wishes};
use crate::sql::{Access, BeginOptions, Classification, HintNode, Isolation, TxControl, Why};
use crate::topology::{Floor, Role};
use crate::wire::{encode, frontend};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long after a write a session prefers the backend it wrote on.
const HOME_AFTER_WRITE: Duration = Duration::from_secs(1);
/// Nodes tried for one read before it goes to the primary.
const ATTEMPTS_MAX: u32 = 4;

/// Why a unit got no backend.
#[derive(Debug, thiserror::Error)]
pub(super) enum Denied {
    /// No node can take it, and it waited long enough.
    #[error("no node can take the statement: {0}")]
    NoRoute(Arc<str>),
    /// An operator must act first.
    #[error("writes are refused: {0}")]
    Refused(Arc<str>),
    /// The pool had none.
    #[error(transparent)]
    Checkout(CheckoutError),
    /// The client canceled it while it waited.
    #[error("canceled while waiting")]
    Canceled,
    /// It would leave something on a standby that means nothing there.
    #[error("misplaced in a read-only transaction on a standby")]
    Misplaced,
}

impl Classify for Denied {
    fn fault(&self) -> Fault {
        match self {
            Self::NoRoute(_) | Self::Refused(_) => Fault::Topology,
            Self::Checkout(err) => err.fault(),
            Self::Canceled | Self::Misplaced => Fault::Client,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Checkout(err) => err.retry(),
            Self::Misplaced => Retry::Never,
            _ => Retry::Later,
        }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::NoRoute(why) => {
                ClientError::error(SqlState::CANNOT_CONNECT_NOW, "no node can take this statement at the moment")
                    .detail(format!("The proxy waited as long as [pool] queue_timeout allows: {why}."))
                    .hint("Nothing was executed; try again later.")
            }
            Self::Refused(why) => {
                ClientError::error(SqlState::CANNOT_CONNECT_NOW, "writes are refused until an operator acts")
                    .detail(format!("The reason is: {why}."))
                    .hint("Reads on standbys go on. The operator finds the details under /api/v1/cluster.")
            }
            Self::Checkout(err) => err.client(),
            Self::Misplaced => ClientError::error(
                SqlState::READ_ONLY_TRANSACTION,
                "cannot take session locks or make session objects in a READ ONLY transaction that runs on a standby",
            )
            .hint("Use BEGIN without READ ONLY, or run this as the first statement of the transaction."),
            Self::Canceled => ClientError::error(SqlState::QUERY_CANCELED, "canceling statement due to user request"),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::NoRoute(_) => "no_route",
            Self::Refused(_) => "writes_refused",
            Self::Checkout(err) => err.label(),
            Self::Canceled => "canceled",
            Self::Misplaced => "misplaced",
        }
    }
}

/// A unit that wants a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub access: Access,
    pub closed: bool,
}

impl Session {
    /// Looks for a node and a backend for the unit in the inbox.
    pub(super) fn seek(&mut self, wanted: Wanted) {
        self.wanted_unit = wanted;
        let now = self.deps.clock.now();
        self.deps.learned.sweep(now);
        let mut reader = match self.route(wanted, now) {
            Ok(target) => return self.checkout(target, now),
            Err(NoRoute::Refused { why }) => return self.deny(&Denied::Refused(why)),
            Err(NoRoute::Held { .. } | NoRoute::NotFresh) => self.deps.topology.clone(),
        };
        // Asked again after the mark, so that a snapshot published in between is not missed, nor a permit extended.
        reader.mark_seen();
        let news = reader.news();
        match self.route(wanted, now) {
            Ok(target) => self.checkout(target, now),
            Err(NoRoute::Refused { why }) => self.deny(&Denied::Refused(why)),
            Err(NoRoute::Held { why }) => self.wait_for_route(Box::pin(news), Some(why)),
            Err(NoRoute::NotFresh) => self.wait_for_route(Box::pin(news), None),
        }
    }

    fn route(&mut self, wanted: Wanted, now: Time) -> Result<Target, NoRoute> {
        let deps = Arc::clone(&self.deps);
        let tunables = deps.tunables.load();
        self.prefer(&tunables);
        let give_up = self.force_primary || self.attempts >= ATTEMPTS_MAX;
        let wishes = Wishes {
            access: if give_up { Access::Write } else { wanted.access },
            reach: self.preference.reach,
            nodes: self.preference.nodes,
            floor: self.read_floor(),
            avoid: self.avoid,
            patient: !tunables.fresh_wait.is_zero() && self.is_patient(tunables.fresh_wait, now),
            permitted: true,
        };
        let shadowed = tunables.shadow && wishes.reach == Reach::Split;
        if shadowed {
            let would = deps.choose(&wishes, now, &mut self.dice);
            self.note_decision(wishes.access, &would, now, true);
        }
        let wishes = Wishes { reach: if shadowed { Reach::Primary } else { wishes.reach }, ..wishes };
        let mut chosen = deps.choose(&wishes, now, &mut self.dice);
        if chosen.is_err() && !self.force_primary {
            // A read that has failed on many standbys goes back to them where there is no primary.
            chosen = deps.choose(&Wishes { access: wanted.access, ..wishes }, now, &mut self.dice);
        }
        let target = chosen?;
        self.note_decision(wishes.access, &Ok(target), now, false);
        Ok(target)
    }

    /// Counts a decision, and writes it down for whoever asks. `shadow`: it is not carried out.
    fn note_decision(&self, access: Access, chosen: &Result<Target, NoRoute>, now: Time, shadow: bool) {
        if let Ok(target) = chosen {
            self.deps.metrics.route.decided(target.node, access == Access::Write, target.reason as usize, shadow);
        }
        let (text, why) = self.statement_at_cursor();
        self.deps.decisions.note(Decision {
            at: now,
            session: Arc::clone(&self.handle),
            statement: Excerpt::of(text),
            access,
            why,
            outcome: chosen.as_ref().map(|target| (target.node, target.reason)).map_err(Clone::clone),
            attempt: self.attempts,
            shadow,
        });
    }

    /// The first statement of the unit in the inbox, and why it is a read or none.
    pub(super) fn statement_at_cursor(&self) -> (&[u8], Option<Why>) {
        let limit = self.deps.tunables.load().message_bytes_max;
        let Ok(Some(message)) = self.inbox.message_at(self.inbox.cursor(), limit) else { return (b"", None) };
        let body = self.inbox.body(message);
        let why = |class: &Option<Arc<Classification>>| class.as_ref().map(|class| class.why.clone());
        match message.tag {
            frontend::QUERY => (frontend::query(body).unwrap_or(body), why(&self.query_class)),
            frontend::PARSE => {
                let class = self.memo.as_ref().filter(|(at, _)| *at == message.at).map(|(_, class)| class.why.clone());
                (frontend::parse(body).map_or(&b""[..], |view| view.text), class)
            }
            frontend::BIND => match frontend::bind(body) {
                Ok(view) if view.statement.is_empty() => {
                    (text_of(&self.prepared.unnamed.content), why(&self.prepared.unnamed.class))
                }
                Ok(view) => self
                    .prepared
                    .find(view.statement)
                    .map_or((&b""[..], None), |statement| (statement.text(), Some(statement.class.why.clone()))),
                Err(_) => (b"", None),
            },
            _ => (b"", None),
        }
    }

    /// Brings where the session is served up to its settings and the configuration.
    fn prefer(&mut self, tunables: &Tunables) {
        let settings = self.tracked.current();
        if !self.preference.is_outdated(tunables, settings) {
            return;
        }
        let before = self.preference.token;
        self.preference = Preference::new(tunables, &self.identity, settings, self.defaults);
        if self.preference.token != before && self.preference.token.is_some() {
            // Nobody else may have reason to look how far the standbys are.
            self.deps.facts.want_sample();
        }
    }

    /// May the present unit still wait for a fresher standby?
    fn is_patient(&mut self, patience: Duration, now: Time) -> bool {
        now < *self.patience.get_or_insert(now + patience)
    }

    /// What the session's reads must show.
    fn read_floor(&self) -> Floor {
        let floor = match self.preference.consistency {
            Consistency::Eventual => Floor::default(),
            Consistency::Session => self.floor,
            Consistency::Global => self.deps.facts.floor().max(self.floor),
        };
        Floor { token: self.preference.token, ..floor }
    }

    fn deadline(&mut self) -> Time {
        let timeout = self.deps.tunables.load().queue_timeout;
        let deps = &self.deps;
        *self.queue_deadline.get_or_insert_with(|| deps.clock.now() + timeout)
    }

    /// Waits for news of a node that will do; `why` is told if none comes. Without, the wait is for a standby that is
    /// fresh enough, and ends on the primary.
    fn wait_for_route(&mut self, news: News, why: Option<Arc<str>>) {
        let now = self.deps.clock.now();
        let deadline = match (&why, self.patience) {
            (None, Some(patience)) => patience,
            _ => self.deadline(),
        };
        if let Some(why) = why.as_ref().filter(|_| deadline <= now) {
            return self.deny(&Denied::NoRoute(Arc::clone(why)));
        }
        self.handle.note_waiting(Some(now));
        let no = why.clone().map_or(NoRoute::NotFresh, |why| NoRoute::Held { why });
        self.note_decision(self.wanted_unit.access, &Err(no), now, false);
        let deadline = Box::pin(tokio::time::sleep_until(self.deps.clock.instant(deadline)));
        self.stage = Stage::WaitingForRoute(Box::new(RouteWait { news, deadline, why }));
    }

    fn pool_of(&mut self, node: NodeId) -> Arc<Pool> {
        let identity = &self.identity;
        let deps = &self.deps;
        let pool = self.pools[node.index()].get_or_insert_with(|| {
            let key = PoolKey { node, database: Arc::clone(&identity.database), user: Arc::clone(&identity.user) };
            deps.pools.pool(&key)
        });
        Arc::clone(pool)
    }

    /// Is the backend it had last better than any other? It has the session's settings, and what the session
    /// just wrote may have left something there that no text tells (`currval()`, statistics, an extension's
    /// memory). Otherwise the backend used last is better, so that those not needed can be closed.
    fn prefers_home(&self, now: Time) -> bool {
        !Arc::ptr_eq(self.tracked.current(), self.tracked.startup()) || now.since(self.wrote) < HOME_AFTER_WRITE
    }

    fn checkout(&mut self, target: Target, now: Time) {
        let pool = self.pool_of(target.node);
        self.deps.standings.of(target.node).begin();
        let home = self.home.filter(|_| target.role == Role::Primary && self.prefers_home(now));
        if let Some(checkout) = pool.try_checkout(now, home) {
            self.deps.metrics.node(target.node).queue_wait_seconds.observe(0.0);
            return self.attach(checkout, target);
        }
        let deadline = self.deadline();
        match pool.join(deadline, target.fence) {
            Ok(ticket) => {
                self.handle.note_waiting(Some(now));
                self.stage = Stage::WaitingForBackend(BackendWait { pool, ticket, target, since: now });
            }
            Err(error) => self.granted(target, now, Err(error)),
        }
    }

    /// The queue answered.
    pub(super) fn granted(&mut self, target: Target, since: Time, outcome: Result<Checkout, CheckoutError>) {
        self.stage = Stage::Detached;
        let waited = self.deps.clock.now().since(since);
        self.deps.metrics.node(target.node).queue_wait_seconds.observe(waited.as_secs_f64());
        let error = match outcome {
            Ok(checkout) if self.deps.permits(&target) => return self.attach(checkout, target),
            Ok(checkout) => {
                // The permit ended while it was queued for: nothing has left, so it waits for the next one.
                self.deps.standings.of(target.node).end();
                checkout.release(self.deps.clock.now());
                return self.seek(self.wanted_unit);
            }
            Err(error) => error,
        };
        self.deps.standings.of(target.node).end();
        match error {
            error if error.retry() == Retry::OtherNode => {
                // The unit has not left us: any node of the next snapshot will do.
                self.avoid = Some(target.node);
                self.attempts = self.attempts.saturating_add(1).min(ATTEMPTS_MAX);
                if self.wanted_unit.access == Access::Read {
                    self.deps.metrics.route.reruns.inc("connect");
                }
                if self.deadline() <= self.deps.clock.now() {
                    return self.deny(&Denied::Checkout(error));
                }
                self.seek(self.wanted_unit);
            }
            CheckoutError::Rejected(_) if target.role == Role::Standby => {
                // A role or database that was made a moment ago may not be there yet.
                self.force_primary = true;
                self.seek(self.wanted_unit);
            }
            error => self.deny(&Denied::Checkout(error)),
        }
    }

    /// Leaves the queue for a backend.
    pub(super) fn leave_queue(&self, wait: &BackendWait) {
        wait.pool.leave(wait.ticket, self.deps.clock.now());
        self.deps.standings.of(wait.target.node).end();
    }

    fn attach(&mut self, checkout: Checkout, target: Target) {
        if target.role == Role::Primary {
            self.home = Some(checkout.id);
        }
        self.queue_deadline = None;
        self.patience = None;
        self.timer = None;
        // What was passed on before is done with: a unit that moves must not take it along.
        self.inbox.settle();
        self.unit = Unit::default();
        self.bound.clear();
        if self.trial.as_ref().is_some_and(|trial| !trial.is_repeating()) {
            if target.role == Role::Standby {
                self.inbox.keep_log();
            } else {
                self.trial = None;
            }
        }
        let begins = matches!(self.transaction, super::Transaction::None | super::Transaction::Deferred(_));
        let alone = self.wanted_unit.closed && self.wanted_unit.access == Access::Read && begins;
        let mut attachment = Attachment {
            sent_at: None,
            checkout,
            target,
            outbox: Outbox::default(),
            input: Buffer::empty(),
            scan: NodeScan::default(),
            lapse: None,
            unbelieved: false,
            to_node: 0,
            to_client: Streamed::Forward,
            hidden: VecDeque::new(),
            ours: false,
            refused: None,
            guarded: false,
            describing: Describing::No,
            gate: if alone { Gate::OneRead } else { Gate::Free },
            rerouting: false,
            deciding: false,
            used: false,
            begin: None,
            tainted: false,
        };
        self.replay_settings(&mut attachment);
        self.replay_begin(&mut attachment);
        attachment.ours = !attachment.hidden.is_empty();
        if alone && !attachment.ours && target.role == Role::Standby {
            attachment.sent_at = Some(attachment.checkout.since());
        }
        self.handle.attach(target.node, &attachment.checkout.control, attachment.checkout.since(), attachment.ours);
        if self.deps.tunables.load().mode == PoolMode::Session {
            self.pin(b"", Pins::for_session_mode);
        }
        if alone {
            self.outbox.hold();
        }
        self.stage = Stage::Attached(attachment);
    }

    /// Brings the backend to the session's settings with one Query whose replies are hidden.
    fn replay_settings(&mut self, attachment: &mut Attachment) {
        let backend = &mut attachment.checkout;
        let wanted = self.tracked.current();
        if Arc::ptr_eq(&backend.settings, wanted) || backend.settings.same(wanted) {
            if backend.parameters.digest() != self.told.digest() {
                self.tell_parameters(attachment);
            }
            return;
        }
        let text = backend.settings.idle_change_to(wanted);
        // What a read does under the wrong settings nobody sees; a write would last.
        attachment.guarded = self.wanted_unit.access == Access::Write && backend.settings.guards_change_to(wanted);
        backend.settings = Arc::clone(wanted);
        Self::send_hidden(attachment, &text, Hidden::Settings);
    }

    /// Sends the BEGIN that was answered before a node was known.
    fn replay_begin(&mut self, attachment: &mut Attachment) {
        if let super::Transaction::Deferred(text) = std::mem::take(&mut self.transaction) {
            Self::send_hidden(attachment, &text, Hidden::Begin);
            // Without it a write would be committed at once.
            attachment.guarded |= self.wanted_unit.access == Access::Write;
            let on_standby = attachment.target.role == Role::Standby;
            self.transaction = super::Transaction::Open { on_standby, wrote: false, failed: false };
            attachment.begin = Some(text);
        }
    }

    /// The unit behind a BEGIN of ours runs elsewhere: so does that.
    pub(super) fn defer_again(&mut self, attachment: &mut Attachment) {
        if let Some(text) = attachment.begin.take() {
            self.transaction = super::Transaction::Deferred(text);
        }
    }

    /// Tells the client the parameters in which this backend differs from what it was told.
    pub(super) fn tell_parameters(&mut self, attachment: &Attachment) {
        let now = &attachment.checkout.parameters;
        let mut told = (*self.told).clone();
        for (name, value) in now.shared().filter(|(name, value)| self.told.value(name) != Some(value)) {
            encode::parameter_status(self.outbox.tail(), name, value);
            told.note(name.as_bytes(), value.as_bytes());
        }
        self.strings = super::replies::strings_of(&told);
        self.told = Arc::new(told);
    }

    /// Lets a backend go that is between units: reused if clean and not needed any more.
    pub(super) fn detach(&mut self, attachment: Attachment) {
        let now = self.deps.clock.now();
        let Attachment { checkout, target, tainted, .. } = attachment;
        self.deps.standings.of(target.node).end();
        self.deps.metrics.node(target.node).transaction_seconds.observe(now.since(checkout.since()).as_secs_f64());
        if self.handle.detach() {
            checkout.discard(DiscardReason::Canceled);
        } else if tainted || checkout.statements.has_too_many_sql() {
            checkout.reset();
        } else {
            checkout.release(now);
        }
    }

    /// Lets a backend go that must not be reused.
    pub(super) fn abandon(&mut self, attachment: Attachment, reason: DiscardReason) {
        let Attachment { checkout, target, .. } = attachment;
        self.deps.standings.of(target.node).end();
        self.handle.detach();
        checkout.discard(reason);
    }

    /// Lets a backend go in whose transaction nothing was written.
    pub(super) fn part_rolled_back(&mut self, attachment: Attachment) {
        let Attachment { checkout, target, .. } = attachment;
        self.deps.standings.of(target.node).end();
        if self.handle.detach() {
            checkout.discard(DiscardReason::Canceled);
        } else {
            checkout.reset();
        }
    }

    /// The client is gone: whatever state its backend holds goes with it.
    pub(super) fn part(&mut self, attachment: Attachment, end: SessionEnd) {
        let between = !self.unit.begun && attachment.to_node == 0 && attachment.outbox.is_empty();
        let clean = attachment.checkout.is_clean() && between;
        if clean && self.pins.is_empty() {
            self.detach(attachment);
        } else if clean && end == SessionEnd::ClientLeft && !self.handle.detach() {
            self.deps.standings.of(attachment.target.node).end();
            attachment.checkout.reset();
        } else {
            self.abandon(attachment, DiscardReason::Abandoned);
        }
    }

    /// Does this begin a transaction that a standby can run? Everything in it is refused that is no read.
    pub(super) fn begins_read(&mut self, class: &Classification) -> bool {
        self.begins_on_standby(class, false)
    }

    fn begins_on_standby(&mut self, class: &Classification, trial: bool) -> bool {
        let TxControl::Begin(BeginOptions { read_only, isolation, .. }) = class.tx else { return false };
        let tunables = Arc::clone(&self.deps).tunables.load_full();
        self.prefer(&tunables);
        let reads = match self.hint_for(class.hint) {
            Some(HintNode::Primary) => false,
            Some(HintNode::Standby) => read_only.unwrap_or(true),
            Some(HintNode::Any) | None => read_only.unwrap_or(self.preference.read_only),
        };
        class.statements == 1
            && (reads || trial)
            && isolation != Some(Isolation::Serializable)
            && self.preference.reach == Reach::Split
            && tunables.mode == PoolMode::Transaction
    }

    /// Does this begin a transaction that may write, and may yet begin on a standby?
    pub(super) fn is_trial(&self, class: &Classification) -> bool {
        let TxControl::Begin(BeginOptions { read_only, .. }) = class.tx else { return false };
        let hinted = self.hint_for(class.hint).is_some_and(|node| node != HintNode::Any);
        let optimistic = self.deps.tunables.load().optimistic_transactions && self.optimistic;
        optimistic && !hinted && !read_only.unwrap_or(self.preference.read_only)
    }

    /// BEGIN READ ONLY waits for its first statement, so that this may choose the node.
    pub(super) fn defers(&mut self, class: &Classification) -> bool {
        self.transaction.is_none() && self.pins.is_empty() && self.begins_on_standby(class, self.is_trial(class))
    }
}
