//! The keys of the `etcd` store, and what one read of all of them shows. Pure.
//!
//! Invariants: all keys of a cluster stand under `<prefix>/<cluster>/`, so that one range holds them all and one
//! answer shows them at one revision. Absent on purpose: requests (see `client`) and their meaning (see `core`).

use crate::failover::event::Record;
use std::time::Duration;

/// Longest value of the state key that is read, bytes; a record takes about 100.
const STATE_BYTES_MAX: usize = 64 * 1024;

/// The names of the keys.
#[derive(Clone, Debug)]
pub struct Names {
    base: String,
    me: String,
}

/// A range of keys: from the first, up to and without the second.
pub type Range = (Vec<u8>, Vec<u8>);

/// One key as etcd tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision that made it.
    pub created: i64,
    /// The revision that changed it last.
    pub changed: i64,
    /// The etcd lease that it ends with; 0: none.
    pub lease: i64,
}

/// What the state key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing: no proxy has recorded anything yet.
    #[default]
    Empty,
    /// Something that is not a record; why.
    Damaged(String),
    /// A record, and the revision that wrote it.
    Held(Record, i64),
}

/// This proxy's key under `routes/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The etcd lease that it ends with.
    pub lease: i64,
    /// The revision of the state that it was made for.
    pub state: i64,
}

/// A key under `holders/`: its proxy may have a lease or the right, as far as anybody can tell, because the key ends
/// with nothing but the proxy's word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The key.
    pub name: Vec<u8>,
    /// The etcd lease of its route or change; unique, as no proxy uses one twice.
    pub lease: i64,
    /// How long its proxy believes what it has read.
    pub ttl: Duration,
    /// Whether it is for the right to change the primary, not for a route.
    pub changes: bool,
}

/// The key `change`, whoever holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The etcd lease that it ends with.
    pub lease: i64,
    /// The revision that made it.
    pub created: i64,
}

/// All keys at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The register.
    pub state: State,
    /// This proxy's route.
    pub route: Option<Route>,
    /// Whether another proxy has a route.
    pub others: bool,
    /// Whoever may hold something, ourselves included.
    pub holders: Vec<Holder>,
    /// The etcd leases of all routes and of `change`.
    pub live: Vec<i64>,
    /// Who changes the primary.
    pub change: Option<Change>,
    /// The etcd lease of the proxy that carries out an operator's order.
    pub order: Option<i64>,
}

impl Names {
    /// For the cluster of this name, and this process of this proxy.
    #[must_use]
    pub fn new(prefix: &str, cluster: &str, me: &str) -> Self {
        Self { base: format!("{}/{cluster}/", prefix.trim_end_matches('/')), me: me.to_owned() }
    }

    /// Who this is, as others see it.
    #[must_use]
    pub fn me(&self) -> &str {
        &self.me
    }

    /// The register.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        self.key("state")
    }

    /// There while somebody may change the primary.
    #[must_use]
    pub fn change(&self) -> Vec<u8> {
        self.key("change")
    }

    /// There while an operator's order is carried out.
    #[must_use]
    pub fn order(&self) -> Vec<u8> {
        self.key("order")
    }

    /// There while this proxy may route writes.
    #[must_use]
    pub fn route(&self) -> Vec<u8> {
        self.key(&format!("routes/{}", self.me))
    }

    /// All keys.
    #[must_use]
    pub fn all(&self) -> Range {
        below(&self.base)
    }

    /// There from before this proxy holds anything with this etcd lease until after it has let go of it.
    #[must_use]
    pub fn holder(&self, lease: i64) -> Vec<u8> {
        self.key(&format!("holders/{}-{lease:x}", self.me))
    }

    /// The routes of all proxies but this one.
    #[must_use]
    pub fn other_routes(&self) -> [Range; 2] {
        let (first, end) = below(&format!("{}routes/", self.base));
        let own = self.route();
        let mut after = own.clone();
        after.push(0);
        [(first, own), (after, end)]
    }

    /// What the keys amount to.
    #[must_use]
    pub fn view(&self, keys: &[Key]) -> View {
        let (routes, holders) = (below(&format!("{}routes/", self.base)), below(&format!("{}holders/", self.base)));
        let inside = |(first, end): &Range, name: &Vec<u8>| (first..end).contains(&name);
        let mut view = View::default();
        for key in keys {
            if inside(&routes, &key.name) || key.name == self.change() {
                view.live.push(key.lease);
            }
            if key.name == self.state() {
                view.state = read_state(key);
            } else if key.name == self.change() {
                view.change = Some(Change { lease: key.lease, created: key.created });
            } else if key.name == self.order() {
                view.order = Some(key.lease);
            } else if key.name == self.route() {
                view.route = Some(Route { lease: key.lease, state: route_state(&key.value) });
            } else if inside(&routes, &key.name) {
                view.others = true;
            } else if inside(&holders, &key.name) {
                view.holders.push(holder_says(key));
            }
        }
        view
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.base).into_bytes()
    }
}

/// Everything below a path that ends with a slash.
fn below(path: &str) -> Range {
    let mut end = path.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (path.as_bytes().to_vec(), end)
}

fn read_state(key: &Key) -> State {
    if key.value.len() > STATE_BYTES_MAX {
        return State::Damaged(format!("it is longer than {STATE_BYTES_MAX} bytes"));
    }
    match serde_json::from_slice(&key.value) {
        Ok(record) => State::Held(record, key.changed),
        Err(e) => State::Damaged(e.to_string()),
    }
}

/// The value of a route key that was made for this revision of the state.
#[must_use]
pub fn route_value(state: i64) -> Vec<u8> {
    state.to_string().into_bytes()
}

/// The other way; a value that somebody else wrote belongs to no revision.
fn route_state(value: &[u8]) -> i64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(-1)
}

/// The value of a holder key.
#[must_use]
pub fn holder_value(lease: i64, ttl: Duration, changes: bool) -> Vec<u8> {
    format!("{lease} {} {}", ttl.as_secs(), if changes { "change" } else { "route" }).into_bytes()
}

/// The other way. What somebody else wrote belongs to no etcd lease, and is feared like the right.
fn holder_says(key: &Key) -> Holder {
    let text = std::str::from_utf8(&key.value).unwrap_or_default();
    let mut words = text.split(' ');
    let mut number = || words.next().and_then(|word| word.parse::<i64>().ok());
    let (lease, seconds) = (number().unwrap_or(-1), number().unwrap_or(0));
    let changes = words.next() != Some("route");
    Holder { name: key.name.clone(), lease, ttl: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)), changes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::conformance::sample;

    fn key(name: Vec<u8>, value: &[u8], lease: i64) -> Key {
        Key { name, value: value.to_vec(), created: 5, changed: 7, lease }
    }

    #[test]
    fn all_keys_of_the_cluster_and_no_others_are_in_the_range() {
        let names = Names::new("/pgregent/", "main", "ab");
        let (first, end) = names.all();
        assert_eq!(first, b"/pgregent/main/");
        for name in [names.state(), names.change(), names.order(), names.route()] {
            assert!((&first..&end).contains(&&name));
        }
        let other = Names::new("/pgregent", "main2", "ab");
        assert!(!(&first..&end).contains(&&other.state()));
    }

    #[test]
    fn the_other_routes_are_all_but_our_own() {
        let names = Names::new("p", "c", "m5");
        let other = |me: &str| Names::new("p", "c", me).route();
        let inside = |name: &Vec<u8>| names.other_routes().iter().any(|(first, end)| (first..end).contains(&name));
        for me in ["m4", "m", "m50", "m6", "zz", "a"] {
            assert!(inside(&other(me)), "{me}");
            assert!(names.view(&[key(other(me), b"1", 3)]).others, "{me}");
        }
        assert!(!inside(&names.route()));
        assert!(!names.view(&[key(names.route(), b"1", 3)]).others);
        assert!(!inside(&names.state()) && !inside(&names.change()));
    }

    #[test]
    fn keys_are_read() {
        let names = Names::new("p", "c", "m5");
        let state = serde_json::to_vec(&sample(3, "a", 2)).unwrap();
        let view = names.view(&[
            key(names.state(), &state, 0),
            key(names.route(), &route_value(7), 11),
            key(names.change(), b"x", 12),
            key(names.order(), b"x", 13),
            key(names.holder(11), &holder_value(11, Duration::from_secs(2), false), 0),
            key(Names::new("p", "c", "m6").holder(16), b"x", 0),
        ]);
        let [ours, strange] = &view.holders[..] else { panic!("{:?}", view.holders) };
        assert_eq!((ours.name.clone(), ours.lease, ours.ttl), (names.holder(11), 11, Duration::from_secs(2)));
        assert!(!ours.changes);
        assert_eq!((strange.lease, strange.ttl, strange.changes), (-1, Duration::ZERO, true));
        assert_eq!(view.live, [11, 12]);
        assert_eq!(view.state, State::Held(sample(3, "a", 2), 7));
        assert_eq!(view.route, Some(Route { lease: 11, state: 7 }));
        assert_eq!(view.change, Some(Change { lease: 12, created: 5 }));
        assert_eq!(view.order, Some(13));
        for damaged in [&b"{"[..], b"", b"\xff", &[b' '; STATE_BYTES_MAX + 1]] {
            let view = names.view(&[key(names.state(), damaged, 0)]);
            assert!(matches!(view.state, State::Damaged(_)), "{:?}", view.state);
        }
        assert_eq!(route_state(b"seven"), -1);
    }
}
