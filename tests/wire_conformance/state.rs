//! A session's state on changing backends: settings, roles, prepared statements, what pins.
//!
//! Between any two statements another client takes away the backend that was used last, so that through
//! a proxy nearly every statement runs on another one. Absent on purpose: knowledge of how state moves.

use crate::support::message::*;
use crate::support::rawclient::RawClient;
use crate::support::script::Script;

/// Statements, each of them after the last used backend was taken away.
struct Moving<'a> {
    script: &'a mut Script,
    others: Vec<RawClient>,
}

impl<'a> Moving<'a> {
    fn new(script: &'a mut Script) -> Self {
        Self { script, others: Vec::new() }
    }

    /// Occupies a backend with a client that holds settings of its own.
    fn shake(&mut self) {
        let mut other = self.script.other();
        other.simple("BEGIN; SET LOCAL work_mem = '3MB'; SELECT 1").unwrap();
        self.others.push(other);
        if self.others.len() > 2 {
            let mut first = self.others.remove(0);
            let leaves_behind = "COMMIT; SET search_path = pg_catalog; SET TimeZone = 'Asia/Tokyo'; SET app.who = 'other'; \
                                 SET ROLE app_group; PREPARE q AS SELECT 'of another'";
            first.simple(leaves_behind).unwrap();
        }
    }

    fn query(&mut self, sql: &str) {
        self.shake();
        self.script.query(sql);
    }

    fn queries(&mut self, list: &[&str]) {
        list.iter().for_each(|sql| self.query(sql));
    }

    /// A statement in a batch of its own, with parameters.
    fn extended(&mut self, sql: &str, values: &[&str]) {
        self.shake();
        let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
        self.script.exchange(&[parse("", sql), bind("", "", &values), execute("", 0), sync()]);
    }

    fn exchange(&mut self, messages: &[Vec<u8>]) {
        self.shake();
        self.script.exchange(messages);
    }
}

/// What most settings of these conversations are.
const SHOW: &str = "SELECT current_setting('work_mem'), current_setting('TimeZone'), current_setting('search_path'), \
                    nullif(current_setting('app.who', true), ''), current_setting('DateStyle'), current_user, session_user";

pub fn set_and_reset(s: &mut Script) {
    let mut m = Moving::new(s);
    m.queries(&[
        SHOW,
        "SET work_mem = '5MB' -- a comment",
        "SET TIME ZONE 'Europe/Paris'",
        "SET app.who = 'me; you'",
        "SET NAMES 'UTF8'",
        SHOW,
        "SET work_mem TO DEFAULT",
        "SET search_path TO a, \"B c\", public",
        SHOW,
        "RESET TimeZone",
        "RESET app.who",
        SHOW,
        "RESET ALL",
        SHOW,
        "SET no_such_setting = 1",
        "SET work_mem = 'nonsense'",
        SHOW,
        "SET DateStyle = 'ISO'",
        "SET DateStyle = 'DMY'",
        "SELECT date '2020-02-03', '01/02/2020'::date",
        "SET DateStyle = 'German'",
        "SELECT date '2020-02-03'",
        "DISCARD ALL",
        SHOW,
    ]);
}

pub fn several_in_one_text(s: &mut Script) {
    let mut m = Moving::new(s);
    m.queries(&[
        "SET work_mem = '5MB'; SET TimeZone = 'UTC'; SELECT 1",
        SHOW,
        "SET work_mem = '6MB'; SELECT 1/0",
        SHOW,
        "SET work_mem = '7MB'; COMMIT; SET TimeZone = 'Asia/Tokyo'; SELECT 1/0",
        SHOW,
        "BEGIN; SET work_mem = '8MB'; ROLLBACK; SET TimeZone = 'Europe/Rome'",
        SHOW,
        "SET work_mem = '9MB'; BEGIN; SET TimeZone = 'Asia/Tokyo'; ROLLBACK",
        SHOW,
        "BEGIN; SET work_mem = '10MB'; SAVEPOINT a; SET work_mem = '11MB'; ROLLBACK TO a; COMMIT",
        SHOW,
        "SET LOCAL work_mem = '12MB'; SELECT current_setting('work_mem')",
        SHOW,
        "SET app.who = ''';'; SET search_path = \"a;b\"",
        SHOW,
        "RESET work_mem; SET TimeZone TO DEFAULT; RESET search_path",
        SHOW,
    ]);
}

pub fn in_transactions(s: &mut Script) {
    let mut m = Moving::new(s);
    m.queries(&[
        "BEGIN",
        "SET work_mem = '5MB'",
        "SAVEPOINT a",
        "SET work_mem = '6MB'",
        "SET LOCAL TimeZone = 'UTC'",
        "SAVEPOINT b",
        "SET work_mem = '7MB'",
        "SELECT 1/0",
        "ROLLBACK TO b",
        SHOW,
        "RELEASE a",
        "COMMIT AND CHAIN",
        "SET work_mem = '8MB'",
        "SELECT 1/0",
        "COMMIT",
        SHOW,
        "BEGIN",
        "RESET ALL",
        "ROLLBACK",
        SHOW,
        "BEGIN",
        "SAVEPOINT s",
        "SET work_mem = '7MB'",
        "ROLLBACK TO s",
        "SAVEPOINT s",
        "COMMIT",
        SHOW,
        "BEGIN",
        "SAVEPOINT s",
        "SET work_mem = '8MB'",
        "ROLLBACK TO s",
        "ROLLBACK TO s",
        "COMMIT",
        SHOW,
        "BEGIN",
        "SET app.who = 'kept'",
        "ROLLBACK TO nowhere",
        "ROLLBACK",
        SHOW,
        "BEGIN",
        "SET app.who = 'kept'",
        "COMMIT",
        SHOW,
    ]);
    m.script.exchange(&[
        parse("", "SET work_mem = '13MB'"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SELECT 1/0"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]);
    m.query(SHOW);
    m.script.exchange(&[
        parse("", "BEGIN"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SET work_mem = '14MB'"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "COMMIT"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SET work_mem = '15MB'"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SELECT 1/0"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]);
    m.query(SHOW);
}

pub fn set_config_in_all_forms(s: &mut Script) {
    let mut m = Moving::new(s);
    m.queries(&[
        "SELECT set_config('work_mem', '5MB', false)",
        SHOW,
        "SELECT pg_catalog.set_config('TimeZone', 'UTC', 'f'), 1",
        SHOW,
        "SELECT set_config('work_mem', '6MB', true), current_setting('work_mem')",
        SHOW,
        "SELECT set_config(name, '7MB', false) FROM (VALUES ('work_mem')) v (name)",
        SHOW,
        "SELECT set_config('app.who', 'x' || 'y', false) WHERE 1 = 0",
        SHOW,
        "DO $$ BEGIN PERFORM set_config('app.who', 'by do', false); END $$",
        SHOW,
        "BEGIN",
        "SELECT set_config('app.who', 'undone', false)",
        "ROLLBACK",
        SHOW,
    ]);
    m.extended("SELECT set_config('work_mem', $1, false)", &["8MB"]);
    m.query(SHOW);
    m.extended("SELECT set_config($1, $2, $3::bool)", &["TimeZone", "Europe/Paris", "off"]);
    m.query(SHOW);
    m.extended("SET work_mem = '9MB'", &[]);
    m.extended("RESET TimeZone", &[]);
    m.query(SHOW);
}

pub fn roles(s: &mut Script) {
    let mut m = Moving::new(s);
    m.queries(&[
        "SET ROLE app_group",
        SHOW,
        "SET work_mem = '5MB'",
        SHOW,
        "RESET ALL",
        SHOW,
        "RESET ROLE",
        SHOW,
        "BEGIN",
        "SET ROLE app_group",
        "SELECT current_user",
        "ROLLBACK",
        SHOW,
        "SELECT set_config('role', 'app_group', false)",
        SHOW,
        "SET ROLE none",
        SHOW,
        "SET ROLE postgres",
        "SET LOCAL ROLE app_group",
        "SET SESSION AUTHORIZATION app",
        SHOW,
        "SET SESSION AUTHORIZATION postgres",
        "SET ROLE app_group",
        "SET SESSION AUTHORIZATION DEFAULT",
        SHOW,
        "SET ROLE app_group",
        "DISCARD ALL",
        SHOW,
    ]);
}

pub fn characteristics(s: &mut Script) {
    let show = "SELECT current_setting('default_transaction_isolation'), current_setting('transaction_isolation'), \
                current_setting('transaction_read_only'), current_setting('default_transaction_deferrable')";
    let mut m = Moving::new(s);
    m.queries(&[
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        show,
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, DEFERRABLE",
        show,
        "CREATE TABLE never (i int)",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE, ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE",
        show,
        "SET default_transaction_read_only = on",
        show,
        "BEGIN",
        "SET TRANSACTION READ WRITE",
        show,
        "COMMIT",
        show,
        "RESET ALL",
        show,
    ]);
}

pub fn startup_settings(s: &mut Script) {
    let login = crate::support::cluster::app_login()
        .with("DateStyle", "SQL, DMY")
        .with("application_name", "from start")
        .with("options", "-c work_mem=4321kB -c app.who=starter");
    let mut client = s.other_with(&login);
    let mut others = Vec::new();
    for sql in [
        SHOW,
        "SET DateStyle = 'ISO'",
        SHOW,
        "RESET DateStyle",
        SHOW,
        "SET work_mem = '1MB'; SET app.who = 'x'",
        "RESET work_mem",
        SHOW,
        "SET app.who TO DEFAULT",
        SHOW,
        "BEGIN",
        "RESET ALL",
        SHOW,
        "ROLLBACK",
        "SET work_mem = '2MB'",
        "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'",
        "SELECT 5; DISCARD ALL; SELECT 6",
        SHOW,
        "RESET work_mem",
        SHOW,
        "RESET ALL; SET DateStyle = 'German'; SELECT 1",
        SHOW,
        "RESET DateStyle; SELECT 1/0",
        SHOW,
        "DISCARD ALL",
        SHOW,
        "SHOW application_name",
    ] {
        let mut other = s.other();
        other.simple("BEGIN").unwrap();
        others.push(other);
        if others.len() > 2 {
            others.remove(0);
        }
        let answer = client.simple(sql);
        s.note(format!("{answer:?}"));
    }
}

pub fn prepared_by_sql(s: &mut Script) {
    let mut m = Moving::new(s);
    m.queries(&[
        "PREPARE q (int) AS SELECT $1 + 1",
        "EXECUTE q (1)",
        "EXPLAIN (COSTS OFF) EXECUTE q (1)",
        "PREPARE q AS SELECT 2",
        "EXECUTE q (2)",
        "PREPARE \"Q\"\"r\" AS SELECT 'quoted'",
        "EXECUTE \"Q\"\"r\"",
        "EXECUTE nothing",
        "DEALLOCATE nothing",
        "DEALLOCATE q",
        "EXECUTE q (3)",
        "PREPARE q AS SELECT 'again'",
        "EXECUTE q",
        "BEGIN",
        "PREPARE r AS SELECT 'outlives'",
        "ROLLBACK",
        "EXECUTE r",
        "BEGIN",
        "DEALLOCATE r",
        "ROLLBACK",
        "EXECUTE r",
        "PREPARE a AS SELECT 1; PREPARE b AS SELECT 2; EXECUTE a; EXECUTE b",
        "EXECUTE b",
        "DEALLOCATE ALL",
        "EXECUTE q",
        "PREPARE q AS SELECT 3",
        "DISCARD ALL",
        "EXECUTE q",
    ]);
}

pub fn prepared_by_both(s: &mut Script) {
    let mut m = Moving::new(s);
    m.query("PREPARE q AS SELECT 'sql'");
    m.exchange(&[bind("", "q", &[]), describe_portal(""), execute("", 0), sync()]);
    m.exchange(&[describe_statement("q"), sync()]);
    m.exchange(&[parse("q", "SELECT 'clash'"), sync()]);
    m.exchange(&[close_statement("q"), sync()]);
    m.query("EXECUTE q");
    m.exchange(&[parse("p", "SELECT 'protocol', $1::int"), sync()]);
    m.query("EXECUTE p (7)");
    m.query("PREPARE p AS SELECT 1");
    m.query("EXPLAIN (COSTS OFF) EXECUTE p (8)");
    m.extended("EXECUTE p (9)", &[]);
    m.exchange(&[parse("by name", "EXECUTE p (10)"), describe_statement("by name"), sync()]);
    m.exchange(&[describe_statement("by name"), sync()]);
    m.exchange(&[bind("", "by name", &[]), execute("", 0), sync()]);
    m.query("DEALLOCATE p");
    m.exchange(&[bind("", "p", &[Some(b"1")]), execute("", 0), sync()]);
    m.query("EXECUTE p (1)");
    m.exchange(&[parse("x", "SELECT 1"), sync()]);
    m.exchange(&[parse("x", "SELECT 2"), sync()]);
    m.exchange(&[bind("", "x", &[]), execute("", 0), sync()]);
    m.query("BEGIN");
    m.query("SELECT 1/0");
    m.query("EXECUTE x");
    m.query("ROLLBACK");
    m.query("EXECUTE x");
}

pub fn what_cannot_move(s: &mut Script) {
    let mut m = Moving::new(s);
    m.queries(&[
        "CREATE TEMP TABLE t (i int)",
        "INSERT INTO t VALUES (1)",
        "SELECT * FROM t",
        "DROP TABLE t",
        "SELECT * FROM t",
        "CREATE TEMP TABLE t (i int) ON COMMIT DROP",
        "SELECT * FROM t",
        "BEGIN",
        "CREATE TEMP TABLE t AS SELECT 2 AS i",
        "SELECT * FROM t",
        "ROLLBACK",
        "SELECT * FROM t",
        "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 3)",
        "FETCH 2 FROM c",
        "FETCH 2 FROM c",
        "CLOSE c",
        "FETCH 1 FROM c",
        "SELECT pg_advisory_lock(987654)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 987654",
        "SELECT pg_advisory_unlock(987654)",
        "SELECT pg_advisory_unlock(987654)",
        "LISTEN heard_side",
        "NOTIFY heard_side, 'once'",
        "SELECT pg_listening_channels()",
        "UNLISTEN *",
        "NOTIFY heard_side, 'unheard'",
        "SELECT pg_listening_channels()",
        "SET SEED = 0.25",
        "SELECT (random() * 1000)::int",
        "SELECT (random() * 1000)::int",
        "DISCARD ALL",
    ]);
}

pub fn sequences(s: &mut Script) {
    let table = s.name("numbered");
    let mut m = Moving::new(s);
    m.query(&format!("CREATE TABLE {table} (i serial)"));
    m.query(&format!("SELECT currval('{table}_i_seq')"));
    m.query(&format!("INSERT INTO {table} DEFAULT VALUES"));
    m.query(&format!("SELECT currval('{table}_i_seq')"));
    m.query("SELECT lastval()");
    m.query(&format!("SELECT nextval('{table}_i_seq'), lastval()"));
    m.query("DISCARD SEQUENCES");
    m.query("SELECT lastval()");
    m.query(&format!("DROP TABLE {table}"));
}

/// Columns change under a prepared text; whoever parses it anew gets the new ones.
pub fn schema_changes(s: &mut Script) {
    let table = s.name("changing");
    let read = format!("SELECT * FROM {table}");
    let mut m = Moving::new(s);
    m.query(&format!("CREATE TABLE {table} (i int)"));
    m.query(&format!("INSERT INTO {table} VALUES (1)"));
    m.exchange(&[parse("r", &read), bind("", "r", &[]), execute("", 0), sync()]);
    m.exchange(&[close_statement("r"), sync()]);
    m.query(&format!("ALTER TABLE {table} ADD COLUMN t text DEFAULT 'new'"));
    m.exchange(&[parse("r", &read), describe_statement("r"), bind("", "r", &[]), execute("", 0), sync()]);
    m.query("BEGIN");
    m.query(&format!("ALTER TABLE {table} DROP COLUMN i"));
    m.exchange(&[parse("s", &read), bind("", "s", &[]), execute("", 0), sync()]);
    m.query("ROLLBACK");
    m.exchange(&[close_statement("r"), parse("r", &read), bind("", "r", &[]), execute("", 0), sync()]);
    m.query(&format!("DROP TABLE {table}"));
}

/// A client that was told the columns decodes rows by them: it must hear of the change.
pub fn told_columns(s: &mut Script) {
    let table = s.name("told");
    let read = format!("SELECT * FROM {table}");
    let write = format!("INSERT INTO {table} VALUES (3) RETURNING *");
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()];
    let mut m = Moving::new(s);
    m.query(&format!("CREATE TABLE {table} (i int)"));
    m.query(&format!("INSERT INTO {table} VALUES (1)"));
    m.exchange(&[parse("r", &read), describe_statement("r"), parse("w", &write), describe_statement("w"), sync()]);
    m.exchange(&run("r"));
    m.exchange(&run("w"));
    m.query(&format!("ALTER TABLE {table} ALTER i TYPE text"));
    m.exchange(&run("r"));
    m.exchange(&run("r"));
    m.exchange(&run("w"));
    m.query("BEGIN");
    m.script.query("SELECT 1");
    m.script.exchange(&run("r"));
    m.script.query("SELECT 1");
    m.query("ROLLBACK");
    m.exchange(&[parse("", "SELECT 1"), bind("", "", &[]), execute("", 0), bind("", "r", &[]), execute("", 0), sync()]);
    m.exchange(&[close_statement("r"), parse("r", &read), describe_statement("r"), sync()]);
    m.exchange(&run("r"));
    m.query(&format!("DROP TABLE {table}"));
}

/// Functions and triggers that change the session, though no statement says so.
pub fn invisible_changes(s: &mut Script) {
    let table = s.name("watched");
    let (set, outer, trigger) = (s.name("set_who"), s.name("outer_who"), s.name("trigger_who"));
    let show = "SELECT nullif(current_setting('app.who', true), ''), current_setting('work_mem')";
    let mut m = Moving::new(s);
    m.query(&format!(
        "CREATE FUNCTION {set}(t text) RETURNS void LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM set_config('app.who', t, false); SET work_mem = '5MB'; END $$"
    ));
    m.query(&format!("CREATE FUNCTION {outer}(t text) RETURNS int LANGUAGE sql AS $$ SELECT {set}(t); SELECT 1 $$"));
    m.query(&format!(
        "CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM {set}('by trigger'); RETURN new; END $$"
    ));
    m.query(&format!("SELECT {set}('a')"));
    m.queries(&[show, "RESET work_mem", show]);
    m.extended(&format!("SELECT {outer}($1)"), &["b"]);
    m.queries(&[show, "RESET ALL", show, "BEGIN"]);
    m.query(&format!("SELECT {outer}('undone')"));
    m.queries(&["ROLLBACK", show]);
    m.query(&format!("CREATE TABLE {table} (i int)"));
    m.query(&format!("INSERT INTO {table} VALUES (1)"));
    m.query(show);
    m.query(&format!("CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {trigger}()"));
    m.query(&format!("INSERT INTO {table} VALUES (2)"));
    m.query(show);
    m.query(&format!("CREATE PROCEDURE {set}_too() LANGUAGE sql AS $$ SELECT {set}('by call') $$"));
    m.query(&format!("CALL {set}_too()"));
    m.query(show);
    m.query(&format!(
        "CREATE FUNCTION {set}_temp() RETURNS void LANGUAGE plpgsql AS \
         $$ BEGIN CREATE TEMP TABLE made_inside AS SELECT 7 AS i; PERFORM pg_advisory_lock(4711); END $$"
    ));
    m.query(&format!("SELECT {set}_temp()"));
    m.queries(&["SELECT i FROM made_inside", "DROP TABLE made_inside", "SELECT pg_advisory_unlock(4711)"]);
    m.query(&format!("DROP TABLE {table}"));
}

/// The view of prepared statements shows the session's own, under its names.
pub fn view_of_prepared(s: &mut Script) {
    let show = "SELECT name, statement, from_sql, parameter_types FROM pg_prepared_statements ORDER BY 1";
    let mut m = Moving::new(s);
    m.query(show);
    m.exchange(&[parse("one", "SELECT 1"), parse("two", "SELECT $1::int"), sync()]);
    m.query("PREPARE three AS SELECT 3");
    m.queries(&[show, "EXECUTE three", show]);
    m.exchange(&[bind("", "two", &[Some(b"2")]), execute("", 0), sync()]);
    m.extended("SELECT count(*) FROM pg_prepared_statements WHERE name <> $1", &[""]);
    m.exchange(&[close_statement("one"), sync()]);
    m.queries(&["BEGIN", show, "DEALLOCATE three", show, "COMMIT", show, "DEALLOCATE ALL", show]);
}
