//! The XML and JSON part of [`Walk`]: SQL gives these constructs a syntax, and so nodes, of their own.
//!
//! Invariants: as in `walk`; this is the end of its chain, so a node unknown here is unknown. Absent on purpose: what
//! paths and documents mean.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    JsonAggConstructor, JsonArrayQueryConstructor, JsonBehavior, JsonFuncExpr, JsonIsPredicate, JsonKeyValue,
    JsonTable, JsonTableColumn, JsonTablePathSpec, JsonValueExpr, XmlExpr, XmlSerialize,
};

use super::class::Why;
use super::walk::Walk;

type Boxed<T> = Option<Box<T>>;

impl Walk<'_> {
    pub(super) fn xml(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::XmlExpr(expr) => {
                let XmlExpr {
                    xpr: _,
                    op: _,
                    name: _,
                    named_args,
                    arg_names: _,
                    args,
                    xmloption: _,
                    indent: _,
                    r#type: _,
                    typmod: _,
                    location: _,
                } = &**expr;
                self.nodes(named_args);
                self.nodes(args);
            }
            NodeEnum::XmlSerialize(serialize) => {
                let XmlSerialize { xmloption: _, expr, type_name: _, indent: _, location: _ } = &**serialize;
                self.maybe(expr);
            }
            _ => self.object(Why::UnknownSyntax),
        }
    }

    /// JSON constructs, and the end of the chain.
    pub(super) fn json(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::JsonFuncExpr(function) => self.json_function(function),
            NodeEnum::JsonTable(table) => self.json_table(table),
            NodeEnum::JsonTableColumn(column) => self.json_table_column(column),
            NodeEnum::JsonTablePathSpec(path) => self.json_path(path),
            NodeEnum::JsonValueExpr(value) => self.json_value(value),
            NodeEnum::JsonKeyValue(pair) => self.json_pair(pair),
            NodeEnum::JsonBehavior(behavior) => self.json_behavior(behavior),
            NodeEnum::JsonArgument(argument) => self.maybe_json(&argument.val),
            NodeEnum::JsonFormat(_) | NodeEnum::JsonReturning(_) | NodeEnum::JsonOutput(_) => {}
            NodeEnum::JsonIsPredicate(predicate) => {
                let JsonIsPredicate { expr, format: _, item_type: _, unique_keys: _, location: _ } = &**predicate;
                self.maybe(expr);
            }
            NodeEnum::JsonParseExpr(parse) => self.maybe_json(&parse.expr),
            NodeEnum::JsonScalarExpr(scalar) => self.maybe(&scalar.expr),
            NodeEnum::JsonSerializeExpr(serialize) => self.maybe_json(&serialize.expr),
            NodeEnum::JsonObjectConstructor(object) => self.nodes(&object.exprs),
            NodeEnum::JsonArrayConstructor(array) => self.nodes(&array.exprs),
            NodeEnum::JsonArrayQueryConstructor(array) => {
                let JsonArrayQueryConstructor { query, output: _, format: _, absent_on_null: _, location: _ } =
                    &**array;
                self.maybe(query);
            }
            NodeEnum::JsonAggConstructor(constructor) => self.json_aggregate(constructor),
            NodeEnum::JsonObjectAgg(aggregate) => {
                aggregate.constructor.iter().for_each(|constructor| self.json_aggregate(constructor));
                aggregate.arg.iter().for_each(|pair| self.json_pair(pair));
            }
            NodeEnum::JsonArrayAgg(aggregate) => {
                aggregate.constructor.iter().for_each(|constructor| self.json_aggregate(constructor));
                self.maybe_json(&aggregate.arg);
            }
            _ => self.object(Why::UnknownSyntax),
        }
    }

    fn maybe_json(&mut self, value: &Boxed<JsonValueExpr>) {
        if let Some(value) = value {
            self.json_value(value);
        }
    }

    fn json_value(&mut self, value: &JsonValueExpr) {
        let JsonValueExpr { raw_expr, formatted_expr, format: _ } = value;
        self.maybe(raw_expr);
        self.maybe(formatted_expr);
    }

    fn json_pair(&mut self, pair: &JsonKeyValue) {
        let JsonKeyValue { key, value } = pair;
        self.maybe(key);
        self.maybe_json(value);
    }

    fn json_behavior(&mut self, behavior: &JsonBehavior) {
        let JsonBehavior { btype: _, expr, coerce: _, location: _ } = behavior;
        self.maybe(expr);
    }

    fn json_behaviors(&mut self, behaviors: [&Boxed<JsonBehavior>; 2]) {
        for behavior in behaviors.into_iter().flatten() {
            self.json_behavior(behavior);
        }
    }

    fn json_path(&mut self, path: &JsonTablePathSpec) {
        let JsonTablePathSpec { string, name: _, name_location: _, location: _ } = path;
        self.maybe(string);
    }

    fn json_function(&mut self, function: &JsonFuncExpr) {
        let JsonFuncExpr {
            op: _,
            column_name: _,
            context_item,
            pathspec,
            passing,
            output: _,
            on_empty,
            on_error,
            wrapper: _,
            quotes: _,
            location: _,
        } = function;
        self.maybe_json(context_item);
        self.maybe(pathspec);
        self.nodes(passing);
        self.json_behaviors([on_empty, on_error]);
    }

    fn json_table(&mut self, table: &JsonTable) {
        let JsonTable { context_item, pathspec, passing, columns, on_error, alias: _, lateral: _, location: _ } = table;
        self.maybe_json(context_item);
        pathspec.iter().for_each(|path| self.json_path(path));
        self.nodes(passing);
        self.nodes(columns);
        self.json_behaviors([on_error, &None]);
    }

    fn json_table_column(&mut self, column: &JsonTableColumn) {
        let JsonTableColumn {
            coltype: _,
            name: _,
            type_name: _,
            pathspec,
            format: _,
            wrapper: _,
            quotes: _,
            columns,
            on_empty,
            on_error,
            location: _,
        } = column;
        pathspec.iter().for_each(|path| self.json_path(path));
        self.nodes(columns);
        self.json_behaviors([on_empty, on_error]);
    }

    fn json_aggregate(&mut self, constructor: &JsonAggConstructor) {
        let JsonAggConstructor { output: _, agg_filter, agg_order, over, location: _ } = constructor;
        self.maybe(agg_filter);
        self.nodes(agg_order);
        over.iter().for_each(|window| self.window(window));
    }
}
