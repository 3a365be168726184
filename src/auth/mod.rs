//! Proves who the client is, and proves us to PostgreSQL.
//!
//! | file | what |
//! |---|---|
//! | `server` | [`ServerExchange`]: a client logs in to us |
//! | `client` | [`ClientExchange`]: we log in to a node |
//! | `scram/` | SCRAM-SHA-256 and -PLUS, both sides, as values |
//! | `secret` | what is stored of a user, and what a login proved |
//! | `userlist`, `secrets` | users of the config file and of a PgBouncer userlist; [`SecretSource`] asks all sources in order |
//! | `query`, `cache` | users looked up on a node by `auth_query` |
//! | `roles` | what a user is a member of, asked of a node |
//! | `link`, `flights` | the connection for both, and lookups under way |
//! | `limit` | failed logins, counted |
//! | `hba/` | who may log in and how: `pg_hba.conf`, `pg_ident.conf` |
//!
//! Invariants: exchanges take and give message bodies (the bytes behind tag and length), nothing
//! else; a user that does not exist is asked for a proof like any other and then refused; proofs
//! are compared in constant time; secrets are wiped when dropped and never printed.
//! Absent on purpose: sockets inside exchanges (only `link` talks to a node), framing, GSSAPI,
//! SSPI, OAUTHBEARER, and TLS itself (its facts are arguments).

mod cache;
mod client;
mod error;
mod flights;
pub mod hba;
mod limit;
mod link;
mod md5;
mod query;
mod roles;
mod scram;
mod secret;
mod secrets;
mod server;
#[cfg(test)]
mod tests;
mod userlist;

pub use client::{ClientExchange, ClientStep, NodeChannel, NodeCredential};
pub use error::{AuthError, Flaw, NameMethod, NodeMethod, NodeRefusal, NotAdmitted, Rejection, Unavailability};
pub use limit::{LoginLimiter, LoginLimits};
pub use link::{Candidates, NodeLink, Protection};
pub use query::{AuthQuery, DEFAULT_AUTH_QUERY};
pub use roles::{Memberships, ROLES_TTL};
pub use secret::{BadSecret, Md5Hash, NodePassword, Plain, ScramKeys, ScramVerifier, StoredSecret};
pub use secrets::{SecretSource, Secrets};
pub use server::{Proof, ServerExchange, ServerStep};

/// Longest body of a client's 'p' message that an exchange accepts, bytes (PostgreSQL's
/// `PG_MAX_AUTH_TOKEN_LENGTH`); the reader of the socket should refuse longer ones by their header.
pub const RESPONSE_BYTES_MAX: usize = 65_535;

/// Codes of an Authentication ('R') message (PostgreSQL docs, "Message Formats").
mod code {
    pub(super) const OK: u32 = 0;
    pub(super) const KERBEROS_V5: u32 = 2;
    pub(super) const CLEARTEXT_PASSWORD: u32 = 3;
    pub(super) const MD5_PASSWORD: u32 = 5;
    pub(super) const GSS: u32 = 7;
    pub(super) const GSS_CONTINUE: u32 = 8;
    pub(super) const SSPI: u32 = 9;
    pub(super) const SASL: u32 = 10;
    pub(super) const SASL_CONTINUE: u32 = 11;
    pub(super) const SASL_FINAL: u32 = 12;
}
