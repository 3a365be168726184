//! One console client: simple and extended protocol over the console's few statements.
//!
//! Invariants: messages are bounded before they are read; an error in the extended protocol skips to
//! Sync; transaction status is what a driver expects after BEGIN, errors and COMMIT, although nothing is
//! ever rolled back. Absent on purpose: parameters of statements, COPY, cursors beyond portals with a row
//! limit.

use super::command::{Command, parse};
use super::explain;
use super::show::{Flavour, Report};
use super::table::{self, Column, Format, Formats, Row};
use super::variables::Variables;
use super::words::{Word, statements};
use super::{Console, ConsoleClient};
use crate::error::{ClientError, Severity, SqlState};
use crate::net::Stream;
use crate::wire::{FrameError, HEADER_LEN, Reader, TxStatus, backend as tags, encode, frontend, header};
use hashbrown::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest message of a console client, bytes.
const MESSAGE_MAX: usize = 64 * 1024;
/// Prepared statements and portals of one client, each.
const NAMES_MAX: usize = 1_000;

/// Why a console client's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleEnd {
    /// It left, or was lost.
    Left,
    /// It broke the protocol.
    Violation,
    /// It took nothing of what it was sent.
    Stalled,
    /// Too many others are here.
    Full,
    /// The proxy stops.
    Drained,
}

impl ConsoleEnd {
    /// For the log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Left => "client_left",
            Self::Violation => "violation",
            Self::Stalled => "client_stalled",
            Self::Full => "console_full",
            Self::Drained => "drained",
        }
    }
}

/// Tells a client that there are too many.
pub(super) async fn refuse(mut stream: Stream, limit: Duration) -> ConsoleEnd {
    let mut out = Vec::new();
    encode::error(&mut out, &ClientError::fatal(SqlState::TOO_MANY_CONNECTIONS, "too many console clients already"));
    // Whether it hears it makes no difference.
    let _ = tokio::time::timeout(limit, stream.write_all(&out)).await;
    ConsoleEnd::Full
}

/// A statement that has been bound.
#[derive(Debug)]
struct Portal {
    words: Vec<Word>,
    formats: Formats,
    /// Its rows, once it has run, and how many of them were sent.
    ran: Option<(Outcome, usize)>,
}

/// What a statement answers.
#[derive(Debug)]
pub(super) struct Outcome {
    columns: Option<Vec<Column>>,
    rows: Vec<Row>,
    tag: String,
}

impl Outcome {
    pub(super) fn done(tag: impl Into<String>) -> Self {
        Self { columns: None, rows: Vec::new(), tag: tag.into() }
    }
}

/// The client.
pub(super) struct ConsoleSession {
    pub(super) console: Arc<Console>,
    stream: Stream,
    pub(super) client: ConsoleClient,
    input: Vec<u8>,
    pub(super) out: Vec<u8>,
    variables: Variables,
    status: TxStatus,
    statements: HashMap<Box<[u8]>, Vec<Word>>,
    portals: HashMap<Box<[u8]>, Portal>,
    /// An error has been told: everything up to Sync is skipped.
    skipping: bool,
}

pub(super) type Answer<T> = Result<T, ClientError>;

fn violation(message: impl Into<String>) -> ClientError {
    ClientError::error(SqlState::PROTOCOL_VIOLATION, message.into())
}

fn malformed(_: FrameError) -> ClientError {
    violation("invalid message format")
}

impl ConsoleSession {
    pub fn new(console: Arc<Console>, stream: Stream, client: ConsoleClient) -> Self {
        let mut variables = Variables::default();
        // Too long a name is not kept; nobody is hurt.
        let _ = variables.set("application_name", Some(&client.application_name));
        Self {
            console,
            stream,
            client,
            input: Vec::with_capacity(1024),
            out: Vec::with_capacity(1024),
            variables,
            status: TxStatus::Idle,
            statements: HashMap::new(),
            portals: HashMap::new(),
            skipping: false,
        }
    }

    pub async fn run(mut self, stop: CancellationToken) -> ConsoleEnd {
        self.greet();
        loop {
            if let Err(end) = self.flush().await {
                return end;
            }
            let message = tokio::select! {
                message = self.next() => message,
                () = stop.cancelled() => {
                    let message = "terminating connection because the proxy is shutting down";
                    return self.end(ClientError::fatal(SqlState::ADMIN_SHUTDOWN, message), ConsoleEnd::Drained).await;
                }
            };
            match message {
                Ok(Some((frontend::TERMINATE, _)) | None) => return ConsoleEnd::Left,
                Ok(Some((tag, body))) => {
                    if let Err(error) = self.on_message(tag, &body).await {
                        return self.end(error, ConsoleEnd::Violation).await;
                    }
                }
                Err(error) => return self.end(error, ConsoleEnd::Violation).await,
            }
        }
    }

    fn greet(&mut self) {
        for (name, value) in self.variables.reported() {
            encode::parameter_status(&mut self.out, name, &value);
        }
        encode::parameter_status(&mut self.out, "session_authorization", &self.client.user);
        let key = self.client.handle.key();
        encode::key_data(&mut self.out, key.pid, &key.secret);
        encode::ready(&mut self.out, self.status);
    }

    async fn end(mut self, error: ClientError, end: ConsoleEnd) -> ConsoleEnd {
        encode::error(&mut self.out, &ClientError { severity: Severity::Fatal, ..error });
        // The connection ends either way.
        let _ = self.flush().await;
        end
    }

    async fn flush(&mut self) -> Result<(), ConsoleEnd> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = tokio::time::timeout(self.console.write_limit, self.stream.write_all(&self.out)).await;
        self.out.clear();
        self.out.shrink_to(MESSAGE_MAX);
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ConsoleEnd::Left),
            Err(_) => Err(ConsoleEnd::Stalled),
        }
    }

    /// The next whole message; `None` at the end. Cancel-safe.
    async fn next(&mut self) -> Answer<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some(head) = header(&self.input, MESSAGE_MAX).map_err(malformed)?
                && self.input.len() >= head.message_len()
            {
                let body = self.input[HEADER_LEN..head.message_len()].to_vec();
                self.input.drain(..head.message_len());
                return Ok(Some((head.tag, body)));
            }
            if self.stream.read_more(&mut self.input).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// An error ends the connection.
    async fn on_message(&mut self, tag: u8, body: &[u8]) -> Answer<()> {
        match tag {
            frontend::QUERY => {
                self.skipping = false;
                let text = frontend::query(body).map_err(malformed)?;
                self.simple(&String::from_utf8_lossy(text)).await;
                encode::ready(&mut self.out, self.status);
            }
            frontend::SYNC => {
                self.skipping = false;
                if self.status == TxStatus::Idle {
                    self.portals.clear();
                }
                encode::ready(&mut self.out, self.status);
            }
            frontend::FLUSH => {}
            frontend::FUNCTION_CALL => {
                self.tell(&ClientError::error(SqlState::FEATURE_NOT_SUPPORTED, "the console has no functions"));
                encode::ready(&mut self.out, self.status);
            }
            tag if frontend::is_extended(tag) => {
                if !self.skipping
                    && let Err(error) = self.extended(tag, body).await
                {
                    self.tell(&error);
                    self.skipping = true;
                }
            }
            tag => return Err(violation(format!("invalid frontend message type {tag}"))),
        }
        Ok(())
    }

    fn tell(&mut self, error: &ClientError) {
        if self.status == TxStatus::InTransaction {
            self.status = TxStatus::Failed;
        }
        encode::error(&mut self.out, error);
    }

    async fn simple(&mut self, text: &str) {
        let all = statements(text);
        if all.is_empty() {
            return encode::bare(&mut self.out, tags::EMPTY_QUERY);
        }
        for words in all {
            match self.execute(&words).await {
                Ok(outcome) => {
                    let formats = Formats::default();
                    if let Some(columns) = &outcome.columns {
                        table::describe(&mut self.out, columns, &formats);
                        outcome.rows.iter().for_each(|row| table::row(&mut self.out, columns, row, &formats));
                    }
                    encode::command_complete(&mut self.out, &outcome.tag);
                }
                Err(error) => return self.tell(&error),
            }
        }
    }

    async fn extended(&mut self, tag: u8, body: &[u8]) -> Answer<()> {
        match tag {
            frontend::PARSE => self.parse(body),
            frontend::BIND => self.bind(body),
            frontend::DESCRIBE => self.describe(body),
            frontend::EXECUTE => self.run_portal(body).await,
            _ => {
                match frontend::named(body).map_err(malformed)? {
                    frontend::Named::Statement(name) => drop(self.statements.remove(name)),
                    frontend::Named::Portal(name) => drop(self.portals.remove(name)),
                }
                encode::bare(&mut self.out, tags::CLOSE_COMPLETE);
                Ok(())
            }
        }
    }

    fn parse(&mut self, body: &[u8]) -> Answer<()> {
        let view = frontend::parse(body).map_err(malformed)?;
        let mut all = statements(&String::from_utf8_lossy(view.text));
        if all.len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(ClientError::error(SqlState("42601"), message));
        }
        let words = all.pop().unwrap_or_default();
        if !words.is_empty() {
            parse(&words)?;
        }
        if !view.name.is_empty() && self.statements.contains_key(view.name) {
            let message = format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(view.name));
            return Err(ClientError::error(SqlState::DUPLICATE_STATEMENT, message));
        }
        self.check_names(self.statements.len())?;
        self.statements.insert(view.name.into(), words);
        encode::bare(&mut self.out, tags::PARSE_COMPLETE);
        Ok(())
    }

    fn check_names(&self, names: usize) -> Answer<()> {
        if names < NAMES_MAX {
            return Ok(());
        }
        Err(ClientError::error(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements or portals"))
    }

    fn bind(&mut self, body: &[u8]) -> Answer<()> {
        let view = frontend::bind(body).map_err(malformed)?;
        let words = self.statement(view.statement)?.clone();
        let mut rest = Reader::new(&body[view.names_len..]);
        let formats = read_formats(&mut rest)?;
        drop(formats);
        if rest.int16().map_err(malformed)? != 0 {
            return Err(violation("the console's statements take no parameters"));
        }
        let formats = Formats(read_formats(&mut rest)?);
        rest.finish().map_err(malformed)?;
        self.check_names(self.portals.len())?;
        self.portals.insert(view.portal.into(), Portal { words, formats, ran: None });
        encode::bare(&mut self.out, tags::BIND_COMPLETE);
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Answer<&Vec<Word>> {
        self.statements.get(name).ok_or_else(|| {
            let message = format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name));
            ClientError::error(SqlState::INVALID_STATEMENT_NAME, message)
        })
    }

    fn describe(&mut self, body: &[u8]) -> Answer<()> {
        let (words, formats) = match frontend::named(body).map_err(malformed)? {
            frontend::Named::Statement(name) => {
                let words = self.statement(name)?.clone();
                encode::message(&mut self.out, tags::PARAMETER_DESCRIPTION, |out| out.extend_from_slice(&[0; 2]));
                (words, Formats::default())
            }
            frontend::Named::Portal(name) => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                (portal.words.clone(), portal.formats.clone())
            }
        };
        match self.columns(&words)? {
            Some(columns) => table::describe(&mut self.out, &columns, &formats),
            None => encode::bare(&mut self.out, tags::NO_DATA),
        }
        Ok(())
    }

    async fn run_portal(&mut self, body: &[u8]) -> Answer<()> {
        let mut rest = Reader::new(body);
        let name = rest.cstr().map_err(malformed)?;
        let most = usize::try_from(rest.int32().map_err(malformed)?).unwrap_or_default();
        // Taken out while it runs, and put back if it has more.
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        if portal.words.is_empty() {
            encode::bare(&mut self.out, tags::EMPTY_QUERY);
            return Ok(());
        }
        let (outcome, sent) = match portal.ran.take() {
            Some(ran) => ran,
            None => (self.execute(&portal.words).await?, 0),
        };
        let columns = outcome.columns.as_deref().unwrap_or_default();
        let end = if most == 0 { outcome.rows.len() } else { outcome.rows.len().min(sent + most) };
        for row in &outcome.rows[sent..end] {
            table::row(&mut self.out, columns, row, &portal.formats);
        }
        // Like PostgreSQL, a portal that was asked for exactly what there is does not know that it is done.
        if most > 0 && end == sent + most {
            encode::bare(&mut self.out, tags::PORTAL_SUSPENDED);
            portal.ran = Some((outcome, end));
        } else {
            encode::command_complete(&mut self.out, &outcome.tag);
            portal.ran = Some((Outcome { rows: Vec::new(), ..outcome }, 0));
        }
        self.portals.insert(name.into(), portal);
        Ok(())
    }

    /// What a statement will answer; `None`: no rows.
    fn columns(&self, words: &[Word]) -> Answer<Option<Vec<Column>>> {
        if words.is_empty() {
            return Ok(None);
        }
        Ok(match parse(words)? {
            Command::Show(show) => Some(show.report(self.client.flavour).columns.to_vec()),
            Command::Variable(name) => Some(vec![table::text(self.variables.show(&name)?.0)]),
            Command::Value(column, _) => Some(vec![column]),
            Command::ExplainRoute(_) => Some(explain::COLUMNS.to_vec()),
            _ => None,
        })
    }

    async fn execute(&mut self, words: &[Word]) -> Answer<Outcome> {
        let command = parse(words)?;
        if self.status == TxStatus::Failed && !matches!(command, Command::Commit | Command::Rollback) {
            let message = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(ClientError::error(SqlState::IN_FAILED_TRANSACTION, message));
        }
        Ok(match command {
            Command::Show(show) => self.show(show.report(self.client.flavour)),
            Command::Variable(name) => {
                let (name, value) = self.variables.show(&name)?;
                Outcome { columns: Some(vec![table::text(name)]), rows: vec![vec![value.into()]], tag: "SHOW".into() }
            }
            Command::Value(column, value) => {
                Outcome { columns: Some(vec![column]), rows: vec![vec![value]], tag: "SELECT 1".into() }
            }
            Command::Set(name, value) => {
                let report = self.variables.set(&name, value.as_deref())?;
                self.report(report);
                Outcome::done(if value.is_some() { "SET" } else { "RESET" })
            }
            Command::ResetAll(tag) => {
                let reports = self.variables.reset_all();
                self.report(reports);
                if tag == "DISCARD ALL" {
                    self.statements.clear();
                }
                Outcome::done(tag)
            }
            Command::Nothing(tag) => Outcome::done(tag),
            Command::Begin => self.change_status(TxStatus::InTransaction, "BEGIN"),
            Command::Commit if self.status == TxStatus::Failed => self.change_status(TxStatus::Idle, "ROLLBACK"),
            Command::Commit => self.change_status(TxStatus::Idle, "COMMIT"),
            Command::Rollback => self.change_status(TxStatus::Idle, "ROLLBACK"),
            Command::Deallocate(Some(name)) => {
                self.statement(name.as_bytes())?;
                self.statements.remove(name.as_bytes());
                Outcome::done("DEALLOCATE")
            }
            Command::Deallocate(None) => {
                self.statements.clear();
                Outcome::done("DEALLOCATE ALL")
            }
            Command::Reload => self.reload().await?,
            Command::Serve(service, name) => self.serve(service, &name).await?,
            Command::Failover(to) => self.fail_over(to.as_deref()).await?,
            Command::PauseFailover(on) => self.pause_failover(on).await?,
            Command::ForgetLearned => self.forget_learned()?,
            Command::ExplainRoute(text) => {
                let rows = explain::explain(&self.console.sources.look(), &text);
                Outcome { columns: Some(explain::COLUMNS.to_vec()), rows, tag: "EXPLAIN".into() }
            }
        })
    }

    fn show(&self, report: &'static Report) -> Outcome {
        let rows = (report.rows)(&self.console.sources.look());
        // PgBouncer says SHOW and no number.
        let tag = match self.client.flavour {
            Flavour::Own => format!("SHOW {}", rows.len()),
            Flavour::Bouncer => "SHOW".to_owned(),
        };
        Outcome { columns: Some(report.columns.to_vec()), rows, tag }
    }

    fn report(&mut self, reports: impl IntoIterator<Item = (&'static str, String)>) {
        for (name, value) in reports {
            encode::parameter_status(&mut self.out, name, &value);
        }
    }

    fn change_status(&mut self, status: TxStatus, tag: &'static str) -> Outcome {
        self.status = status;
        Outcome::done(tag)
    }
}

impl Drop for ConsoleSession {
    fn drop(&mut self) {
        self.console.sources.registry.unregister(&self.client.handle);
    }
}

fn no_portal(name: &[u8]) -> ClientError {
    ClientError::error(SqlState("34000"), format!("portal \"{}\" does not exist", String::from_utf8_lossy(name)))
}

fn read_formats(rest: &mut Reader<'_>) -> Answer<Vec<Format>> {
    let count = rest.int16().map_err(malformed)?;
    (0..count)
        .map(|_| match rest.int16().map_err(malformed)? {
            0 => Ok(Format::Text),
            1 => Ok(Format::Binary),
            other => {
                Err(ClientError::error(SqlState::INVALID_PARAMETER_VALUE, format!("invalid format code: {other}")))
            }
        })
        .collect()
}
