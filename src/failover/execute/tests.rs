//! Who may change a node: the session that holds its lock, where locks decide. What the servers do: `failover_postgres`.

use super::*;
use crate::coordination::voters::lock_sessions;

fn config() -> Config {
    let nodes = [("a", 1), ("b", 2), ("c", 3)]
        .map(|(name, port)| format!("[[node]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n"))
        .concat();
    let dir = std::env::temp_dir().join(format!("pgregent-execute-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let cluster =
        format!("[cluster]\nname = \"main\"\nmonitor_user = \"m\"\nstate_dir = {dir:?}\ncoordination = \"voters\"\n");
    let user = "[[auth.user]]\nname = \"u\"\npassword = \"p\"\n";
    Config::parse(&format!("{cluster}{nodes}{user}"), "test").unwrap()
}

#[tokio::test]
async fn no_node_is_changed_by_a_session_that_does_not_hold_its_lock() {
    let config = config();
    let executor = Executor::new(&config, Some(lock_sessions(&config))).unwrap();
    let (a, b, epoch, timeline) = (NodeId(0), NodeId(1), Epoch(1), TimelineId(1));
    // Nothing listens there: whoever tried a session of its own would say so.
    let ends = [
        ("detach", executor.detach(a, epoch).await),
        ("promote", executor.promote(a, epoch).await),
        ("repoint", executor.repoint(a, b, epoch, timeline).await),
        ("reconnect", executor.reconnect(a, epoch).await),
        ("choose", executor.choose(a, b, epoch, timeline).await),
        ("name_sync", executor.name_sync(a, "", epoch).await),
        ("fence_sql", executor.fence_sql(a, epoch, true).await),
        ("unfence_sql", executor.fence_sql(a, epoch, false).await),
    ];
    for (act, end) in ends {
        assert_eq!(end, Outcome::Failed("its lock is not held by this proxy".to_owned()), "{act}");
    }
}
