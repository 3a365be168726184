//! Many clients on few backends: nobody sees another's settings, statements, rows or cancels.
//!
//! Few backends and more clients than backends, so that every transaction may run on another backend
//! than the one before. Absent on purpose: speed.

use crate::support::message::*;
use crate::support::proxy::{Proxy, ProxySpec};
use crate::support::rawclient::{Gone, RawClient};
use crate::support::{Dice, cluster};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

const CLIENTS: usize = 12;
const ROUNDS: usize = 60;

fn crowded() -> Proxy {
    ProxySpec::in_front_of(cluster::shared()).set("pool.size", "3").start_splitting()
}

fn in_parallel(proxy: &Proxy, life: fn(&mut RawClient, usize)) {
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || life(&mut proxy.client(), number));
        }
    });
    proxy.assert_serving();
}

#[test]
fn settings_belong_to_their_client() {
    in_parallel(&crowded(), |client, number| {
        let mut dice = Dice(number as u64 + 1);
        let (mut name, mut memory) = (String::new(), "4MB".to_owned());
        for round in 0..ROUNDS {
            let fresh = format!("client {number} round {round}");
            match dice.roll(6) {
                0 => {
                    client.simple(&format!("SET application_name = '{fresh}'")).unwrap();
                    name = fresh;
                }
                1 => {
                    memory = format!("{}MB", 5 + dice.roll(50));
                    client.simple(&format!("BEGIN; SET work_mem = '{memory}'; COMMIT")).unwrap();
                }
                2 => drop(client.simple(&format!("BEGIN; SET application_name = '{fresh}'; ROLLBACK")).unwrap()),
                3 => drop(client.simple("BEGIN; SET LOCAL work_mem = '100MB'; SELECT 1; COMMIT").unwrap()),
                4 => {
                    client.simple("RESET application_name").unwrap();
                    name = String::new();
                }
                _ => {}
            }
            let seen = client.value("SELECT current_setting('application_name') || '|' || current_setting('work_mem')");
            assert_eq!(seen, format!("{name}|{memory}"), "client {number}, round {round}");
        }
    });
}

#[test]
fn statements_belong_to_their_client() {
    in_parallel(&crowded(), |client, number| {
        // The same name means something else to every client.
        client.send(&batch(&[parse("mine", &format!("SELECT {number} * 1000 + $1::int")), sync()])).unwrap();
        client.answer().unwrap();
        for round in 0..ROUNDS {
            let value = round.to_string();
            client.send(&batch(&[bind("", "mine", &[Some(value.as_bytes())]), execute("", 0), sync()])).unwrap();
            let answer = client.answer().unwrap();
            assert_eq!(answer.rows, [[Some((number * 1000 + round).to_string())]], "client {number}");
            if round % 20 == 19 {
                let sql = format!("SELECT {number} * 1000 + $1::int, 'version {round}'");
                let replace = batch(&[close_statement("mine"), parse("mine", &sql), sync()]);
                client.send(&replace).unwrap();
                client.answer().unwrap();
                client.send(&batch(&[bind("", "mine", &[Some(b"1")]), execute("", 0), sync()])).unwrap();
                let answer = client.answer().unwrap();
                assert_eq!(answer.rows[0][1], Some(format!("version {round}")));
                let sql = format!("SELECT {number} * 1000 + $1::int");
                client.send(&batch(&[close_statement("mine"), parse("mine", &sql), sync()])).unwrap();
                client.answer().unwrap();
            }
        }
    });
}

/// What was prepared after ALTER runs wherever its text was prepared before.
#[test]
fn prepared_again_after_a_change_is_not_refused() {
    let proxy = crowded();
    let mut client = proxy.client();
    let run = |client: &mut RawClient, name: &str| {
        client.send(&batch(&[bind("", name, &[]), execute("", 0), sync()])).unwrap();
        client.answer().map(|answer| answer.rows[0].len())
    };
    for round in 0..20 {
        client.simple("CREATE TABLE prepared_again AS SELECT 1 AS a").unwrap();
        for (columns, name) in [(1, "old"), (2, "new"), (3, "newer")] {
            let text = "SELECT * FROM prepared_again";
            client.send(&batch(&[parse(name, text), describe_statement(name), sync()])).unwrap();
            client.answer().unwrap();
            for _ in 0..4 {
                assert_eq!(run(&mut client, name), Ok(columns), "round {round}, {name}");
            }
            client.simple(&format!("ALTER TABLE prepared_again ADD c{columns} int")).unwrap();
            assert!(matches!(run(&mut client, name), Err(Gone::Refused(fields)) if fields.sqlstate() == "0A000"));
        }
        client.simple("DROP TABLE prepared_again; DEALLOCATE ALL").unwrap();
    }
}

/// A statement that executes another one must not run what that name meant before.
#[test]
fn what_a_statement_executes_is_what_its_name_means_now() {
    let proxy = crowded();
    let mut client = proxy.client();
    let run = batch(&[bind("", "outer", &[]), execute("", 0), sync()]);
    client.send(&batch(&[parse("inner", "SELECT 'old'"), parse("outer", "EXECUTE \"inner\""), sync()])).unwrap();
    client.answer().unwrap();
    client.send(&run).unwrap();
    assert_eq!(client.answer().unwrap().rows, [[Some("old".to_owned())]]);
    client.send(&batch(&[close_statement("inner"), sync(), run.clone()])).unwrap();
    client.answer().unwrap();
    assert_eq!(sqlstate(client.answer()), "26000");
    client.send(&batch(&[parse("inner", "SELECT 'new'"), sync(), run])).unwrap();
    client.answer().unwrap();
    assert_eq!(sqlstate(client.answer()), "26000", "prepared for what is gone");
    proxy.assert_serving();
}

/// A write that was sent behind settings which the node then refused: it is answered, and nothing behind it is skipped.
#[test]
fn settings_that_a_node_refuses_are_told() {
    let proxy = crowded();
    let (mut client, mut other) = (proxy.client(), proxy.client());
    client.simple("CREATE TABLE refused_settings (i int)").unwrap();
    client.simple("CREATE TEXT SEARCH CONFIGURATION refused_settings (COPY = simple)").unwrap();
    client.simple("SET default_text_search_config = 'public.refused_settings'").unwrap();
    other.simple("DROP TEXT SEARCH CONFIGURATION refused_settings").unwrap();
    let mut holders = [proxy.client(), proxy.client()];
    let mut told = Vec::new();
    for round in 0..6 {
        // On another backend than the one that has the setting.
        let holder = &mut holders[round % 2];
        let _ = holder.simple("ROLLBACK");
        holder.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
        let insert = format!("INSERT INTO refused_settings VALUES ({round})");
        let outcome = if round % 2 == 0 {
            client.simple(&insert)
        } else {
            client.send(&batch(&[parse("", &insert), bind("", "", &[]), execute("", 0), sync()])).unwrap();
            client.answer()
        };
        told.push(sqlstate(outcome));
    }
    assert!(told.iter().all(|code| code == "08007" || code == "22023" || code.starts_with("Ok")), "{told:?}");
    assert!(told.iter().any(|code| !code.starts_with("Ok")), "no other backend was used: {told:?}");
}

#[test]
fn transactions_do_not_mix() {
    let proxy = crowded();
    proxy.client().simple("CREATE TABLE sharing_tx (client int, round int)").unwrap();
    in_parallel(&proxy, |client, number| {
        for round in 0..ROUNDS / 2 {
            client.simple("BEGIN").unwrap();
            client.simple(&format!("INSERT INTO sharing_tx VALUES ({number}, {round})")).unwrap();
            let own = client.value(&format!("SELECT count(*) FROM sharing_tx WHERE client = {number}"));
            let expected = round.div_ceil(2) + 1;
            assert_eq!(own, expected.to_string(), "client {number}, round {round}");
            client.simple(if round % 2 == 0 { "COMMIT" } else { "ROLLBACK" }).unwrap();
            let kept = client.value(&format!("SELECT count(*) FROM sharing_tx WHERE client = {number}"));
            assert_eq!(kept, (round / 2 + 1).to_string(), "client {number}, after round {round}");
        }
    });
    assert_eq!(proxy.client().value("SELECT count(*) FROM sharing_tx"), (CLIENTS * ROUNDS / 4).to_string());
}

#[test]
fn a_client_that_vanishes_leaves_nothing() {
    let proxy = crowded();
    proxy.client().simple("CREATE TABLE sharing_gone (i int)").unwrap();
    for kind in 0..8 {
        let mut client = proxy.client();
        client.simple("SET application_name = 'a ghost'").unwrap();
        match kind % 4 {
            0 => drop(client.simple("BEGIN; INSERT INTO sharing_gone VALUES (1)").unwrap()),
            1 => client.send(&query("SELECT generate_series(1, 1000000)")).unwrap(),
            2 => client.send(&batch(&[parse("", "SELECT pg_sleep(0.2)"), bind("", "", &[]), execute("", 0)])).unwrap(),
            _ => client.send(&query("COPY sharing_gone FROM STDIN")).unwrap(),
        }
        client.hang_up();
    }
    for _ in 0..20 {
        let seen =
            proxy.client().value("SELECT current_setting('application_name') || (SELECT count(*) FROM sharing_gone)");
        assert_eq!(seen, "0");
    }
}

fn cancel_on(port: u16, key: &(u32, Vec<u8>)) {
    let mut connection = RawClient::tcp(port);
    connection.send(&cancel(key.0, &key.1)).unwrap();
    assert_eq!(connection.read_to_end(), Ok(Vec::new()), "a cancel request is answered by closing only");
}

fn sqlstate(result: Result<crate::support::rawclient::Answer, Gone>) -> String {
    match result {
        Err(Gone::Refused(fields)) => fields.sqlstate().to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_cancel_hits_its_own_statement_only() {
    let proxy = crowded();
    let (mut victim, mut bystander) = (proxy.client(), proxy.client());
    for sleep in ["SELECT pg_sleep(30)", "BEGIN; SELECT pg_sleep(30)", "DO $$ BEGIN PERFORM pg_sleep(30); END $$"] {
        let started = Instant::now();
        victim.send(&query(sleep)).unwrap();
        bystander.send(&query("SELECT pg_sleep(1), 'undisturbed'")).unwrap();
        thread::sleep(Duration::from_millis(400));
        cancel_on(proxy.port, &victim.cancel_key);
        assert_eq!(sqlstate(victim.answer()), "57014", "{sleep}");
        assert!(started.elapsed() < Duration::from_secs(15));
        assert_eq!(bystander.answer().unwrap().rows[0][1].as_deref(), Some("undisturbed"));
        let _ = victim.simple("ROLLBACK");
        assert_eq!(victim.value("SELECT 'usable'"), "usable");
    }
}

#[test]
fn cancels_out_of_time_or_with_a_wrong_key_do_nothing() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("pool.size", "1").start_ready();
    let (idle, mut busy) = (proxy.client(), proxy.client());
    let (pid, secret) = busy.cancel_key.clone();
    let mut wrong = secret.clone();
    wrong[0] ^= 1;
    busy.send(&query("SELECT pg_sleep(1.5), 'finished' FOR UPDATE")).unwrap();
    thread::sleep(Duration::from_millis(300));
    // An idle client's key, while the only backend runs another client's statement.
    cancel_on(proxy.port, &idle.cancel_key);
    cancel_on(proxy.port, &(pid, wrong));
    cancel_on(proxy.port, &(pid.wrapping_add(1), secret.clone()));
    cancel_on(proxy.port, &(pid, secret[..secret.len() - 1].to_vec()));
    assert_eq!(busy.answer().unwrap().rows[0][1].as_deref(), Some("finished"));
    // A cancel that comes too late must not hit the next statement, of whomever.
    let (mut first, mut second) = (proxy.client(), proxy.client());
    for round in 0..30 {
        first.simple("SELECT 1 FOR UPDATE").unwrap();
        cancel_on(proxy.port, &first.cancel_key);
        assert_eq!(second.value("SELECT 'unharmed' FROM pg_sleep(0.01) FOR UPDATE"), "unharmed", "round {round}");
    }
    let key = second.cancel_key.clone();
    drop(second);
    cancel_on(proxy.port, &key);
    proxy.assert_serving();
}

#[test]
fn a_waiting_client_can_cancel() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("pool.size", "1").start_ready();
    let (mut holder, mut waiting) = (proxy.client(), proxy.client());
    holder.simple("BEGIN; SELECT 1 FOR UPDATE").unwrap();
    waiting.send(&query("SELECT 1 FOR UPDATE")).unwrap();
    thread::sleep(Duration::from_millis(300));
    cancel_on(proxy.port, &waiting.cancel_key);
    assert_eq!(sqlstate(waiting.answer()), "57014");
    holder.simple("COMMIT").unwrap();
    assert_eq!(waiting.value("SELECT 'usable' FOR UPDATE"), "usable");
}

#[test]
fn session_mode_keeps_the_backend() {
    let proxy = ProxySpec::in_front_of(cluster::shared()).set("pool.mode", "\"session\"").start_ready();
    let mut client = proxy.client();
    client.simple("CREATE TEMP TABLE mine (i int)").unwrap();
    let pid = client.value("SELECT pg_backend_pid() FROM mine RIGHT JOIN (SELECT 1) one ON true");
    for _ in 0..5 {
        client.simple("BEGIN; INSERT INTO mine VALUES (1); COMMIT").unwrap();
        assert_eq!(client.value("SELECT pg_backend_pid() FROM mine LIMIT 1"), pid);
    }
    drop(client);
    let mut next = proxy.client();
    assert_eq!(sqlstate(next.simple("SELECT * FROM mine")), "42P01");
}

#[test]
fn a_port_that_only_connects_costs_nothing() {
    let proxy = crowded();
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(("127.0.0.1", proxy.port)).unwrap()).collect();
    proxy.assert_serving();
    drop(idle);
    proxy.assert_serving();
}
