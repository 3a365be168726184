//! The parameters a backend has reported (PostgreSQL docs, "Asynchronous Operations").
//!
//! Invariants: at most [`PARAMETERS_MAX`] names are kept; equal values have equal digests. Absent on
//! purpose: what a client was told (the session's matter).

use std::hash::BuildHasher;

/// Names kept; PostgreSQL 18 reports 15.
pub const PARAMETERS_MAX: usize = 64;

/// Parameters that tell nodes apart and that a client must not see change: it talks to one server.
const NODE_LOCAL: &[&str] = &["in_hot_standby"];

/// Reported parameters, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    entries: Vec<(Box<str>, Box<str>)>,
    digest: u64,
}

impl Parameters {
    /// Notes a report; bytes that are not UTF-8 are kept replaced (names and values are ASCII).
    pub fn note(&mut self, name: &[u8], value: &[u8]) {
        let name = String::from_utf8_lossy(name);
        let value = String::from_utf8_lossy(value);
        match self.entries.binary_search_by(|(probe, _)| (**probe).cmp(&*name)) {
            Ok(at) if *self.entries[at].1 == *value => return,
            Ok(at) => self.entries[at].1 = value.into(),
            Err(at) if self.entries.len() < PARAMETERS_MAX => self.entries.insert(at, (name.into(), value.into())),
            Err(_) => return,
        }
        self.digest = self.compute();
    }

    fn compute(&self) -> u64 {
        let shared: Vec<_> = self.shared().collect();
        foldhash::fast::FixedState::with_seed(0x9a7a).hash_one(&shared)
    }

    /// The parameters that a client may see, by name.
    pub fn shared(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (&**name, &**value)).filter(|(name, _)| !is_node_local(name.as_bytes()))
    }

    /// All parameters, by name, as the node reported them.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The value of one.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let at = self.entries.binary_search_by(|(probe, _)| (**probe).cmp(name)).ok()?;
        Some(&*self.entries[at].1)
    }

    /// One number for everything a client may see.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

/// Is this a parameter that tells nodes apart?
#[must_use]
pub fn is_node_local(name: &[u8]) -> bool {
    NODE_LOCAL.iter().any(|local| local.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_local_parameters_do_not_count() {
        let mut one = Parameters::default();
        one.note(b"TimeZone", b"UTC");
        let mut two = one.clone();
        one.note(b"in_hot_standby", b"off");
        two.note(b"in_hot_standby", b"on");
        assert_eq!(one.digest(), two.digest());
        assert_eq!(one.shared().collect::<Vec<_>>(), [("TimeZone", "UTC")]);
        two.note(b"TimeZone", b"CET");
        assert_ne!(one.digest(), two.digest());
        assert_eq!(two.value("TimeZone"), Some("CET"));
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let mut parameters = Parameters::default();
        for index in 0..1000 {
            parameters.note(format!("p{index}").as_bytes(), b"v");
        }
        assert_eq!(parameters.shared().count(), PARAMETERS_MAX);
    }
}
