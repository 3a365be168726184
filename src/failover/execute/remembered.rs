//! What each standby streamed from before it was detached, so that it can be repointed.
//!
//! Invariants: a connection string is on disk before it is emptied on the node; the file has mode
//! 0600, since a string may hold a password; nothing here is ever logged. Absent on purpose: deciding
//! which one to use.

use super::file;
use crate::coordination::StoreError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Connection strings by node name.
pub(super) struct Remembered {
    path: PathBuf,
    /// Locked for moments only, never across file work.
    known: Mutex<BTreeMap<String, String>>,
    turn: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remembered({})", self.path.display())
    }
}

impl Remembered {
    pub(super) fn open(state_dir: &Path, cluster: &str) -> Result<Self, StoreError> {
        let path = state_dir.join(format!("{cluster}.upstreams.json"));
        // The message must not quote the content.
        let known = file::read(&path, |_| "not the expected JSON".to_owned())?.unwrap_or_default();
        Ok(Self { path, known: Mutex::new(known), turn: tokio::sync::Mutex::default() })
    }

    pub(super) fn recall(&self, node: &str) -> Option<String> {
        self.known.lock().get(node).cloned()
    }

    /// Returns when it is on disk.
    pub(super) async fn remember(&self, node: &str, conninfo: &str) -> Result<(), StoreError> {
        if self.known.lock().get(node).is_some_and(|known| known == conninfo) {
            return Ok(());
        }
        // One writer at a time, each starting from what the one before has written.
        let _turn = self.turn.lock().await;
        let mut next = self.known.lock().clone();
        next.insert(node.to_owned(), conninfo.to_owned());
        file::write(self.path.clone(), serde_json::to_vec(&next)).await?;
        *self.known.lock() = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn what_is_remembered_survives_a_restart_and_is_private() {
        let dir = std::env::temp_dir().join(format!("pgregent-remembered-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let first = Remembered::open(&dir, "main").unwrap();
        first.remember("a", "host=x password=p").await.unwrap();
        first.remember("b", "host=y").await.unwrap();
        first.remember("a", "host=z password=p").await.unwrap();
        let again = Remembered::open(&dir, "main").unwrap();
        assert_eq!(again.recall("a").as_deref(), Some("host=z password=p"));
        assert_eq!(again.recall("b").as_deref(), Some("host=y"));
        assert_eq!(again.recall("c"), None);
        let mode = std::fs::metadata(dir.join("main.upstreams.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.join("main.upstreams.json"), b"{secret").unwrap();
        assert!(!Remembered::open(&dir, "main").unwrap_err().to_string().contains("secret"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
