//! Looks at every endpoint for `pgregent check`: does it answer, let us in, and let us read and write our keys?
//!
//! Invariants: changes nothing (what is written is written only if an impossible thing holds, and etcd judges rights
//! before that); each endpoint is asked on its own, within a time limit. Absent on purpose: what follows from the answers.

use super::client::{Connection, Fault, Shared};
use super::core::Request;
use super::view::Names;
use super::{EtcdError, reached};
use crate::config::Config;
use crate::coordination::StoreError;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::Notify;
use tonic::Code;

/// For one endpoint.
const LIMIT: Duration = Duration::from_secs(5);
/// For what the members must agree on.
const KEYS_LIMIT: Duration = Duration::from_secs(3);

/// What an endpoint said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFacts {
    /// `3.5.4`.
    pub version: String,
    /// The etcd cluster that it belongs to.
    pub cluster: u64,
    /// How many members that has, as far as it tells.
    pub members: Option<usize>,
}

/// What is wrong with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointFault {
    /// No connection, or no answer; with the cause.
    Unreachable(String),
    /// It does not accept the certificate, or we do not accept its.
    Tls(String),
    /// The login is refused, or one is needed.
    Login(String),
    /// Our keys may not be read or written.
    Keys(String),
    /// It answers, and cannot agree with the other members.
    Alone(String),
}

/// Asks all endpoints at once; in their order, each with its URL.
pub async fn inspect(config: &Config) -> Vec<(String, Result<EndpointFacts, EndpointFault>)> {
    let asked = config.etcd.endpoints.iter().map(|endpoint| async move {
        let outcome = tokio::time::timeout(LIMIT, ask(config, endpoint)).await;
        let late = || Err(EndpointFault::Unreachable(format!("no answer within {} s", LIMIT.as_secs())));
        (endpoint.clone(), outcome.unwrap_or_else(|_| late()))
    });
    futures::future::join_all(asked).await
}

/// The keys that a user must be allowed to read and write: all that begin so.
#[must_use]
pub fn prefix(config: &Config) -> String {
    String::from_utf8_lossy(&names(config).all().0).into_owned()
}

fn names(config: &Config) -> Names {
    Names::new(&config.etcd.prefix, &config.cluster.name, "check")
}

async fn ask(config: &Config, url: &str) -> Result<EndpointFacts, EndpointFault> {
    let endpoint = reached(url, &config.etcd).map_err(|error| match error {
        StoreError::Etcd(EtcdError::Setup { why, .. }) => EndpointFault::Tls(why),
        other => EndpointFault::Unreachable(other.to_string()),
    })?;
    let login = config.etcd.user.clone().map(|user| (user, config.etcd.password.clone()));
    let with_login = login.is_some();
    let shared = Shared {
        names: names(config),
        ttl: config.cluster.lease_duration,
        login,
        changed: Arc::new(Notify::new()),
        cluster: AtomicU64::new(0),
    };
    let connection = Connection::open(Arc::new(shared), &endpoint).await.map_err(|fault| match fault {
        Fault::Status(status) if with_login => EndpointFault::Login(status.message().to_owned()),
        other => unreachable(url, &other),
    })?;
    let facts = connection.status().await.map_err(|fault| unreachable(url, &fault))?;
    let keys = async {
        connection.perform(&Request::Read).await?;
        connection.may_write().await
    };
    let late = || EndpointFault::Alone(format!("no answer within {} s", KEYS_LIMIT.as_secs()));
    tokio::time::timeout(KEYS_LIMIT, keys).await.map_err(|_| late())?.map_err(refused)?;
    Ok(facts)
}

fn unreachable(url: &str, fault: &Fault) -> EndpointFault {
    let text = match fault {
        Fault::Connect(why) => why.clone(),
        other => other.to_string(),
    };
    // A server that wants a certificate closes the connection; tonic's text is all there is.
    if url.starts_with("https://") && !text.contains("refused") {
        EndpointFault::Tls(text)
    } else {
        EndpointFault::Unreachable(text)
    }
}

fn refused(fault: Fault) -> EndpointFault {
    match fault {
        Fault::Status(status) => {
            let message = status.message().to_owned();
            match status.code() {
                Code::PermissionDenied => EndpointFault::Keys(message),
                Code::Unauthenticated | Code::InvalidArgument => EndpointFault::Login(message),
                _ => EndpointFault::Alone(message),
            }
        }
        other => EndpointFault::Alone(other.to_string()),
    }
}
