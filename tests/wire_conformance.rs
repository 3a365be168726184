//! The proxy speaks the protocol as PostgreSQL does: every conversation is held with the primary
//! itself and through proxies, and the records must be equal line by line.
//!
//! Three ways lead through a proxy: directly, from a client whose bytes arrive one at a time, and to
//! nodes whose bytes arrive one at a time. Reads and writes are split over one primary and two
//! standbys all the while. Absent on purpose: expected answers written by hand.

#![allow(clippy::disallowed_methods, reason = "tests measure real time")]
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod support;

#[path = "wire_conformance/anytime.rs"]
mod anytime;
#[path = "wire_conformance/bulk.rs"]
mod bulk;
#[path = "wire_conformance/copy.rs"]
mod copy;
#[path = "wire_conformance/extended.rs"]
mod extended;
#[path = "wire_conformance/flow.rs"]
mod flow;
#[path = "wire_conformance/handshake.rs"]
mod handshake;
#[path = "wire_conformance/isolation.rs"]
mod isolation;
#[path = "wire_conformance/nasty.rs"]
mod nasty;
#[path = "wire_conformance/sharing.rs"]
mod sharing;
#[path = "wire_conformance/simple.rs"]
mod simple;
#[path = "wire_conformance/state.rs"]
mod state;

use std::sync::LazyLock;
use support::cluster;
use support::fakenode::ChaosNode;
use support::proxy::{Proxy, ProxySpec};
use support::script::{Script, difference};

/// The proxy that most conversations share, in front of the shared cluster.
static PROXY: LazyLock<Proxy> = LazyLock::new(|| ProxySpec::in_front_of(cluster::shared()).start_splitting());

/// In front of the proxy: a client whose bytes arrive one at a time.
static CHOPPED_CLIENT: LazyLock<ChaosNode> = LazyLock::new(|| ChaosNode::chopping(PROXY.port));

/// A proxy in front of nodes whose bytes arrive one at a time.
static CHOPPED_NODES: LazyLock<(Vec<ChaosNode>, Proxy)> = LazyLock::new(|| {
    let nodes: Vec<ChaosNode> = cluster::shared().ports.iter().map(|port| ChaosNode::chopping(*port)).collect();
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    // Each byte of a probe's answer is its own packet: give the monitor time.
    let spec = ProxySpec::new(&ports).set("cluster.probe_timeout", "\"5s\"");
    (nodes, spec.start_splitting())
});

/// A proxy whose transactions begin on standbys and move to the primary with their first write.
static OPTIMISTIC: LazyLock<Proxy> = LazyLock::new(|| {
    ProxySpec::in_front_of(cluster::shared()).set("route.optimistic_transactions", "true").start_splitting()
});

/// Holds one conversation with everyone and compares.
fn compare(name: &str, conversation: fn(&mut Script)) {
    let hold = |port: u16, side: char| {
        let mut script = Script::new(port, side);
        conversation(&mut script);
        script.into_lines()
    };
    let expected = hold(cluster::shared().primary(), 'a');
    assert!(expected.len() > 1, "{name} says nothing");
    let peers = [
        ("proxy", PROXY.port, 'b'),
        ("chopped client", CHOPPED_CLIENT.port, 'c'),
        ("chopped nodes", CHOPPED_NODES.1.port, 'd'),
        ("optimistic proxy", OPTIMISTIC.port, 'e'),
    ];
    for (peer, port, side) in peers {
        let found = hold(port, side);
        PROXY.assert_no_panic();
        CHOPPED_NODES.1.assert_no_panic();
        OPTIMISTIC.assert_no_panic();
        if let Some(difference) = difference(&expected, &found) {
            panic!("{name}, {peer} (- PostgreSQL, + {peer}):\n{difference}");
        }
    }
}

macro_rules! conversations {
    ($($module:ident: $($name:ident)*;)*) => { $(mod $module { $(
        #[test]
        fn $name() {
            crate::compare(stringify!($name), crate::$module::$name);
        }
    )* })* };
}

mod conversation {
    conversations! {
        simple: plain_queries multi_statement empty_queries errors notices transactions transaction_modes settings
            session_state listen_notify big_results read_your_writes function_calls;
        extended: one_batch named_statements statements_in_transactions unnamed_statement many_statements
            errors_skip_to_sync portals several_syncs_in_one_write simple_and_extended_mixed flush_without_sync
            writes_and_transactions big_parameters session_settings;
        nasty: errors_at_every_step names_that_clash deallocate deallocate_extended portals_across_syncs flush_batches
            leaving_in_mid_batch many_syncs long_names settings_in_transactions messages_in_the_wrong_state;
        copy: copy_in copy_in_transactions copy_out copy_extended copy_large copy_messages_without_copy query_during_copy;
        state: set_and_reset several_in_one_text in_transactions set_config_in_all_forms roles characteristics
            startup_settings prepared_by_sql prepared_by_both what_cannot_move sequences schema_changes told_columns
            invisible_changes view_of_prepared;
        flow: pipeline_errors implicit_transactions copy_in_pipelines copy_with_syncs notices function_calls_and_errors two_phase
            large_objects in_a_failed_transaction portals_with_limits;
        anytime: notifications cancel_requests terminate_anywhere;
    }
}

/// The comparison itself can fail: two conversations that differ in one value, one line, one order.
#[test]
fn a_difference_is_seen() {
    let lines = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let expected = lines(&["D 1", "C SELECT 1", "Z I"]);
    assert_eq!(difference(&expected, &expected), None);
    for found in [&["D 2", "C SELECT 1", "Z I"][..], &["D 1", "C SELECT 1"], &["C SELECT 1", "D 1", "Z I"]] {
        assert!(difference(&expected, &lines(found)).is_some());
    }
    let (mut one, mut two) =
        (Script::new(cluster::shared().primary(), 'a'), Script::new(cluster::shared().primary(), 'b'));
    one.query("SELECT 1");
    two.query("SELECT 2");
    assert!(difference(&one.into_lines(), &two.into_lines()).is_some());
}

/// A client that splits its bytes is understood by PostgreSQL itself: the harness is sound.
#[test]
fn the_chopper_changes_nothing() {
    let chopped = ChaosNode::chopping(cluster::shared().primary());
    for conversation in [simple::plain_queries, extended::errors_skip_to_sync, copy::copy_in] {
        let [whole, pieces] = [(cluster::shared().primary(), 'x'), (chopped.port, 'y')].map(|(port, side)| {
            let mut script = Script::new(port, side);
            conversation(&mut script);
            script.into_lines()
        });
        assert_eq!(difference(&whole, &pieces), None);
    }
}
