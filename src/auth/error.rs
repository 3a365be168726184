//! Why a login failed, on either side.
//!
//! Invariants: what a client reads does not tell whether the user exists, and names no node and no
//! query; the log text (`Display`) may. Absent on purpose: errors that a node reports in an
//! ErrorResponse; those are the backend's to handle.

use std::time::Duration;

use crate::error::{Classify, ClientError, Fault, Retry, SqlState};

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The client did not prove to be the user. The client is not told why.
    #[error("password authentication failed for user \"{user}\": {why}")]
    Rejected {
        /// The user, as the client gave it.
        user: Box<str>,
        /// For the log only.
        why: Rejection,
    },
    /// The client sent an empty password, which PostgreSQL refuses in all cases.
    #[error("empty password returned by client")]
    EmptyPassword,
    /// The client's message breaks the protocol.
    #[error("malformed authentication message: {0}")]
    Malformed(Flaw),
    /// The client chose a SASL mechanism that was not offered.
    #[error("client selected an invalid SASL authentication mechanism")]
    MechanismNotOffered,
    /// The client wants to act as somebody else (`a=` in SCRAM).
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// The client could bind to the TLS channel, and was made to believe that we cannot.
    #[error("SCRAM channel binding negotiation error")]
    ChannelBindingDowngrade,
    /// The client binds to something that we do not know.
    #[error("unsupported SCRAM channel-binding type \"{0}\"")]
    ChannelBindingType(Box<str>),
    /// The client sees another certificate than ours: somebody is in between.
    #[error("SCRAM channel binding check failed")]
    ChannelBindingFailed,
    /// The client demands a SCRAM extension (`m=`).
    #[error("client requires an unsupported SCRAM extension")]
    ScramExtension,
    /// We could not log in to a node as this user.
    #[error("cannot log in to a node as user \"{user}\": {why}")]
    Node {
        /// The user that we logged in as.
        user: Box<str>,
        /// What went wrong.
        why: NodeRefusal,
    },
    /// The user could not be looked up now.
    #[error("auth_query: {0}")]
    Unavailable(Unavailability),
    /// `auth_query` cannot work as configured; the text is for the operator, never for the client.
    #[error("auth_query: {0}")]
    QueryBroken(Box<str>),
    /// A rule says no, or no rule says yes.
    #[error("{0}")]
    NotAdmitted(Box<NotAdmitted>),
    /// The rule asks for a certificate that was not shown.
    #[error("connection requires a valid client certificate")]
    CertificateMissing,
    /// The name from outside (system user, certificate) may not be this role.
    #[error("{method} authentication failed for user \"{user}\": {why}")]
    NameRefused {
        /// The user, as the client gave it.
        user: Box<str>,
        /// Where the name is from.
        method: NameMethod,
        /// For the log only.
        why: Box<str>,
    },
    /// Too many logins from this address have failed; it may try again after this time.
    #[error("too many failed logins from this address; try again in {} s", .0.as_secs() + 1)]
    TooManyFailures(Duration),
    /// A question that the rules ask could not be answered.
    #[error("the login cannot be judged: {0}")]
    Unanswered(Box<str>),
}

/// A login that no rule lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAdmitted {
    /// A rule rejects it (else there is none for it).
    pub by_rule: bool,
    /// The client's address, or `[local]`.
    pub host: Box<str>,
    /// The user asked for.
    pub user: Box<str>,
    /// The database asked for; `None`: physical replication.
    pub database: Option<Box<str>>,
    /// Is the connection under TLS?
    pub encrypted: bool,
}

impl std::fmt::Display for NotAdmitted {
    /// PostgreSQL's words (`ClientAuthentication` in `auth.c`).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { by_rule, host, user, database, encrypted } = self;
        f.write_str(match (by_rule, database) {
            (true, Some(_)) => "pg_hba.conf rejects connection for",
            (true, None) => "pg_hba.conf rejects replication connection for",
            (false, Some(_)) => "no pg_hba.conf entry for",
            (false, None) => "no pg_hba.conf entry for replication connection from",
        })?;
        write!(f, " host \"{host}\", user \"{user}\", ")?;
        if let Some(database) = database {
            write!(f, "database \"{database}\", ")?;
        }
        f.write_str(if *encrypted { "SSL encryption" } else { "no encryption" })
    }
}

/// Where a name that is not from the client itself comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameMethod {
    /// The kernel, of a process on this machine.
    #[error("Peer")]
    Peer,
    /// The client's certificate, by method `cert`.
    #[error("certificate")]
    Certificate,
    /// The client's certificate, besides a password (`clientcert=verify-full`).
    #[error("password")]
    Password,
    /// The client's certificate, besides nothing (`clientcert=verify-full`).
    #[error("\"trust\"")]
    Trust,
}

/// Why a client was rejected, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No source knows the user, or it may not log in.
    #[error("no such user, or it has no password or may not log in")]
    UnknownUser,
    /// Only an MD5 hash is stored, and SCRAM cannot be done with it.
    #[error("only an md5 hash is stored, which cannot do scram-sha-256")]
    NoScramSecret,
    /// The proof is wrong.
    #[error("wrong password")]
    WrongPassword,
}

/// What is wrong with an authentication message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Longer than any valid message.
    #[error("the message is too long")]
    TooLong,
    /// Shorter than its fixed part.
    #[error("the message is too short")]
    TooShort,
    /// A stated length differs from what is there, or a text is not ended by a NUL.
    #[error("a length does not match the message")]
    LengthMismatch,
    /// It came when none was due.
    #[error("the message was not expected now")]
    OutOfTurn,
    /// A SCRAM attribute is missing, or another one stands in its place.
    #[error("a SCRAM attribute is missing or out of order")]
    Attribute,
    /// The GS2 header is neither `n,,` nor `y,,`.
    #[error("the channel-binding flag is not valid")]
    ChannelBindingFlag,
    /// The client binds to a TLS channel, but chose the mechanism without.
    #[error(
        "the client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data"
    )]
    ChannelBindingData,
    /// The client chose the mechanism with channel binding, and does not bind.
    #[error("the client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data")]
    ChannelBindingMissing,
    /// The client is bound to another channel than ours.
    #[error("the client is bound to another TLS channel")]
    ChannelBindingForged,
    /// `c=` differs from the GS2 header of the first message.
    #[error("the channel-binding attribute is not the one announced")]
    ChannelBindingMismatch,
    /// The nonce is empty, too long or holds bytes that a nonce may not hold.
    #[error("the nonce is not valid")]
    Nonce,
    /// The nonce is not the one of this exchange.
    #[error("the nonce does not match")]
    NonceMismatch,
    /// The proof is not 32 bytes in base64.
    #[error("the proof is not valid")]
    Proof,
    /// The salt is empty, too long or no base64.
    #[error("the salt is not valid")]
    Salt,
    /// The iteration count is no number, zero or absurdly high.
    #[error("the iteration count is out of range")]
    Iterations,
    /// The server's signature is not 32 bytes in base64.
    #[error("the server signature is not valid")]
    Signature,
    /// A password that is not UTF-8.
    #[error("the password is not UTF-8")]
    NotUtf8,
}

/// Why a login to a node did not work out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeRefusal {
    /// The node asks for a method that we do not speak.
    #[error("the node demands {0}, which is not supported; allow scram-sha-256 in its pg_hba.conf")]
    Method(NodeMethod),
    /// The node asks for a proof and nothing is known of the user.
    #[error(
        "the node demands {0}, but neither a password nor SCRAM keys are known for the user; logins by trust, cert and \
         peer bring none: give [[auth.user]] its password, or let the node trust the proxy"
    )]
    NoCredential(NodeMethod),
    /// The node asks for a method that our kind of credential cannot do.
    #[error("the node demands {0}, but what is known of the user cannot do it; use scram-sha-256 or give the password")]
    CredentialUnfit(NodeMethod),
    /// Channel binding is demanded of the node, which does not offer it.
    #[error("the node offers no channel binding, which is required of it")]
    NoChannelBinding,
    /// Our SCRAM keys are for another salt or iteration count: the password was changed.
    #[error("the SCRAM keys do not fit the node's secret: the password was changed, or the nodes differ")]
    KeysDoNotFit,
    /// The node could not prove that it knows the user's secret: not the real node, or a defect.
    #[error("the node's SCRAM signature is wrong")]
    SignatureWrong,
    /// The node let us in before it had proved itself.
    #[error("the node skipped the end of the SCRAM exchange")]
    ProofSkipped,
    /// The node ended the SCRAM exchange with an error of its own.
    #[error("the node refused the SCRAM exchange")]
    ScramRefused,
    /// The node's message breaks the protocol.
    #[error("malformed authentication message from the node: {0}")]
    Malformed(Flaw),
}

/// A way to log in that a node may demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeMethod {
    /// Code 2.
    #[error("Kerberos V5")]
    KerberosV5,
    /// Code 3.
    #[error("password")]
    Password,
    /// Code 5.
    #[error("md5")]
    Md5,
    /// Codes 7 and 8.
    #[error("GSSAPI")]
    Gss,
    /// Code 9.
    #[error("SSPI")]
    Sspi,
    /// Code 10 with SCRAM-SHA-256.
    #[error("scram-sha-256")]
    ScramSha256,
    /// Code 10 with SCRAM-SHA-256-PLUS only.
    #[error("scram-sha-256 with channel binding")]
    ScramSha256Plus,
    /// Code 10 without any SCRAM-SHA-256.
    #[error("an unknown SASL mechanism")]
    SaslOther,
    /// Any other code.
    #[error("unknown authentication method {0}")]
    Other(u32),
}

/// Why a user cannot be looked up now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailability {
    /// No node could be reached.
    #[error("no node could be reached")]
    NoNode,
    /// The node did not answer in time, or went away twice.
    #[error("the node did not answer")]
    NoAnswer,
    /// More logins wait to be checked than allowed.
    #[error("too many logins are being checked")]
    TooManyLogins,
    /// More lookups are under way than allowed.
    #[error("too many lookups are under way")]
    TooMany,
}

impl Classify for AuthError {
    fn fault(&self) -> Fault {
        match self {
            Self::Node { why: NodeRefusal::KeysDoNotFit, .. } => Fault::Client,
            Self::Node { why: NodeRefusal::NoCredential(_) | NodeRefusal::CredentialUnfit(_), .. } => Fault::Proxy,
            Self::Node { .. } => Fault::Node,
            Self::Unavailable(Unavailability::TooMany | Unavailability::TooManyLogins)
            | Self::TooManyFailures(_)
            | Self::QueryBroken(_)
            | Self::Unanswered(_) => Fault::Proxy,
            Self::Unavailable(_) => Fault::Topology,
            Self::Rejected { .. }
            | Self::EmptyPassword
            | Self::Malformed(_)
            | Self::MechanismNotOffered
            | Self::AuthorizationIdentity
            | Self::NotAdmitted(_)
            | Self::CertificateMissing
            | Self::NameRefused { .. }
            | Self::ChannelBindingDowngrade
            | Self::ChannelBindingType(_)
            | Self::ChannelBindingFailed
            | Self::ScramExtension => Fault::Client,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Unavailable(_) | Self::QueryBroken(_) | Self::Unanswered(_) | Self::TooManyFailures(_) => {
                Retry::Later
            }
            Self::Node {
                why: NodeRefusal::SignatureWrong | NodeRefusal::ProofSkipped | NodeRefusal::Malformed(_),
                ..
            } => Retry::OtherNode,
            _ => Retry::Never,
        }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::Rejected { user, .. } => ClientError::fatal(
                SqlState::INVALID_PASSWORD,
                format!("password authentication failed for user \"{user}\""),
            ),
            Self::EmptyPassword => ClientError::fatal(SqlState::INVALID_PASSWORD, "empty password returned by client"),
            Self::Malformed(flaw) => {
                ClientError::fatal(SqlState::PROTOCOL_VIOLATION, "malformed authentication message")
                    .detail(sentence(&flaw.to_string()))
            }
            Self::MechanismNotOffered | Self::ChannelBindingType(_) => {
                ClientError::fatal(SqlState::PROTOCOL_VIOLATION, self.to_string())
            }
            Self::ChannelBindingDowngrade => ClientError::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string())
                .detail(
                    "The client supports SCRAM channel binding but thinks the server does not.  \
                     However, this server does support channel binding.",
                ),
            Self::AuthorizationIdentity | Self::ScramExtension => {
                ClientError::fatal(SqlState::FEATURE_NOT_SUPPORTED, self.to_string())
            }
            Self::Node { user, why } => node_refusal(user, *why),
            Self::Unavailable(_) => {
                ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "the login cannot be checked at the moment")
                    .hint("Try again in a few seconds.")
            }
            Self::QueryBroken(_) | Self::Unanswered(_) => {
                ClientError::fatal(SqlState::INTERNAL_ERROR, "the login cannot be checked")
                    .hint("The log of the proxy tells the operator why.")
            }
            Self::NotAdmitted(_) | Self::CertificateMissing | Self::ChannelBindingFailed | Self::TooManyFailures(_) => {
                ClientError::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string())
            }
            Self::NameRefused { user, method, .. } => ClientError::fatal(
                match method {
                    NameMethod::Password => SqlState::INVALID_PASSWORD,
                    _ => SqlState::INVALID_AUTHORIZATION,
                },
                format!("{method} authentication failed for user \"{user}\""),
            ),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Rejected { .. } | Self::EmptyPassword => "login_rejected",
            Self::Malformed(_)
            | Self::MechanismNotOffered
            | Self::ChannelBindingType(_)
            | Self::AuthorizationIdentity
            | Self::ScramExtension => "login_malformed",
            Self::ChannelBindingDowngrade | Self::ChannelBindingFailed => "login_channel_binding",
            Self::Node { why: NodeRefusal::KeysDoNotFit, .. } => "node_login_keys_stale",
            Self::Node { .. } => "node_login_failed",
            Self::Unavailable(_) => "auth_query_unavailable",
            Self::QueryBroken(_) => "auth_query_broken",
            Self::NotAdmitted(refusal) if refusal.by_rule => "login_rejected_by_rule",
            Self::NotAdmitted(_) => "login_without_rule",
            Self::CertificateMissing => "login_without_certificate",
            Self::NameRefused { .. } => "login_name_refused",
            Self::Unanswered(_) => "login_unanswered",
            Self::TooManyFailures(_) => "login_rate_limited",
        }
    }
}

impl AuthError {
    /// Has the client tried to prove something, and failed? Guessing is made of these.
    #[must_use]
    pub fn is_failed_proof(&self) -> bool {
        matches!(
            self,
            Self::Rejected { .. }
                | Self::EmptyPassword
                | Self::NameRefused { .. }
                | Self::ChannelBindingDowngrade
                | Self::ChannelBindingFailed
        )
    }
}

fn node_refusal(user: &str, why: NodeRefusal) -> ClientError {
    match why {
        NodeRefusal::KeysDoNotFit => ClientError::fatal(
            SqlState::INVALID_PASSWORD,
            format!("password of user \"{user}\" is not the one of this session's login"),
        )
        .detail("The password was changed while the session was connected.")
        .hint("Connect again."),
        NodeRefusal::NoCredential(_) | NodeRefusal::CredentialUnfit(_) => ClientError::fatal(
            SqlState::INVALID_AUTHORIZATION,
            format!("user \"{user}\" cannot be logged in to the database with what the proxy knows"),
        )
        .hint("The log of the proxy tells the operator why."),
        _ => ClientError::fatal(SqlState::CONNECTION_FAILURE, "login to the database failed"),
    }
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).chain(['.']).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Severity;

    #[test]
    fn a_rejected_client_reads_what_postgresql_says_and_not_why() {
        let rejected = |why| AuthError::Rejected { user: "joe".into(), why };
        let said = rejected(Rejection::WrongPassword).client();
        assert_eq!(said.severity, Severity::Fatal);
        assert_eq!(said.sqlstate.0, "28P01");
        assert_eq!(said.message, "password authentication failed for user \"joe\"");
        for why in [Rejection::UnknownUser, Rejection::NoScramSecret] {
            assert_eq!(rejected(why).client(), said);
        }
    }

    #[test]
    fn a_client_reads_nothing_of_the_query() {
        let error = AuthError::QueryBroken("relation \"secret_table\" does not exist on 10.0.0.1".into());
        let said = format!("{:?}", error.client());
        assert!(!said.contains("secret_table") && !said.contains("10.0.0.1"), "{said}");
    }

    #[test]
    fn a_flaw_is_told_as_a_sentence() {
        let said = AuthError::Malformed(Flaw::TooLong).client();
        assert_eq!(said.detail.as_deref(), Some("The message is too long."));
        assert_eq!(said.sqlstate.0, "08P01");
    }
}
