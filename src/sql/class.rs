//! What classification answers, as plain values.
//!
//! Invariant: everything here is cheap to clone and says nothing about nodes. Absent on purpose: how it is found out.

use std::fmt;
use std::sync::Arc;

use super::hint::{Hint, HintNode};

/// May it run on a standby?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// It only reads: any node may answer.
    Read,
    /// It must go to the primary. Everything that is not known to be a read is here, transaction control included.
    Write,
}

/// The answer for one text, which may hold several statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classification {
    /// Read only if every statement of the text is. An empty text is a read.
    pub access: Access,
    /// Statements in the text; 0: nothing but white space, comments and semicolons. Texts that were not examined
    /// (too long, no UTF-8, no valid SQL) count as 1. Never more than `u16::MAX`.
    pub statements: u16,
    /// Transaction control, if the text is exactly one such statement; `Mixed` if it is one of several.
    pub tx: TxControl,
    /// What it leaves behind on the backend.
    pub effects: Effects,
    /// A wish found in a comment.
    pub hint: Option<Hint>,
    /// A hint in it was malformed or contradicted another one, and was ignored.
    pub hint_ignored: bool,
    /// Why it is what it is, for people.
    pub why: Why,
    /// Functions that it calls and nobody vouches for, by the last part of their names, lower case.
    pub functions: Box<[Arc<str>]>,
    /// What it names that a catalog may know more about; `None` if no catalog could change its access.
    pub names: Option<Arc<Names>>,
    /// What the single statements of the text do to the session, in order. Those that do nothing have no
    /// step, so most texts have none and nothing is allocated.
    pub steps: Box<[Step]>,
}

impl Classification {
    /// Read or write, with the client's own wish.
    #[must_use]
    pub fn wanted(&self) -> Access {
        if self.asks_for_primary() { Access::Write } else { self.access }
    }

    /// Does the client itself ask for the primary?
    #[must_use]
    pub fn asks_for_primary(&self) -> bool {
        self.hint.is_some_and(|hint| hint.node == HintNode::Primary)
    }

    /// Bytes that it takes, with what it points to.
    pub(super) fn memory(&self) -> usize {
        let functions = self.functions.iter().map(size_of_arc).sum::<usize>();
        let steps = self.steps.iter().map(|step| size_of::<Step>() + step.effects.memory()).sum::<usize>();
        let names = self.names.as_ref().map_or(0, |names| names.memory());
        size_of::<Self>() + 2 * size_of::<usize>() + functions + steps + names + self.effects.memory()
    }
}

impl Names {
    /// Bytes that they take.
    fn memory(&self) -> usize {
        let name =
            |name: &Name| size_of::<Name>() + name.schema.as_ref().map_or(0, size_of_arc) + size_of_arc(&name.name);
        let dotted = self.unknown.iter().chain(&self.relations).map(name).sum::<usize>();
        size_of::<Self>() + dotted + self.taken.iter().map(size_of_arc).sum::<usize>()
    }
}

/// A pointer, the counts behind it, and the text.
fn size_of_arc(text: &Arc<str>) -> usize {
    size_of::<Arc<str>>() + 2 * size_of::<usize>() + text.len()
}

impl Classification {
    /// Read or write by the text alone, whatever a catalog has said since.
    #[must_use]
    pub fn by_text(&self) -> Access {
        match &self.names {
            Some(names) if names.unknown.is_empty() => Access::Read,
            Some(_) => Access::Write,
            None => self.access,
        }
    }
}

/// What a text names that a catalog may know more about. A text that is a write and has names is one for no other
/// reason than that it calls the unknown functions among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Functions that nobody vouches for.
    pub unknown: Vec<Name>,
    /// Functions called without a schema that are taken for PostgreSQL's own by their names.
    pub taken: Vec<Arc<str>>,
    /// Relations that are read.
    pub relations: Vec<Name>,
    /// There were more than are kept.
    pub truncated: bool,
}

impl Names {
    /// None at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unknown.is_empty() && self.taken.is_empty() && self.relations.is_empty() && !self.truncated
    }
}

/// The name of a function or relation as PostgreSQL's grammar folds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The schema, if the text names one.
    pub schema: Option<Arc<str>>,
    /// Its own name.
    pub name: Arc<str>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What one statement of a text does to the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which statement of the text it is, from 0.
    pub at: u16,
    /// Its transaction control.
    pub tx: TxControl,
    /// What it leaves behind.
    pub effects: Effects,
}

/// What a statement does to the transaction it runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxControl {
    /// Nothing.
    None,
    /// BEGIN, START TRANSACTION.
    Begin(BeginOptions),
    /// SET TRANSACTION of the running transaction (or its SNAPSHOT, then without options).
    Set(BeginOptions),
    /// COMMIT, END.
    Commit {
        /// AND CHAIN: another transaction begins.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN: another transaction begins.
        chain: bool,
    },
    /// SAVEPOINT name.
    Savepoint(Arc<str>),
    /// RELEASE name.
    Release(Arc<str>),
    /// ROLLBACK TO name.
    RollbackTo(Arc<str>),
    /// PREPARE TRANSACTION: ends the transaction here.
    PrepareTransaction,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
    /// Several statements, at least one of which controls transactions.
    Mixed,
}

/// What BEGIN or SET TRANSACTION asked for; `None`: not said, so the session's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BeginOptions {
    /// ISOLATION LEVEL.
    pub isolation: Option<Isolation>,
    /// READ ONLY (true) or READ WRITE (false).
    pub read_only: Option<bool>,
    /// DEFERRABLE or NOT DEFERRABLE.
    pub deferrable: Option<bool>,
}

/// Transaction isolation levels as PostgreSQL names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Behaves as read committed.
    ReadUncommitted,
    /// PostgreSQL's default.
    ReadCommitted,
    /// Snapshot isolation.
    RepeatableRead,
    /// Refused by a standby.
    Serializable,
}

/// What stays on the backend after the statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The one change that can be told by name; only in texts of one statement.
    pub change: Change,
    /// State that cannot move, so that the session must keep its backend. Certain only once the text succeeded.
    pub pins: Pins,
    /// The text touches `default_transaction_*` or `transaction_*`, so what BEGIN without options means may change.
    pub changes_tx_defaults: bool,
    /// It may change the session in a way that the text does not tell: the backend must be asked.
    pub uncertain: bool,
    /// It may end the cause of a pin: the backend of a pinned session is to be asked.
    pub releases: bool,
    /// What it has to do with the session's memory of sequences.
    pub sequences: Sequences,
    /// It may change what names and types mean, so that statements prepared before may fail.
    pub schema: bool,
    /// It signals processes of the server.
    pub signals: Option<BackendSignal>,
    /// It reads the view of prepared statements, which must be the session's.
    pub shows_statements: bool,
    /// SHOW of the session's causal token, which the proxy makes.
    pub shows_token: bool,
    /// It may change what functions and triggers do.
    pub code: bool,
    /// The database that nobody may be connected to when it runs.
    pub vacates: Option<Arc<str>>,
    /// It changes who may log in, or what a session begins with.
    pub logins: bool,
}

/// What a statement does to other processes of the server. Ordered by strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendSignal {
    /// `pg_cancel_backend()`
    Cancel,
    /// `pg_terminate_backend()`
    Terminate,
}

/// What a statement has to do with what a session remembers of sequences (`currval()`, `lastval()`). Ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sequences {
    /// Nothing that its text tells.
    #[default]
    None,
    /// It calls `nextval()` or `setval()`.
    Moved,
    /// It calls `currval()` or `lastval()`.
    Read,
}

impl Effects {
    /// Does nothing stay behind, and nothing end?
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.change == Change::None
            && self.pins.is_empty()
            && !self.uncertain
            && !self.releases
            && self.sequences == Sequences::None
            && !self.schema
            && !self.logins
    }
}

impl Effects {
    /// Bytes of the names it holds.
    fn memory(&self) -> usize {
        let change = match &self.change {
            Change::SetConfig { name, value } => size_of_arc(name) + size_of_arc(value),
            Change::Set { name }
            | Change::Reset { name }
            | Change::SetLocal { name: Some(name) }
            | Change::Deallocate { name }
            | Change::Prepare { name }
            | Change::Execute { name } => size_of_arc(name),
            _ => 0,
        };
        change + self.vacates.as_ref().map_or(0, size_of_arc)
    }
}

/// A nameable change of a backend's session state. Names of settings are lower-case and canonical.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// None, or one that `pins` tells.
    #[default]
    None,
    /// SET name = value. The text itself replays it.
    Set {
        /// The setting.
        name: Arc<str>,
    },
    /// `SELECT set_config('name', 'value', false)` and nothing else: as SET of that value.
    SetConfig {
        /// The setting.
        name: Arc<str>,
        /// The value.
        value: Arc<str>,
    },
    /// SET SESSION CHARACTERISTICS AS TRANSACTION: the `default_transaction_*` settings.
    Characteristics(BeginOptions),
    /// RESET name, SET name TO DEFAULT; also ROLE and SESSION AUTHORIZATION (`role`, `session_authorization`).
    Reset {
        /// The setting.
        name: Arc<str>,
    },
    /// RESET ALL.
    ResetAll,
    /// SET LOCAL, `set_config(.., true)`, SET TRANSACTION, SET CONSTRAINTS: gone with the transaction.
    SetLocal {
        /// The setting; `None` if the text does not name it.
        name: Option<Arc<str>>,
    },
    /// DISCARD ALL.
    DiscardAll,
    /// DISCARD PLANS.
    DiscardPlans,
    /// DISCARD SEQUENCES.
    DiscardSequences,
    /// DISCARD TEMP.
    DiscardTemp,
    /// DEALLOCATE name; the name as PostgreSQL sees it (folded unless it was quoted).
    Deallocate {
        /// The prepared statement.
        name: Arc<str>,
    },
    /// DEALLOCATE ALL.
    DeallocateAll,
    /// PREPARE name AS …
    Prepare {
        /// The prepared statement.
        name: Arc<str>,
    },
    /// EXECUTE name, also inside EXPLAIN or CREATE TABLE AS.
    Execute {
        /// The prepared statement.
        name: Arc<str>,
    },
    /// UNLISTEN *.
    UnlistenAll,
}

/// Why a session must keep its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PinReason {
    /// A temporary table, view, sequence or other object of the temporary schema.
    TempTable,
    /// DECLARE CURSOR WITH HOLD.
    WithHoldCursor,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// LISTEN.
    Listen,
    /// LOAD: a library stays loaded.
    Load,
    /// SET SEED, `setseed()`: the next random numbers are the backend's.
    RandomSeed,
    /// The session asks for `currval()` or `lastval()`, which are the backend's.
    Sequence,
}

impl PinReason {
    /// Every reason, in declaration order.
    pub const ALL: [Self; 7] = [
        Self::TempTable,
        Self::WithHoldCursor,
        Self::AdvisoryLock,
        Self::Listen,
        Self::Load,
        Self::RandomSeed,
        Self::Sequence,
    ];

    /// Can a backend say whether it is so?
    #[must_use]
    pub fn can_be_asked(self) -> bool {
        !matches!(self, Self::Load | Self::RandomSeed | Self::Sequence)
    }

    /// A label for metrics and SHOW, lower case with underscores.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TempTable => "temp_table",
            Self::WithHoldCursor => "with_hold_cursor",
            Self::AdvisoryLock => "advisory_lock",
            Self::Listen => "listen",
            Self::Load => "load",
            Self::RandomSeed => "random_seed",
            Self::Sequence => "sequence",
        }
    }
}

/// A set of [`PinReason`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Pins(u8);

impl Pins {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// The set of one.
    #[must_use]
    pub const fn of(reason: PinReason) -> Self {
        Self(1 << reason as u16)
    }

    /// Adds a reason.
    pub fn insert(&mut self, reason: PinReason) {
        *self = self.union(Self::of(reason));
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is the reason in the set?
    #[must_use]
    pub const fn contains(self, reason: PinReason) -> bool {
        self.0 & Self::of(reason).0 != 0
    }

    /// No reason at all?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The reasons, in declaration order.
    pub fn iter(self) -> impl Iterator<Item = PinReason> {
        PinReason::ALL.into_iter().filter(move |reason| self.contains(*reason))
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Why a text got its access, for people; `Display` gives a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A statement of this kind is what it is ("select", "insert", "begin").
    Statement(&'static str),
    /// FOR UPDATE, FOR SHARE and the like.
    Locking,
    /// SELECT INTO.
    Into,
    /// A data-modifying statement inside WITH, EXPLAIN ANALYZE or COPY.
    Modifies(&'static str),
    /// A function that is not known to be harmless, as written.
    Function(Arc<str>),
    /// A relation that means something on one node only, or a temporary one, as written.
    Relation(Arc<str>),
    /// A setting that means something on one node only.
    NodeLocalSetting,
    /// A node of the syntax tree without a rule.
    UnknownSyntax,
    /// Nothing to run.
    Empty,
    /// Longer than `classify_bytes_max`.
    TooLong,
    /// Nested too deeply to be examined.
    TooDeep,
    /// Not valid UTF-8, or holds a NUL byte.
    NotText,
    /// The grammar refuses it; so will the server.
    DoesNotParse,
    /// A standby refused it before.
    Refused,
    /// What the catalog of its database says, in words.
    Catalog(Arc<str>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Statement(kind) => f.write_str(kind),
            Self::Locking => f.write_str("locks rows"),
            Self::Into => f.write_str("select into"),
            Self::Modifies(kind) => write!(f, "holds {kind}"),
            Self::Function(name) => write!(f, "function {name} is not known to be a read"),
            Self::Relation(name) => write!(f, "relation {name} is read on the primary"),
            Self::NodeLocalSetting => f.write_str("a setting that differs between nodes"),
            Self::UnknownSyntax => f.write_str("unknown syntax"),
            Self::Empty => f.write_str("empty"),
            Self::TooLong => f.write_str("too long to classify"),
            Self::TooDeep => f.write_str("nested too deeply to classify"),
            Self::NotText => f.write_str("not valid text"),
            Self::DoesNotParse => f.write_str("does not parse"),
            Self::Refused => f.write_str("a standby refused it before"),
            Self::Catalog(words) => f.write_str(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_hold_exactly_what_was_inserted() {
        for reason in PinReason::ALL {
            let pins = Pins::of(reason);
            assert_eq!(pins.iter().collect::<Vec<_>>(), vec![reason]);
        }
        let mut both = Pins::of(PinReason::Listen);
        both.insert(PinReason::Load);
        assert_eq!(both.iter().collect::<Vec<_>>(), vec![PinReason::Listen, PinReason::Load]);
        assert!(Pins::NONE.is_empty() && !both.is_empty());
    }
}
