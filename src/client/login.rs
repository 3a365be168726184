//! Login: finds the rule for it, pumps an authentication exchange over the socket.
//!
//! Invariants: messages are bounded before they are read; the answers of a failed login do not tell
//! an unknown user from a wrong password. Absent on purpose: the exchanges and the rules themselves (`auth`).

use super::ask::{Inquirer, host_told};
use super::hashing::Hashing;
use super::{EnterError, Hello, Replication};
use crate::auth::hba::{Attempt, CertificateCheck, CertificateName, Hba, Known, Method, Rule};
use crate::auth::{
    AuthError, LoginLimiter, NameMethod, NodeCredential, NotAdmitted, Proof, RESPONSE_BYTES_MAX, SecretSource,
    ServerExchange, ServerStep, StoredSecret,
};
use crate::clock::Clock;
use crate::config::AuthMethod;
use crate::net::{Peer, Stream, TlsInfo};
use crate::wire::{HEADER_LEN, PROTOCOL_3_2, encode, frontend, header};
use std::fmt;
use std::sync::Arc;
use zeroize::{Zeroize, Zeroizing};

/// What logins need.
#[derive(Debug)]
pub struct AuthDeps {
    /// How clients prove who they are.
    pub access: Access,
    /// What is known of users.
    pub secrets: SecretSource,
    /// Answers questions of the rules.
    pub inquirer: Inquirer,
    /// Counts failures; outlives reloads.
    pub limiter: Arc<LoginLimiter>,
    /// Runs costly checks.
    pub hashing: Hashing,
    /// Random secret of this process, for users that do not exist.
    pub mock_seed: [u8; 32],
    /// Time.
    pub clock: Clock,
}

/// How clients prove who they are.
#[derive(Debug)]
pub enum Access {
    /// All in the same way.
    Method(AuthMethod),
    /// As the first rule that fits says.
    Rules(Hba),
}

/// What is known of a connection before the login.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Who is at the other end.
    pub peer: Peer,
    /// What TLS has established, if the connection is under it.
    pub tls: Option<TlsInfo>,
}

/// What a login came across, for the log.
#[derive(Debug, Default)]
pub struct Trail {
    rule: Option<Arc<Rule>>,
    method: Option<Method>,
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.rule, self.method) {
            (Some(rule), _) => write!(f, "{} ({})", rule.method.word(), rule.place),
            (None, Some(method)) => f.write_str(method.word()),
            (None, None) => f.write_str("none"),
        }
    }
}

/// Lets the client prove who it is, up to and including AuthenticationOk; answers with what it
/// takes to log in to nodes as this user. `trail` is told what decided. A failure may come late, so that
/// guessing takes long.
///
/// # Errors
/// [`EnterError`]; the caller tells the client and closes.
pub async fn login(
    stream: &mut Stream,
    input: &mut Vec<u8>,
    hello: &Hello,
    facts: &Facts,
    deps: &AuthDeps,
    trail: &mut Trail,
) -> Result<NodeCredential, EnterError> {
    let address = match facts.peer {
        Peer::Tcp(address) => Some(address.ip()),
        Peer::Unix { .. } => None,
    };
    if let Some(wait) = deps.limiter.refusal(address, deps.clock.now()) {
        return Err(AuthError::TooManyFailures(wait).into());
    }
    let proved = prove(stream, input, hello, facts, deps, trail).await;
    if let Err(EnterError::Auth(error)) = &proved
        && error.is_failed_proof()
    {
        tokio::time::sleep(deps.limiter.failed(address, &hello.user, deps.clock.now())).await;
    }
    proved
}

async fn prove(
    stream: &mut Stream,
    input: &mut Vec<u8>,
    hello: &Hello,
    facts: &Facts,
    deps: &AuthDeps,
    trail: &mut Trail,
) -> Result<NodeCredential, EnterError> {
    if let Some(unknown) = &hello.negotiate {
        let mut out = Vec::new();
        encode::negotiate(&mut out, PROTOCOL_3_2, unknown);
        stream.write_all(&out).await?;
    }
    let mut known = Known::default();
    let method = match &deps.access {
        Access::Method(AuthMethod::Trust) => Method::Trust,
        Access::Method(method) => Method::Password(*method),
        Access::Rules(hba) => {
            let rule = find_rule(hba, hello, facts, deps, &mut known).await?;
            trail.rule = Some(Arc::clone(&rule));
            rule.method
        }
    };
    trail.method = Some(method);
    if let Some(rule) = &trail.rule
        && rule.certificate != CertificateCheck::Off
        && certificate(facts).is_none()
    {
        return Err(AuthError::CertificateMissing.into());
    }
    let end_point = facts.tls.as_ref().and_then(|tls| tls.server_end_point.clone());
    let mut conversation = Conversation { stream, input, hello, deps, end_point };
    let credential = match method {
        Method::Password(method) => conversation.password(method).await?,
        Method::Reject => return Err(not_admitted(hello, facts, true).into()),
        Method::Trust | Method::Cert => conversation.stored().await,
        Method::Peer => {
            conversation.check_system_user(facts.peer, trail, &mut known).await?;
            conversation.stored().await
        }
    };
    if let Some(rule) = &trail.rule {
        check_certificate(rule, hello, facts, deps, &mut known).await?;
    }
    let mut out = Vec::new();
    encode::authentication(&mut out, &0u32.to_be_bytes());
    stream.write_all(&out).await?;
    Ok(credential)
}

async fn find_rule(
    hba: &Hba,
    hello: &Hello,
    facts: &Facts,
    deps: &AuthDeps,
    known: &mut Known,
) -> Result<Arc<Rule>, AuthError> {
    let attempt = Attempt {
        peer: facts.peer,
        encrypted: facts.tls.is_some(),
        user: &hello.user,
        database: &hello.database,
        replication: hello.replication == Some(Replication::Physical),
    };
    loop {
        match hba.decide(&attempt, known) {
            Ok(Some(rule)) => return Ok(Arc::clone(rule)),
            Ok(None) => return Err(not_admitted(hello, facts, false)),
            Err(need) => deps.inquirer.learn(need, &hello.user, facts.peer, deps.clock.now(), known).await?,
        }
    }
}

fn not_admitted(hello: &Hello, facts: &Facts, by_rule: bool) -> AuthError {
    AuthError::NotAdmitted(Box::new(NotAdmitted {
        by_rule,
        host: host_told(facts.peer),
        user: (*hello.user).into(),
        database: (hello.replication != Some(Replication::Physical)).then(|| (*hello.database).into()),
        encrypted: facts.tls.is_some(),
    }))
}

fn certificate(facts: &Facts) -> Option<&crate::net::ClientCertificate> {
    facts.tls.as_ref()?.client_certificate.as_deref()
}

/// Does the certificate name the user, where the rule wants that?
async fn check_certificate(
    rule: &Rule,
    hello: &Hello,
    facts: &Facts,
    deps: &AuthDeps,
    known: &mut Known,
) -> Result<(), AuthError> {
    if rule.certificate != CertificateCheck::VerifyFull {
        return Ok(());
    }
    let method = match rule.method {
        Method::Cert => NameMethod::Certificate,
        Method::Trust => NameMethod::Trust,
        _ => NameMethod::Password,
    };
    let certificate = certificate(facts).ok_or(AuthError::CertificateMissing)?;
    let name = match rule.certificate_name {
        CertificateName::CommonName => certificate.common_name.as_deref(),
        CertificateName::DistinguishedName => Some(&*certificate.subject),
    };
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        let why = "client certificate contains no user name".into();
        return Err(AuthError::NameRefused { user: (*hello.user).into(), method, why });
    };
    permit(rule.map.as_deref(), name, method, hello, facts.peer, deps, known).await
}

/// May `outside` be the user that logs in?
async fn permit(
    map: Option<&str>,
    outside: &str,
    method: NameMethod,
    hello: &Hello,
    peer: Peer,
    deps: &AuthDeps,
    known: &mut Known,
) -> Result<(), AuthError> {
    let Access::Rules(hba) = &deps.access else { return Ok(()) };
    loop {
        match hba.permit(map, &hello.user, outside, known) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(refusal)) => {
                let (user, why) = ((*hello.user).into(), refusal.to_string().into());
                return Err(AuthError::NameRefused { user, method, why });
            }
            Err(need) => deps.inquirer.learn(need, &hello.user, peer, deps.clock.now(), known).await?,
        }
    }
}

/// The messages of one login.
struct Conversation<'a> {
    stream: &'a mut Stream,
    input: &'a mut Vec<u8>,
    hello: &'a Hello,
    deps: &'a AuthDeps,
    /// The hash of our certificate.
    end_point: Option<Arc<[u8]>>,
}

impl Conversation<'_> {
    /// The client proves that it knows the password, up to but not including AuthenticationOk.
    async fn password(&mut self, method: AuthMethod) -> Result<NodeCredential, EnterError> {
        let Self { hello, deps, .. } = *self;
        let stored = deps.secrets.lookup(&hello.user, deps.clock.now()).await?;
        let costly = ServerExchange::begins_costly(method, stored.as_deref());
        let begin = {
            let (user, seed) = (Arc::clone(&hello.user), deps.mock_seed);
            let (stored, end_point) = (stored.clone(), self.end_point.clone());
            move || ServerExchange::begin(method, &user, stored.as_deref(), &seed, end_point)
        };
        let (mut exchange, mut step) = if costly { deps.hashing.run(begin).await? } else { begin() };
        loop {
            let (body, proof) = match step {
                ServerStep::Send(body) => (Some(body), None),
                ServerStep::SendAndDone(body, proof) => (Some(body), Some(proof)),
                ServerStep::Done(proof) => (None, Some(proof)),
            };
            if let Some(body) = body {
                let mut out = Vec::new();
                encode::authentication(&mut out, &body);
                self.stream.write_all(&out).await?;
            }
            if let Some(proof) = proof {
                return Ok(NodeCredential::of(&proof, stored.as_deref()));
            }
            let body = self.read().await?;
            (exchange, step) = self.answer(exchange, body, stored.as_ref()).await?;
        }
    }

    async fn answer(
        &self,
        mut exchange: ServerExchange,
        body: Zeroizing<Vec<u8>>,
        stored: Option<&Arc<StoredSecret>>,
    ) -> Result<(ServerExchange, ServerStep), EnterError> {
        let costly = exchange.steps_costly();
        let work = move || {
            let step = exchange.step(&body);
            (exchange, step)
        };
        let (mut exchange, step) = if costly { self.deps.hashing.run(work).await? } else { work() };
        let error = match step {
            Ok(step) => return Ok((exchange, step)),
            Err(error) => error,
        };
        // The secret may have changed since it was looked up.
        let Some(newer) = self.deps.secrets.refresh(&self.hello.user, stored, self.deps.clock.now()).await? else {
            return Err(error.into());
        };
        let work = move || {
            let step = exchange.recheck(&newer);
            (exchange, step)
        };
        let (exchange, step) = self.deps.hashing.run(work).await?;
        Ok((exchange, step?))
    }

    /// What is stored of a user who has to prove nothing to us, to log in to nodes with.
    async fn stored(&self) -> NodeCredential {
        let stored = match self.deps.secrets.lookup(&self.hello.user, self.deps.clock.now()).await {
            Ok(stored) => stored,
            Err(error) => {
                // The client is who it is; whether nodes want more is seen there.
                tracing::debug!(%error, user = &*self.hello.user, "no secret for nodes");
                None
            }
        };
        NodeCredential::of(&Proof::None, stored.as_deref())
    }

    async fn check_system_user(&self, peer: Peer, trail: &Trail, known: &mut Known) -> Result<(), AuthError> {
        let (Peer::Unix { uid, .. }, Some(rule)) = (peer, &trail.rule) else {
            return Err(not_admitted(self.hello, &Facts { peer, tls: None }, false));
        };
        let name = self.deps.inquirer.system_user(uid).await?;
        permit(rule.map.as_deref(), &name, NameMethod::Peer, self.hello, peer, self.deps, known).await
    }

    /// The body of the client's next message, which may be a password: no copy of it stays behind.
    async fn read(&mut self) -> Result<Zeroizing<Vec<u8>>, EnterError> {
        loop {
            if let Some(&tag) = self.input.first()
                && tag != frontend::PASSWORD
            {
                return Err(EnterError::OutOfOrder(char::from(tag)));
            }
            if let Some(head) = header(self.input, RESPONSE_BYTES_MAX)?
                && self.input.len() >= head.message_len()
            {
                let message = &mut self.input[..head.message_len()];
                let body = Zeroizing::new(message[HEADER_LEN..].to_vec());
                message.zeroize();
                self.input.drain(..head.message_len());
                return Ok(body);
            }
            self.stream.read_more(self.input).await?;
        }
    }
}
