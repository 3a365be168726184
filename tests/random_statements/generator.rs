//! Statements of all kinds, from a small grammar over the tables of [`OBJECTS`].
//!
//! Expressions have a type, so that most statements run; names in scope are known, so that most columns exist.
//! Absent on purpose: statements that would harm the cluster or its other sessions (signals, DROP DATABASE, VACUUM FULL).

use crate::support::Dice;

/// What the statements are about.
pub const OBJECTS: &str = "
    CREATE TABLE g_orders (id int PRIMARY KEY, num int, word text, flag bool DEFAULT true);
    CREATE TABLE g_people (id serial PRIMARY KEY, num int, word text, flag bool);
    CREATE TABLE g_parts (id int, num int, word text, flag bool) PARTITION BY RANGE (id);
    CREATE TABLE g_parts_1 PARTITION OF g_parts FOR VALUES FROM (MINVALUE) TO (50);
    CREATE TABLE g_parts_2 PARTITION OF g_parts DEFAULT;
    CREATE VIEW g_view AS SELECT id, num, word, flag FROM g_orders WHERE num > 3;
    CREATE MATERIALIZED VIEW g_names AS SELECT 1 AS id, 2 AS num, 'x'::text AS word, false AS flag;
    CREATE SEQUENCE g_sequence;
    CREATE FUNCTION g_immutable(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
    CREATE FUNCTION g_stable(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT max(id) FROM g_orders';
    CREATE FUNCTION g_volatile(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION g_writes(int) RETURNS int LANGUAGE sql VOLATILE AS 'UPDATE g_orders SET num = num WHERE id = $1 RETURNING id';
    CREATE FUNCTION g_rows(int) RETURNS TABLE (id int, num int, word text, flag bool) LANGUAGE sql
        AS 'SELECT i, i, i::text, true FROM generate_series(1, $1) i';
    CREATE PROCEDURE g_procedure(int) LANGUAGE sql AS 'DELETE FROM g_orders WHERE id = -$1';
    INSERT INTO g_orders SELECT i, i % 7, 'w' || i, i % 2 = 0 FROM generate_series(1, 60) i;
    INSERT INTO g_people (num, word, flag) SELECT i % 5, 'p' || i, i % 3 = 0 FROM generate_series(1, 40) i;
    INSERT INTO g_parts SELECT i, i % 9, 'q' || i, true FROM generate_series(1, 99) i";

const RELATIONS: [&str; 6] = ["g_orders", "g_people", "g_parts", "g_parts_1", "g_view", "g_names"];
const TABLES: [&str; 3] = ["g_orders", "g_people", "g_parts"];
/// Every how many calls are to something that is no read.
const RARELY: u64 = 60;
const DEPTH_MAX: u64 = 4;

/// Writes statements.
pub struct Generator {
    dice: Dice,
    /// How deep the place is that is being written.
    depth: u64,
    /// Names whose columns may be used here.
    scope: Vec<String>,
    names: u64,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice(seed), depth: 0, scope: Vec::new(), names: 0 }
    }

    fn one_of<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[usize::try_from(self.dice.roll(texts.len() as u64)).unwrap()]
    }

    fn rarely(&mut self, sides: u64) -> bool {
        self.dice.roll(sides) == 0
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    /// The next statement.
    pub fn statement(&mut self) -> String {
        (self.depth, self.names) = (0, 0);
        self.scope.clear();
        let text = match self.dice.roll(40) {
            0..=21 => self.query(),
            22 | 23 => self.modifying(),
            24 => format!("EXPLAIN {}", self.any()),
            25 | 26 => format!("EXPLAIN (ANALYZE, COSTS off, TIMING off) {}", self.any()),
            27 | 28 => format!("COPY ({}) TO STDOUT", self.any()),
            29 => format!("COPY {} TO STDOUT (FORMAT csv)", self.one_of(&TABLES)),
            30 => {
                let options = self.one_of(&["CURSOR", "NO SCROLL CURSOR", "SCROLL CURSOR", "CURSOR WITH HOLD"]);
                format!("DECLARE c {options} FOR {}; FETCH 3 FROM c", self.query())
            }
            31 => format!("{}; {}", self.any(), self.any()),
            32 => format!("{} INTO TEMP n0 {}", "SELECT 1", "FROM g_orders"),
            33 => format!("CREATE TEMP TABLE n0 AS {}", self.query()),
            34 => format!("PREPARE n0 AS {}; EXECUTE n0; DEALLOCATE n0", self.query()),
            _ => self.utility(),
        };
        match self.dice.roll(8) {
            0 => format!("/* {} */ {text}", self.one_of(&["update g_orders", "pgregent: node=any", "it's"])),
            1 => format!("{text} -- ; delete from g_orders"),
            2 => text.to_ascii_lowercase(),
            _ => text,
        }
    }

    fn any(&mut self) -> String {
        if self.rarely(4) { self.modifying() } else { self.query() }
    }

    fn utility(&mut self) -> String {
        let relation = self.one_of(&TABLES);
        match self.dice.roll(10) {
            0 => format!("LOCK TABLE {relation} IN ACCESS SHARE MODE"),
            1 => format!("TRUNCATE {relation}"),
            2 => format!("ANALYZE {relation}"),
            3 => self.one_of(&["LISTEN n0", "NOTIFY n0", "UNLISTEN *", "CHECKPOINT", "DISCARD PLANS"]).to_owned(),
            4 => format!("DO 'BEGIN PERFORM {}; END'", self.int().replace('\'', "''")),
            5 => format!("CALL g_procedure({})", self.int()),
            6 => format!("COMMENT ON TABLE {relation} IS 'x'"),
            7 => self.one_of(&["SHOW work_mem", "SHOW TIME ZONE", "SHOW search_path", "SHOW ALL"]).to_owned(),
            8 => self.one_of(&["SET work_mem = '4MB'", "RESET work_mem", "SET LOCAL enable_sort = off"]).to_owned(),
            _ => self
                .one_of(&["SAVEPOINT a; SELECT 1; ROLLBACK TO a", "CREATE SEQUENCE n0", "REINDEX TABLE g_people"])
                .to_owned(),
        }
    }

    fn modifying(&mut self) -> String {
        let table = self.one_of(&TABLES);
        let outer = std::mem::replace(&mut self.scope, vec![table.to_owned()]);
        let condition = self.condition();
        let text = match self.dice.roll(4) {
            0 => {
                self.scope.clear();
                let row = format!("{}, {}, {}, {}", self.int(), self.int(), self.word(), self.condition());
                format!("INSERT INTO {table} (id, num, word, flag) VALUES ({row}) RETURNING id, num, word, flag")
            }
            1 => {
                let word = self.word();
                format!("UPDATE {table} SET word = {word} WHERE {condition} RETURNING id, num, word, flag")
            }
            2 => format!("DELETE FROM {table} WHERE {condition} RETURNING id, num, word, flag"),
            _ => {
                self.scope.clear();
                let source = self.query();
                format!("INSERT INTO {table} (id, num, word, flag) {source} RETURNING id, num, word, flag")
            }
        };
        self.scope = outer;
        text
    }

    /// A query of the columns id, num, word, flag.
    fn query(&mut self) -> String {
        self.depth += 1;
        let outer = self.scope.len();
        let with = if self.depth < DEPTH_MAX && self.rarely(5) { self.with() } else { (String::new(), None) };
        let text = match if self.depth >= DEPTH_MAX { 9 } else { self.dice.roll(12) } {
            0 => {
                let kind = self.one_of(&["UNION", "UNION ALL", "INTERSECT", "EXCEPT"]);
                format!("({}) {kind} ({})", self.query(), self.query())
            }
            1 => {
                let row = format!("({}, {}, {}, {})", self.int(), self.int(), self.word(), self.condition());
                format!("VALUES {row}, (1, 2, 'x', true)")
            }
            2 => format!("TABLE {}", self.one_of(&["g_orders", "g_view", "g_parts"])),
            _ => self.select(with.1.as_deref()),
        };
        self.scope.truncate(outer);
        self.depth -= 1;
        with.0 + &text
    }

    fn with(&mut self) -> (String, Option<String>) {
        let name = self.name();
        let (inside, kind) = if self.rarely(RARELY / 4) {
            (self.modifying(), "")
        } else {
            (self.query(), self.one_of(&["", "MATERIALIZED ", "NOT MATERIALIZED "]))
        };
        (format!("WITH {name} (id, num, word, flag) AS {kind}({inside}) "), Some(name))
    }

    fn select(&mut self, cte: Option<&str>) -> String {
        let mut from = self.source();
        if let Some(cte) = cte {
            let name = self.name();
            from = format!("{cte} AS {name}, {from}");
            self.scope.push(name);
        }
        if self.rarely(3) {
            let other = self.source();
            from = match self.dice.roll(3) {
                0 => format!("{from}, LATERAL (SELECT {} AS k) l", self.int()),
                1 => format!("{from} JOIN {other} ON {}", self.condition()),
                _ => format!("{from} CROSS JOIN {other}"),
            };
        }
        let distinct = if self.rarely(8) { "DISTINCT " } else { "" };
        let mut text = if self.rarely(5) {
            let window = self.window();
            format!("SELECT {distinct}{}, {window}, {}, {} FROM {from}", self.int(), self.word(), self.condition())
        } else if self.rarely(6) {
            format!(
                "SELECT count(*)::int, max({}), string_agg({}, ',' ORDER BY 1), bool_or({}) FROM {from}",
                self.int(),
                self.word(),
                self.condition()
            )
        } else {
            format!(
                "SELECT {distinct}{}, {}, {}, {} FROM {from}",
                self.int(),
                self.int(),
                self.word(),
                self.condition()
            )
        };
        if self.rarely(2) {
            text += &format!(" WHERE {}", self.condition());
        }
        if self.rarely(4) {
            text += &format!(" ORDER BY {}", self.one_of(&["1", "2, 1 DESC", "3 NULLS FIRST"]));
        }
        if self.rarely(4) {
            text += &format!(" LIMIT {}", self.dice.roll(20));
        }
        if self.rarely(RARELY) {
            text += self.one_of(&[" FOR UPDATE", " FOR SHARE", " FOR NO KEY UPDATE SKIP LOCKED", " FOR KEY SHARE"]);
        }
        text
    }

    fn window(&mut self) -> String {
        let (partition, order) = (self.int(), self.word());
        match self.dice.roll(2) {
            0 => format!("(rank() OVER (PARTITION BY {partition} ORDER BY {order}))::int"),
            _ => format!("(count(*) OVER (ORDER BY {order} ROWS BETWEEN 1 PRECEDING AND CURRENT ROW))::int"),
        }
    }

    fn source(&mut self) -> String {
        let name = self.name();
        let source = match self.dice.roll(12) {
            0 if self.depth < DEPTH_MAX => format!("({})", self.query()),
            1 => format!("g_rows({})", self.dice.roll(5)),
            2 => "json_to_recordset('[{\"id\": 1}]')".to_owned(),
            3 => "generate_series(1, 4)".to_owned(),
            4 => "unnest(ARRAY[1, 2], ARRAY['a', 'b'])".to_owned(),
            5 => "pg_class".to_owned(),
            6 if self.rarely(4) => self.one_of(&["pg_stat_activity", "pg_locks", "pg_settings"]).to_owned(),
            _ => self.one_of(&RELATIONS).to_owned(),
        };
        let columns = match source.as_str() {
            text if text.starts_with("json") => " AS @ (id int, num int, word text, flag bool)",
            text if text.starts_with("generate") || text.starts_with("pg_") => {
                // These have other columns: nothing of theirs is in scope.
                return format!("{source} AS {name}");
            }
            text if text.starts_with("unnest") => return format!("{source} AS {name} (x, y)"),
            text if text.starts_with("g_rows") => " AS @ (id, num, word, flag)",
            text if text.starts_with('(') => " AS @ (id, num, word, flag)",
            text if text == "g_orders" && self.rarely(5) => " AS @ TABLESAMPLE SYSTEM (50)",
            _ => " AS @",
        };
        self.scope.push(name.clone());
        source + &columns.replace('@', &name)
    }

    fn column(&mut self, kind: &str, constant: &str) -> String {
        if self.scope.is_empty() {
            return constant.to_owned();
        }
        let at = usize::try_from(self.dice.roll(self.scope.len() as u64)).unwrap();
        format!("{}.{kind}", self.scope[at])
    }

    fn deeper<T>(&mut self, write: impl FnOnce(&mut Self) -> T) -> T {
        self.depth += 1;
        let text = write(self);
        self.depth -= 1;
        text
    }

    fn int(&mut self) -> String {
        if self.depth >= DEPTH_MAX || self.rarely(3) {
            return match self.dice.roll(2) {
                0 => self.dice.roll(50).to_string(),
                _ => self.column("id", "7"),
            };
        }
        self.deeper(|this| match this.dice.roll(14) {
            0 => format!("({} + {})", this.int(), this.int()),
            1 => format!("abs({})", this.int()),
            2 => format!("CASE WHEN {} THEN {} ELSE {} END", this.condition(), this.int(), this.int()),
            3 => format!("COALESCE({}, {})", this.column("num", "3"), this.int()),
            4 => format!("(SELECT max(id) FROM ({}) s (id, num, word, flag))", this.query()),
            5 => format!("length({})", this.word()),
            6 => format!("GREATEST({}, {})", this.int(), this.int()),
            7 => format!("(ARRAY[{}, {}])[1]", this.int(), this.int()),
            8 => "(random() * 10)::int".to_owned(),
            9 => format!("NULLIF({}, {})", this.int(), this.int()),
            10 if this.rarely(RARELY / 10) => {
                let call = this.one_of(&["g_immutable", "g_stable", "g_volatile", "g_writes"]);
                format!("{call}({})", this.int())
            }
            11 if this.rarely(RARELY / 10) => {
                this.one_of(&["nextval('g_sequence')::int", "(txid_current() % 7)::int", "pg_backend_pid()"]).to_owned()
            }
            _ => this.column("num", "5"),
        })
    }

    fn word(&mut self) -> String {
        if self.depth >= DEPTH_MAX || self.rarely(2) {
            return self.column("word", "'it''s'");
        }
        self.deeper(|this| match this.dice.roll(8) {
            0 => format!("upper({})", this.word()),
            1 => format!("({} || {})", this.word(), this.word()),
            2 => format!("({})::text", this.int()),
            3 => format!("substring({} FROM 1 FOR 2)", this.word()),
            4 => "current_setting('work_mem')".to_owned(),
            5 => format!("json_build_object('a', {})::text", this.int()),
            6 => format!("$q${}; delete from g_orders$q$", this.dice.roll(9)),
            _ => format!("to_char(now() + {} * interval '1 day', 'YYYY')", this.int()),
        })
    }

    fn condition(&mut self) -> String {
        if self.depth >= DEPTH_MAX || self.rarely(3) {
            return self.column("flag", "true");
        }
        self.deeper(|this| match this.dice.roll(9) {
            0 => format!("({} AND {})", this.condition(), this.condition()),
            1 => format!("(NOT {})", this.condition()),
            2 => format!("({} < {})", this.int(), this.int()),
            3 => format!("({} IN ({}, {}, 3))", this.int(), this.int(), this.int()),
            4 => format!("({} LIKE 'w%')", this.word()),
            5 => format!("EXISTS ({})", this.query()),
            6 => format!("({} IN (SELECT id FROM ({}) s (id, num, word, flag)))", this.int(), this.query()),
            7 => format!("({} IS DISTINCT FROM {})", this.word(), this.word()),
            _ if this.rarely(RARELY / 6) => this
                .one_of(&["pg_try_advisory_xact_lock(1)", "pg_try_advisory_lock(2)", "pg_is_in_recovery()"])
                .to_owned(),
            _ => format!("({} BETWEEN 1 AND {})", this.int(), this.int()),
        })
    }
}
