//! `pgregent check --connect` against real servers: what it finds is there, and the SQL it prints mends it.
//!
//! Absent on purpose: the rules of the file itself (unit tests of `config`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pgregent::ctl::CheckArgs;
use pgregent::ctl::check::{self, Verdict};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Where Debian puts PostgreSQL; `PG_BIN` names another place.
const PG_BIN: &str = "/usr/lib/postgresql/15/bin";

/// A throwaway primary and its standby; removed when dropped, also after a failure.
struct Servers {
    folder: PathBuf,
    primary: u16,
    standby: u16,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for data in ["primary", "standby", "witness"] {
            let data = self.folder.join(data);
            let _ = pg("pg_ctl").args(["stop", "-m", "immediate", "-w", "-D"]).arg(&data).output();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A PostgreSQL program, run as an ordinary user: as root the servers refuse to start.
fn pg(program: &str) -> Command {
    let bin = PathBuf::from(std::env::var("PG_BIN").unwrap_or(PG_BIN.to_owned())).join(program);
    let id = Command::new("id").arg("-u").output().unwrap();
    let mut command = if id.stdout.starts_with(b"0\n") {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(bin);
        command
    } else {
        Command::new(bin)
    };
    command.current_dir("/").stdin(Stdio::null());
    command
}

#[track_caller]
fn done(output: std::io::Result<Output>) {
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Servers {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("pgregent-check-{}", std::process::id()));
        done(pg_user(&["mkdir", "-m", "700"], &folder));
        let servers = Self { folder, primary: free_port(), standby: free_port() };
        let (primary, standby) = (servers.folder.join("primary"), servers.folder.join("standby"));
        let initdb = ["-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions", "-D"];
        done(pg("initdb").args(initdb).arg(&primary).output());
        // The superuser of the test needs no password, everybody else does.
        let hba = "host all postgres 127.0.0.1/32 trust\nhost replication postgres 127.0.0.1/32 trust\n\
                   host all nobody 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(primary.join("pg_hba.conf"), hba).unwrap();
        servers.run("primary", servers.primary);
        let port = servers.primary.to_string();
        let clone = ["-h", "127.0.0.1", "-U", "postgres", "-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-p"];
        done(pg("pg_basebackup").args(clone).args([&port, "-D"]).arg(&standby).output());
        servers.run("standby", servers.standby);
        servers
    }

    /// One more server, outside the cluster; its port.
    fn witness(&self) -> u16 {
        let (data, port) = (self.folder.join("witness"), free_port());
        let initdb = ["-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions", "-D"];
        done(pg("initdb").args(initdb).arg(&data).output());
        let hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        self.run("witness", port);
        port
    }

    fn restart(&self, name: &str, port: u16) {
        done(pg("pg_ctl").args(["stop", "-m", "fast", "-w", "-D"]).arg(self.folder.join(name)).output());
        self.run(name, port);
    }

    fn run(&self, name: &str, port: u16) {
        let options = format!("-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off");
        let (data, log) = (self.folder.join(name), self.folder.join(format!("{name}.log")));
        done(
            pg("pg_ctl")
                .args(["start", "-w", "-o", &options, "-D"])
                .arg(data)
                .arg("-l")
                .arg(log)
                .stdout(Stdio::null())
                .status_output(),
        );
    }

    /// Runs SQL as an operator would: as superuser, statement by statement.
    fn sql(&self, port: u16, sql: &str) {
        let mut command = pg("psql");
        command.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &port.to_string(),
        ]);
        let mut psql = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        psql.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        done(psql.wait_with_output());
    }

    /// Waits until the standby has replayed what the primary has written.
    fn caught_up(&self) {
        for _ in 0..200 {
            let sql = "SELECT pg_wal_lsn_diff(sent_lsn, replay_lsn) = 0 AND sent_lsn = pg_current_wal_lsn() FROM pg_stat_replication";
            let port = self.primary.to_string();
            let output =
                pg("psql").args(["-XtA", "-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-c", sql]).output();
            if output.unwrap().stdout == b"t\n" {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the standby did not catch up");
    }

    fn check(&self, password: &str, more: &str) -> (Verdict, String) {
        let config = self.folder.join("pgregent.toml");
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n\
             [[node]]\nname = \"pg1\"\naddress = \"127.0.0.1:{}\"\n[[node]]\nname = \"pg2\"\naddress = \"127.0.0.1:{}\"\n\
             [[auth.user]]\nname = \"app\"\npassword = \"p\"\n[cluster]\nmonitor_password = \"{password}\"\n{more}",
            self.primary, self.standby
        );
        write_private(&config, &text);
        let mut out = Vec::new();
        let verdict = check::run(&CheckArgs { config: config.clone(), connect: true }, &mut out).unwrap();
        let mut text = String::from_utf8(out).unwrap();
        for (port, name) in [(self.primary, "PRIMARY"), (self.standby, "STANDBY")] {
            text = text.replace(&format!(":{port}"), &format!(":{name}"));
        }
        (verdict, text.replace(&config.display().to_string(), "p.toml"))
    }
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Runs a program on the folder as the user who runs the servers.
fn pg_user(program: &[&str], folder: &Path) -> std::io::Result<Output> {
    let mut command = pg("/usr/bin/env");
    command.args(program).arg(folder).output()
}

trait StatusOutput {
    /// As `output`, but without waiting for a pipe that a server inherits.
    fn status_output(&mut self) -> std::io::Result<Output>;
}

impl StatusOutput for Command {
    fn status_output(&mut self) -> std::io::Result<Output> {
        let status = self.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        Ok(Output { status, stdout: Vec::new(), stderr: Vec::new() })
    }
}

/// The lines of the text that begin so (after blanks), without that beginning.
fn after<'t>(text: &'t str, beginning: &str) -> Vec<&'t str> {
    text.lines().filter_map(|line| line.trim_start().strip_prefix(beginning)).collect()
}

#[test]
fn connect_finds_what_is_missing_and_its_sql_mends_it() {
    let servers = Servers::start();

    // No role yet: PostgreSQL says the same as to a wrong password, and the cure names both.
    let (verdict, text) = servers.check("geheim", "");
    assert_eq!(verdict, Verdict::Bad);
    assert_eq!(after(&text, "problem: login as \"pgregent\" refused: ").len(), 2, "{text}");
    let cure = after(&text, "fix on the primary, in database postgres: ALTER ROLE pgregent PASSWORD '…'; or");
    let (_, create) = cure[0].split_once("no such role: ").unwrap();
    assert_eq!(create.matches("GRANT").count(), 6);
    assert!(!text.contains("geheim"), "{text}");

    // A role without rights: each missing right is named once, on the primary.
    servers.sql(servers.primary, "CREATE ROLE pgregent LOGIN PASSWORD 'geheim'; CREATE ROLE nobody LOGIN;");
    servers.caught_up();
    let (verdict, text) = servers.check("geheim", "");
    assert_eq!(verdict, Verdict::Bad);
    let grants = after(&text, "fix on the primary, in database postgres: ");
    assert_eq!(
        grants,
        [
            "GRANT pg_monitor TO pgregent;",
            "GRANT pg_signal_backend TO pgregent;",
            "GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO pgregent;",
            "GRANT EXECUTE ON FUNCTION pg_reload_conf() TO pgregent;",
            "GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO pgregent;",
            "GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only TO pgregent;",
            "ALTER ROLE pgregent REPLICATION;",
        ],
        "{text}"
    );
    assert_eq!(after(&text, "warning: wal_retrieve_retry_interval is 5000 ms").len(), 2, "{text}");
    assert_eq!(after(&text, "warning: neither wal_log_hints nor data checksums").len(), 2, "{text}");
    assert!(text.contains("\nnodes: 7 problems, 4 warnings\n"), "{text}");
    assert!(text.contains("127.0.0.1:PRIMARY  PostgreSQL 15"), "{text}");
    assert!(
        text.contains(", primary, timeline 1, system ") && text.contains(", standby, timeline 1, system "),
        "{text}"
    );

    // The printed SQL, run as printed, leaves nothing to say but what needs a restart.
    servers.sql(servers.primary, &grants.join("\n"));
    for (port, name) in [(servers.primary, "pg1"), (servers.standby, "pg2")] {
        for fix in after(&text, &format!("fix on {name}: ")) {
            servers.sql(port, fix.strip_suffix(" then restart PostgreSQL").unwrap_or(fix));
        }
    }
    servers.caught_up();
    let (verdict, text) = servers.check("geheim", "");
    assert_eq!(verdict, Verdict::Good, "{text}");
    assert!(text.contains("\nnodes: no problems, 2 warnings\n"), "{text}");
    assert_eq!(after(&text, "warning: neither wal_log_hints").len(), 2, "{text}");

    wrong_roads(&servers);
    auth_query(&servers);
    settings_that_need_more(&servers);
    voters(&servers);
    witnesses(&servers);
}

/// Each right that only some configurations need.
fn settings_that_need_more(servers: &Servers) {
    let sync = "synchronous_standbys = 1\n";
    let (_, text) = servers.check("geheim", sync);
    let grants = after(&text, "fix on the primary, in database postgres: ");
    assert_eq!(grants, ["GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO pgregent;"], "{text}");
    servers.sql(servers.primary, grants[0]);
    servers.caught_up();
    assert_eq!(servers.check("geheim", sync).0, Verdict::Good);

    // A standby with a slot.
    servers.sql(servers.standby, "ALTER SYSTEM SET primary_slot_name = 'slotted'; SELECT pg_reload_conf();");
    let (_, text) = servers.check("geheim", "");
    let grants = after(&text, "fix on the primary, in database postgres: ");
    assert_eq!(grants, ["GRANT ALTER SYSTEM ON PARAMETER primary_slot_name TO pgregent;"], "{text}");
    servers.sql(servers.standby, "ALTER SYSTEM RESET primary_slot_name; SELECT pg_reload_conf();");
    servers.sql(servers.primary, grants[0]);
    servers.caught_up();

    // Programs of this machine.
    let script = servers.folder.join("script");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    let hooks = format!(
        "fencing = \"command\"\n[hooks]\nfence_command = [\"/no/such\"]\non_rejoin = [{:?}]\nafter_promotion = [\"sh\"]\n",
        script.display().to_string()
    );
    let (verdict, text) = servers.check("geheim", &hooks);
    assert_eq!(verdict, Verdict::Bad);
    assert_eq!(after(&text, "problem: [hooks] fence_command: there is no /no/such: ").len(), 1, "{text}");
    assert_eq!(after(&text, "problem: [hooks] on_rejoin: ").len(), 1, "{text}");
    assert!(text.contains(&format!("    fix: chmod +x {}\n", script.display())), "{text}");
}

/// What nodes need to vote.
fn voters(servers: &Servers) {
    // Two voters are too few for automatic failover; a person may order one.
    let votes = "coordination = \"voters\"\nfailover = \"manual\"\n";
    let (verdict, text) = servers.check("geheim", votes);
    assert_eq!(verdict, Verdict::Good, "{text}");
    // The standby's own string leads to another name of the same machine.
    let follow = |host: &str| {
        let conninfo = format!("host={host} port={} user=postgres", servers.primary);
        let sql = format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'; SELECT pg_reload_conf();");
        servers.sql(servers.standby, &sql);
    };
    follow("localhost");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (verdict, text) = servers.check("geheim", votes);
    assert_eq!(verdict, Verdict::Bad);
    let found = after(&text, "problem: its primary_conninfo leads to localhost:PRIMARY, which is no configured node");
    assert_eq!(found.len(), 1, "{text}");
    follow("127.0.0.1");

    // No place for a question about a history: the standby has the only one.
    servers.sql(servers.primary, "ALTER SYSTEM SET max_wal_senders = 1;");
    servers.restart("primary", servers.primary);
    servers.caught_up();
    let (verdict, text) = servers.check("geheim", votes);
    assert_eq!(verdict, Verdict::Bad);
    assert_eq!(after(&text, "problem: no replication connection as \"pgregent\": ").len(), 1, "{text}");
    assert_eq!(after(&text, "fix: raise max_wal_senders").len(), 1, "{text}");
    servers.sql(servers.primary, "ALTER SYSTEM RESET max_wal_senders;");
    servers.restart("primary", servers.primary);
    servers.caught_up();
}

/// What a witness needs.
fn witnesses(servers: &Servers) {
    let port = servers.witness();
    let witness = |port: u16, name: &str| format!("[[witness]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n");
    let with = |more: &str| servers.check("geheim", &format!("coordination = \"voters\"\n{more}"));
    let (verdict, text) = with(&witness(free_port(), "w"));
    assert_eq!((verdict, after(&text, "problem: Connection refused").len()), (Verdict::Bad, 1), "{text}");
    servers.sql(port, "CREATE ROLE pgregent LOGIN PASSWORD 'geheim'; REVOKE CREATE ON SCHEMA public FROM PUBLIC;");
    let (verdict, text) = with(&witness(port, "w"));
    assert_eq!(verdict, Verdict::Bad);
    let fixes = after(&text, "fix: on w, in database postgres: ");
    assert_eq!(fixes, ["GRANT pg_monitor TO pgregent;", "GRANT CREATE ON SCHEMA public TO pgregent;"], "{text}");
    servers.sql(port, &fixes.join("\n"));
    let (verdict, text) = with(&witness(port, "w"));
    assert_eq!(verdict, Verdict::Good, "{text}");
    assert!(text.contains(", witness\n  ok\n"), "{text}");
    // A table that another role has made.
    servers
        .sql(port, "CREATE TABLE public.pgregent_register (cluster text PRIMARY KEY, primary_name text, epoch int8, timeline int8)");
    let (_, text) = with(&witness(port, "w"));
    let fixes = after(&text, "fix: on w, in database postgres: ");
    assert_eq!(fixes, ["GRANT SELECT, INSERT, UPDATE ON public.pgregent_register TO pgregent;"], "{text}");
    servers.sql(port, fixes[0]);
    assert_eq!(with(&witness(port, "w")).0, Verdict::Good);
    // One server twice, and a node that is to vote once more.
    let (_, text) = with(&(witness(port, "w") + &witness(port, "again") + &witness(servers.standby, "node")));
    assert_eq!(after(&text, "problem: it is the same server as w, or a copy of it").len(), 1, "{text}");
    assert_eq!(after(&text, "problem: it is the same server as pg1, or a copy of it").len(), 1, "{text}");
    assert_eq!(after(&text, "problem: it is in recovery").len(), 1, "{text}");
}

/// Nodes that do not answer, refuse, or are something else.
fn wrong_roads(servers: &Servers) {
    let (_, text) = servers.check("falsch", "");
    assert_eq!(
        after(&text, "problem: login as \"pgregent\" refused: password authentication failed").len(),
        2,
        "{text}"
    );
    let (_, text) = servers.check("geheim", "monitor_database = \"none\"\n");
    assert_eq!(after(&text, "fix: set [cluster] monitor_database to one that exists").len(), 2, "{text}");
    let (_, text) = servers.check("geheim", "monitor_user = \"nobody\"\n");
    assert_eq!(after(&text, "problem: login as \"nobody\" refused: pg_hba.conf rejects connection").len(), 2, "{text}");

    // One node listens and never answers, another refuses: neither delays nor hides the rest.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let nodes = format!(
        "[[node]]\nname = \"mute\"\naddress = \"{}\"\n[[node]]\nname = \"gone\"\naddress = \"127.0.0.1:{}\"\n",
        mute.local_addr().unwrap(),
        free_port()
    );
    let (verdict, text) = servers.check("geheim", &nodes);
    assert_eq!(verdict, Verdict::Bad);
    assert_eq!(after(&text, "problem: no answer in time").len(), 1, "{text}");
    assert_eq!(after(&text, "problem: Connection refused").len(), 1, "{text}");
    assert!(text.contains("\nnodes: 2 problems, 2 warnings\n"), "{text}");
}

/// A query of secrets is tried out, without anybody's secret.
fn auth_query(servers: &Servers) {
    let with = |query: &str| servers.check("geheim", &format!("[auth]\nauth_query = \"{query}\"\n"));
    let query = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1";
    let (verdict, text) = with(query);
    assert_eq!(verdict, Verdict::Bad);
    let grants = after(&text, "fix: on the primary, in database postgres: ");
    assert_eq!(grants, ["GRANT SELECT ON pg_authid TO pgregent;"; 2], "{text}");
    servers.sql(servers.primary, grants[0]);
    servers.caught_up();
    let (verdict, text) = with(query);
    assert_eq!(verdict, Verdict::Good, "{text}");
    let (_, text) = with("SELECT rolname FROM pg_authid WHERE rolname = $1");
    assert_eq!(
        after(&text, "problem: auth_query as \"pgregent\" fails: it returns 1 columns, not 2 or 3").len(),
        2,
        "{text}"
    );
    let (_, text) = with("SELECT $1, $2");
    assert_eq!(
        after(&text, "problem: auth_query as \"pgregent\" fails: it has 2 parameters, not 1").len(),
        2,
        "{text}"
    );
    // Whatever the query is, it cannot write.
    servers.sql(servers.primary, "CREATE TABLE written (v text); GRANT ALL ON written TO pgregent;");
    servers.caught_up();
    let (_, text) = with("WITH w AS (INSERT INTO written VALUES ($1) RETURNING v) SELECT v, v FROM w");
    assert_eq!(
        after(&text, "problem: auth_query as \"pgregent\" fails: cannot execute SELECT in a read-only").len(),
        2,
        "{text}"
    );
}
