// node-postgres through whatever PGHOST and PGPORT lead to; the output is compared with a direct run.
// Prints results only: nothing that differs between two correct peers. argv[2] makes names unique.
const { Client, Pool } = require('pg');

const table = 'node_' + process.argv[2];
const show = (...values) => console.log(JSON.stringify(values));

async function basics(client) {
  const all = await client.query("SELECT $1::int AS a, $2::text AS b, $3::jsonb AS c, $4::int[] AS d, NULL AS e", [1, 'zwei', { drei: 4 }, [5, 6]]);
  show(all.rows, all.fields.map((field) => field.name));
  const several = await client.query('SELECT 1 AS one; SELECT 2 AS two');
  show(several.map((result) => result.rows));
  show((await client.query('')).rows, (await client.query({ text: 'SELECT 1, 2', rowMode: 'array' })).rows);
}

async function prepared(client) {
  for (let i = 0; i < 10; i++) {
    const { rows } = await client.query({ name: 'plus', text: 'SELECT $1::int + 1 AS next', values: [i] });
    if (rows[0].next !== i + 1) throw new Error('wrong row');
    await client.query('SELECT 1');
  }
  show('prepared');
}

async function transactions(client) {
  await client.query(`CREATE TABLE ${table} (i int PRIMARY KEY, t text)`);
  await client.query('BEGIN');
  await client.query(`INSERT INTO ${table} VALUES ($1, $2)`, [1, 'one']);
  await client.query('SELECT 1/0').catch((error) => show(error.code, error.severity, error.message));
  await client.query('SELECT 1').catch((error) => show(error.code));
  await client.query('ROLLBACK');
  await client.query('BEGIN');
  await client.query(`INSERT INTO ${table} SELECT i, 'row ' || i FROM generate_series(1, 1000) i`);
  await client.query('COMMIT');
  show((await client.query(`SELECT count(*), sum(i) FROM ${table}`)).rows);
  await client.query(`INSERT INTO ${table} VALUES (1)`).catch((error) => show(error.code));
  show((await client.query(`SELECT * FROM ${table} ORDER BY i`)).rows.length);
}

async function queued(client) {
  // node-postgres sends the next query when the last is answered; all are asked for at once.
  const results = await Promise.all([...Array(50).keys()].map((i) => client.query('SELECT $1::int AS i', [i])));
  show(results.map((result) => result.rows[0].i).join(' '));
}

async function pooled() {
  const pool = new Pool({ max: 12 });
  await Promise.all([...Array(100).keys()].map(async (i) => {
    const client = await pool.connect();
    try {
      await client.query('BEGIN');
      await client.query(`UPDATE ${table} SET t = $1 WHERE i = $2`, ['pooled ' + i, i + 1]);
      const { rows } = await client.query(`SELECT t FROM ${table} WHERE i = $1`, [i + 1]);
      if (rows[0].t !== 'pooled ' + i) throw new Error('wrong row');
      await client.query('COMMIT');
      const again = await client.query(`SELECT t FROM ${table} WHERE i = $1`, [i + 1]);
      if (again.rows[0].t !== 'pooled ' + i) throw new Error('a write was not read back');
    } finally {
      client.release();
    }
  }));
  await pool.end();
  show('pooled');
}

async function notified(client) {
  const other = new Client();
  await other.connect();
  const heard = new Promise((resolve) => client.once('notification', (note) => resolve(note.payload)));
  await client.query(`LISTEN ${table}`);
  await other.query(`NOTIFY ${table}, 'hello'`);
  show(await heard);
  await client.query(`UNLISTEN ${table}`);
  await other.end();
}

async function main() {
  const client = new Client({ statement_timeout: 20000, application_name: 'node driver' });
  client.on('notice', (notice) => show(notice.severity, notice.message));
  await client.connect();
  show((await client.query('SHOW application_name')).rows);
  for (const part of [basics, prepared, transactions, queued, pooled, notified]) await part(client);
  await client.query("DO $$ BEGIN RAISE NOTICE 'noted'; END $$");
  show((await client.query("SELECT repeat('x', 2000000) AS big")).rows[0].big.length);
  await client.query(`DROP TABLE ${table}`);
  await client.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
