//! The tour's clients: writers of unique ids, which read back what they wrote, and readers.
//!
//! Invariants: an id is sent once and never again, whatever the answer was; it counts as acknowledged
//! only if the server said so; every statement and connect has a time limit. Absent on purpose: judging
//! what came back (see `report`), transactions, and retries, which would hide what clients see.

use super::report::{ClientKind, ClientRecord, Wait};
use crate::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_postgres::error::Severity;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Statement};

/// The table that is written and read. No unique constraint: a write sent twice has to show.
pub(super) const TABLE: &str = "\
DROP TABLE IF EXISTS tour; CREATE TABLE tour (id bigint NOT NULL, client int NOT NULL); CREATE INDEX ON tour (id)";

const WRITERS: u32 = 4;
const READERS: u32 = 6;
/// Between two statements of a client, so that the machine is loaded and not drowned.
const PAUSE: Duration = Duration::from_millis(4);
/// After a connection was lost or refused.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Longer than any failover that the tour would let pass.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);
/// Ids that one writer may use.
const IDS_MAX: usize = 1_000_000;

/// What all clients share.
#[derive(Debug, Default)]
struct Board {
    stopped: AtomicBool,
    next_id: AtomicU64,
    acknowledged: AtomicU64,
    reads: AtomicU64,
}

/// Clients at work.
#[derive(Debug)]
pub(super) struct Load {
    board: Arc<Board>,
    clients: JoinSet<ClientRecord>,
}

impl Load {
    /// Starts all clients. `config` says where; half of each kind use prepared statements.
    pub(super) fn start(config: &Config, clock: &Clock) -> Self {
        let board = Arc::new(Board::default());
        let mut clients = JoinSet::new();
        for number in 0..WRITERS + READERS {
            let kind = if number < WRITERS { ClientKind::Writer } else { ClientKind::Reader };
            let worker = Worker {
                board: Arc::clone(&board),
                config: config.clone(),
                clock: clock.clone(),
                prepared: number % 2 == 0,
                number,
                record: ClientRecord::new(kind),
            };
            clients.spawn(worker.run());
        }
        Self { board, clients }
    }

    /// Writes acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.board.acknowledged.load(Ordering::SeqCst)
    }

    /// Reads answered so far.
    pub(super) fn reads(&self) -> u64 {
        self.board.reads.load(Ordering::SeqCst)
    }

    /// Lets every client finish its statement and gives what each saw.
    pub(super) async fn stop(mut self) -> Vec<ClientRecord> {
        self.board.stopped.store(true, Ordering::SeqCst);
        let mut records = Vec::new();
        while let Some(joined) = self.clients.join_next().await {
            match joined {
                Ok(record) => records.push(record),
                Err(failed) => std::panic::resume_unwind(failed.into_panic()),
            }
        }
        records
    }
}

/// Why a statement brought nothing.
enum Failure {
    Postgres(tokio_postgres::Error),
    Late,
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl Failure {
    /// SQLSTATE, or what happened instead of an answer.
    fn label(&self) -> String {
        match self {
            Self::Late => "no answer in time".to_owned(),
            Self::Postgres(error) => match error.code() {
                Some(code) => code.code().to_owned(),
                None if error.is_closed() => "connection lost".to_owned(),
                None => "connection failed".to_owned(),
            },
        }
    }
}

/// The session goes on after an ERROR, and after nothing else.
fn is_error(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|answer| answer.parsed_severity() == Some(Severity::Error))
}

/// One client's statements.
struct Statements {
    insert: Option<Statement>,
    select: Option<Statement>,
}

struct Worker {
    board: Arc<Board>,
    config: Config,
    clock: Clock,
    prepared: bool,
    number: u32,
    record: ClientRecord,
}

impl Worker {
    /// Waits for one answer, and notes how long that took.
    async fn in_time<T>(
        &mut self,
        what: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failure> {
        let asked = self.clock.now();
        let answer = tokio::time::timeout(STATEMENT_TIMEOUT, work).await;
        let wait = Wait { took: self.clock.now().since(asked), asked, what, prepared: self.prepared };
        if self.record.longest_wait.as_ref().is_none_or(|longest| longest.took < wait.took) {
            self.record.longest_wait = Some(wait);
        }
        match answer {
            Ok(done) => Ok(done?),
            Err(_) => Err(Failure::Late),
        }
    }

    async fn run(mut self) -> ClientRecord {
        while !self.stopped() {
            if let Err(failure) = self.connected().await {
                *self.record.errors.entry(failure.label()).or_default() += 1;
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
        self.record
    }

    fn stopped(&self) -> bool {
        self.board.stopped.load(Ordering::SeqCst) || self.record.acknowledged.len() >= IDS_MAX
    }

    /// From connect to the loss of the connection, or to the end.
    async fn connected(&mut self) -> Result<(), Failure> {
        let config = self.config.clone();
        let (client, connection) = self.in_time("connect", config.connect(NoTls)).await?;
        let driver = tokio::spawn(connection);
        let worked = self.work(&client).await;
        drop(client);
        let _ = tokio::time::timeout(STATEMENT_TIMEOUT, driver).await;
        worked
    }

    async fn work(&mut self, client: &Client) -> Result<(), Failure> {
        let statements = self.prepare(client).await?;
        while !self.stopped() {
            let done = match self.record.kind {
                ClientKind::Writer => self.write(client, &statements).await,
                ClientKind::Reader => self.read_any(client, &statements).await,
            };
            match done {
                Ok(()) => {}
                Err(Failure::Postgres(error)) if is_error(&error) => {
                    *self.record.errors.entry(Failure::Postgres(error).label()).or_default() += 1;
                }
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn prepare(&mut self, client: &Client) -> Result<Statements, Failure> {
        if !self.prepared {
            return Ok(Statements { insert: None, select: None });
        }
        let select = Some(self.in_time("prepare", client.prepare("SELECT client FROM tour WHERE id = $1")).await?);
        let insert = match self.record.kind {
            ClientKind::Writer => {
                Some(self.in_time("prepare", client.prepare("INSERT INTO tour VALUES ($1, $2)")).await?)
            }
            ClientKind::Reader => None,
        };
        Ok(Statements { insert, select })
    }

    /// Writes a new id, and reads it back in the same session.
    async fn write(&mut self, client: &Client, statements: &Statements) -> Result<(), Failure> {
        let id = self.board.next_id.fetch_add(1, Ordering::SeqCst);
        match &statements.insert {
            Some(insert) => {
                let values: [i64; 1] = [id.cast_signed()];
                let number = self.number.cast_signed();
                let parameters: [&(dyn ToSql + Sync); 2] = [&values[0], &number];
                self.in_time("write", client.execute(insert, &parameters)).await.map(drop)?;
            }
            None => {
                let text = format!("INSERT INTO tour VALUES ({id}, {})", self.number);
                self.in_time("write", client.simple_query(&text)).await.map(drop)?;
            }
        }
        self.record.acknowledged.push((id, self.clock.now()));
        self.board.acknowledged.fetch_add(1, Ordering::SeqCst);
        if self.read(client, statements, id).await? == 0 {
            self.record.unseen_own_ids.push(id);
        }
        Ok(())
    }

    async fn read_any(&mut self, client: &Client, statements: &Statements) -> Result<(), Failure> {
        let end = self.board.next_id.load(Ordering::SeqCst).max(1);
        self.read(client, statements, rand::random_range(0..end)).await.map(drop)
    }

    /// Rows with this id.
    async fn read(&mut self, client: &Client, statements: &Statements, id: u64) -> Result<usize, Failure> {
        let rows = match &statements.select {
            Some(select) => self.in_time("read", client.query(select, &[&id.cast_signed()])).await?.len(),
            None => {
                let text = format!("SELECT client FROM tour WHERE id = {id}");
                let messages = self.in_time("read", client.simple_query(&text)).await?;
                messages.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count()
            }
        };
        self.record.reads += 1;
        self.board.reads.fetch_add(1, Ordering::SeqCst);
        Ok(rows)
    }
}
