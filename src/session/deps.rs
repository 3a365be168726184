//! What every session shares.
//!
//! Invariant: nothing here is locked per message. Absent on purpose: state of one session.

use super::{Greetings, HazardTable};
use crate::backend::{Statement, StatementTable};
use crate::catalog::{CatalogSlot, CatalogTable};
use crate::client::CancelRegistry;
use crate::clock::{Clock, Time};
use crate::config::{Config, Consistency, Pinning, PoolMode, RedirectConfig};
use crate::decision::Decisions;
use crate::metrics::Metrics;
use crate::pool::PoolSet;
use crate::route::{
    Balancing, Dice, Earning, LearnedWrites, NoRoute, RetryBudget, Standings, Target, Wishes, choose,
    classifier_settings,
};
use crate::sql::{Classification, Classifier, Settings as ClassifierSettings, StringSyntax};
use crate::topology::{FactSender, Role, TopologyReader};
use arc_swap::ArcSwap;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Handles and limits that all sessions use.
pub struct SessionDeps {
    /// Backends.
    pub pools: PoolSet,
    /// Who is who.
    pub topology: TopologyReader,
    /// Where facts go.
    pub facts: FactSender,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Clock,
    /// Prepared statements of all sessions.
    pub statements: StatementTable,
    /// Cancel keys and handles.
    pub registry: Arc<CancelRegistry>,
    /// What functions and views of databases do.
    pub catalogs: Arc<CatalogTable>,
    /// Functions that change sessions, by database.
    pub hazards: HazardTable,
    /// Where statements went last.
    pub decisions: Arc<Decisions>,
    /// What clients are greeted with.
    pub greetings: Greetings,
    /// What can be reloaded.
    pub tunables: ArcSwap<Tunables>,
    /// How each node does.
    pub standings: Arc<Standings>,
    /// Grows whenever a statement may have changed what names and types mean.
    pub schema_epoch: AtomicU64,
    /// Grows whenever a statement may have changed what functions and triggers do.
    pub code_epoch: AtomicU64,
    /// What standbys have refused.
    pub learned: Arc<LearnedWrites>,
    /// Reads that may run again.
    pub retries: RetryBudget,
    /// Seed of the classification cache's keys.
    pub classifier_seed: u64,
}

impl std::fmt::Debug for SessionDeps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionDeps").finish_non_exhaustive()
    }
}

/// Settings that a reload replaces.
pub struct Tunables {
    /// Grows with each reload.
    pub generation: u64,
    /// `[pool] mode`
    pub mode: PoolMode,
    /// `[pool] pinning`
    pub pinning: Pinning,
    /// `[pool] queue_timeout`
    pub queue_timeout: Duration,
    /// `[pool] transaction_idle_timeout`
    pub transaction_idle_timeout: Option<Duration>,
    /// `[server] client_idle_timeout`
    pub client_idle_timeout: Option<Duration>,
    /// `[server] client_write_timeout`
    pub client_write_timeout: Duration,
    /// `[server] message_bytes_max`
    pub message_bytes_max: usize,
    /// `[route] read_write_split`
    pub split: bool,
    /// `[route] consistency`
    pub consistency: Consistency,
    /// `[route] optimistic_transactions`
    pub optimistic_transactions: bool,
    /// `[route] shadow`
    pub shadow: bool,
    /// `[log] slow_statement`
    pub slow_statement: Option<Duration>,
    /// `[log] failed_statements`
    pub failed_statements: bool,
    /// `[route] fresh_wait`
    pub fresh_wait: Duration,
    /// `[[route.redirect]]`
    pub redirects: Vec<RedirectConfig>,
    /// Names of the nodes, by place.
    pub node_names: Vec<Arc<str>>,
    /// How standbys share reads.
    pub balancing: Balancing,
    /// `[route] learned_ttl`
    pub learned_ttl: Duration,
    /// `[route] retry_budget_percent`
    pub retry_budget_percent: u64,
    /// `[route] classify_bytes_max` and the function lists.
    pub classifier: ClassifierSettings,
}

impl Tunables {
    /// From a checked configuration.
    #[must_use]
    pub fn new(config: &Config, generation: u64) -> Self {
        Self {
            generation,
            mode: config.pool.mode,
            pinning: config.pool.pinning,
            queue_timeout: config.pool.queue_timeout,
            transaction_idle_timeout: config.pool.transaction_idle_timeout,
            client_idle_timeout: config.server.client_idle_timeout,
            client_write_timeout: config.server.client_write_timeout,
            message_bytes_max: config.server.message_bytes_max,
            split: config.route.read_write_split,
            consistency: config.route.consistency,
            optimistic_transactions: config.route.optimistic_transactions,
            shadow: config.route.shadow,
            slow_statement: config.log.slow_statement,
            failed_statements: config.log.failed_statements,
            fresh_wait: config.route.fresh_wait,
            redirects: config.route.redirects.clone(),
            node_names: config.nodes.iter().map(|node| Arc::clone(&node.name)).collect(),
            balancing: Balancing::from_config(config),
            learned_ttl: config.route.learned_ttl,
            retry_budget_percent: config.route.retry_budget_percent,
            classifier: classifier_settings(&config.route),
        }
    }
}

/// A thread's classifier, and the numbers of the settings and of the lessons that it goes by.
struct Local {
    generation: u64,
    lessons: u64,
    classifier: Classifier,
}

thread_local! {
    /// One classifier per worker thread: its cache is hot there and needs no lock.
    static CLASSIFIER: RefCell<Option<Local>> = const { RefCell::new(None) };
}

impl SessionDeps {
    /// With nothing remembered and nobody registered.
    #[must_use]
    pub fn new(
        config: &Config,
        pools: PoolSet,
        standings: Arc<Standings>,
        topology: TopologyReader,
        facts: FactSender,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let learned = Arc::new(LearnedWrites::new(metrics.route.learned.clone()));
        Self {
            pools,
            topology,
            facts,
            metrics,
            clock,
            statements: StatementTable::default(),
            registry: Arc::new(CancelRegistry::default()),
            decisions: Arc::default(),
            greetings: Greetings::default(),
            tunables: ArcSwap::from_pointee(Tunables::new(config, 0)),
            standings,
            catalogs: Arc::default(),
            hazards: HazardTable::default(),
            schema_epoch: AtomicU64::new(1),
            code_epoch: AtomicU64::new(1),
            learned,
            retries: RetryBudget::default(),
            classifier_seed: rand::random(),
        }
    }

    /// Notes that names and types may mean something else from now on; `code`: functions and triggers as well.
    pub fn schema_changed(&self, code: bool) {
        self.schema_epoch.fetch_add(1, Ordering::AcqRel);
        if code {
            self.code_epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The number of changes to functions and triggers so far.
    #[must_use]
    pub fn code(&self) -> u64 {
        self.code_epoch.load(Ordering::Acquire)
    }

    /// The number of changes so far.
    #[must_use]
    pub fn schema(&self) -> u64 {
        self.schema_epoch.load(Ordering::Acquire)
    }

    /// Chooses a node; the primary only under a live permit of its epoch.
    ///
    /// # Errors
    /// When no node may take it.
    pub fn choose(&self, wishes: &Wishes, now: Time, dice: &mut Dice) -> Result<Target, NoRoute> {
        let tunables = self.tunables.load();
        let vitals = |node| self.standings.of(node).vitals(now, tunables.balancing.slow_start);
        let topology = self.topology.load();
        let wishes = Wishes { permitted: self.topology.permit().allows(topology.epoch, || now), ..*wishes };
        choose(&wishes, &topology, &tunables.balancing, vitals, dice)
    }

    /// May this node be sent statements now, and may what was read from it by now be believed? A standby always: it
    /// acknowledges nothing. The clock is read only where the permit has a deadline.
    #[must_use]
    pub fn permits(&self, target: &Target) -> bool {
        target.role != Role::Primary || self.topology.permit().allows(target.epoch, || self.clock.now())
    }

    /// May a read run again for this reason? Counts what comes of it.
    pub(super) fn may_rerun(&self, reason: &'static str) -> bool {
        let route = &self.metrics.route;
        let earning = Earning {
            now: self.clock.now(),
            requests: route.decisions(),
            percent: self.tunables.load().retry_budget_percent,
            in_flight: self.standings.in_flight(),
        };
        let granted = self.retries.take(&earning);
        if granted {
            route.reruns.inc(reason)
        } else {
            route.reruns_refused.inc(reason)
        }
        granted
    }

    fn with_classifier<T>(&self, work: impl FnOnce(&mut Classifier) -> T) -> T {
        CLASSIFIER.with_borrow_mut(|slot| {
            let tunables = self.tunables.load();
            let local = match slot {
                Some(local) if local.generation == tunables.generation => local,
                stale => {
                    if let Some(stale) = &stale {
                        self.metrics.route.classify_cache_changed(stale.classifier.counts().size(), (0, 0));
                    }
                    stale.insert(Local {
                        generation: tunables.generation,
                        lessons: 0,
                        classifier: Classifier::new(self.classifier_seed, &tunables.classifier),
                    })
                }
            };
            let lessons = self.learned.number();
            if local.lessons != lessons {
                local.lessons = lessons;
                let before = local.classifier.counts().size();
                local.classifier.go_by(self.learned.shapes());
                self.metrics.route.classify_cache_changed(before, local.classifier.counts().size());
            }
            work(&mut local.classifier)
        })
    }

    /// What a statement text may do in the database of this catalog.
    #[must_use]
    pub fn classify(&self, catalog: &CatalogSlot, text: &[u8], strings: StringSyntax) -> Arc<Classification> {
        self.with_classifier(|classifier| {
            let before = classifier.counts();
            let class = classifier.classify_by(&**catalog.load(), text, strings);
            let (after, route) = (classifier.counts(), &self.metrics.route);
            if after.misses == before.misses {
                route.classify_hits.inc();
            } else {
                route.classify_misses.inc();
                route.classify_cache_changed(before.size(), after.size());
            }
            if class.hint_ignored {
                route.hints_ignored.inc();
            }
            class
        })
    }

    /// For questions of our own, which are no statements of clients.
    fn look_up<T>(&self, work: impl FnOnce(&mut Classifier) -> T) -> T {
        self.with_classifier(|classifier| {
            let before = classifier.counts().size();
            let found = work(classifier);
            self.metrics.route.classify_cache_changed(before, classifier.counts().size());
            found
        })
    }

    /// Remembers that statements of this shape are refused by standbys for this reason.
    pub(super) fn learn_write(&self, text: &[u8], reason: &'static str) {
        let shape: Option<Box<[u8]>> = self.look_up(|classifier| classifier.shape_of_read(text).map(Box::from));
        if let Some(shape) = shape {
            let ttl = self.tunables.load().learned_ttl;
            self.learned.learn(&shape, reason, self.clock.now(), ttl);
        }
    }

    /// Do standbys refuse this prepared statement?
    pub(super) fn has_learned(&self, statement: &Statement) -> bool {
        let ask = |text: &[u8]| self.look_up(|classifier| classifier.has_learned(text));
        statement.is_learned(self.learned.number(), ask)
    }
}
