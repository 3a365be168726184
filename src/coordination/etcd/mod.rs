//! The `etcd` store: the register, leases and the right to change the primary are keys in etcd.
//!
//! | file | what |
//! |---|---|
//! | `core` | the rules: which request is due, what answers amount to (pure) |
//! | `view` | the keys and what they show (pure) |
//! | `client`, `rpc` | one connection, its requests and messages |
//! | `inspect` | each endpoint as `pgregent check` sees it |
//! | this one | the task that drives them, and the [`Store`] in front of it |
//!
//! Invariants: one task owns all state and has one request under way, to one endpoint, with a time limit; after a
//! failure the connection is dropped and the next endpoint is asked; when the store is dropped the keys are deleted
//! if etcd answers. Absent on purpose: etcd's lock and election interfaces (holding their locks proves nothing
//! once a lease has lapsed), and any decision by what a watch tells (it only wakes).

mod client;
pub mod core;
pub mod inspect;
mod rpc;
#[cfg(test)]
mod tests;
pub mod view;

use self::client::{Connection, Fault, Shared};
use self::core::{Answer, Etcd, Next, Objection, Request, Rules};
use self::view::{Names, State};
use super::{Store, StoreError};
use crate::clock::{Clock, Time};
use crate::config::{Config, EtcdConfig, Identity as OwnIdentity, QuorumLoss};
use crate::failover::event::Record;
use crate::failover::standing::{Claim, Standing};
use base64::Engine;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustls::pki_types::PrivateKeyDer;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tracing::{info, warn};

/// Calls that may wait for the task; more wait in [`Store::record`] and [`Store::recall`].
const ASKED_MAX: usize = 16;
/// etcd counts in whole seconds, and makes less than this of it on no usual setting.
const TTL_MIN: u64 = 2;

/// Why etcd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// An endpoint or certificate of the configuration cannot be used.
    #[error("etcd endpoint {endpoint} cannot be used: {why}")]
    Setup {
        /// Which endpoint.
        endpoint: String,
        /// Why.
        why: String,
    },
    /// Nobody answers.
    #[error("no etcd endpoint answers ({endpoint}: {why})")]
    Unreachable {
        /// The one asked last.
        endpoint: Arc<str>,
        /// What it said.
        why: String,
    },
    /// The state key is not a record.
    #[error("the etcd key {key} is damaged ({why}); repair it, or delete it if you are sure which node is primary")]
    Damaged {
        /// Its name.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The store. Dropping it lets go of what it holds.
pub struct EtcdStore {
    asked: mpsc::Sender<Asked>,
    claims: watch::Sender<Claim>,
    standing: watch::Receiver<Standing>,
    publisher: watch::Sender<Standing>,
    /// Until it is started.
    task: Mutex<Option<Task>>,
}

/// What calls ask of the task.
#[derive(Debug)]
enum Asked {
    Recall(oneshot::Sender<Result<Option<Record>, StoreError>>),
    Record(Record, oneshot::Sender<Result<(), StoreError>>),
}

impl EtcdStore {
    /// Made without asking anybody; its task (see [`Store::task`]) connects.
    ///
    /// # Errors
    /// When an endpoint or a certificate cannot be used.
    pub fn new(config: &Config, clock: &Clock) -> Result<Self, StoreError> {
        let (cluster, config) = (&config.cluster, &config.etcd);
        // Not after the host or a setting: two processes must never take each other's keys for their own.
        let me = rand::random::<u64>();
        let seconds = cluster.lease_duration.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX);
        let rules = Rules {
            endpoints: config.endpoints.iter().map(|endpoint| endpoint.as_str().into()).collect(),
            ttl: Duration::from_secs(seconds.max(TTL_MIN)),
            keep_primary: cluster.on_quorum_loss == QuorumLoss::KeepPrimary,
        };
        let endpoints = config.endpoints.iter().map(|endpoint| reached(endpoint, config));
        let endpoints: Vec<Endpoint> = endpoints.collect::<Result<_, _>>()?;
        let shared = Shared {
            names: Names::new(&config.prefix, &cluster.name, &format!("{me:016x}")),
            ttl: rules.ttl,
            login: config.user.clone().map(|user| (user, config.password.clone())),
            changed: Arc::new(Notify::new()),
            cluster: AtomicU64::new(0),
        };
        let (asked, asked_rx) = mpsc::channel(ASKED_MAX);
        let (claims, claims_rx) = watch::channel(Claim::Nothing);
        let (standing_tx, standing) = watch::channel(Standing::default());
        let publisher = standing_tx.clone();
        let task = Task {
            clock: clock.clone(),
            // Proxies spread over the endpoints.
            at: usize::try_from(me % endpoints.len().max(1) as u64).unwrap_or(0),
            names: rules.endpoints.clone(),
            limit: rules.request_timeout(),
            rules: Etcd::new(rules),
            endpoints,
            shared: Arc::new(shared),
            connection: None,
            asked: asked_rx,
            claims: claims_rx,
            standing: standing_tx,
            recalls: Vec::new(),
            recalls_read: Vec::new(),
            records: VecDeque::new(),
            stop_at: None,
        };
        Ok(Self { asked, claims, standing, publisher, task: Mutex::new(Some(task)) })
    }

    async fn ask<T>(
        &self,
        wrap: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Asked,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.asked.send(wrap(reply)).await.map_err(|_| StoreError::Stopping)?;
        answer.await.map_err(|_| StoreError::Stopping)?
    }
}

impl Store for EtcdStore {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn recall(&self) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        Box::pin(self.ask(Asked::Recall))
    }

    fn record(&self, record: Record) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(|reply| Asked::Record(record, reply)))
    }

    fn claim(&self, claim: Claim) {
        // The task takes claims before all else, so that nothing older is published after this.
        self.publisher.send_if_modified(|standing| standing.let_go(claim));
        self.claims.send_if_modified(|old| std::mem::replace(old, claim) != claim);
    }

    fn task(&self) -> Option<BoxFuture<'static, ()>> {
        let task = self.task.lock().take()?;
        Some(Box::pin(task.run()))
    }

    fn standing(&self) -> Option<watch::Receiver<Standing>> {
        Some(self.standing.clone())
    }
}

/// How an endpoint is reached.
fn reached(endpoint: &str, config: &EtcdConfig) -> Result<Endpoint, StoreError> {
    let fail = |e: tonic::transport::Error| {
        let why = client::causes(&e);
        StoreError::Etcd(EtcdError::Setup { endpoint: endpoint.to_owned(), why })
    };
    let reached = Endpoint::from_shared(endpoint.to_owned()).map_err(fail)?.tcp_nodelay(true);
    if !endpoint.starts_with("https://") {
        return Ok(reached);
    }
    let mut tls = ClientTlsConfig::new();
    if let Some(authorities) = &config.authorities {
        let roots = authorities.roots.iter().map(|root| Certificate::from_pem(pem("CERTIFICATE", root)));
        tls = tls.ca_certificates(roots);
    }
    if let Some(identity) = &config.identity {
        tls = tls.identity(presented(identity));
    }
    reached.tls_config(tls).map_err(fail)
}

fn presented(identity: &OwnIdentity) -> Identity {
    let chain: String = identity.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
    let label = match &*identity.key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    Identity::from_pem(chain, pem(label, identity.key.secret_der()))
}

/// The form that tonic takes.
fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A request that is done, with the connection if it is still good.
struct Done {
    request: Request,
    sent_at: Time,
    result: Result<(Connection, Answer), Fault>,
}

/// The task.
struct Task {
    rules: Etcd,
    clock: Clock,
    shared: Arc<Shared>,
    names: Vec<Arc<str>>,
    endpoints: Vec<Endpoint>,
    /// Index of the endpoint in use.
    at: usize,
    connection: Option<Connection>,
    /// For one request.
    limit: Duration,
    asked: mpsc::Receiver<Asked>,
    claims: watch::Receiver<Claim>,
    standing: watch::Sender<Standing>,
    /// Recalls that wait for a read to begin.
    recalls: Vec<oneshot::Sender<Result<Option<Record>, StoreError>>>,
    /// Recalls that the read under way will answer.
    recalls_read: Vec<oneshot::Sender<Result<Option<Record>, StoreError>>>,
    /// In the order in which they came; the first is being written.
    records: VecDeque<(Record, oneshot::Sender<Result<(), StoreError>>)>,
    /// Set once the store is dropped.
    stop_at: Option<Time>,
}

impl Task {
    async fn run(mut self) {
        let mut under_way: Option<BoxFuture<'static, Done>> = None;
        loop {
            let mut wake = Time::NEVER;
            if under_way.is_none() {
                (under_way, wake) = self.begin();
            }
            let now = self.publish();
            if self.stop_at.is_some_and(|at| now >= at || !self.rules.is_leaving()) {
                return;
            }
            let wake = self.clock.instant(wake.min(self.rules.deadline(now)).min(self.stop_at.unwrap_or(Time::NEVER)));
            tokio::select! {
                biased;
                Ok(()) = self.claims.changed() => {
                    let claim = *self.claims.borrow_and_update();
                    self.rules.want(claim);
                    if !claim.changes() {
                        // What was decided with the right is not written with a later one.
                        self.records.drain(..).for_each(|(_, reply)| drop(reply.send(Err(StoreError::NotOurs))));
                    }
                }
                done = finished(&mut under_way), if under_way.is_some() => {
                    under_way = None;
                    self.take(done);
                }
                asked = self.asked.recv(), if self.stop_at.is_none() => self.hear(asked),
                () = self.shared.changed.notified() => self.rules.look(),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn publish(&self) -> Time {
        let now = self.clock.now();
        let standing = self.rules.standing(now);
        self.standing.send_if_modified(|old| {
            let differs = *old != standing;
            *old = standing;
            differs
        });
        now
    }

    fn hear(&mut self, asked: Option<Asked>) {
        match asked {
            Some(Asked::Recall(reply)) => {
                self.recalls.push(reply);
                self.rules.look();
            }
            Some(Asked::Record(record, reply)) => self.records.push_back((record, reply)),
            None => {
                self.rules.want(Claim::Nothing);
                self.stop_at = Some(self.clock.now() + self.limit);
            }
        }
    }

    /// Sends the request that is due, or says when one will be.
    fn begin(&mut self) -> (Option<BoxFuture<'static, Done>>, Time) {
        loop {
            // Whoever asked may have given up.
            while self.records.front().is_some_and(|(_, reply)| reply.is_closed()) {
                self.records.pop_front();
            }
            self.rules.want_record(self.records.front().map(|(record, _)| record.clone()));
            let sent_at = self.clock.now();
            match self.rules.next(sent_at) {
                Next::Wait(at) => return (None, at),
                Next::Recorded(outcome) => {
                    if let Some((_, reply)) = self.records.pop_front() {
                        let _ = reply.send(outcome.map_err(|objection| self.refusal(objection)));
                    }
                }
                Next::Ask(request) => {
                    if request == Request::Read {
                        self.recalls_read.append(&mut self.recalls);
                    }
                    return (Some(Box::pin(self.attempt(request, sent_at))), Time::NEVER);
                }
            }
        }
    }

    fn attempt(&mut self, request: Request, sent_at: Time) -> impl Future<Output = Done> + Send + use<> {
        let connection = self.connection.take();
        let (shared, endpoint, limit) = (Arc::clone(&self.shared), self.endpoints[self.at].clone(), self.limit);
        async move {
            let asked = async {
                let connection = match connection {
                    Some(connection) => connection,
                    None => Connection::open(shared, &endpoint).await?,
                };
                let answer = connection.perform(&request).await?;
                Ok((connection, answer))
            };
            let result = tokio::time::timeout(limit, asked).await.unwrap_or(Err(Fault::Silence(limit)));
            Done { request, sent_at, result }
        }
    }

    fn take(&mut self, done: Done) {
        let Done { request, sent_at, result } = done;
        let (endpoint, was_missing) = (Arc::clone(&self.names[self.at]), self.rules.is_missing(self.at));
        let was_read = request == Request::Read;
        let (answer, fault) = match result {
            Ok((connection, answer)) => {
                self.connection = Some(connection);
                (answer, None)
            }
            Err(fault) => (Answer::Failed, Some(fault)),
        };
        self.rules.answered(request, answer, self.at, (sent_at, self.clock.now()));
        match fault {
            None if was_missing => info!(%endpoint, "etcd answers again"),
            None => {}
            Some(fault) => {
                if !was_missing {
                    warn!(%endpoint, cause = %fault, "etcd does not answer");
                }
                self.at = (self.at + 1) % self.endpoints.len();
                self.recalls.append(&mut self.recalls_read);
                if self.rules.failures() >= self.endpoints.len() {
                    self.give_up_recalls(&endpoint, &fault);
                }
                return;
            }
        }
        if was_read {
            for reply in std::mem::take(&mut self.recalls_read) {
                let _ = reply.send(self.recalled());
            }
        }
    }

    fn give_up_recalls(&mut self, endpoint: &Arc<str>, fault: &Fault) {
        for reply in self.recalls.drain(..) {
            let (endpoint, why) = (Arc::clone(endpoint), fault.to_string());
            let _ = reply.send(Err(StoreError::Etcd(EtcdError::Unreachable { endpoint, why })));
        }
    }

    fn recalled(&self) -> Result<Option<Record>, StoreError> {
        match self.rules.state() {
            State::Empty => Ok(None),
            State::Held(record, _) => Ok(Some(record.clone())),
            State::Damaged(why) => Err(self.refusal(Objection::Damaged(why.clone()))),
        }
    }

    fn refusal(&self, objection: Objection) -> StoreError {
        match objection {
            Objection::Backwards(backwards) => StoreError::Backwards(backwards),
            Objection::Damaged(why) => {
                let key = String::from_utf8_lossy(&self.shared.names.state()).into_owned();
                StoreError::Etcd(EtcdError::Damaged { key, why })
            }
        }
    }
}

async fn finished(under_way: &mut Option<BoxFuture<'static, Done>>) -> Done {
    match under_way {
        Some(done) => done.await,
        None => std::future::pending().await,
    }
}
