//! What the endpoints of etcd said, judged.
//!
//! Invariants: pure; of several endpoints in the same trouble each says so. Absent on purpose: asking them.

use super::{Finding, Other, Where};
use crate::config::Config;
use crate::coordination::etcd::inspect::{EndpointFacts, EndpointFault, prefix};
use std::collections::HashMap;

/// The oldest etcd that works: major and minor.
const VERSION_MIN: (u32, u32) = (3, 4);

type Visit = (String, Result<EndpointFacts, EndpointFault>);

/// One entry for each endpoint.
pub(super) fn judge(config: &Config, visits: &[Visit]) -> Vec<Other> {
    let mut clusters: HashMap<u64, usize> = HashMap::new();
    for facts in visits.iter().filter_map(|(_, visit)| visit.as_ref().ok()) {
        *clusters.entry(facts.cluster).or_default() += 1;
    }
    let usual = clusters.iter().max_by_key(|(cluster, count)| (**count, **cluster)).map(|(cluster, _)| *cluster);
    let judged = visits.iter().map(|(endpoint, visit)| {
        let (what, findings) = match visit {
            Ok(facts) => (format!("etcd {}", facts.version), answered(config, facts, usual)),
            Err(fault) => ("not usable".to_owned(), vec![faulty(config, fault)]),
        };
        Other { name: endpoint.clone(), state: format!("  {what}"), findings }
    });
    judged.collect()
}

fn answered(config: &Config, facts: &EndpointFacts, usual: Option<u64>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut numbers = facts.version.split('.').map(|part| part.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < VERSION_MIN {
        let text =
            format!("etcd {} is too old; {}.{} is the oldest that works", facts.version, VERSION_MIN.0, VERSION_MIN.1);
        findings.push(Finding::problem(text).fix(Where::Outside, "upgrade it"));
    }
    if usual.is_some_and(|usual| usual != facts.cluster) {
        let text = format!("it belongs to another etcd cluster ({:x}) than the other endpoints", facts.cluster);
        findings.push(Finding::problem(text).fix(Where::Outside, "take it out of [etcd] endpoints"));
    }
    let listed = config.etcd.endpoints.len();
    if let Some(members) = facts.members.filter(|members| *members > listed) {
        let text = format!(
            "this etcd has {members} members, and [etcd] endpoints lists {listed}: the others would not be asked"
        );
        findings.push(Finding::warning(text).fix(Where::Outside, "list the client URL of each: etcdctl member list"));
    }
    if facts.members.is_some_and(|members| members < 3) {
        let members = facts.members.unwrap_or_default();
        let text = format!("this etcd has {members} of the three members that survive the loss of one");
        findings.push(Finding::warning(text).fix(Where::Outside, "etcdctl member add"));
    }
    findings
}

fn faulty(config: &Config, fault: &EndpointFault) -> Finding {
    let prefix = prefix(config);
    let user = config.etcd.user.as_deref().unwrap_or("pgregent");
    let role = format!(
        "etcdctl role add pgregent; etcdctl role grant-permission pgregent --prefix=true readwrite {prefix}; \
         etcdctl user grant-role {user} pgregent"
    );
    match fault {
        EndpointFault::Unreachable(why) => {
            let look = "is etcd running there, do listen-client-urls and firewalls let this machine reach it?";
            Finding::problem(format!("no answer: {why}")).fix(Where::Outside, look)
        }
        EndpointFault::Tls(why) => {
            let look =
                "is [etcd] ca_file the authority of its certificate, and is a cert_file wanted (client-cert-auth)?";
            Finding::problem(format!("no TLS connection: {why}")).fix(Where::Outside, look)
        }
        EndpointFault::Login(why) => {
            let fix = match &config.etcd.user {
                Some(user) => format!("correct [etcd] password, or: etcdctl user add {user}; {role}"),
                None => format!("write [etcd] user and password; to make one: etcdctl user add {user}; {role}"),
            };
            Finding::problem(format!("login refused: {why}")).fix(Where::Outside, fix)
        }
        EndpointFault::Keys(why) => {
            let text = format!("keys below {prefix} may not be read and written: {why}");
            Finding::problem(text).fix(Where::Outside, role)
        }
        EndpointFault::Alone(why) => {
            let text = format!("it answers and cannot read or write: {why}");
            Finding::problem(text)
                .fix(Where::Outside, "most members must run and reach each other: etcdctl endpoint status --cluster")
        }
    }
}
