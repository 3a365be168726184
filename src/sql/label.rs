//! Names of statement kinds, for people.
//!
//! Invariants: lower case, as one would say it; every kind that the grammar gives a text has one (the tests hold the
//! list). Absent on purpose: rules; nothing depends on a label.

use pg_query::NodeEnum;
use pg_query::protobuf::ObjectType;

/// What one would call the statement.
pub(super) fn label(statement: &NodeEnum) -> &'static str {
    match statement {
        NodeEnum::SelectStmt(_) => "select",
        NodeEnum::InsertStmt(_) => "insert",
        NodeEnum::UpdateStmt(_) => "update",
        NodeEnum::DeleteStmt(_) => "delete",
        NodeEnum::MergeStmt(_) => "merge",
        NodeEnum::CopyStmt(_) => "copy",
        NodeEnum::TruncateStmt(_) => "truncate",
        NodeEnum::DeclareCursorStmt(_) => "declare cursor",
        NodeEnum::FetchStmt(fetch) if fetch.ismove => "move",
        NodeEnum::FetchStmt(_) => "fetch",
        NodeEnum::ClosePortalStmt(_) => "close",
        NodeEnum::LockStmt(_) => "lock",
        NodeEnum::DoStmt(_) => "do",
        NodeEnum::CallStmt(_) => "call",
        NodeEnum::NotifyStmt(_) => "notify",
        NodeEnum::ListenStmt(_) => "listen",
        NodeEnum::UnlistenStmt(_) => "unlisten",
        NodeEnum::LoadStmt(_) => "load",
        NodeEnum::PrepareStmt(_) => "prepare",
        NodeEnum::ExecuteStmt(_) => "execute",
        NodeEnum::DeallocateStmt(_) => "deallocate",
        NodeEnum::DiscardStmt(_) => "discard",
        NodeEnum::TransactionStmt(_) => "transaction control",
        NodeEnum::VariableSetStmt(_) => "set",
        NodeEnum::VariableShowStmt(_) => "show",
        NodeEnum::ConstraintsSetStmt(_) => "set constraints",
        NodeEnum::ExplainStmt(_) => "explain",
        NodeEnum::VacuumStmt(vacuum) if !vacuum.is_vacuumcmd => "analyze",
        NodeEnum::VacuumStmt(_) => "vacuum",
        NodeEnum::ReindexStmt(_) => "reindex",
        NodeEnum::ClusterStmt(_) => "cluster",
        NodeEnum::CheckPointStmt(_) => "checkpoint",
        NodeEnum::RefreshMatViewStmt(_) => "refresh materialized view",
        NodeEnum::GrantStmt(_) | NodeEnum::GrantRoleStmt(_) => "grant or revoke",
        NodeEnum::CommentStmt(_) => "comment",
        NodeEnum::SecLabelStmt(_) => "security label",
        NodeEnum::ImportForeignSchemaStmt(_) => "import foreign schema",
        NodeEnum::ReassignOwnedStmt(_) => "reassign owned",
        NodeEnum::RenameStmt(_) => "rename",
        NodeEnum::DropStmt(_)
        | NodeEnum::DropdbStmt(_)
        | NodeEnum::DropRoleStmt(_)
        | NodeEnum::DropOwnedStmt(_)
        | NodeEnum::DropSubscriptionStmt(_)
        | NodeEnum::DropTableSpaceStmt(_)
        | NodeEnum::DropUserMappingStmt(_) => "drop",
        _ => create_label(statement),
    }
}

fn create_label(statement: &NodeEnum) -> &'static str {
    match statement {
        NodeEnum::CreateStmt(_) => "create table",
        NodeEnum::CreateForeignTableStmt(_) => "create foreign table",
        NodeEnum::CreateTableAsStmt(create) if create.objtype == ObjectType::ObjectMatview as i32 => {
            "create materialized view"
        }
        NodeEnum::CreateTableAsStmt(_) => "create table as",
        NodeEnum::ViewStmt(_) => "create view",
        NodeEnum::IndexStmt(_) => "create index",
        NodeEnum::CreateSeqStmt(_) => "create sequence",
        NodeEnum::CreateStatsStmt(_) => "create statistics",
        NodeEnum::CreateFunctionStmt(_) => "create function",
        NodeEnum::CreateSchemaStmt(_) => "create schema",
        NodeEnum::CreateExtensionStmt(_) => "create extension",
        NodeEnum::CreateTrigStmt(_) => "create trigger",
        NodeEnum::CreateEventTrigStmt(_) => "create event trigger",
        NodeEnum::RuleStmt(_) => "create rule",
        NodeEnum::CreatePolicyStmt(_) => "create policy",
        NodeEnum::CreateRoleStmt(_) => "create role",
        NodeEnum::CreatedbStmt(_) => "create database",
        NodeEnum::CreateTableSpaceStmt(_) => "create tablespace",
        NodeEnum::CompositeTypeStmt(_) | NodeEnum::CreateEnumStmt(_) | NodeEnum::CreateRangeStmt(_) => "create type",
        NodeEnum::CreateDomainStmt(_) => "create domain",
        NodeEnum::CreateCastStmt(_) => "create cast",
        NodeEnum::CreateConversionStmt(_) => "create conversion",
        NodeEnum::CreateTransformStmt(_) => "create transform",
        NodeEnum::CreateOpClassStmt(_) => "create operator class",
        NodeEnum::CreateOpFamilyStmt(_) => "create operator family",
        NodeEnum::CreateAmStmt(_) => "create access method",
        NodeEnum::CreatePlangStmt(_) => "create language",
        NodeEnum::CreateFdwStmt(_) => "create foreign data wrapper",
        NodeEnum::CreateForeignServerStmt(_) => "create server",
        NodeEnum::CreateUserMappingStmt(_) => "create user mapping",
        NodeEnum::CreatePublicationStmt(_) => "create publication",
        NodeEnum::CreateSubscriptionStmt(_) => "create subscription",
        // Aggregates, operators, base types, collations and text search objects share one node.
        NodeEnum::DefineStmt(_) => "create object",
        _ => alter_label(statement),
    }
}

fn alter_label(statement: &NodeEnum) -> &'static str {
    match statement {
        NodeEnum::AlterTableStmt(_) | NodeEnum::AlterTableMoveAllStmt(_) => "alter table",
        NodeEnum::AlterSeqStmt(_) => "alter sequence",
        NodeEnum::AlterStatsStmt(_) => "alter statistics",
        NodeEnum::AlterFunctionStmt(_) => "alter function",
        NodeEnum::AlterExtensionStmt(_) | NodeEnum::AlterExtensionContentsStmt(_) => "alter extension",
        NodeEnum::AlterEventTrigStmt(_) => "alter event trigger",
        NodeEnum::AlterPolicyStmt(_) => "alter policy",
        NodeEnum::AlterRoleStmt(_) | NodeEnum::AlterRoleSetStmt(_) => "alter role",
        NodeEnum::AlterDatabaseStmt(_)
        | NodeEnum::AlterDatabaseSetStmt(_)
        | NodeEnum::AlterDatabaseRefreshCollStmt(_) => "alter database",
        NodeEnum::AlterSystemStmt(_) => "alter system",
        NodeEnum::AlterTableSpaceOptionsStmt(_) => "alter tablespace",
        NodeEnum::AlterTypeStmt(_) | NodeEnum::AlterEnumStmt(_) => "alter type",
        NodeEnum::AlterDomainStmt(_) => "alter domain",
        NodeEnum::AlterCollationStmt(_) => "alter collation",
        NodeEnum::AlterOperatorStmt(_) => "alter operator",
        NodeEnum::AlterOpFamilyStmt(_) => "alter operator family",
        NodeEnum::AlterTsdictionaryStmt(_) | NodeEnum::AlterTsconfigurationStmt(_) => "alter text search",
        NodeEnum::AlterFdwStmt(_) => "alter foreign data wrapper",
        NodeEnum::AlterForeignServerStmt(_) => "alter server",
        NodeEnum::AlterUserMappingStmt(_) => "alter user mapping",
        NodeEnum::AlterPublicationStmt(_) => "alter publication",
        NodeEnum::AlterSubscriptionStmt(_) => "alter subscription",
        NodeEnum::AlterDefaultPrivilegesStmt(_) => "alter default privileges",
        NodeEnum::AlterObjectDependsStmt(_) => "alter depends on extension",
        NodeEnum::AlterObjectSchemaStmt(_) => "alter set schema",
        NodeEnum::AlterOwnerStmt(_) => "alter owner",
        _ => UNNAMED,
    }
}

/// What only a part of a statement can be.
pub(super) const UNNAMED: &str = "utility";
