-- What people do at psql's prompt. Run through the proxy and directly; the output must be the same.
\set ON_ERROR_STOP off
CREATE SCHEMA play;
SET search_path = play, public;
CREATE TABLE t (id int PRIMARY KEY, name text, score numeric(6,2));
\copy t from stdin with (format csv)
1,one,1.5
2,two,2.5
3,"three, or so",
\.
\copy (SELECT * FROM t ORDER BY id) to stdout with (format csv, header)
COPY t TO STDOUT;
SELECT * FROM t ORDER BY id \g
\x on
SELECT * FROM t WHERE id = 3;
\x off
\pset null '(none)'
TABLE t ORDER BY 1;
\d t
\dt play.*
\di play.*
\dn play
\df play.*
-- variables
SELECT count(*) AS rows, max(score) AS best FROM t \gset
\echo :rows :best
\set who 'two'
SELECT id FROM t WHERE name = :'who';
SELECT :rows = 3 AS three \gset
\if :three
\echo some
\else
\echo none
\endif
SELECT format('CREATE TABLE made_%s (a int)', i) FROM generate_series(1, 3) i \gexec
\dt play.made*
SELECT 1 AS a, 'x'::text AS b, now() AS c \gdesc
SELECT id, name, score FROM t \crosstabview id name score
-- repeats until it fails
CREATE SEQUENCE ticks;
SELECT 10 / (3 - nextval('ticks')) AS tick \watch 0.01
-- errors
SELECT * FROM nowhere;
\errverbose
\echo :ERROR :SQLSTATE :LAST_ERROR_MESSAGE
\set VERBOSITY verbose
SELECT 1 / 0;
\set VERBOSITY default
-- a transaction that survives errors, statement by statement
\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO t VALUES (4, 'four', 4);
INSERT INTO t VALUES (4, 'four again', 4);
INSERT INTO t VALUES (5, 'five', 5);
COMMIT;
\set ON_ERROR_ROLLBACK off
SELECT count(*) FROM t;
-- without autocommit
\set AUTOCOMMIT off
INSERT INTO t VALUES (6, 'six', 6);
ROLLBACK;
\set AUTOCOMMIT on
SELECT count(*) FROM t;
-- several statements in one message
SELECT 1 \; SELECT 2 \; SELECT count(*) FROM t;
INSERT INTO t VALUES (7, 'seven', 7) \; SELECT 1 / 0;
SELECT count(*) FROM t;
BEGIN \; INSERT INTO t VALUES (8, 'eight', 8) \; COMMIT \; SELECT count(*) FROM t;
-- in pieces, through a cursor
\set FETCH_COUNT 2
SELECT id, name FROM t ORDER BY id;
\unset FETCH_COUNT
-- large objects
\lo_import /etc/hostname 'a name'
\set big :LASTOID
SELECT length(lo_get(:big)) > 0;
\lo_export :big /dev/null
\lo_unlink :big
-- notices, notifications
DO $$ BEGIN RAISE NOTICE 'seen'; RAISE WARNING 'seen too'; END $$;
LISTEN news;
NOTIFY news, 'extra';
SELECT pg_notify('news', 'more') IS NULL;
UNLISTEN *;
-- prepared in SQL, cursors, temporary tables
PREPARE p (int) AS SELECT name FROM t WHERE id = $1;
EXECUTE p (1);
EXECUTE p (2);
SELECT name FROM pg_prepared_statements;
DEALLOCATE p;
DECLARE c CURSOR WITH HOLD FOR SELECT id FROM t ORDER BY id;
FETCH 2 FROM c;
MOVE 1 FROM c;
FETCH ALL FROM c;
CLOSE c;
CREATE TEMP TABLE mine AS SELECT 1 AS a;
SELECT * FROM mine;
SELECT relpersistence FROM pg_class WHERE relname = 'mine' AND pg_table_is_visible(oid);
DROP TABLE mine;
-- settings, roles
SET application_name = 'play';
SHOW application_name;
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY;
CREATE TABLE refused (a int);
SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE;
SET LOCAL work_mem = '1MB';
\encoding LATIN1
SELECT 'ä' = E'\u00e4';
\encoding UTF8
SHOW client_encoding;
\c shop
SHOW search_path;
SHOW application_name;
DROP SCHEMA play CASCADE;
