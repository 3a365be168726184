//! One rule per statement kind: what it may do and what it leaves behind.
//!
//! Invariants: a kind without a rule is a write, and its text is searched for words that pin (`examined` is false).
//! A new kind is a new arm in [`rule`]. Absent on purpose: strings of several statements (`classifier`), settings
//! (`setting`), expressions (`walk`).

use std::sync::Arc;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    CallStmt, CopyStmt, CreateStmt, CreateTableAsStmt, DeallocateStmt, DeclareCursorStmt, DefElem, DiscardMode,
    DiscardStmt, ExecuteStmt, ExplainStmt, Node, ObjectType, OnCommitAction, TransactionStmt, TransactionStmtKind,
    UnlistenStmt,
};

use super::class::{Access, Change, Effects, Names, PinReason, TxControl, Why};
use super::constants::{integer_constant, string_constant};
use super::functions::FunctionLists;
use super::label::label;
use super::setting;
use super::walk::Walk;

/// WITH HOLD among the option bits of DECLARE (`CURSOR_OPT_HOLD` in PostgreSQL's `parsenodes.h`).
const CURSOR_OPTION_HOLD: i32 = 0x0020;

/// The class of one statement.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub access: Access,
    pub why: Why,
    pub tx: TxControl,
    pub effects: Effects,
    /// False: parts of it were not looked into.
    pub examined: bool,
    /// Functions that nobody vouches for.
    pub functions: Vec<Arc<str>>,
    /// It is a write whatever a catalog says.
    pub certain: bool,
    /// What a catalog may know more about.
    pub names: Names,
}

impl Verdict {
    pub fn new(access: Access, why: Why) -> Self {
        Self {
            access,
            why,
            tx: TxControl::None,
            effects: Effects::default(),
            examined: true,
            functions: Vec::new(),
            certain: access == Access::Write,
            names: Names::default(),
        }
    }

    fn write(statement: &NodeEnum) -> Self {
        Self::new(Access::Write, Why::Statement(label(statement)))
    }

    fn pinned(statement: &NodeEnum, reason: PinReason) -> Self {
        let mut verdict = Self::write(statement);
        verdict.effects.pins.insert(reason);
        verdict
    }

    fn that_releases(mut self) -> Self {
        self.effects.releases = true;
        self
    }

    fn changes(statement: &NodeEnum, change: Change) -> Self {
        let mut verdict = Self::write(statement);
        verdict.effects.change = change;
        verdict
    }

    /// The findings of a walk; without an objection it is a read, called `name`.
    fn of_walk(walk: Walk<'_>, name: &'static str) -> Self {
        let mut verdict = match walk.objection {
            None => Self::new(Access::Read, Why::Statement(name)),
            Some(why) => {
                let examined = why != Why::UnknownSyntax;
                Self { examined, ..Self::new(Access::Write, why) }
            }
        };
        verdict.certain = walk.certain;
        verdict.names = walk.names;
        verdict.functions = walk.functions;
        verdict.effects.pins = walk.pins;
        verdict.effects.changes_tx_defaults = walk.changes_tx_defaults;
        verdict.effects.uncertain = walk.uncertain;
        verdict.effects.releases = walk.releases;
        verdict.effects.sequences = walk.sequences;
        verdict.effects.shows_statements = walk.shows_statements;
        verdict.effects.signals = walk.signals;
        if walk.sets_local {
            verdict.effects.change = Change::SetLocal { name: None };
        }
        verdict
    }
}

/// The class of a statement, however it is nested in EXPLAIN, COPY or PREPARE.
pub(super) fn rule(statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    let mut verdict = access_and_effects(statement, lists);
    verdict.effects.schema = may_change_schema(statement);
    verdict.effects.code = verdict.effects.schema && may_change_code(statement);
    verdict.effects.vacates = vacated(statement);
    verdict.effects.logins = changes_logins(statement);
    verdict
}

/// The database that must have no other sessions: PostgreSQL refuses these statements otherwise (55006).
fn vacated(statement: &NodeEnum) -> Option<Arc<str>> {
    let database = ObjectType::ObjectDatabase as i32;
    match statement {
        NodeEnum::DropdbStmt(drop) => Some(drop.dbname.as_str().into()),
        NodeEnum::AlterDatabaseStmt(alter) => Some(alter.dbname.as_str().into()),
        NodeEnum::RenameStmt(rename) if rename.rename_type == database => Some(rename.subname.as_str().into()),
        NodeEnum::CreatedbStmt(create) => {
            let named = create.options.iter().find_map(|option| match &option.node {
                Some(NodeEnum::DefElem(option)) if option.defname == "template" => match &option.arg.as_ref()?.node {
                    Some(NodeEnum::String(name)) => Some(name.sval.as_str()),
                    _ => None,
                },
                _ => None,
            });
            Some(named.unwrap_or("template1").into())
        }
        _ => None,
    }
}

/// Does it change who may log in, or the settings that sessions begin with?
fn changes_logins(statement: &NodeEnum) -> bool {
    match statement {
        NodeEnum::AlterRoleStmt(_)
        | NodeEnum::AlterRoleSetStmt(_)
        | NodeEnum::DropRoleStmt(_)
        | NodeEnum::AlterDatabaseStmt(_)
        | NodeEnum::AlterDatabaseSetStmt(_)
        | NodeEnum::AlterSystemStmt(_)
        | NodeEnum::DropdbStmt(_) => true,
        NodeEnum::RenameStmt(rename) => {
            [ObjectType::ObjectDatabase as i32, ObjectType::ObjectRole as i32].contains(&rename.rename_type)
        }
        _ => false,
    }
}

/// May it change what functions and triggers do? Kinds that cannot, and are frequent, are named.
fn may_change_code(statement: &NodeEnum) -> bool {
    !matches!(
        statement,
        NodeEnum::CreateStmt(_)
            | NodeEnum::CreateTableAsStmt(_)
            | NodeEnum::SelectStmt(_)
            | NodeEnum::IndexStmt(_)
            | NodeEnum::ReindexStmt(_)
            | NodeEnum::CreateSeqStmt(_)
            | NodeEnum::AlterSeqStmt(_)
            | NodeEnum::ViewStmt(_)
            | NodeEnum::RefreshMatViewStmt(_)
            | NodeEnum::CommentStmt(_)
            | NodeEnum::GrantStmt(_)
            | NodeEnum::GrantRoleStmt(_)
            | NodeEnum::CallStmt(_)
            | NodeEnum::ClusterStmt(_)
            | NodeEnum::DiscardStmt(_)
    )
}

/// May it change what names and types mean? Whatever is not plainly something else.
fn may_change_schema(statement: &NodeEnum) -> bool {
    match statement {
        NodeEnum::SelectStmt(select) => select.into_clause.is_some(),
        NodeEnum::InsertStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::MergeStmt(_)
        | NodeEnum::CopyStmt(_)
        | NodeEnum::ExplainStmt(_)
        | NodeEnum::DeclareCursorStmt(_)
        | NodeEnum::FetchStmt(_)
        | NodeEnum::ClosePortalStmt(_)
        | NodeEnum::VariableShowStmt(_)
        | NodeEnum::VariableSetStmt(_)
        | NodeEnum::ConstraintsSetStmt(_)
        | NodeEnum::TransactionStmt(_)
        | NodeEnum::DeallocateStmt(_)
        | NodeEnum::PrepareStmt(_)
        | NodeEnum::ExecuteStmt(_)
        | NodeEnum::ListenStmt(_)
        | NodeEnum::NotifyStmt(_)
        | NodeEnum::UnlistenStmt(_)
        | NodeEnum::LoadStmt(_)
        | NodeEnum::LockStmt(_)
        | NodeEnum::TruncateStmt(_)
        | NodeEnum::VacuumStmt(_)
        | NodeEnum::CheckPointStmt(_) => false,
        NodeEnum::DiscardStmt(discard) => {
            matches!(discarded(discard), Change::DiscardAll | Change::DiscardTemp | Change::DiscardPlans)
        }
        _ => true,
    }
}

fn access_and_effects(statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    match statement {
        NodeEnum::SelectStmt(select) => {
            let mut walk = Walk::new(lists);
            walk.select(select);
            let mut verdict = Verdict::of_walk(walk, "select");
            if let Some(change) = setting::plain_set_config(select) {
                verdict.effects.change = change;
                verdict.effects.uncertain = false;
            }
            verdict
        }
        NodeEnum::InsertStmt(_) | NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_) | NodeEnum::MergeStmt(_) => {
            let mut walk = Walk::new(lists);
            walk.modifying(statement);
            Verdict::of_walk(walk, label(statement))
        }
        NodeEnum::CopyStmt(copy) => self::copy(copy, statement, lists),
        NodeEnum::ExplainStmt(explain) => self::explain(explain, statement, lists),
        NodeEnum::DeclareCursorStmt(declare) => self::declare(declare, lists),
        NodeEnum::VariableShowStmt(show) => setting::show(show),
        NodeEnum::VariableSetStmt(set) => setting::set(set),
        NodeEnum::ConstraintsSetStmt(_) => Verdict::changes(statement, Change::SetLocal { name: None }),
        NodeEnum::TransactionStmt(control) => self::transaction(control),
        NodeEnum::DiscardStmt(discard) => Verdict::changes(statement, self::discarded(discard)).that_releases(),
        NodeEnum::DeallocateStmt(DeallocateStmt { name, isall, location: _ }) => {
            let all = *isall || name.is_empty();
            let change = if all { Change::DeallocateAll } else { Change::Deallocate { name: name.as_str().into() } };
            Verdict::changes(statement, change)
        }
        NodeEnum::PrepareStmt(prepare) => {
            Verdict::changes(statement, Change::Prepare { name: prepare.name.as_str().into() })
        }
        NodeEnum::ExecuteStmt(execute) => self::execute(execute, statement, lists),
        NodeEnum::ListenStmt(_) => Verdict::pinned(statement, PinReason::Listen),
        NodeEnum::UnlistenStmt(UnlistenStmt { conditionname }) if conditionname.is_empty() => {
            let mut verdict = Verdict::changes(statement, Change::UnlistenAll);
            verdict.effects.releases = true;
            verdict
        }
        NodeEnum::LoadStmt(_) => Verdict::pinned(statement, PinReason::Load),
        NodeEnum::CallStmt(call) => self::call(call, statement, lists),
        NodeEnum::DoStmt(_) => {
            let mut verdict = Verdict { examined: false, ..Verdict::write(statement) };
            verdict.effects.uncertain = true;
            verdict.effects.releases = true;
            verdict
        }
        NodeEnum::DropStmt(_) | NodeEnum::ClosePortalStmt(_) | NodeEnum::UnlistenStmt(_) => {
            Verdict::write(statement).that_releases()
        }
        NodeEnum::CreateStmt(create) => self::create(create, statement, lists),
        NodeEnum::CreateTableAsStmt(create) => self::create_as(create, statement, lists),
        NodeEnum::ViewStmt(view) => self::created(statement, view.view.as_ref(), lists),
        NodeEnum::CreateSeqStmt(sequence) => self::created(statement, sequence.sequence.as_ref(), lists),
        // These hold no expressions at all.
        NodeEnum::FetchStmt(_)
        | NodeEnum::LockStmt(_)
        | NodeEnum::NotifyStmt(_)
        | NodeEnum::TruncateStmt(_)
        | NodeEnum::VacuumStmt(_)
        | NodeEnum::CheckPointStmt(_) => Verdict::write(statement),
        _ => Verdict { examined: false, ..Verdict::write(statement) },
    }
}

fn inner(statement: &Option<Box<Node>>) -> Option<&NodeEnum> {
    statement.as_ref().and_then(|node| node.node.as_ref())
}

/// CALL: a procedure is judged like a function.
fn call(call: &CallStmt, statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    let mut walk = Walk::new(lists);
    walk.object(Why::Statement(label(statement)));
    call.funccall.iter().for_each(|call| walk.call(call));
    let mut verdict = Verdict::of_walk(walk, label(statement));
    verdict.effects.releases = true;
    verdict
}

/// EXECUTE: what it runs was looked at when it was prepared, by whoever did that.
fn execute(execute: &ExecuteStmt, statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    let mut walk = Walk::new(lists);
    walk.nodes(&execute.params);
    let mut verdict = Verdict::of_walk(walk, "execute");
    verdict.access = Access::Write;
    verdict.certain = true;
    verdict.why = Why::Statement(label(statement));
    verdict.effects.change = Change::Execute { name: execute.name.as_str().into() };
    verdict
}

/// COPY: to the client it reads what it copies; to a file or a program it writes on the node it runs on.
fn copy(copy: &CopyStmt, statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    let mut verdict = match inner(&copy.query) {
        Some(query) => within(rule(query, lists), query),
        None => {
            let mut walk = Walk::new(lists);
            copy.relation.iter().for_each(|relation| walk.relation(relation));
            walk.maybe(&copy.where_clause);
            Verdict::of_walk(walk, "copy")
        }
    };
    if copy.is_from || copy.is_program || !copy.filename.is_empty() {
        verdict.access = Access::Write;
        verdict.certain = true;
        verdict.why = Why::Statement(label(statement));
    } else if verdict.access == Access::Read {
        verdict.why = Why::Statement("copy");
    }
    verdict
}

/// A write inside another statement says what it is.
fn within(mut verdict: Verdict, query: &NodeEnum) -> Verdict {
    if matches!(verdict.why, Why::Statement(_)) && verdict.access == Access::Write {
        verdict.why = Why::Modifies(label(query));
    }
    verdict
}

/// EXPLAIN only plans, whatever it is given; EXPLAIN ANALYZE runs it.
fn explain(explain: &ExplainStmt, statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    let Some(query) = inner(&explain.query) else { return Verdict::write(statement) };
    if explain.options.iter().any(turns_analyze_on) {
        let mut verdict = within(rule(query, lists), query);
        if verdict.access == Access::Read {
            verdict.why = Why::Statement("explain analyze");
        }
        return verdict;
    }
    match query {
        NodeEnum::SelectStmt(_)
        | NodeEnum::InsertStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::MergeStmt(_)
        | NodeEnum::DeclareCursorStmt(_) => {
            // Relations that exist on one backend or mean one node still send it to the primary; so do those of which
            // the catalog says so.
            let explained = rule(query, lists);
            if let Why::Relation(_) = explained.why {
                return Verdict::new(Access::Write, explained.why);
            }
            let names = Names { unknown: Vec::new(), taken: Vec::new(), ..explained.names };
            Verdict { names, ..Verdict::new(Access::Read, Why::Statement("explain")) }
        }
        // What it explains is looked up by name, as if it ran.
        NodeEnum::ExecuteStmt(_) => within(rule(query, lists), query),
        _ => within(Verdict::write(query), query),
    }
}

/// Is it ANALYZE, and not plainly turned off? PostgreSQL lets the last of several count; we let any that turns it on.
fn turns_analyze_on(option: &Node) -> bool {
    let Some(NodeEnum::DefElem(option)) = &option.node else { return true };
    let DefElem { defnamespace: _, defname, arg, defaction: _, location: _, arg_location: _ } = &**option;
    if defname != "analyze" {
        return false;
    }
    let Some(arg) = arg else { return true };
    let word = match &arg.node {
        Some(NodeEnum::String(string)) => Some(string.sval.as_str()),
        Some(NodeEnum::Boolean(boolean)) => return boolean.boolval,
        Some(NodeEnum::Integer(integer)) => return integer.ival != 0,
        _ => string_constant(arg),
    };
    let is_off = word.is_some_and(|word| word.eq_ignore_ascii_case("off") || word.eq_ignore_ascii_case("false"));
    !is_off && integer_constant(arg) != Some(0)
}

/// DECLARE runs with its transaction; WITH HOLD outlives it on the backend.
fn declare(declare: &DeclareCursorStmt, lists: &FunctionLists) -> Verdict {
    let mut walk = Walk::new(lists);
    walk.maybe(&declare.query);
    if declare.options & CURSOR_OPTION_HOLD != 0 {
        walk.object(Why::Statement("declare cursor with hold"));
        walk.pins.insert(PinReason::WithHoldCursor);
    }
    Verdict::of_walk(walk, "declare cursor")
}

fn transaction(control: &TransactionStmt) -> Verdict {
    let TransactionStmt { kind, options, savepoint_name, gid: _, chain, location: _ } = control;
    let name = || savepoint_name.as_str().into();
    let (tx, name) = match TransactionStmtKind::try_from(*kind).unwrap_or(TransactionStmtKind::Undefined) {
        TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart => {
            (TxControl::Begin(setting::begin_options(options)), "begin")
        }
        TransactionStmtKind::TransStmtCommit => (TxControl::Commit { chain: *chain }, "commit"),
        TransactionStmtKind::TransStmtRollback => (TxControl::Rollback { chain: *chain }, "rollback"),
        TransactionStmtKind::TransStmtSavepoint => (TxControl::Savepoint(name()), "savepoint"),
        TransactionStmtKind::TransStmtRelease => (TxControl::Release(name()), "release"),
        TransactionStmtKind::TransStmtRollbackTo => (TxControl::RollbackTo(name()), "rollback to"),
        TransactionStmtKind::TransStmtPrepare => (TxControl::PrepareTransaction, "prepare transaction"),
        TransactionStmtKind::TransStmtCommitPrepared => (TxControl::CommitPrepared, "commit prepared"),
        TransactionStmtKind::TransStmtRollbackPrepared => (TxControl::RollbackPrepared, "rollback prepared"),
        TransactionStmtKind::Undefined => (TxControl::Mixed, "transaction control"),
    };
    Verdict { tx, ..Verdict::new(Access::Write, Why::Statement(name)) }
}

fn discarded(discard: &DiscardStmt) -> Change {
    match DiscardMode::try_from(discard.target).unwrap_or(DiscardMode::Undefined) {
        DiscardMode::DiscardPlans => Change::DiscardPlans,
        DiscardMode::DiscardSequences => Change::DiscardSequences,
        DiscardMode::DiscardTemp => Change::DiscardTemp,
        DiscardMode::DiscardAll | DiscardMode::Undefined => Change::DiscardAll,
    }
}

/// A statement that creates a relation and runs nothing.
fn created(statement: &NodeEnum, relation: Option<&pg_query::protobuf::RangeVar>, lists: &FunctionLists) -> Verdict {
    let mut walk = Walk::new(lists);
    walk.created(relation);
    let mut verdict = Verdict::write(statement);
    verdict.effects.pins = walk.pins;
    verdict
}

/// CREATE TABLE: a temporary one that is dropped at commit leaves nothing.
fn create(create: &CreateStmt, statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    if drops_on_commit(create.oncommit) {
        return Verdict::write(statement);
    }
    created(statement, create.relation.as_ref(), lists)
}

/// CREATE TABLE AS and CREATE MATERIALIZED VIEW run their query.
fn create_as(create: &CreateTableAsStmt, statement: &NodeEnum, lists: &FunctionLists) -> Verdict {
    let into = create.into.as_deref().filter(|into| !drops_on_commit(into.on_commit));
    let mut verdict = created(statement, into.and_then(|into| into.rel.as_ref()), lists);
    if let Some(query) = inner(&create.query) {
        let of_query = rule(query, lists);
        verdict.effects.pins = verdict.effects.pins.union(of_query.effects.pins);
        verdict.effects.changes_tx_defaults |= of_query.effects.changes_tx_defaults;
        verdict.effects.uncertain |= of_query.effects.uncertain;
        verdict.effects.releases |= of_query.effects.releases;
        verdict.effects.sequences = verdict.effects.sequences.max(of_query.effects.sequences);
        verdict.examined &= of_query.examined;
        verdict.functions = of_query.functions;
        if let Change::Execute { .. } = of_query.effects.change {
            verdict.effects.change = of_query.effects.change;
        }
    }
    verdict
}

fn drops_on_commit(on_commit: i32) -> bool {
    on_commit == OnCommitAction::OncommitDrop as i32
}
