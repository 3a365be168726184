//! Names of statement kinds, for people.
//!
//! Invariant: lower case, as one would say it. Absent on purpose: rules; nothing depends on a label.

use pg_query::NodeEnum;

/// What one would call the statement; "utility" for rare kinds.
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
        NodeEnum::ConstraintsSetStmt(_) => "set constraints",
        NodeEnum::ExplainStmt(_) => "explain",
        NodeEnum::VacuumStmt(_) => "vacuum",
        NodeEnum::ReindexStmt(_) => "reindex",
        NodeEnum::ClusterStmt(_) => "cluster",
        NodeEnum::CheckPointStmt(_) => "checkpoint",
        NodeEnum::CreateStmt(_) => "create table",
        NodeEnum::CreateTableAsStmt(_) => "create table as",
        NodeEnum::ViewStmt(_) => "create view",
        NodeEnum::IndexStmt(_) => "create index",
        NodeEnum::CreateSeqStmt(_) => "create sequence",
        NodeEnum::CreateFunctionStmt(_) => "create function",
        NodeEnum::CreateSchemaStmt(_) => "create schema",
        NodeEnum::CreateExtensionStmt(_) => "create extension",
        NodeEnum::CreateTrigStmt(_) => "create trigger",
        NodeEnum::CreateRoleStmt(_) => "create role",
        NodeEnum::CreatedbStmt(_) => "create database",
        NodeEnum::AlterTableStmt(_) => "alter table",
        NodeEnum::AlterSystemStmt(_) => "alter system",
        NodeEnum::RenameStmt(_) => "rename",
        NodeEnum::DropStmt(_) | NodeEnum::DropdbStmt(_) | NodeEnum::DropRoleStmt(_) => "drop",
        NodeEnum::GrantStmt(_) | NodeEnum::GrantRoleStmt(_) => "grant or revoke",
        NodeEnum::CommentStmt(_) => "comment",
        NodeEnum::RefreshMatViewStmt(_) => "refresh materialized view",
        _ => "utility",
    }
}
