//! The rules, case by case; the simulation tries them together.

use super::*;

const SPAN: Duration = Duration::from_secs(2);

/// One proxy's rules with voters a, b, c, whose answers are written by hand.
struct Hand {
    rules: Voters,
    now: Time,
    asked: Vec<Option<(u64, Lock)>>,
}

fn view(allegiance: &str, epoch: u64) -> View {
    View {
        allegiance: (!allegiance.is_empty()).then(|| allegiance.into()),
        epoch: Epoch(epoch),
        timeline: TimelineId(1),
        least_timeline: TimelineId(0),
        left: None,
        system_id: Some(SystemId(7)),
        follows: allegiance != "self",
        pending: false,
        incarnation: 1,
        ordered: false,
    }
}

impl Hand {
    fn new(keep_primary: bool) -> Self {
        let voters = ["a", "b", "c"].map(Into::into).to_vec();
        let rules = Voters::new(Rules { voters, span: SPAN, keep_primary, seed: 1 });
        let mut hand = Self { rules, now: Time::ZERO + Duration::from_secs(10), asked: vec![None; 3] };
        for voter in 0..3 {
            hand.step(Input::Opened { voter, session: 1 });
            hand.answer(voter, Lock::None, view("a", 5));
        }
        hand
    }

    fn step(&mut self, input: Input) {
        for output in self.rules.step(input, self.now) {
            if let Output::Ask { voter, session, lock, .. } = output {
                assert_eq!(self.asked[voter], None, "one question at a time");
                self.asked[voter] = Some((session, lock));
            }
        }
    }

    /// Answers the open question; it was sent when it was asked and took no time.
    fn answer(&mut self, voter: usize, lock: Lock, view: View) {
        let (session, _) = self.asked[voter].take().expect("a question is open");
        self.step(Input::Answered { voter, session, sent_at: self.now, lock, view });
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.step(Input::Tick);
    }

    /// Claims, and lets all three voters grant it.
    fn granted(&mut self, claim: Claim, lock: Lock) {
        self.step(Input::Claim(claim));
        for voter in 0..3 {
            self.answer(voter, lock, view("a", 5));
        }
    }

    fn standing(&self) -> Standing {
        self.rules.standing(self.now)
    }
}

#[test]
fn a_lease_is_counted_from_when_most_renewals_were_sent() {
    let mut hand = Hand::new(false);
    assert_eq!(hand.standing().register.unwrap().primary, "a");
    assert_eq!(hand.standing().lease, None, "nothing was claimed");
    let began = hand.now;
    hand.granted(Claim::Route, Lock::Shared);
    let lease = hand.standing().lease.unwrap();
    assert_eq!((&*lease.primary, lease.epoch), ("a", Epoch(5)));
    assert_eq!(lease.until, began + SPAN - SPAN / 20);
    // One voter renews: still the second newest counts.
    hand.pass(600);
    hand.answer(0, Lock::Shared, view("a", 5));
    assert_eq!(hand.standing().lease.unwrap().until, lease.until);
    hand.answer(1, Lock::Shared, view("a", 5));
    assert_eq!(hand.standing().lease.unwrap().until, hand.now + SPAN - SPAN / 20);
    // Nobody answers any more.
    hand.pass(1901);
    assert_eq!(hand.standing().lease, None);
    hand.pass(100);
    assert!(matches!(hand.standing().lack, Some(Lack::Voters { .. })), "{:?}", hand.standing().lack);
}

#[test]
fn a_standby_that_lacks_the_epoch_of_the_lease_is_named() {
    let mut hand = Hand::new(false);
    hand.granted(Claim::Route, Lock::Shared);
    assert_eq!(hand.standing().unmarked, Vec::<Arc<str>>::new());
    hand.pass(600);
    hand.answer(0, Lock::Shared, View { follows: false, epoch: Epoch(4), ..view("a", 5) });
    hand.answer(1, Lock::Shared, view("a", 5));
    // Rebuilt by hand: it follows the primary and knows nothing of epochs.
    hand.answer(2, Lock::Shared, view("a", 1));
    assert_eq!(hand.standing().unmarked, [Arc::from("c")]);
    hand.step(Input::Claim(Claim::Nothing));
    assert_eq!(hand.standing().unmarked, Vec::<Arc<str>>::new(), "whoever has no lease marks nobody");
}

#[test]
fn a_lost_session_takes_its_vote_away_at_once() {
    let mut hand = Hand::new(false);
    hand.granted(Claim::Route, Lock::Shared);
    hand.step(Input::Closed { voter: 0, session: 1 });
    assert!(hand.standing().lease.is_some());
    hand.step(Input::Closed { voter: 1, session: 1 });
    assert_eq!(hand.standing().lease, None);
}

#[test]
fn letting_go_ends_the_lease_before_any_voter_hears_of_it() {
    let mut hand = Hand::new(false);
    hand.granted(Claim::Route, Lock::Shared);
    hand.step(Input::Claim(Claim::Nothing));
    assert_eq!(hand.standing().lease, None);
    // Claimed again while the unlocks are under way: the old grants do not count.
    hand.step(Input::Claim(Claim::Route));
    assert_eq!(hand.standing().lease, None);
    for voter in 0..3 {
        hand.answer(voter, Lock::None, view("a", 5));
        hand.answer(voter, Lock::Shared, view("a", 5));
    }
    assert!(hand.standing().lease.is_some());
}

#[test]
fn voters_that_turned_away_do_not_count() {
    let mut hand = Hand::new(false);
    hand.granted(Claim::Route, Lock::Shared);
    hand.pass(500);
    for (voter, follows) in [(0, "a"), (1, ""), (2, "b")] {
        hand.answer(voter, Lock::Shared, view(follows, 5));
    }
    let standing = hand.standing();
    assert_eq!((standing.register, standing.lease, standing.lack), (None, None, Some(Lack::Split)));
}

#[test]
fn the_right_needs_a_majority_of_settled_voters() {
    let mut hand = Hand::new(false);
    hand.granted(Claim::Change, Lock::Exclusive);
    assert_eq!(hand.standing().right, None, "the incarnations were seen a moment ago: one may have forgotten a lock");
    for _ in 0..4 {
        hand.pass(525);
        for voter in 0..3 {
            hand.answer(voter, Lock::Exclusive, view("a", 5));
        }
    }
    let right = hand.standing().right.unwrap();
    assert_eq!(right.held.unwrap().len(), 3);
    // Two restart: their locks are theirs to forget.
    hand.pass(525);
    for voter in [0, 1] {
        hand.answer(voter, Lock::Exclusive, View { incarnation: 2, ..view("a", 5) });
    }
    assert!(hand.standing().right.is_some(), "held for a span by now");
    for voter in [0, 1] {
        hand.step(Input::Closed { voter, session: 1 });
        hand.step(Input::Opened { voter, session: 2 });
        hand.answer(voter, Lock::Exclusive, View { incarnation: 3, ..view("a", 5) });
    }
    assert_eq!(hand.standing().right, None);
}

#[test]
fn who_gets_some_locks_only_lets_go_of_them() {
    let mut hand = Hand::new(false);
    hand.step(Input::Claim(Claim::Change));
    hand.answer(0, Lock::Exclusive, view("a", 5));
    hand.answer(1, Lock::None, view("a", 5));
    hand.answer(2, Lock::None, view("a", 5));
    assert_eq!(hand.asked[0], Some((1, Lock::None)), "the one that was had is let go");
    assert_eq!(hand.standing().lack, Some(Lack::Taken));
    hand.answer(0, Lock::None, view("a", 5));
    hand.pass(500);
    assert!(hand.asked.iter().all(|asked| *asked == Some((1, Lock::Exclusive))), "{:?}", hand.asked);
}

#[test]
fn a_quorum_that_is_lost_may_be_survived_on_request() {
    for keep in [false, true] {
        let mut hand = Hand::new(keep);
        hand.granted(Claim::Route, Lock::Shared);
        for voter in [1, 2] {
            hand.step(Input::Closed { voter, session: 1 });
        }
        // Those who are not heard must have been tried again in vain.
        assert_eq!(hand.standing().lease, None);
        for _ in 0..5 {
            hand.pass(100);
        }
        let standing = hand.standing();
        assert_eq!((standing.lease.is_some(), standing.kept), (keep, keep));
        // Somebody who answers follows another one: no.
        hand.step(Input::Opened { voter: 1, session: 2 });
        hand.answer(1, Lock::Shared, view("b", 6));
        hand.step(Input::Closed { voter: 0, session: 1 });
        assert_eq!(hand.standing().lease, None);
    }
}

#[test]
fn who_was_stopped_for_a_while_asks_before_it_goes_on_without_a_quorum() {
    let mut hand = Hand::new(true);
    hand.granted(Claim::Route, Lock::Shared);
    hand.pass(600);
    // Nobody has answered for ten seconds, because nobody was asked.
    hand.pass(10_000);
    assert_eq!(hand.standing().lease, None);
    for _ in 0..4 {
        hand.pass(100);
        assert_eq!(hand.standing().lease, None);
    }
    hand.pass(100);
    assert!(hand.standing().kept);
    // The same where some of them were silent already when it was stopped.
    let mut hand = Hand::new(true);
    hand.granted(Claim::Route, Lock::Shared);
    for _ in 0..4 {
        hand.pass(400);
    }
    hand.pass(10_000);
    assert_eq!(hand.standing().lease, None);
    // Meanwhile they would have said this.
    let mut hand = Hand::new(true);
    hand.granted(Claim::Route, Lock::Shared);
    hand.pass(600);
    hand.pass(10_000);
    for voter in [0, 1] {
        hand.step(Input::Closed { voter, session: 1 });
        hand.asked[voter] = None;
        hand.step(Input::Opened { voter, session: 2 });
        hand.answer(voter, Lock::Shared, view("b", 6));
    }
    let standing = hand.standing();
    assert_eq!((standing.lease.map(|lease| lease.primary), standing.kept), (Some("b".into()), false));
}

#[test]
fn what_is_written_beside_the_epoch_is_known_while_its_primary_is_down() {
    let mut hand = Hand::new(false);
    hand.pass(600);
    // A detached standby leads nowhere; whom it followed, and on which timeline, it still says.
    let detached = View { left: Some("b".into()), least_timeline: TimelineId(3), ..view("", 6) };
    hand.answer(0, Lock::None, detached);
    let standing = hand.standing();
    assert_eq!((standing.highest, standing.chosen.as_deref()), (Epoch(6), Some("b")));
    assert_eq!((standing.timeline, standing.least_timeline), (TimelineId(1), TimelineId(3)));
    assert_eq!(standing.register.map(|r| (r.primary, r.epoch)), Some(("a".to_owned(), Epoch(5))));
    // What was known of an older epoch says nothing of a newer one.
    hand.answer(1, Lock::None, view("c", 7));
    let standing = hand.standing();
    assert_eq!((standing.chosen.as_deref(), standing.least_timeline), (Some("c"), TimelineId(0)));
}

#[test]
fn a_record_says_whether_its_primary_is_out_of_recovery() {
    let mut hand = Hand::new(false);
    let promoted = |hand: &Hand| hand.standing().register.map(|register| register.promoted);
    assert_eq!(promoted(&hand), Some(false));
    hand.pass(600);
    hand.answer(0, Lock::None, View { follows: false, ..view("a", 5) });
    assert_eq!(promoted(&hand), Some(true));
}

#[test]
fn an_order_and_a_chosen_standby_are_seen() {
    let mut hand = Hand::new(false);
    hand.pass(600);
    hand.answer(0, Lock::None, View { ordered: true, ..view("a", 5) });
    hand.answer(1, Lock::None, View { pending: true, ..view("b", 6) });
    let standing = hand.standing();
    assert!(standing.ordered);
    assert_eq!(standing.pending.as_deref(), Some("b"));
    assert_eq!((standing.highest, standing.chosen.as_deref()), (Epoch(6), Some("b")));
}
