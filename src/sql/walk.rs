//! Visits every expression of a tree and objects to whatever is not known to only read.
//!
//! Invariants: what holds expressions in a read is taken apart field by field, so that a field the grammar gains must
//! be looked at before this compiles; a node without a rule is an objection. The walk goes on after an objection, because what pins the
//! session must be found in writes too. Recursion is bounded by the tree (see `grammar`).
//!
//! Absent on purpose: operators, casts and type functions, which may hide user code but hardly ever write.

use std::sync::Arc;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    self, AArrayExpr, AExpr, AIndices, AIndirection, CaseExpr, CaseWhen, ColumnDef, CommonTableExpr, CteCycleClause,
    FuncCall, JoinExpr, Node, RangeFunction, RangeSubselect, RangeTableFunc, RangeTableFuncCol, RangeTableSample,
    RangeVar, ResTarget, SelectStmt, SortBy, SubLink, TypeCast, TypeName, WindowDef, WithClause,
};

use super::class::{BackendSignal, Name, Names, PinReason, Pins, Sequences, Why};
use super::constants::{is_true, string_constant};
use super::functions::{self, FunctionLists, Told};
use super::label::label;
use super::setting;

/// What a walk has found so far.
pub(super) struct Walk<'l> {
    lists: &'l FunctionLists,
    /// The first reason why this is no read.
    pub objection: Option<Why>,
    /// Some reason is beyond doubt: no catalog can make this a read.
    pub certain: bool,
    /// What a catalog may know more about.
    pub names: Names,
    /// What would stay on the backend.
    pub pins: Pins,
    /// `set_config()` of a transaction default, or of something the text does not name.
    pub changes_tx_defaults: bool,
    /// `set_config(.., true)` was seen.
    pub sets_local: bool,
    /// Something may change the session in a way that the text does not tell.
    pub uncertain: bool,
    /// Something may end the cause of a pin.
    pub releases: bool,
    /// It signals processes of the server.
    pub signals: Option<BackendSignal>,
    /// It reads `pg_prepared_statements`.
    pub shows_statements: bool,
    /// Functions that nobody vouches for, by the last part of their names, lower case.
    pub functions: Vec<Arc<str>>,
    /// What it has to do with the session's memory of sequences.
    pub sequences: Sequences,
}

type Boxed<T> = Option<Box<T>>;

/// Functions remembered of one statement.
const FUNCTIONS_MAX: usize = 64;
/// Names of each kind remembered of one statement for the catalog.
const NAMES_MAX: usize = 64;

impl<'l> Walk<'l> {
    pub fn new(lists: &'l FunctionLists) -> Self {
        Self {
            lists,
            objection: None,
            certain: false,
            names: Names::default(),
            pins: Pins::NONE,
            changes_tx_defaults: false,
            sets_local: false,
            uncertain: false,
            releases: false,
            signals: None,
            shows_statements: false,
            functions: Vec::new(),
            sequences: Sequences::None,
        }
    }

    pub fn object(&mut self, why: Why) {
        self.objection.get_or_insert(why);
        self.certain = true;
    }

    pub fn nodes(&mut self, nodes: &[Node]) {
        for node in nodes {
            self.node(node);
        }
    }

    pub fn maybe(&mut self, node: &Boxed<Node>) {
        if let Some(node) = node {
            self.node(node);
        }
    }

    pub fn node(&mut self, node: &Node) {
        // An empty node is an empty list, as in a plain DISTINCT.
        let Some(node) = &node.node else { return };
        match node {
            NodeEnum::AConst(_) | NodeEnum::ParamRef(_) | NodeEnum::ColumnRef(_) | NodeEnum::AStar(_) => {}
            NodeEnum::Integer(_) | NodeEnum::Float(_) | NodeEnum::Boolean(_) | NodeEnum::String(_) => {}
            NodeEnum::BitString(_) => {}
            NodeEnum::List(list) => self.nodes(&list.items),
            NodeEnum::SelectStmt(select) => self.select(select),
            NodeEnum::ResTarget(target) => self.target(target),
            NodeEnum::FuncCall(call) => self.call(call),
            NodeEnum::AExpr(expr) => self.expr(expr),
            NodeEnum::BoolExpr(expr) => self.nodes(&expr.args),
            NodeEnum::NullTest(test) => self.maybe(&test.arg),
            NodeEnum::BooleanTest(test) => self.maybe(&test.arg),
            NodeEnum::TypeCast(cast) => self.cast(cast),
            NodeEnum::TypeName(name) => self.type_name(name),
            NodeEnum::CollateClause(clause) => self.maybe(&clause.arg),
            NodeEnum::CaseExpr(case) => self.case(case),
            NodeEnum::CaseWhen(when) => self.case_when(when),
            NodeEnum::CoalesceExpr(expr) => self.nodes(&expr.args),
            NodeEnum::MinMaxExpr(expr) => self.nodes(&expr.args),
            NodeEnum::RowExpr(row) => self.nodes(&row.args),
            NodeEnum::SqlvalueFunction(_) => {}
            NodeEnum::GroupingFunc(grouping) => self.nodes(&grouping.args),
            NodeEnum::GroupingSet(set) => self.nodes(&set.content),
            NodeEnum::NamedArgExpr(argument) => self.maybe(&argument.arg),
            NodeEnum::SubLink(link) => self.sub_link(link),
            NodeEnum::AArrayExpr(AArrayExpr { elements, list_start: _, list_end: _, location: _ }) => {
                self.nodes(elements);
            }
            NodeEnum::AIndirection(indirection) => self.indirection(indirection),
            NodeEnum::AIndices(indices) => self.indices(indices),
            NodeEnum::SortBy(sort) => self.sort(sort),
            NodeEnum::WindowDef(window) => self.window(window),
            NodeEnum::CommonTableExpr(cte) => self.cte(cte),
            NodeEnum::XmlExpr(_) | NodeEnum::XmlSerialize(_) => self.xml(node),
            _ => self.source_item(node),
        }
    }

    fn source_item(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::RangeVar(relation) => self.relation(relation),
            NodeEnum::JoinExpr(join) => self.join(join),
            NodeEnum::RangeSubselect(select) => self.range_subselect(select),
            NodeEnum::RangeFunction(function) => self.range_function(function),
            NodeEnum::RangeTableFunc(table) => self.table_function(table),
            NodeEnum::RangeTableFuncCol(column) => self.table_function_column(column),
            NodeEnum::RangeTableSample(sample) => self.sample(sample),
            NodeEnum::ColumnDef(column) => self.column(column),
            NodeEnum::MultiAssignRef(assign) => {
                self.object(Why::UnknownSyntax);
                self.maybe(&assign.source);
            }
            _ => self.json(node),
        }
    }

    pub fn select(&mut self, select: &SelectStmt) {
        let SelectStmt {
            distinct_clause,
            into_clause,
            target_list,
            from_clause,
            where_clause,
            group_clause,
            group_distinct: _,
            having_clause,
            window_clause,
            values_lists,
            sort_clause,
            limit_offset,
            limit_count,
            limit_option: _,
            locking_clause,
            with_clause,
            op: _,
            all: _,
            larg,
            rarg,
        } = select;
        self.with(with_clause);
        if let Some(into) = into_clause {
            self.object(Why::Into);
            self.created(into.rel.as_ref());
        }
        if !locking_clause.is_empty() {
            self.object(Why::Locking);
        }
        for list in [distinct_clause, target_list, from_clause, group_clause, window_clause, values_lists, sort_clause]
        {
            self.nodes(list);
        }
        for expression in [where_clause, having_clause, limit_offset, limit_count] {
            self.maybe(expression);
        }
        for side in [larg, rarg].into_iter().flatten() {
            self.select(side);
        }
    }

    pub fn with(&mut self, clause: &Option<WithClause>) {
        if let Some(WithClause { ctes, recursive: _, location: _ }) = clause {
            self.nodes(ctes);
        }
    }

    fn cte(&mut self, cte: &CommonTableExpr) {
        let CommonTableExpr {
            ctename: _,
            aliascolnames: _,
            ctematerialized: _,
            ctequery,
            search_clause: _,
            cycle_clause,
            location: _,
            cterecursive: _,
            cterefcount: _,
            ctecolnames: _,
            ctecoltypes: _,
            ctecoltypmods: _,
            ctecolcollations: _,
        } = cte;
        match ctequery.as_ref().and_then(|query| query.node.as_ref()) {
            Some(NodeEnum::SelectStmt(select)) => self.select(select),
            Some(modifying) => {
                self.object(Why::Modifies(label(modifying)));
                self.modifying(modifying);
            }
            None => self.object(Why::UnknownSyntax),
        }
        if let Some(cycle) = cycle_clause {
            let CteCycleClause { cycle_mark_value, cycle_mark_default, .. } = &**cycle;
            self.maybe(cycle_mark_value);
            self.maybe(cycle_mark_default);
        }
    }

    /// The parts of INSERT, UPDATE, DELETE and MERGE that are evaluated: functions in them may pin.
    pub fn modifying(&mut self, node: &NodeEnum) {
        self.object(Why::Statement(label(node)));
        match node {
            NodeEnum::InsertStmt(insert) => {
                self.with(&insert.with_clause);
                self.maybe(&insert.select_stmt);
                if let Some(conflict) = &insert.on_conflict_clause {
                    self.nodes(&conflict.target_list);
                    self.maybe(&conflict.where_clause);
                }
                self.returning(&insert.returning_clause);
            }
            NodeEnum::UpdateStmt(update) => {
                self.with(&update.with_clause);
                self.nodes(&update.target_list);
                self.nodes(&update.from_clause);
                self.maybe(&update.where_clause);
                self.returning(&update.returning_clause);
            }
            NodeEnum::DeleteStmt(delete) => {
                self.with(&delete.with_clause);
                self.nodes(&delete.using_clause);
                self.maybe(&delete.where_clause);
                self.returning(&delete.returning_clause);
            }
            NodeEnum::MergeStmt(merge) => {
                self.with(&merge.with_clause);
                self.maybe(&merge.source_relation);
                self.maybe(&merge.join_condition);
                for clause in &merge.merge_when_clauses {
                    if let Some(NodeEnum::MergeWhenClause(when)) = &clause.node {
                        self.maybe(&when.condition);
                        self.nodes(&when.target_list);
                        self.nodes(&when.values);
                    }
                }
                self.returning(&merge.returning_clause);
            }
            _ => self.object(Why::UnknownSyntax),
        }
    }

    fn returning(&mut self, clause: &Option<protobuf::ReturningClause>) {
        if let Some(clause) = clause {
            self.nodes(&clause.exprs);
        }
    }

    /// A relation that the statement creates: temporary ones pin.
    pub fn created(&mut self, relation: Option<&RangeVar>) {
        if relation.is_some_and(|relation| relation.relpersistence == "t" || is_temp_schema(&relation.schemaname)) {
            self.pins.insert(PinReason::TempTable);
        }
    }

    pub fn relation(&mut self, relation: &RangeVar) {
        let RangeVar { catalogname: _, schemaname, relname, inh: _, relpersistence: _, alias: _, location: _ } =
            relation;
        self.shows_statements |= relname == "pg_prepared_statements";
        if is_temp_schema(schemaname) || is_node_local(relname) {
            self.object(Why::Relation(dotted(schemaname, relname)));
            return;
        }
        let schema = (!schemaname.is_empty()).then_some(schemaname.as_str());
        self.names.truncated |= !note(&mut self.names.relations, schema, relname);
    }

    fn target(&mut self, target: &ResTarget) {
        let ResTarget { name: _, indirection, val, location: _ } = target;
        self.nodes(indirection);
        self.maybe(val);
    }

    fn expr(&mut self, expr: &AExpr) {
        let AExpr { kind: _, name: _, lexpr, rexpr, rexpr_list_start: _, rexpr_list_end: _, location: _ } = expr;
        self.maybe(lexpr);
        self.maybe(rexpr);
    }

    fn indirection(&mut self, indirection: &AIndirection) {
        let AIndirection { arg, indirection } = indirection;
        self.maybe(arg);
        self.nodes(indirection);
    }

    fn indices(&mut self, indices: &AIndices) {
        let AIndices { is_slice: _, lidx, uidx } = indices;
        self.maybe(lidx);
        self.maybe(uidx);
    }

    fn sort(&mut self, sort: &SortBy) {
        let SortBy { node, sortby_dir: _, sortby_nulls: _, use_op: _, location: _ } = sort;
        self.maybe(node);
    }

    fn cast(&mut self, cast: &TypeCast) {
        let TypeCast { arg, type_name, location: _ } = cast;
        self.maybe(arg);
        if let Some(name) = type_name {
            self.type_name(name);
        }
    }

    fn type_name(&mut self, name: &TypeName) {
        self.nodes(&name.typmods);
        if let (Some(schema), last) = qualified(&name.names)
            && is_temp_schema(schema)
        {
            self.object(Why::Relation(dotted(schema, last)));
        }
    }

    fn case(&mut self, case: &CaseExpr) {
        let CaseExpr { xpr: _, casetype: _, casecollid: _, arg, args, defresult, location: _ } = case;
        self.maybe(arg);
        self.nodes(args);
        self.maybe(defresult);
    }

    fn case_when(&mut self, when: &CaseWhen) {
        let CaseWhen { xpr: _, expr, result, location: _ } = when;
        self.maybe(expr);
        self.maybe(result);
    }

    fn sub_link(&mut self, link: &SubLink) {
        let SubLink { xpr: _, sub_link_type: _, sub_link_id: _, testexpr, oper_name: _, subselect, location: _ } = link;
        self.maybe(testexpr);
        self.maybe(subselect);
    }

    pub fn window(&mut self, window: &WindowDef) {
        let WindowDef {
            name: _,
            refname: _,
            partition_clause,
            order_clause,
            frame_options: _,
            start_offset,
            end_offset,
            location: _,
        } = window;
        self.nodes(partition_clause);
        self.nodes(order_clause);
        self.maybe(start_offset);
        self.maybe(end_offset);
    }

    fn join(&mut self, join: &JoinExpr) {
        let JoinExpr {
            jointype: _,
            is_natural: _,
            larg,
            rarg,
            using_clause: _,
            join_using_alias: _,
            quals,
            alias: _,
            rtindex: _,
        } = join;
        self.maybe(larg);
        self.maybe(rarg);
        self.maybe(quals);
    }

    fn range_subselect(&mut self, select: &RangeSubselect) {
        let RangeSubselect { lateral: _, subquery, alias: _ } = select;
        self.maybe(subquery);
    }

    fn range_function(&mut self, function: &RangeFunction) {
        let RangeFunction { lateral: _, ordinality: _, is_rowsfrom: _, functions, alias: _, coldeflist } = function;
        self.nodes(functions);
        self.nodes(coldeflist);
    }

    /// A column of a function's row type; the grammar allows no default here.
    fn column(&mut self, column: &ColumnDef) {
        if let Some(name) = &column.type_name {
            self.type_name(name);
        }
        if column.raw_default.is_some() || !column.constraints.is_empty() {
            self.object(Why::UnknownSyntax);
        }
    }

    fn table_function(&mut self, table: &RangeTableFunc) {
        let RangeTableFunc { lateral: _, docexpr, rowexpr, namespaces, columns, alias: _, location: _ } = table;
        self.maybe(docexpr);
        self.maybe(rowexpr);
        self.nodes(namespaces);
        self.nodes(columns);
    }

    fn table_function_column(&mut self, column: &RangeTableFuncCol) {
        let RangeTableFuncCol {
            colname: _,
            type_name,
            for_ordinality: _,
            is_not_null: _,
            colexpr,
            coldefexpr,
            location: _,
        } = column;
        if let Some(name) = type_name {
            self.type_name(name);
        }
        self.maybe(colexpr);
        self.maybe(coldefexpr);
    }

    /// TABLESAMPLE: only the two methods of the core are known.
    fn sample(&mut self, sample: &RangeTableSample) {
        let RangeTableSample { relation, method, args, repeatable, location: _ } = sample;
        self.maybe(relation);
        self.nodes(args);
        self.maybe(repeatable);
        let (schema, name) = qualified(method);
        if schema.is_some_and(|schema| schema != "pg_catalog") || !matches!(name, "system" | "bernoulli") {
            self.object(Why::Function(dotted(schema.unwrap_or_default(), name)));
        }
    }

    pub fn call(&mut self, call: &FuncCall) {
        let FuncCall {
            funcname,
            args,
            agg_order,
            agg_filter,
            over,
            agg_within_group: _,
            agg_star: _,
            agg_distinct: _,
            func_variadic: _,
            funcformat: _,
            location: _,
        } = call;
        self.nodes(args);
        self.nodes(agg_order);
        self.maybe(agg_filter);
        if let Some(window) = over {
            self.window(window);
        }
        let (schema, name) = qualified(funcname);
        let told = self.lists.told(schema, name);
        match told {
            Told::Reads => {}
            Told::Taken => self.taken(name),
            Told::Writes => self.object(Why::Function(dotted(schema.unwrap_or_default(), name))),
            Told::Unknown => {
                self.objection.get_or_insert_with(|| Why::Function(dotted(schema.unwrap_or_default(), name)));
                self.names.truncated |= !note(&mut self.names.unknown, schema, name);
            }
        }
        if matches!(told, Told::Writes | Told::Unknown) {
            self.strange(schema, name);
        }
        match name {
            "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" | "pg_try_advisory_lock_shared" => {
                self.pins.insert(PinReason::AdvisoryLock);
            }
            "setseed" => self.pins.insert(PinReason::RandomSeed),
            "pg_advisory_unlock" | "pg_advisory_unlock_shared" | "pg_advisory_unlock_all" => self.releases = true,
            "set_config" => self.set_config(args),
            "current_setting" if !args.first().and_then(string_constant).is_some_and(setting::is_shared) => {
                self.object(Why::NodeLocalSetting);
            }
            "pg_cancel_backend" => self.signals = self.signals.max(Some(BackendSignal::Cancel)),
            "pg_terminate_backend" => self.signals = Some(BackendSignal::Terminate),
            "nextval" | "setval" => self.sequences = self.sequences.max(Sequences::Moved),
            "currval" | "lastval" => self.sequences = Sequences::Read,
            _ => {}
        }
    }

    /// A function that is not PostgreSQL's own may do anything.
    fn strange(&mut self, schema: Option<&str>, name: &str) {
        let own = schema == Some("pg_catalog") || schema.is_none() && functions::is_postgresqls(name);
        if !own && self.functions.len() < FUNCTIONS_MAX {
            self.functions.push(name.to_ascii_lowercase().into());
        }
    }

    /// A function is taken for PostgreSQL's own.
    fn taken(&mut self, name: &str) {
        let taken = &mut self.names.taken;
        if taken.iter().any(|known| **known == *name) {
            return;
        }
        if taken.len() < NAMES_MAX {
            taken.push(name.into());
        } else {
            self.names.truncated = true;
        }
    }

    fn set_config(&mut self, args: &[Node]) {
        if args.get(2).is_some_and(is_true) {
            self.sets_local = true;
        } else {
            self.uncertain = true;
        }
        self.changes_tx_defaults |= args.first().and_then(string_constant).is_none_or(setting::is_tx_default);
    }
}

/// The schema, if one is named, and the last part of a possibly dotted name.
pub(super) fn qualified(parts: &[Node]) -> (Option<&str>, &str) {
    let text = |index: usize| match parts.get(index).and_then(|node| node.node.as_ref()) {
        Some(NodeEnum::String(string)) => string.sval.as_str(),
        _ => "",
    };
    match parts.len() {
        0 => (None, ""),
        1 => (None, text(0)),
        count => (Some(text(count - 2)), text(count - 1)),
    }
}

/// Remembers a name once; false if there is no room.
fn note(names: &mut Vec<Name>, schema: Option<&str>, name: &str) -> bool {
    if names.iter().any(|known| *known.name == *name && known.schema.as_deref() == schema) {
        return true;
    }
    let room = names.len() < NAMES_MAX;
    if room {
        names.push(Name { schema: schema.map(Arc::from), name: name.into() });
    }
    room
}

fn dotted(schema: &str, name: &str) -> Arc<str> {
    if schema.is_empty() { name.into() } else { format!("{schema}.{name}").into() }
}

/// `pg_temp` and the real names behind it (`pg_temp_3`, `pg_toast_temp_3`).
fn is_temp_schema(schema: &str) -> bool {
    schema.starts_with("pg_temp") || schema.starts_with("pg_toast_temp")
}

/// Views that tell about the node or the backend that answers: an operator who looks at them means the primary.
fn is_node_local(relation: &str) -> bool {
    relation.starts_with("pg_stat_")
        || relation.starts_with("pg_statio_")
        || matches!(
            relation,
            "pg_aios"
                | "pg_backend_memory_contexts"
                | "pg_cursors"
                | "pg_file_settings"
                | "pg_hba_file_rules"
                | "pg_ident_file_mappings"
                | "pg_locks"
                | "pg_prepared_statements"
                | "pg_prepared_xacts"
                | "pg_replication_origin_status"
                | "pg_replication_slots"
                | "pg_settings"
                | "pg_shmem_allocations"
        )
}
