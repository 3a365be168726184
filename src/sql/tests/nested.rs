//! Depth: one bad seed, wrapped in contexts of every kind, stays a write for its own reason; a harmless seed stays a read.
//!
//! A context is a text with a hole. Seeds and contexts have sorts (query, expression, from-item), so that random towers
//! of them parse. Every pair of contexts is tried, and random towers above.

use super::super::{Access, Classifier, PinReason, StringSyntax, Why};
use super::rows::classifier;

/// What may stand in a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Query,
    Expr,
    Source,
}
use Sort::{Expr, Query, Source};

struct Context {
    hole: Sort,
    makes: Sort,
    text: &'static str,
}

const fn context(hole: Sort, makes: Sort, text: &'static str) -> Context {
    Context { hole, makes, text }
}

/// `@` is the hole; queries stand in parentheses of the context, expressions in those that [`fill`] adds.
const CONTEXTS: &[Context] = &[
    context(Query, Query, "(@) union (select 2) order by 1"),
    context(Query, Query, "select 1 union all (@)"),
    context(Query, Query, "(@) except all select 2"),
    context(Query, Query, "table t intersect (@) limit 1"),
    context(Query, Query, "with a as (@) select * from a"),
    context(Query, Query, "with a as not materialized (with b as (@) table b) table a"),
    context(Query, Query, "with recursive r (n) as (select 1 union all (@)) select * from r"),
    context(
        Query,
        Query,
        "with recursive r (n) as (@) search depth first by n set o cycle n set c to 1 default 0 using p table r",
    ),
    context(Query, Query, "select json_array(@)"),
    context(Query, Source, "(@) s"),
    context(Query, Source, "lateral (@) as l (a)"),
    context(Query, Expr, "(@)"),
    context(Query, Expr, "exists (@)"),
    context(Query, Expr, "array(@)"),
    context(Query, Expr, "1 in (@)"),
    context(Query, Expr, "1 >= all (@)"),
    context(Query, Expr, "(1, 2) = (@)"),
    context(Query, Expr, "'x' like any (@)"),
    context(Source, Query, "select * from @"),
    context(Source, Query, "select from a, @"),
    context(Source, Query, "select * from a natural full join @"),
    context(Source, Query, "select * from (b cross join @) join c using (id) as u"),
    context(Source, Query, "select * from @ left join c on true"),
    context(Expr, Source, "generate_series(1, @) with ordinality as g (a, b)"),
    context(Expr, Source, "lateral rows from (unnest(array[1]), generate_series(1, @)) as g (a, b)"),
    context(Expr, Source, "json_to_record(@) as x (a int)"),
    context(Expr, Source, "t tablesample system (@)"),
    context(Expr, Source, "t tablesample bernoulli (1) repeatable (@)"),
    context(Expr, Source, "a join b on @"),
    context(Expr, Source, "json_table(@, '$' columns (n for ordinality, a int path '$.a'))"),
    context(Expr, Source, "json_table('[]', '$' passing @ as x columns (nested '$.b' columns (a int exists)))"),
    context(Expr, Source, "json_table('[]', '$' columns (nested '$.b' columns (a int path '$' default @ on error)))"),
    context(Expr, Source, "xmltable(xmlnamespaces(@ as n), '/a' passing x columns v text path 'v')"),
    context(Expr, Source, "lateral xmltable('/a' passing @ columns v text)"),
    context(Expr, Source, "xmltable(@ passing x columns n for ordinality, v text path 'v' not null)"),
    context(Expr, Source, "xmltable('/a' passing x columns v text path @ default 'q')"),
    context(Expr, Source, "xmltable('/a' passing x columns v text path 'v' default @)"),
    context(Expr, Query, "select @"),
    context(Expr, Query, "select distinct on (@) a from t"),
    context(Expr, Query, "select from t where @"),
    context(Expr, Query, "values (1, 2), (3, @)"),
    context(Expr, Query, "select 1 from t group by @"),
    context(Expr, Query, "select 1 from t group by distinct grouping sets ((), (a, @))"),
    context(Expr, Query, "select grouping(a, @) from t group by rollup (a), cube (a, @)"),
    context(Expr, Query, "select 1 from t group by a having @"),
    context(Expr, Query, "select 1 from t order by a using <, @ desc nulls last"),
    context(Expr, Query, "select 1 from t limit @"),
    context(Expr, Query, "select 1 from t limit 1 offset @"),
    context(Expr, Query, "select 1 from t order by 1 fetch first @ rows with ties"),
    context(Expr, Query, "select sum(a) over w from t window v as (), w as (v partition by @)"),
    context(Expr, Query, "select sum(a) over (order by a groups between @ preceding and 1 following) from t"),
    context(Expr, Query, "select sum(a) over (order by a range between current row and @ following) from t"),
    context(Expr, Expr, "@ + 1"),
    context(Expr, Expr, "- @"),
    context(Expr, Expr, "@ operator(pg_catalog.=) 2"),
    context(Expr, Expr, "not @ and true or a"),
    context(Expr, Expr, "case @ when 1 then 2 end"),
    context(Expr, Expr, "case when a then 1 when @ then 2 else 3 end"),
    context(Expr, Expr, "case when a then @ end"),
    context(Expr, Expr, "case when a then 1 else @ end"),
    context(Expr, Expr, "coalesce(a, @)"),
    context(Expr, Expr, "nullif(1, @)"),
    context(Expr, Expr, "greatest(1, @)"),
    context(Expr, Expr, "array[[1, 2], [3, @]]"),
    context(Expr, Expr, "row(1, @)"),
    context(Expr, Expr, "(1, @)"),
    context(Expr, Expr, "@::numeric(10, 2)"),
    context(Expr, Expr, "cast(@ as int[])"),
    context(Expr, Expr, "@ collate \"C\""),
    context(Expr, Expr, "@ at time zone 'UTC'"),
    context(Expr, Expr, "@ is not distinct from 1"),
    context(Expr, Expr, "@ is null"),
    context(Expr, Expr, "@ is not unknown"),
    context(Expr, Expr, "a not between symmetric 1 and @"),
    context(Expr, Expr, "a in (1, 2, @)"),
    context(Expr, Expr, "a = any (@)"),
    context(Expr, Expr, "a not ilike 'x' escape @"),
    context(Expr, Expr, "@ similar to 'x'"),
    context(Expr, Expr, "(a, @) overlaps (c, d)"),
    context(Expr, Expr, "(@).x"),
    context(Expr, Expr, "(a)[@]"),
    context(Expr, Expr, "(a)[1:@]"),
    context(Expr, Expr, "lower(@)"),
    context(Expr, Expr, "make_interval(days => @)"),
    context(Expr, Expr, "format('%s', variadic array[@])"),
    context(Expr, Expr, "extract(year from @)"),
    context(Expr, Expr, "substring(a from @ for 2)"),
    context(Expr, Expr, "trim(both @ from a)"),
    context(Expr, Expr, "position(@ in a)"),
    context(Expr, Expr, "count(distinct @)"),
    context(Expr, Expr, "count(*) filter (where @)"),
    context(Expr, Expr, "string_agg(a, ',' order by @)"),
    context(Expr, Expr, "percentile_cont(@) within group (order by a)"),
    context(Expr, Expr, "mode() within group (order by @)"),
    context(Expr, Expr, "rank() over (partition by a order by @)"),
    context(Expr, Expr, "xmlelement(name a, xmlattributes(@ as b), 'c')"),
    context(Expr, Expr, "xmlforest(a, @ as b)"),
    context(Expr, Expr, "xmlserialize(content xmlconcat(@, x) as text indent)"),
    context(Expr, Expr, "xmlparse(document @ preserve whitespace)"),
    context(Expr, Expr, "xmlpi(name x, @)"),
    context(Expr, Expr, "xmlroot(x, version @)"),
    context(Expr, Expr, "xmlexists('/a' passing by ref @)"),
    context(Expr, Expr, "json_object(a: 1, 'b' value @ null on null with unique returning jsonb)"),
    context(Expr, Expr, "json_object(@: 1)"),
    context(Expr, Expr, "json_array(1, @ format json)"),
    context(Expr, Expr, "json_objectagg(a: @) filter (where b) over (order by c)"),
    context(Expr, Expr, "json_arrayagg(a order by @)"),
    context(Expr, Expr, "json_value(@, '$' passing 1 as x)"),
    context(Expr, Expr, "json_value(a, @)"),
    context(Expr, Expr, "json_query(a, '$' passing @ as x with wrapper keep quotes)"),
    context(Expr, Expr, "json_value(a, '$' returning int default @ on empty null on error)"),
    context(Expr, Expr, "json_exists(a, '$' passing @ as x true on error)"),
    context(Expr, Expr, "json(@ with unique keys)"),
    context(Expr, Expr, "json_scalar(@)"),
    context(Expr, Expr, "json_serialize(@ returning bytea)"),
    context(Expr, Expr, "@ is not json array with unique keys"),
];

/// Statements that run a query and are what it is.
const STATEMENTS: [&str; 7] = [
    "@",
    "explain analyze @",
    "explain (verbose, analyze on, costs off) @",
    "copy (@) to stdout (format csv)",
    "declare c scroll cursor for @",
    "explain analyze declare c cursor for @",
    "show work_mem; @; select 2",
];

/// Statements that are writes anyway; what pins must be found in them.
const WRITES: [&str; 6] = [
    "create table x as @",
    "create materialized view x as @",
    "insert into t @",
    "with w as (@) update t set a = 1 from w returning a",
    "merge into t using (@) s on true when matched then do nothing",
    "explain analyze create table x as @",
];

/// Sort, text, and whether this is the reason of the whole.
type Seed = (Sort, &'static str, fn(&Why) -> bool);

const BAD: &[Seed] = &[
    (Query, "select * from t for update", |why| *why == Why::Locking),
    (Query, "select * from t for key share of t skip locked", |why| *why == Why::Locking),
    (Query, "select a into u from t", |why| *why == Why::Into),
    (Query, "with x as (delete from t returning *) table x", |why| *why == Why::Modifies("delete")),
    (Query, "with x as (insert into t values (1) returning *) table x", |why| *why == Why::Modifies("insert")),
    (Query, "with x as (update t set a = 1 returning *) table x", |why| *why == Why::Modifies("update")),
    (Query, "with x as (merge into t using u on true when matched then delete) select", |why| {
        *why == Why::Modifies("merge")
    }),
    (Expr, "f(1)", |why| matches!(why, Why::Function(name) if &**name == "f")),
    (Expr, "app.lower('x')", |why| matches!(why, Why::Function(name) if &**name == "app.lower")),
    (Expr, "nextval('s')", |why| matches!(why, Why::Function(name) if &**name == "nextval")),
    (Expr, "pg_try_advisory_lock(1)", |why| matches!(why, Why::Function(_))),
    (Expr, "current_setting('port')", |why| *why == Why::NodeLocalSetting),
    (Source, "f(1)", |why| matches!(why, Why::Function(name) if &**name == "f")),
    (Source, "f(1) with ordinality as x (a, b)", |why| matches!(why, Why::Function(_))),
    (Source, "rows from (generate_series(1, 2), f(1)) as x (a, b)", |why| matches!(why, Why::Function(_))),
    (Source, "t tablesample odd (1)", |why| matches!(why, Why::Function(name) if &**name == "odd")),
    (Source, "pg_locks", |why| matches!(why, Why::Relation(_))),
    (Source, "pg_temp.t", |why| matches!(why, Why::Relation(_))),
    (Source, "pg_stat_activity tablesample system (1)", |why| matches!(why, Why::Relation(_))),
];

fn is_plain(why: &Why) -> bool {
    matches!(why, Why::Statement(_))
}

const HARMLESS: &[Seed] = &[
    (Query, "select 1", is_plain),
    (Query, "table only t", is_plain),
    (Query, "values (1)", is_plain),
    (Query, "select 'f(1)', \"for update\" from \"delete\" /* for update */", is_plain),
    (Expr, "1", is_plain),
    (Expr, "$1", is_plain),
    (Expr, "t.a", is_plain),
    (Expr, "pg_catalog.lower('x')", is_plain),
    (Expr, "current_setting('work_mem')", is_plain),
    (Source, "t", is_plain),
    (Source, "s.t as x (a, b)", is_plain),
    (Source, "generate_series(1, 2) as g (a)", is_plain),
];

fn fill(text: &str, sort: Sort, inner: &str) -> String {
    if sort == Expr { text.replace('@', &format!("({inner})")) } else { text.replace('@', inner) }
}

/// Makes a query of what has another sort.
fn as_query(sort: Sort, text: &str) -> String {
    match sort {
        Query => text.to_owned(),
        Expr => fill("select @", Expr, text),
        Source => fill("select * from @", Source, text),
    }
}

/// The towers over one seed: every context, every two of them, and `random` higher ones.
fn towers(sort: Sort, text: &str, random: usize, seed: u64) -> Vec<String> {
    let fits = |hole: Sort| CONTEXTS.iter().filter(move |context| context.hole == hole);
    let mut queries = vec![as_query(sort, text)];
    for first in fits(sort) {
        let inner = fill(first.text, sort, text);
        queries.extend(fits(first.makes).map(|second| as_query(second.makes, &fill(second.text, first.makes, &inner))));
        queries.push(as_query(first.makes, &inner));
    }
    let mut state = seed;
    let mut roll = |sides: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % sides
    };
    for _ in 0..random {
        let (mut sort, mut text) = (sort, text.to_owned());
        for _ in 0..3 + roll(4) {
            let all: Vec<_> = fits(sort).collect();
            let chosen = all[roll(all.len())];
            text = fill(chosen.text, sort, &text);
            sort = chosen.makes;
        }
        queries.push(as_query(sort, &text));
    }
    queries
}

/// Classifies every tower of the seeds, inside statements in turn; those nested too deeply for us are left out.
fn check(seeds: &[Seed], access: Access) {
    let mut classifier = classifier();
    let (mut checked, mut too_deep, mut wrong) = (0_usize, 0_usize, Vec::new());
    for (number, (sort, seed, is_reason)) in seeds.iter().enumerate() {
        for (turn, query) in towers(*sort, seed, 200, number as u64).into_iter().enumerate() {
            let sql = STATEMENTS[turn % STATEMENTS.len()].replace('@', &query);
            let class = classifier.classify(sql.as_bytes(), StringSyntax::Standard);
            if class.why == Why::TooDeep {
                too_deep += 1;
            } else if class.access != access || !is_reason(&class.why) {
                wrong.push(format!("{sql}\n   {:?}: {}", class.access, class.why));
            }
            checked += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    assert!(checked > 1000 * seeds.len() / 4 && too_deep * 20 < checked, "{checked} checked, {too_deep} too deep");
}

#[test]
fn a_bad_seed_is_a_write_at_any_depth() {
    check(BAD, Access::Write);
}

#[test]
fn a_harmless_seed_is_a_read_at_any_depth() {
    check(HARMLESS, Access::Read);
}

#[test]
fn what_pins_is_found_at_any_depth_in_writes_too() {
    let mut classifier = classifier();
    let mut pinned = |statement: &str, query: &str| {
        let class = classifier.classify(statement.replace('@', query).as_bytes(), StringSyntax::Standard);
        assert_eq!(class.access, Access::Write, "{statement}: {query}");
        class.why == Why::TooDeep || class.effects.pins.contains(PinReason::AdvisoryLock)
    };
    for (turn, query) in towers(Expr, "pg_advisory_lock_shared(1)", 500, 7).into_iter().enumerate() {
        let statement = WRITES[turn % WRITES.len()];
        assert!(pinned(statement, &query), "{statement}: {query}");
    }
}

#[test]
fn depth_beyond_the_grammar_is_a_write() {
    let deep = |levels: usize, seed: &str| "select * from (".repeat(levels) + seed + &") s".repeat(levels);
    let mut classifier = classifier();
    let mut classes: Vec<_> =
        [10, 40, 60, 500].map(|levels| class_of(&mut classifier, &deep(levels, "select 1"))).into();
    classes.dedup();
    assert_eq!(classes, [(Access::Read, false), (Access::Write, true)]);
    assert_eq!(class_of(&mut classifier, &deep(500, "select 1 from t for update")).0, Access::Write);
}

fn class_of(classifier: &mut Classifier, sql: &str) -> (Access, bool) {
    let class = classifier.classify(sql.as_bytes(), StringSyntax::Standard);
    (class.access, class.why == Why::TooDeep)
}
