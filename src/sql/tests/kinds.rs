//! Every kind of statement that the grammar has: at least one row each, with its class, all its effects and its reason.
//!
//! The lists of kinds below must name every node of the grammar, or this does not compile: a kind that a new version
//! brings has to be put in one of them, and then needs a row.

use std::collections::BTreeSet;

use pg_query::NodeEnum;

use super::super::grammar;
use super::super::label::{UNNAMED, label};
use super::super::*;
use super::rows::{classifier, describe};

/// Text, class and effects, reason.
const ROWS: &[(&str, &str, &str)] = &[
    ("select a from t where id = $1", "read", "select"),
    ("insert into t values (1) returning with (old as o, new as n) o.a, n.a", "write", "insert"),
    ("insert into t select 1 on conflict do nothing", "write", "insert"),
    ("update t set a = 1 where current of c returning old.a, new.a", "write", "update"),
    ("delete from t returning with (old as o) o.*", "write", "delete"),
    (
        "merge into t using u on t.id = u.id when not matched by source then delete returning merge_action(), old.a",
        "write",
        "merge",
    ),
    ("select a from t for update", "write", "locks rows"),
    ("select into u from t", "write schema", "select into"),
    ("create schema s create table t (a int)", "write schema code", "create schema"),
    ("alter table t add column b int generated always as (a * 2) virtual", "write schema code", "alter table"),
    ("alter table t add constraint c check (a > 0) not enforced", "write schema code", "alter table"),
    ("alter table t alter constraint c not enforced", "write schema code", "alter table"),
    ("alter table t add constraint c not null a not valid", "write schema code", "alter table"),
    ("alter table t add primary key (id, valid_at without overlaps)", "write schema code", "alter table"),
    (
        "alter table t add foreign key (id, period valid_at) references u (id, period valid_at)",
        "write schema code",
        "alter table",
    ),
    ("alter table t set unlogged", "write schema code", "alter table"),
    ("alter table all in tablespace a set tablespace b", "write schema code", "alter table"),
    ("alter index i attach partition j", "write schema code", "alter table"),
    ("alter view v alter a set default 1", "write schema code", "alter table"),
    ("alter materialized view m set (fillfactor = 70)", "write schema code", "alter table"),
    ("alter foreign table t options (add a '1')", "write schema code", "alter table"),
    ("alter type ty add attribute b int", "write schema code", "alter table"),
    ("alter collation c refresh version", "write schema code", "alter collation"),
    ("alter domain d set default 5", "write schema code", "alter domain"),
    ("alter default privileges grant select on large objects to r", "write schema code", "alter default privileges"),
    ("grant select on t to r", "write schema", "grant or revoke"),
    ("revoke all on schema s from r cascade", "write schema", "grant or revoke"),
    ("grant a to b with inherit true", "write schema", "grant or revoke"),
    ("copy t to stdout", "read", "copy"),
    ("copy t from stdin (on_error ignore, reject_limit 5)", "write", "copy"),
    ("copy (select 1) to program 'cat'", "write", "copy"),
    ("set work_mem = '1MB'", "write set=work_mem", "set"),
    ("reset all", "write resetall", "reset"),
    ("show work_mem", "read", "show"),
    ("show in_hot_standby", "write", "a setting that differs between nodes"),
    (
        "create table t (a int, b int generated always as (a + 1), period daterange, primary key (a, period without overlaps))",
        "write schema",
        "create table",
    ),
    ("create table t (like u including all)", "write schema", "create table"),
    ("create table t partition of u for values in (1)", "write schema", "create table"),
    ("create unlogged table t (a int)", "write schema", "create table"),
    ("create temp table t (a int)", "write pin:temp_table schema", "create table"),
    ("create foreign table t (like u) server s", "write schema code", "create foreign table"),
    ("create table t as select 1", "write schema", "create table as"),
    ("create materialized view m as select 1", "write schema", "create materialized view"),
    ("create tablespace s location '/x'", "write schema code", "create tablespace"),
    ("drop tablespace s", "write schema code", "drop"),
    ("alter tablespace s set (seq_page_cost = 1)", "write schema code", "alter tablespace"),
    ("create extension e", "write schema code", "create extension"),
    ("alter extension e update", "write schema code", "alter extension"),
    ("alter extension e add table t", "write schema code", "alter extension"),
    ("create foreign data wrapper w", "write schema code", "create foreign data wrapper"),
    ("alter foreign data wrapper w options (a 'b')", "write schema code", "alter foreign data wrapper"),
    ("create server s foreign data wrapper w", "write schema code", "create server"),
    ("alter server s version '2'", "write schema code", "alter server"),
    ("create user mapping for r server s", "write schema code", "create user mapping"),
    ("alter user mapping for r server s options (set a 'b')", "write schema code", "alter user mapping"),
    ("drop user mapping for r server s", "write schema code", "drop"),
    ("import foreign schema a from server s into b", "write schema code", "import foreign schema"),
    ("create policy p on t using (a = 1)", "write schema code", "create policy"),
    ("alter policy p on t using (f(a))", "write schema code", "alter policy"),
    ("create access method m type index handler h", "write schema code", "create access method"),
    ("create trigger g before insert on t for each row execute function f()", "write schema code", "create trigger"),
    ("create event trigger g on ddl_command_end execute function f()", "write schema code", "create event trigger"),
    ("alter event trigger g disable", "write schema code", "alter event trigger"),
    ("create language l handler h", "write schema code", "create language"),
    ("create role r login", "write schema code", "create role"),
    ("create user r", "write schema code", "create role"),
    ("alter role r valid until 'infinity'", "write schema code logins", "alter role"),
    ("alter role r set work_mem = 5", "write schema code logins", "alter role"),
    ("alter group g add user r", "write schema code logins", "alter role"),
    ("drop role r", "write schema code logins", "drop"),
    ("create sequence s", "write schema", "create sequence"),
    ("create temp sequence s", "write pin:temp_table schema", "create sequence"),
    ("alter sequence s restart", "write schema", "alter sequence"),
    ("create aggregate a (int) (sfunc = f, stype = int)", "write schema code", "create object"),
    ("create operator + (function = f, leftarg = int)", "write schema code", "create object"),
    ("create type ty (input = i, output = o)", "write schema code", "create object"),
    ("create collation c from \"C\"", "write schema code", "create object"),
    ("create text search configuration c (copy = x)", "write schema code", "create object"),
    ("create domain d as int check (value > 0)", "write schema code", "create domain"),
    ("create operator class c for type int using btree as operator 1 <", "write schema code", "create operator class"),
    ("create operator family f using btree", "write schema code", "create operator family"),
    ("alter operator family f using btree add operator 1 < (int, int)", "write schema code", "alter operator family"),
    ("drop table t", "write releases schema code", "drop"),
    ("drop index concurrently i", "write releases schema code", "drop"),
    ("drop function f(int)", "write releases schema code", "drop"),
    ("drop publication p", "write releases schema code", "drop"),
    ("truncate t restart identity", "write", "truncate"),
    ("comment on table t is 'x'", "write schema", "comment"),
    ("security label on table t is 'x'", "write schema code", "security label"),
    ("declare c cursor for select 1", "read", "declare cursor"),
    (
        "declare c insensitive scroll cursor with hold for select 1",
        "write pin:with_hold_cursor",
        "declare cursor with hold",
    ),
    ("close c", "write releases", "close"),
    ("fetch forward 5 from c", "write", "fetch"),
    ("move last in c", "write", "move"),
    ("create unique index concurrently i on t (lower(a)) nulls not distinct", "write schema", "create index"),
    ("create statistics s on a, b from t", "write schema code", "create statistics"),
    ("alter statistics s set statistics 5", "write schema code", "alter statistics"),
    (
        "create function f(a int default g()) returns int language sql return a + 1",
        "write schema code",
        "create function",
    ),
    ("create procedure p() language plpgsql as 'begin end'", "write schema code", "create function"),
    ("alter function f(int) stable", "write schema code", "alter function"),
    ("alter procedure p() set work_mem = 1", "write schema code", "alter function"),
    ("do 'begin end'", "write uncertain releases schema code", "do"),
    ("call p(1)", "write releases schema", "call"),
    ("alter table t rename to u", "write schema code", "rename"),
    ("alter table t rename a to b", "write schema code", "rename"),
    ("alter database d rename to e", "write schema code logins vacates=d", "rename"),
    ("alter role r rename to s", "write schema code logins", "rename"),
    ("alter type ty rename value 'a' to 'b'", "write schema code", "alter type"),
    ("alter function f() depends on extension e", "write schema code", "alter depends on extension"),
    ("alter table t set schema s", "write schema code", "alter set schema"),
    ("alter table t owner to r", "write schema code", "alter table"),
    ("alter schema s owner to r", "write schema code", "alter owner"),
    ("alter operator + (int, int) set (restrict = none)", "write schema code", "alter operator"),
    ("alter type ty set (receive = f)", "write schema code", "alter type"),
    ("create rule r as on insert to t do also notify a", "write schema code", "create rule"),
    ("notify a", "write", "notify"),
    ("notify a, 'b'", "write", "notify"),
    ("listen a", "write pin:listen", "listen"),
    ("unlisten a", "write releases", "unlisten"),
    ("unlisten *", "write unlistenall releases", "unlisten"),
    ("begin", "write begin", "begin"),
    ("start transaction read only", "write begin,ro", "begin"),
    ("commit", "write commit { chain: false }", "commit"),
    ("rollback and chain", "write rollback { chain: true }", "rollback"),
    ("savepoint s", "write savepoint(\"s\")", "savepoint"),
    ("release s", "write release(\"s\")", "release"),
    ("rollback to s", "write rollbackto(\"s\")", "rollback to"),
    ("prepare transaction 'g'", "write preparetransaction", "prepare transaction"),
    ("commit prepared 'g'", "write commitprepared", "commit prepared"),
    ("rollback prepared 'g'", "write rollbackprepared", "rollback prepared"),
    ("set transaction read only", "write set-tx,ro local=? tx-defaults", "set"),
    ("create type ty as (a int)", "write schema code", "create type"),
    ("create type ty as enum ('a')", "write schema code", "create type"),
    ("create type ty as range (subtype = int)", "write schema code", "create type"),
    ("alter type ty add value 'b'", "write schema code", "alter type"),
    ("create view v as select 1", "write schema", "create view"),
    ("create recursive view v (a) as select 1", "write schema", "create view"),
    ("load 'l'", "write pin:load", "load"),
    ("create database d", "write schema code vacates=template1", "create database"),
    ("create database d template e", "write schema code vacates=e", "create database"),
    ("alter database d with allow_connections false", "write schema code logins vacates=d", "alter database"),
    ("alter database d refresh collation version", "write schema code", "alter database"),
    ("alter database d set work_mem = 1", "write schema code logins", "alter database"),
    ("drop database d with (force)", "write schema code logins vacates=d", "drop"),
    ("alter system set work_mem = 1", "write schema code logins", "alter system"),
    ("cluster t using i", "write schema", "cluster"),
    ("vacuum (full, analyze) t", "write", "vacuum"),
    ("vacuum only t", "write", "vacuum"),
    ("analyze t (a)", "write", "analyze"),
    ("explain select 1", "read", "explain"),
    ("explain (analyze, serialize text, memory) select 1", "read", "explain analyze"),
    ("explain (verbose, generic_plan) select $1", "read", "explain"),
    ("explain analyze insert into t values (1)", "write", "holds insert"),
    ("refresh materialized view concurrently m", "write schema", "refresh materialized view"),
    ("checkpoint", "write", "checkpoint"),
    ("discard all", "write discardall releases schema", "discard"),
    ("discard plans", "write discardplans releases schema", "discard"),
    ("lock table t in access share mode", "write", "lock"),
    ("set constraints all immediate", "write local=?", "set constraints"),
    ("reindex (concurrently) table t", "write schema", "reindex"),
    ("reindex database d", "write schema", "reindex"),
    ("create conversion c for 'a' to 'b' from f", "write schema code", "create conversion"),
    ("create cast (a as b) with function f(a)", "write schema code", "create cast"),
    ("create transform for a language l (from sql with function f(internal))", "write schema code", "create transform"),
    ("prepare p as select 1", "write prepare=p", "prepare"),
    ("execute p", "write execute=p", "execute"),
    ("deallocate p", "write deallocate=p", "deallocate"),
    ("deallocate all", "write deallocateall", "deallocate"),
    ("drop owned by r", "write schema code", "drop"),
    ("reassign owned by a to b", "write schema code", "reassign owned"),
    ("alter text search dictionary d (a = b)", "write schema code", "alter text search"),
    ("alter text search configuration c add mapping for w with d", "write schema code", "alter text search"),
    (
        "create publication p for table t (a) where (a > 1), tables in schema s",
        "write schema code",
        "create publication",
    ),
    ("alter publication p add table t", "write schema code", "alter publication"),
    ("create subscription s connection 'c' publication p", "write schema code", "create subscription"),
    ("alter subscription s refresh publication", "write schema code", "alter subscription"),
    ("alter subscription s enable", "write schema code", "alter subscription"),
    ("drop subscription s", "write schema code", "drop"),
];

/// Sorts the nodes of the grammar into kinds of statements and everything else, and must name them all.
macro_rules! nodes {
    (statements { $($statement:ident)* } others { $($other:ident)* }) => {
        const STATEMENTS: &[&str] = &[$(stringify!($statement)),*];

        fn kind(node: &NodeEnum) -> Option<&'static str> {
            match node {
                $(NodeEnum::$statement(_) => Some(stringify!($statement)),)*
                $(NodeEnum::$other(_) => None,)*
            }
        }
    };
}

// Among the others are five that look like statements: they stand inside statements only, in the bodies of functions,
// or in trees that the grammar does not make.
nodes! {
    statements {
        InsertStmt DeleteStmt UpdateStmt MergeStmt SelectStmt CreateSchemaStmt AlterTableStmt
        AlterCollationStmt AlterDomainStmt GrantStmt GrantRoleStmt AlterDefaultPrivilegesStmt CopyStmt
        VariableSetStmt VariableShowStmt CreateStmt CreateTableSpaceStmt DropTableSpaceStmt
        AlterTableSpaceOptionsStmt AlterTableMoveAllStmt CreateExtensionStmt AlterExtensionStmt
        AlterExtensionContentsStmt CreateFdwStmt AlterFdwStmt CreateForeignServerStmt AlterForeignServerStmt
        CreateForeignTableStmt CreateUserMappingStmt AlterUserMappingStmt DropUserMappingStmt
        ImportForeignSchemaStmt CreatePolicyStmt AlterPolicyStmt CreateAmStmt CreateTrigStmt
        CreateEventTrigStmt AlterEventTrigStmt CreatePlangStmt CreateRoleStmt AlterRoleStmt AlterRoleSetStmt
        DropRoleStmt CreateSeqStmt AlterSeqStmt DefineStmt CreateDomainStmt CreateOpClassStmt
        CreateOpFamilyStmt AlterOpFamilyStmt DropStmt TruncateStmt CommentStmt SecLabelStmt DeclareCursorStmt
        ClosePortalStmt FetchStmt IndexStmt CreateStatsStmt AlterStatsStmt CreateFunctionStmt
        AlterFunctionStmt DoStmt CallStmt RenameStmt AlterObjectDependsStmt AlterObjectSchemaStmt
        AlterOwnerStmt AlterOperatorStmt AlterTypeStmt RuleStmt NotifyStmt ListenStmt UnlistenStmt
        TransactionStmt CompositeTypeStmt CreateEnumStmt CreateRangeStmt AlterEnumStmt ViewStmt LoadStmt
        CreatedbStmt AlterDatabaseStmt AlterDatabaseRefreshCollStmt AlterDatabaseSetStmt DropdbStmt
        AlterSystemStmt ClusterStmt VacuumStmt ExplainStmt CreateTableAsStmt RefreshMatViewStmt CheckPointStmt
        DiscardStmt LockStmt ConstraintsSetStmt ReindexStmt CreateConversionStmt CreateCastStmt
        CreateTransformStmt PrepareStmt ExecuteStmt DeallocateStmt DropOwnedStmt ReassignOwnedStmt
        AlterTsdictionaryStmt AlterTsconfigurationStmt CreatePublicationStmt AlterPublicationStmt
        CreateSubscriptionStmt AlterSubscriptionStmt DropSubscriptionStmt
    }
    others {
        Alias RangeVar TableFunc IntoClause Var Param Aggref GroupingFunc WindowFunc WindowFuncRunCondition
        MergeSupportFunc SubscriptingRef FuncExpr NamedArgExpr OpExpr DistinctExpr NullIfExpr
        ScalarArrayOpExpr BoolExpr SubLink SubPlan AlternativeSubPlan FieldSelect FieldStore RelabelType
        CoerceViaIo ArrayCoerceExpr ConvertRowtypeExpr CollateExpr CaseExpr CaseWhen CaseTestExpr ArrayExpr
        RowExpr RowCompareExpr CoalesceExpr MinMaxExpr SqlvalueFunction XmlExpr JsonFormat JsonReturning
        JsonValueExpr JsonConstructorExpr JsonIsPredicate JsonBehavior JsonExpr JsonTablePath
        JsonTablePathScan JsonTableSiblingJoin NullTest BooleanTest MergeAction CoerceToDomain
        CoerceToDomainValue SetToDefault CurrentOfExpr NextValueExpr InferenceElem ReturningExpr TargetEntry
        RangeTblRef JoinExpr FromExpr OnConflictExpr Query TypeName ColumnRef ParamRef AExpr TypeCast
        CollateClause RoleSpec FuncCall AStar AIndices AIndirection AArrayExpr ResTarget MultiAssignRef SortBy
        WindowDef RangeSubselect RangeFunction RangeTableFunc RangeTableFuncCol RangeTableSample ColumnDef
        TableLikeClause IndexElem DefElem LockingClause XmlSerialize PartitionElem PartitionSpec
        PartitionBoundSpec PartitionRangeDatum PartitionCmd RangeTblEntry RtepermissionInfo RangeTblFunction
        TableSampleClause WithCheckOption SortGroupClause GroupingSet WindowClause RowMarkClause WithClause
        InferClause OnConflictClause CtesearchClause CtecycleClause CommonTableExpr MergeWhenClause
        ReturningOption ReturningClause TriggerTransition JsonOutput JsonArgument JsonFuncExpr
        JsonTablePathSpec JsonTable JsonTableColumn JsonKeyValue JsonParseExpr JsonScalarExpr
        JsonSerializeExpr JsonObjectConstructor JsonArrayConstructor JsonArrayQueryConstructor
        JsonAggConstructor JsonObjectAgg JsonArrayAgg RawStmt SetOperationStmt ReturnStmt PlassignStmt
        AlterTableCmd AtalterConstraint ReplicaIdentityStmt ObjectWithArgs AccessPriv Constraint
        CreateOpClassItem StatsElem FunctionParameter InlineCodeBlock CallContext VacuumRelation
        PublicationTable PublicationObjSpec Integer Float Boolean String BitString List IntList OidList AConst
    }
}

/// What `describe` leaves out: the flags that are about the server, not about the session.
fn describe_all(class: &Classification) -> String {
    let Effects { sequences, schema, signals, shows_statements, code, vacates, logins, .. } = &class.effects;
    let mut line = describe(class);
    for (is_so, word) in [
        (*sequences == Sequences::Moved, " moves-sequence"),
        (*sequences == Sequences::Read, " reads-sequence"),
        (*schema, " schema"),
        (*code, " code"),
        (*logins, " logins"),
        (signals.is_some(), " signals"),
        (*shows_statements, " shows-statements"),
    ] {
        line += if is_so { word } else { "" };
    }
    if let Some(database) = vacates {
        line += &format!(" vacates={database}");
    }
    line
}

#[test]
fn what_a_later_version_adds_goes_to_the_primary_and_is_asked_about() {
    let mut classifier = classifier();
    for sql in [
        "select a, count(*) from t group by all",
        "select * from graph_table (g match (a) columns (a.x))",
        "insert into t values (1) on conflict (a) do select returning *",
        "wait for lsn '0/1'",
        "repack t",
    ] {
        let class = classifier.classify(sql.as_bytes(), StringSyntax::Standard);
        assert_eq!((describe_all(&class), &class.why), ("write uncertain".to_owned(), &Why::DoesNotParse), "{sql}");
    }
}

fn statement(sql: &str) -> NodeEnum {
    let statements = grammar::parse(sql, StringSyntax::Standard).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    statements[0].stmt.as_ref().and_then(|node| node.node.clone()).unwrap()
}

/// The texts of all rows.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|(sql, ..)| *sql)
}

#[test]
fn every_kind_has_a_row_and_a_name() {
    let mut missing: BTreeSet<&str> = STATEMENTS.iter().copied().collect();
    for (sql, ..) in ROWS {
        let node = statement(sql);
        let kind = kind(&node).unwrap_or_else(|| panic!("{sql} is no statement of a kind listed here"));
        missing.remove(kind);
        assert_ne!(label(&node), UNNAMED, "{kind}");
    }
    assert!(missing.is_empty(), "kinds of statements without a row: {missing:?}");
}

#[test]
fn every_kind_is_what_its_row_says() {
    let mut classifier = classifier();
    let mut wrong = Vec::new();
    for (sql, expected, why) in ROWS {
        let class = classifier.classify(sql.as_bytes(), StringSyntax::Standard);
        let (found, reason) = (describe_all(&class), class.why.to_string());
        if (found.as_str(), reason.as_str()) != (*expected, *why) {
            wrong.push(format!("{sql} => {found} => {reason}"));
        }
    }
    assert!(wrong.is_empty(), "rows that are found otherwise:\n{}", wrong.join("\n"));
}
