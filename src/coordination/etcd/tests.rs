//! The rules of the `etcd` store against answers written by hand.

use super::core::{Answer, Etcd, Next, Objection, Request, Rules};
use super::view::{Change, Holder, Route, State, View};
use crate::clock::Time;
use crate::coordination::conformance::sample;
use crate::failover::standing::{Claim, Lack};
use crate::ids::Epoch;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(2);

/// The rules, a time, and what etcd holds.
struct Rig {
    etcd: Etcd,
    now: Time,
    view: View,
}

impl Rig {
    fn new(keep_primary: bool) -> Self {
        let endpoints = vec!["one".into(), "two".into(), "three".into()];
        let etcd = Etcd::new(Rules { endpoints, ttl: TTL, keep_primary });
        let state = State::Held(sample(3, "a", 1), 40);
        Self { etcd, now: Time::ZERO + Duration::from_secs(100), view: View { state, ..View::default() } }
    }

    fn wait(&mut self, span: Duration) {
        self.now = self.now + span;
    }

    fn asked(&mut self) -> Request {
        match self.etcd.next(self.now) {
            Next::Ask(request) => request,
            other => panic!("{other:?}"),
        }
    }

    /// Takes the answer to a request that was sent just now and took a hundredth of the time to live.
    fn answer(&mut self, request: Request, answer: Answer) {
        let sent_at = self.now;
        self.wait(TTL / 100);
        self.etcd.answered(request, answer, 0, (sent_at, self.now));
    }

    /// The next request is this, and answered so.
    #[track_caller]
    fn step(&mut self, wanted: Request, answer: Answer) {
        let request = self.asked();
        assert_eq!(request, wanted);
        self.answer(request, answer);
    }

    fn read(&mut self) {
        self.step(Request::Read, Answer::Read(self.view.clone()));
    }

    /// What etcd holds once this proxy has a route, or the right, with this etcd lease.
    fn holds(&mut self, lease: i64, changes: bool) {
        match changes {
            false => self.view.route = Some(Route { lease, state: 40 }),
            true => self.view.change = Some(Change { lease, created: 50 }),
        }
        self.view.live = vec![lease];
        self.view.holders = vec![holder(lease, changes)];
    }

    /// A route is had, with etcd lease 7; read at the time returned.
    fn routed(&mut self) -> Time {
        self.etcd.want(Claim::Route);
        self.step(Request::Grant { changes: false }, Answer::Granted { lease: 7 });
        self.read();
        self.step(Request::Route(Route { lease: 7, state: 40 }), Answer::Done(41));
        assert_eq!(self.until(), None, "not before it is read");
        self.holds(7, false);
        let read_at = self.now;
        self.read();
        read_at
    }

    fn until(&self) -> Option<Time> {
        let standing = self.etcd.standing(self.now);
        standing.lease.map(|lease| lease.until).or(standing.right.map(|right| right.until))
    }

    fn lack(&self) -> Option<Lack> {
        self.etcd.standing(self.now).lack
    }
}

fn holder(lease: i64, changes: bool) -> Holder {
    Holder { name: vec![b'h', u8::try_from(lease).unwrap()], lease, ttl: TTL, changes }
}

#[test]
fn a_lease_counts_from_before_the_read_was_sent() {
    let mut rig = Rig::new(false);
    let asked_at = rig.routed();
    let lease = rig.etcd.standing(rig.now).lease.unwrap();
    assert_eq!((&*lease.primary, lease.epoch), ("a", Epoch(3)));
    assert_eq!(lease.until, asked_at + TTL * 19 / 20);
    rig.now = lease.until;
    assert_eq!(rig.until(), None);
    assert_eq!(rig.etcd.deadline(asked_at + TTL / 2), lease.until);
}

#[test]
fn only_a_read_prolongs_a_lease() {
    let mut rig = Rig::new(false);
    rig.routed();
    let before = rig.until();
    rig.wait(TTL / 4);
    rig.step(Request::Renew { lease: 7 }, Answer::Renewed);
    assert_eq!(rig.until(), before, "etcd's word that it keeps the key is none that others have not seen it gone");
    let sent_at = rig.now;
    rig.read();
    assert_eq!(rig.until(), Some(sent_at + TTL * 19 / 20));
}

#[test]
fn a_key_that_was_seen_gone_is_never_made_again_with_the_same_etcd_lease() {
    for holder_too in [false, true] {
        let mut rig = Rig::new(false);
        rig.routed();
        (rig.view.route, rig.view.live) = (None, vec![]);
        if holder_too {
            rig.view.holders.clear();
        }
        rig.etcd.look();
        rig.read();
        assert_eq!(rig.until(), None);
        rig.step(Request::Release { lease: 7 }, Answer::Done(60));
        rig.step(Request::Grant { changes: false }, Answer::Granted { lease: 8 });
    }
}

#[test]
fn a_holder_that_fell_silent_is_feared_for_as_long_as_it_may_believe_and_then_forgotten() {
    for (theirs, ours, feared) in [(false, true, true), (true, true, true), (true, false, true), (false, false, false)]
    {
        let mut rig = Rig::new(false);
        rig.etcd.want(if ours { Claim::Change } else { Claim::Route });
        rig.step(Request::Grant { changes: ours }, Answer::Granted { lease: 7 });
        rig.read();
        rig.asked();
        rig.holds(7, ours);
        rig.view.holders.push(Holder { ttl: TTL * 2, ..holder(9, theirs) });
        rig.etcd.look();
        rig.read();
        let seen_at = rig.now;
        assert_eq!(rig.until().is_none(), feared, "theirs {theirs}, ours {ours}");
        assert_eq!(rig.lack() == Some(Lack::Taken), feared);
        // Its own word counts, if it is longer than ours.
        while rig.now < seen_at + TTL * 2 {
            assert_eq!(rig.until().is_none(), feared, "theirs {theirs}, ours {ours}");
            assert!(rig.etcd.deadline(rig.now) <= seen_at + TTL * 2);
            match rig.etcd.next(rig.now) {
                Next::Ask(Request::Read) => {
                    let view = rig.view.clone();
                    rig.answer(Request::Read, Answer::Read(view));
                }
                Next::Ask(request @ Request::Renew { .. }) => rig.answer(request, Answer::Renewed),
                Next::Wait(at) => rig.now = at,
                other => panic!("{other:?}"),
            }
        }
        assert!(rig.until().is_some());
        let mut forgotten = false;
        for _ in 0..3 {
            match rig.asked() {
                Request::Read => {
                    let view = rig.view.clone();
                    rig.answer(Request::Read, Answer::Read(view));
                }
                Request::Renew { lease } => rig.answer(Request::Renew { lease }, Answer::Renewed),
                Request::Forget { holder: name } => {
                    assert_eq!(name, holder(9, theirs).name);
                    forgotten = true;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(forgotten);
    }
}

#[test]
fn a_lease_is_gone_with_its_key_with_a_change_and_with_another_state() {
    let spoilt: [fn(&mut View); 5] = [
        |view| view.holders.clear(),
        |view| view.route = Some(Route { lease: 8, state: 40 }),
        |view| view.change = Some(Change { lease: 9, created: 50 }),
        |view| view.state = State::Held(sample(4, "b", 1), 50),
        |view| view.state = State::Damaged("it".to_owned()),
    ];
    for spoil in spoilt {
        let mut rig = Rig::new(false);
        rig.routed();
        assert!(rig.until().is_some());
        spoil(&mut rig.view);
        rig.etcd.look();
        rig.read();
        assert_eq!(rig.until(), None, "{:?}", rig.view);
    }
}

#[test]
fn a_state_that_somebody_else_wrote_takes_a_new_etcd_lease() {
    let mut rig = Rig::new(false);
    rig.routed();
    rig.view.state = State::Held(sample(4, "b", 1), 50);
    rig.etcd.look();
    rig.read();
    rig.step(Request::Release { lease: 7 }, Answer::Done(51));
    rig.step(Request::Grant { changes: false }, Answer::Granted { lease: 8 });
    rig.view.holders.clear();
    rig.read();
    rig.step(Request::Route(Route { lease: 8, state: 50 }), Answer::Done(52));
    rig.holds(8, false);
    rig.view.route = Some(Route { lease: 8, state: 50 });
    rig.read();
    assert_eq!(&*rig.etcd.standing(rig.now).lease.unwrap().primary, "b");
}

#[test]
fn an_etcd_set_back_to_an_older_state_is_not_believed() {
    let mut rig = Rig::new(false);
    rig.routed();
    rig.view.state = State::Held(sample(2, "z", 1), 40);
    rig.etcd.look();
    rig.read();
    let standing = rig.etcd.standing(rig.now);
    assert_eq!((standing.lease, standing.highest), (None, Epoch(3)));
    assert_eq!(standing.chosen.as_deref(), Some("a"));
}

#[test]
fn a_lease_let_go_is_revoked_and_never_used_again() {
    let mut rig = Rig::new(false);
    rig.routed();
    rig.etcd.want(Claim::Nothing);
    assert_eq!(rig.until(), None);
    rig.etcd.want(Claim::Route);
    assert_eq!(rig.until(), None);
    // The answer is lost: it may be done later, so the keys of lease 7 prove nothing.
    rig.step(Request::Release { lease: 7 }, Answer::Failed);
    assert!(rig.etcd.is_leaving());
    rig.step(Request::Release { lease: 7 }, Answer::Gone);
    rig.step(Request::Grant { changes: false }, Answer::Granted { lease: 8 });
    rig.read();
    assert_eq!(rig.until(), None, "the route key is still that of lease 7");
    rig.step(Request::Route(Route { lease: 8, state: 40 }), Answer::Done(60));
    rig.holds(8, false);
    rig.read();
    assert!(rig.until().is_some());
}

#[test]
fn a_lease_whose_renewals_are_not_answered_for_a_time_to_live_is_let_go() {
    let mut rig = Rig::new(false);
    rig.routed();
    let asked_at = rig.now;
    while rig.now < asked_at + TTL {
        match rig.etcd.next(rig.now) {
            // It may have arrived: etcd may keep the lease for as long as we ask.
            Next::Ask(request @ (Request::Renew { lease: 7 } | Request::Read)) => rig.answer(request, Answer::Failed),
            Next::Wait(at) => rig.now = at,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.asked(), Request::Release { lease: 7 });
}

#[test]
fn a_grant_that_nobody_wants_any_more_is_revoked() {
    let mut rig = Rig::new(false);
    rig.etcd.want(Claim::Route);
    let request = rig.asked();
    rig.etcd.want(Claim::Change);
    rig.answer(request, Answer::Granted { lease: 7 });
    rig.step(Request::Release { lease: 7 }, Answer::Done(50));
    rig.step(Request::Grant { changes: true }, Answer::Granted { lease: 8 });
}

#[test]
fn the_right_is_not_asked_for_while_another_proxy_has_a_route_or_the_right() {
    let mut rig = Rig::new(false);
    rig.etcd.want(Claim::Change);
    rig.view.others = true;
    rig.step(Request::Grant { changes: true }, Answer::Granted { lease: 7 });
    rig.read();
    assert!(matches!(rig.etcd.next(rig.now), Next::Wait(_)));
    assert_eq!(rig.lack(), Some(Lack::Taken));
    rig.view.others = false;
    rig.view.change = Some(Change { lease: 6, created: 30 });
    rig.etcd.look();
    rig.read();
    assert!(matches!(rig.etcd.next(rig.now), Next::Wait(_)));
    assert_eq!((rig.until(), rig.lack()), (None, Some(Lack::Taken)));
    rig.view.change = None;
    rig.etcd.look();
    rig.read();
    // Somebody was faster.
    rig.step(Request::Change { lease: 7 }, Answer::Refused);
    rig.read();
    rig.step(Request::Change { lease: 7 }, Answer::Done(50));
    rig.holds(7, true);
    rig.read();
    assert!(rig.until().is_some() && rig.lack().is_none());
    assert_eq!(rig.etcd.standing(rig.now).right.unwrap().held, None);
}

#[test]
fn an_order_is_shown_to_others_before_the_right_is_had() {
    let mut rig = Rig::new(false);
    rig.etcd.want(Claim::Order);
    rig.view.others = true;
    rig.step(Request::Grant { changes: true }, Answer::Granted { lease: 7 });
    rig.read();
    rig.step(Request::Order { lease: 7 }, Answer::Done(50));
    rig.view.order = Some(7);
    rig.read();
    assert!(!rig.etcd.standing(rig.now).ordered);
    let mut other = Rig::new(false);
    other.view.order = Some(9);
    other.routed();
    assert!(other.etcd.standing(other.now).ordered);
}

#[test]
fn a_record_compares_our_key_and_the_state_and_is_done_when_it_is_there() {
    let mut rig = Rig::new(false);
    rig.etcd.want(Claim::Change);
    rig.etcd.want_record(Some(sample(4, "b", 1)));
    rig.step(Request::Grant { changes: true }, Answer::Granted { lease: 7 });
    rig.read();
    rig.step(Request::Change { lease: 7 }, Answer::Done(50));
    rig.holds(7, true);
    rig.read();
    let write = Request::Record { record: sample(4, "b", 1), state: 40, change: 50 };
    // The answer is lost; what it did is read.
    rig.step(write, Answer::Failed);
    rig.view.state = State::Held(sample(4, "b", 1), 51);
    rig.read();
    assert_eq!(rig.etcd.next(rig.now), Next::Recorded(Ok(())));
    rig.etcd.want_record(Some(sample(4, "c", 1)));
    assert!(matches!(rig.etcd.next(rig.now), Next::Recorded(Err(Objection::Backwards(_)))));
    rig.etcd.want_record(Some(sample(5, "c", 1)));
    rig.wait(TTL);
    assert!(!matches!(rig.etcd.next(rig.now), Next::Ask(Request::Record { .. })), "the right has run out");
}

#[test]
fn after_a_failure_the_next_is_asked_at_once_and_after_all_have_failed_there_is_a_pause() {
    let mut rig = Rig::new(false);
    for endpoint in 0..3 {
        let request = rig.asked();
        rig.etcd.answered(request, Answer::Failed, endpoint, (rig.now, rig.now));
    }
    assert!(matches!(rig.etcd.next(rig.now), Next::Wait(at) if at > rig.now));
    rig.etcd.want(Claim::Route);
    let Some(Lack::Voters { missing, needed }) = rig.lack() else { panic!("{:?}", rig.lack()) };
    assert_eq!((missing.len(), needed), (3, 2));
}

#[test]
fn the_lease_goes_on_without_etcd_only_where_that_was_chosen() {
    for keep in [false, true] {
        let mut rig = Rig::new(keep);
        rig.routed();
        rig.wait(TTL * 2);
        // Every endpoint must have been asked in vain: this process may have been stopped.
        for endpoint in 0..3 {
            assert_eq!(rig.etcd.standing(rig.now).lease, None);
            let request = rig.asked();
            rig.etcd.answered(request, Answer::Failed, endpoint, (rig.now, rig.now));
        }
        let standing = rig.etcd.standing(rig.now);
        assert_eq!((standing.lease.is_some(), standing.kept), (keep, keep));
        rig.wait(TTL);
        // Once it answers, and another proxy has changed the primary, that counts.
        rig.view = View { state: State::Held(sample(4, "b", 1), 60), ..View::default() };
        rig.step(Request::Release { lease: 7 }, Answer::Gone);
        rig.step(Request::Grant { changes: false }, Answer::Granted { lease: 8 });
        rig.read();
        let standing = rig.etcd.standing(rig.now);
        assert_eq!((standing.lease, standing.kept), (None, false));
    }
}

#[test]
fn an_empty_register_gives_no_lease_and_says_so() {
    let mut rig = Rig::new(false);
    rig.view.state = State::Empty;
    rig.etcd.want(Claim::Route);
    assert_eq!(rig.lack(), Some(Lack::Pending));
    rig.step(Request::Grant { changes: false }, Answer::Granted { lease: 7 });
    rig.read();
    assert!(matches!(rig.etcd.next(rig.now), Next::Wait(_)));
    assert_eq!(rig.lack(), Some(Lack::Split));
}
