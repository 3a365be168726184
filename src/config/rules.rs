//! Rules over several settings: what is valid only together.
//!
//! Invariants: a rule looks only at values that are right by themselves. Absent on purpose:
//! anything that needs a node to answer (see `ctl::check`).

use super::check::Tables;
use super::problem::Notes;
use super::suggest::nearest;
use super::value::{Flaw, format_address, format_duration, quoted};
use super::{AuthMethod, Config, CoordinationKind, FailoverMode, Fencing, NodeConfig, Secret};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Nodes of a cluster; more are a problem.
const NODES_MAX: usize = 64;

/// Fewest voters of which one may be lost.
const VOTERS_MIN: usize = 3;

/// Words that name a role; a node named after one is misnamed after the first failover.
const ROLE_WORDS: &[&str] = &["primary", "master", "leader", "standby", "slave", "replica", "secondary"];

/// One rule.
type Rule = fn(&Tables<'_, '_>, &Config, &mut Notes);

/// All rules; the order does not matter.
const RULES: &[Rule] = &[
    enough_nodes,
    names_and_addresses_differ,
    streaming_names_differ,
    patroni_is_followed,
    names_without_roles,
    not_our_own_address,
    somebody_may_be_promoted,
    somebody_may_be_read,
    voters_make_a_majority,
    some_node_is_in_our_zone,
    fencing_has_its_command,
    probes_hurry_when_in_doubt,
    pools_fit_nodes,
    somebody_may_log_in,
    users_differ,
    redirects_make_sense,
    secrets_fit_method,
    rules_are_used,
    auth_query_is_whole,
    admin_is_apart,
    functions_are_on_one_list,
    etcd_is_whole,
    etcd_is_reachable,
];

/// Applies all rules.
pub(super) fn apply(tables: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    for rule in RULES {
        rule(tables, config, notes);
    }
}

fn enough_nodes(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let (count, automatic) = (config.nodes.len(), config.cluster.failover == FailoverMode::Automatic);
    if count == 0 {
        let flaw = Flaw::new("missing; a cluster has at least one node");
        notes.problem(0, "[[node]]", flaw.suggest(r#"add [[node]] with name = "pg1" and address = "10.0.0.11:5432""#));
    } else if count == 1 && automatic {
        let flaw = Flaw::new("\"automatic\" needs at least two nodes; there is one");
        t.cluster.problem("failover", flaw.suggest("add a standby as [[node]], or write failover = \"manual\""), notes);
    } else if count > NODES_MAX {
        let flaw = Flaw::new(format!("more than {NODES_MAX} nodes"));
        t.nodes[NODES_MAX].problem("name", flaw, notes);
    }
}

fn names_and_addresses_differ(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let mut names = HashMap::new();
    let mut addresses = HashMap::new();
    for (fields, node) in t.nodes.iter().zip(&config.nodes) {
        if !node.name.is_empty() && names.insert(node.name.to_lowercase(), ()).is_some() {
            let flaw = Flaw::new(format!("{} is the name of another node too", quoted(&node.name)));
            fields.problem("name", flaw.suggest("give each node its own name"), notes);
        }
        let address = format_address(&node.host.to_lowercase(), node.port);
        if node.host.is_empty() {
            continue;
        }
        if let Some(other) = addresses.insert(address.clone(), &node.name) {
            let flaw = Flaw::new(format!("{} is the address of node {} too", quoted(&address), quoted(other)));
            fields.problem("address", flaw.suggest("list each PostgreSQL instance once"), notes);
        }
    }
}

/// Two nodes of one name: whom a commit of a synchronous primary waited for could not be told.
fn streaming_names_differ(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let mut names = HashMap::new();
    for (fields, node) in t.nodes.iter().zip(&config.nodes) {
        let Some(other) = names.insert(node.application_name.to_lowercase(), &node.name) else { continue };
        // Equal names of nodes have their own problem.
        if !node.name.eq_ignore_ascii_case(other) {
            let flaw = Flaw::new(format!("{} is that of node {} too", quoted(&node.application_name), quoted(other)));
            fields.problem("application_name", flaw.suggest("let each node stream under its own name"), notes);
        }
    }
}

fn patroni_is_followed(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let ignored = config.cluster.failover != FailoverMode::Follow;
    for fields in t.nodes.iter().filter(|fields| ignored && fields.has("patroni_url")) {
        let flaw = Flaw::new("Patroni is asked only with [cluster] failover = \"follow\"");
        fields.warn("patroni_url", flaw.suggest("let only one of Patroni and pgregent promote"), notes);
    }
    let secured = |node: &NodeConfig| node.patroni_url.as_ref().is_some_and(|url| url.secured);
    if config.cluster.patroni_authorities.is_none() && !t.cluster.has("patroni_ca_file") {
        for (fields, _) in t.nodes.iter().zip(&config.nodes).filter(|(_, node)| secured(node)) {
            let flaw = Flaw::new("whoever answers over https has to be verified");
            fields.problem("patroni_url", flaw.suggest("add [cluster] patroni_ca_file"), notes);
        }
    } else if t.cluster.has("patroni_ca_file") && !config.nodes.iter().any(secured) {
        let flaw = Flaw::new("has no effect, because no patroni_url begins with https://");
        t.cluster.warn("patroni_ca_file", flaw.suggest("write one that does, or leave this out"), notes);
    }
}

fn names_without_roles(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    for (fields, node) in t.nodes.iter().zip(&config.nodes) {
        let name = node.name.to_lowercase();
        if let Some(word) = ROLE_WORDS.iter().find(|word| name.contains(*word)) {
            let flaw = Flaw::new(format!("{} holds \"{word}\", but roles move", quoted(&node.name)));
            fields.warn("name", flaw.suggest("name nodes after machines or numbers, such as \"pg1\""), notes);
        }
    }
}

fn not_our_own_address(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    for (fields, node) in t.nodes.iter().zip(&config.nodes) {
        let own = config.server.listen.iter().find(|listen| leads_to(node, listen));
        if let Some(listen) = own {
            let address = format_address(&node.host, node.port);
            let flaw = Flaw::new(format!("{} is pgregent itself, which listens on {listen}", quoted(&address)));
            fields.problem("address", flaw.suggest("let PostgreSQL or pgregent use another port"), notes);
        }
    }
}

/// Whether a connection to the node would end at this listener of ours.
fn leads_to(node: &NodeConfig, listen: &SocketAddr) -> bool {
    if listen.port() == 0 || listen.port() != node.port {
        return false;
    }
    let ip = if node.host.eq_ignore_ascii_case("localhost") {
        Some(IpAddr::from([127, 0, 0, 1]))
    } else {
        node.host.parse::<IpAddr>().ok()
    };
    ip.is_some_and(|ip| {
        ip == listen.ip() || (listen.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified()))
    })
}

fn somebody_may_be_promoted(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let automatic = config.cluster.failover == FailoverMode::Automatic;
    if automatic && config.nodes.len() > 1 && config.nodes.iter().all(|node| node.failover_priority == 0) {
        let flaw = Flaw::new("0 for all nodes: \"automatic\" failover would never find a candidate");
        t.nodes[0].problem("failover_priority", flaw.suggest("raise it on at least two nodes"), notes);
    }
}

fn voters_make_a_majority(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let cluster = &config.cluster;
    let mut names: Vec<&str> = config.nodes.iter().map(|node| &*node.name).collect();
    for (fields, witness) in t.witnesses.iter().zip(&cluster.witnesses) {
        if names.contains(&&*witness.name) {
            let flaw = Flaw::new(format!("{} is the name of another node or witness too", quoted(&witness.name)));
            fields.problem("name", flaw.suggest("give each its own name"), notes);
        }
        names.push(&witness.name);
    }
    if cluster.coordination != CoordinationKind::Voters {
        if let Some(fields) = t.witnesses.first() {
            let flaw = Flaw::new("a witness votes only with coordination = \"voters\"");
            fields.warn(
                "name",
                flaw.suggest("write coordination = \"voters\" in [cluster], or take the witness out"),
                notes,
            );
        }
        return;
    }
    let automatic = cluster.failover == FailoverMode::Automatic;
    if automatic && names.len() < VOTERS_MIN && !config.nodes.is_empty() {
        let text = "\"voters\" with two voters cannot tell a dead node from one that is cut off: one of two is no majority, and \
                    automatic failover could never begin";
        let suggestion =
            "add a third node or a [[witness]] (any small PostgreSQL server elsewhere), or write failover = \"manual\"";
        t.cluster.problem("coordination", Flaw::new(text).suggest(suggestion), notes);
    }
}

fn fencing_has_its_command(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    match (config.cluster.fencing, config.hooks.fence_command.is_empty()) {
        (Fencing::Command, true) => {
            let flaw = Flaw::new("\"command\" needs a program that turns nodes off");
            t.cluster.problem("fencing", flaw.suggest("write [hooks] fence_command = [\"…\"]"), notes);
        }
        (Fencing::Proxy, false) => {
            let flaw = Flaw::new("is never run, because [cluster] fencing is \"proxy\"");
            t.hooks.warn("fence_command", flaw.suggest("write [cluster] fencing = \"command\""), notes);
        }
        (Fencing::Command, false) | (Fencing::Proxy, true) => {}
    }
    if config.cluster.synchronous_standbys >= config.nodes.len().max(1) {
        let flaw = Flaw::new("more than there can be standbys: every commit would wait for ever");
        t.cluster.problem("synchronous_standbys", flaw.suggest("write less than the number of nodes"), notes);
    }
}

fn somebody_may_be_read(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    if !config.nodes.is_empty() && config.route.read_write_split && config.nodes.iter().all(|node| node.weight == 0) {
        let flaw = Flaw::new("0 for all nodes: none would be chosen for reads");
        let suggestion = "raise it on the nodes that may take reads, or write [route] read_write_split = false";
        t.nodes[0].problem("weight", flaw.suggest(suggestion), notes);
    }
}

fn some_node_is_in_our_zone(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let Some(zone) = &config.server.zone else { return };
    if config.nodes.iter().all(|node| node.zone.as_ref() != Some(zone)) {
        let flaw = Flaw::new(format!("{} is the zone of no node: every standby counts as far away", quoted(zone)));
        t.server.warn("zone", flaw.suggest("write the same zone for the [[node]] entries that stand there"), notes);
    }
}

fn probes_hurry_when_in_doubt(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let (usual, suspect) = (config.cluster.probe_interval, config.cluster.probe_suspect_interval);
    if suspect > usual {
        let told = (format_duration(suspect), format_duration(usual));
        let flaw = Flaw::new(format!("\"{}\" is longer than probe_interval, \"{}\"", told.0, told.1));
        let suggestion = format!("write probe_suspect_interval = \"{}\" or less", told.1);
        t.cluster.problem("probe_suspect_interval", flaw.suggest(suggestion), notes);
    }
}

fn pools_fit_nodes(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let (size, budget) = (config.pool.size, config.pool.node_budget);
    if size > budget {
        let flaw = Flaw::new(format!("{size} is more than node_budget, {budget}: the pool could never be full"));
        t.pool.problem("size", flaw.suggest(format!("write size = {budget} or less, or raise node_budget")), notes);
    }
    for (fields, node) in t.nodes.iter().zip(&config.nodes) {
        if fields.has("budget") && node.budget < size {
            let flaw = Flaw::new(format!("{} is less than [pool] size, {size}", node.budget));
            fields.problem(
                "budget",
                flaw.suggest(format!("write budget = {size} or more, or lower [pool] size")),
                notes,
            );
        }
    }
}

fn somebody_may_log_in(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let auth = &config.auth;
    // A source that is written but wrong is a problem of its own.
    // With rules a certificate may be enough.
    let named = ["hba_file", "user", "userlist", "auth_query"].iter().any(|key| t.auth.has(key));
    let sources = named || !t.users.is_empty();
    if auth.method != AuthMethod::Trust && !sources {
        let flaw = Flaw::new("nobody can log in: there is no [[auth.user]], no userlist and no auth_query");
        let suggestion = "add [[auth.user]] with name and password, or userlist, or auth_query";
        notes.problem(t.auth.at("method"), "[auth]", flaw.suggest(suggestion));
    }
    let open = config.server.listen.iter().any(|listen| !listen.ip().is_loopback());
    if auth.method == AuthMethod::Trust && auth.hba_file.is_none() && open {
        let flaw = Flaw::new("\"trust\" lets everybody in who reaches a [server] listen address");
        t.auth.warn("method", flaw.suggest("use \"scram-sha-256\", or listen on 127.0.0.1 only"), notes);
    }
}

fn redirects_make_sense(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let mut names = HashMap::new();
    for (fields, redirect) in t.redirects.iter().zip(&config.route.redirects) {
        if !redirect.name.is_empty() && names.insert(&redirect.name, ()).is_some() {
            let flaw = Flaw::new(format!("{} is the name of another redirect too", quoted(&redirect.name)));
            fields.problem("name", flaw.suggest("give each redirect its own name"), notes);
        }
        for name in redirect.nodes.iter().filter(|name| config.nodes.iter().all(|node| *node.name != ***name)) {
            let flaw = Flaw::new(format!("{} is no node", quoted(name)));
            let near = nearest(name, config.nodes.iter().map(|node| &*node.name));
            let suggestion = near.map_or_else(
                || "write names of [[node]] tables".to_owned(),
                |near| format!("did you mean \"{near}\"?"),
            );
            fields.problem("nodes", flaw.suggest(suggestion), notes);
        }
        let listens = |port: u16| config.server.listen.iter().any(|listen| listen.port() == port || listen.port() == 0);
        if let Some(port) = redirect.port.filter(|port| !listens(*port)) {
            let flaw = Flaw::new(format!("{port} is not a port of [server] listen"));
            fields.problem("port", flaw.suggest(format!("add \"0.0.0.0:{port}\" to [server] listen")), notes);
        }
    }
}

fn users_differ(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let mut names = HashMap::new();
    for (fields, user) in t.users.iter().zip(&config.auth.users) {
        if !user.name.is_empty() && names.insert(user.name.as_str(), ()).is_some() {
            let flaw = Flaw::new(format!("{} is listed twice", quoted(&user.name)));
            fields.problem("name", flaw.suggest("keep one"), notes);
        }
    }
}

/// What a stored secret is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Password,
    Md5,
    Scram,
    BrokenScram,
}

fn stored(secret: &Secret) -> Stored {
    let text = secret.expose();
    if let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") {
        return if is_scram(rest) { Stored::Scram } else { Stored::BrokenScram };
    }
    match text.strip_prefix("md5") {
        Some(hash) if hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => Stored::Md5,
        _ => Stored::Password,
    }
}

/// `iterations:salt$stored_key:server_key`, as in `pg_authid`.
fn is_scram(text: &str) -> bool {
    use base64::Engine;
    let bytes = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).map_or(0, |bytes| bytes.len());
    let Some((head, keys)) = text.split_once('$') else { return false };
    let (Some((iterations, salt)), Some((stored, server))) = (head.split_once(':'), keys.split_once(':')) else {
        return false;
    };
    iterations.parse::<u32>().is_ok_and(|count| count > 0)
        && bytes(salt) > 0
        && bytes(stored) == 32
        && bytes(server) == 32
}

fn secrets_fit_method(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    for (fields, user) in t.users.iter().zip(&config.auth.users) {
        let written = ["password", "password_file"].into_iter().find(|key| fields.has(key)).unwrap_or("password");
        let name = quoted(&user.name);
        match (config.auth.method, stored(&user.secret)) {
            (_, Stored::BrokenScram) => {
                let flaw = Flaw::new("begins as a stored SCRAM secret, but is not a whole one");
                fields.problem(written, flaw.suggest("copy rolpassword from pg_authid in full"), notes);
            }
            // Rules may ask each client for another method.
            _ if config.auth.hba_file.is_some() => {}
            (AuthMethod::Md5, Stored::Scram) => {
                let flaw = Flaw::new(format!("{name} has a SCRAM secret, which [auth] method \"md5\" cannot use"));
                fields.warn(written, flaw.suggest("write method = \"scram-sha-256\""), notes);
            }
            (AuthMethod::ScramSha256, Stored::Md5) => {
                let flaw =
                    Flaw::new(format!("{name} has an md5 secret, which [auth] method \"scram-sha-256\" cannot use"));
                fields.warn(
                    written,
                    flaw.suggest("store a SCRAM secret or the password, or write method = \"md5\""),
                    notes,
                );
            }
            _ => {}
        }
    }
}

fn rules_are_used(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    if config.auth.hba_file.is_some() && t.auth.has("method") {
        let flaw = Flaw::new("has no effect with hba_file, whose rules name methods");
        t.auth.warn("method", flaw.suggest("leave it out"), notes);
    }
    if config.auth.ident_file.is_some() && !t.auth.has("hba_file") {
        let flaw = Flaw::new("has no effect without hba_file, whose rules name maps");
        t.auth.warn("ident_file", flaw.suggest("add hba_file, or leave this out"), notes);
    }
}

fn auth_query_is_whole(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    match &config.auth.auth_query {
        Some(query) if !query.contains("$1") => {
            let flaw = Flaw::new("does not use $1, the name of the user who logs in");
            t.auth.problem("auth_query", flaw.suggest("add WHERE rolname = $1"), notes);
        }
        Some(_) => {}
        // Memberships that rules ask for are looked up as the role of auth_query, too.
        None if t.auth.has("hba_file") => {}
        None => {
            let idle =
                ["user", "password", "password_file", "database", "ttl"].map(|part| format!("auth_query_{part}"));
            for key in idle.iter().filter(|key| t.auth.has(key)) {
                let flaw = Flaw::new("has no effect without auth_query");
                t.auth.warn(key, flaw.suggest("add auth_query, or leave this out"), notes);
            }
        }
    }
}

fn admin_is_apart(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let Some(admin) = config.admin.listen else { return };
    if admin.port() != 0 {
        let same = config.server.listen.iter().any(|listen| {
            let overlap = listen.ip() == admin.ip() || listen.ip().is_unspecified() || admin.ip().is_unspecified();
            listen.port() == admin.port() && overlap
        });
        if same {
            let flaw = Flaw::new(format!("{admin} is taken by [server] listen"));
            t.admin.problem("listen", flaw.suggest("use another port, such as \"127.0.0.1:9187\""), notes);
        }
    }
}

fn functions_are_on_one_list(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let both = config.route.read_functions.iter().find(|name| config.route.write_functions.contains(name));
    if let Some(name) = both {
        let flaw = Flaw::new(format!("{} is in write_functions too", quoted(name)));
        t.route.problem("read_functions", flaw.suggest("keep it in one of them"), notes);
    }
}

fn etcd_is_whole(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let used = config.cluster.coordination == CoordinationKind::Etcd;
    if used && config.etcd.endpoints.is_empty() {
        let flaw = Flaw::new("missing, although [cluster] coordination is \"etcd\"");
        let suggestion = r#"write endpoints = ["http://10.0.0.31:2379", ...], all members of one etcd cluster"#;
        t.etcd.problem("endpoints", flaw.suggest(suggestion), notes);
    }
    if !used && t.etcd.has("endpoints") {
        let flaw = Flaw::new("has no effect without [cluster] coordination = \"etcd\"");
        t.etcd.warn("endpoints", flaw.suggest("write that, or leave [etcd] out"), notes);
    }
    if config.etcd.user.is_none() {
        for key in ["password", "password_file"].iter().filter(|key| t.etcd.has(key)) {
            let flaw = Flaw::new("has no effect without user");
            t.etcd.warn(key, flaw.suggest("add user, or leave this out"), notes);
        }
    }
}

fn etcd_is_reachable(t: &Tables<'_, '_>, config: &Config, notes: &mut Notes) {
    let endpoints = &config.etcd.endpoints;
    for (index, endpoint) in endpoints.iter().enumerate() {
        let flaw = if !is_client_url(endpoint) {
            Flaw::new(format!("{} is not a client URL of etcd", quoted(endpoint)))
                .suggest("write one such as \"http://10.0.0.31:2379\"")
        } else if endpoints[..index].contains(endpoint) {
            Flaw::new(format!("{} is listed twice", quoted(endpoint))).suggest("list each member once")
        } else if endpoint.starts_with("https://") && config.etcd.authorities.is_none() && !t.etcd.has("ca_file") {
            Flaw::new(format!("{} has to be verified", quoted(endpoint))).suggest("add ca_file")
        } else {
            continue;
        };
        t.etcd.problem("endpoints", flaw, notes);
    }
}

/// `http://host:port` or `https://host:port`, without a path.
fn is_client_url(endpoint: &str) -> bool {
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    let Some(rest) = rest else { return false };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let Some((host, port)) = rest.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let named = |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let addressed = bare.map_or_else(|| named(host), |ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
    addressed && port.parse::<u16>().is_ok_and(|port| port != 0)
}
