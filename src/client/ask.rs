//! What the rules want to know of a client beyond its connection: memberships, host names, system users.
//!
//! The answers come from the cluster, the name service and the kernel; whatever blocks runs off
//! the data plane's threads, a few at once. Invariants: a name counts for an address only if it
//! leads back to it; nobody's login waits for another's but in the line for a thread. Absent on purpose:
//! judging the answers (`auth::hba`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::auth::hba::{Known, Need, Network};
use crate::auth::{AuthError, Memberships};
use crate::clock::Time;
use crate::net::Peer;

/// Questions to the name service at once. They may take seconds each.
const QUESTIONS_MAX: usize = 16;

/// Asks.
#[derive(Clone, Debug)]
pub struct Inquirer {
    memberships: Memberships,
    places: Arc<Semaphore>,
}

impl Inquirer {
    /// Asks the cluster over the connection of `memberships`.
    #[must_use]
    pub fn new(memberships: Memberships) -> Self {
        Self { memberships, places: Arc::new(Semaphore::new(QUESTIONS_MAX)) }
    }

    /// Learns what is needed.
    pub(super) async fn learn(
        &self,
        need: Need,
        user: &str,
        peer: Peer,
        now: Time,
        known: &mut Known,
    ) -> Result<(), AuthError> {
        match need {
            Need::Roles => known.roles = Some(self.memberships.of(user, now).await?),
            Need::Interfaces => {
                let own = interfaces().map_err(|error| {
                    AuthError::Unanswered(format!("this machine's interfaces cannot be listed: {error}").into())
                })?;
                known.interfaces = Some(own.into());
            }
            Need::HostName => {
                let name = match peer {
                    Peer::Tcp(address) => self.apart(move || host_name(address.ip().to_canonical())).await?,
                    Peer::Unix { .. } => None,
                };
                known.host_name = Some(name);
            }
        }
        Ok(())
    }

    /// The name of a user of this machine.
    pub(super) async fn system_user(&self, uid: u32) -> Result<Box<str>, AuthError> {
        let name = move || uzers::get_user_by_uid(uid).and_then(|user| user.name().to_str().map(Box::from));
        let name = self.apart(name).await?;
        name.ok_or_else(|| AuthError::Unanswered(format!("could not look up local user ID {uid}").into()))
    }

    async fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, AuthError> {
        let broken = |what: &str| AuthError::Unanswered(what.into());
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| broken("the proxy stops"))?;
        let asking = tokio::task::spawn_blocking(move || {
            // The place is given back when the work ends, not when the client gives up.
            let _place = place;
            work()
        });
        asking.await.map_err(|error| broken(&error.to_string()))
    }
}

/// The name that an address has and that leads back to it.
fn host_name(address: IpAddr) -> Option<Box<str>> {
    let name = match dns_lookup::lookup_addr(&address) {
        // Without a name the address itself comes back as a text.
        Ok(name) if name.parse::<IpAddr>().is_err() => name,
        Ok(_) => return None,
        Err(error) => {
            tracing::debug!(%address, %error, "the address has no name");
            return None;
        }
    };
    let back: Vec<IpAddr> = dns_lookup::lookup_host(&name).map(|found| found.into_iter().collect()).unwrap_or_default();
    if back.iter().any(|found| found.to_canonical() == address) {
        return Some(name.into());
    }
    tracing::info!(%address, name, "the name of the address does not lead back to it, and does not count");
    None
}

/// This machine's addresses and the networks that they are in.
fn interfaces() -> std::io::Result<Vec<Network>> {
    let network = |interface: if_addrs::Interface| match interface.addr {
        if_addrs::IfAddr::V4(v4) => Network::new(v4.ip.into(), v4.netmask.into()),
        if_addrs::IfAddr::V6(v6) => Network::new(v6.ip.into(), v6.netmask.into()),
    };
    Ok(if_addrs::get_if_addrs()?.into_iter().filter_map(network).collect())
}

/// The host of a client as PostgreSQL's messages tell it.
pub(super) fn host_told(peer: Peer) -> Box<str> {
    match peer {
        Peer::Tcp(address) => SocketAddr::ip(&address).to_canonical().to_string().into(),
        Peer::Unix { .. } => "[local]".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_network() {
        let own = interfaces().unwrap();
        assert!(own.iter().any(|network| network.contains([127, 0, 0, 9].into())), "{own:?}");
    }

    #[test]
    fn the_loopback_address_leads_back_to_itself_or_has_no_name() {
        let name = host_name([127, 0, 0, 1].into());
        assert!(name.as_ref().is_none_or(|name| name.parse::<IpAddr>().is_err()), "{name:?}");
        assert_eq!(host_name([192, 0, 2, 1].into()), None, "an address of the documentation");
    }
}
