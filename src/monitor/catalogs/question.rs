//! What a node is asked for its catalog.
//!
//! Invariants: everything is found with `search_path = pg_catalog`, which the connection sets, so that definitions come
//! with the schema of every name outside it; what is PostgreSQL's own is left out, and so is what is temporary.
//! Absent on purpose: limits on rows (whoever reads them stops).

/// Before anything else. Reading a view's definition locks its relations, and must not wait long for whoever alters
/// them; constants are to be told as they are parsed here.
pub(super) const PREPARATION: &str = "SET lock_timeout = '1s'; SET statement_timeout = '25s'; \
     SET standard_conforming_strings = on; \
     SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY";

/// A text that changes when any row of [`ROWS`] may. A row that is written anew has another `xmin`, on every node; of
/// relations only what matters counts, since their rows change with every truncation and index.
pub(super) const MARK: &str = r"
SELECT concat_ws(' ',
 (SELECT concat(count(*), ':', sum(hashtext(concat(oid, ' ', xmin)))) FROM pg_proc
   WHERE pronamespace <> 'pg_catalog'::regnamespace),
 (SELECT concat(count(*), ':', sum(hashtext(concat(oid, ' ', relname, ' ', relnamespace, ' ', relkind,
   relpersistence, relrowsecurity)))) FROM pg_class
   WHERE relpersistence <> 't' AND (relkind IN ('f', 'v') OR relpersistence = 'u' OR relrowsecurity)),
 (SELECT concat(count(*), ':', sum(hashtext(concat(oid, ' ', xmin)))) FROM pg_rewrite WHERE ev_type = '1'),
 (SELECT concat(count(*), ':', sum(hashtext(concat(oid, ' ', xmin)))) FROM pg_policy),
 (SELECT concat(count(*), ':', sum(hashtext(concat(inhrelid, ' ', inhparent)))) FROM pg_inherits),
 (SELECT concat(count(*), ':', sum(hashtext(concat(oid, ' ', nspname)))) FROM pg_namespace
   WHERE nspname !~ '^pg_(toast_)?temp_'))";

/// Rows of kind, schema, name, text; $1: how much of a definition is told.
///
/// A function that is not volatile may still lock, or name what one node knows of itself, by its body or by those of
/// functions it names; an aggregate is what its parts are. Unlogged and foreign relations come with all their parents.
pub(super) const ROWS: &str = r"
WITH RECURSIVE spaces AS (
 SELECT oid, nspname FROM pg_namespace WHERE nspname <> 'pg_catalog' AND nspname !~ '^pg_(toast|temp)'
), code AS MATERIALIZED (
 SELECT p.oid, p.proname, CASE WHEN p.prosrc = '' AND p.prokind <> 'a' THEN pg_get_functiondef(p.oid)
  ELSE p.prosrc END AS body
 FROM pg_proc p JOIN spaces n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
 WHERE l.lanname NOT IN ('internal', 'c') AND p.prokind <> 'a'
), local (oid, proname, depth) AS (
 SELECT oid, proname, 1 FROM code WHERE body ~* '(\mpg_(try_)?advisory_)|(\mpg_stat)|(\mpg_(terminate|cancel)_backend\M)|(\mpg_(locks|settings|cursors|backend_pid|prepared_statements|prepared_xacts|replication_slots|current_logfile|postmaster_start_time|sleep|sleep_for|sleep_until)\M)'
 UNION SELECT c.oid, c.proname, l.depth + 1 FROM local l
  JOIN code c ON strpos(c.body, l.proname) > 0 AND c.body ~ concat('\m', regexp_replace(l.proname, '(\W)', '\\\1', 'g'), '\M') WHERE l.depth < 4
), marked (oid, kind, origin) AS (
 SELECT oid, CASE WHEN relkind = 'f' THEN 'foreign' ELSE 'unlogged' END, oid FROM pg_class
  WHERE relkind = 'f' OR relpersistence = 'u' AND relkind IN ('r', 'p', 'S', 'm')
 UNION SELECT i.inhparent, m.kind, m.origin FROM marked m JOIN pg_inherits i ON i.inhrelid = m.oid
)
SELECT concat('function ', max(CASE WHEN f.provolatile = 'v' THEN 2
  WHEN f.oid IN (SELECT oid FROM local) THEN 1 ELSE 0 END)), n.nspname::text, p.proname::text, ''
 FROM pg_proc p JOIN spaces n ON n.oid = p.pronamespace LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid
 JOIN pg_proc f ON f.oid = ANY (ARRAY[p.oid, a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn,
  a.aggminvtransfn, a.aggmfinalfn]::oid[])
 WHERE p.prokind <> 'p' GROUP BY n.nspname, p.proname
UNION ALL (SELECT DISTINCT ON (m.oid, m.kind) m.kind, n.nspname, c.relname, concat(o.nspname, '.', child.relname)
 FROM marked m JOIN pg_class c ON c.oid = m.oid JOIN spaces n ON n.oid = c.relnamespace
 JOIN pg_class child ON child.oid = m.origin JOIN pg_namespace o ON o.oid = child.relnamespace
 ORDER BY m.oid, m.kind, m.origin <> m.oid, m.origin)
UNION ALL SELECT 'view', n.nspname, c.relname, coalesce(left(pg_get_viewdef(c.oid), $1), '?')
 FROM pg_class c JOIN spaces n ON n.oid = c.relnamespace
 WHERE c.relkind = 'v' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
UNION ALL SELECT 'policy', n.nspname, c.relname, coalesce(left(pg_get_expr(p.polqual, p.polrelid), $1), '?')
 FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN spaces n ON n.oid = c.relnamespace
 WHERE c.relrowsecurity AND p.polcmd IN ('r', '*') AND p.polqual IS NOT NULL";
