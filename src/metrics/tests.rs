//! What scrapers read: every metric has its name, its help, and a bounded set of labels.

use super::*;
use crate::error::{ClientError, Fault, Retry, SqlState};

fn metrics() -> Arc<Metrics> {
    Metrics::new(&["pg1".into(), "pg2".into()], &["primary_write", "standby_read"])
}

/// Uses everything that appears only once used.
fn touch_all(metrics: &Metrics) {
    metrics.clients.replication_ends.inc("client_left");
    metrics.clients.logins.inc("ok");
    metrics.clients.cancels.inc("sent");
    metrics.clients.error(Fault::Node, "lost");
    metrics.control.failovers.inc("done");
    metrics.control.notices.inc("primary_lost");
    metrics.control.failover_state.show(&[("stable", 1)]);
    metrics.control.holds.show(&[("paused", 1)]);
    metrics.route.reruns.inc("read_only");
    metrics.route.reruns_refused.inc("conflict");
    metrics.route.trials.inc("moved");
    metrics.route.pins.handle("listen").inc();
    metrics.route.catalog_loads.inc("loaded");
    let node = metrics.node(NodeId(1));
    node.backend_connects.inc("ok");
    node.backend_discards.inc("lifetime");
    node.probes.inc("ok");
    node.connect_probes.inc("ok");
    node.patroni_answers.inc("leader");
    node.write_probes.inc("ok");
    node.ejections.inc("slow");
}

/// Dashboards and alerts rely on these names and types.
const NAMES: &str = "\
pgregent_accept_errors_total counter
pgregent_backend_connects_total counter
pgregent_backend_discards_total counter
pgregent_backends gauge
pgregent_build_info gauge
pgregent_bytes_total counter
pgregent_cancels_total counter
pgregent_catalog_loads_total counter
pgregent_catalogs gauge
pgregent_classify_cache_bytes gauge
pgregent_classify_cache_entries gauge
pgregent_classify_hits_total counter
pgregent_classify_misses_total counter
pgregent_client_errors_total counter
pgregent_clients gauge
pgregent_clients_waiting gauge
pgregent_connect_probe_seconds histogram
pgregent_connect_probes_total counter
pgregent_connect_seconds histogram
pgregent_connections_total counter
pgregent_ejections_total counter
pgregent_epoch gauge
pgregent_facts_dropped_total counter
pgregent_failover_paused gauge
pgregent_failover_seconds histogram
pgregent_failover_state gauge
pgregent_failovers_total counter
pgregent_fresh_age_seconds gauge
pgregent_hints_ignored_total counter
pgregent_holds gauge
pgregent_lag_bytes gauge
pgregent_learned_writes gauge
pgregent_lease_seconds gauge
pgregent_logins_total counter
pgregent_node_accepts_reads gauge
pgregent_node_ejected gauge
pgregent_node_in_flight gauge
pgregent_node_role gauge
pgregent_node_service gauge
pgregent_node_up gauge
pgregent_notices_total counter
pgregent_panics_total counter
pgregent_patroni_answers_total counter
pgregent_pins gauge
pgregent_probe_seconds histogram
pgregent_probes_total counter
pgregent_queue_wait_seconds histogram
pgregent_read_latency_seconds gauge
pgregent_replay_lag_seconds gauge
pgregent_replication_connections gauge
pgregent_replication_ends_total counter
pgregent_reruns_healed_total counter
pgregent_reruns_refused_total counter
pgregent_reruns_total counter
pgregent_route_total counter
pgregent_shadow_route_total counter
pgregent_state_asks_total counter
pgregent_statements_total counter
pgregent_transaction_seconds histogram
pgregent_trials_total counter
pgregent_waiters gauge
pgregent_write_probe_seconds histogram
pgregent_write_probes_total counter
pgregent_writes gauge
process_cpu_seconds_total counter
process_max_fds gauge
process_open_fds gauge
process_resident_memory_bytes gauge
process_start_time_seconds gauge
process_threads gauge
";

#[test]
fn names_and_types_are_the_published_ones() {
    let metrics = metrics();
    touch_all(&metrics);
    let types: String = metrics
        .render()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(types, NAMES);
}

#[test]
fn every_help_text_ends_with_a_unit_that_fits_the_name() {
    let metrics = metrics();
    touch_all(&metrics);
    let text = metrics.render();
    let mut seen = 0;
    for (name, help) in text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')) {
        let unit = help.strip_suffix(").").and_then(|help| help.rsplit_once('(')).map(|(_, unit)| unit);
        let unit = unit.unwrap_or_else(|| panic!("{name}: no unit at the end of {help:?}"));
        assert!(
            ["count", "seconds", "bytes", "clients", "backends", "sessions", "0 or 1"].contains(&unit),
            "{name}: {unit}"
        );
        for suffix in ["seconds", "bytes"] {
            assert_eq!(name.trim_end_matches("_total").ends_with(suffix), unit == suffix, "{name}: {unit}");
        }
        seen += 1;
    }
    assert_eq!(seen, NAMES.lines().count());
}

#[test]
fn every_enum_counts_under_its_own_label() {
    let metrics = metrics();
    let node = metrics.node(NodeId(0));
    for (step, class) in (1..).zip(Class::ALL) {
        node.statements(class).inc_by(step);
    }
    for (step, state) in (1..).zip(BackendState::ALL) {
        node.backends.set(state, step);
    }
    let directions = [Direction::FromClients, Direction::ToClients, Direction::FromNodes, Direction::ToNodes];
    for (step, direction) in (1..).zip(directions) {
        metrics.clients.bytes(direction).inc_by(step);
    }
    for (step, fault) in (1..).zip([Fault::Client, Fault::Node, Fault::Topology, Fault::Proxy]) {
        for _ in 0..step {
            metrics.clients.error(fault, "x");
        }
    }
    let reason = metrics.route.index_of("standby_read").unwrap();
    metrics.route.decided(NodeId(1), false, reason, false);
    metrics.route.decided(NodeId(1), true, reason, true);
    let text = metrics.render();
    for line in [
        r#"pgregent_statements_total{class="read",node="pg1"} 1"#,
        r#"pgregent_statements_total{class="write",node="pg1"} 2"#,
        r#"pgregent_statements_total{class="transaction",node="pg1"} 3"#,
        r#"pgregent_statements_total{class="other",node="pg1"} 4"#,
        r#"pgregent_backends{node="pg1",state="idle"} 1"#,
        r#"pgregent_backends{node="pg1",state="active"} 2"#,
        r#"pgregent_backends{node="pg1",state="connecting"} 3"#,
        r#"pgregent_backends{node="pg2",state="connecting"} 0"#,
        r#"pgregent_bytes_total{direction="from_clients"} 1"#,
        r#"pgregent_bytes_total{direction="to_clients"} 2"#,
        r#"pgregent_bytes_total{direction="from_nodes"} 3"#,
        r#"pgregent_bytes_total{direction="to_nodes"} 4"#,
        r#"pgregent_client_errors_total{fault="client",reason="x"} 1"#,
        r#"pgregent_client_errors_total{fault="node",reason="x"} 2"#,
        r#"pgregent_client_errors_total{fault="topology",reason="x"} 3"#,
        r#"pgregent_client_errors_total{fault="proxy",reason="x"} 4"#,
        r#"pgregent_route_total{class="read",node="pg1",reason="standby_read"} 0"#,
        r#"pgregent_route_total{class="read",node="pg2",reason="standby_read"} 1"#,
        r#"pgregent_shadow_route_total{class="write",node="pg2",reason="standby_read"} 1"#,
        r#"pgregent_shadow_route_total{class="read",node="pg2",reason="standby_read"} 0"#,
        r#"pgregent_lag_bytes{node="pg1"} NaN"#,
    ] {
        assert!(text.lines().any(|have| have == line), "missing: {line}\n{text}");
    }
}

#[test]
fn one_of_several_states_is_shown() {
    let metrics = metrics();
    let roles = |text: &str| -> Vec<String> {
        let of_pg1 = |line: &&str| line.starts_with(r#"pgregent_node_role{node="pg1""#) && line.ends_with(" 1");
        text.lines().filter(of_pg1).map(str::to_owned).collect()
    };
    metrics.node(NodeId(0)).show_role(NodeRole::Primary);
    metrics.node(NodeId(0)).show_role(NodeRole::Standby);
    assert_eq!(roles(&metrics.render()), [r#"pgregent_node_role{node="pg1",role="standby"} 1"#]);
    metrics.control.holds.show(&[("paused", 1), ("no_candidate", 2)]);
    metrics.control.holds.show(&[("no_candidate", 1)]);
    let text = metrics.render();
    assert!(text.contains(r#"pgregent_holds{kind="paused"} 0"#), "{text}");
    assert!(text.contains(r#"pgregent_holds{kind="no_candidate"} 1"#), "{text}");
    metrics.control.show_writes(WritesState::Open);
    metrics.control.show_writes(WritesState::Refused);
    let text = metrics.render();
    assert!(text.contains(r#"pgregent_writes{state="open"} 0"#), "{text}");
    assert!(text.contains(r#"pgregent_writes{state="refused"} 1"#), "{text}");
}

#[test]
fn a_moved_backend_is_counted_once() {
    let metrics = metrics();
    let gauges = &metrics.node(NodeId(0)).backends;
    gauges.moved(None, Some(BackendState::Connecting));
    gauges.moved(Some(BackendState::Connecting), Some(BackendState::Active));
    let counts = || BackendState::ALL.map(|state| gauges.gauge(state).get());
    assert_eq!(counts(), [0, 1, 0]);
    gauges.moved(Some(BackendState::Active), None);
    assert_eq!(counts(), [0, 0, 0]);
}

#[test]
fn a_guard_counts_while_it_lives() {
    let metrics = metrics();
    let first = metrics.clients.session();
    let second = metrics.clients.session();
    assert_eq!(metrics.clients.connected.get(), 2);
    drop(first);
    assert_eq!(metrics.clients.connected.get(), 1);
    drop(second);
    assert_eq!(metrics.clients.connected.get(), 0);
}

#[test]
fn label_values_are_bounded_and_nothing_is_lost() {
    let metrics = metrics();
    let extra = 7;
    for number in 0..REASONS_MAX + extra {
        let label: &'static str = format!("reason{number}").leak();
        metrics.clients.logins.inc(label);
        metrics.clients.logins.inc(label);
    }
    let text = metrics.render();
    let children = text.lines().filter(|line| line.starts_with("pgregent_logins_total{")).count();
    assert_eq!(children, REASONS_MAX + 1);
    assert!(text.contains(&format!("pgregent_logins_total{{result=\"{OTHER}\"}} {}", 2 * extra)), "{text}");
    assert!(text.contains("pgregent_logins_total{result=\"reason0\"} 2"), "{text}");
}

#[test]
fn a_failure_is_counted_by_its_own_answers() {
    struct Busy;
    impl Classify for Busy {
        fn fault(&self) -> Fault {
            Fault::Proxy
        }
        fn retry(&self) -> Retry {
            Retry::Later
        }
        fn client(&self) -> ClientError {
            ClientError::fatal(SqlState::TOO_MANY_CONNECTIONS, "busy")
        }
        fn label(&self) -> &'static str {
            "busy"
        }
    }
    let metrics = metrics();
    metrics.client_error(&Busy);
    assert!(metrics.render().contains(r#"pgregent_client_errors_total{fault="proxy",reason="busy"} 1"#));
}

#[test]
fn dropped_facts_only_grow() {
    let metrics = metrics();
    for total in [5, 5, 3, 9] {
        metrics.control.facts_dropped(total);
    }
    assert!(metrics.render().contains("pgregent_facts_dropped_total 9\n"));
}

#[test]
fn times_have_buckets_from_50_us_to_60_s() {
    let metrics = metrics();
    metrics.node(NodeId(0)).queue_wait_seconds.observe(0.000_07);
    let text = metrics.render();
    for line in [
        r#"pgregent_queue_wait_seconds_bucket{node="pg1",le="0.00005"} 0"#,
        r#"pgregent_queue_wait_seconds_bucket{node="pg1",le="0.0001"} 1"#,
        r#"pgregent_queue_wait_seconds_bucket{node="pg1",le="60"} 1"#,
    ] {
        assert!(text.contains(line), "missing: {line}\n{text}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_is_measured() {
    let metrics = metrics();
    let text = metrics.render();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing")).parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_open_fds") >= 3.0);
    assert!(value("process_max_fds") >= value("process_open_fds"));
    assert!(value("process_threads") >= 1.0);
    assert!(value("process_start_time_seconds") > 1.6e9);
}
