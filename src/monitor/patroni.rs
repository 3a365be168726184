//! Patroni's own word about a node, over its REST API (follow mode).
//!
//! One task per node that has a `patroni_url` asks `GET /primary`: 200 says that the node is the primary and holds
//! Patroni's lock, 503 that it does not. The `role` that the body tells (the same as `GET /patroni` tells) only repeats
//! whether PostgreSQL is in recovery, so a node promoted behind Patroni's back has the right role there and not the
//! lock. Over https whoever answers is verified against `[cluster] patroni_ca_file`. Invariants: one question at a time,
//! a deadline for each, a bounded answer; what is no answer of Patroni is unknown. Absent on purpose: judgement, a
//! certificate or a login of our own (Patroni asks for neither on GET), and changing anything through Patroni.

use super::Report;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::value::{HttpAddress, format_address};
use crate::ids::NodeId;
use crate::net::HttpTls;
use crate::topology::{PatroniSilence, PatroniWord, Sign, SignKind};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Longest time between two questions, and for an answer: what Patroni said counts for a few seconds only.
const SPAN_MAX: Duration = Duration::from_secs(1);
/// Longest answer that is read, bytes. Patroni's have some hundred.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What the task owns.
pub(super) struct PatroniTask {
    node: NodeId,
    address: HttpAddress,
    /// `None`: over http, or no handshake can succeed.
    tls: Option<HttpTls>,
    clock: Clock,
    interval: Duration,
    limit: Duration,
    reports: mpsc::Sender<Report>,
}

impl PatroniTask {
    /// The task of a node that has a `patroni_url`.
    pub(super) fn new(config: &Config, node: NodeId, clock: &Clock, reports: mpsc::Sender<Report>) -> Option<Self> {
        let address = config.nodes[node.index()].patroni_url.clone()?;
        let cluster = &config.cluster;
        let tls = cluster.patroni_authorities.as_ref().filter(|_| address.secured).map(HttpTls::new);
        let tls = tls.transpose().unwrap_or_else(|error| {
            tracing::error!(url = %address, %error, "Patroni cannot be asked over https");
            None
        });
        Some(Self {
            node,
            address,
            tls,
            clock: clock.clone(),
            interval: cluster.probe_interval.min(SPAN_MAX),
            limit: cluster.probe_timeout.min(SPAN_MAX),
            reports,
        })
    }

    async fn ask(&self) -> PatroniWord {
        let HttpAddress { secured, host, port } = &self.address;
        let Ok(stream) = TcpStream::connect((host.as_str(), *port)).await else {
            return PatroniWord::Unknown(PatroniSilence::NotReached);
        };
        match &self.tls {
            _ if !secured => self.ask_on(stream).await,
            None => PatroniWord::Unknown(PatroniSilence::NotTrusted),
            Some(tls) => match tls.secure(host, stream).await {
                Ok(stream) => self.ask_on(stream).await,
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    PatroniWord::Unknown(PatroniSilence::NotTrusted)
                }
                Err(_) => PatroniWord::Unknown(PatroniSilence::NotReached),
            },
        }
    }

    async fn ask_on(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> PatroniWord {
        self.exchange(stream).await.map_or(PatroniWord::Unknown(PatroniSilence::NotReached), |(status, body)| {
            meaning(status, &body).unwrap_or(PatroniWord::Unknown(PatroniSilence::NotPatroni))
        })
    }

    /// Status and body of its answer.
    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Option<(StatusCode, Bytes)> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = Request::get("/primary")
            .header(header::HOST, format_address(&self.address.host, self.address.port))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .ok()?;
        let exchange = async move {
            let response = sender.send_request(request).await.ok()?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.ok()?;
            Some((status, body.to_bytes()))
        };
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }
}

/// Asks until the controller is gone.
pub(super) async fn watch(task: PatroniTask) {
    loop {
        let began = task.clock.now();
        let answer = tokio::time::timeout(task.limit, task.ask()).await;
        let what = SignKind::Patroni(answer.unwrap_or(PatroniWord::Unknown(PatroniSilence::Late)));
        let sign = Sign { node: task.node, began, at: task.clock.now(), what };
        if task.reports.send(Report::Signed(sign)).await.is_err() {
            return;
        }
        tokio::time::sleep_until(task.clock.instant(began + task.interval)).await;
    }
}

/// The part of Patroni's answer that shows that it is Patroni's.
#[derive(serde::Deserialize)]
struct Status {
    role: String,
}

/// What an answer to `GET /primary` says; `None` if it is not Patroni's.
fn meaning(status: StatusCode, body: &[u8]) -> Option<PatroniWord> {
    let said: Status = serde_json::from_slice(body).ok()?;
    match (status, said.role.as_str()) {
        // Before Patroni 4 the word was another one.
        (StatusCode::OK, "primary" | "master") => Some(PatroniWord::Primary),
        (StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE, _) => Some(PatroniWord::Member),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_patroni_is_believed_and_only_with_its_lock() {
        let body = |role: &str| format!(r#"{{"state": "running", "role": "{role}", "timeline": 2, "patroni": {{}}}}"#);
        let said = |status: u16, body: &str| meaning(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert_eq!(said(200, &body("primary")), Some(PatroniWord::Primary));
        assert_eq!(said(200, &body("master")), Some(PatroniWord::Primary));
        assert_eq!(said(200, &body("standby_leader")), Some(PatroniWord::Member));
        assert_eq!(said(503, &body("primary")), Some(PatroniWord::Member), "promoted behind its back");
        assert_eq!(said(503, &body("replica")), Some(PatroniWord::Member));
        assert_eq!(said(404, &body("primary")), None);
        assert_eq!(said(200, "<html>welcome</html>"), None);
        assert_eq!(said(503, "{}"), None);
    }
}
