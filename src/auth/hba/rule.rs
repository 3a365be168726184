//! One line of `pg_hba.conf`, read.
//!
//! The messages are PostgreSQL's own where it has one. Invariant: a rule that could be read can be
//! carried out: what this proxy does not speak (LDAP, GSSAPI, …) is refused here, not at a login. Absent on
//! purpose: matching (see `decide`).

use super::address::{Origin, Parsed};
use super::files::{Line, Place};
use super::names::{DatabaseName, RoleName};
use super::token::{Field, Token};
use crate::config::AuthMethod;

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where it is written.
    pub place: Place,
    pub(super) link: Link,
    pub(super) databases: Vec<DatabaseName>,
    pub(super) roles: Vec<RoleName>,
    pub(super) origin: Origin,
    /// What the client has to do.
    pub method: Method,
    /// The map of `pg_ident.conf` that turns outside names into roles; `None`: they must be equal.
    pub map: Option<Box<str>>,
    /// What is asked of the client's certificate besides.
    pub certificate: CertificateCheck,
    /// Which part of the certificate is the name.
    pub certificate_name: CertificateName,
}

/// The kinds of connection that a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
    /// Never matches: there is no GSSAPI encryption here.
    HostGssEnc,
    HostNoGssEnc,
}

/// What a rule demands of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Nothing.
    Trust,
    /// It goes away.
    Reject,
    /// A proof that it knows the password.
    Password(AuthMethod),
    /// A certificate in the user's name.
    Cert,
    /// A process of the system user of that name.
    Peer,
}

impl Method {
    /// The word in the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        use crate::config::Choice;
        match self {
            Self::Trust => "trust",
            Self::Reject => "reject",
            Self::Password(method) => method.word(),
            Self::Cert => "cert",
            Self::Peer => "peer",
        }
    }
}

/// `clientcert`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateCheck {
    /// None is needed.
    Off,
    /// One that our authorities vouch for.
    VerifyCa,
    /// One that names the user, too.
    VerifyFull,
}

/// `clientname`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// The common name.
    CommonName,
    /// The whole subject (RFC 2253).
    DistinguishedName,
}

/// Methods of PostgreSQL that are refused when the file is read, and what to do instead.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("gss", "GSSAPI cannot be proved to a node by somebody in between"),
    ("sspi", "SSPI exists on Windows only"),
    ("pam", "there is no PAM here"),
    ("bsd", "there is no BSD authentication here"),
    ("ldap", "let auth_query ask PostgreSQL, or let clients come with a password or a certificate"),
    ("radius", "let clients come with a password or a certificate"),
    ("oauth", "OAUTHBEARER is not spoken here; let clients come with a password or a certificate"),
];

/// Options of methods that are refused here, so that they are not taken for typing errors.
const OTHER_OPTIONS: &[&str] = &[
    "pamservice",
    "pam_use_hostname",
    "ldapurl",
    "ldaptls",
    "ldapscheme",
    "ldapserver",
    "ldapport",
    "ldapbinddn",
    "ldapbindpasswd",
    "ldapsearchattribute",
    "ldapsearchfilter",
    "ldapbasedn",
    "ldapprefix",
    "ldapsuffix",
    "krb_realm",
    "include_realm",
    "compat_realm",
    "upn_username",
    "radiusservers",
    "radiusports",
    "radiussecrets",
    "radiusidentifiers",
    "issuer",
    "scope",
    "validator",
    "delegate_ident_mapping",
];

impl Rule {
    /// Reads a line. The errors are sentences without the place.
    pub(super) fn parse(line: &Line) -> Result<Self, String> {
        let mut fields = line.fields.iter();
        let link = parse_link(one(fields.next(), "connection type")?)?;
        let databases = fields.next().ok_or("end-of-line before database specification")?;
        let databases = databases.iter().map(DatabaseName::parse).collect::<Result<_, _>>()?;
        let roles = fields.next().ok_or("end-of-line before role specification")?;
        let roles = roles.iter().map(RoleName::parse).collect::<Result<_, _>>()?;
        let origin = match link {
            Link::Local => Origin::Anywhere,
            _ => parse_origin(&mut fields)?,
        };
        let method = fields.next().ok_or("end-of-line before authentication method")?;
        let method = parse_method(&one(Some(method), "authentication type")?.text, link)?;
        let mut rule = Self {
            place: line.place.clone(),
            link,
            databases,
            roles,
            origin,
            method,
            map: None,
            certificate: if method == Method::Cert { CertificateCheck::VerifyFull } else { CertificateCheck::Off },
            certificate_name: CertificateName::CommonName,
        };
        for option in fields.flatten() {
            rule.set(&option.text)?;
        }
        Ok(rule)
    }

    fn set(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| format!("authentication option not in name=value format: {option}"))?;
        let only_ssl = |name: &str| match self.link {
            Link::HostSsl => Ok(()),
            _ => Err(format!("{name} can only be configured for \"hostssl\" rows")),
        };
        match name {
            "map" if matches!(self.method, Method::Peer | Method::Cert) => self.map = Some(value.into()),
            "map" => {
                return Err(
                    "authentication option \"map\" is only valid for authentication methods peer and cert".to_owned()
                );
            }
            "clientcert" => {
                only_ssl(name)?;
                self.certificate = match value {
                    "verify-full" => CertificateCheck::VerifyFull,
                    "verify-ca" if self.method == Method::Cert => {
                        return Err(
                            "clientcert only accepts \"verify-full\" when using \"cert\" authentication".to_owned()
                        );
                    }
                    "verify-ca" => CertificateCheck::VerifyCa,
                    _ => return Err(format!("invalid value for clientcert: \"{value}\"")),
                };
            }
            "clientname" => {
                only_ssl(name)?;
                self.certificate_name = match value {
                    "CN" => CertificateName::CommonName,
                    "DN" => CertificateName::DistinguishedName,
                    _ => return Err(format!("invalid value for clientname: \"{value}\"")),
                };
            }
            _ if OTHER_OPTIONS.contains(&name) => {
                let method = self.method.word();
                return Err(format!("authentication option \"{name}\" is not valid for method \"{method}\""));
            }
            _ => return Err(format!("unrecognized authentication option name: \"{name}\"")),
        }
        Ok(())
    }
}

/// The only token of a field.
fn one<'f>(field: Option<&'f Field>, what: &str) -> Result<&'f Token, String> {
    match field.map(Vec::as_slice) {
        Some([token]) => Ok(token),
        Some(_) => Err(format!("multiple values specified for {what}")),
        None => Err(format!("end-of-line before {what}")),
    }
}

fn parse_link(token: &Token) -> Result<Link, String> {
    match token.text.as_str() {
        "local" => Ok(Link::Local),
        "host" => Ok(Link::Host),
        "hostssl" => Ok(Link::HostSsl),
        "hostnossl" => Ok(Link::HostNoSsl),
        "hostgssenc" => Ok(Link::HostGssEnc),
        "hostnogssenc" => Ok(Link::HostNoGssEnc),
        other => Err(format!("invalid connection type \"{other}\"")),
    }
}

fn parse_origin<'f>(fields: &mut impl Iterator<Item = &'f Field>) -> Result<Origin, String> {
    let address = fields.next().ok_or("end-of-line before IP address specification")?;
    match Origin::parse(one(Some(address), "host address")?)? {
        Parsed::Whole(origin) => Ok(origin),
        Parsed::NeedsMask(address) => {
            let mask = fields.next().ok_or("end-of-line before netmask specification")?;
            Origin::with_mask(address, &one(Some(mask), "netmask")?.text)
        }
    }
}

fn parse_method(word: &str, link: Link) -> Result<Method, String> {
    let is_local = link == Link::Local;
    match word {
        "trust" => Ok(Method::Trust),
        "reject" => Ok(Method::Reject),
        "password" => Ok(Method::Password(AuthMethod::Password)),
        "md5" => Ok(Method::Password(AuthMethod::Md5)),
        "scram-sha-256" => Ok(Method::Password(AuthMethod::ScramSha256)),
        "cert" if link == Link::HostSsl => Ok(Method::Cert),
        "cert" => Err("cert authentication is only supported on hostssl connections".to_owned()),
        "peer" if is_local => Ok(Method::Peer),
        "peer" => Err("peer authentication is only supported on local sockets".to_owned()),
        // As PostgreSQL does, for old files.
        "ident" if is_local => Ok(Method::Peer),
        "ident" => Err("authentication method \"ident\" over TCP is not supported: the client's machine would be \
                        believed; use a password or a certificate"
            .to_owned()),
        _ => match UNSUPPORTED.iter().find(|(method, _)| *method == word) {
            Some((_, instead)) => Err(format!("authentication method \"{word}\" is not supported: {instead}")),
            None => Err(format!("invalid authentication method \"{word}\"")),
        },
    }
}
