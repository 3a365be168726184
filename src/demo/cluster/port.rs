//! Loopback ports that stay ours while a node is down.
//!
//! A number alone is a race: another cluster could take a dead node's port before it restarts, and a
//! proxy would meet a stranger there. So a port is also held by an abstract Unix socket of the same
//! name, which every user of this module respects and the kernel frees when its holder dies.
//!
//! Invariants: two live [`Port`]s of one machine never have the same number; numbers lie below the
//! range from which the kernel takes ports for outgoing connections. Absent on purpose: protection
//! from programs that know nothing of this (they are met by retrying with another port).

use super::error::ClusterError;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Lowest number handed out.
const LOW: u16 = 15_000;
/// Where the kernel's own range starts if it does not say.
const EPHEMERAL_LOW: u16 = 32_768;
/// Numbers tried before giving up.
const TRIES: usize = 500;

/// A loopback port, reserved until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UnixListener,
}

impl Port {
    /// Reserves a port on which nothing listens at 127.0.0.1.
    ///
    /// # Errors
    /// [`ClusterError::NoPort`] if [`TRIES`] random numbers were all taken.
    pub fn reserve() -> Result<Self, ClusterError> {
        let high = ephemeral_low().max(LOW + 1);
        (0..TRIES)
            .find_map(|_| Self::claim(rand::random_range(LOW..high)))
            .ok_or(ClusterError::NoPort { low: LOW, high })
    }

    /// Reserves the first free port at or after `first`, for programs whose port people type.
    ///
    /// # Errors
    /// [`ClusterError::NoPort`] if [`TRIES`] numbers in a row are taken.
    pub fn reserve_from(first: u16) -> Result<Self, ClusterError> {
        let high = first.saturating_add(u16::try_from(TRIES).unwrap_or(u16::MAX));
        (first..high).find_map(Self::claim).ok_or(ClusterError::NoPort { low: first, high })
    }

    /// Reserves exactly this port, if it is free.
    #[must_use]
    pub fn claim(number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("pgregent-port-{number}")).ok()?;
        let claim = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _claim: claim })
    }

    /// The number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

fn ephemeral_low() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(EPHEMERAL_LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_not_given_again_until_dropped() {
        let port = Port::reserve().unwrap();
        let number = port.number();
        assert!(Port::claim(number).is_none());
        assert_ne!(Port::reserve_from(number).unwrap().number(), number);
        drop(port);
        assert!(Port::claim(number).is_some());
    }

    #[test]
    fn a_port_with_a_listener_is_skipped() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(Port::claim(listener.local_addr().unwrap().port()).is_none());
    }
}
