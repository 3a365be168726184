//! The last routing decisions, so that people can ask why a statement went where it went.
//!
//! Invariants: at most [`KEPT`] decisions per shard; writing one down never waits (a shard that is being read loses
//! it) and allocates nothing once the shard is full; a statement is kept by its beginning only. Absent on purpose:
//! answers, and decisions of a transaction's later statements, which follow its first.

use crate::client::SessionHandle;
use crate::clock::Time;
use crate::ids::NodeId;
use crate::route::{NoRoute, Reason};
use crate::sql::{Access, Why};
use parking_lot::Mutex;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Decisions kept per shard.
pub const KEPT: usize = 256;
/// Threads that write without meeting.
const SHARDS: usize = 16;
/// Bytes kept of a statement.
const STATEMENT_BYTES: usize = 120;

/// The beginning of a statement.
#[derive(Clone, Copy)]
pub struct Excerpt {
    bytes: [u8; STATEMENT_BYTES],
    len: u8,
    is_cut: bool,
}

impl Excerpt {
    /// Of this text.
    #[must_use]
    pub fn of(text: &[u8]) -> Self {
        let text = text.trim_ascii_start();
        let len = text.len().min(STATEMENT_BYTES);
        let mut bytes = [0; STATEMENT_BYTES];
        bytes[..len].copy_from_slice(&text[..len]);
        Self { bytes, len: u8::try_from(len).unwrap_or(u8::MAX), is_cut: text.len() > len }
    }
}

/// On one line.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.bytes[..usize::from(self.len)]);
        let mut words = text.split_ascii_whitespace();
        f.write_str(words.next().unwrap_or_default())?;
        words.try_for_each(|word| write!(f, " {word}"))?;
        f.write_str(if self.is_cut { "…" } else { "" })
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// One decision.
#[derive(Clone, Debug)]
pub struct Decision {
    /// When.
    pub at: Time,
    /// Whose statement.
    pub session: Arc<SessionHandle>,
    /// The statement; the first of several.
    pub statement: Excerpt,
    /// Read or write, with the client's own wish.
    pub access: Access,
    /// Why that; `None`: several statements, or none that was looked at.
    pub why: Option<Why>,
    /// Where it went and why, or why nowhere.
    pub outcome: Result<(NodeId, Reason), NoRoute>,
    /// How often it had been tried elsewhere before.
    pub attempt: u32,
    /// Shadow mode: where it would have gone; it went to the primary.
    pub shadow: bool,
}

impl Decision {
    /// Read or write.
    #[must_use]
    pub fn access_word(&self) -> &'static str {
        if self.access == Access::Read { "read" } else { "write" }
    }

    /// Why the node, as a metric label, or what it waits for.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.outcome {
            Ok((_, reason)) => reason.label().to_owned(),
            Err(no) => format!("nowhere: {}", no.why()),
        }
    }
}

/// What is kept.
#[derive(Debug)]
pub struct Decisions {
    shards: Box<[Mutex<Ring>]>,
}

#[derive(Debug, Default)]
struct Ring {
    kept: Vec<Decision>,
    next: usize,
}

impl Default for Decisions {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The shard of this thread; threads take turns.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SHARD.with(|shard| {
        shard.get().unwrap_or_else(|| {
            let mine = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
            shard.set(Some(mine));
            mine
        })
    })
}

impl Decisions {
    /// Writes one down.
    pub fn note(&self, decision: Decision) {
        let Some(mut ring) = self.shards[shard()].try_lock() else { return };
        if ring.kept.len() < KEPT {
            return ring.kept.push(decision);
        }
        let at = ring.next;
        ring.kept[at] = decision;
        ring.next = (at + 1) % KEPT;
    }

    /// The last ones that `wanted` holds for, newest first.
    #[must_use]
    pub fn latest(&self, most: usize, wanted: impl Fn(&Decision) -> bool) -> Vec<Decision> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let ring = shard.lock();
            let (newer, older) = ring.kept.split_at(ring.next);
            let newest_first = newer.iter().rev().chain(older.iter().rev());
            found.extend(newest_first.filter(|decision| wanted(decision)).cloned());
        }
        // Of two at one moment the one that came later stays first.
        found.sort_by_key(|decision| std::cmp::Reverse(decision.at));
        found.truncate(most);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{CancelRegistry, ClientIdentity, ClientKind};
    use crate::net::Peer;

    fn session() -> Arc<SessionHandle> {
        let identity = ClientIdentity {
            user: "u".into(),
            database: "d".into(),
            peer: Peer::Tcp(([127, 0, 0, 1], 1).into()),
            kind: ClientKind::Session,
            application_name: "a".into(),
            tls: None,
            since: Time::ZERO,
        };
        CancelRegistry::default().register(crate::wire::PROTOCOL_3_0, identity)
    }

    fn decision(session: &Arc<SessionHandle>, nanos: u64) -> Decision {
        Decision {
            at: Time::from_nanos(nanos),
            session: Arc::clone(session),
            statement: Excerpt::of(b"SELECT 1"),
            access: Access::Read,
            why: None,
            outcome: Ok((NodeId(0), Reason::Read)),
            attempt: 0,
            shadow: false,
        }
    }

    #[test]
    fn the_newest_are_kept_and_told_first() {
        let (decisions, session) = (Decisions::default(), session());
        for nanos in 0..1000 {
            decisions.note(decision(&session, nanos));
        }
        let all = decisions.latest(usize::MAX, |_| true);
        assert_eq!(
            (all.len(), all[0].at, all[KEPT - 1].at.as_nanos()),
            (KEPT, Time::from_nanos(999), 1000 - KEPT as u64)
        );
        let few = decisions.latest(2, |decision| decision.at.as_nanos() % 2 == 0);
        assert_eq!(few.iter().map(|decision| decision.at.as_nanos()).collect::<Vec<_>>(), [998, 996]);
    }

    #[test]
    fn a_statement_is_told_on_one_line_by_its_beginning() {
        assert_eq!(Excerpt::of(b" SELECT\n\t1 ").to_string(), "SELECT 1");
        let long = Excerpt::of("é".repeat(100).as_bytes()).to_string();
        assert!(long.starts_with("éé") && long.ends_with('…'), "{long}");
        assert_eq!(Excerpt::of(b"").to_string(), "");
    }
}
