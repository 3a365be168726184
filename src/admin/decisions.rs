//! `/api/v1/decisions`: where statements went last, as JSON, filtered by what the query asks for.
//!
//! Invariants: field names are a published interface; what is not known is `null`; at most [`LIMIT_MAX`] come back.
//! Absent on purpose: whole statements.

use crate::clock::Time;
use crate::decision::{Decision, Decisions};
use crate::ids::NodeId;
use serde::Deserialize;
use serde_json::{Value, json};

/// Decisions in one answer.
const LIMIT_MAX: usize = 4096;
/// Without a word on it.
const LIMIT: usize = 100;

/// What is asked for; everything that is given must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    user: Option<String>,
    database: Option<String>,
    /// Name of the node.
    node: Option<String>,
    /// `read` or `write`.
    class: Option<String>,
    /// As in metrics.
    reason: Option<String>,
    /// Number of the session.
    session: Option<u64>,
    /// Part of the statement, letter case aside.
    statement: Option<String>,
    shadow: Option<bool>,
    limit: Option<usize>,
}

impl Filter {
    fn holds(&self, decision: &Decision, name_of: impl Fn(NodeId) -> String) -> bool {
        let identity = decision.session.identity();
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        let node = decision.outcome.as_ref().ok().map(|(node, _)| name_of(*node)).unwrap_or_default();
        is(&self.user, &identity.user)
            && is(&self.database, &identity.database)
            && is(&self.node, &node)
            && is(&self.class, decision.access_word())
            && is(&self.reason, &decision.reason())
            && self.session.is_none_or(|session| session == decision.session.id.0)
            && self.shadow.is_none_or(|shadow| shadow == decision.shadow)
            && self.statement.as_ref().is_none_or(|part| {
                decision.statement.to_string().to_ascii_lowercase().contains(&part.to_ascii_lowercase())
            })
    }
}

/// What fits, newest first.
pub(super) fn list(decisions: &Decisions, filter: &Filter, now: Time, name_of: impl Fn(NodeId) -> String) -> Value {
    let most = filter.limit.unwrap_or(LIMIT).min(LIMIT_MAX);
    let found = decisions.latest(most, |decision| filter.holds(decision, &name_of));
    let told = found.iter().map(|decision| {
        let identity = decision.session.identity();
        json!({
            "age_ms": u64::try_from(now.since(decision.at).as_millis()).unwrap_or(u64::MAX),
            "session": decision.session.id.0,
            "user": &*identity.user,
            "database": &*identity.database,
            "application_name": &*identity.application_name,
            "statement": decision.statement.to_string(),
            "class": decision.access_word(),
            "why": decision.why.as_ref().map(ToString::to_string),
            "node": decision.outcome.as_ref().ok().map(|(node, _)| name_of(*node)),
            "reason": decision.reason(),
            "attempt": decision.attempt,
            "shadow": decision.shadow,
        })
    });
    json!({ "decisions": told.collect::<Vec<_>>() })
}
