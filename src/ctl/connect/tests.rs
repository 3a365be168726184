//! Made-up answers of nodes, and what is printed about them.

use super::*;

const FILE: &str = "[[node]]\nname = \"pg1\"\naddress = \"10.0.0.11\"\n[[node]]\nname = \"pg2\"\naddress = \"10.0.0.12\"\n\
                    [[auth.user]]\nname = \"u\"\npassword = \"p\"\n";

fn config(lines: &str) -> Config {
    Config::parse(&format!("{FILE}{lines}"), "p.toml").unwrap()
}

/// A primary without any fault.
fn primary() -> Facts {
    let settings = [
        ("data_checksums", "off"),
        ("full_page_writes", "on"),
        ("hot_standby", "on"),
        ("max_connections", "100"),
        ("max_wal_senders", "10"),
        ("password_encryption", "scram-sha-256"),
        ("superuser_reserved_connections", "3"),
        ("wal_level", "replica"),
        ("wal_log_hints", "on"),
        ("wal_retrieve_retry_interval", "200"),
    ];
    let rights = RightsHeld {
        superuser: false,
        pg_monitor: true,
        pg_signal_backend: true,
        pg_promote: true,
        pg_reload_conf: true,
        replication: true,
        alter: Some(ALL),
    };
    Facts {
        version_num: 150_014,
        version: "15.14 (Debian 15.14-0)".to_owned(),
        in_recovery: false,
        system_id: SystemId(7),
        timeline: Some(TimelineId(1)),
        receiver: None,
        rights,
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        conninfo: Some(String::new()),
        slot: String::new(),
        replication: Some(Ok(())),
        lock: None,
        auth_query: None,
    }
}

const ALL: AlterRights = AlterRights {
    primary_conninfo: true,
    primary_slot_name: true,
    default_transaction_read_only: true,
    synchronous_standby_names: true,
};
const NONE: AlterRights = AlterRights {
    primary_conninfo: false,
    primary_slot_name: false,
    default_transaction_read_only: false,
    synchronous_standby_names: false,
};

fn standby() -> Facts {
    let conninfo = Some("host=10.0.0.11 port=5432 user=replicator".to_owned());
    Facts { in_recovery: true, receiver: Some("streaming".to_owned()), conninfo, ..primary() }
}

/// What is printed, and how much of it is bad.
fn told(config: &Config, visits: [Result<Facts, NoFacts>; 2]) -> (String, Counts) {
    let mut out = Vec::new();
    let counts = print(config, &judge::judge(config, visits.into()), &mut out).unwrap();
    (String::from_utf8(out).unwrap(), counts)
}

const BOTH_OK: &str = "
pg1  10.0.0.11:5432  PostgreSQL 15.14, primary, timeline 1, system 7
  ok

pg2  10.0.0.12:5432  PostgreSQL 15.14, standby, timeline 1, system 7
  ok
";

#[test]
fn nothing_to_say_about_a_good_cluster() {
    assert_eq!(told(&config(""), [Ok(primary()), Ok(standby())]), (BOTH_OK.to_owned(), Counts::default()));
}

/// The findings of pg1 (as primary, after `change`) and of the cluster, without the lines that name nodes.
fn of_pg1(config: &Config, change: impl Fn(&mut Facts)) -> String {
    let (mut one, mut two) = (primary(), standby());
    change(&mut one);
    two.rights = one.rights;
    two.version_num = one.version_num;
    let (text, _) = told(config, [Ok(one), Ok(two)]);
    let from = text.find("\n  ").unwrap() + 1;
    text[from..text.find("\npg2").unwrap()].to_owned()
}

#[test]
fn rights_are_named_once_with_the_sql_that_gives_them() {
    let none = |facts: &mut Facts| {
        facts.rights = RightsHeld {
            superuser: false,
            pg_monitor: false,
            pg_signal_backend: false,
            pg_promote: false,
            pg_reload_conf: false,
            replication: false,
            alter: Some(NONE),
        };
    };
    let expected = "  \
  problem: role \"Mon\" lacks membership in pg_monitor: probes could not see WAL receivers and lag
    fix on the primary, in database postgres: GRANT pg_monitor TO \"Mon\";
  problem: role \"Mon\" lacks membership in pg_signal_backend: sessions on a former primary could not be ended
    fix on the primary, in database postgres: GRANT pg_signal_backend TO \"Mon\";
  problem: role \"Mon\" lacks EXECUTE on pg_promote(boolean, integer): a standby could not be promoted
    fix on the primary, in database postgres: GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO \"Mon\";
  problem: role \"Mon\" lacks EXECUTE on pg_reload_conf(): standbys could not be pointed to a new primary
    fix on the primary, in database postgres: GRANT EXECUTE ON FUNCTION pg_reload_conf() TO \"Mon\";
  problem: role \"Mon\" lacks ALTER SYSTEM on primary_conninfo: standbys could not be pointed to a new primary
    fix on the primary, in database postgres: GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO \"Mon\";
  problem: role \"Mon\" lacks ALTER SYSTEM on default_transaction_read_only: a former primary could not be made read-only ([cluster] fence_sql)
    fix on the primary, in database postgres: GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only TO \"Mon\";
  problem: role \"Mon\" lacks REPLICATION: timeline histories could not be asked for, nor slots be made on a new primary
    fix on the primary, in database postgres: ALTER ROLE \"Mon\" REPLICATION;
";
    let named = config("[cluster]\nmonitor_user = \"Mon\"\n");
    assert_eq!(of_pg1(&named, none), expected);
    // The standby lacks the same, but receives the cure from the primary.
    let (mut one, mut two) = (primary(), standby());
    none(&mut one);
    none(&mut two);
    let (text, counts) = told(&named, [Ok(one), Ok(two.clone())]);
    assert_eq!(counts.problems, 7, "{text}");
    // Without a primary to receive it from, the standby is the one to tell.
    let (_, counts) = told(&named, [Err(NoFacts::Silent), Ok(two)]);
    assert_eq!(counts.problems, 1 + 7);
    // Who only follows needs to see, nothing else; a superuser lacks nothing.
    let follow = config("[cluster]\nfailover = \"follow\"\n");
    assert_eq!(of_pg1(&follow, none).matches("problem").count(), 1);
    assert_eq!(
        of_pg1(&named, |facts| {
            none(facts);
            facts.rights.superuser = true;
        }),
        "  ok\n"
    );
}

#[test]
fn old_versions() {
    let old = |version_num: u32, version: &'static str| {
        of_pg1(&config(""), move |facts| {
            facts.version_num = version_num;
            facts.version = version.to_owned();
            facts.rights.alter = None;
        })
    };
    let superuser = "  problem: role \"pgregent\" is no superuser, and before PostgreSQL 15 only one may ALTER SYSTEM: \
                     standbys could not be pointed to a new primary\n    \
                     fix on the primary, in database postgres: ALTER ROLE pgregent SUPERUSER;\n";
    assert_eq!(
        old(120_001, "12.1"),
        format!("  problem: PostgreSQL 12.1 is too old; 13 is the oldest that works\n{superuser}")
    );
    assert_eq!(
        old(140_000, "14.0"),
        format!(
            "{superuser}  warning: PostgreSQL before 15 has no right for ALTER SYSTEM on one setting: the monitor must be \
             a superuser\n"
        )
    );
}

#[test]
fn settings() {
    for (name, value, expected) in [
        (
            "hot_standby",
            "off",
            "problem: hot_standby is off: as a standby it could neither be read nor watched\n    \
             fix on pg1: ALTER SYSTEM SET hot_standby = on; then restart PostgreSQL",
        ),
        (
            "wal_level",
            "minimal",
            "problem: wal_level is minimal: no standby can stream from it\n    \
             fix on pg1: ALTER SYSTEM SET wal_level = replica; then restart PostgreSQL",
        ),
        (
            "wal_log_hints",
            "off",
            "warning: neither wal_log_hints nor data checksums are on: after a failover the old primary could not be \
             rewound, only rebuilt from a base backup\n    \
             fix on pg1: ALTER SYSTEM SET wal_log_hints = on; then restart PostgreSQL",
        ),
        (
            "full_page_writes",
            "off",
            "warning: full_page_writes is off: pg_rewind refuses, and a crash may corrupt data\n    \
             fix on pg1: ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();",
        ),
        (
            "wal_retrieve_retry_interval",
            "5000",
            "warning: wal_retrieve_retry_interval is 5000 ms: a promotion can take that long\n    \
             fix on pg1: ALTER SYSTEM SET wal_retrieve_retry_interval = '200ms'; SELECT pg_reload_conf();",
        ),
        (
            "max_connections",
            "99",
            "problem: max_connections is 99, which leaves 89 for clients (3 are reserved, 7 are for the monitor and \
             operators), and the budget is 90: under load connects would fail\n    \
             fix on pg1: ALTER SYSTEM SET max_connections = 100; then restart PostgreSQL (standbys before the primary); \
             or set budget = 89",
        ),
        (
            "max_wal_senders",
            "2",
            "warning: max_wal_senders is 2: fewer than a primary needs (1 for standbys, 2 for a base backup)\n    \
             fix on pg1: ALTER SYSTEM SET max_wal_senders = 10; then restart PostgreSQL",
        ),
        (
            "max_wal_senders",
            "0",
            "problem: max_wal_senders is 0: fewer than a primary needs (1 for standbys, 2 for a base backup)\n    \
             fix on pg1: ALTER SYSTEM SET max_wal_senders = 10; then restart PostgreSQL",
        ),
    ] {
        let change = |facts: &mut Facts| {
            facts.settings.insert(name.to_owned(), value.to_owned());
        };
        assert_eq!(of_pg1(&config(""), change), format!("  {expected}\n"), "{name}");
    }
}

#[test]
fn settings_that_are_just_enough() {
    for (name, value) in [("max_connections", "100"), ("wal_retrieve_retry_interval", "1000"), ("max_wal_senders", "3")]
    {
        let change = |facts: &mut Facts| {
            facts.settings.insert(name.to_owned(), value.to_owned());
        };
        assert_eq!(of_pg1(&config(""), change), "  ok\n", "{name}");
    }
    let checksums = |facts: &mut Facts| {
        facts.settings.insert("wal_log_hints".to_owned(), "off".to_owned());
        facts.settings.insert("data_checksums".to_owned(), "on".to_owned());
    };
    assert_eq!(of_pg1(&config(""), checksums), "  ok\n");
}

#[test]
fn auth_query_and_password_encryption() {
    let query = config("[auth]\nauth_query = \"SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1\"\n");
    let denied = Refusal { sqlstate: "42501".to_owned(), message: "permission denied for table pg_authid".to_owned() };
    assert_eq!(
        of_pg1(&query, |facts| facts.auth_query = Some(Err(denied.clone()))),
        "  problem: auth_query as \"pgregent\" fails: permission denied for table pg_authid (42501)\n    \
         fix: on the primary, in database postgres: GRANT SELECT ON pg_authid TO pgregent;\n"
    );
    let md5 = |facts: &mut Facts| {
        facts.settings.insert("password_encryption".to_owned(), "md5".to_owned());
    };
    assert!(of_pg1(&query, md5).starts_with("  warning: password_encryption is md5: "));
    assert_eq!(of_pg1(&config(""), md5), "  ok\n");
}

#[test]
fn nodes_that_do_not_answer() {
    let text = |reason: NoFacts| told(&config(""), [Ok(primary()), Err(reason)]).0;
    let refused = |sqlstate: &str, message: &str| {
        text(NoFacts::Refused(Refusal { sqlstate: sqlstate.to_owned(), message: message.to_owned() }))
    };
    let lines = |text: &str| {
        text.lines().skip_while(|line| !line.contains("not reached")).skip(1).take(2).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        lines(&text(NoFacts::Silent)),
        "  problem: no answer in time\n    fix: is PostgreSQL running there, do listen_addresses and firewalls let this \
         machine reach 10.0.0.12:5432?"
    );
    assert!(
        lines(&text(NoFacts::Unreachable("Connection refused".to_owned())))
            .starts_with("  problem: Connection refused\n")
    );
    assert_eq!(
        lines(&refused("28P01", "password authentication\u{1b} failed")),
        "  problem: login as \"pgregent\" refused: password authentication\\u{1b} failed (28P01)\n    \
         fix on the primary, in database postgres: ALTER ROLE pgregent PASSWORD '…'; or, if there is no such role: \
         CREATE ROLE pgregent LOGIN PASSWORD '…'; GRANT pg_monitor TO pgregent; GRANT pg_signal_backend TO pgregent; \
         GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO pgregent; GRANT EXECUTE ON FUNCTION pg_reload_conf() \
         TO pgregent; GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO pgregent; GRANT ALTER SYSTEM ON PARAMETER \
         default_transaction_read_only TO pgregent; ALTER ROLE pgregent REPLICATION;"
    );
    assert!(lines(&refused("28000", "no pg_hba.conf entry for host")).ends_with(
        "    fix: add to the node's pg_hba.conf: host postgres pgregent <this machine's address>/32 scram-sha-256; then \
         SELECT pg_reload_conf();"
    ));
    assert!(
        lines(&refused("3D000", "no such database")).ends_with("set [cluster] monitor_database to one that exists")
    );
    assert!(refused("57P03", "starting up").contains("with one node reached there is nothing to fail over to"));
}

#[test]
fn the_nodes_together() {
    let cluster = |visits| {
        let (text, counts) = told(&config(""), visits);
        (text.split_once("\ncluster main\n").map(|(_, rest)| rest.to_owned()).unwrap_or_default(), counts)
    };
    let (text, counts) = cluster([Ok(primary()), Ok(Facts { system_id: SystemId(8), ..standby() })]);
    assert_eq!(
        text,
        "  problem: pg2 belongs to another cluster: its system identifier is 8, that of pg1 is 7\n    \
         fix: correct its address, or make it anew with pg_basebackup from the primary\n"
    );
    assert_eq!(counts, Counts { problems: 1, warnings: 0 });
    let (text, _) = cluster([Ok(primary()), Ok(Facts { timeline: Some(TimelineId(2)), ..primary() })]);
    assert!(text.starts_with("  problem: more than one primary: pg1 on timeline 1, pg2 on timeline 2\n"), "{text}");
    let (text, _) = cluster([Ok(standby()), Ok(standby())]);
    assert!(text.starts_with("  problem: no primary: every node is in recovery\n"), "{text}");
    let (text, _) = cluster([Ok(standby()), Err(NoFacts::Silent)]);
    assert!(text.contains("  warning: no primary among the nodes that answered\n"), "{text}");
    let (text, counts) = cluster([Ok(primary()), Ok(Facts { timeline: Some(TimelineId(2)), ..standby() })]);
    assert!(text.starts_with("  warning: pg2 is on timeline 2, the primary pg1 on 1: it does not follow"), "{text}");
    assert_eq!(counts, Counts { problems: 0, warnings: 1 });
    // A standby that receives nothing has no timeline of its own to differ by, but says that it does not stream.
    let idle = Facts { timeline: None, receiver: None, ..standby() };
    let (text, counts) = told(&config(""), [Ok(primary()), Ok(idle)]);
    assert!(text.contains("  warning: a standby that does not stream"), "{text}");
    assert_eq!(counts, Counts { problems: 0, warnings: 1 });
}

#[test]
fn names_are_quoted_where_sql_needs_it() {
    for (name, sql) in [
        ("pgregent", "pgregent"),
        ("a_1", "a_1"),
        ("Mon", "\"Mon\""),
        ("a b", "\"a b\""),
        ("a\"b", "\"a\"\"b\""),
        ("1a", "\"1a\""),
    ] {
        assert_eq!(identifier(name), sql);
    }
}
