//! Every failure answers four questions: whose fault, may it be retried, what does the client see,
//! which metric label.
//!
//! Invariants: client texts never hold internal addresses or causes; labels are closed sets.
//! Absent on purpose: one crate-wide error enum; each module has its own and implements [`Classify`].

mod sqlstate;

pub use sqlstate::SqlState;

use std::borrow::Cow;

/// Whose fault a failure is. The variant's label is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The client sent something wrong or went away.
    Client,
    /// A node refused, failed or went away.
    Node,
    /// No node could take the work (no primary, all down, change in progress).
    Topology,
    /// Our own limits or a defect of ours.
    Proxy,
}

impl Fault {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Node => "node",
            Self::Topology => "topology",
            Self::Proxy => "proxy",
        }
    }
}

/// May the same work be tried again?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Trying again gives the same answer, or could do the work twice.
    Never,
    /// Nothing happened; another node may be tried at once.
    OtherNode,
    /// Nothing happened; the same may work later.
    Later,
}

/// How bad the client is told it is (PostgreSQL docs, "Error and Notice Message Fields").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The statement failed, the session goes on.
    Error,
    /// The session ends after this message.
    Fatal,
}

impl Severity {
    /// The word in fields S and V.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// What the client reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    /// ERROR or FATAL.
    pub severity: Severity,
    /// Five-character code.
    pub sqlstate: SqlState,
    /// One sentence, PostgreSQL style: lower case, no full stop.
    pub message: Cow<'static, str>,
    /// More facts, a full sentence.
    pub detail: Option<Cow<'static, str>>,
    /// What to do, a full sentence.
    pub hint: Option<Cow<'static, str>>,
    /// PostgreSQL's function that says the same; only where drivers go by it.
    pub routine: Option<&'static str>,
}

impl ClientError {
    /// An ERROR: the session goes on.
    #[must_use]
    pub fn error(sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self { severity: Severity::Error, sqlstate, message: message.into(), detail: None, hint: None, routine: None }
    }

    /// A FATAL: the session ends.
    #[must_use]
    pub fn fatal(sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self { severity: Severity::Fatal, ..Self::error(sqlstate, message) }
    }

    /// With a DETAIL line.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With the name of PostgreSQL's function that says the same.
    #[must_use]
    pub fn routine(mut self, routine: &'static str) -> Self {
        self.routine = Some(routine);
        self
    }

    /// With a HINT line.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The four answers.
pub trait Classify {
    /// Whose fault.
    fn fault(&self) -> Fault;
    /// May it be tried again.
    fn retry(&self) -> Retry;
    /// What the client reads.
    fn client(&self) -> ClientError;
    /// The metric label, from a closed set.
    fn label(&self) -> &'static str;
}
