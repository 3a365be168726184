//! Logins against a real PostgreSQL: ours to a node, a real client's to us, and `auth_query`.
//!
//! Each test makes a throwaway cluster on a free loopback port and removes it, also when it fails.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pgregent::auth::{
    AuthError, AuthQuery, ClientExchange, ClientStep, DEFAULT_AUTH_QUERY, Md5Hash, NodeCredential, NodeLink,
    NodePassword, NodeRefusal, Proof, ServerExchange, ServerStep, StoredSecret, Unavailability,
};
use pgregent::clock::Time;
use pgregent::config::{AuthConfig, AuthMethod, Secret};

const HBA: &str = "local all all trust\n\
                   host all trusted 127.0.0.1/32 trust\n\
                   host all clear 127.0.0.1/32 password\n\
                   host all hashed 127.0.0.1/32 md5\n\
                   host all mixed 127.0.0.1/32 md5\n\
                   host all all 127.0.0.1/32 scram-sha-256\n";

const ROLES: &str = "
    CREATE ROLE trusted LOGIN;
    CREATE ROLE clear LOGIN PASSWORD 'pencil';
    CREATE ROLE mixed LOGIN PASSWORD 'pencil';
    CREATE ROLE joe LOGIN PASSWORD 'pencil';
    CREATE ROLE \"Ünï \"\"q\"\"\" LOGIN PASSWORD 'I\u{ad}X \u{2168}';
    CREATE ROLE nologin NOLOGIN PASSWORD 'pencil';
    CREATE ROLE nopassword LOGIN;
    CREATE ROLE expired LOGIN PASSWORD 'pencil' VALID UNTIL '2001-01-01';
    CREATE ROLE never LOGIN PASSWORD 'pencil' VALID UNTIL '-infinity';
    CREATE ROLE always LOGIN PASSWORD 'pencil' VALID UNTIL 'infinity';
    CREATE ROLE lookup SUPERUSER LOGIN PASSWORD 'look';
    CREATE ROLE humble LOGIN PASSWORD 'look';
    SET password_encryption = 'md5';
    CREATE ROLE hashed LOGIN PASSWORD 'pencil';
    CREATE SCHEMA auth;
    CREATE FUNCTION auth.secret_of(who text) RETURNS TABLE (name text, secret text, until timestamptz)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
        AS 'SELECT rolname, rolpassword, rolvaliduntil FROM pg_catalog.pg_authid WHERE rolname = who AND rolcanlogin';
    REVOKE ALL ON FUNCTION auth.secret_of FROM public;
    GRANT USAGE ON SCHEMA auth TO humble;
    GRANT EXECUTE ON FUNCTION auth.secret_of TO humble;
    CREATE SEQUENCE auth.calls;
";

/// A PostgreSQL server of this test alone.
struct Postgres {
    dir: PathBuf,
    bin: PathBuf,
    port: u16,
}

impl Postgres {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pgregent-auth-{}-{name}", std::process::id()));
        std::fs::create_dir(&dir).expect("a fresh directory");
        let server = Self { dir, bin: bin_dir(), port: free_port() };
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(&server.dir).status();
            assert!(owned.expect("chown runs").success(), "the user postgres exists");
        }
        server.run("initdb", &["-D", &server.data(), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync"]);
        std::fs::write(server.dir.join("data/pg_hba.conf"), HBA).expect("pg_hba.conf");
        server.ctl_start();
        server.sql(ROLES);
        server
    }

    fn ctl_start(&self) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=off \
             -c password_encryption=scram-sha-256 -c max_connections=20",
            self.port,
            self.dir.display()
        );
        let log = self.dir.join("log").display().to_string();
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-o", &options, "-l", &log, "start"]);
    }

    fn data(&self) -> String {
        self.dir.join("data").display().to_string()
    }

    /// Runs one of PostgreSQL's programs, which refuse to be root.
    fn run(&self, program: &str, arguments: &[&str]) {
        let program = self.bin.join(program);
        let mut command = if is_root() { Command::new("runuser") } else { Command::new(&program) };
        if is_root() {
            command.args(["-u", "postgres", "--"]).arg(&program);
        }
        command.args(arguments).current_dir(&self.dir).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.status().expect("runs").success(), "{} {arguments:?}", program.display());
    }

    fn sql(&self, text: &str) -> String {
        let output = Command::new(self.bin.join("psql"))
            .args(["-X", "-At", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", text])
            .arg("-h")
            .arg(&self.dir)
            .args(["-p", &self.port.to_string()])
            .env("PGCLIENTENCODING", "UTF8")
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// Our login over TCP; `Err(Ok(code))` is the node's SQLSTATE, `Err(Err(_))` our own refusal.
    fn login(&self, user: &str, credential: &NodeCredential) -> Result<(), Result<String, AuthError>> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).expect("connects");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let mut startup = 196_608u32.to_be_bytes().to_vec();
        startup.extend_from_slice(format!("user\0{user}\0database\0postgres\0\0").as_bytes());
        send(&mut socket, None, &startup);
        let mut exchange = ClientExchange::new(user, credential);
        loop {
            match receive(&mut socket) {
                (b'R', body) => match exchange.on_auth(&body).map_err(Err)? {
                    ClientStep::Continue => {}
                    ClientStep::Send(reply) => send(&mut socket, Some(b'p'), &reply),
                    ClientStep::Ok => return Ok(()),
                },
                (b'E', body) => {
                    let fields = String::from_utf8_lossy(&body).into_owned();
                    let code = fields.split('\0').find_map(|field| field.strip_prefix('C'));
                    return Err(Ok(code.expect("a code").to_owned()));
                }
                (tag, _) => panic!("message {tag}"),
            }
        }
    }

    fn query(&self, query: &str) -> AuthConfig {
        AuthConfig {
            method: AuthMethod::ScramSha256,
            users: Vec::new(),
            userlist: None,
            auth_query: Some(query.to_owned()),
            auth_query_user: "lookup".to_owned(),
            auth_query_password: Secret::new("look"),
            auth_query_database: "postgres".to_owned(),
            auth_query_ttl: Duration::from_secs(10),
            failed_logins_per_address: 0,
            failed_logins_per_user: 0,
            hba_file: None,
            ident_file: None,
        }
    }

    fn auth_query(&self, config: &AuthConfig) -> AuthQuery {
        let node = here(self.port);
        AuthQuery::new(config, &NodeLink::new(config, Arc::new(move || vec![node.clone()]))).expect("a query")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.dir.join("data/postmaster.pid").exists() {
            let stop = || self.run("pg_ctl", &["-D", &self.data(), "-w", "-m", "immediate", "stop"]);
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(stop));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn bin_dir() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    let found = versions.into_iter().rev().find(|dir| dir.join("initdb").exists());
    found.expect("PostgreSQL's server programs (package postgresql)")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn here(port: u16) -> (String, u16) {
    ("127.0.0.1".to_owned(), port)
}

fn send(socket: &mut TcpStream, tag: Option<u8>, body: &[u8]) {
    let length = u32::try_from(body.len() + 4).expect("short");
    let message = [tag.as_slice(), &length.to_be_bytes(), body].concat();
    socket.write_all(&message).expect("sends");
}

fn receive(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    socket.read_exact(&mut head).expect("a header");
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut body = vec![0; length - 4];
    socket.read_exact(&mut body).expect("a body");
    (head[0], body)
}

fn password(text: &str) -> NodeCredential {
    NodeCredential::Password(NodePassword::new(Secret::new(text)))
}

fn at(millis: u64) -> Time {
    Time::from_nanos(1_000_000_000) + Duration::from_millis(millis)
}

/// A client's login to us, in memory.
fn proof_of(user: &str, password_text: &str, stored: &StoredSecret) -> Result<Proof, AuthError> {
    let mut client = ClientExchange::new(user, &password(password_text));
    let (mut server, mut step) = ServerExchange::begin(AuthMethod::ScramSha256, user, Some(stored), &[1; 32], None);
    loop {
        match step {
            ServerStep::Done(proof) | ServerStep::SendAndDone(_, proof) => return Ok(proof),
            ServerStep::Send(body) => match client.on_auth(&body)? {
                ClientStep::Send(reply) => step = server.step(&reply)?,
                other => panic!("{other:?}"),
            },
        }
    }
}

#[test]
fn we_log_in_to_postgresql() {
    let node = Postgres::start("login");
    let denied = Err(Ok("28P01".to_owned()));
    assert_eq!(node.login("trusted", &NodeCredential::None), Ok(()));
    for user in ["clear", "hashed", "mixed", "joe"] {
        assert_eq!(node.login(user, &password("pencil")), Ok(()), "{user}");
        assert_eq!(node.login(user, &password("pencil ")), denied, "{user}");
        assert!(matches!(node.login(user, &NodeCredential::None), Err(Err(AuthError::Node { .. }))), "{user}");
    }
    assert_eq!(node.login("Ünï \"q\"", &password("I\u{ad}X \u{2168}")), Ok(()), "SASLprep");
    assert_eq!(node.login("Ünï \"q\"", &password("IX IX")), Ok(()), "SASLprep");
    let hash = Md5Hash::parse(&node.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'hashed'")).unwrap();
    assert_eq!(node.login("hashed", &NodeCredential::Md5(hash)), Ok(()));

    // Pass-through: nothing but the verifier and a client's proof.
    let stored = || StoredSecret::parse(&node.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'joe'")).unwrap();
    let proof = proof_of("joe", "pencil", &stored()).unwrap();
    assert!(matches!(proof, Proof::ScramKeys(_)));
    let keys = NodeCredential::of(&proof, Some(&stored()));
    assert_eq!(node.login("joe", &keys), Ok(()));
    assert_eq!(node.login("joe", &keys), Ok(()), "as often as needed");
    node.sql("ALTER ROLE joe PASSWORD 'pencil'");
    let stale = AuthError::Node { user: "joe".into(), why: NodeRefusal::KeysDoNotFit };
    assert_eq!(node.login("joe", &keys), Err(Err(stale)), "a new salt");
    assert!(proof_of("joe", "pencil ", &stored()).is_err());
}

/// Lets one real client log in to us and says whether it got in.
fn serve_one(listener: &TcpListener, method: AuthMethod, user: &str, stored: Option<&StoredSecret>) -> bool {
    use pgregent::error::Classify;
    let (mut socket, _) = listener.accept().expect("a client");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut length = [0; 4];
    socket.read_exact(&mut length).expect("startup");
    socket.read_exact(&mut vec![0; u32::from_be_bytes(length) as usize - 4]).expect("startup");
    let (mut exchange, mut step) = ServerExchange::begin(method, user, stored, &[1; 32], None);
    loop {
        let (body, done) = match step {
            ServerStep::Send(body) => (Some(body), false),
            ServerStep::SendAndDone(body, _) => (Some(body), true),
            ServerStep::Done(_) => (None, true),
        };
        if let Some(body) = body {
            send(&mut socket, Some(b'R'), &body);
        }
        if done {
            send(&mut socket, Some(b'R'), &[0; 4]);
            send(&mut socket, Some(b'Z'), b"I");
            return true;
        }
        let (tag, reply) = receive(&mut socket);
        assert_eq!(tag, b'p');
        step = match exchange.step(&reply) {
            Ok(step) => step,
            Err(error) => {
                let told = error.client();
                let body = format!("SFATAL\0VFATAL\0C{}\0M{}\0\0", told.sqlstate, told.message);
                send(&mut socket, Some(b'E'), body.as_bytes());
                return false;
            }
        };
    }
}

#[test]
fn libpq_logs_in_to_us() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let psql = |secret: &str| {
        Command::new(bin_dir().join("psql"))
            .args(["-X", "-w", "-h", "127.0.0.1", "-p", &port, "-U", "joe", "-d", "postgres", "-c", "\\q"])
            .envs([("PGPASSWORD", secret), ("PGSSLMODE", "disable"), ("PGGSSENCMODE", "disable")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let verifier = "SCRAM-SHA-256$4096:JA6CkpbvCU6W+FIIMPa8/g==$BDerfys0I5YmGVLBZNKFGsgSXrm2vGh9kXBDPlpp1+0=:\
                    g3xY5x8E2pAeYfvufvYR9Udt7hBUGZDsWBbpF5qqSH4=";
    let stored = |text: &str| StoredSecret::parse(text).unwrap();
    let md5 = stored(Md5Hash::derive("pencil", "joe").expose());
    for (method, secret) in [
        (AuthMethod::Trust, None),
        (AuthMethod::Password, Some(stored("pencil"))),
        (AuthMethod::Md5, Some(stored("pencil"))),
        (AuthMethod::Md5, Some(md5)),
        (AuthMethod::Md5, Some(stored(verifier))),
        (AuthMethod::ScramSha256, Some(stored("pencil"))),
        (AuthMethod::ScramSha256, Some(stored(verifier))),
    ] {
        let client = psql("pencil");
        assert!(serve_one(&listener, method, "joe", secret.as_ref()), "{method:?} {secret:?}");
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "{method:?}: {}", String::from_utf8_lossy(&output.stderr));
        if method == AuthMethod::Trust {
            continue;
        }
        for known in [secret.as_ref(), None] {
            let client = psql("wrong");
            assert!(!serve_one(&listener, method, "joe", known), "{method:?} {secret:?}");
            let output = client.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("FATAL:  password authentication failed for user \"joe\""), "{method:?}: {said}");
        }
    }
}

#[tokio::test]
async fn auth_query_honours_what_the_role_may() {
    let node = Postgres::start("roles");
    let query = node.auth_query(&node.query(DEFAULT_AUTH_QUERY));
    let known = async |user| query.lookup(user, at(0)).await.unwrap().is_some();
    for user in ["joe", "hashed", "always", "Ünï \"q\""] {
        assert!(known(user).await, "{user}");
    }
    for user in ["nologin", "nopassword", "expired", "never", "unheard-of", "", "JOE", "joe' OR true --", "j%"] {
        assert!(!known(user).await, "{user}");
    }
    let secret = query.lookup("joe", at(0)).await.unwrap().unwrap();
    let proof = proof_of("joe", "pencil", &secret).unwrap();
    assert_eq!(node.login("joe", &NodeCredential::of(&proof, Some(&secret))), Ok(()));

    node.sql(
        "DO $$ BEGIN EXECUTE format('CREATE ROLE soon LOGIN PASSWORD ''x'' VALID UNTIL %L', now() + '5 s'); END $$",
    );
    assert!(query.lookup("soon", at(0)).await.unwrap().is_some());
    assert!(query.lookup("soon", at(5_000)).await.unwrap().is_none(), "a kept answer ends with the role's validity");

    // The same through a function, by a role that may do nothing else; with what may end a query.
    for text in ["SELECT * FROM auth.secret_of($1);", "SELECT name, secret FROM auth.secret_of($1) -- all"] {
        let config = AuthConfig { auth_query_user: "humble".to_owned(), ..node.query(text) };
        let query = node.auth_query(&config);
        assert!(query.lookup("joe", at(0)).await.unwrap().is_some(), "{text}");
        assert!(query.lookup("nologin", at(0)).await.unwrap().is_none(), "{text}");
    }
    let path = node.auth_query(&node.query("SELECT $1::text, 'path=' || current_setting('search_path')"));
    let shown = path.lookup("joe", at(0)).await.unwrap();
    assert_eq!(shown.as_deref(), Some(&StoredSecret::parse("path=").unwrap()));
}

#[tokio::test]
async fn auth_query_that_cannot_work_says_why_to_the_operator() {
    let node = Postgres::start("broken");
    let text = async |config: &AuthConfig| match node.auth_query(config).lookup("joe", at(0)).await {
        Err(AuthError::QueryBroken(text)) => text.into_string(),
        other => panic!("{other:?}"),
    };
    for (query, wanted) in [
        ("SELECT nothing FROM secrets WHERE name = $1", "relation \"secrets\" does not exist (42P01)"),
        ("SELECT rolname FROM pg_authid WHERE rolname = $1", "1 parameters and returns 1 columns"),
        ("SELECT 'joe', 'pencil'", "0 parameters and returns 2 columns"),
        ("SELECT $1::text, rolname FROM pg_authid", "several rows for user \"joe\""),
        ("SELECT upper($1::text), 'pencil'", "another name for user \"joe\""),
        ("SELECT $1::text, 'SCRAM-SHA-256$x'", "user \"joe\": the secret begins with"),
        ("SELECT $1::text, repeat('x', 5000)", "longer than 4096 bytes"),
        ("SELECT $1::text, 'x', 'no date'", "invalid input syntax for type timestamp with time zone"),
    ] {
        let text = text(&node.query(query)).await;
        assert!(text.contains(wanted), "{query}: {text}");
    }
    // An operator who corrects the function need not restart anything.
    node.sql("CREATE FUNCTION auth.late(text) RETURNS TABLE (a text, b text) LANGUAGE sql AS 'SELECT $1, ''1''/0'");
    let query = node.auth_query(&node.query("SELECT * FROM auth.late($1)"));
    assert!(matches!(query.lookup("joe", at(0)).await, Err(AuthError::QueryBroken(_))));
    node.sql(
        "DROP FUNCTION auth.late; CREATE FUNCTION auth.late(text) RETURNS TABLE (a text, b text, c timestamptz) \
         LANGUAGE sql AS 'SELECT $1, ''pencil'', ''-infinity''::timestamptz'",
    );
    assert_eq!(query.lookup("joe", at(1)).await, Ok(None), "its third column counts");

    let default = || node.query(DEFAULT_AUTH_QUERY);
    for (config, wanted) in [
        (
            AuthConfig { auth_query_password: Secret::new("wrong"), ..default() },
            "password authentication failed for user \"lookup\" (28P01)",
        ),
        (
            AuthConfig { auth_query_user: "humble".to_owned(), ..default() },
            "permission denied for table pg_authid (42501)",
        ),
        (
            AuthConfig { auth_query_database: "nowhere".to_owned(), ..default() },
            "database \"nowhere\" does not exist (3D000)",
        ),
        (AuthConfig { auth_query_password: Secret::default(), ..default() }, "password missing"),
    ] {
        let text = text(&config).await;
        assert!(text.contains(wanted), "{text}");
    }
}

#[tokio::test]
async fn auth_query_keeps_answers_and_shares_lookups() {
    let node = Postgres::start("cache");
    let query = node.auth_query(&node.query("SELECT $1::text, 'n' || nextval('auth.calls')"));
    let asked = futures::future::join_all((0..50).map(|_| query.lookup("joe", at(0)))).await;
    assert!(asked.iter().all(|answer| answer.is_ok() && *answer == asked[0]));
    assert_eq!(node.sql("SELECT last_value FROM auth.calls"), "1");
    let first = query.lookup("joe", at(9_999)).await.unwrap();
    assert_eq!(first, asked[0].clone().unwrap());
    assert_eq!(query.refresh("joe", first.as_ref(), at(999)).await, Ok(None), "too young to ask again");
    let second = query.refresh("joe", first.as_ref(), at(1_000)).await.unwrap();
    assert!(second.is_some() && second != first);
    assert_eq!(query.lookup("joe", at(10_999)).await.unwrap(), second);
    assert_ne!(query.lookup("joe", at(11_000)).await.unwrap(), second, "too old");

    let query = node.auth_query(&node.query(DEFAULT_AUTH_QUERY));
    let joe = query.lookup("joe", at(0)).await.unwrap();
    assert_eq!(query.refresh("joe", joe.as_ref(), at(2_000)).await, Ok(None), "nothing has changed");
    node.sql("ALTER ROLE joe PASSWORD 'other'");
    assert_eq!(query.lookup("joe", at(2_500)).await.unwrap(), joe);
    let changed = query.refresh("joe", joe.as_ref(), at(4_000)).await.unwrap().unwrap();
    assert!(proof_of("joe", "other", &changed).is_ok());
}

#[tokio::test]
async fn auth_query_goes_where_a_node_answers() {
    let node = Postgres::start("nodes");
    let config = AuthConfig { auth_query_ttl: Duration::ZERO, ..node.query(DEFAULT_AUTH_QUERY) };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let offered = Arc::new(std::sync::Mutex::new(vec![
        here(free_port()),
        here(silent.local_addr().unwrap().port()),
        here(node.port),
    ]));
    let query = {
        let offered = Arc::clone(&offered);
        let link = NodeLink::new(&config, Arc::new(move || offered.lock().unwrap().clone()));
        AuthQuery::new(&config, &link).unwrap()
    };
    let found = async |now| query.lookup("joe", now).await.map(|secret| secret.is_some());
    assert_eq!(found(at(0)).await, Ok(true), "past a refused and a silent node");
    assert_eq!(found(at(1)).await, Ok(true));

    // The kept connection dies; then the whole node, and comes back.
    *offered.lock().unwrap() = vec![here(node.port)];
    assert_eq!(found(at(2)).await, Ok(true));
    let backends = "FROM pg_stat_activity WHERE usename = 'lookup'";
    node.sql(&format!("SELECT pg_terminate_backend(pid, 5000) {backends}"));
    assert_eq!(found(at(3)).await, Ok(true));
    assert_eq!(node.sql(&format!("SELECT count(*) {backends}")), "1", "one connection");
    node.run("pg_ctl", &["-D", &node.data(), "-w", "-m", "immediate", "stop"]);
    let down = Err(AuthError::Unavailable(Unavailability::NoNode));
    assert_eq!(found(at(4)).await, down);
    let all = futures::future::join_all(["a", "b", "c"].map(|user| query.lookup(user, at(5)))).await;
    assert!(all.iter().all(|answer| answer.is_err()));
    node.ctl_start();
    assert_eq!(found(at(6)).await, Ok(true));

    // Who waits for a connect that fails does not repeat it.
    silent.set_nonblocking(true).unwrap();
    while silent.accept().is_ok() {}
    *offered.lock().unwrap() = vec![here(silent.local_addr().unwrap().port())];
    let all = futures::future::join_all(["a", "b", "c"].map(|user| query.lookup(user, at(6)))).await;
    assert!(all.iter().all(|answer| *answer == Err(AuthError::Unavailable(Unavailability::NoNode))));
    assert!(silent.accept().is_ok());
    assert!(silent.accept().is_err(), "one connect for all three");

    // A node that is no longer offered is not asked any more.
    let first = here(free_port());
    *offered.lock().unwrap() = vec![first.clone(), here(node.port)];
    assert_eq!(found(at(7)).await, Ok(true));
    *offered.lock().unwrap() = vec![first];
    assert_eq!(found(at(7)).await, down);
    *offered.lock().unwrap() = Vec::new();
    assert_eq!(found(at(8)).await, down);
}
