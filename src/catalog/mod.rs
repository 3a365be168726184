//! What the catalog of a database says about the functions and relations that statements name.
//!
//! A statement's class comes from its text ([`crate::sql`]), which cannot tell what a user's function or a view does.
//! A [`Catalog`] is an immutable snapshot that can: which names of functions only read, and which relations mean the
//! primary. It is read from a node in the background (`monitor`), stands in a [`CatalogSlot`] per database, and judges
//! classes where they are made. It hangs on names alone, whatever `search_path` says: an unqualified name is a read
//! only if it is one in every schema that has it.
//!
//! Invariants: a name that the snapshot does not hold stays what its text made it, and so does everything when there
//! is no snapshot; the operator's lists are stronger in both directions, since what they name never gets here; what
//! may have changed since makes no reads. Absent on purpose: I/O, arguments and overloads, operators and casts.

mod build;
mod slot;

#[cfg(test)]
mod tests;

pub use build::{FUNCTIONS_MAX, Kind, RELATIONS_MAX, Rows, TEXT_BYTES_MAX, TooLarge, VIEWS_MAX, build};
pub use slot::{CatalogSlot, CatalogTable, Changes, DATABASES_MAX};

use crate::clock::Time;
use crate::sql::{Access, Classification, Judge, Name, Names, Why};
use hashbrown::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What running a function may do, by its declaration and its body. Ordered: of two namesakes the greater counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nature {
    /// Declared STABLE or IMMUTABLE: PostgreSQL keeps it from writing itself.
    Reads,
    /// Its body takes advisory locks or names what one node knows of itself, which a standby would do or tell wrongly.
    NodeLocal,
    /// Declared VOLATILE, or left so.
    Volatile,
}

impl Nature {
    /// After "function f ".
    fn words(self) -> &'static str {
        match self {
            Self::Reads => "is a read by its volatility",
            Self::NodeLocal => "locks or names what one node knows of itself",
            Self::Volatile => "is volatile",
        }
    }
}

/// Something of each schema that has the name.
type ByName<T> = HashMap<Box<str>, Vec<(Box<str>, T)>>;

/// The functions and relations of one database that matter.
#[derive(Debug, Default)]
pub struct Facts {
    /// By name: in which schemas, and what it is there.
    functions: ByName<Nature>,
    /// Relations that mean the primary, by name: in which schemas, and why.
    special: ByName<Arc<str>>,
    /// Some function that writes has the name of one of PostgreSQL's own that reads.
    shadows: bool,
}

impl Facts {
    /// How many names of functions it holds.
    #[must_use]
    pub fn functions(&self) -> usize {
        self.functions.len()
    }

    /// The relations that mean the primary: schema, name, why.
    pub fn special(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.special
            .iter()
            .flat_map(|(name, schemas)| schemas.iter().map(move |(schema, why)| (&**schema, &**name, &**why)))
    }

    /// What a function of this name may do at worst, and in which schema; `None`: there is none.
    fn worst(&self, schema: Option<&str>, name: &str) -> Option<(&str, Nature)> {
        let namesakes = self.functions.get(name)?.iter();
        let meant = namesakes.filter(|(known, _)| schema.is_none_or(|schema| **known == *schema));
        meant.max_by_key(|(_, nature)| *nature).map(|(schema, nature)| (&**schema, *nature))
    }

    /// Why a relation of this name means the primary, if one does.
    fn reason(&self, relation: &Name) -> Option<&Arc<str>> {
        let namesakes = self.special.get(&*relation.name)?.iter();
        let mut meant =
            namesakes.filter(|(known, _)| relation.schema.as_ref().is_none_or(|schema| **known == **schema));
        meant.next().map(|(_, why)| why)
    }

    /// Why a text that names these is a write, apart from functions that nobody vouches for.
    fn objection(&self, names: &Names) -> Option<Arc<str>> {
        if let Some(why) = names.relations.iter().find_map(|relation| self.reason(relation)) {
            return Some(Arc::clone(why));
        }
        let shadow = names.taken.iter().find_map(|name| {
            let (schema, nature) = self.worst(None, name).filter(|(_, nature)| *nature != Nature::Reads)?;
            Some(told(schema, name, nature))
        });
        let unseen = names.truncated && (self.shadows || !self.special.is_empty());
        shadow.or_else(|| unseen.then(|| "it names more than is looked up in the catalog".into()))
    }
}

/// What is said of a function.
fn told(schema: &str, name: &str, nature: Nature) -> Arc<str> {
    format!("function {schema}.{name} {}", nature.words()).into()
}

/// Numbers of snapshots; 0 is the one that knows nothing.
static VERSIONS: AtomicU64 = AtomicU64::new(1);

/// A snapshot of one database.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Unique in this process, so that judgements of two snapshots are never mixed up.
    version: u64,
    facts: Arc<Facts>,
    /// Functions may have changed since: nothing becomes a read by it.
    stale: bool,
    loaded: Option<Time>,
}

impl Catalog {
    /// Facts as they were at this time.
    #[must_use]
    pub fn new(facts: Arc<Facts>, loaded: Time) -> Self {
        Self { version: VERSIONS.fetch_add(1, Ordering::Relaxed), facts, stale: false, loaded: Some(loaded) }
    }

    /// The same, of which functions may have changed since.
    #[must_use]
    pub fn outdated(&self) -> Self {
        Self { version: VERSIONS.fetch_add(1, Ordering::Relaxed), stale: true, ..self.clone() }
    }

    /// What it holds.
    #[must_use]
    pub fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// May functions have changed since?
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// When it was read; `None`: it never was.
    #[must_use]
    pub fn loaded(&self) -> Option<Time> {
        self.loaded
    }

    /// The access of a class and why, where that is not what its text says.
    fn verdict(&self, class: &Classification) -> Option<(Access, Arc<str>)> {
        let names = class.names.as_ref()?;
        if let Some(why) = self.facts.objection(names) {
            return Some((Access::Write, why));
        }
        let mut said = None;
        for called in &names.unknown {
            // Who is not known here keeps the text a write, for the reason that it has.
            let (schema, nature) = self.facts.worst(called.schema.as_deref(), &called.name)?;
            if nature != Nature::Reads {
                return Some((Access::Write, told(schema, &called.name, nature)));
            }
            said.get_or_insert((schema, &called.name));
        }
        if self.stale || names.truncated {
            return None;
        }
        said.map(|(schema, name)| (Access::Read, told(schema, name, Nature::Reads)))
    }
}

impl Judge for Catalog {
    fn version(&self) -> u64 {
        self.version
    }

    fn concerns(&self, class: &Classification) -> bool {
        let facts = &self.facts;
        class.names.is_some()
            && (facts.shadows
                || !facts.special.is_empty()
                || !facts.functions.is_empty() && class.by_text() == Access::Write)
    }

    fn access(&self, class: &Classification) -> Access {
        self.verdict(class).map_or(class.by_text(), |(access, _)| access)
    }

    fn judge(&self, class: &Arc<Classification>) -> Arc<Classification> {
        match self.verdict(class) {
            Some((access, why)) => {
                Arc::new(Classification { access, why: Why::Catalog(why), ..Classification::clone(class) })
            }
            None => Arc::clone(class),
        }
    }
}
