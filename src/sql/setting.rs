//! SET, RESET and SHOW: which setting, for how long, and may somebody else replay it.
//!
//! Invariants: names come out lower-case and canonical; what is not plainly "one ordinary setting of the session"
//! pins. Absent on purpose: values (the session replays the text), and whether the setting exists.

use std::sync::Arc;

use pg_query::NodeEnum;
use pg_query::protobuf::{DefElem, Node, SelectStmt, VariableSetKind, VariableSetStmt, VariableShowStmt};

use super::class::{Access, BeginOptions, Change, Isolation, PinReason, TxControl, Why};
use super::constants::{integer_constant, is_false, string_constant};
use super::statement::Verdict;
use super::walk::qualified;

/// Settings that give BEGIN without options its meaning, or change the running transaction.
const TX_DEFAULTS: [&str; 6] = [
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
];

/// Drivers ask some of these to find out whether they reached the primary; the others are set in each node's own
/// configuration file.
const NODE_LOCAL: [&str; 22] = [
    "archive_command",
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "in_hot_standby",
    "listen_addresses",
    "log_directory",
    "log_filename",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_min_apply_delay",
    "restore_command",
    "shared_memory_size",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_level",
];

/// SHOW of it tells what the session's reads elsewhere must show; the primary knows.
const CAUSAL_TOKEN: &str = "pgregent.causal_token";

/// Has a setting the same value on every node, as far as a session can tell? Settings that only a configuration file
/// can set are the node's own; those that the session can set are not told apart here by asking.
pub(super) fn is_shared(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let transaction = name.starts_with("transaction_") || name.starts_with("default_transaction_");
    !transaction && !NODE_LOCAL.contains(&name.as_str())
}

/// Is it one of the settings that decide what transactions are?
pub(super) fn is_tx_default(name: &str) -> bool {
    TX_DEFAULTS.contains(&name.to_ascii_lowercase().as_str())
}

/// Lower case, and the one name of those that have an old one as well.
fn canonical(name: &str) -> Arc<str> {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "sort_mem" => "work_mem".into(),
        "vacuum_mem" => "maintenance_work_mem".into(),
        _ => name.into(),
    }
}

/// SHOW: any node can answer, but for what differs between nodes on purpose.
pub(super) fn show(show: &VariableShowStmt) -> Verdict {
    if show.name.eq_ignore_ascii_case(CAUSAL_TOKEN) {
        let mut verdict = Verdict::new(Access::Write, Why::NodeLocalSetting);
        verdict.effects.shows_token = true;
        return verdict;
    }
    if !is_shared(&show.name) || show.name == "all" {
        return Verdict::new(Access::Write, Why::NodeLocalSetting);
    }
    Verdict::new(Access::Read, Why::Statement("show"))
}

/// SET in all its forms, and RESET.
pub(super) fn set(set: &VariableSetStmt) -> Verdict {
    let kind = VariableSetKind::try_from(set.kind).unwrap_or(VariableSetKind::Undefined);
    let resets =
        matches!(kind, VariableSetKind::VarSetDefault | VariableSetKind::VarReset | VariableSetKind::VarResetAll);
    let mut verdict = Verdict::new(Access::Write, Why::Statement(if resets { "reset" } else { "set" }));
    let name = canonical(&set.name);
    verdict.effects.changes_tx_defaults = is_tx_default(&name);
    match kind {
        VariableSetKind::VarSetMulti => return set_transaction(set, verdict),
        VariableSetKind::VarResetAll => verdict.effects.change = Change::ResetAll,
        _ if set.is_local => verdict.effects.change = Change::SetLocal { name: Some(name) },
        VariableSetKind::VarSetDefault | VariableSetKind::VarReset => verdict.effects.change = Change::Reset { name },
        VariableSetKind::VarSetValue
            if &*name == "role" && set.args.first().and_then(string_constant) == Some("none") =>
        {
            verdict.effects.change = Change::Reset { name };
        }
        // These last for the running transaction, however they are set.
        VariableSetKind::VarSetValue if is_tx_default(&name) && name.starts_with("transaction_") => {
            verdict.effects.change = Change::SetLocal { name: Some(name) };
        }
        VariableSetKind::VarSetValue if &*name == "seed" => verdict.effects.pins.insert(PinReason::RandomSeed),
        VariableSetKind::VarSetValue => verdict.effects.change = Change::Set { name },
        VariableSetKind::VarSetCurrent | VariableSetKind::Undefined => {
            verdict.effects.uncertain = true;
        }
    }
    verdict
}

/// SET TRANSACTION, SET TRANSACTION SNAPSHOT, SET SESSION CHARACTERISTICS.
fn set_transaction(set: &VariableSetStmt, mut verdict: Verdict) -> Verdict {
    verdict.effects.changes_tx_defaults = true;
    if set.name == "SESSION CHARACTERISTICS" {
        verdict.effects.change = Change::Characteristics(begin_options(&set.args));
    } else {
        verdict.effects.change = Change::SetLocal { name: None };
        verdict.tx = TxControl::Set(begin_options(&set.args));
    }
    verdict
}

/// The options of BEGIN, START TRANSACTION and SET TRANSACTION. Of a repeated one the last counts, as on the server.
pub(super) fn begin_options(options: &[Node]) -> BeginOptions {
    let mut found = BeginOptions::default();
    for option in options {
        let Some(NodeEnum::DefElem(option)) = &option.node else { continue };
        let DefElem { defnamespace: _, defname, arg, defaction: _, location: _, arg_location: _ } = &**option;
        let flag = || arg.as_ref().and_then(|arg| integer_constant(arg)).map(|value| value != 0);
        match defname.as_str() {
            "transaction_isolation" => {
                found.isolation = arg.as_ref().and_then(|arg| string_constant(arg)).map(isolation);
            }
            "transaction_read_only" => found.read_only = flag(),
            "transaction_deferrable" => found.deferrable = flag(),
            _ => {}
        }
    }
    found
}

fn isolation(level: &str) -> Isolation {
    match level {
        "read uncommitted" => Isolation::ReadUncommitted,
        "read committed" => Isolation::ReadCommitted,
        "repeatable read" => Isolation::RepeatableRead,
        // The strictest of all, so that a level we do not know is not run where it might be refused.
        _ => Isolation::Serializable,
    }
}

/// `SELECT set_config('name', 'value', false)` with nothing that could keep it from running once: as plain as a SET.
pub(super) fn plain_set_config(select: &SelectStmt) -> Option<Change> {
    let [target] = select.target_list.as_slice() else { return None };
    let Some(NodeEnum::ResTarget(target)) = &target.node else { return None };
    let bare = SelectStmt { target_list: select.target_list.clone(), ..SelectStmt::default() };
    let plain = SelectStmt { limit_option: select.limit_option, op: select.op, ..bare } == *select;
    let Some(NodeEnum::FuncCall(call)) = target.val.as_ref().and_then(|value| value.node.as_ref()) else { return None };
    let (schema, function) = qualified(&call.funcname);
    let ours = function == "set_config" && schema.is_none_or(|schema| schema == "pg_catalog");
    let [name, value, is_local] = call.args.as_slice() else { return None };
    if !plain || !ours || !is_false(is_local) || call.agg_filter.is_some() || call.over.is_some() {
        return None;
    }
    let name = canonical(string_constant(name)?);
    let value = string_constant(value)?;
    // These last for the running transaction, however they are set.
    (!(is_tx_default(&name) && name.starts_with("transaction_")))
        .then(|| Change::SetConfig { name, value: value.into() })
}
