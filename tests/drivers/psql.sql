-- psql's own commands and statements; the output is compared with that of a direct connection.
\set ON_ERROR_STOP off
\pset null '(null)'
\encoding
SELECT 1 AS one, NULL AS nothing;
CREATE TABLE :t (i int PRIMARY KEY, t text NOT NULL DEFAULT 'x');
COPY :t (i) FROM STDIN;
1
2
3
4
5
\.
INSERT INTO :t VALUES (6, 'six') RETURNING *;
INSERT INTO :t VALUES (6, 'again');
\echo :SQLSTATE :LAST_ERROR_MESSAGE
SELECT count(*), sum(i) FROM :t;
COPY (SELECT * FROM :t ORDER BY i) TO STDOUT;
\copy (SELECT generate_series(1, 3)) TO STDOUT
BEGIN;
UPDATE :t SET t = t || '!' WHERE i < 3;
SAVEPOINT a;
SELECT 1/0;
ROLLBACK TO a;
SELECT * FROM :t ORDER BY i;
COMMIT;
SELECT i FROM :t ORDER BY i \gset last_
SELECT 'a' AS x, 1 AS y \gdesc
SELECT format('SELECT %s', i) FROM :t ORDER BY i \gexec
\set FETCH_COUNT 2
SELECT i FROM :t ORDER BY i;
\unset FETCH_COUNT
PREPARE p AS SELECT $1::int * 2;
EXECUTE p(21);
DEALLOCATE p;
SET DateStyle = 'German';
SELECT date '2020-02-03';
RESET DateStyle;
\x
SELECT * FROM :t WHERE i = 6;
\x
DO $$ BEGIN RAISE NOTICE 'noted'; END $$;
SELECT 1 \; SELECT 2 \; SELECT 3;
\timing off
\d :t
DROP TABLE :t;
