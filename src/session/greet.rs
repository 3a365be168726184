//! The beginning of a session: what the client is told of the server, and the session made of it.
//!
//! The first client of a (database, user, startup settings) causes one backend to be asked; the
//! answer greets the later ones. Invariants: a client is greeted only when a node has accepted its
//! database, user and settings; at most [`GREETINGS_MAX`] answers are kept. Absent on purpose: login.

use super::effects::Pins;
use super::hidden::fields;
use super::preference::{OURS_HINT, senseless, with_redirect};
use super::prepared::Prepared;
use super::{Defaults, Identity, Preference, Session, SessionDeps, Stage, Tracked, Transaction, Unit, attach};
use crate::backend::{Backend, Parameters, QueryError, READ_COMMITTED, Settings, simple_query};
use crate::client::SessionHandle;
use crate::clock::Time;
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};
use crate::ids::PoolKey;
use crate::net::Stream;
use crate::pool::{Checkout, CheckoutError, Pool, Ticket};
use crate::relay::{Inbox, Outbox};
use crate::route::{Dice, Reach, Wishes};
use crate::sql::Access;
use crate::topology::Role;
use crate::wire::{backend as tags, encode};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Answers kept.
pub const GREETINGS_MAX: usize = 10_000;
/// How long an answer is used.
const GREETING_TTL: Duration = Duration::from_secs(300);
/// How long a node may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Longest time believed for a commit to stay unflushed (`wal_writer_delay` is at most 10 s).
const COMMIT_DELAY_MAX: Duration = Duration::from_secs(30);
/// Asks for what decides how late a commit may reach the disk (PostgreSQL docs, "Asynchronous
/// Commit": at most three times `wal_writer_delay`).
///
/// And for what transactions are by default, which decides where they can run; before ours is made otherwise.
const ASK: &str = "SELECT pg_catalog.current_setting('synchronous_commit'), \
    extract(epoch from pg_catalog.current_setting('wal_writer_delay')::interval) * 1000, \
    pg_catalog.current_setting('default_transaction_read_only'), \
    pg_catalog.current_setting('default_transaction_isolation')";

/// Why a session could not begin.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GreetError {
    /// No node was there in time.
    #[error("no node: {0}")]
    NoNode(Arc<str>),
    /// The pool had no backend.
    #[error(transparent)]
    Checkout(#[from] CheckoutError),
    /// The node refused the settings.
    #[error("the node refused: {message}")]
    Refused {
        /// The body of its ErrorResponse.
        body: Box<[u8]>,
        /// Its message.
        message: String,
    },
    /// The backend was lost while it was asked.
    #[error("the node was lost")]
    Lost,
    /// A setting of the proxy's that means nothing.
    #[error("invalid value for parameter \"{0}\"")]
    BadSetting(Arc<str>),
}

impl From<QueryError> for GreetError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Refused(rejection) => Self::Refused { body: rejection.body, message: rejection.message.into() },
            QueryError::Lost | QueryError::Garbage => Self::Lost,
        }
    }
}

impl Classify for GreetError {
    fn fault(&self) -> Fault {
        match self {
            Self::NoNode(_) => Fault::Topology,
            Self::Checkout(err) => err.fault(),
            Self::Refused { .. } | Self::BadSetting(_) => Fault::Client,
            Self::Lost => Fault::Node,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Checkout(err) => err.retry(),
            Self::Refused { .. } | Self::BadSetting(_) => Retry::Never,
            Self::NoNode(_) | Self::Lost => Retry::Later,
        }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::Checkout(err) => err.client(),
            Self::Refused { body, message } => {
                let code = tags::error(body).map_or(&b"XX000"[..], |view| view.sqlstate);
                ClientError::error(SqlState::known(code), message.clone())
            }
            Self::BadSetting(_) => ClientError::error(SqlState("22023"), self.to_string()).hint(OURS_HINT),
            Self::NoNode(_) | Self::Lost => {
                ClientError::error(SqlState::CANNOT_CONNECT_NOW, "no node accepts connections at the moment")
                    .hint("Try again later; the proxy keeps trying to reach the nodes.")
            }
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::NoNode(_) => "no_node",
            Self::Checkout(err) => err.label(),
            Self::Refused { .. } => "settings_refused",
            Self::Lost => "lost",
            Self::BadSetting(_) => "bad_setting",
        }
    }
}

/// What a client is told.
#[derive(Debug)]
struct Greeting {
    parameters: Arc<Parameters>,
    told: Told,
    learned: Time,
}

/// How transactions are made, as a node told.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// Commits are acknowledged before they are flushed.
    lazy_commits: bool,
    /// How long they may stay so.
    commit_delay: Duration,
    defaults: Defaults,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GreetingKey {
    database: Arc<str>,
    user: Arc<str>,
    settings: Vec<(Arc<str>, Arc<[u8]>)>,
}

/// The answers kept.
#[derive(Debug, Default)]
pub struct Greetings {
    known: Mutex<HashMap<GreetingKey, Arc<Greeting>>>,
}

impl Greetings {
    fn find(&self, key: &GreetingKey, now: Time) -> Option<Arc<Greeting>> {
        let known = self.known.lock();
        known.get(key).filter(|greeting| now.since(greeting.learned) < GREETING_TTL).cloned()
    }

    /// Forgets all answers.
    pub fn clear(&self) {
        self.known.lock().clear();
    }

    fn keep(&self, key: GreetingKey, greeting: &Arc<Greeting>) {
        let mut known = self.known.lock();
        if known.len() >= GREETINGS_MAX {
            known.clear();
        }
        known.insert(key, Arc::clone(greeting));
    }
}

impl Session {
    /// Begins a session for a client that has proved who it is, unless the proxy stops meanwhile.
    ///
    /// # Errors
    /// [`GreetError`] and the stream, on which the client is to be told.
    pub async fn begin(
        deps: Arc<SessionDeps>,
        identity: Identity,
        startup: Settings,
        handle: Arc<SessionHandle>,
        stream: Stream,
        draining: CancellationToken,
    ) -> Result<Self, (GreetError, Stream)> {
        if let Some(name) = senseless(&startup) {
            deps.registry.unregister(&handle);
            return Err((GreetError::BadSetting(name), stream));
        }
        let startup = with_redirect(&deps.tunables.load(), &identity, startup);
        let greeted = tokio::select! {
            greeted = greeting(&deps, &identity, &startup) => greeted,
            () = draining.cancelled() => Err(GreetError::Checkout(CheckoutError::Closing)),
        };
        let greeting = match greeted {
            Ok(greeting) => greeting,
            Err(error) => {
                deps.registry.unregister(&handle);
                return Err((error, stream));
            }
        };
        let mut session = Self::new(deps, identity, startup, handle, stream, &greeting);
        session.greet();
        Ok(session)
    }

    fn new(
        deps: Arc<SessionDeps>,
        identity: Identity,
        startup: Settings,
        handle: Arc<SessionHandle>,
        stream: Stream,
        greeting: &Greeting,
    ) -> Self {
        // Whoever connects after a write was acknowledged to somebody must see it.
        let floor = deps.facts.floor();
        let startup = Arc::new(startup);
        let preference = Preference::new(&deps.tunables.load(), &identity, &startup, greeting.told.defaults);
        Self {
            dice: Dice::new(handle.id.0),
            pools: vec![None; deps.standings.iter().count()].into(),
            catalog: deps.catalogs.slot(&identity.database),
            deps,
            identity,
            handle,
            stream,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            stage: Stage::Detached,
            transaction: Transaction::None,
            sent: VecDeque::new(),
            query_class: None,
            wanted: 0,
            wanted_unit: attach::Wanted { access: Access::Write, closed: false },
            bound: Vec::new(),
            held_confirms: 0,
            memo: None,
            unit: Unit::default(),
            prepared: Prepared::default(),
            tracked: Tracked::new(startup),
            defaults: greeting.told.defaults,
            preference,
            trial: None,
            optimistic: true,
            hint: None,
            patience: None,
            after: super::Aftermath::default(),
            home: None,
            told: Arc::clone(&greeting.parameters),
            pins: Pins::default(),
            strings: super::replies::strings_of(&greeting.parameters),
            lazy_commits: greeting.told.lazy_commits.then_some(greeting.told.commit_delay),
            commit_delay: greeting.told.commit_delay,
            floor,
            wrote: Time::ZERO,
            attempts: 0,
            avoid: None,
            force_primary: false,
            refused: None,
            skip_to_sync: false,
            skip_bytes: 0,
            ending_lost: super::effects::Control::None,
            ending: None,
            queue_deadline: None,
            timer: None,
        }
    }

    fn greet(&mut self) {
        let out = self.outbox.tail();
        for (name, value) in self.told.shared() {
            encode::parameter_status(out, name, value);
        }
        // One server that takes writes is what most clients talk to (PostgreSQL docs, "target_session_attrs").
        let on_standbys = self.preference.reach == Reach::Standby;
        encode::parameter_status(out, "in_hot_standby", if on_standbys { "on" } else { "off" });
        let key = self.handle.key();
        encode::key_data(out, key.pid, &key.secret);
        encode::ready(out, self.transaction.status());
    }
}

async fn greeting(
    deps: &Arc<SessionDeps>,
    identity: &Identity,
    startup: &Settings,
) -> Result<Arc<Greeting>, GreetError> {
    let settings = startup.entries().iter().map(|entry| (Arc::clone(&entry.name), Arc::clone(&entry.sql))).collect();
    let key = GreetingKey { database: Arc::clone(&identity.database), user: Arc::clone(&identity.user), settings };
    if let Some(known) = deps.greetings.find(&key, deps.clock.now()) {
        return Ok(known);
    }
    let mut checkout = any_backend(deps, identity).await?;
    let asked = tokio::time::timeout(ASK_LIMIT, ask(&mut checkout, startup)).await;
    let told = asked.unwrap_or(Err(GreetError::Lost))?;
    let now = deps.clock.now();
    let greeting = Arc::new(Greeting { parameters: Arc::new(checkout.parameters.clone()), told, learned: now });
    checkout.release(now);
    deps.greetings.keep(key, &greeting);
    Ok(greeting)
}

/// A backend of any node that can take a read.
async fn any_backend(deps: &Arc<SessionDeps>, identity: &Identity) -> Result<Checkout, GreetError> {
    let deadline = deps.clock.now() + deps.tunables.load().queue_timeout;
    let mut dice = Dice::new(deps.clock.now().as_nanos());
    let mut reader = deps.topology.clone();
    let mut avoid = None;
    let mut access = Access::Read;
    loop {
        reader.mark_seen();
        let news = reader.clone().news();
        let wishes = Wishes { floor: deps.facts.floor(), avoid, ..Wishes::new(access) };
        let target = match deps.choose(&wishes, deps.clock.now(), &mut dice) {
            Ok(target) => target,
            Err(no) => {
                let patience = tokio::time::timeout_at(deps.clock.instant(deadline), news);
                if patience.await.is_err() {
                    return Err(GreetError::NoNode(no.why()));
                }
                continue;
            }
        };
        let key =
            PoolKey { node: target.node, database: Arc::clone(&identity.database), user: Arc::clone(&identity.user) };
        let pool = deps.pools.pool(&key);
        match queue(deps, &pool, deadline, target.fence).await {
            Err(error) if error.retry() == Retry::OtherNode && deps.clock.now() < deadline => avoid = Some(target.node),
            // A role or database that was made a moment ago may not be there yet.
            Err(CheckoutError::Rejected(_)) if target.role == Role::Standby => access = Access::Write,
            outcome => return Ok(outcome?),
        }
    }
}

/// A place in the queue that is given up when dropped.
struct Queued<'a> {
    deps: &'a SessionDeps,
    pool: &'a Arc<Pool>,
    ticket: Option<Ticket>,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.pool.leave(ticket, self.deps.clock.now());
        }
    }
}

async fn queue(deps: &SessionDeps, pool: &Arc<Pool>, deadline: Time, fence: u64) -> Result<Checkout, CheckoutError> {
    if let Some(checkout) = pool.try_checkout(deps.clock.now(), None) {
        return Ok(checkout);
    }
    let mut queued = Queued { deps, pool, ticket: Some(pool.join(deadline, fence)?) };
    poll_fn(|cx| match queued.ticket {
        Some(ticket) => pool.poll_ticket(ticket, cx, || deps.clock.now()).map(|outcome| {
            queued.ticket = None;
            outcome
        }),
        None => std::task::Poll::Ready(Err(CheckoutError::Closing)),
    })
    .await
}

/// Brings the backend to the settings and asks how transactions are made. On failure the checkout is
/// dropped by the caller's `?`, which discards the backend.
async fn ask(backend: &mut Backend, startup: &Settings) -> Result<Told, GreetError> {
    let change = backend.settings.change_to(startup);
    let mut text = [READ_COMMITTED.as_bytes(), b";", &change].concat();
    if !change.is_empty() {
        text.extend_from_slice(b"\n;");
    }
    text.extend_from_slice(ASK.as_bytes());
    let mut last_row = Vec::new();
    simple_query(backend, &text, |row| last_row = row.to_vec()).await?;
    backend.settings = Arc::new(startup.clone());
    backend.statements.note_unnamed(None);
    let unknown = Defaults { serializable: true, read_only: false };
    Ok(told(&last_row).unwrap_or(Told { lazy_commits: true, commit_delay: COMMIT_DELAY_MAX, defaults: unknown }))
}

/// From the row of [`ASK`].
fn told(row: &[u8]) -> Option<Told> {
    let [synchronous_commit, delay, read_only, isolation] = fields(row)?;
    let lazy_commits = synchronous_commit == b"off";
    let delay: f64 = std::str::from_utf8(delay).ok()?.parse().ok()?;
    let seconds = (delay * 3.0 / 1000.0).clamp(0.0, COMMIT_DELAY_MAX.as_secs_f64());
    let defaults = Defaults { read_only: read_only == b"on", serializable: isolation == b"serializable" };
    Some(Told { lazy_commits, commit_delay: Duration::from_secs_f64(seconds), defaults })
}
