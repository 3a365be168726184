//! What the primary's commits wait for, kept for the next start of this proxy.
//!
//! Invariants: what is on disk is the newest that was given, or one before it; a damaged file is an error and not an
//! empty one. Absent on purpose: agreement with other proxies, each of which keeps what it saw itself.

use crate::coordination::{StoreError, replace_file};
use crate::failover::promise::Promise;
use parking_lot::Mutex;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

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
        let fail = |act| {
            let path = path.clone();
            move |cause| StoreError::Io { act, path, cause }
        };
        let newest = match std::fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail("open")(e)),
            Ok(file) => {
                let mut text = Vec::new();
                file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(fail("read"))?;
                let damaged = |e: serde_json::Error| StoreError::Damaged { path: path.clone(), why: e.to_string() };
                Some(serde_json::from_slice(&text).map_err(damaged)?)
            }
        };
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
        let path = self.path.clone();
        let work = move || {
            let text = serde_json::to_vec_pretty(&content).map_err(|e| StoreError::Io {
                act: "encode",
                path: path.clone(),
                cause: e.into(),
            })?;
            replace_file(&path, &text)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Stopping)?
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
