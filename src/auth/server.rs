//! A client logs in to us: one exchange, message bodies in, message bodies out.
//!
//! Invariants: a user without a usable secret is asked like any other (with a salt that is the
//! same at each try) and refused at the end; an exchange that has ended accepts nothing more.
//! Absent on purpose: framing, looking users up, telling the client about errors.

use std::mem;
use std::sync::Arc;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::error::{AuthError, Flaw, Rejection};
use super::md5::CHALLENGE_BYTES;
use super::scram::{self, AwaitClientFinal, Binding, FirstError, MECHANISM, MECHANISM_PLUS, ServerFirst};
use super::secret::{ScramKeys, ScramVerifier, StoredSecret};
use super::{RESPONSE_BYTES_MAX, code, md5};
use crate::config::{AuthMethod, Secret};

/// Bytes of the salts that we make; PostgreSQL's length, or a made-up salt would show.
const SALT_BYTES: usize = 16;

/// What to do next in a client's login.
#[derive(Debug)]
pub enum ServerStep {
    /// Send this body as an Authentication ('R') message and wait for the client's next 'p' message.
    Send(Vec<u8>),
    /// The client has proved itself: send this body as an Authentication message, then AuthenticationOk.
    SendAndDone(Vec<u8>, Proof),
    /// The client has proved itself (or need not): send AuthenticationOk.
    Done(Proof),
}

/// What the login left us with to log in to nodes as this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing more than the stored secret already tells.
    None,
    /// The user's password.
    Password(Secret),
    /// Keys for every node that holds the verifier that the client was checked against.
    ScramKeys(ScramKeys),
}

/// A client's login under way.
pub struct ServerExchange {
    user: Box<str>,
    state: State,
}

enum State {
    AwaitPassword(PasswordCheck),
    AwaitMd5 {
        secret: StoredSecret,
        challenge: [u8; CHALLENGE_BYTES],
    },
    /// With the hash of our certificate, where we offered to bind to it.
    AwaitMechanism(ScramCheck, Option<Arc<[u8]>>),
    /// The client chose the mechanism without saying anything yet.
    AwaitClientFirst(ScramCheck, Binding),
    AwaitClientFinal(AwaitClientFinal, Outcome),
    /// A wrong answer that can be held against a newer secret.
    Refused(Answer),
    Over,
}

enum PasswordCheck {
    Against(StoredSecret),
    /// Costs the same as the other kind with a verifier, and fails.
    Doomed(ScramVerifier),
}

/// An answer that does not depend on the secret that it was held against (a SCRAM proof does).
enum Answer {
    Password(Secret),
    Md5 { challenge: [u8; CHALLENGE_BYTES], response: Zeroizing<Vec<u8>> },
}

struct ScramCheck {
    verifier: ScramVerifier,
    outcome: Outcome,
}

/// What a right SCRAM proof means.
enum Outcome {
    /// The client knows the verifier's password: its keys open nodes with the same verifier.
    Keys,
    /// We know the password too, and it opens any node.
    Password(Secret),
    /// There is no such proof.
    Doomed(Rejection),
}

impl ServerExchange {
    /// Starts a login of `user` by `method`, with what is stored of the user (`None`: no such user).
    /// `mock_seed` is a random secret of this process, the same for all logins.
    ///
    /// `end_point` is the hash of our certificate if the connection is under TLS and has one: then
    /// channel binding (SCRAM-SHA-256-PLUS) is offered.
    ///
    /// As in PostgreSQL, `md5` becomes SCRAM for a user with a SCRAM verifier or without any secret.
    #[must_use]
    pub fn begin(
        method: AuthMethod,
        user: &str,
        secret: Option<&StoredSecret>,
        mock_seed: &[u8; 32],
        end_point: Option<Arc<[u8]>>,
    ) -> (Self, ServerStep) {
        let (state, step) = match (method, secret) {
            (AuthMethod::Trust, _) => (State::Over, ServerStep::Done(Proof::None)),
            (AuthMethod::Password, _) => {
                let check = match secret {
                    Some(secret) => PasswordCheck::Against(secret.clone()),
                    None => PasswordCheck::Doomed(mock_verifier(user, mock_seed)),
                };
                (State::AwaitPassword(check), ServerStep::Send(body(code::CLEARTEXT_PASSWORD, b"")))
            }
            (AuthMethod::Md5, Some(secret @ (StoredSecret::Md5(_) | StoredSecret::Plain(_)))) => {
                let challenge: [u8; CHALLENGE_BYTES] = rand::random();
                let state = State::AwaitMd5 { secret: secret.clone(), challenge };
                (state, ServerStep::Send(body(code::MD5_PASSWORD, &challenge)))
            }
            (AuthMethod::Md5 | AuthMethod::ScramSha256, _) => {
                let plus: &[&[u8]] = &[MECHANISM_PLUS.as_bytes(), b"\0"];
                let plus = if end_point.is_some() { plus.concat() } else { Vec::new() };
                let offer = [&plus, MECHANISM.as_bytes(), b"\0\0"].concat();
                let check = ScramCheck::new(user, secret, mock_seed);
                (State::AwaitMechanism(check, end_point), ServerStep::Send(body(code::SASL, &offer)))
            }
        };
        (Self { user: user.into(), state }, step)
    }

    /// Would [`Self::begin`] hash thousands of rounds with this secret? Only once per [`super::Plain`].
    #[must_use]
    pub fn begins_costly(method: AuthMethod, secret: Option<&StoredSecret>) -> bool {
        matches!((method, secret), (AuthMethod::ScramSha256, Some(StoredSecret::Plain(plain))) if !plain.has_verifier())
    }

    /// Will the next [`Self::step`] hash thousands of rounds?
    #[must_use]
    pub fn steps_costly(&self) -> bool {
        use PasswordCheck::{Against, Doomed};
        matches!(&self.state, State::AwaitPassword(Doomed(_) | Against(StoredSecret::Scram(_))))
    }

    /// Takes the body of a client's 'p' message.
    ///
    /// # Errors
    /// The login failed and is over; tell the client and close. Only [`Self::recheck`] may follow.
    pub fn step(&mut self, body: &[u8]) -> Result<ServerStep, AuthError> {
        if body.len() > RESPONSE_BYTES_MAX {
            self.state = State::Over;
            return Err(AuthError::Malformed(Flaw::TooLong));
        }
        match mem::replace(&mut self.state, State::Over) {
            State::AwaitPassword(check) => self.on_password(&check, body),
            State::AwaitMd5 { secret, challenge } => self.on_md5(&secret, challenge, body),
            State::AwaitMechanism(check, end_point) => self.on_sasl_initial(check, end_point, body),
            State::AwaitClientFirst(check, binding) => self.on_client_first(check, &binding, body),
            State::AwaitClientFinal(scram, outcome) => self.on_client_final(scram, outcome, body),
            State::Refused(_) | State::Over => Err(AuthError::Malformed(Flaw::OutOfTurn)),
        }
    }

    /// Holds the answer that [`Self::step`] just rejected against a newer secret, once. A SCRAM
    /// proof cannot be used again (it is made for one salt): that stays rejected, and the client's next try
    /// meets the newer secret.
    ///
    /// # Errors
    /// Rejected all the same.
    pub fn recheck(&mut self, secret: &StoredSecret) -> Result<ServerStep, AuthError> {
        match mem::replace(&mut self.state, State::Over) {
            State::Refused(Answer::Password(password)) => self.check_password(secret, password),
            State::Refused(Answer::Md5 { challenge, response }) => self.check_md5(secret, challenge, response),
            _ => Err(self.rejected(Rejection::WrongPassword)),
        }
    }

    fn on_password(&mut self, check: &PasswordCheck, body: &[u8]) -> Result<ServerStep, AuthError> {
        let text = std::str::from_utf8(password_text(body)?).map_err(|_| AuthError::Malformed(Flaw::NotUtf8))?;
        let password = Secret::new(text);
        match check {
            PasswordCheck::Against(secret) => self.check_password(secret, password),
            PasswordCheck::Doomed(verifier) => {
                let _ = verifier.accepts(password.expose().as_bytes());
                self.state = State::Refused(Answer::Password(password));
                Err(self.rejected(Rejection::UnknownUser))
            }
        }
    }

    fn check_password(&mut self, secret: &StoredSecret, password: Secret) -> Result<ServerStep, AuthError> {
        let bytes = password.expose().as_bytes();
        let right = match secret {
            StoredSecret::Plain(plain) => bool::from(bytes.ct_eq(plain.password().expose().as_bytes())),
            StoredSecret::Md5(hash) => {
                bool::from(md5::stored(bytes, &self.user).as_bytes().ct_eq(hash.expose().as_bytes()))
            }
            StoredSecret::Scram(verifier) => verifier.accepts(bytes),
        };
        if right {
            return Ok(ServerStep::Done(Proof::Password(password)));
        }
        self.state = State::Refused(Answer::Password(password));
        Err(self.rejected(Rejection::WrongPassword))
    }

    fn on_md5(
        &mut self,
        secret: &StoredSecret,
        challenge: [u8; CHALLENGE_BYTES],
        body: &[u8],
    ) -> Result<ServerStep, AuthError> {
        let response = Zeroizing::new(password_text(body)?.to_vec());
        self.check_md5(secret, challenge, response)
    }

    fn check_md5(
        &mut self,
        secret: &StoredSecret,
        challenge: [u8; CHALLENGE_BYTES],
        response: Zeroizing<Vec<u8>>,
    ) -> Result<ServerStep, AuthError> {
        let (stored, proof) = match secret {
            StoredSecret::Md5(hash) => (Zeroizing::new(hash.expose().to_owned()), Proof::None),
            StoredSecret::Plain(plain) => {
                let stored = md5::stored(plain.password().expose().as_bytes(), &self.user);
                (Zeroizing::new(stored), Proof::Password(plain.password().clone()))
            }
            StoredSecret::Scram(_) => return Err(self.rejected(Rejection::WrongPassword)),
        };
        if bool::from(response.ct_eq(md5::response(&stored, challenge).as_bytes())) {
            return Ok(ServerStep::Done(proof));
        }
        self.state = State::Refused(Answer::Md5 { challenge, response });
        Err(self.rejected(Rejection::WrongPassword))
    }

    fn on_sasl_initial(
        &mut self,
        check: ScramCheck,
        end_point: Option<Arc<[u8]>>,
        body: &[u8],
    ) -> Result<ServerStep, AuthError> {
        let initial = SaslInitial::parse(body).map_err(AuthError::Malformed)?;
        let binding = match (initial.mechanism, end_point) {
            (mechanism, Some(hash)) if mechanism == MECHANISM_PLUS.as_bytes() => Binding::To(hash),
            (mechanism, Some(_)) if mechanism == MECHANISM.as_bytes() => Binding::NotChosen,
            (mechanism, None) if mechanism == MECHANISM.as_bytes() => Binding::NotOffered,
            _ => return Err(AuthError::MechanismNotOffered),
        };
        match initial.data {
            Some(data) => self.on_client_first(check, &binding, data),
            None => {
                self.state = State::AwaitClientFirst(check, binding);
                Ok(ServerStep::Send(self::body(code::SASL_CONTINUE, b"")))
            }
        }
    }

    fn on_client_first(
        &mut self,
        check: ScramCheck,
        binding: &Binding,
        message: &[u8],
    ) -> Result<ServerStep, AuthError> {
        let nonce = scram::nonce_of(rand::random());
        let first = ServerFirst::answer(check.verifier, message, &nonce, binding).map_err(|error| match error {
            FirstError::Downgrade => AuthError::ChannelBindingDowngrade,
            FirstError::BindingType(kind) => AuthError::ChannelBindingType(kind),
            FirstError::Flawed(flaw) => AuthError::Malformed(flaw),
            FirstError::AuthorizationIdentity => AuthError::AuthorizationIdentity,
            FirstError::Extension => AuthError::ScramExtension,
        })?;
        self.state = State::AwaitClientFinal(first.next, check.outcome);
        Ok(ServerStep::Send(body(code::SASL_CONTINUE, &first.message)))
    }

    fn on_client_final(
        &mut self,
        scram: AwaitClientFinal,
        outcome: Outcome,
        message: &[u8],
    ) -> Result<ServerStep, AuthError> {
        let checked = scram.check(message).map_err(|flaw| match flaw {
            Flaw::ChannelBindingForged => AuthError::ChannelBindingFailed,
            flaw => AuthError::Malformed(flaw),
        })?;
        match (checked, outcome) {
            (_, Outcome::Doomed(why)) => Err(self.rejected(why)),
            (None, _) => Err(self.rejected(Rejection::WrongPassword)),
            (Some((server_final, keys)), outcome) => {
                let proof = match outcome {
                    Outcome::Password(password) => Proof::Password(password),
                    _ => Proof::ScramKeys(keys),
                };
                Ok(ServerStep::SendAndDone(body(code::SASL_FINAL, &server_final), proof))
            }
        }
    }

    fn rejected(&self, why: Rejection) -> AuthError {
        AuthError::Rejected { user: self.user.clone(), why }
    }
}

impl ScramCheck {
    fn new(user: &str, secret: Option<&StoredSecret>, mock_seed: &[u8; 32]) -> Self {
        match secret {
            Some(StoredSecret::Scram(verifier)) => Self { verifier: verifier.clone(), outcome: Outcome::Keys },
            Some(StoredSecret::Plain(plain)) => Self {
                // The salt of a made-up user: whether the password is known here does not show.
                verifier: plain.verifier(&mock_salt(user, mock_seed)),
                outcome: Outcome::Password(plain.password().clone()),
            },
            Some(StoredSecret::Md5(_)) => Self::doomed(user, mock_seed, Rejection::NoScramSecret),
            None => Self::doomed(user, mock_seed, Rejection::UnknownUser),
        }
    }

    fn doomed(user: &str, mock_seed: &[u8; 32], why: Rejection) -> Self {
        Self { verifier: mock_verifier(user, mock_seed), outcome: Outcome::Doomed(why) }
    }
}

fn mock_salt(user: &str, mock_seed: &[u8; 32]) -> Vec<u8> {
    scram::hmac_sha256(mock_seed, &[b"salt", user.as_bytes()])[..SALT_BYTES].to_vec()
}

/// The verifier of no password.
fn mock_verifier(user: &str, mock_seed: &[u8; 32]) -> ScramVerifier {
    ScramVerifier {
        iterations: scram::ITERATIONS,
        salt: mock_salt(user, mock_seed),
        stored_key: scram::hmac_sha256(mock_seed, &[b"stored", user.as_bytes()]),
        server_key: scram::hmac_sha256(mock_seed, &[b"server", user.as_bytes()]),
    }
}

fn body(code: u32, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), data].concat()
}

/// The text of a PasswordMessage: all up to the one NUL at the end, not empty.
fn password_text(body: &[u8]) -> Result<&[u8], AuthError> {
    match body {
        [text @ .., 0] if text.contains(&0) => Err(AuthError::Malformed(Flaw::LengthMismatch)),
        [0] => Err(AuthError::EmptyPassword),
        [text @ .., 0] => Ok(text),
        _ => Err(AuthError::Malformed(Flaw::LengthMismatch)),
    }
}

/// The body of a SASLInitialResponse.
struct SaslInitial<'a> {
    mechanism: &'a [u8],
    /// `None`: the client has nothing to say yet (length -1).
    data: Option<&'a [u8]>,
}

impl<'a> SaslInitial<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, Flaw> {
        let end = body.iter().position(|byte| *byte == 0).ok_or(Flaw::LengthMismatch)?;
        let (mechanism, rest) = (&body[..end], &body[end + 1..]);
        let (length, data) = rest.split_first_chunk::<4>().ok_or(Flaw::TooShort)?;
        match i32::from_be_bytes(*length) {
            -1 if data.is_empty() => Ok(Self { mechanism, data: None }),
            length if usize::try_from(length) == Ok(data.len()) => Ok(Self { mechanism, data: Some(data) }),
            _ => Err(Flaw::LengthMismatch),
        }
    }
}
