//! Many hostile clients on few backends: nobody sees another's rows, settings, statements or cancel.
//!
//! Every statement carries its client's token and must bring it back; in between the clients change
//! settings, clash in names, fail, are canceled and vanish. Absent on purpose: speed.

use crate::support::message::*;
use crate::support::proxy::ProxySpec;
use crate::support::rawclient::{Gone, RawClient};
use crate::support::{Dice, cluster};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const CLIENTS: u64 = 16;
/// Statements per client; `PGREGENT_TEST_STATEMENTS` sets another number.
const STATEMENTS: u64 = 250;

/// What a client has set, as it must see it everywhere.
#[derive(Clone)]
struct Own {
    name: String,
    zone: String,
    path: String,
    limit: String,
}

impl Own {
    fn fresh() -> Self {
        let [name, zone, path, limit] = ["", "UTC", "public", "0"].map(str::to_owned);
        Self { name, zone, path, limit }
    }
}

struct Life<'a> {
    number: u64,
    port: u16,
    client: RawClient,
    dice: Dice,
    own: Own,
    /// Texts behind the names `s0` to `s2` of this client.
    texts: [Option<String>; 3],
    canceled: &'a AtomicUsize,
}

const SETUP: &str = "SET TimeZone = 'UTC'; SET search_path = public";
const SHOW: &str = "current_setting('application_name') || '/' || current_setting('TimeZone') || '/' || \
                    current_setting('search_path') || '/' || current_setting('statement_timeout')";

impl Life<'_> {
    fn connect(&mut self) {
        self.client = RawClient::login(self.port, &cluster::app_login()).unwrap();
        for sql in SETUP.split(';') {
            self.client.simple(sql).unwrap();
        }
        self.own = Own::fresh();
        self.texts = [const { None }; 3];
    }

    fn run(&mut self, statements: u64) {
        self.connect();
        for round in 0..statements {
            match self.dice.roll(16) {
                0 | 1 => self.change_setting(round),
                2 | 3 => self.prepare(round),
                4 | 5 => self.run_prepared(round),
                6 => self.fail(),
                7 if self.dice.roll(4) == 0 => self.be_canceled(),
                8 if self.dice.roll(4) == 0 => self.vanish(round),
                9 => self.transaction(round),
                _ => self.check(round),
            }
        }
    }

    fn expected(&self) -> String {
        let Own { name, zone, path, limit } = &self.own;
        format!("{name}/{zone}/{path}/{limit}")
    }

    fn check(&mut self, round: u64) {
        let token = format!("c{} r{round}", self.number);
        let lock = if self.dice.roll(3) == 0 { " FOR UPDATE" } else { "" };
        let answer = self.client.simple(&format!("SELECT '{token}', {SHOW}{lock}")).unwrap();
        assert_eq!(answer.rows, [[Some(token), Some(self.expected())]], "client {} round {round}", self.number);
    }

    fn change_setting(&mut self, round: u64) {
        let value = self.dice.roll(3);
        let (setting, shown, slot) = match self.dice.roll(4) {
            0 => ("application_name", format!("c{} r{round}", self.number), &mut self.own.name),
            1 => ("TimeZone", ["UTC", "Asia/Tokyo", "Europe/Rome"][value as usize].to_owned(), &mut self.own.zone),
            2 => ("search_path", ["public", "pg_catalog", "nowhere"][value as usize].to_owned(), &mut self.own.path),
            _ => ("statement_timeout", format!("{}min", value + 1), &mut self.own.limit),
        };
        let set = format!("SET {setting} = '{shown}'");
        match self.dice.roll(5) {
            0 => {
                for sql in ["BEGIN", &set, "ROLLBACK"] {
                    self.client.simple(sql).unwrap();
                }
            }
            1 => {
                for sql in ["BEGIN", &set, "COMMIT"] {
                    self.client.simple(sql).unwrap();
                }
                *slot = shown;
            }
            2 => {
                self.client.send(&batch(&[parse("", &set), bind("", "", &[]), execute("", 0), sync()])).unwrap();
                self.client.answer().unwrap();
                *slot = shown;
            }
            3 => {
                self.client.send(&batch(&[parse("", &set), bind("", "", &[]), sync()])).unwrap();
                self.client.answer().unwrap();
            }
            _ => {
                self.client.simple(&set).unwrap();
                *slot = shown;
            }
        }
        self.check(round);
    }

    fn prepare(&mut self, round: u64) {
        let slot = self.dice.roll(3) as usize;
        let name = format!("s{slot}");
        // Every second text is the same for all clients: shared on the backend, named by each.
        let text =
            if round.is_multiple_of(2) { format!("'shared {slot}'") } else { format!("'c{} p{round}'", self.number) };
        let make = parse(&name, &format!("SELECT $1::text, {text}"));
        let mut messages = vec![make, sync()];
        if self.texts[slot].is_some() {
            if self.dice.roll(3) == 0 {
                self.client.simple(&format!("DEALLOCATE {name}")).unwrap();
            } else {
                messages.insert(0, close_statement(&name));
            }
        }
        self.client.send(&batch(&messages)).unwrap();
        self.client.answer().unwrap();
        self.texts[slot] = Some(text);
    }

    fn run_prepared(&mut self, round: u64) {
        let slot = self.dice.roll(3) as usize;
        let token = format!("c{} x{round}", self.number);
        self.client
            .send(&batch(&[bind("", &format!("s{slot}"), &[Some(token.as_bytes())]), execute("", 0), sync()]))
            .unwrap();
        match (self.client.answer(), &self.texts[slot]) {
            (Ok(answer), Some(text)) => {
                assert_eq!(answer.rows, [[Some(token), Some(text.trim_matches('\'').to_owned())]]);
            }
            (Err(Gone::Refused(fields)), None) => assert_eq!(fields.sqlstate(), "26000"),
            (other, text) => panic!("client {}: {other:?}, expected {text:?}", self.number),
        }
    }

    fn fail(&mut self) {
        let outcome = match self.dice.roll(3) {
            0 => self.client.simple("SELECT 1/0"),
            1 => self.client.simple("SELECT 1/0 FOR UPDATE"),
            _ => {
                let messages = [parse("broken", "SELEC"), bind("", "broken", &[]), execute("", 0), sync()];
                self.client.send(&batch(&messages)).unwrap();
                self.client.answer()
            }
        };
        match outcome {
            Err(Gone::Refused(fields)) => assert!(["22012", "42601"].contains(&fields.sqlstate()), "{fields:?}"),
            other => panic!("{other:?}"),
        }
    }

    fn be_canceled(&mut self) {
        let lock = if self.dice.roll(2) == 0 { " FOR UPDATE" } else { "" };
        self.client.send(&query(&format!("SELECT 'slept' FROM pg_sleep(0.03){lock}"))).unwrap();
        thread::sleep(Duration::from_millis(self.dice.roll(60)));
        let mut other = RawClient::tcp(self.port);
        other.send(&cancel(self.client.cancel_key.0, &self.client.cancel_key.1)).unwrap();
        let _ = other.read_to_end();
        // Its own cancel may come in time or not.
        match self.client.answer() {
            Ok(answer) => assert_eq!(answer.rows, [[Some("slept".to_owned())]]),
            Err(Gone::Refused(fields)) => {
                assert_eq!(fields.sqlstate(), "57014", "{fields:?}");
                self.canceled.fetch_add(1, Ordering::Relaxed);
            }
            Err(gone) => panic!("{gone:?}"),
        }
    }

    fn vanish(&mut self, round: u64) {
        let insert = format!("INSERT INTO public.isolation_gone VALUES ('c{} r{round}')", self.number);
        let flushed = [parse("", &insert), bind("", "", &[]), execute("", 0), flush()];
        match self.dice.roll(5) {
            0 => self.client.send(&batch(&[query("BEGIN"), query(&insert)])).unwrap(),
            1 => self.client.send(&batch(&flushed)).unwrap(),
            2 => {
                self.client.send(&batch(&flushed)).unwrap();
                self.client.read_until(b'C').unwrap();
                self.client.send(&terminate()).unwrap();
            }
            3 => self.client.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 20000)")).unwrap(),
            _ => self
                .client
                .send(&batch(&[query("COPY public.isolation_gone FROM STDIN"), copy_data(b"half a li")]))
                .unwrap(),
        }
        self.client.hang_up();
        self.connect();
    }

    fn transaction(&mut self, round: u64) {
        self.client.simple("BEGIN").unwrap();
        self.check(round);
        if self.dice.roll(2) == 0 {
            let outcome = self.client.simple("SELECT 1/0");
            assert!(matches!(outcome, Err(Gone::Refused(_))), "{outcome:?}");
        } else {
            self.check(round);
        }
        self.client.simple("ROLLBACK").unwrap();
    }
}

#[test]
fn nobody_sees_another() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("pool.size", "2").start_splitting();
    proxy.client().simple("CREATE TABLE isolation_gone (t text)").unwrap();
    let statements =
        std::env::var("PGREGENT_TEST_STATEMENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(STATEMENTS);
    let canceled = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (client, port, canceled) = (proxy.client(), proxy.port, &canceled);
            let texts = [const { None }; 3];
            let mut life = Life { number, port, client, dice: Dice(number + 7), own: Own::fresh(), texts, canceled };
            scope.spawn(move || life.run(statements));
        }
    });
    assert!(canceled.load(Ordering::Relaxed) > 0, "no cancel came in time: nothing was tested");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(proxy.client().value("SELECT count(*) FROM isolation_gone"), "0", "what nobody committed is there");
    proxy.assert_serving();
}

#[test]
fn names_on_backends_are_nobodys() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("pool.size", "1").start_splitting();
    let (mut owner, mut thief) = (proxy.client(), proxy.client());
    owner.send(&batch(&[parse("mine", "SELECT 'secret' FOR UPDATE"), sync()])).unwrap();
    owner.answer().unwrap();
    owner.send(&batch(&[bind("", "mine", &[]), execute("", 0), sync()])).unwrap();
    owner.answer().unwrap();
    for number in 0..40 {
        // However the proxy calls it there, it is not the thief's.
        let name = format!("pgregent_{number:x}");
        for messages in [[bind("", &name, &[]), execute("", 0), sync()], [describe_statement(&name), flush(), sync()]] {
            thief.send(&batch(&messages)).unwrap();
            match thief.answer() {
                Err(Gone::Refused(fields)) => assert_eq!(fields.sqlstate(), "26000", "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
    thief
        .send(&batch(&[parse("pgregent_1", "SELECT 'my own'"), bind("", "pgregent_1", &[]), execute("", 0), sync()]))
        .unwrap();
    assert_eq!(thief.answer().unwrap().rows, [[Some("my own".to_owned())]]);
}
