//! Passwords over time: changed ones, guessed ones, many at once, and none in any log.
//!
//! Absent on purpose: the limits' arithmetic (unit tests of `auth::limit`).

use crate::support::proxy::ProxySpec;
use crate::support::rawclient::{Gone, Login, RawClient};
use crate::support::wait_for;
use crate::{BENCH, HOME, LATE_MAX, node, outcome, ready};
use pgregent::demo::cluster::AUTH_QUERY;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A proxy without users.
fn bare() -> ProxySpec {
    let monitor = format!("{:?}", BENCH.behind.passwords().monitor);
    ProxySpec::new(&[node(&BENCH.behind).port()]).without_users().set("cluster.monitor_password", &monitor)
}

fn sql(text: &str) -> String {
    node(&BENCH.behind).psql(text).unwrap().trim().to_owned()
}

fn login(port: u16, role: &str, password: &str) -> Result<RawClient, Gone> {
    RawClient::login(port, &Login::new(role, password, "app"))
}

fn secret_of(role: &str) -> String {
    sql(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"))
}

#[test]
fn a_password_that_changes_needs_no_restart() {
    sql("CREATE ROLE changing LOGIN PASSWORD 'pencil'");
    let proxy = ready(bare().set("auth.auth_query", &format!("{AUTH_QUERY:?}")));
    let mut veterans: Vec<_> = (0..3).map(|_| login(proxy.port, "changing", "pencil").unwrap()).collect();
    assert_eq!(veterans[0].value("SELECT current_user"), "changing");
    sql("ALTER ROLE changing PASSWORD 'crayon'");
    assert_eq!(veterans[0].value("SELECT 1"), "1", "backends that are open stay open");
    let rejected = Err("FATAL 28P01 password authentication failed for user \"changing\"".to_owned());
    assert_eq!(outcome(proxy.port, HOME, "changing", "pencil", "app"), rejected, "the old one does not count any more");

    // A new backend is needed, and nobody has brought the new password yet.
    sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'changing'");
    match veterans[0].simple("SELECT 1") {
        Err(Gone::Refused(fields)) => {
            assert_eq!((fields.severity(), fields.sqlstate()), ("FATAL", "28P01"));
            assert!(fields.message().contains("is not the one of this session's login"), "{}", fields.message());
        }
        other => panic!("{other:?}"),
    }
    wait_for("the log says so", LATE_MAX, || proxy.log().contains("the primary refuses the user's latest proof"));
    // What was refused is not shown to the node again.
    let failures =
        || BENCH.behind.nodes()[0].log_tail().matches("password authentication failed for user \"changing\"").count();
    let before = failures();
    assert!(matches!(veterans[1].simple("SELECT 1"), Err(Gone::Refused(_))));
    assert_eq!(failures(), before);

    let mut newcomer = login(proxy.port, "changing", "crayon").expect("the new one counts at once");
    assert_eq!(newcomer.value("SELECT 2"), "2");
    assert_eq!(veterans[2].value("SELECT 3"), "3", "the newcomer's proof is good for all");
}

#[test]
fn failures_are_slowed_down_and_an_address_that_goes_on_is_refused() {
    sql("CREATE ROLE guessed LOGIN PASSWORD 'pencil'; CREATE ROLE guessed_too LOGIN PASSWORD 'pencil'");
    let spec = bare().user("guessed", "pencil").user("guessed_too", "pencil");
    let proxy = ready(spec.set("auth.failed_logins_per_address", "6").set("auth.failed_logins_per_user", "3"));
    let timed = |role: &str, password: &str| {
        let started = Instant::now();
        (outcome(proxy.port, HOME, role, password, "app"), started.elapsed())
    };
    for _ in 0..3 {
        let (refused, took) = timed("guessed", "pen");
        assert!(refused.is_err() && took < Duration::from_secs(4), "{took:?}");
    }
    let (refused, took) = timed("guessed", "pen");
    assert!(refused.is_err_and(|told| told.contains("28P01")) && took >= Duration::from_secs(5), "{took:?}");
    let (admitted, took) = timed("guessed", "pencil");
    assert!(admitted.is_ok() && took < Duration::from_secs(4), "a right password is not held up: {took:?}");
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| outcome(proxy.port, HOME, "guessed_too", "pen", "app"));
        }
    });
    let (told, _) = timed("guessed_too", "pencil");
    let told = told.unwrap_err();
    assert!(told.starts_with("FATAL 28000 too many failed logins from this address; try again in "), "{told}");
    assert!(outcome(proxy.port, crate::FAR, "guessed_too", "pencil", "app").is_ok(), "another address");
    let (_, metrics) = proxy.http("/metrics").unwrap();
    assert!(metrics.contains("result=\"login_rate_limited\""), "{metrics}");
}

/// Prints how long a running client's statements took while 64 clients log in over and over.
#[test]
fn a_storm_of_logins_does_not_stall_running_clients() {
    sql("CREATE ROLE stormy LOGIN PASSWORD 'pencil'");
    let spec = bare().user("stormy", &secret_of("stormy")).set("auth.method", "\"password\"");
    let proxy = ready(spec);
    let mut client = login(proxy.port, "stormy", "pencil").unwrap();
    let mut measure = |span: Duration| {
        let mut times = Vec::new();
        let started = Instant::now();
        while started.elapsed() < span {
            let began = Instant::now();
            assert_eq!(client.value("SELECT 1"), "1");
            times.push(began.elapsed());
        }
        times.sort();
        let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
        (at(50), at(99), times.len())
    };
    let calm = measure(Duration::from_secs(1));
    let (over, logins) = (AtomicBool::new(false), AtomicUsize::new(0));
    let storm = thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // The proof is what costs; the session is not waited for.
                    let mut client = RawClient::tcp(proxy.port);
                    let packet = Login::new("stormy", "pencil", "app").packet();
                    let sent = client.send(&packet).and_then(|()| client.read());
                    let proved = sent.and_then(|_| client.send(&crate::support::message::frame(b'p', b"pencil\0")));
                    if proved.and_then(|()| client.read()).is_ok_and(|message| message.body == [0; 4]) {
                        logins.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let storm = measure(Duration::from_secs(4));
        over.store(true, Ordering::Relaxed);
        storm
    });
    let logins = logins.into_inner();
    eprintln!("SELECT 1, (p50, p99, count): calm {calm:?}, in a storm of {} logins/s {storm:?}", logins / 4);
    assert!(logins > 64, "{logins}");
    assert!(storm.1 < Duration::from_millis(100), "p99 {:?}", storm.1);
}

#[test]
fn no_secret_is_in_any_log() {
    sql("SET password_encryption = 'md5'; CREATE ROLE hushed_md5 LOGIN PASSWORD 'silent-pencil-md5'");
    sql("CREATE ROLE hushed LOGIN PASSWORD 'silent-pencil'; CREATE ROLE hushed_query LOGIN PASSWORD 'silent-query'");
    let (verifier, hash) = (secret_of("hushed"), secret_of("hushed_md5"));
    let mut log = String::new();
    for method in ["scram-sha-256", "md5", "password"] {
        let spec = bare()
            .set("auth.auth_query", &format!("{AUTH_QUERY:?}"))
            .set("auth.method", &format!("{method:?}"))
            .set("log.filter", "\"trace\"");
        let proxy = ready(spec.user("hushed", &verifier).user("hushed_md5", &hash));
        for (role, password) in
            [("hushed", "silent-pencil"), ("hushed_md5", "silent-pencil-md5"), ("hushed_query", "silent-query")]
        {
            let admitted = outcome(proxy.port, HOME, role, password, "app");
            // An md5 hash cannot do SCRAM, and the node wants SCRAM of a role with a verifier only.
            assert!(admitted.is_ok() || role == "hushed_md5", "{role} by {method}: {admitted:?}");
            assert!(outcome(proxy.port, HOME, role, "silent-guess", "app").is_err());
        }
        proxy.signal("HUP");
        wait_for("the reload is logged", LATE_MAX, || proxy.log().contains("reload: "));
        let (_, metrics) = proxy.http("/metrics").unwrap();
        let (_, state) = proxy.http("/api/v1/cluster").unwrap();
        log.push_str(&proxy.log());
        log.push_str(&metrics);
        log.push_str(&state);
    }
    assert!(log.contains("login failed") && log.contains("DEBUG"), "the log tells everything");
    let keys: Vec<&str> = verifier.split(['$', ':']).skip(2).collect();
    let monitor = &BENCH.behind.passwords().monitor;
    for secret in ["silent-", &hash, &hash[3..], keys[1], keys[2], monitor] {
        assert!(!log.contains(secret), "{secret} is in a log");
    }
}
