//! One client of the soak: what it does, what it must see, and what it was told instead.
//!
//! Invariants: every answer is compared with what this client asked and set; an error is believed only
//! if it is one that a killed backend, a restarted standby or a cancel may cause, and is counted. Absent on
//! purpose: retries of a statement whose outcome is not known.

use crate::login;
use crate::support::Dice;
use crate::support::message::*;
use crate::support::rawclient::{Answer, Gone, RawClient};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What clients may be told when others kill their backends: lost, unknown, ended, cancelled, not now.
const TOLERATED: [&str; 9] = ["08006", "08007", "40001", "57P01", "57P02", "57P03", "57014", "25P02", "closed"];
/// Wrong answers that are kept to be shown.
const WRONG_MAX: usize = 20;
/// Names of prepared statements per client.
const NAMES: u64 = 8;

/// What one client, or all, saw.
#[derive(Default)]
pub struct Book {
    checks: u64,
    statements: u64,
    logins: u64,
    acts: BTreeMap<&'static str, u64>,
    told: BTreeMap<String, u64>,
    wrong: Vec<String>,
    /// How long the slowest of what was done took, and what it was.
    slowest: (Duration, String),
}

impl Book {
    pub fn add(&mut self, other: Self) {
        self.checks += other.checks;
        self.statements += other.statements;
        self.logins += other.logins;
        other.acts.into_iter().for_each(|(act, count)| *self.acts.entry(act).or_default() += count);
        other.told.into_iter().for_each(|(code, count)| *self.told.entry(code).or_default() += count);
        self.slowest = std::mem::take(&mut self.slowest).max(other.slowest);
        self.wrong.extend(other.wrong);
        self.wrong.truncate(WRONG_MAX);
    }

    pub fn summary(&self) -> String {
        let mut text =
            format!("{} answers checked in {} statements, {} logins", self.checks, self.statements, self.logins);
        let _ = write!(text, "\ndone: {:?}\ntold: {:?}\nslowest: {:?}", self.acts, self.told, self.slowest);
        text
    }

    /// Nothing wrong was seen, and something was.
    pub fn assert_right(&self) {
        assert!(self.wrong.is_empty(), "wrong answers:\n{}", self.wrong.join("\n"));
        assert!(self.checks > 100 && self.acts.len() == ACTS.len(), "hardly anything was checked: {}", self.summary());
        let strange: Vec<_> = self.told.keys().filter(|code| !TOLERATED.contains(&code.as_str())).collect();
        assert!(strange.is_empty(), "errors that nobody caused: {strange:?}");
        assert!(self.told.values().sum::<u64>() > 0, "no backend was killed under a client: nothing was tested");
    }
}

/// What a client has set, as every backend must show it.
#[derive(Clone)]
struct Own {
    name: String,
    zone: String,
    memory: String,
    token: Option<String>,
    role: String,
}

impl Own {
    fn fresh() -> Self {
        let [name, zone, memory, role] = ["", "UTC", "4MB", "app"].map(str::to_owned);
        Self { name, zone, memory, token: None, role }
    }
}

/// A client.
pub struct Life {
    number: u64,
    port: u16,
    client: Option<RawClient>,
    dice: Dice,
    round: u64,
    own: Own,
    texts: BTreeMap<u64, String>,
    /// What it said last, for the report of a hang.
    last: String,
    book: Book,
}

type Outcome = Result<(), Gone>;
type Act = (&'static str, u64, fn(&mut Life) -> Outcome);

/// Everything a client does, with weights.
const ACTS: [Act; 18] = [
    ("check", 8, |life| life.check()),
    ("set", 6, Life::set),
    ("set in a transaction", 3, Life::set_in_transaction),
    ("role", 2, Life::role),
    ("prepare", 6, Life::prepare),
    ("run prepared", 8, Life::run_prepared),
    ("transaction", 4, Life::transaction),
    ("error", 3, Life::error),
    ("copy", 2, Life::copy),
    ("listen", 2, Life::listen),
    ("temporary table", 2, Life::temporary),
    ("big row", 1, Life::big_row),
    ("big parameter", 1, Life::big_parameter),
    ("pipeline", 3, Life::pipeline),
    ("cancel", 2, Life::cancel),
    ("vanish", 2, Life::vanish),
    ("leave", 1, Life::leave),
    ("discard all", 1, Life::discard_all),
];

const SHOW: &str = "current_setting('application_name'), current_setting('TimeZone'), current_setting('work_mem'), \
                    nullif(current_setting('app.token', true), ''), current_user::text";

impl Life {
    pub fn new(number: u64, port: u16) -> Self {
        let (own, texts, book) = (Own::fresh(), BTreeMap::new(), Book::default());
        Self {
            number,
            port,
            client: None,
            dice: Dice(number * 7919 + 17),
            round: 0,
            own,
            texts,
            last: String::new(),
            book,
        }
    }

    /// Lives until told to stop.
    pub fn run(mut self, stop: &AtomicBool) -> Book {
        let whole: u64 = ACTS.iter().map(|(_, weight, _)| weight).sum();
        while !stop.load(Ordering::SeqCst) {
            self.round += 1;
            let mut rolled = self.roll(whole);
            let chosen = ACTS.iter().find(|(_, weight, _)| {
                let chosen = rolled < *weight;
                rolled = rolled.saturating_sub(*weight);
                chosen
            });
            let (name, _, act) = chosen.expect("the dice have as many sides as there are weights");
            let started = Instant::now();
            let outcome = self.connected().and_then(|()| act(&mut self));
            if started.elapsed() > self.book.slowest.0 {
                self.book.slowest = (started.elapsed(), format!("{name}, round {}, {outcome:?}", self.round));
            }
            if let Err(gone) = outcome {
                let code = match gone {
                    Gone::Refused(fields) => fields.sqlstate().to_owned(),
                    Gone::Closed => "closed".to_owned(),
                    Gone::TimedOut => {
                        let last = self.last.chars().take(200).collect::<String>();
                        self.book
                            .wrong
                            .push(format!("client {} round {} {name}: no answer to {last}", self.number, self.round));
                        "hung".to_owned()
                    }
                    Gone::Garbage(what) => format!("garbage: {what}"),
                };
                *self.book.told.entry(code).or_default() += 1;
                // What became of the statement is not known: begin anew.
                self.client = None;
                std::thread::sleep(Duration::from_millis(20));
            } else {
                *self.book.acts.entry(name).or_default() += 1;
            }
        }
        if let Some(mut client) = self.client.take() {
            let _ = client.send(&terminate());
        }
        self.book
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice.roll(sides)
    }

    fn connected(&mut self) -> Outcome {
        if self.client.is_none() {
            self.client = Some(RawClient::login(self.port, &login())?);
            (self.own, self.texts) = (Own::fresh(), BTreeMap::new());
            self.book.logins += 1;
        }
        Ok(())
    }

    fn token(&self) -> String {
        format!("c{} r{}", self.number, self.round)
    }

    fn client(&mut self) -> Result<&mut RawClient, Gone> {
        self.book.statements += 1;
        self.client.as_mut().ok_or(Gone::Closed)
    }

    fn simple(&mut self, sql: &str) -> Result<Answer, Gone> {
        sql.clone_into(&mut self.last);
        self.client()?.simple(sql)
    }

    fn exchange(&mut self, messages: &[Vec<u8>]) -> Result<Answer, Gone> {
        let bytes = messages.concat();
        self.last = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
        let client = self.client()?;
        client.send(&bytes)?;
        client.answer()
    }

    /// Compares; what is wrong is written down, with what was expected.
    fn same(&mut self, what: &str, seen: &[Vec<Option<String>>], expected: &[Vec<Option<String>>]) {
        self.book.checks += 1;
        if seen != expected {
            let short = |rows: &[Vec<Option<String>>]| format!("{rows:?}").chars().take(400).collect::<String>();
            let line = format!(
                "client {} round {} {what}: {} expected {}",
                self.number,
                self.round,
                short(seen),
                short(expected)
            );
            self.book.wrong.push(line);
        }
    }

    /// This error and no other is right; a loss is passed on.
    fn refused(&mut self, what: &str, outcome: Result<Answer, Gone>, code: &str) -> Outcome {
        match outcome {
            Err(Gone::Refused(fields)) if fields.sqlstate() == code => {
                self.book.checks += 1;
                Ok(())
            }
            Err(Gone::Refused(fields)) if !TOLERATED.contains(&fields.sqlstate()) => {
                self.book.wrong.push(format!("client {} {what}: {fields:?}", self.number));
                Ok(())
            }
            Err(gone) => Err(gone),
            Ok(answer) => {
                self.book.wrong.push(format!("client {} {what}: {answer:?} instead of {code}", self.number));
                Ok(())
            }
        }
    }

    fn check(&mut self) -> Outcome {
        let token = self.token();
        let lock = if self.roll(3) == 0 { " FOR UPDATE" } else { "" };
        let answer = self.simple(&format!("SELECT '{token}', {SHOW}{lock}"))?;
        let Own { name, zone, memory, token: own_token, role } = self.own.clone();
        self.same(
            "state",
            &answer.rows,
            &[vec![Some(token), Some(name), Some(zone), Some(memory), own_token, Some(role)]],
        );
        Ok(())
    }

    /// A setting, its statement and the state behind it.
    fn change(&mut self) -> (String, Own) {
        let (token, value, mut own) = (self.token(), self.roll(3) as usize, self.own.clone());
        let sql = match self.roll(6) {
            0 => {
                own.name.clone_from(&token);
                format!("SET application_name = '{token}'")
            }
            1 => {
                own.zone = ["UTC", "Asia/Tokyo", "Europe/Rome"][value].to_owned();
                format!("SET TimeZone = '{}'", own.zone)
            }
            2 => {
                own.memory = ["1MB", "2MB", "3MB"][value].to_owned();
                format!("SET work_mem = '{}'", own.memory)
            }
            3 => {
                own.memory = "4MB".to_owned();
                "RESET work_mem".to_owned()
            }
            4 => {
                own.zone = "UTC".to_owned();
                "SET TimeZone TO DEFAULT".to_owned()
            }
            _ => {
                own.token = Some(token.clone());
                format!("SELECT set_config('app.token', '{token}', false)")
            }
        };
        (sql, own)
    }

    fn set(&mut self) -> Outcome {
        let (sql, own) = self.change();
        if self.roll(2) == 0 {
            self.exchange(&[parse("", &sql), bind("", "", &[]), execute("", 0), sync()])?;
        } else {
            self.simple(&sql)?;
        }
        self.own = own;
        self.check()
    }

    fn set_in_transaction(&mut self) -> Outcome {
        let (sql, own) = self.change();
        self.simple("BEGIN")?;
        self.simple(&sql)?;
        let (end, after) = if self.roll(2) == 0 { ("COMMIT", own.clone()) } else { ("ROLLBACK", self.own.clone()) };
        self.own = own;
        self.check()?;
        self.simple(end)?;
        self.own = after;
        self.check()
    }

    fn role(&mut self) -> Outcome {
        if self.own.role == "app" {
            self.simple("SET ROLE app_group")?;
            self.own.role = "app_group".to_owned();
        } else {
            self.simple("RESET ROLE")?;
            self.own.role = "app".to_owned();
        }
        self.check()
    }

    fn prepare(&mut self) -> Outcome {
        let slot = self.roll(NAMES);
        let name = format!("s{slot}");
        // Some texts are everybody's, some this client's, most never seen again.
        let text = match self.roll(3) {
            0 => format!("'shared {slot}'"),
            1 => format!("'c{} {slot}'", self.number),
            _ => format!("'{}'", self.token()),
        };
        let mut messages = vec![parse(&name, &format!("SELECT $1::text, {text}")), describe_statement(&name), sync()];
        if self.texts.contains_key(&slot) {
            messages.insert(0, close_statement(&name));
        }
        self.exchange(&messages)?;
        self.texts.insert(slot, text.trim_matches('\'').to_owned());
        Ok(())
    }

    fn run_prepared(&mut self) -> Outcome {
        let (slot, token) = (self.roll(NAMES), self.token());
        let outcome =
            self.exchange(&[bind("", &format!("s{slot}"), &[Some(token.as_bytes())]), execute("", 0), sync()]);
        match self.texts.get(&slot).cloned() {
            Some(text) => {
                let rows = outcome?.rows;
                self.same("prepared", &rows, &[vec![Some(token), Some(text)]]);
                Ok(())
            }
            None => self.refused("unknown statement", outcome, "26000"),
        }
    }

    fn transaction(&mut self) -> Outcome {
        let (token, number) = (self.token(), self.number);
        let begin = if self.roll(3) == 0 { "BEGIN ISOLATION LEVEL REPEATABLE READ" } else { "BEGIN" };
        self.simple(begin)?;
        self.check()?;
        let put = self.simple(&format!("INSERT INTO public.soak VALUES ({number}, '{token}') RETURNING token"))?;
        self.same("returning", &put.rows, &[vec![Some(token.clone())]]);
        let end = if self.roll(2) == 0 { "COMMIT" } else { "ROLLBACK" };
        self.simple(end)?;
        let count = if end == "COMMIT" { "1" } else { "0" };
        let seen =
            self.simple(&format!("SELECT count(*) FROM public.soak WHERE client = {number} AND token = '{token}'"))?;
        self.same(end, &seen.rows, &[vec![Some(count.to_owned())]]);
        if self.roll(4) == 0 {
            self.simple(&format!("DELETE FROM public.soak WHERE client = {number}"))?;
        }
        Ok(())
    }

    fn error(&mut self) -> Outcome {
        let outcome = match self.roll(4) {
            0 => self.simple("SELECT 1/0"),
            1 => self.simple("SELECT 1/0 FOR UPDATE"),
            2 => self.exchange(&[parse("", "SELECT 1/$1::int"), bind("", "", &[Some(b"0")]), execute("", 0), sync()]),
            _ => {
                self.simple("BEGIN")?;
                let outcome = self.simple("SELECT 1/0");
                self.refused("in a transaction", outcome, "22012")?;
                let outcome = self.simple("SELECT 1");
                self.refused("after an error", outcome, "25P02")?;
                self.simple("ROLLBACK")?;
                return self.check();
            }
        };
        self.refused("an error", outcome, "22012")
    }

    fn copy(&mut self) -> Outcome {
        let (number, token) = (self.number, self.token());
        let client = self.client()?;
        client.send(&query("COPY public.soak FROM STDIN"))?;
        loop {
            let message = client.read()?;
            match message.tag {
                b'G' => break,
                b'E' => return Err(Gone::Refused(message.fields())),
                _ => {}
            }
        }
        client.send(
            &format!("{number}\t{token}\n")
                .repeat(20)
                .into_bytes()
                .chunks(100)
                .map(copy_data)
                .collect::<Vec<_>>()
                .concat(),
        )?;
        client.send(&copy_done())?;
        client.answer()?;
        let seen =
            self.simple(&format!("SELECT count(*) FROM public.soak WHERE client = {number} AND token = '{token}'"))?;
        self.same("copied", &seen.rows, &[vec![Some("20".to_owned())]]);
        let client = self.client()?;
        client.send(&query(&format!("COPY (SELECT token FROM public.soak WHERE token = '{token}') TO STDOUT")))?;
        let messages = client.read_until(b'Z')?;
        let lines = messages.iter().filter(|m| m.tag == b'd');
        let rows: Vec<Vec<Option<String>>> =
            lines.map(|m| vec![Some(String::from_utf8_lossy(&m.body).trim_end().to_owned())]).collect();
        if !messages.iter().any(|message| message.tag == b'E') {
            self.same("copied out", &rows, &vec![vec![Some(token)]; 20]);
        }
        self.simple(&format!("DELETE FROM public.soak WHERE client = {number}"))?;
        Ok(())
    }

    fn listen(&mut self) -> Outcome {
        let (channel, token) = (format!("soak_{}", self.number), self.token());
        self.simple(&format!("LISTEN {channel}"))?;
        let client = self.client()?;
        client.send(&query(&format!("NOTIFY {channel}, '{token}'")))?;
        let mut heard = Vec::new();
        let mut ready = false;
        while heard.is_empty() || !ready {
            let message = client.read()?;
            match message.tag {
                b'A' => heard.push(vec![message.body.get(4..).map(|rest| String::from_utf8_lossy(rest).into_owned())]),
                b'E' => return Err(Gone::Refused(message.fields())),
                b'Z' => ready = true,
                _ => {}
            }
        }
        self.same("heard", &heard, &[vec![Some(format!("{channel}\0{token}\0"))]]);
        self.simple("UNLISTEN *")?;
        Ok(())
    }

    fn temporary(&mut self) -> Outcome {
        let token = self.token();
        self.simple(&format!("CREATE TEMP TABLE mine AS SELECT '{token}'::text AS token"))?;
        let seen = self.simple("SELECT token FROM mine")?;
        self.same("temporary", &seen.rows, &[vec![Some(token)]]);
        self.check()?;
        let end = if self.roll(2) == 0 { "DROP TABLE mine" } else { "DISCARD TEMP" };
        self.simple(end)?;
        Ok(())
    }

    fn big_row(&mut self) -> Outcome {
        let token = self.token();
        let (seen, expected) =
            (self.simple(&format!("SELECT repeat('{token} ', 100000)"))?, format!("{token} ").repeat(100_000));
        self.same("big row", &seen.rows, &[vec![Some(expected)]]);
        Ok(())
    }

    fn big_parameter(&mut self) -> Outcome {
        let value = self.token().repeat(60_000);
        let sql = "SELECT length($1::text), right($1::text, 20) FOR UPDATE";
        let seen = self.exchange(&[parse("", sql), bind("", "", &[Some(value.as_bytes())]), execute("", 0), sync()])?;
        let expected = vec![Some(value.len().to_string()), Some(value[value.len() - 20..].to_owned())];
        self.same("big parameter", &seen.rows, &[expected]);
        Ok(())
    }

    fn pipeline(&mut self) -> Outcome {
        let (token, count) = (self.token(), 5 + self.roll(30));
        let one =
            |i: u64| [parse("", &format!("SELECT '{token} {i}'")), bind("", "", &[]), execute("", 0), sync()].concat();
        let client = self.client()?;
        client.send(&(0..count).map(one).collect::<Vec<_>>().concat())?;
        let mut rows = Vec::new();
        let mut lost = None;
        for _ in 0..count {
            match client.answer() {
                Ok(answer) => rows.extend(answer.rows),
                Err(gone @ Gone::Refused(_)) => lost = Some(gone),
                Err(gone) => return Err(gone),
            }
        }
        if let Some(gone) = lost {
            return Err(gone);
        }
        let expected: Vec<_> = (0..count).map(|i| vec![Some(format!("{token} {i}"))]).collect();
        self.same("pipeline", &rows, &expected);
        Ok(())
    }

    fn cancel(&mut self) -> Outcome {
        let (port, pause) = (self.port, self.roll(60));
        let client = self.client()?;
        client.send(&query("SELECT 'slept' FROM pg_sleep(0.03)"))?;
        std::thread::sleep(Duration::from_millis(pause));
        let mut other = RawClient::tcp(port);
        other.send(&cancel(client.cancel_key.0, &client.cancel_key.1))?;
        let _ = other.read_to_end();
        match client.answer() {
            Ok(answer) => self.same("slept", &answer.rows, &[vec![Some("slept".to_owned())]]),
            // Its own cancel came in time.
            Err(Gone::Refused(fields)) if fields.sqlstate() == "57014" => {}
            Err(gone) => return Err(gone),
        }
        self.check()
    }

    /// Goes without a word, in the middle of something.
    fn vanish(&mut self) -> Outcome {
        let insert = format!("INSERT INTO public.soak VALUES (-1, '{}')", self.token());
        let kind = self.roll(5);
        let client = self.client()?;
        let bytes = match kind {
            0 => [query("BEGIN"), query(&insert)].concat(),
            1 => [parse("", &insert), bind("", "", &[]), execute("", 0), flush()].concat(),
            2 => query("SELECT repeat('x', 1000) FROM generate_series(1, 20000)"),
            3 => [query("COPY public.soak FROM STDIN"), copy_data(b"half a li")].concat(),
            _ => query("SELECT pg_sleep(0.2)")[..9].to_vec(),
        };
        client.send(&bytes)?;
        client.hang_up();
        self.client = None;
        self.connected()?;
        let seen = self.simple("SELECT count(*) FROM public.soak WHERE client = -1")?;
        self.same("what nobody committed", &seen.rows, &[vec![Some("0".to_owned())]]);
        self.check()
    }

    fn leave(&mut self) -> Outcome {
        self.client()?.send(&terminate())?;
        self.client = None;
        self.connected()?;
        self.check()
    }

    fn discard_all(&mut self) -> Outcome {
        self.simple("DISCARD ALL")?;
        (self.own, self.texts) = (Own::fresh(), BTreeMap::new());
        self.check()
    }
}
