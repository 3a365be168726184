//! We log in to a node: one exchange, message bodies in, message bodies out.
//!
//! Invariants: AuthenticationOk counts only where it is due (a node that began SCRAM must finish
//! it, and so prove that it knows the user's secret); a password goes out only when asked for.
//! Absent on purpose: framing, ErrorResponses of the node, TLS.

use std::fmt;
use std::mem;
use std::sync::Arc;
use zeroize::Zeroizing;

use super::code;
use super::error::{AuthError, Flaw, NodeMethod, NodeRefusal};
use super::md5::{self, CHALLENGE_BYTES};
use super::scram::{self, AwaitServerFinal, AwaitServerFirst, ClientBinding, ClientSecret, MECHANISM, MECHANISM_PLUS};
use super::secret::{Md5Hash, NodePassword, ScramKeys, StoredSecret};
use super::server::Proof;

/// What we can prove to a node that we are a user with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeCredential {
    /// Nothing; the node must trust us.
    #[default]
    None,
    /// The password: good for every method.
    Password(NodePassword),
    /// The stored MD5 hash: good for md5 only.
    Md5(Md5Hash),
    /// Keys from a client's login: good for SCRAM with the same verifier only.
    ScramKeys(ScramKeys),
    /// What was known proves an old password: nothing, until a client logs in again.
    Outdated,
}

impl NodeCredential {
    /// The best that a client's login and the stored secret give. A verifier alone gives nothing:
    /// it can check a client but not log in.
    #[must_use]
    pub fn of(proof: &Proof, stored: Option<&StoredSecret>) -> Self {
        match (proof, stored) {
            (Proof::Password(password), _) => Self::Password(NodePassword::new(password.clone())),
            (_, Some(StoredSecret::Plain(plain))) => Self::Password(NodePassword::new(plain.password().clone())),
            (Proof::ScramKeys(keys), _) => Self::ScramKeys(keys.clone()),
            (Proof::None, Some(StoredSecret::Md5(hash))) => Self::Md5(hash.clone()),
            (Proof::None, Some(StoredSecret::Scram(_)) | None) => Self::None,
        }
    }
}

/// What to do next in our login.
#[derive(PartialEq, Eq)]
pub enum ClientStep {
    /// Nothing to send; wait for the node's next message.
    Continue,
    /// Send this body as a 'p' message.
    Send(Zeroizing<Vec<u8>>),
    /// The node let us in (AuthenticationOk).
    Ok,
}

impl fmt::Debug for ClientStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continue => f.write_str("Continue"),
            Self::Send(body) => write!(f, "Send({} bytes)", body.len()), // may be a password
            Self::Ok => f.write_str("Ok"),
        }
    }
}

/// Our login to a node under way.
pub struct ClientExchange {
    user: Box<str>,
    credential: NodeCredential,
    channel: NodeChannel,
    state: State,
}

/// How a login to a node may be tied to the TLS channel that it runs over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeChannel {
    /// There is none, or it is not to be used.
    #[default]
    None,
    /// To the hash of the node's certificate, if the node offers that.
    Preferred(Arc<[u8]>),
    /// To the hash of the node's certificate, or no login (`None`: there is no hash, so no login).
    Required(Option<Arc<[u8]>>),
}

enum State {
    /// Nothing was asked yet.
    Start,
    ScramFirst(AwaitServerFirst),
    ScramFinal(AwaitServerFinal),
    /// All was answered; only AuthenticationOk is due.
    AwaitOk,
    Over,
}

impl ClientExchange {
    /// Starts a login as `user`, before the node's first message.
    #[must_use]
    pub fn new(user: &str, credential: &NodeCredential) -> Self {
        let channel = NodeChannel::None;
        Self { user: user.into(), credential: credential.clone(), channel, state: State::Start }
    }

    /// Ties the login to a TLS channel.
    #[must_use]
    pub fn over(self, channel: NodeChannel) -> Self {
        Self { channel, ..self }
    }

    /// Takes the body of an Authentication ('R') message.
    ///
    /// # Errors
    /// [`AuthError::Node`]: the login cannot succeed; close the connection.
    pub fn on_auth(&mut self, body: &[u8]) -> Result<ClientStep, AuthError> {
        self.advance(body).map_err(|why| AuthError::Node { user: self.user.clone(), why })
    }

    fn advance(&mut self, body: &[u8]) -> Result<ClientStep, NodeRefusal> {
        let (code, data) = body.split_first_chunk::<4>().ok_or(NodeRefusal::Malformed(Flaw::TooShort))?;
        let state = mem::replace(&mut self.state, State::Over);
        match (u32::from_be_bytes(*code), state) {
            // Nothing but the exchange with channel binding proves that nobody is in between.
            (code, State::Start) if code != code::SASL && matches!(self.channel, NodeChannel::Required(_)) => {
                Err(NodeRefusal::NoChannelBinding)
            }
            (code::OK, State::Start | State::AwaitOk) => Ok(ClientStep::Ok),
            (code::OK, State::ScramFirst(_) | State::ScramFinal(_)) => Err(NodeRefusal::ProofSkipped),
            (code::CLEARTEXT_PASSWORD, State::Start) => self.send_password(),
            (code::MD5_PASSWORD, State::Start) => self.send_md5(data),
            (code::SASL, State::Start) => self.begin_scram(data),
            (code::SASL_CONTINUE, State::ScramFirst(scram)) => {
                let (next, message) = scram.answer(data)?;
                self.state = State::ScramFinal(next);
                Ok(ClientStep::Send(Zeroizing::new(message)))
            }
            (code::SASL_FINAL, State::ScramFinal(scram)) => {
                scram.check(data)?;
                self.state = State::AwaitOk;
                Ok(ClientStep::Continue)
            }
            (code, State::Start) => Err(NodeRefusal::Method(other_method(code))),
            _ => Err(NodeRefusal::Malformed(Flaw::OutOfTurn)),
        }
    }

    fn send_password(&mut self) -> Result<ClientStep, NodeRefusal> {
        let password = match &self.credential {
            NodeCredential::Password(password) => password.password().clone(),
            credential => return Err(unfit(credential, NodeMethod::Password)),
        };
        Ok(self.send_text(password.expose()))
    }

    fn send_md5(&mut self, data: &[u8]) -> Result<ClientStep, NodeRefusal> {
        let challenge =
            <[u8; CHALLENGE_BYTES]>::try_from(data).map_err(|_| NodeRefusal::Malformed(Flaw::LengthMismatch))?;
        let hash = match &self.credential {
            NodeCredential::Password(password) => Md5Hash::derive(password.password().expose(), &self.user),
            NodeCredential::Md5(hash) => hash.clone(),
            credential => return Err(unfit(credential, NodeMethod::Md5)),
        };
        Ok(self.send_text(&md5::response(hash.expose(), challenge)))
    }

    fn send_text(&mut self, text: &str) -> ClientStep {
        self.state = State::AwaitOk;
        ClientStep::Send(Zeroizing::new([text.as_bytes(), b"\0"].concat()))
    }

    fn begin_scram(&mut self, offered: &[u8]) -> Result<ClientStep, NodeRefusal> {
        let offers = |name: &str| offered.split(|byte| *byte == 0).any(|offer| offer == name.as_bytes());
        let plain = (MECHANISM, offers(MECHANISM));
        let (mechanism, binding) = match (&self.channel, offers(MECHANISM_PLUS), plain) {
            (NodeChannel::Preferred(hash) | NodeChannel::Required(Some(hash)), true, _) => {
                (MECHANISM_PLUS, ClientBinding::To(Arc::clone(hash)))
            }
            (NodeChannel::Required(_), ..) => return Err(NodeRefusal::NoChannelBinding),
            (NodeChannel::Preferred(_), false, (name, true)) => (name, ClientBinding::NotOffered),
            (NodeChannel::None, _, (name, true)) => (name, ClientBinding::Unable),
            (NodeChannel::None, true, _) => return Err(NodeRefusal::Method(NodeMethod::ScramSha256Plus)),
            (_, false, _) => return Err(NodeRefusal::Method(NodeMethod::SaslOther)),
        };
        let secret = match &self.credential {
            NodeCredential::Password(password) => ClientSecret::Password(password.clone()),
            NodeCredential::ScramKeys(keys) => ClientSecret::Keys(keys.clone()),
            credential => return Err(unfit(credential, NodeMethod::ScramSha256)),
        };
        let (next, message) = AwaitServerFirst::begin(secret, binding, scram::nonce_of(rand::random()));
        self.state = State::ScramFirst(next);
        let length = u32::try_from(message.len()).map_err(|_| NodeRefusal::Malformed(Flaw::TooLong))?;
        let body = [mechanism.as_bytes(), b"\0", &length.to_be_bytes(), &message].concat();
        Ok(ClientStep::Send(Zeroizing::new(body)))
    }
}

fn unfit(credential: &NodeCredential, method: NodeMethod) -> NodeRefusal {
    match credential {
        NodeCredential::None => NodeRefusal::NoCredential(method),
        NodeCredential::Outdated => NodeRefusal::KeysDoNotFit,
        _ => NodeRefusal::CredentialUnfit(method),
    }
}

fn other_method(code: u32) -> NodeMethod {
    match code {
        code::KERBEROS_V5 => NodeMethod::KerberosV5,
        code::GSS | code::GSS_CONTINUE => NodeMethod::Gss,
        code::SSPI => NodeMethod::Sspi,
        other => NodeMethod::Other(other),
    }
}
