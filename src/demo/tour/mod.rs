//! The story told unattended: load, the primary dies, a standby takes over, the old primary comes back.
//!
//! Invariants: what is claimed at the end was measured at clients or asked of the nodes themselves; the
//! proxy's own word is used for its epoch only. Absent on purpose: repairing anything but the killed node.

mod load;
mod report;

use super::cluster::{APP_DATABASE, APP_USER, Cluster, Node, Rejoined};
use super::status;
use crate::clock::{Clock, Time};
use anyhow::Context as _;
use load::Load;
use report::{Claim, Findings, ReadsByNode, seconds};
use std::sync::Arc;
use std::time::Duration;

const BEFORE_KILL: Duration = Duration::from_secs(5);
const AFTER_RESUMING: Duration = Duration::from_secs(3);
/// Backends tell their statistics about once a second.
const STATISTICS_DELAY: Duration = Duration::from_millis(1500);
const PROMOTION_LIMIT: Duration = Duration::from_secs(30);
const STREAM_LIMIT: Duration = Duration::from_secs(10);
const RESUME_LIMIT: Duration = Duration::from_secs(30);
const REJOIN_LIMIT: Duration = Duration::from_secs(60);
const READS_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// What the tour is played on.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The nodes. The first has to be the primary.
    pub cluster: Arc<Cluster>,
    /// Where the proxy serves clients.
    pub port: u16,
    /// Where it serves HTTP; `None`: its epoch is not checked.
    pub admin_port: Option<u16>,
    /// Whether commits wait for a standby, so that nothing acknowledged may be lost.
    pub synchronous: bool,
}

/// Plays, prints what happens, and says whether every claim held.
///
/// # Errors
/// When the story cannot even be told: no connection at the start, a node that cannot be asked.
pub async fn play(stage: Stage) -> anyhow::Result<bool> {
    let claims = measure(stage).await?;
    let failed = claims.iter().filter(|claim| !claim.holds).count();
    Ok(failed == 0)
}

/// Plays and gives the texts of the claims that failed.
///
/// # Errors
/// As [`play`].
pub async fn failed_claims(stage: Stage) -> anyhow::Result<Vec<String>> {
    let claims = measure(stage).await?;
    Ok(claims.into_iter().filter(|claim| !claim.holds).map(|claim| claim.text).collect())
}

async fn measure(stage: Stage) -> anyhow::Result<Vec<Claim>> {
    let clock = Clock::machine();
    let story = Story { started: clock.now(), clock, stage };
    let findings = Box::pin(story.tell()).await?;
    println!("\nSummary");
    for line in findings.summary() {
        println!("  {line}");
    }
    println!("\nClaims");
    let claims = findings.claims();
    for claim in &claims {
        println!("  {}  {}", if claim.holds { "PASS" } else { "FAIL" }, claim.text);
    }
    let failed = claims.iter().filter(|claim| !claim.holds).count();
    println!("\n{}", if failed == 0 { "All claims hold.".to_owned() } else { format!("{failed} claims FAILED.") });
    Ok(claims)
}

struct Story {
    stage: Stage,
    clock: Clock,
    started: Time,
}

impl Story {
    fn say(&self, text: &str) {
        println!("{:8.3} s  {text}", self.clock.now().since(self.started).as_secs_f64());
    }

    async fn tell(&self) -> anyhow::Result<Findings> {
        println!("\nThe tour, through the proxy on port {}", self.stage.port);
        let killed_node = self.stage.cluster.nodes()[0].name().to_owned();
        self.create_table().await?;
        // A session sees what it wrote itself; others may read a standby that does not know the table yet.
        self.on_cluster(|cluster| cluster.wait_streaming(STREAM_LIMIT)).await?;
        self.say("a client connected through the proxy and created a table; the standbys have it");
        let epoch_before = self.epoch().await;
        let reads_start = self.reads().await;
        let load = Load::start(&self.config(), &self.clock);
        self.say("writers insert unique ids and read them back; readers read");
        tokio::time::sleep(BEFORE_KILL + STATISTICS_DELAY).await;
        let reads_before = grown(&reads_start, &self.reads().await);
        self.say(&format!("{} writes acknowledged, {} reads answered", load.acknowledged(), load.reads()));

        let killed_at = self.kill(&killed_node).await?;
        let promoted = self.wait_promoted(&killed_node).await;
        self.wait_resumed(&load, promoted.is_some()).await;
        tokio::time::sleep(AFTER_RESUMING).await;

        let rejoined = match &promoted {
            Some((primary, _)) => self.rejoin(&killed_node, primary).await,
            None => None,
        };
        let reads_after = match &promoted {
            Some((primary, _)) if rejoined.is_some() => self.wait_reads(primary).await,
            _ => ReadsByNode::new(),
        };
        let clients = load.stop().await;
        self.say("the load stopped; counting");
        let (primaries, ids) = self.count(promoted.as_ref().map(|(name, _)| name.clone())).await?;
        let epochs = epoch_before.zip(self.epoch().await);
        let synchronous = self.stage.synchronous;
        Ok(Findings {
            clients,
            synchronous,
            killed_node,
            killed_at,
            promoted,
            rejoined,
            reads_before,
            reads_after,
            primaries,
            ids,
            epochs,
        })
    }

    fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.stage.port).user(APP_USER).dbname(APP_DATABASE);
        config.password(&self.stage.cluster.passwords().app).application_name("tour");
        config.connect_timeout(Duration::from_secs(10));
        config
    }

    async fn create_table(&self) -> anyhow::Result<()> {
        let (client, connection) =
            self.config().connect(tokio_postgres::NoTls).await.context("connect through the proxy")?;
        let driver = tokio::spawn(connection);
        client.batch_execute(load::TABLE).await.context("create a table through the proxy")?;
        drop(client);
        driver.await?.context("say goodbye to the proxy")?;
        Ok(())
    }

    /// Runs something that blocks on nodes.
    async fn on_cluster<T: Send + 'static>(&self, work: impl FnOnce(&Cluster) -> T + Send + 'static) -> T {
        let cluster = Arc::clone(&self.stage.cluster);
        let joined = tokio::task::spawn_blocking(move || work(&cluster)).await;
        joined.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
    }

    async fn epoch(&self) -> Option<u64> {
        let admin_port = self.stage.admin_port?;
        self.on_cluster(move |_| status::cluster(admin_port)).await?.epoch
    }

    /// Scans of the tour's table by node since it started, as the node itself counts them.
    async fn reads(&self) -> ReadsByNode {
        let scans = "SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint \
                     FROM pg_stat_user_tables WHERE relname = 'tour'";
        let count = move |node: &Node| {
            let scans = node.psql_in(APP_DATABASE, scans).ok()?.parse().ok()?;
            Some((node.name().to_owned(), scans))
        };
        self.on_cluster(move |cluster| cluster.nodes().iter().filter_map(count).collect()).await
    }

    async fn kill(&self, name: &str) -> anyhow::Result<Time> {
        let (name, clock) = (name.to_owned(), self.clock.clone());
        let (told, at) = self
            .on_cluster(move |cluster| {
                let node = cluster.node(&name).context("the node to kill is known")?;
                let pid = node.pid().context("the node to kill runs")?;
                let at = clock.now();
                node.kill9()?;
                anyhow::Ok((format!("kill -9 {pid}: the postmaster of {name} is dead"), at))
            })
            .await?;
        self.say(&told);
        Ok(at)
    }

    /// Waits until one of the other nodes is out of recovery.
    async fn wait_promoted(&self, killed: &str) -> Option<(String, Time)> {
        let deadline = self.clock.now() + PROMOTION_LIMIT;
        let killed = killed.to_owned();
        while self.clock.now() < deadline {
            let killed = killed.clone();
            let seen = self.on_cluster(move |cluster| {
                let primaries = cluster.primaries();
                primaries.iter().map(|node| node.name().to_owned()).find(|name| *name != killed)
            });
            if let Some(name) = seen.await {
                let at = self.clock.now();
                self.say(&format!("{name} is out of recovery: it was promoted"));
                return Some((name, at));
            }
            tokio::time::sleep(POLL).await;
        }
        self.say("no standby was promoted");
        None
    }

    async fn wait_resumed(&self, load: &Load, promoted: bool) {
        let (before, deadline) = (load.acknowledged(), self.clock.now() + RESUME_LIMIT);
        while promoted && self.clock.now() < deadline {
            if load.acknowledged() > before {
                return self.say("writes are acknowledged again");
            }
            tokio::time::sleep(POLL).await;
        }
        self.say("writes did not resume");
    }

    async fn rejoin(&self, killed: &str, primary: &str) -> Option<(bool, Duration)> {
        self.say(&format!("rewinding {killed} and letting it follow {primary}"));
        let (killed, primary, clock) = (killed.to_owned(), primary.to_owned(), self.clock.clone());
        let done = self
            .on_cluster(move |cluster| {
                let node = cluster.node(&killed).context("the killed node is known")?;
                let source = cluster.node(&primary).context("the new primary is known")?;
                let started = clock.now();
                let how = node.rejoin(source)?;
                cluster.wait_streaming(REJOIN_LIMIT)?;
                anyhow::Ok((how, clock.now().since(started)))
            })
            .await;
        match done {
            Ok((how, took)) => {
                self.say(&format!("it was {how}; all standbys stream, after {}", seconds(took)));
                Some((how == Rejoined::Rewound, took))
            }
            Err(error) => {
                self.say(&format!("it could not rejoin: {error:#}"));
                None
            }
        }
    }

    /// Waits until every node but the primary has served reads from now on.
    async fn wait_reads(&self, primary: &str) -> ReadsByNode {
        let start = self.reads().await;
        let deadline = self.clock.now() + READS_LIMIT;
        loop {
            tokio::time::sleep(STATISTICS_DELAY).await;
            let served = grown(&start, &self.reads().await);
            let all = served.iter().all(|(name, count)| name == primary || *count > 0);
            if all || self.clock.now() > deadline {
                self.say(if all { "the proxy uses both standbys for reads" } else { "a standby serves no reads" });
                return served;
            }
        }
    }

    /// Asks the nodes themselves who is primary, and the primary for every id.
    async fn count(&self, primary: Option<String>) -> anyhow::Result<(Vec<String>, Vec<u64>)> {
        self.on_cluster(move |cluster| {
            let primaries = cluster.primaries();
            let names = primaries.iter().map(|node| node.name().to_owned()).collect();
            let named = primary.and_then(|name| cluster.node(&name));
            let Some(node) = named.or(primaries.first().copied()) else { return Ok((names, Vec::new())) };
            let text = node.psql_in(APP_DATABASE, "SELECT id FROM tour ORDER BY id")?;
            let ids: Result<_, _> = text.lines().map(str::parse).collect();
            Ok((names, ids?))
        })
        .await
    }
}

fn grown(before: &ReadsByNode, after: &ReadsByNode) -> ReadsByNode {
    let growth = |(name, count): (&String, &u64)| {
        (name.clone(), count.saturating_sub(before.get(name).copied().unwrap_or_default()))
    };
    after.iter().map(growth).collect()
}
