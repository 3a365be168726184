//! Orders that "never two writable primaries" rests on: what the controller does before what.
//!
//! | first | then | or else |
//! |---|---|---|
//! | the machine hears what is remembered, and that the store is shared | anything else | it decides as if it were alone |
//! | writes close | a lease is let go | a session sends a write that nobody may |
//! | the permit is revoked | a lease is let go | answers are believed while another proxy changes the primary |
//! | the permit is revoked | a snapshot without its primary is published | sessions go on with the old one |
//! | the permit follows the lease | anything is asked of the machine again | it outlives the lease |
//! | the permit is revoked | actions are given up, the store is dropped | as with a lease that is let go |
//!
//! The real controller, a scripted decider, and a store that notes how things stand when it is called. Absent on purpose:
//! nodes (none answers), and what is decided.

use super::thread::{Parts, run};
use super::*;
use crate::coordination::StoreError;
use crate::failover::action::NodePlan;
use crate::failover::event::{Command, Record};
use crate::failover::execute::Executor;
use crate::failover::standing::Lease;
use crate::topology::{Health, TopologyReader, fact_channel, topology_channel};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

const EPOCH: Epoch = Epoch(7);
const LIMIT: Duration = Duration::from_secs(20);
/// Changes of primary that are watched from another thread.
const CHANGES: u64 = 3_000;

/// How things stood at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    what: What,
    /// The permit allowed writes of the epoch.
    permitted: bool,
    /// The snapshot said that writes flow.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Claimed(Claim),
    RecordGivenUp,
    StoreDropped,
}

/// Takes notes.
#[derive(Clone)]
struct Notes {
    reader: TopologyReader,
    clock: Clock,
    taken: Arc<Mutex<Vec<Note>>>,
}

impl Notes {
    fn permitted(&self, epoch: Epoch) -> bool {
        self.reader.permit().allows(epoch, || self.clock.now())
    }

    fn take(&self, what: What) {
        let open = self.reader.load().writes == Writes::Open;
        self.taken.lock().push(Note { what, permitted: self.permitted(EPOCH), open });
    }

    fn last(&self) -> Note {
        self.taken.lock().last().cloned().expect("something was noted")
    }
}

/// The store.
struct Noting {
    notes: Notes,
    /// If several proxies share it.
    standing: Option<watch::Receiver<Standing>>,
}

impl Store for Noting {
    fn name(&self) -> &'static str {
        "noting"
    }

    fn recall(&self) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    /// Never done.
    fn record(&self, _: Record) -> BoxFuture<'_, Result<(), StoreError>> {
        struct GivenUp(Notes);
        impl Drop for GivenUp {
            fn drop(&mut self) {
                self.0.take(What::RecordGivenUp);
            }
        }
        let guard = GivenUp(self.notes.clone());
        Box::pin(async move {
            let _guard = guard;
            std::future::pending().await
        })
    }

    fn claim(&self, claim: Claim) {
        self.notes.take(What::Claimed(claim));
    }

    fn standing(&self) -> Option<watch::Receiver<Standing>> {
        self.standing.clone()
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.notes.take(What::StoreDropped);
    }
}

/// The decider: does what it is given with the next command, and notes the kinds of events.
#[derive(Clone, Default)]
struct Script {
    next: Arc<Mutex<VecDeque<Vec<Action>>>>,
    heard: Arc<Mutex<Vec<&'static str>>>,
}

impl Brain for Script {
    fn step(&mut self, event: Event, _: Time) -> Vec<Action> {
        self.heard.lock().push(match event {
            Event::Recalled(_) => "recalled",
            Event::Standing(_) => "standing",
            _ => "other",
        });
        match event {
            Event::Command(Command::Resume) => panic!("as it was told"),
            Event::Command(_) => self.next.lock().pop_front().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn holds(&self) -> Vec<Hold> {
        Vec::new()
    }

    fn outlook(&self) -> Outlook {
        Outlook::default()
    }

    fn summary(&self) -> BrainSummary {
        BrainSummary::default()
    }
}

/// A controller at work.
struct Rig {
    notes: Notes,
    script: Script,
    standing: watch::Sender<Standing>,
    handle: ControlHandle,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Rig {
    fn start(name: &str) -> Self {
        Self::start_with(name, true)
    }

    fn start_with(name: &str, shared: bool) -> Self {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[cluster]\nfailover = \"manual\"\nstate_dir = \"{}\"\n\
             [[node]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[node]]\nname = \"b\"\naddress = \"127.0.0.1:2\"\n\
             [[auth.user]]\nname = \"u\"\npassword = \"p\"\n",
            std::env::temp_dir().join(format!("pgregent-orders-{}-{name}", std::process::id())).display()
        );
        let config = Arc::new(Config::parse(&text, "p.toml").unwrap_or_else(|problems| panic!("{problems}")));
        let names: Vec<_> = config.nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        let (publisher, reader) = topology_channel(Topology::starting(&names));
        let notes = Notes { reader, clock: Clock::machine(), taken: Arc::default() };
        let (standing, standing_rx) = watch::channel(Standing::default());
        let store = Arc::new(Noting { notes: notes.clone(), standing: shared.then_some(standing_rx) });
        let executor = Arc::new(Executor::new(&config, None).unwrap());
        let (script, channel, stop) = (Script::default(), ControlChannel::default(), CancellationToken::new());
        let handle = channel.handle();
        let deps = ControlDeps {
            config,
            clock: notes.clock.clone(),
            publisher,
            facts: fact_channel().1,
            metrics: Arc::new(NoMetrics),
            services: Box::new(|_| Vec::new()),
            channel,
        };
        let parts = Parts { store, executor };
        let running = tokio::spawn(Box::pin(run(deps, script.clone(), parts, handle.clone(), stop.clone())));
        Self { notes, script, standing, handle, stop, running }
    }

    /// Lets the decider answer a command with these.
    async fn act(&self, actions: Vec<Action>) {
        self.script.next.lock().push_back(actions);
        self.handle.send(Command::Pause).await.expect("it is taken");
    }

    /// Says where this proxy stands, and waits until the decider has heard it.
    async fn stand(&self, standing: Standing) {
        let heard = |script: &Script| script.heard.lock().iter().filter(|kind| **kind == "standing").count();
        let before = heard(&self.script);
        self.standing.send_replace(standing);
        until(|| heard(&self.script) > before).await;
        // The permit is moved in the same step; a command is taken after it.
        self.act(Vec::new()).await;
    }

    /// A lease on the first node, and a plan that opens writes to it.
    async fn open(&self) {
        self.stand(leased("a", EPOCH)).await;
        self.act(vec![plan(EPOCH, Some(0), true, 0)]).await;
        assert!(self.notes.permitted(EPOCH));
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("in time");
}

fn leased(primary: &str, epoch: Epoch) -> Standing {
    let lease = Lease { primary: primary.into(), epoch, until: Time::NEVER };
    Standing { lease: Some(lease), ..Standing::default() }
}

/// Writes to the node of this index, or held. `fence` is the first node's.
fn plan(epoch: Epoch, primary: Option<u16>, open: bool, fence: u64) -> Action {
    let node = |index| NodePlan {
        role: if primary == Some(index) { Role::Primary } else { Role::Standby },
        health: Health::Healthy,
        readable: true,
        fence: if index == 0 { fence } else { 0 },
        note: None,
    };
    let writes = if open { Writes::Open } else { Writes::Held { why: "held".into() } };
    Action::Publish(Plan { epoch, primary: primary.map(NodeId), writes, nodes: vec![node(0), node(1)] })
}

#[tokio::test]
async fn the_machine_hears_what_is_remembered_and_that_the_store_is_shared_before_all_else() {
    let rig = Rig::start("first");
    until(|| rig.script.heard.lock().contains(&"other")).await;
    assert_eq!(rig.script.heard.lock()[..2], ["recalled", "standing"]);
}

#[tokio::test]
async fn the_permit_is_revoked_before_a_lease_is_let_go() {
    for claim in [Claim::Nothing, Claim::Change, Claim::Order] {
        let rig = Rig::start("let-go");
        rig.open().await;
        // Held, because it restarts, say: what it still answers counts.
        rig.act(vec![plan(EPOCH, Some(0), false, 0)]).await;
        assert!(rig.notes.permitted(EPOCH));
        rig.act(vec![Action::Claim(claim)]).await;
        assert_eq!(rig.notes.last(), Note { what: What::Claimed(claim), permitted: false, open: false });
        // What the store said before opens nothing.
        rig.stand(Standing { highest: EPOCH, ..leased("a", EPOCH) }).await;
        assert!(!rig.notes.permitted(EPOCH));
    }
}

#[tokio::test]
async fn writes_close_before_a_lease_is_let_go() {
    let rig = Rig::start("closes");
    rig.open().await;
    rig.act(vec![plan(EPOCH, None, false, 0), Action::Claim(Claim::Change)]).await;
    assert_eq!(rig.notes.last(), Note { what: What::Claimed(Claim::Change), permitted: false, open: false });
    rig.act(vec![Action::Claim(Claim::Route)]).await;
    assert_eq!(rig.notes.last(), Note { what: What::Claimed(Claim::Route), permitted: false, open: false });
}

#[tokio::test]
async fn the_permit_follows_the_lease() {
    let rig = Rig::start("follows");
    rig.open().await;
    let soon = |millis| rig.notes.clock.now() + Duration::from_millis(millis);
    let until_soon = |until| {
        let mut standing = leased("a", EPOCH);
        standing.lease.as_mut().unwrap().until = until;
        standing
    };
    rig.stand(until_soon(soon(60_000))).await;
    assert!(rig.notes.permitted(EPOCH));
    for over in [
        until_soon(Time::ZERO),
        Standing::default(),
        leased("b", EPOCH),
        leased("a", Epoch(EPOCH.0 + 1)),
        Standing { ordered: true, ..leased("a", EPOCH) },
    ] {
        rig.stand(over.clone()).await;
        assert!(!rig.notes.permitted(EPOCH), "{over:?}");
        rig.stand(leased("a", EPOCH)).await;
        assert!(rig.notes.permitted(EPOCH), "after {over:?}");
    }
    // It ends by itself, without anybody's word.
    rig.stand(until_soon(soon(300))).await;
    until(|| !rig.notes.permitted(EPOCH)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permit_is_revoked_before_its_primary_is_gone_from_the_snapshot() {
    let rig = Rig::start_with("snapshot", false);
    let (done, notes) = (Arc::new(AtomicBool::new(false)), rig.notes.clone());
    let over = Arc::clone(&done);
    let watching = std::thread::spawn(move || {
        let mut wrong = 0;
        while !over.load(Ordering::Relaxed) {
            let snapshot = notes.reader.snapshot();
            // The permit of the epoch before lasts no longer than the snapshot that it belonged to; nor that of a fenced node.
            let stale = [
                Some(Epoch(snapshot.epoch.0.saturating_sub(1))),
                (snapshot.nodes[0].fence % 2 == 1).then_some(snapshot.epoch),
            ];
            wrong += stale.into_iter().flatten().filter(|epoch| notes.permitted(*epoch)).count();
        }
        wrong
    });
    for change in 0..CHANGES {
        let (epoch, fence) = (Epoch(EPOCH.0 + change), 2 * change);
        rig.act(vec![plan(epoch, Some(0), true, fence)]).await;
        // Once by a fence, once by the next epoch.
        if change % 2 == 0 {
            rig.act(vec![plan(epoch, None, false, fence + 1)]).await;
        }
    }
    done.store(true, Ordering::Relaxed);
    assert_eq!(watching.join().unwrap(), 0, "a permit outlived its primary's place in the snapshot");
}

#[tokio::test]
async fn the_permit_is_revoked_before_anything_else_stops() {
    let rig = Rig::start("stops");
    rig.open().await;
    let record = Record {
        system_id: crate::ids::SystemId(1),
        epoch: EPOCH,
        primary: "a".to_owned(),
        timeline: crate::ids::TimelineId(1),
        promoted: true,
        given_up: Vec::new(),
    };
    rig.act(vec![Action::Record(ActionId(1), record)]).await;
    // The action has begun once another command is answered.
    rig.act(Vec::new()).await;
    assert!(rig.notes.permitted(EPOCH));
    rig.stop.cancel();
    tokio::time::timeout(LIMIT, rig.running).await.expect("in time").unwrap();
    let taken = rig.notes.taken.lock().clone();
    let note = |what| Note { what, permitted: false, open: true };
    assert_eq!(taken, [note(What::RecordGivenUp), note(What::StoreDropped)]);
}

#[tokio::test]
async fn the_permit_is_revoked_by_a_panic() {
    let rig = Rig::start("panics");
    rig.open().await;
    assert!(rig.handle.send(Command::Resume).await.is_err());
    assert!(tokio::time::timeout(LIMIT, rig.running).await.expect("in time").is_err());
    assert!(!rig.notes.permitted(EPOCH));
    assert_eq!(rig.notes.last(), Note { what: What::StoreDropped, permitted: false, open: true });
}
