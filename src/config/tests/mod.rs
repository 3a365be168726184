//! Golden texts: every kind of problem, as people read it.

mod table;
mod tls;

use super::*;

/// Three lines per node and user, so that a table added below begins on line 10.
const BASE: &str = r#"[[node]]
name = "pg1"
address = "10.0.0.11"
[[node]]
name = "pg2"
address = "10.0.0.12"
[[auth.user]]
name = "u"
password = "p"
"#;

fn base() -> Config {
    Config::parse(BASE, "p.toml").unwrap()
}

/// Problems (`E`) and warnings (`W`) of a text, one per line.
fn told(text: &str) -> String {
    let report = Report::of_text(text, "p.toml");
    assert_eq!(report.config.is_none(), !report.problems.is_empty());
    let line = |mark: &'static str| move |problem: &Problem| format!("{mark} {}", problem.line_in("p.toml"));
    let lines = report.problems.iter().map(line("E")).chain(report.warnings.iter().map(line("W")));
    lines.collect::<Vec<_>>().join("\n")
}

/// What `BASE` and these lines give.
#[track_caller]
fn with(lines: &str, expected: &str) {
    assert_eq!(told(&format!("{BASE}{lines}")), expected, "\n{lines}");
}

#[track_caller]
fn alone(text: &str, expected: &str) {
    assert_eq!(told(text), expected, "\n{text}");
}

#[test]
fn nothing_is_wrong_with_the_base() {
    alone(BASE, "");
}

#[test]
fn an_empty_file_lacks_nodes_and_users() {
    alone(
        "",
        r#"E p.toml:1:1: [[node]]: missing; a cluster has at least one node; add [[node]] with name = "pg1" and address = "10.0.0.11:5432"
E p.toml:1:1: [auth]: nobody can log in: there is no [[auth.user]], no userlist and no auth_query; add [[auth.user]] with name and password, or userlist, or auth_query"#,
    );
}

#[test]
fn all_problems_come_at_once_sorted_by_place() {
    with(
        "[pool]\nsise = 3\nqueue_timeout = 30\n[server]\nlisten = [\"*:5432\"]\nworkers = -1\n",
        r#"E p.toml:11:1: [pool] sise: unknown key; did you mean "size"?
E p.toml:12:17: [pool] queue_timeout: is an integer; a duration is expected; write a unit, such as "30s"
E p.toml:14:10: [server] listen: "*:5432" is not an IP address with a port; for all addresses write "0.0.0.0:5432" and "[::]:5432"
E p.toml:15:11: [server] workers: is out of range; write an integer from 0 to 1024"#,
    );
}

#[test]
fn syntax() {
    with(
        "[pool]\nsize = 3\nsize = 4\n[pool]\n",
        "E p.toml:12:1: not TOML: duplicate key\nE p.toml:13:2: not TOML: duplicate key",
    );
    alone("[pool\nsize = 3\n", "E p.toml:1:6: not TOML: unclosed table, expected `]`");
    alone("[pool]\nsize =\n", "E p.toml:2:7: not TOML: string values must be quoted, expected literal string");
}

#[test]
fn unknown_keys() {
    with(
        "[pool]\ndefault_pool_size = 3\n",
        r#"E p.toml:11:1: [pool] default_pool_size: unknown key; here it is called "size""#,
    );
    with("[server]\npool_mode = 3\n", r#"E p.toml:11:1: [server] pool_mode: unknown key; here it is "mode" in [pool]"#);
    with("[server]\nsize = 3\n", "E p.toml:11:1: [server] size: unknown key; it belongs in [pool]");
    with(
        "[admin]\nbanana = 3\n",
        "E p.toml:11:1: [admin] banana: unknown key; [admin] knows listen, console, console_users, console_readers",
    );
    with(
        "[log.x]\n",
        "E p.toml:10:6: [log] x: unknown key; [log] knows json, filter, slow_statement, failed_statements",
    );
    with(
        "\"\\u001b[2J\" = 1\n",
        r#"E p.toml:10:1: [[auth.user]] \u{1b}[2J: unknown key; [[auth.user]] knows name, password, password_file"#,
    );
}

#[test]
fn unknown_tables() {
    with("[pol]\n", "E p.toml:10:2: [pol]: unknown table; did you mean [pool]?");
    with("[nodes]\n", "E p.toml:10:2: [nodes]: unknown table; did you mean [[node]]?");
    with(
        "[banana]\n",
        "E p.toml:10:2: [banana]: unknown table; known are [server], [tls], [admin], [cluster], [etcd], [[node]], [[witness]], [hooks], [pool], [route], [[route.redirect]], \
         [auth], [[auth.user]], [log]",
    );
    alone(&format!("size = 3\n{BASE}"), "E p.toml:1:1: [size]: unknown table; it belongs in [pool]");
}

#[test]
fn wrong_shapes() {
    with("[[pool]]\n", "E p.toml:10:1: [pool]: is a list of tables; write [pool], once, in single brackets");
    alone(
        "[node]\nname = \"a\"\n[auth]\nmethod = \"trust\"\n[server]\nlisten = [\"127.0.0.1:5432\"]\n[cluster]\nfailover = \"manual\"",
        r#"E p.toml:1:1: [[node]]: is not a list of tables; write [[node]], in double brackets
E p.toml:1:1: [[node]]: missing; a cluster has at least one node; add [[node]] with name = "pg1" and address = "10.0.0.11:5432""#,
    );
    alone(&format!("pool = 3\n{BASE}"), "E p.toml:1:8: [pool]: is not a table; write [pool] on a line of its own");
}

#[test]
fn wrong_types() {
    with(
        "[pool]\nsize = \"20\"\n",
        "E p.toml:11:8: [pool] size: is a text; an integer is expected; leave the quotes out",
    );
    with(
        "[pool]\nsize = true\n",
        "E p.toml:11:8: [pool] size: is true or false; an integer is expected; write an integer from 1 to 10000",
    );
    with(
        "[route]\nread_write_split = \"yes\"\n",
        "E p.toml:11:20: [route] read_write_split: is a text; true or false is expected; write true, without quotes",
    );
    with(
        "[cluster]\nmonitor_password = 1234\n",
        "E p.toml:11:20: [cluster] monitor_password: is an integer; a text is expected; put it in quotes",
    );
    with(
        "[route]\nlag_bytes_max = 1.5\n",
        "E p.toml:11:17: [route] lag_bytes_max: is a number with a fraction; a size is expected; write a number of bytes, or a text such as \"64KiB\"",
    );
    with(
        "[route]\nread_functions = \"f\"\n",
        r#"E p.toml:11:18: [route] read_functions: is a text; a list of texts is expected; write it in brackets, such as ["a", "b"]"#,
    );
    with(
        "[route]\nread_functions = [\"f\", 1]\n",
        "E p.toml:11:18: [route] read_functions: item 2 is an integer; a text is expected; put it in quotes",
    );
    with(
        "[pool]\nidle_timeout = 1979-05-27\n",
        r#"E p.toml:11:16: [pool] idle_timeout: is a date; a duration is expected; write a text such as "30s""#,
    );
}

#[test]
fn wrong_values() {
    with("[pool]\nsize = 0\n", "E p.toml:11:8: [pool] size: 0 is out of range; write an integer from 1 to 10000");
    with(
        "[pool]\nsize = 99999999999999999999\n",
        "E p.toml:11:8: [pool] size: is out of range; write an integer from 1 to 10000",
    );
    with(
        "[pool]\nqueue_timeout = \"0s\"\n",
        r#"E p.toml:11:17: [pool] queue_timeout: "0s" is out of range; write a value from "1ms" to "1d""#,
    );
    with(
        "[pool]\nlifetime = \"1ms\"\n",
        r#"E p.toml:11:12: [pool] lifetime: "1ms" is out of range; write a value from "1s" to "30d", or "0s" for no limit"#,
    );
    with(
        "[pool]\nqueue_timeout = \"30 sec\"\n",
        r#"E p.toml:11:17: [pool] queue_timeout: "30 sec" is not a duration; did you mean "30s"?"#,
    );
    with(
        "[server]\nmessage_bytes_max = 5\n",
        r#"E p.toml:11:21: [server] message_bytes_max: 5B is out of range; write a value from "64KiB" to "1GiB""#,
    );
    with(
        "[route]\nlag_bytes_max = \"16MB\"\n",
        r#"E p.toml:11:17: [route] lag_bytes_max: "16MB" is not a size; did you mean "16MiB"?"#,
    );
    with(
        "[pool]\nmode = \"transactoin\"\n",
        r#"E p.toml:11:8: [pool] mode: "transactoin" is not known here; did you mean "transaction"?"#,
    );
    with(
        "[pool]\nmode = \"x\"\n",
        r#"E p.toml:11:8: [pool] mode: "x" is not known here; write "session" or "transaction" or "statement""#,
    );
    with(
        "[cluster]\nmonitor_user = \"\"\n",
        "E p.toml:11:16: [cluster] monitor_user: is empty; write a value, or leave the line out",
    );
    with("[cluster]\nmonitor_user = \"a\\u0000b\"\n", "E p.toml:11:16: [cluster] monitor_user: holds a NUL character");
    with(
        "[cluster]\nname = \"a/b\"\n",
        r#"E p.toml:11:8: [cluster] name: "a/b" is not a name; write letters, digits, "-", "_" and ".", not beginning with ".""#,
    );
    with(
        "[cluster]\nname = \"..\"\n",
        r#"E p.toml:11:8: [cluster] name: ".." is not a name; write letters, digits, "-", "_" and ".", not beginning with ".""#,
    );
    with(
        &format!("[cluster]\nname = \"{}\"\n", "n".repeat(64)),
        "E p.toml:11:8: [cluster] name: is longer than 63 bytes",
    );
}

#[test]
fn etcd_needs_endpoints_that_are_client_urls() {
    with(
        "[cluster]\ncoordination = \"etcd\"\n",
        r#"E p.toml:1:1: [etcd] endpoints: missing, although [cluster] coordination is "etcd"; write endpoints = ["http://10.0.0.31:2379", ...], all members of one etcd cluster"#,
    );
    for (endpoints, expected) in [
        (
            "\"10.0.0.1:2379\"",
            r#""10.0.0.1:2379" is not a client URL of etcd; write one such as "http://10.0.0.31:2379""#,
        ),
        ("\"http://h\"", r#""http://h" is not a client URL of etcd; write one such as "http://10.0.0.31:2379""#),
        (
            "\"http://h:2379/v3\"",
            r#""http://h:2379/v3" is not a client URL of etcd; write one such as "http://10.0.0.31:2379""#,
        ),
        ("\"http://h:2379\", \"http://h:2379\"", r#""http://h:2379" is listed twice; list each member once"#),
        ("\"https://h:2379\"", r#""https://h:2379" has to be verified; add ca_file"#),
    ] {
        with(
            &format!("[cluster]\ncoordination = \"etcd\"\n[etcd]\nendpoints = [{endpoints}]\n"),
            &format!("E p.toml:13:13: [etcd] endpoints: {expected}"),
        );
    }
    with(
        "[etcd]\nendpoints = [\"http://[::1]:2379\"]\npassword = \"x\"\n",
        "W p.toml:11:13: [etcd] endpoints: has no effect without [cluster] coordination = \"etcd\"; write that, or leave [etcd] out\n\
         W p.toml:12:12: [etcd] password: has no effect without user; add user, or leave this out",
    );
}

#[test]
fn two_voters_are_no_majority() {
    with(
        "[cluster]\ncoordination = \"voters\"\n",
        r#"E p.toml:11:16: [cluster] coordination: "voters" with two voters cannot tell a dead node from one that is cut off: one of two is no majority, and automatic failover could never begin; add a third node or a [[witness]] (any small PostgreSQL server elsewhere), or write failover = "manual""#,
    );
    with(
        "[cluster]\ncoordination = \"voters\"\n[[witness]]\nname = \"pg1\"\naddress = \"w\"\n",
        r#"E p.toml:13:8: [[witness]] name: "pg1" is the name of another node or witness too; give each its own name"#,
    );
    with(
        "[[witness]]\nname = \"w\"\naddress = \"w\"\n",
        r#"W p.toml:11:8: [[witness]] name: a witness votes only with coordination = "voters"; write coordination = "voters" in [cluster], or take the witness out"#,
    );
}

#[test]
fn listen_addresses() {
    for (value, expected) in [
        (r#"[]"#, r#"is empty; write at least one address, such as ["0.0.0.0:5432"]"#),
        (r#"["1.2.3.4"]"#, r#""1.2.3.4" is not an IP address with a port; add the port: "1.2.3.4:5432""#),
        (r#"["localhost:1"]"#, r#""localhost:1" is not an IP address with a port; did you mean "127.0.0.1:1"?"#),
        (r#"[":6432"]"#, r#"":6432" is not an IP address with a port; did you mean "0.0.0.0:6432"?"#),
        (
            r#"["db.example"]"#,
            r#""db.example" is not an IP address with a port; write an address of this machine, such as "0.0.0.0:5432""#,
        ),
        (r#"["[::1]:1", "[::1]:1"]"#, r#""[::1]:1" is listed twice"#),
    ] {
        with(&format!("[server]\nlisten = {value}\n"), &format!("E p.toml:11:10: [server] listen: {expected}"));
    }
    let config = Config::parse(&format!("{BASE}[admin]\nlisten = \"\"\n"), "p.toml").unwrap();
    assert_eq!(config.admin.listen, None);
    with(
        "[admin]\nlisten = \"127.0.0.1:5432\"\n",
        r#"E p.toml:11:10: [admin] listen: 127.0.0.1:5432 is taken by [server] listen; use another port, such as "127.0.0.1:9187""#,
    );
}

#[test]
fn nodes() {
    with(
        "[[node]]\n[[node]]\nname = \"PG1\"\naddress = \"10.0.0.12:5432\"\n",
        r#"E p.toml:10:1: [[node]] address: missing; add address = "10.0.0.11:5432"
E p.toml:10:1: [[node]] name: missing; add name = "pg1"
E p.toml:12:8: [[node]] name: "PG1" is the name of another node too; give each node its own name
E p.toml:13:11: [[node]] address: "10.0.0.12:5432" is the address of node "pg2" too; list each PostgreSQL instance once"#,
    );
    with(
        "[[node]]\nname = \"pg3\"\naddress = \"localhost\"\n",
        r#"E p.toml:12:11: [[node]] address: "localhost:5432" is pgregent itself, which listens on 0.0.0.0:5432; let PostgreSQL or pgregent use another port"#,
    );
    with(
        "[[node]]\nname = \"pg-master\"\naddress = \"c\"\n",
        r#"W p.toml:11:8: [[node]] name: "pg-master" holds "master", but roles move; name nodes after machines or numbers, such as "pg1""#,
    );
    let many: String = (0..65).map(|n| format!("[[node]]\nname = \"n{n}\"\naddress = \"h{n}\"\n")).collect();
    alone(&format!("{many}[auth]\nauth_query = \"SELECT $1\""), "E p.toml:194:8: [[node]] name: more than 64 nodes");
}

#[test]
fn nodes_stream_under_different_names() {
    let same = BASE.replacen("\"\naddress", "\"\napplication_name = \"PG2\"\naddress", 1);
    let whose = r#"E p.toml:5:1: [[node]] application_name: "pg2" is that of node "pg1" too; let each node stream under its own name"#;
    alone(&same, whose);
    alone(&same.replace("PG2", "walreceiver_1"), "");
}

#[test]
fn fencing_needs_its_program() {
    with(
        "[cluster]\nfencing = \"command\"\n",
        r#"E p.toml:11:11: [cluster] fencing: "command" needs a program that turns nodes off; write [hooks] fence_command = ["…"]"#,
    );
    with(
        "[hooks]\nfence_command = [\"/bin/true\"]\n",
        r#"W p.toml:11:17: [hooks] fence_command: is never run, because [cluster] fencing is "proxy"; write [cluster] fencing = "command""#,
    );
    with("[cluster]\nfencing = \"command\"\n[hooks]\nfence_command = [\"/bin/true\"]\n", "");
    with(
        "[cluster]\nsynchronous_standbys = 2\n",
        r#"E p.toml:11:24: [cluster] synchronous_standbys: more than there can be standbys: every commit would wait for ever; write less than the number of nodes"#,
    );
}

#[test]
fn patroni_is_asked_in_follow_mode() {
    let with_url = |url: &str, mode: &str| {
        let url = format!("\"\npatroni_url = \"{url}\"\naddress");
        format!("{}[cluster]\nfailover = \"{mode}\"\n", BASE.replacen("\"\naddress", &url, 1))
    };
    let good = "http://10.0.0.11:8008/";
    alone(&with_url(good, "follow"), "");
    let config = Config::parse(&with_url(good, "follow"), "p.toml").unwrap();
    assert_eq!(config.nodes[0].patroni_url.as_ref().unwrap().to_string(), "http://10.0.0.11:8008");
    assert_eq!(config.nodes[1].patroni_url, None);
    alone(
        &with_url(good, "automatic"),
        r#"W p.toml:3:15: [[node]] patroni_url: Patroni is asked only with [cluster] failover = "follow"; let only one of Patroni and pgregent promote"#,
    );
    for bad in ["10.0.0.11:8008", "http://10.0.0.11", "http://10.0.0.11:8008/patroni", "http:///run:8008", "http://:1"]
    {
        let told = format!(
            r#"E p.toml:3:15: [[node]] patroni_url: "{bad}" is no such address; write http:// or https://, a host and a port, such as "http://10.0.0.11:8008""#
        );
        alone(&with_url(bad, "follow"), &told);
    }
    alone(
        &with_url("https://pg1:8008", "follow"),
        r"E p.toml:3:15: [[node]] patroni_url: whoever answers over https has to be verified; add [cluster] patroni_ca_file",
    );
}

#[test]
fn failover_needs_somebody_to_promote() {
    let one = "[[node]]\nname = \"pg1\"\naddress = \"a\"\n[[auth.user]]\nname = \"u\"\npassword = \"p\"\n";
    alone(
        &format!("{one}[cluster]\nfailover = \"automatic\"\n"),
        r#"E p.toml:8:12: [cluster] failover: "automatic" needs at least two nodes; there is one; add a standby as [[node]], or write failover = "manual""#,
    );
    alone(&format!("{one}[cluster]\nfailover = \"manual\"\n"), "");
    let zero = BASE.replace("\"\naddress", "\"\nfailover_priority = 0\nweight = 0\naddress");
    alone(
        &zero,
        r#"E p.toml:3:21: [[node]] failover_priority: 0 for all nodes: "automatic" failover would never find a candidate; raise it on at least two nodes
E p.toml:4:10: [[node]] weight: 0 for all nodes: none would be chosen for reads; raise it on the nodes that may take reads, or write [route] read_write_split = false"#,
    );
    with(
        "[cluster]\nprobe_interval = \"50ms\"\n",
        r#"E p.toml:10:1: [cluster] probe_suspect_interval: "100ms" is longer than probe_interval, "50ms"; write probe_suspect_interval = "50ms" or less"#,
    );
}

#[test]
fn zones_are_those_of_nodes() {
    let zoned = BASE.replace("name = \"pg2\"", "zone = \"b\"\nname = \"pg2\"");
    alone(&format!("{zoned}[server]\nzone = \"b\"\n"), "");
    alone(
        &format!("{zoned}[server]\nzone = \"a\"\n"),
        r#"W p.toml:12:8: [server] zone: "a" is the zone of no node: every standby counts as far away; write the same zone for the [[node]] entries that stand there"#,
    );
    let config = Config::parse(&format!("{zoned}[server]\nzone = \"b\"\n"), "p.toml").unwrap();
    let local = crate::route::Balancing::from_config(&config).nodes;
    assert_eq!(local.iter().map(|share| share.local).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn pools_fit_nodes() {
    with(
        "[pool]\nsize = 91\n",
        "E p.toml:11:8: [pool] size: 91 is more than node_budget, 90: the pool could never be full; write size = 90 or less, or raise node_budget",
    );
    with(
        "[[node]]\nname = \"pg3\"\naddress = \"c\"\nbudget = 19\n",
        "E p.toml:13:10: [[node]] budget: 19 is less than [pool] size, 20; write budget = 20 or more, or lower [pool] size",
    );
}

#[test]
fn users_and_secrets() {
    with(
        "[[auth.user]]\nname = \"u\"\npassword = \"q\"\n[[auth.user]]\nname = \"v\"\npassword = \"SCRAM-SHA-256$4096:x\"\n",
        "E p.toml:11:8: [[auth.user]] name: \"u\" is listed twice; keep one\n\
         E p.toml:15:12: [[auth.user]] password: begins as a stored SCRAM secret, but is not a whole one; copy rolpassword from pg_authid in full",
    );
    with(
        "[[auth.user]]\nname = \"v\"\npassword = \"md50123456789abcdef0123456789abcdef\"\n",
        r#"W p.toml:12:12: [[auth.user]] password: "v" has an md5 secret, which [auth] method "scram-sha-256" cannot use; store a SCRAM secret or the password, or write method = "md5""#,
    );
    let scram = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$\
                 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    with(&format!("[[auth.user]]\nname = \"v\"\npassword = \"{scram}\"\n"), "");
    with(
        &format!("[[auth.user]]\nname = \"v\"\npassword = \"{scram}\"\n[auth]\nmethod = \"md5\"\n"),
        r#"W p.toml:12:12: [[auth.user]] password: "v" has a SCRAM secret, which [auth] method "md5" cannot use; write method = "scram-sha-256""#,
    );
    with(
        "[auth]\nmethod = \"trust\"\n",
        r#"W p.toml:11:10: [auth] method: "trust" lets everybody in who reaches a [server] listen address; use "scram-sha-256", or listen on 127.0.0.1 only"#,
    );
}

#[test]
fn auth_query() {
    with(
        "[auth]\nauth_query = \"SELECT 1\"\n",
        "E p.toml:11:14: [auth] auth_query: does not use $1, the name of the user who logs in; add WHERE rolname = $1",
    );
    with(
        "[auth]\nauth_query_user = \"x\"\n",
        "W p.toml:11:19: [auth] auth_query_user: has no effect without auth_query; add auth_query, or leave this out",
    );
    let parse = |text: &str| Config::parse(&format!("{BASE}{text}"), "p.toml").unwrap().auth;
    let monitor = "[cluster]\nmonitor_user = \"m\"\nmonitor_password = \"s\"\nmonitor_database = \"d\"\n";
    let auth = parse(&format!("{monitor}[auth]\nauth_query = \"SELECT $1\"\n"));
    assert_eq!((auth.auth_query_user.as_str(), auth.auth_query_database.as_str()), ("m", "d"));
    assert_eq!(auth.auth_query_password.expose(), "s");
    // Another role does not inherit the monitor's password.
    let auth = parse(&format!("{monitor}[auth]\nauth_query = \"SELECT $1\"\nauth_query_user = \"x\"\n"));
    assert_eq!((auth.auth_query_user.as_str(), auth.auth_query_password.expose()), ("x", ""));
}

#[test]
fn the_rest() {
    with(
        "[route]\nread_functions = [\"f\"]\nwrite_functions = [\"f\"]\n",
        r#"E p.toml:11:18: [route] read_functions: "f" is in write_functions too; keep it in one of them"#,
    );
    with(
        "[log]\nfilter = \"a=b=c\"\n",
        r#"E p.toml:11:10: [log] filter: is not a log filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5; write a level, such as "info", or "info,pgregent::pool=debug""#,
    );
    alone(&"#".repeat((1 << 20) + 1), "E p.toml: is longer than 1MiB");
}

#[test]
fn toml_integers_of_any_base() {
    let config = Config::parse(&format!("{BASE}[pool]\nsize = 0x1f\nnode_budget = 1_000\n"), "p.toml").unwrap();
    assert_eq!((config.pool.size, config.pool.node_budget), (31, 1000));
}

#[test]
fn zero_is_off_where_documented() {
    let text =
        "[pool]\nidle_timeout = \"0s\"\nlifetime = \"0s\"\n[route]\nlag_bytes_max = 0\nreplay_lag_max = \"0s\"\n";
    let config = Config::parse(&format!("{BASE}{text}"), "p.toml").unwrap();
    assert_eq!((config.pool.idle_timeout, config.pool.lifetime), (None, None));
    assert_eq!((config.route.lag_bytes_max, config.route.replay_lag_max), (None, None));
}

#[test]
fn secrets_come_from_files() {
    let folder = std::env::temp_dir().join(format!("pgregent-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let name = folder.join("p.toml").display().to_string();
    let path = |file: &str| folder.join(file).display().to_string();
    let read = |lines: &str| Report::of_text(&format!("{BASE}{lines}"), &name);
    let write = |file: &str, text: &[u8], mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(folder.join(file), text).unwrap();
        std::fs::set_permissions(folder.join(file), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("good", b"geheim\r\n", 0o600);
    write("open", b"geheim", 0o644);
    write("two", b"a\nb\n", 0o600);
    write("empty", b"\n", 0o600);
    write("binary", b"\xff\xfe", 0o600);

    let report = read("[cluster]\nmonitor_password_file = \"good\"\n[auth]\nuserlist = \"good\"\n");
    assert_eq!((&report.problems, &report.warnings), (&vec![], &vec![]));
    let config = report.config.unwrap();
    assert_eq!(config.cluster.monitor_password.expose(), "geheim");
    assert_eq!(config.auth.userlist, Some(folder.join("good")));

    let wrong = |lines: &str| {
        let report = read(lines);
        let list = if report.problems.is_empty() { &report.warnings } else { &report.problems };
        list.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect::<Vec<_>>().join("\n")
    };
    let key = "[cluster] monitor_password_file";
    for (file, expected) in [
        ("open", format!("everybody on this machine can read {}", path("open"))),
        ("two", format!("{} holds more than one line", path("two"))),
        ("empty", format!("{} is empty", path("empty"))),
        ("binary", format!("{} is not UTF-8 text", path("binary"))),
        ("none", format!("cannot read {}: there is no such file", path("none"))),
        ("..", format!("{} is not a file", path(".."))),
    ] {
        assert_eq!(wrong(&format!("[cluster]\nmonitor_password_file = \"{file}\"\n")), format!("{key}: {expected}"));
    }
    assert_eq!(
        wrong("[cluster]\nmonitor_password = \"x\"\nmonitor_password_file = \"good\"\n"),
        format!("{key}: given twice, as monitor_password and as monitor_password_file")
    );
    assert_eq!(
        wrong("[auth]\nuserlist = \"none\"\n"),
        format!("[auth] userlist: cannot read {}: there is no such file", path("none"))
    );
    let inline = format!("{BASE}[cluster]\nmonitor_password = \"geheim\"\n");
    write("p.toml", inline.as_bytes(), 0o644);
    let report = Report::of_file(&folder.join("p.toml"));
    assert_eq!(report.warnings[0].message, "holds passwords, and everybody on this machine can read it");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn an_unreadable_file_is_one_problem() {
    let problems = Config::load(std::path::Path::new("/nonexistent/p.toml")).unwrap_err();
    assert_eq!(problems.to_string(), "/nonexistent/p.toml: cannot read /nonexistent/p.toml: there is no such file");
}

#[test]
fn changes_are_told_without_secrets() {
    let old = base();
    assert_eq!(old.changes(&old), []);
    let mut new = old.clone();
    new.pool.size = 30;
    new.server.workers = 4;
    new.cluster.monitor_password = Secret::new("geheim");
    new.nodes[1].weight = 5;
    new.auth.users[0].secret = Secret::new("geheim");
    new.auth.users.push(UserConfig { name: "v".to_owned(), secret: Secret::new("geheim") });
    let told: Vec<_> = old.changes(&new).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "server.workers: 0 -> 4 (needs a restart)",
            "cluster.monitor_password: changed (needs a restart)",
            "node.pg2.weight: 100 -> 5 (applied by reload)",
            "pool.size: 20 -> 30 (applied by reload)",
            "auth.user.u.password: changed (applied by reload)",
            "auth.user.v.name: added, v (applied by reload)",
            "auth.user.v.password: added, (set) (applied by reload)",
        ]
    );
    new.nodes.swap(0, 1);
    assert_eq!(old.changes(&new)[0].to_string(), "node: pg1, pg2 -> pg2, pg1 (needs a restart)");
    assert!(!format!("{:?}", old.changes(&new)).contains("geheim"));
}
