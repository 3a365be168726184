//! The `voters` store on real PostgreSQL servers: what every store must do and survive.
//!
//! Invariants: each test has nodes and a witness of its own; each proxy reaches them through links of its own. The
//! standby that is named primary is not promoted: to the store its word is enough. Absent on purpose: what is only
//! this store's (unit tests, the simulation), and whole proxies (`pairs`).

use crate::link::Link;
use crate::proxy::Proxy;
use pgregent::clock::Clock;
use pgregent::config::Config;
use pgregent::coordination::conformance::{self, Fault, Ground, Handle, Site};
use pgregent::coordination::voters::{VotersStore, lock_sessions};
use pgregent::demo::cluster::{AuthSource, Cluster, ClusterOptions, MONITOR_USER, Node, ProxyOptions};
use pgregent::failover::conninfo::ConnInfo;
use pgregent::failover::event::Record;
use pgregent::failover::execute::Executor;
use pgregent::ids::{Epoch, SystemId, TimelineId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Long enough for two servers to be killed and to start again within a lease.
const SPAN: Duration = Duration::from_secs(3);

struct Servers {
    cluster: Cluster,
    witness: Option<Cluster>,
    clock: Clock,
    proxies: AtomicU64,
}

impl Servers {
    fn start(standbys: usize, witness: bool) -> Self {
        let start = |standbys| Cluster::start(ClusterOptions { standbys, ..ClusterOptions::default() }).unwrap();
        let cluster = start(standbys);
        let witness = witness.then(|| {
            let witness = start(0);
            let password = &cluster.passwords().monitor;
            let same = format!("ALTER ROLE {MONITOR_USER} PASSWORD '{password}'");
            witness.nodes()[0].psql(&same).unwrap();
            witness.nodes()[0].psql(&format!("GRANT CREATE ON SCHEMA public TO {MONITOR_USER}")).unwrap();
            witness
        });
        Self { cluster, witness, clock: Clock::machine(), proxies: AtomicU64::new(0) }
    }

    fn voters(&self) -> impl Iterator<Item = &Node> {
        self.cluster.nodes().iter().chain(self.witness.iter().flat_map(Cluster::nodes))
    }

    /// The usual configuration, with links for addresses; standbys stream without them.
    fn config(&self, number: u64) -> (Config, Vec<Link>) {
        let state_dir = self.cluster.dir().join(format!("state{number}"));
        std::fs::create_dir_all(&state_dir).unwrap();
        let extra = vec![("cluster", format!("lease_duration = \"{}s\"", SPAN.as_secs()))];
        let options = ProxyOptions { port: 1, admin_port: 2, state_dir, auth: AuthSource::Users, extra };
        let text = self.cluster.proxy_config(&options);
        let mut text = text.replace("coordination = \"single\"", "coordination = \"voters\"");
        let links: Vec<Link> = self.voters().map(|node| Link::to(node.port())).collect();
        for (node, link) in self.cluster.nodes().iter().zip(&links) {
            let (own, near) = (format!("\"127.0.0.1:{}\"", node.port()), format!("\"127.0.0.1:{}\"", link.port));
            let both = format!("address = {near}\nreplication_address = {own}");
            text = text.replace(&format!("address = {own}"), &both);
        }
        if let (Some(_), Some(link)) = (&self.witness, links.last()) {
            text.push_str(&format!("\n[[witness]]\nname = \"w\"\naddress = \"127.0.0.1:{}\"\n", link.port));
        }
        (Config::parse(&text, "p.toml").unwrap_or_else(|problems| panic!("{problems}\n{text}")), links)
    }
}

impl Site for Servers {
    fn open(&self) -> Box<dyn Handle> {
        let number = self.proxies.fetch_add(1, Ordering::Relaxed);
        let (config, links) = self.config(number);
        let clock = self.clock.clone();
        Box::new(Proxy::open(links, move || {
            let locks = lock_sessions(&config);
            let executor = Executor::new(&config, Some(Arc::clone(&locks))).unwrap();
            VotersStore::new(&config, &clock, locks, Arc::new(executor), number)
        }))
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn span(&self) -> Duration {
        SPAN
    }

    fn slowness(&self) -> Duration {
        SPAN / 3
    }

    fn ground(&self) -> Ground {
        let system = self.cluster.nodes()[0].psql("SELECT system_identifier FROM pg_control_system()").unwrap();
        let first = Record {
            system_id: SystemId(system.parse().unwrap()),
            epoch: Epoch(2),
            primary: "pg1".to_owned(),
            timeline: TimelineId(1),
            promoted: true,
            given_up: Vec::new(),
        };
        Ground { empty: false, whole: false, first, other: "pg2".to_owned() }
    }

    fn members(&self) -> usize {
        self.voters().count()
    }

    fn fault(&self, member: usize, fault: Fault) {
        let node = self.voters().nth(member).unwrap();
        let done = match fault {
            Fault::Freeze => node.freeze(),
            Fault::Thaw => node.thaw(),
            Fault::Kill => node.kill9_all(),
            Fault::Restart => node.start(),
        };
        done.unwrap();
    }
}

#[tokio::test]
async fn three_nodes_do_what_every_shared_store_must() {
    conformance::check_shared(&Servers::start(2, false)).await.unwrap();
}

#[tokio::test]
async fn two_nodes_and_a_witness_do_what_every_shared_store_must() {
    let servers = Servers::start(1, true);
    conformance::check_shared(&servers).await.unwrap();
    // What a proxy reads that starts while the newest primary is down.
    let written = ConnInfo::parse(&servers.cluster.nodes()[1].psql("SHOW primary_conninfo").unwrap()).unwrap();
    let (epoch, timeline) = (written.epoch(), written.least_timeline());
    assert!(timeline >= TimelineId(1) && epoch > Epoch(2), "{written}");
    let row = servers.witness.as_ref().unwrap().nodes()[0].psql("SELECT epoch, timeline FROM pgregent_register");
    assert_eq!(row.unwrap(), format!("{epoch}|{timeline}"));
}
