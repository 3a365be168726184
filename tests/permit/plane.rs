//! A data plane without a control plane: the test publishes the topology and moves the permit. Absent on purpose:
//! logins; whoever connects is the test's usual role.

use super::support::cluster::{self, APP_PASSWORD, APP_USER, REPLICATION_PASSWORD};
use super::support::message::PROTOCOL_3_0;
use super::support::rawclient::RawClient;
use pgregent::auth::{NodeCredential, NodePassword};
use pgregent::backend::{Settings, Target};
use pgregent::client::{ClientIdentity, ClientKind, Replication, SessionHandle};
use pgregent::clock::{Clock, Time};
use pgregent::config::{Config, Secret};
use pgregent::ids::{Epoch, NodeId};
use pgregent::metrics::Metrics;
use pgregent::net::{NodeTls, Stream};
use pgregent::pool::{PoolDeps, PoolNode, PoolSet};
use pgregent::route::{Reason, Standings};
use pgregent::session::{Identity, Passthrough, ReplicationWish, Session, SessionDeps};
use pgregent::topology::{Health, Role, Topology, TopologyPublisher, Writes, fact_channel, topology_channel};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The epoch of the shared cluster's primary.
pub const EPOCH: Epoch = Epoch(7);

/// Sessions in front of the shared cluster.
pub struct Plane {
    deps: Arc<SessionDeps>,
    publisher: TopologyPublisher,
    names: Vec<Arc<str>>,
    /// For sessions, and for replication connections.
    ports: [u16; 2],
    _runtime: Runtime,
}

const REPLICATOR: &str = "replicator";

fn topology(names: &[Arc<str>], epoch: Epoch) -> Topology {
    let mut topology = Topology::starting(names);
    (topology.epoch, topology.primary, topology.writes) = (epoch, Some(NodeId(0)), Writes::Open);
    for node in &mut topology.nodes {
        node.role = if node.id == NodeId(0) { Role::Primary } else { Role::Standby };
        (node.health, node.accepts_reads) = (Health::Healthy, true);
        node.fresh_as_of = if node.id == NodeId(0) { Time::NEVER } else { Time::ZERO };
    }
    topology
}

impl Plane {
    /// In front of the primary alone, with these settings.
    pub fn of_primary(settings: &str) -> Self {
        Self::start(&cluster::shared().ports[..1], settings)
    }

    /// In front of all nodes.
    pub fn of_all(settings: &str) -> Self {
        Self::start(&cluster::shared().ports, settings)
    }

    fn start(ports: &[u16], settings: &str) -> Self {
        let mut text = format!("cluster.failover = \"manual\"\n{settings}\n");
        for (index, port) in ports.iter().enumerate() {
            let _ = write!(text, "[[node]]\nname = \"pg{}\"\naddress = \"127.0.0.1:{port}\"\n", index + 1);
        }
        let _ = write!(text, "[[auth.user]]\nname = \"{APP_USER}\"\npassword = \"{APP_PASSWORD}\"\n");
        let config = Config::parse(&text, "test.toml").expect("a valid configuration");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let names: Vec<Arc<str>> = config.nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        let reasons: Vec<&'static str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        let (clock, metrics) = (Clock::machine(), Metrics::new(&names, &reasons));
        let (publisher, reader) = topology_channel(Topology::starting(&names));
        publisher.publish(topology(&names, EPOCH));
        let (facts, receiver) = fact_channel();
        drop(receiver);
        let standings = Arc::new(Standings::new(names.len()));
        let node = |(node, port): (&pgregent::config::NodeConfig, &u16)| PoolNode {
            name: Arc::clone(&node.name),
            target: Target { host: "127.0.0.1".into(), port: *port, tls: NodeTls::new(&node.tls) },
            budget: node.budget,
        };
        let pools = PoolSet::start(PoolDeps {
            standings: Arc::clone(&standings),
            nodes: config.nodes.iter().zip(ports).map(node).collect(),
            config: config.pool.clone(),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            facts: facts.clone(),
            topology: reader.clone(),
        });
        for (user, password) in [(APP_USER, APP_PASSWORD), (REPLICATOR, REPLICATION_PASSWORD)] {
            let password = NodePassword::new(Secret::new(password));
            pools.set_credential(&user.into(), NodeCredential::Password(password));
        }
        let deps = Arc::new(SessionDeps::new(&config, pools, standings, reader, facts, metrics, clock));
        let ports = [ClientKind::Session, ClientKind::Replication(Replication::Physical)].map(|kind| {
            let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
            let port = listener.local_addr().unwrap().port();
            runtime.spawn(serve(listener, Arc::clone(&deps), kind));
            port
        });
        drop(inside);
        let plane = Self { deps, publisher, names, ports, _runtime: runtime };
        plane.renew();
        plane
    }

    /// A client whose session has begun.
    pub fn client(&self) -> RawClient {
        let mut client = RawClient::tcp(self.ports[0]);
        client.read_until(b'Z').expect("the node is there");
        client
    }

    /// A client whose replication connection has begun.
    pub fn replication(&self) -> RawClient {
        let mut client = RawClient::tcp(self.ports[1]);
        client.read_until(b'Z').expect("the node is there");
        client
    }

    /// The next epoch: the same node, for which this proxy has no permit yet.
    pub fn publish_next(&self) {
        self.publisher.publish(topology(&self.names, EPOCH.next()));
    }

    /// The permit of the next epoch is good for a minute.
    pub fn renew_next(&self) {
        self.publisher.permit().extend(EPOCH.next(), self.deps.clock.now() + Duration::from_secs(60));
    }

    /// The permit is over, as if nothing had been heard for long.
    pub fn lapse(&self) {
        self.publisher.permit().extend(EPOCH, self.deps.clock.now() - Duration::from_nanos(1));
    }

    /// The permit is good for another minute.
    pub fn renew(&self) {
        self.publisher.permit().extend(EPOCH, self.deps.clock.now() + Duration::from_secs(60));
    }

    /// Backends that were closed for this reason.
    pub fn discarded(&self, reason: &str) -> u64 {
        let text = self.deps.metrics.render();
        let fits = |line: &&str| {
            line.starts_with("pgregent_backend_discards_total") && line.contains(&format!("reason=\"{reason}\""))
        };
        text.lines().filter(fits).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

async fn serve(listener: TcpListener, deps: Arc<SessionDeps>, kind: ClientKind) {
    while let Ok((tcp, peer)) = listener.accept().await {
        let deps = Arc::clone(&deps);
        tokio::spawn(async move {
            let stream = Stream::tcp(tcp, peer).unwrap();
            let user = if kind == ClientKind::Session { APP_USER } else { REPLICATOR };
            let identity = Identity { user: user.into(), database: APP_USER.into(), port: None };
            let known = ClientIdentity {
                user: Arc::clone(&identity.user),
                database: Arc::clone(&identity.database),
                peer: stream.peer(),
                kind,
                application_name: "".into(),
                tls: None,
                since: deps.clock.now(),
            };
            let handle = deps.registry.register(PROTOCOL_3_0, known);
            if kind == ClientKind::Session {
                hold(deps, identity, handle, stream).await
            } else {
                pass(deps, identity, handle, stream).await
            }
        });
    }
}

async fn hold(deps: Arc<SessionDeps>, identity: Identity, handle: Arc<SessionHandle>, stream: Stream) {
    let token = CancellationToken::new();
    let session = Session::begin(deps, identity, Settings::default(), handle, stream, token).await;
    Box::new(session.map_err(|(error, _)| error).expect("the node is there")).run().await;
}

async fn pass(deps: Arc<SessionDeps>, identity: Identity, handle: Arc<SessionHandle>, stream: Stream) {
    let wish = ReplicationWish { identity, mode: Replication::Physical, parameters: Vec::new() };
    let begun = Passthrough::begin(deps, wish, handle, stream, CancellationToken::new()).await;
    Box::new(begun.map_err(|(error, _)| error).expect("the node is there")).run().await;
}
