//! `failover = "follow"`: whose word makes another node the primary.
//!
//! Where the Patroni beside a node answers, its word decides; otherwise the node must say so [`CLAIMS_MIN`] times in a
//! row. Either way the node itself must be out of recovery. Invariants: outside follow mode nothing here changes
//! anything; what Patroni said counts for [`WORD_SPAN`], so that every wait for it ends. Absent on purpose: asking
//! (`monitor::patroni`).

use super::Machine;
use crate::clock::Time;
use crate::config::FailoverMode;
use crate::failover::action::Level;
use crate::failover::hold::Hold;
use crate::failover::node_state::Word;
use crate::failover::policy::{CLAIMS_MIN, WORD_SPAN};
use crate::failover::state::State;
use crate::ids::NodeId;
use crate::topology::PatroniWord;

impl Machine {
    /// What Patroni said of the node, if that still counts.
    fn word(&self, id: NodeId) -> Option<Word> {
        let follows = self.policy.mode == FailoverMode::Follow;
        self.node(id).word.filter(|word| follows && self.now.since(word.at) < WORD_SPAN)
    }

    /// Whether Patroni denied what the node claims, knowing of it.
    pub(super) fn denied(&self, id: NodeId) -> bool {
        let since = self.node(id).claims_since;
        self.word(id).is_some_and(|word| word.what == PatroniWord::Member && word.asked_at >= since)
    }

    /// Why a node that claims to be primary is not followed yet.
    pub(super) fn doubt(&self, id: NodeId) -> Option<Hold> {
        let node = || self.name(id).clone();
        match self.word(id).map(|word| word.what) {
            _ if self.policy.mode != FailoverMode::Follow => None,
            Some(PatroniWord::Primary) => None,
            Some(PatroniWord::Member) => Some(Hold::PatroniDisagrees { node: node() }),
            Some(PatroniWord::Unknown(_)) | None => {
                (self.node(id).claims < CLAIMS_MIN).then(|| Hold::SeenOnce { node: node() })
            }
        }
    }

    /// Whether the node is not followed yet; tells once when Patroni denies its claim, and asks again what was said once.
    pub(super) fn doubted(&mut self, id: NodeId) -> bool {
        let Some(hold) = self.doubt(id) else { return false };
        if matches!(hold, Hold::SeenOnce { .. }) {
            self.want_probe(id);
        }
        if self.denied(id) && !self.held_told {
            self.held_told = true;
            let text = format!("{} is not followed: {hold}", self.name(id));
            self.tell(Level::Warn, "held", Some(id), text);
        }
        true
    }

    /// Of all that claim to be primary, the only one that Patroni calls so, knowing of the other claims.
    pub(super) fn named(&self) -> Option<NodeId> {
        let claimants = self.claimants();
        let calls = |id: &NodeId| self.word(*id).filter(|word| word.what == PatroniWord::Primary);
        let mut leading = claimants.iter().filter_map(|id| Some((*id, calls(id)?.asked_at)));
        let (named, asked_at) = leading.next().filter(|_| leading.next().is_none())?;
        // A word from before the other claim says nothing about it.
        let knows = |other: &NodeId| asked_at >= self.node(*other).claims_since || self.denied(*other);
        claimants.iter().all(|other| *other == named || knows(other)).then_some(named)
    }

    /// Whether Patroni stands by the primary although others claim to be it.
    pub(super) fn stood_by(&self, primary: NodeId) -> bool {
        self.policy.mode == FailoverMode::Follow && self.named() == Some(primary)
    }

    /// Whether that is so in this state.
    pub(super) fn stood_by_now(&self) -> bool {
        matches!(self.state, State::Stable { primary, .. } if self.stood_by(primary))
    }

    /// Whether a Patroni that answered a moment ago was not asked since then.
    pub(super) fn word_due(&self, since: Time) -> bool {
        self.claimants().into_iter().any(|id| self.word(id).is_some_and(|word| word.asked_at <= since))
    }

    /// Times at which a word of Patroni stops counting where that matters.
    pub(super) fn word_alarms(&self) -> Vec<Time> {
        let asked = matches!(self.state, State::Starting { .. } | State::Stable { .. } | State::Contested { .. });
        if self.policy.mode != FailoverMode::Follow || !asked || self.rivals().is_empty() {
            return Vec::new();
        }
        self.policy.ids().filter_map(|id| Some(self.word(id)?.at + WORD_SPAN)).collect()
    }
}
