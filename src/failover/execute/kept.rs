//! What the primary's commits wait for, kept for the next start of this proxy.
//!
//! Invariants: what is on disk is the newest that was given, or one before it; a damaged file is an error and not an
//! empty one. Absent on purpose: agreement with other proxies, each of which keeps what it saw itself.

use super::file;
use crate::coordination::StoreError;
use crate::failover::promise::Promise;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};

/// The file, and the newest content.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    /// Locked for moments only, never across file work.
    newest: Mutex<Option<Promise>>,
    turn: tokio::sync::Mutex<()>,
}

impl Kept {
    pub(super) fn open(state_dir: &Path, cluster: &str) -> Result<Self, StoreError> {
        let path = state_dir.join(format!("{cluster}.promise.json"));
        let newest = file::read(&path, |e| e.to_string())?;
        Ok(Self { path, newest: Mutex::new(newest), turn: tokio::sync::Mutex::default() })
    }

    pub(super) fn newest(&self) -> Option<Promise> {
        self.newest.lock().clone()
    }

    /// From now on this is to be written.
    pub(super) fn replace(&self, promise: Promise) {
        *self.newest.lock() = Some(promise);
    }

    /// Returns when the newest is on disk.
    pub(super) async fn write(&self) -> Result<(), StoreError> {
        // One writer at a time, each with what is newest then.
        let _turn = self.turn.lock().await;
        let Some(content) = self.newest() else { return Ok(()) };
        file::write(self.path.clone(), serde_json::to_vec_pretty(&content)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::promise::Asked;
    use crate::failover::sync::Method;
    use crate::ids::Lsn;

    #[tokio::test]
    async fn what_is_kept_survives_a_restart() {
        let dir = std::env::temp_dir().join(format!("pgregent-kept-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let first = Kept::open(&dir, "main").unwrap();
        assert_eq!(first.newest(), None);
        first.write().await.unwrap();
        let asked = Asked { method: Method::Any, k: 1, members: vec!["b".into()], strangers: vec!["archive".into()] };
        let promise = Promise { primary: "a".into(), present: None, before: Some((asked, Lsn(7))) };
        first.replace(Promise { before: None, ..promise.clone() });
        first.replace(promise.clone());
        first.write().await.unwrap();
        assert_eq!(Kept::open(&dir, "main").unwrap().newest(), Some(promise));
        assert_eq!(Kept::open(&dir, "other").unwrap().newest(), None);
        std::fs::write(dir.join("main.promise.json"), b"{}").unwrap();
        assert!(matches!(Kept::open(&dir, "main"), Err(StoreError::Damaged { .. })));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
