//! Functions whose bodies change the session although no statement says so.
//!
//! A function may call `set_config()`, take a session lock or make a temporary table. Which functions of a
//! database do is read from their bodies, once, by the first session that calls a function nobody
//! vouches for, and again after the schema has changed. A statement that calls one of them has its backend
//! asked afterwards. Invariants: while it is not known, every such call counts as one; what was read is
//! read again after [`BELIEVED_FOR`]. Absent on purpose: functions in C.

use crate::clock::Time;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Functions may also be changed by others than the clients of this proxy.
const BELIEVED_FOR: Duration = Duration::from_secs(60);
/// How long one session may take to read them before another tries.
const CLAIM_FOR: Duration = Duration::from_secs(5);
/// Databases kept.
const DATABASES_MAX: usize = 1_000;
/// Functions and settings believed of one database.
const ENTRIES_MAX: usize = 20_000;

/// Lists functions that may change the session, directly or through others; whether triggers call such; and the
/// settings of extensions that bodies name. Words are looked for where a statement can begin.
///
/// What a body sets for its transaction only is gone with it, but for `synchronous_commit`, which decides how the
/// transaction ends.
pub(super) const QUESTION: &str = r#"WITH RECURSIVE code AS MATERIALIZED (
 SELECT p.oid, p.proname, CASE WHEN p.prosrc OPERATOR(pg_catalog.~*) 'synchronous_commit' THEN p.prosrc ELSE
 pg_catalog.regexp_replace(p.prosrc, '(--[^\n]*)|(set_config\s*\([^;]*?,\s*true\s*\))', '', 'gi') END AS text
 FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang
 WHERE l.lanname OPERATOR(pg_catalog.<>) 'internal' AND l.lanname OPERATOR(pg_catalog.<>) 'c'
 AND p.pronamespace OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace
 AND p.pronamespace OPERATOR(pg_catalog.<>) 'information_schema'::pg_catalog.regnamespace
), found (oid, proname, depth) AS (
 SELECT oid, proname, 1 FROM code WHERE text OPERATOR(pg_catalog.~*) '(\mset_config\s*\()|(advisory_lock)|((^|;|["''$]|\mthen|\mbegin|\melse|\mloop)\s*(set|reset|discard|listen|load|prepare|deallocate)\s)|(\mtemp(orary)?\M)|(\mwith\s+hold\M)|(\msetseed\s*\()'
 UNION SELECT code.oid, code.proname, found.depth OPERATOR(pg_catalog.+) 1 FROM found JOIN code
 ON code.text OPERATOR(pg_catalog.~) pg_catalog.concat('\m', pg_catalog.regexp_replace(found.proname, '(\W)', '\\\1', 'g'), '\M') WHERE found.depth OPERATOR(pg_catalog.<) 4
)
SELECT 'function', proname, '' FROM found
UNION SELECT 'trigger', '', '' FROM found JOIN pg_catalog.pg_trigger t ON t.tgfoid OPERATOR(pg_catalog.=) found.oid
UNION SELECT 'setting', pg_catalog.lower(m[1]), '' FROM code,
 LATERAL pg_catalog.regexp_matches(text, '([a-z_][a-z0-9_$]*\.[a-z_][a-z0-9_.$]*)', 'gi') m
 WHERE text OPERATOR(pg_catalog.~*) '\mset'"#;

/// What is known of one database.
#[derive(Debug, Default)]
pub(super) struct Hazards {
    functions: HashSet<Box<str>>,
    /// Settings of extensions that bodies name.
    pub settings: Vec<Arc<str>>,
    /// Some trigger calls such a function.
    pub triggers: bool,
    /// More than is believed, or not understood: everything counts.
    everything: bool,
    code: u64,
    learned: Time,
}

impl Hazards {
    /// To be filled from an answer asked for at this time, under this number of changes.
    pub fn asked(code: u64, now: Time) -> Self {
        Self { code, learned: now, ..Self::default() }
    }

    /// Takes one row.
    pub fn add(&mut self, kind: &[u8], name: &str) {
        let full = self.functions.len() + self.settings.len() >= ENTRIES_MAX;
        match kind {
            _ if full => self.everything = true,
            b"function" => drop(self.functions.insert(name.into())),
            b"setting" => self.settings.push(name.into()),
            b"trigger" => self.triggers = true,
            _ => self.everything = true,
        }
    }

    /// The answer was not understood.
    pub fn garble(&mut self) {
        self.everything = true;
    }

    /// Was it read under this number of changes to functions and triggers?
    pub fn fits(&self, code: u64) -> bool {
        self.code == code
    }

    /// Is it time to read it again?
    pub fn is_old(&self, now: Time) -> bool {
        now.since(self.learned) >= BELIEVED_FOR
    }

    /// May one of these functions change the session?
    pub fn name_any(&self, functions: &[Arc<str>]) -> bool {
        self.everything || functions.iter().any(|name| self.functions.contains(&**name))
    }
}

/// What is known of all databases.
#[derive(Debug, Default)]
pub struct HazardTable {
    databases: Mutex<HashMap<Arc<str>, Arc<Hazards>>>,
    /// Which database is being read, since when.
    claims: Mutex<HashMap<Arc<str>, Time>>,
}

impl HazardTable {
    pub(super) fn find(&self, database: &str) -> Option<Arc<Hazards>> {
        self.databases.lock().get(database).cloned()
    }

    /// May the caller read the functions of this database? One session at a time does.
    pub(super) fn claim(&self, database: &Arc<str>, now: Time) -> bool {
        let mut claims = self.claims.lock();
        if claims.len() >= DATABASES_MAX {
            claims.clear();
        }
        let free = claims.get(database).is_none_or(|since| now.since(*since) >= CLAIM_FOR);
        if free {
            claims.insert(Arc::clone(database), now);
        }
        free
    }

    pub(super) fn keep(&self, database: &Arc<str>, hazards: Arc<Hazards>) {
        let mut databases = self.databases.lock();
        if databases.len() >= DATABASES_MAX {
            databases.clear();
        }
        databases.insert(Arc::clone(database), hazards);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_session_at_a_time_reads_a_database() {
        let (table, database) = (HazardTable::default(), Arc::from("d"));
        assert!(table.claim(&database, Time::ZERO) && !table.claim(&database, Time::ZERO));
        assert!(table.claim(&Arc::from("e"), Time::ZERO));
        assert!(table.claim(&database, Time::ZERO + CLAIM_FOR));
    }

    #[test]
    fn a_function_counts_by_name_and_everything_counts_when_in_doubt() {
        let mut hazards = Hazards::asked(3, Time::ZERO);
        hazards.add(b"function", "set_tenant");
        hazards.add(b"setting", "app.tenant");
        assert!(hazards.name_any(&["f".into(), "set_tenant".into()]));
        assert!(!hazards.name_any(&["f".into()]) && !hazards.name_any(&[]));
        assert!(hazards.fits(3) && !hazards.fits(4));
        assert!(!hazards.is_old(Time::ZERO) && hazards.is_old(Time::ZERO + BELIEVED_FOR));
        hazards.add(b"?", "x");
        assert!(hazards.name_any(&["f".into()]));
    }
}
