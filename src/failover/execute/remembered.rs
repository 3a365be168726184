//! What each standby streamed from before it was detached, so that it can be repointed.
//!
//! Invariants: a connection string is on disk before it is emptied on the node; the file has mode
//! 0600, since a string may hold a password; nothing here is ever logged. Absent on purpose: deciding
//! which one to use.

use crate::coordination::{StoreError, replace_file};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

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
        use std::io::Read;
        let path = state_dir.join(format!("{cluster}.upstreams.json"));
        let fail = |act| {
            let path = path.clone();
            move |cause| StoreError::Io { act, path, cause }
        };
        let known = match std::fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(fail("open")(e)),
            Ok(file) => {
                let mut text = Vec::new();
                file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(fail("read"))?;
                // The message must not quote the content.
                let damaged = |_| StoreError::Damaged { path: path.clone(), why: "not the expected JSON".to_owned() };
                serde_json::from_slice(&text).map_err(damaged)?
            }
        };
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
        let (path, content) = (self.path.clone(), next.clone());
        let work = move || {
            let text = serde_json::to_vec(&content).map_err(|e| StoreError::Io {
                act: "encode",
                path: path.clone(),
                cause: e.into(),
            })?;
            replace_file(&path, &text)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Stopping)??;
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
