//! tokio-postgres, directly and through the proxy: what it says has to be the same.
//!
//! Invariant: lines tell results only, nothing that differs between two correct peers. Absent on purpose: TLS.

use super::support::cluster::{APP_PASSWORD, APP_USER};
use futures::{StreamExt, TryStreamExt, pin_mut};
use std::time::Duration;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, Error, IsolationLevel, NoTls, SimpleQueryMessage};

/// Plays everything; `suffix` makes names unique.
pub fn play(port: u16, suffix: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(120), all(port, suffix)).await.unwrap().unwrap() })
}

async fn all(port: u16, suffix: &str) -> Result<Vec<String>, Error> {
    let table = format!("tokio_{suffix}");
    let (mut client, mut heard) = connect(port).await?;
    let mut lines = Vec::new();
    statements(&client, &mut lines).await?;
    transactions(&mut client, &table, &mut lines).await?;
    copies(&client, &table, &mut lines).await?;
    pipelined(&client, &mut lines).await?;
    changed_types(&client, &table, &mut lines).await?;
    cancelled(&client, &mut lines).await?;
    client.batch_execute(&format!("LISTEN {table}; DO $$ BEGIN RAISE NOTICE 'noted'; END $$")).await?;
    connect(port).await?.0.batch_execute(&format!("NOTIFY {table}, 'hello'")).await?;
    for _ in 0..2 {
        lines.push(heard.recv().await.unwrap_or_default());
    }
    client.batch_execute(&format!("DROP TABLE {table}")).await?;
    Ok(lines)
}

/// A client, and what it hears without having asked.
async fn connect(port: u16) -> Result<(Client, tokio::sync::mpsc::UnboundedReceiver<String>), Error> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(APP_USER).password(APP_PASSWORD).dbname(APP_USER);
    let (client, mut connection) = config.connect(NoTls).await?;
    let (heard, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            let line = match message {
                AsyncMessage::Notice(notice) => notice.message().to_owned(),
                AsyncMessage::Notification(note) => note.payload().to_owned(),
                _ => continue,
            };
            let _ = heard.send(line);
        }
    });
    Ok((client, receiver))
}

async fn statements(client: &Client, lines: &mut Vec<String>) -> Result<(), Error> {
    let typed = client.prepare_typed("SELECT $1, $2::text", &[Type::INT8]).await?;
    lines.push(format!(
        "{:?} {:?}",
        typed.params(),
        typed.columns().iter().map(|c| c.type_().clone()).collect::<Vec<_>>()
    ));
    let row = client.query_one(&typed, &[&(1_i64 << 40), &"text"]).await?;
    lines.push(format!("{} {}", row.get::<_, i64>(0), row.get::<_, &str>(1)));
    drop(typed); // closes it
    for number in 0..40 {
        let doubled: i32 = client.query_one("SELECT $1::int * 2", &[&number]).await?.get(0);
        assert_eq!(doubled, number * 2);
    }
    for text in ["SELECT * FROM no_such_table", "SELECT 1/$1::int"] {
        let error = client.query(text, &[&0_i32]).await.err();
        lines.push(format!("{:?}", error.and_then(|error| error.code().cloned())));
    }
    let rows = client.query_typed("SELECT n FROM generate_series(1, $1) n", &[(&5_i32, Type::INT4)]).await?;
    lines.push(format!("{}", rows.len()));
    for message in client.simple_query("SELECT 1 AS a; SELECT 'x', NULL; SET work_mem = '5MB'; SHOW work_mem").await? {
        lines.push(match message {
            SimpleQueryMessage::Row(row) => format!("{:?}", row.get(0)),
            SimpleQueryMessage::CommandComplete(count) => count.to_string(),
            other => format!("{other:?}"),
        });
    }
    Ok(())
}

async fn transactions(client: &mut Client, table: &str, lines: &mut Vec<String>) -> Result<(), Error> {
    client.batch_execute(&format!("CREATE TABLE {table} (i int PRIMARY KEY, t text)")).await?;
    let mut outer = client.transaction().await?;
    outer.execute(&format!("INSERT INTO {table} VALUES ($1, $2)"), &[&1_i32, &"one"]).await?;
    let inner = outer.savepoint("sp").await?;
    let twice = inner.execute(&format!("INSERT INTO {table} VALUES (1, 'twice')"), &[]).await;
    lines.push(format!("{:?}", twice.err().and_then(|error| error.code().cloned())));
    inner.rollback().await?;
    // A portal read in pieces: Execute with a limit, PortalSuspended, Execute again.
    let portal = outer.bind("SELECT generate_series(1, 10)", &[]).await?;
    for _ in 0..3 {
        lines.push(format!("{}", outer.query_portal(&portal, 4).await?.len()));
    }
    outer.commit().await?;
    // Dropped: rolled back behind the next request.
    let dropped = client.transaction().await?;
    dropped.execute(&format!("INSERT INTO {table} VALUES (2, 'never')"), &[]).await?;
    drop(dropped);
    let only_reads =
        client.build_transaction().read_only(true).isolation_level(IsolationLevel::RepeatableRead).start().await?;
    let count: i64 = only_reads.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0);
    let written = only_reads.execute(&format!("DELETE FROM {table}"), &[]).await;
    lines.push(format!("{count} {:?}", written.err().and_then(|error| error.code().cloned())));
    only_reads.rollback().await
}

async fn copies(client: &Client, table: &str, lines: &mut Vec<String>) -> Result<(), Error> {
    let sink = client.copy_in::<_, bytes::Bytes>(&format!("COPY {table} FROM STDIN")).await?;
    pin_mut!(sink);
    for number in 100..1100 {
        futures::SinkExt::send(&mut sink, bytes::Bytes::from(format!("{number}\trow\n"))).await?;
    }
    lines.push(format!("{}", sink.finish().await?));
    let out = client.copy_out(&format!("COPY (SELECT i FROM {table} WHERE i >= 1095 ORDER BY i) TO STDOUT")).await?;
    let bytes: Vec<bytes::Bytes> = out.try_collect().await?;
    lines.push(format!("{:?}", bytes.concat()));
    Ok(())
}

async fn pipelined(client: &Client, lines: &mut Vec<String>) -> Result<(), Error> {
    let ask = |number: i32| async move { client.query_one("SELECT 10 / ($1::int - 7)", &[&number]).await };
    for answer in futures::future::join_all((0..30).map(ask)).await {
        lines.push(answer.map_or_else(|error| format!("{:?}", error.code()), |row| row.get::<_, i32>(0).to_string()));
    }
    Ok(())
}

/// The client decodes by what it was told once, so it has to hear when that is no longer true.
async fn changed_types(client: &Client, table: &str, lines: &mut Vec<String>) -> Result<(), Error> {
    client
        .batch_execute(&format!("CREATE TEMPORARY TABLE c_{table} (a int); INSERT INTO c_{table} VALUES (1)"))
        .await?;
    let known = client.prepare(&format!("SELECT * FROM c_{table}")).await?;
    lines.push(client.query_one(&known, &[]).await?.get::<_, i32>(0).to_string());
    client.batch_execute(&format!("ALTER TABLE c_{table} ALTER a TYPE text")).await?;
    let stale = client.query_one(&known, &[]).await;
    lines.push(format!("{:?}", stale.err().and_then(|error| error.code().cloned())));
    let anew: String = client.query_one(&format!("SELECT * FROM c_{table}"), &[]).await?.get(0);
    lines.push(anew);
    client.batch_execute(&format!("DROP TABLE c_{table}")).await
}

async fn cancelled(client: &Client, lines: &mut Vec<String>) -> Result<(), Error> {
    let token = client.cancel_token();
    let slept = client.batch_execute("SELECT pg_sleep(30)");
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        token.cancel_query(NoTls).await
    };
    let (slept, cancelled) = tokio::join!(slept, cancel);
    cancelled?;
    lines.push(format!("{:?}", slept.err().and_then(|error| error.code().cloned())));
    lines.push(client.query_one("SELECT 'alive'", &[]).await?.get(0));
    Ok(())
}
