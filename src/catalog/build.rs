//! Rows of a node's catalog to [`Facts`]: which relations reach something that means the primary.
//!
//! What a view or a policy does is told by its definition, which is classified like a client's statement: PostgreSQL
//! keeps no dependency on its own functions, so nothing else tells of `nextval()` in it. A relation that reaches another
//! is as that one is, through any number of views, and cycles (by policies) change nothing.
//!
//! Invariants: definitions name everything outside pg_catalog with its schema; a definition that cannot be looked into
//! counts as one that writes; rows beyond the limits make no facts at all. Absent on purpose: I/O.

use super::{ByName, Facts, Nature};
use crate::sql::{Access, Classification, Classifier, Settings, StringSyntax, Why, reads_by_name};
use hashbrown::HashMap;
use std::sync::Arc;

/// Functions of one database that are kept, by schema and name.
pub const FUNCTIONS_MAX: usize = 20_000;
/// Unlogged and foreign relations and their parents.
pub const RELATIONS_MAX: usize = 20_000;
/// Views and policies that are looked into.
pub const VIEWS_MAX: usize = 5_000;
/// Bytes of all rows.
pub const TEXT_BYTES_MAX: usize = 32 << 20;

/// The database has more than a limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more functions, relations or views than are kept")]
pub struct TooLarge;

/// What a row tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A function and what it may do.
    Function(Nature),
    /// An unlogged relation, or a parent of one; the text names the child.
    Unlogged,
    /// A foreign table, or a parent of one; the text names the child.
    Foreign,
    /// A view; the text is its query.
    View,
    /// A policy for reading a relation; the text is its expression.
    Policy,
}

/// Rows so far.
#[derive(Debug, Default)]
pub struct Rows {
    functions: Vec<(Box<str>, Box<str>, Nature)>,
    marked: Vec<(Relation, Kind, Box<str>)>,
    defined: Vec<(Relation, Kind, Box<str>)>,
    bytes: usize,
}

/// Schema and name.
type Relation = (Box<str>, Box<str>);

impl Rows {
    /// Takes one row.
    ///
    /// # Errors
    /// When there are too many.
    pub fn add(&mut self, kind: Kind, schema: &str, name: &str, text: &str) -> Result<(), TooLarge> {
        self.bytes += schema.len() + name.len() + text.len();
        let relation = (schema.into(), name.into());
        let (count, most) = match kind {
            Kind::Function(nature) => {
                self.functions.push((relation.0, relation.1, nature));
                (self.functions.len(), FUNCTIONS_MAX)
            }
            Kind::Unlogged | Kind::Foreign => {
                self.marked.push((relation, kind, text.into()));
                (self.marked.len(), RELATIONS_MAX)
            }
            Kind::View | Kind::Policy => {
                self.defined.push((relation, kind, text.into()));
                (self.defined.len(), VIEWS_MAX)
            }
        };
        if count > most || self.bytes > TEXT_BYTES_MAX { Err(TooLarge) } else { Ok(()) }
    }
}

/// What the rows mean. `settings`: with the operator's lists; `foreign`: do foreign tables mean the primary?
#[must_use]
pub fn build(rows: Rows, settings: &Settings, foreign: bool) -> Facts {
    let mut facts = Facts::default();
    for (schema, name, nature) in rows.functions {
        facts.shadows |= nature != Nature::Reads && reads_by_name(&name);
        facts.functions.entry(name).or_default().push((schema, nature));
    }
    let mut reached = Reached::default();
    for (relation, kind, child) in rows.marked {
        let word = match kind {
            Kind::Foreign if !foreign => continue,
            Kind::Foreign => "a foreign table",
            _ => "unlogged",
        };
        let (schema, name) = &relation;
        let own = format!("{schema}.{name}") == *child;
        let cause = if own { format!("{schema}.{name}, which is {word}") } else { format!("{child}, which is {word}") };
        let why = if own {
            format!("relation {schema}.{name} is {word}")
        } else {
            format!("relation {schema}.{name} has the child {child}, which is {word}")
        };
        reached.mark(relation, cause.into(), why.into());
    }
    // Seed and shape do not matter: this classifier ends with this function.
    let mut classifier = Classifier::new(1, settings);
    for (relation, kind, text) in rows.defined {
        let text = if kind == Kind::Policy { format!("SELECT {text}") } else { text.into() };
        let class = classifier.classify(text.as_bytes(), StringSyntax::Standard);
        match facts.cause(&class) {
            Some(cause) => reached.mark_by(relation, kind, &cause),
            None => reached.link(relation, kind, &class),
        }
    }
    facts.special = reached.special();
    facts
}

impl Facts {
    /// What in a definition means the primary by itself.
    fn cause(&self, class: &Classification) -> Option<Arc<str>> {
        let names = match &class.names {
            Some(names) => names,
            None if class.access == Access::Read => return None,
            None => {
                return Some(match &class.why {
                    Why::Function(name) => format!("function {name}").into(),
                    Why::Relation(name) => format!("relation {name}").into(),
                    other => other.to_string().into(),
                });
            }
        };
        if names.truncated {
            return Some("more names than are looked up".into());
        }
        names.unknown.iter().find_map(|called| match self.worst(called.schema.as_deref(), &called.name) {
            Some((_, Nature::Reads)) => None,
            Some((_, nature)) => Some(format!("function {called}, which {}", nature.words()).into()),
            None => Some(format!("function {called}, which is unknown").into()),
        })
    }
}

/// Relations that reach something, while that is being found out.
#[derive(Default)]
struct Reached {
    /// What is reached, and the reason in words.
    marked: HashMap<Relation, (Arc<str>, Arc<str>)>,
    /// By relation: those whose views or policies read it.
    readers: HashMap<Relation, Vec<(Relation, Kind)>>,
    /// Marked, and their readers not yet.
    open: Vec<Relation>,
}

impl Reached {
    fn mark(&mut self, relation: Relation, cause: Arc<str>, why: Arc<str>) {
        if !self.marked.contains_key(&relation) {
            self.open.push(relation.clone());
            self.marked.insert(relation, (cause, why));
        }
    }

    fn mark_by(&mut self, relation: Relation, kind: Kind, cause: &Arc<str>) {
        let (schema, name) = &relation;
        let what = if kind == Kind::Policy { "a policy of relation" } else { "view" };
        let why = format!("{what} {schema}.{name} reaches {cause}").into();
        self.mark(relation, Arc::clone(cause), why);
    }

    fn link(&mut self, reader: Relation, kind: Kind, class: &Classification) {
        let relations = class.names.iter().flat_map(|names| &names.relations);
        for read in relations {
            // Without a schema it is one of pg_catalog, or a name of the query itself.
            if let Some(schema) = &read.schema {
                let read = ((**schema).into(), (*read.name).into());
                self.readers.entry(read).or_default().push((reader.clone(), kind));
            }
        }
    }

    fn special(mut self) -> ByName<Arc<str>> {
        while let Some(relation) = self.open.pop() {
            let Some((cause, _)) = self.marked.get(&relation) else { continue };
            let cause = Arc::clone(cause);
            for (reader, kind) in self.readers.remove(&relation).unwrap_or_default() {
                self.mark_by(reader, kind, &cause);
            }
        }
        let mut special: ByName<Arc<str>> = HashMap::new();
        for ((schema, name), (_, why)) in self.marked {
            special.entry(name).or_default().push((schema, why));
        }
        special
    }
}
