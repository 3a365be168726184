// Asks the console through node-postgres: simple, extended and named statements.
const { Client } = require('pg');

async function main() {
  const client = new Client({ database: process.argv[2], application_name: 'node' });
  await client.connect();
  const version = await client.query('SHOW VERSION');
  console.log('version', version.rows[0].version.startsWith('pgregent '));
  const lists = await client.query({ text: 'SHOW LISTS', name: 'lists' });
  console.log('lists', JSON.stringify(lists.rows[2]), JSON.stringify((await client.query({ text: 'SHOW LISTS', name: 'lists' })).rows[2]));
  const pools = await client.query({ text: 'SHOW POOLS', values: [] });
  console.log('pools', pools.fields.slice(0, 3).map((field) => field.name).join(' '), pools.rows.length >= 1);
  try {
    await client.query({ text: 'SHOW NONSENSE', values: [] });
  } catch (error) {
    console.log('error', error.code);
  }
  const both = await client.query('SHOW VERSION; SHOW STATE');
  console.log('both', both.map((result) => result.rows.length).join(' '));
  await client.end();
}

main().catch((error) => { console.error(error); process.exit(1); });
