//! Asks a node where its WAL comes from: `TIMELINE_HISTORY`, a command of the replication protocol.
//!
//! The file of the present timeline alone may hide where a node has been: a standby of another line that PostgreSQL let
//! stream got that file from its new upstream. Its files of the timelines before stay its own, and are believed first.
//!
//! One task per node. The prober hands it what it saw ([`Ancestors::join`]) and never waits for it: a report goes out
//! with what is known by then, and a probe follows the answer at once. Invariants: a question is put only when
//! timeline, incarnation or role of the node changed, or the last one came to nothing and [`RETRY_GAP`] has passed; one
//! connection at most, bounded in time and closed as soon as it has answered, because it takes one of `max_wal_senders`;
//! nothing precedes timeline 1, so nobody is asked about it. Absent on purpose: what histories mean (`failover`).

use super::patience;
use crate::auth::{NodeCredential, NodePassword};
use crate::backend::{Backend, ConnectError, Login, QueryError, Target, connect, simple_query};
use crate::clock::Clock;
use crate::config::Config;
use crate::ids::{BackendId, NodeId, TimelineId};
use crate::net::NodeTls;
use crate::topology::history::NoHistory;
use crate::topology::{Ancestry, History, NodeReport};
use crate::wire::{Reader, encode, frontend};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Between two questions after one that came to nothing for good.
const RETRY_GAP: Duration = Duration::from_secs(10);
/// Between two questions after one that the network or a full node may have spoiled.
const SOON: Duration = Duration::from_millis(200);
/// Such questions in a row before the history counts as unknown.
const TRIES: u32 = 3;
/// Files of timelines before the present one that are read, the latest first.
const EARLIER_MAX: usize = 16;

/// What an answer holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    timeline: TimelineId,
    incarnation: i64,
    in_recovery: bool,
}

type Found = Arc<Mutex<Option<(Seen, Ancestry)>>>;

/// The prober's end.
pub(super) struct Ancestors {
    wanted: watch::Sender<Option<Seen>>,
    found: Found,
}

impl Ancestors {
    /// Adds to a report what is known, and asks for what is not.
    pub(super) fn join(&self, report: &mut NodeReport) {
        let NodeReport { timeline, incarnation, in_recovery, .. } = *report;
        report.ancestry = match timeline {
            // It did not say which.
            TimelineId(0) => Ancestry::Unknown,
            TimelineId(1) => Ancestry::Known(Arc::new(History::first())),
            _ => self.found(Seen { timeline, incarnation, in_recovery }),
        };
    }

    fn found(&self, seen: Seen) -> Ancestry {
        if let Some((of, ancestry)) = &*self.found.lock()
            && *of == seen
        {
            return ancestry.clone();
        }
        self.wanted.send_if_modified(|wanted| wanted.replace(seen) != Some(seen));
        Ancestry::Asked
    }
}

/// The task's end.
pub(super) struct HistoryTask {
    node: NodeId,
    name: Arc<str>,
    target: Target,
    login: Login,
    clock: Clock,
    limit: Duration,
    wanted: watch::Receiver<Option<Seen>>,
    found: Found,
    /// Somebody wants a probe.
    wake: Arc<Notify>,
    told: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    Query(#[from] QueryError),
    #[error("{0}")]
    Senseless(#[from] NoHistory),
    #[error("the answer has no history in it")]
    Empty,
    #[error("timed out")]
    Late,
}

impl Unanswered {
    /// Whether the same question may fare better in a moment.
    fn passes(&self) -> bool {
        match self {
            Self::Connect(error) => !error.is_final(),
            Self::Late | Self::Query(QueryError::Lost) => true,
            Self::Query(_) | Self::Senseless(_) | Self::Empty => false,
        }
    }

    fn hint(&self, user: &str) -> String {
        let code = match self {
            Self::Connect(ConnectError::Rejected(rejection)) => &rejection.sqlstate,
            Self::Query(QueryError::Refused(rejection)) => &rejection.sqlstate,
            _ => return String::new(),
        };
        match &**code {
            "42501" => format!(": ALTER ROLE {user} REPLICATION"),
            "28000" => format!(": pg_hba.conf must let {user} in, over replication connections too"),
            "53300" => ": max_wal_senders is too small".to_owned(),
            _ => String::new(),
        }
    }
}

/// Both ends for one node.
pub(super) fn ancestors(config: &Config, node: NodeId, clock: &Clock, wake: &Arc<Notify>) -> (Ancestors, HistoryTask) {
    let (wanted, wanted_here) = watch::channel(None);
    let found = Found::default();
    let cluster = &config.cluster;
    let place = &config.nodes[node.index()];
    let password = &cluster.monitor_password;
    let task = HistoryTask {
        node,
        name: Arc::clone(&place.name),
        target: Target { host: place.host.as_str().into(), port: place.port, tls: NodeTls::new(&place.tls) },
        login: Login {
            user: cluster.monitor_user.as_str().into(),
            database: cluster.monitor_database.as_str().into(),
            credential: match password.expose() {
                "" => NodeCredential::None,
                _ => NodeCredential::Password(NodePassword::new(password.clone())),
            },
            // With a database, pg_hba.conf is asked for that and not for the word "replication".
            parameters: [("replication", "database"), ("application_name", "pgregent history")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        },
        clock: clock.clone(),
        limit: cluster.probe_timeout,
        wanted: wanted_here,
        found: Arc::clone(&found),
        wake: Arc::clone(wake),
        told: false,
    };
    (Ancestors { wanted, found }, task)
}

impl HistoryTask {
    async fn ask(&self, timeline: TimelineId) -> Result<History, Unanswered> {
        let asking = patience::wait(&self.clock, self.limit, self.converse(timeline));
        asking.await.unwrap_or(Err(Unanswered::Late))
    }

    async fn converse(&self, timeline: TimelineId) -> Result<History, Unanswered> {
        let connecting = connect(self.node, BackendId(0), &self.target, &self.login, 0, self.limit, &self.clock);
        let mut backend = connecting.await?;
        let mut history = file(&mut backend, timeline).await?;
        let past: Vec<TimelineId> = history.past().iter().map(|switch| switch.timeline).collect();
        for earlier in past.into_iter().filter(|t| *t > TimelineId(1)).rev().take(EARLIER_MAX) {
            match file(&mut backend, earlier).await {
                Ok(own) => history = history.begun_as(&own)?,
                // It does not have that file: nothing speaks against the later one.
                Err(Unanswered::Query(QueryError::Refused(_))) => {}
                Err(error) => return Err(error),
            }
        }
        let mut goodbye = Vec::new();
        encode::bare(&mut goodbye, frontend::TERMINATE);
        // It leaves anyway.
        let _ = backend.stream.write_all(&goodbye).await;
        Ok(history)
    }

    fn answer(&mut self, seen: Seen, outcome: Result<History, Unanswered>, tries: u32) -> Option<Duration> {
        let (ancestry, again) = match outcome {
            Ok(history) => {
                self.told = false;
                (Ancestry::Known(Arc::new(history)), None)
            }
            Err(error) if error.passes() && tries < TRIES => return Some(SOON),
            Err(error) => {
                self.tell(seen.timeline, &error);
                (Ancestry::Unknown, Some(RETRY_GAP))
            }
        };
        let answer = Some((seen, ancestry));
        let news = { std::mem::replace(&mut *self.found.lock(), answer.clone()) != answer };
        if news {
            self.wake.notify_one();
        }
        again
    }

    fn tell(&mut self, timeline: TimelineId, error: &Unanswered) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                kind = "history_unknown",
                node = &*self.name,
                "the history of timeline {timeline} on {} is not known, numbers must do: {error}{}",
                self.name,
                error.hint(&self.login.user)
            );
        }
    }
}

/// Asks until the prober is gone.
pub(super) async fn watch(mut task: HistoryTask) {
    let mut tries = 0;
    loop {
        let seen = *task.wanted.borrow_and_update();
        let again = match seen {
            None => None,
            Some(seen) => {
                tries += 1;
                let outcome = task.ask(seen.timeline).await;
                task.answer(seen, outcome, tries)
            }
        };
        let again = async {
            match again {
                Some(gap) => tokio::time::sleep(gap).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = task.wanted.changed() => match changed {
                Ok(()) => tries = 0,
                Err(_) => return,
            },
            () = again => {}
        }
    }
}

async fn file(backend: &mut Backend, timeline: TimelineId) -> Result<History, Unanswered> {
    let mut row = Vec::new();
    simple_query(backend, format!("TIMELINE_HISTORY {timeline}"), |body| row = body.to_vec()).await?;
    Ok(History::read(timeline, content(&row).ok_or(Unanswered::Empty)?)?)
}

/// The second field of the only row: what is in the file.
fn content(row: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(row);
    (reader.count16().ok()? == 2).then_some(())?;
    field(&mut reader)?;
    field(&mut reader)
}

fn field<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = usize::try_from(reader.int32().ok()?).ok()?;
    reader.bytes(len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TxStatus;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    const FILE: &[u8] = b"1\t0/3000060\tno recovery target specified\n";

    fn report(timeline: u32, incarnation: i64) -> NodeReport {
        NodeReport { timeline: TimelineId(timeline), incarnation, ..NodeReport::default() }
    }

    fn joined(ancestors: &Ancestors, timeline: u32, incarnation: i64) -> Ancestry {
        let mut report = report(timeline, incarnation);
        ancestors.join(&mut report);
        report.ancestry
    }

    async fn node() -> (TcpListener, Ancestors, HistoryTask, Arc<Notify>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!(
            "[cluster]\nfailover = \"manual\"\nmonitor_user = \"m\"\nmonitor_database = \"d\"\nsslmode = \"disable\"\n\
             [[node]]\nname = \"pg2\"\naddress = \"127.0.0.1:{port}\"\n\
             [[auth.user]]\nname = \"u\"\npassword = \"p\"\n"
        );
        let config = Config::parse(&text, "test").unwrap();
        let wake = Arc::new(Notify::new());
        let (ancestors, task) = ancestors(&config, NodeId(0), &Clock::machine(), &wake);
        (listener, ancestors, task, wake)
    }

    async fn heard(tcp: &mut TcpStream) -> String {
        let mut bytes = [0; 512];
        let count = tcp.read(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// Lets one connection in, answers each question with one of these rows, and says what was asked.
    async fn serve(listener: &TcpListener, rows: &[&[&[u8]]]) -> Vec<String> {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut said = vec![heard(&mut tcp).await];
        let mut out = Vec::new();
        encode::authentication(&mut out, &0u32.to_be_bytes());
        encode::ready(&mut out, TxStatus::Idle);
        tcp.write_all(&out).await.unwrap();
        for fields in rows {
            said.push(heard(&mut tcp).await);
            tcp.write_all(&answer(fields)).await.unwrap();
        }
        said.push(heard(&mut tcp).await);
        said
    }

    /// No fields: no such file.
    fn answer(fields: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        if fields.is_empty() {
            encode::message(&mut out, b'E', |out| out.extend_from_slice(b"SERROR\0C58P01\0Mcould not open file\0\0"));
            encode::ready(&mut out, TxStatus::Idle);
            return out;
        }
        encode::message(&mut out, b'T', |out| out.extend_from_slice(&[0, 0]));
        encode::message(&mut out, b'D', |out| {
            out.extend_from_slice(&u16::try_from(fields.len()).unwrap().to_be_bytes());
            for field in fields {
                out.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
                out.extend_from_slice(field);
            }
        });
        encode::command_complete(&mut out, "TIMELINE_HISTORY");
        encode::ready(&mut out, TxStatus::Idle);
        out
    }

    #[tokio::test]
    async fn a_node_is_asked_once_for_each_life_and_timeline() {
        let (listener, ancestors, task, wake) = node().await;
        let task = tokio::spawn(watch(task));
        assert_eq!(joined(&ancestors, 0, 1), Ancestry::Unknown);
        assert_eq!(joined(&ancestors, 1, 1), Ancestry::Known(Arc::new(History::first())));
        for incarnation in 1..3 {
            assert_eq!(joined(&ancestors, 2, incarnation), Ancestry::Asked, "another life may have another history");
            assert_eq!(joined(&ancestors, 2, incarnation), Ancestry::Asked);
            let said = serve(&listener, &[&[b"00000002.history", FILE]]).await;
            let [startup, query, goodbye] = &said[..] else { panic!("{said:?}") };
            assert!(startup.contains("\0replication\0database\0") && startup.contains("user\0m\0database\0d\0"));
            assert!(query.contains("TIMELINE_HISTORY 2\0"), "{query}");
            assert!(goodbye.starts_with('X'), "{goodbye}");
            wake.notified().await;
            let known = joined(&ancestors, 2, incarnation);
            assert_eq!(known.known().unwrap().to_string(), "1@0/3000060 2");
        }
        task.abort();
    }

    #[tokio::test]
    async fn what_is_no_answer_leaves_it_unknown() {
        for fields in [&[b"f" as &[u8]][..], &[b"f", b"nonsense"], &[b"f", b"3\t0/1\n"], &[b"f", FILE, FILE]] {
            let (listener, ancestors, task, wake) = node().await;
            let task = tokio::spawn(watch(task));
            assert_eq!(joined(&ancestors, 2, 1), Ancestry::Asked);
            serve(&listener, &[fields]).await;
            wake.notified().await;
            assert_eq!(joined(&ancestors, 2, 1), Ancestry::Unknown, "{fields:?}");
            task.abort();
        }
    }

    #[tokio::test]
    async fn its_own_files_of_earlier_timelines_come_first() {
        let late: &[u8] = b"1\t0/3000060\tx\n2\t0/5000000\tx\n3\t0/6000000\tx\n";
        let own: &[u8] = b"1\t0/4000000\tx\n";
        for (third, second, whole) in [
            (&[b"f", &late[..28]][..], &[b"f", &late[..14]][..], "1@0/3000060 2@0/5000000 3@0/6000000 4"),
            (&[], &[], "1@0/3000060 2@0/5000000 3@0/6000000 4"),
            (&[], &[b"f", own], "1@0/4000000 2@0/5000000 3@0/6000000 4"),
        ] {
            let (listener, ancestors, task, wake) = node().await;
            let task = tokio::spawn(watch(task));
            assert_eq!(joined(&ancestors, 4, 1), Ancestry::Asked);
            let said = serve(&listener, &[&[b"f", late], third, second]).await;
            assert!(said[3].contains("TIMELINE_HISTORY 2\0"), "{said:?}");
            wake.notified().await;
            assert_eq!(joined(&ancestors, 4, 1).known().unwrap().to_string(), whole);
            task.abort();
        }
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_a_lost_connection_is_not() {
        let (listener, ancestors, task, wake) = node().await;
        let task = tokio::spawn(watch(task));
        assert_eq!(joined(&ancestors, 2, 1), Ancestry::Asked);
        drop(listener.accept().await.unwrap());
        let (mut tcp, _) = listener.accept().await.unwrap();
        assert_eq!(joined(&ancestors, 2, 1), Ancestry::Asked);
        heard(&mut tcp).await;
        let mut refusal = Vec::new();
        encode::message(&mut refusal, b'E', |out| out.extend_from_slice(b"SFATAL\0C42501\0Mpermission denied\0\0"));
        tcp.write_all(&refusal).await.unwrap();
        wake.notified().await;
        assert_eq!(joined(&ancestors, 2, 1), Ancestry::Unknown);
        task.abort();
    }
}
