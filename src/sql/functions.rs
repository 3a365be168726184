//! Which functions a read may call.
//!
//! Invariants: a name nobody vouches for is a write; the operator's lists come before the built-in ones, and of two
//! entries of the operator's the one that says write wins. Absent on purpose: arguments and overloads (the generated
//! table only holds names all of whose overloads read), and functions of user schemas (the catalog's matter).

use std::collections::HashSet;

use super::function_table::PG_CATALOG_READS;

/// Volatile, yet without a trace: the node that ran them is as it was. Sorted.
const VOLATILE_READS: [&str; 12] = [
    "clock_timestamp",
    "gen_random_uuid",
    "pg_column_toast_chunk_id",
    "pg_database_size",
    "pg_indexes_size",
    "pg_relation_size",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    "random",
    "random_normal",
    "timeofday",
];

/// Functions of versions after the generated table's, none of which writes. Sorted.
const NEWER_READS: [&str; 36] = [
    "any_value",
    "array_reverse",
    "array_sample",
    "array_shuffle",
    "array_sort",
    "casefold",
    "crc32",
    "crc32c",
    "date_add",
    "date_subtract",
    "erf",
    "erfc",
    "gamma",
    "icu_unicode_version",
    "json_object_agg_strict",
    "json_object_agg_unique",
    "json_object_agg_unique_strict",
    "jsonb_agg_strict",
    "jsonb_object_agg_strict",
    "jsonb_object_agg_unique",
    "jsonb_object_agg_unique_strict",
    "lgamma",
    "pg_basetype",
    "pg_get_acl",
    "pg_input_error_info",
    "pg_input_is_valid",
    "system_user",
    "to_bin",
    "to_oct",
    "unicode_assigned",
    "unicode_version",
    "uuid_extract_timestamp",
    "uuid_extract_version",
    "uuidv4",
    "uuidv7",
    "xmltext",
];

/// They tell about the server that answers or about its backend, and a client knows one server only. Waiting is here
/// as well: whoever sleeps wants to be seen, or canceled, in a view of that server. Sorted.
const NODE_LOCAL: [&str; 23] = [
    "pg_backend_pid",
    "pg_blocking_pids",
    "pg_conf_load_time",
    "pg_control_checkpoint",
    "pg_control_init",
    "pg_control_recovery",
    "pg_control_system",
    "pg_current_logfile",
    "pg_current_snapshot",
    "pg_get_backend_memory_contexts",
    "pg_get_replication_slots",
    "pg_hba_file_rules",
    "pg_isolation_test_session_is_blocked",
    "pg_lock_status",
    "pg_postmaster_start_time",
    "pg_safe_snapshot_blocking_pids",
    "pg_show_all_file_settings",
    "pg_show_all_settings",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "pg_snapshot_xmin",
    "pg_stat_get_activity",
];

/// The name of PostgreSQL's own schema.
const PG_CATALOG: &str = "pg_catalog";

/// What is known of a function by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It reads: the operator says so, or it is PostgreSQL's own beyond doubt.
    Reads,
    /// One of that name is PostgreSQL's own and reads; another schema may have a namesake.
    Taken,
    /// It writes, or means something on one node only.
    Writes,
    /// Nobody vouches for it.
    Unknown,
}

/// The operator's word on functions beside what is built in.
#[derive(Clone, Debug, Default)]
pub(super) struct FunctionLists {
    read: HashSet<String>,
    write: HashSet<String>,
}

impl FunctionLists {
    /// Entries are `name` or `schema.name`, compared without letter case; blanks around them do not count.
    pub fn new(read: &[String], write: &[String]) -> Self {
        let set = |entries: &[String]| entries.iter().map(|entry| entry.trim().to_ascii_lowercase()).collect();
        Self { read: set(read), write: set(write) }
    }

    /// What is known of a function? `schema` is `None` if the call does not name one.
    pub fn told(&self, schema: Option<&str>, name: &str) -> Told {
        let folded = name.to_ascii_lowercase();
        let qualified = schema.map(|schema| format!("{}.{folded}", schema.to_ascii_lowercase()));
        let listed = |set: &HashSet<String>| {
            set.contains(&folded) || qualified.as_ref().is_some_and(|qualified| set.contains(qualified))
        };
        if listed(&self.write) || (schema.is_none() && self.writes_in_some_schema(&folded)) {
            return Told::Writes;
        }
        if listed(&self.read) {
            return Told::Reads;
        }
        // Names that need quotes are never PostgreSQL's own, so the built-in tables see the name as it is.
        match schema {
            None if reads_by_name(name) => Told::Taken,
            Some(PG_CATALOG) if reads_by_name(name) => Told::Reads,
            Some(PG_CATALOG) => Told::Writes,
            None if is_postgresqls(name) => Told::Writes,
            _ => Told::Unknown,
        }
    }

    /// An unqualified call may reach any schema's function, so the write entry of any schema counts.
    fn writes_in_some_schema(&self, name: &str) -> bool {
        self.write.iter().any(|entry| entry.rsplit_once('.').is_some_and(|(_, last)| last == name))
    }
}

/// Is it one of PostgreSQL's own that are no reads? Told by its name: their effects are known.
pub(super) fn is_postgresqls(name: &str) -> bool {
    ["pg_", "lo_", "txid_", "binary_upgrade_", "brin_", "gin_"].iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "nextval"
                | "setval"
                | "currval"
                | "lastval"
                | "set_config"
                | "setseed"
                | "current_setting"
                | "loread"
                | "lowrite"
        )
        || reads_by_name(name)
}

/// Is it the name of one of PostgreSQL's own functions that read?
#[must_use]
pub fn reads_by_name(name: &str) -> bool {
    if NODE_LOCAL.binary_search(&name).is_ok() || name.starts_with("pg_stat_get_") {
        return false;
    }
    PG_CATALOG_READS.binary_search(&name).is_ok()
        || VOLATILE_READS.binary_search(&name).is_ok()
        || NEWER_READS.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl FunctionLists {
        fn is_read(&self, schema: Option<&str>, name: &str) -> bool {
            matches!(self.told(schema, name), Told::Reads | Told::Taken)
        }
    }

    #[test]
    fn what_a_catalog_may_decide_is_told_apart() {
        let lists = FunctionLists::new(&["report".to_owned()], &["audit".to_owned()]);
        for (schema, name, told) in [
            (None, "lower", Told::Taken),
            (Some("pg_catalog"), "lower", Told::Reads),
            (Some("app"), "lower", Told::Unknown),
            (None, "nextval", Told::Writes),
            (Some("pg_catalog"), "no_such_function", Told::Writes),
            (None, "pg_own", Told::Writes),
            (None, "total", Told::Unknown),
            (Some("app"), "total", Told::Unknown),
            (None, "report", Told::Reads),
            (Some("app"), "audit", Told::Writes),
        ] {
            assert_eq!(lists.told(schema, name), told, "{schema:?}.{name}");
        }
    }

    #[test]
    fn the_tables_are_sorted() {
        assert!(PG_CATALOG_READS.is_sorted());
        assert!(VOLATILE_READS.is_sorted());
        assert!(NEWER_READS.is_sorted());
        assert!(NODE_LOCAL.is_sorted());
    }

    #[test]
    fn functions_with_effects_or_node_local_meaning_are_not_reads() {
        let lists = FunctionLists::default();
        for name in [
            "nextval",
            "setval",
            "currval",
            "lastval",
            "set_config",
            "setseed",
            "pg_notify",
            "lo_create",
            "lo_get",
            "lo_unlink",
            "loread",
            "pg_advisory_lock",
            "pg_advisory_xact_lock",
            "pg_try_advisory_lock_shared",
            "pg_current_xact_id",
            "pg_current_xact_id_if_assigned",
            "txid_current",
            "txid_current_snapshot",
            "pg_last_wal_replay_lsn",
            "pg_current_wal_lsn",
            "pg_export_snapshot",
            "pg_stat_get_activity",
            "query_to_xml",
            "table_to_xml",
            "database_to_xml",
            "cursor_to_xml",
            "ts_stat",
            "ts_rewrite",
            "pg_read_file",
            "pg_ls_dir",
            "pg_terminate_backend",
            "pg_cancel_backend",
            "pg_reload_conf",
            "pg_switch_wal",
            "pg_create_restore_point",
            "pg_promote",
            "pg_logical_emit_message",
            "pg_replication_origin_create",
            "pg_drop_replication_slot",
            "no_such_function",
            "pg_my_temp_schema",
            "pg_rotate_logfile",
            "pg_import_system_collations",
            "dblink_exec",
            "brin_summarize_new_values",
            "gin_clean_pending_list",
            "pg_stat_reset",
            "pg_listening_channels",
        ] {
            assert!(!lists.is_read(None, name), "{name}");
            assert!(!lists.is_read(Some("pg_catalog"), name), "pg_catalog.{name}");
        }
    }

    #[test]
    fn common_functions_are_reads() {
        let lists = FunctionLists::default();
        for name in [
            "lower",
            "count",
            "sum",
            "now",
            "random",
            "clock_timestamp",
            "gen_random_uuid",
            "to_char",
            "date_trunc",
            "row_number",
            "unnest",
            "generate_series",
            "jsonb_build_object",
            "current_setting",
            "pg_get_viewdef",
            "obj_description",
            "has_table_privilege",
            "array_agg",
            "version",
            "uuidv7",
        ] {
            assert!(lists.is_read(None, name), "{name}");
            assert!(!lists.is_read(Some("app"), name), "app.{name}");
        }
    }

    #[test]
    fn the_operator_overrides_both_ways() {
        let list = |entries: &[&str]| entries.iter().map(ToString::to_string).collect::<Vec<_>>();
        let lists = FunctionLists::new(&list(&["report", "app.total", "both"]), &list(&["lower", "app.now", "both"]));
        assert!(lists.is_read(None, "report") && lists.is_read(Some("app"), "report"));
        assert!(lists.is_read(Some("app"), "total") && !lists.is_read(None, "total"));
        assert!(!lists.is_read(None, "lower") && !lists.is_read(Some("pg_catalog"), "lower"));
        assert!(!lists.is_read(None, "now") && lists.is_read(Some("pg_catalog"), "now"));
        assert!(!lists.is_read(None, "both"));
    }
}
