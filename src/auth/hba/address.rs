//! The address field of a rule: who may come from where.
//!
//! Invariants: an IPv4 address inside IPv6 (`::ffff:…`) counts as IPv4; a range matches only its
//! own family. Absent on purpose: asking for host names and interfaces (see [`Known`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::decide::{Known, Need};
use super::token::Token;

/// Addresses with a common beginning, or any that a mask tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    mask: IpAddr,
}

impl Network {
    /// The network of this address; `None` if the mask is of the other family.
    #[must_use]
    pub fn new(address: IpAddr, mask: IpAddr) -> Option<Self> {
        (address.is_ipv4() == mask.is_ipv4()).then_some(Self { address, mask })
    }

    /// The network whose first `bits` bits are those of the address.
    #[must_use]
    pub fn with_prefix(address: IpAddr, bits: u32) -> Option<Self> {
        let mask = match address {
            IpAddr::V4(_) => {
                let mask = u32::MAX.checked_shl(32u32.checked_sub(bits)?).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(mask))
            }
            IpAddr::V6(_) => {
                let mask = u128::MAX.checked_shl(128u32.checked_sub(bits)?).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(mask))
            }
        };
        Some(Self { address, mask })
    }

    /// Is the address in it?
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, self.mask, other) {
            (IpAddr::V4(own), IpAddr::V4(mask), IpAddr::V4(other)) => {
                (u32::from(own) ^ u32::from(other)) & u32::from(mask) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(mask), IpAddr::V6(other)) => {
                (u128::from(own) ^ u128::from(other)) & u128::from(mask) == 0
            }
            _ => false,
        }
    }
}

/// Where a client must come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Anywhere,
    /// One of this machine's own addresses.
    SameHost,
    /// A network that this machine is in.
    SameNet,
    Range(Network),
    /// A host of this name, or, with a dot in front, of a name that ends so.
    HostName(Box<str>),
}

/// What the address field says by itself.
pub(super) enum Parsed {
    Whole(Origin),
    /// An address whose mask is in the next field.
    NeedsMask(IpAddr),
}

impl Origin {
    /// Reads the address field.
    pub(super) fn parse(token: &Token) -> Result<Parsed, String> {
        let keyword = [("all", Self::Anywhere), ("samehost", Self::SameHost), ("samenet", Self::SameNet)]
            .into_iter()
            .find(|(word, _)| token.is_keyword(word));
        if let Some((_, origin)) = keyword {
            return Ok(Parsed::Whole(origin));
        }
        let (host, bits) = match token.text.split_once('/') {
            Some((host, bits)) => (host, Some(bits)),
            None => (token.text.as_str(), None),
        };
        let Ok(address) = host.parse::<IpAddr>() else { return host_name(&token.text, host, bits) };
        let Some(bits) = bits else { return Ok(Parsed::NeedsMask(address)) };
        let digits = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let network = bits.parse().ok().filter(|_| digits).and_then(|bits| Network::with_prefix(address, bits));
        let network = network.ok_or_else(|| format!("invalid CIDR mask in address \"{}\"", token.text))?;
        Ok(Parsed::Whole(Self::Range(network)))
    }

    /// Reads the mask behind an address.
    pub(super) fn with_mask(address: IpAddr, mask: &str) -> Result<Self, String> {
        let mask = mask.parse().map_err(|_| format!("invalid IP mask \"{mask}\""))?;
        let network = Network::new(address, mask).ok_or("IP address and mask do not match")?;
        Ok(Self::Range(network))
    }

    /// Does a client of this address come from there?
    pub(super) fn holds(&self, address: IpAddr, known: &Known) -> Result<bool, Need> {
        let address = address.to_canonical();
        match self {
            Self::Anywhere => Ok(true),
            Self::Range(network) => Ok(network.contains(address)),
            Self::SameHost => {
                let own = known.interfaces.as_ref().ok_or(Need::Interfaces)?;
                Ok(own.iter().any(|network| network.address == address))
            }
            Self::SameNet => {
                let own = known.interfaces.as_ref().ok_or(Need::Interfaces)?;
                Ok(own.iter().any(|network| network.contains(address)))
            }
            Self::HostName(wanted) => {
                let name = known.host_name.as_ref().ok_or(Need::HostName)?;
                Ok(name.as_ref().is_some_and(|name| is_host(name, wanted)))
            }
        }
    }
}

fn host_name(whole: &str, host: &str, bits: Option<&str>) -> Result<Parsed, String> {
    // What looks like a number is a mistyped address, not the name of a host.
    let numeric = host.contains(':') || host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if numeric {
        return Err(format!("invalid IP address \"{host}\""));
    }
    if bits.is_some() {
        return Err(format!("specifying both host name and CIDR mask is invalid: \"{whole}\""));
    }
    Ok(Parsed::Whole(Origin::HostName(host.into())))
}

/// Is the name the wanted one, or does it end with it (where that begins with a dot)?
fn is_host(name: &str, wanted: &str) -> bool {
    if !wanted.starts_with('.') {
        return name.eq_ignore_ascii_case(wanted);
    }
    let cut = name.len().checked_sub(wanted.len()).filter(|at| name.is_char_boundary(*at));
    cut.is_some_and(|at| name[at..].eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin(text: &str) -> Result<Origin, String> {
        let mut words = text.split(' ');
        let token = Token { text: words.next().unwrap_or_default().to_owned(), quoted: false };
        match Origin::parse(&token)? {
            Parsed::Whole(origin) => Ok(origin),
            Parsed::NeedsMask(address) => Origin::with_mask(address, words.next().unwrap_or_default()),
        }
    }

    fn holds(text: &str, address: &str) -> bool {
        origin(text).unwrap().holds(address.parse().unwrap(), &Known::default()).unwrap()
    }

    #[test]
    fn ranges() {
        assert!(holds("127.0.0.1/32", "127.0.0.1") && !holds("127.0.0.1/32", "127.0.0.2"));
        assert!(holds("10.1.2.3/8", "10.255.0.1"), "bits behind the mask do not count");
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("::/0", "::1") && !holds("::/0", "1.2.3.4"));
        assert!(holds("127.0.0.1/32", "::ffff:127.0.0.1"), "IPv4 through an IPv6 socket");
        assert!(holds("fe80::1/10", "fe80::ffff") && !holds("fe80::1/64", "fe80:1::1"));
        assert!(holds("10.0.0.0 255.255.0.255", "10.0.9.0") && !holds("10.0.0.0 255.255.0.255", "10.0.9.1"));
        assert!(holds("all", "1.2.3.4"));
    }

    #[test]
    fn what_is_no_address() {
        for (text, problem) in [
            ("10.0.0.0/33", "invalid CIDR mask in address \"10.0.0.0/33\""),
            ("10.0.0.0/", "invalid CIDR mask in address \"10.0.0.0/\""),
            ("10.0.0.0/+8", "invalid CIDR mask in address \"10.0.0.0/+8\""),
            ("::1/129", "invalid CIDR mask in address \"::1/129\""),
            ("10.0.0/8", "invalid IP address \"10.0.0\""),
            ("10.0.0.256/32", "invalid IP address \"10.0.0.256\""),
            ("fe80::1%lo/10", "invalid IP address \"fe80::1%lo\""),
            ("host/8", "specifying both host name and CIDR mask is invalid: \"host/8\""),
            ("10.0.0.0 255", "invalid IP mask \"255\""),
            ("10.0.0.0 ffff::", "IP address and mask do not match"),
        ] {
            assert_eq!(origin(text), Err(problem.to_owned()), "{text}");
        }
    }

    #[test]
    fn host_names_are_asked_for() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let known = |name: Option<&str>| Known { host_name: Some(name.map(Into::into)), ..Known::default() };
        let rule = |text: &str| origin(text).unwrap();
        assert_eq!(rule("db.example.com").holds(address, &Known::default()), Err(Need::HostName));
        assert_eq!(rule("db.example.com").holds(address, &known(Some("DB.example.COM"))), Ok(true));
        assert_eq!(rule("db.example.com").holds(address, &known(None)), Ok(false));
        assert_eq!(rule(".example.com").holds(address, &known(Some("a.b.Example.com"))), Ok(true));
        assert_eq!(rule(".example.com").holds(address, &known(Some("example.com"))), Ok(false));
        assert_eq!(rule("example.com").holds(address, &known(Some("a.example.com"))), Ok(false));
    }

    #[test]
    fn our_own_networks_are_asked_for() {
        let own = Network::with_prefix([10, 0, 0, 1].into(), 24).unwrap();
        let known = Known { interfaces: Some([own].into()), ..Known::default() };
        let asked = |text: &str, address: [u8; 4]| origin(text).unwrap().holds(address.into(), &known);
        assert_eq!(asked("samehost", [10, 0, 0, 1]), Ok(true));
        assert_eq!(asked("samehost", [10, 0, 0, 2]), Ok(false));
        assert_eq!(asked("samenet", [10, 0, 0, 2]), Ok(true));
        assert_eq!(asked("samenet", [10, 0, 1, 2]), Ok(false));
        assert_eq!(Origin::SameNet.holds([10, 0, 0, 1].into(), &Known::default()), Err(Need::Interfaces));
    }

    proptest! {
        #[test]
        fn a_prefix_compares_that_many_bits(own: u128, other: u128, bits in 0u32..=128) {
            let network = Network::with_prefix(IpAddr::V6(own.into()), bits).unwrap();
            let same = (own ^ other).leading_zeros() >= bits;
            prop_assert_eq!(network.contains(IpAddr::V6(other.into())), same);
        }
    }
}
