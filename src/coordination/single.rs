//! The store for one proxy: a small JSON file in the state directory.
//!
//! Invariants: the file is replaced atomically (temporary file, fsync, rename, fsync of the
//! directory); one process at a time uses it (a lock file held while the store lives); the file is read
//! once, at open, and what was confirmed since is in memory too. Absent on purpose: agreement with
//! other proxies.

use super::{Store, StoreError, may_follow};
use crate::failover::event::Record;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest state file read, bytes; a record takes about 100.
const STATE_BYTES_MAX: u64 = 64 * 1024;

/// The file store. Dropping it frees the lock.
#[derive(Debug)]
pub struct SingleStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// The file's content. Locked on blocking threads only, never on the runtime's.
    stored: Mutex<Option<Record>>,
    /// Keeps records in the order in which they came.
    turn: tokio::sync::Mutex<()>,
    /// Held for its lock.
    _lock: File,
}

impl SingleStore {
    /// Takes the lock and reads `<state_dir>/<cluster>.json`; creates the directory (mode 0700) if it
    /// is missing. Blocks briefly: call it before the runtime starts.
    ///
    /// # Errors
    /// When another process holds the lock, the directory cannot be used, or the file is damaged.
    pub fn open(state_dir: &Path, cluster: &str) -> Result<Self, StoreError> {
        make_dir(state_dir)?;
        let lock = take_lock(&state_dir.join(format!("{cluster}.lock")))?;
        let path = state_dir.join(format!("{cluster}.json"));
        let stored = read_record(&path)?;
        Ok(Self {
            shared: Arc::new(Shared { path, stored: Mutex::new(stored), turn: Default::default(), _lock: lock }),
        })
    }
}

impl Store for SingleStore {
    fn name(&self) -> &'static str {
        "single"
    }

    fn recall(&self) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(blocking(move || Ok(shared.stored.lock().clone())))
    }

    fn record(&self, record: Record) -> BoxFuture<'_, Result<(), StoreError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let _turn = self.shared.turn.lock().await;
            blocking(move || shared.store(record)).await
        })
    }
}

impl Shared {
    fn store(&self, record: Record) -> Result<(), StoreError> {
        let mut stored = self.stored.lock();
        if let Some(stored) = stored.as_ref() {
            may_follow(stored, &record).map_err(StoreError::Backwards)?;
            if *stored == record {
                return Ok(());
            }
        }
        let text = serde_json::to_vec_pretty(&record).map_err(|e| StoreError::Io {
            act: "encode",
            path: self.path.clone(),
            cause: e.into(),
        })?;
        replace_file(&self.path, &text)?;
        *stored = Some(record);
        Ok(())
    }
}

/// Runs file work where a slow disk cannot stop the control plane.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Stopping)?
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|cause| StoreError::Io { act: "create directory", path: dir.to_owned(), cause })
}

fn take_lock(path: &Path) -> Result<File, StoreError> {
    let fail = |act| move |cause| StoreError::Io { act, path: path.to_owned(), cause };
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(fail("open"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(cause)) => Err(fail("lock")(cause)),
    }
}

fn read_record(path: &Path) -> Result<Option<Record>, StoreError> {
    let fail = |act| move |cause| StoreError::Io { act, path: path.to_owned(), cause };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail("open")(e)),
    };
    let mut text = String::new();
    let damaged = |why: String| StoreError::Damaged { path: path.to_owned(), why };
    match file.take(STATE_BYTES_MAX + 1).read_to_string(&mut text) {
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => return Err(damaged("it is not UTF-8".into())),
        other => other.map_err(fail("read"))?,
    };
    if text.len() as u64 > STATE_BYTES_MAX {
        return Err(damaged(format!("it is longer than {STATE_BYTES_MAX} bytes")));
    }
    serde_json::from_str(&text).map(Some).map_err(|e| damaged(e.to_string()))
}

/// Replaces a file so that after a crash either the old or the new content is there; mode 0600.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let fail = |act, path: &Path| {
        let path = path.to_owned();
        move |cause| StoreError::Io { act, path, cause }
    };
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(fail("open", &temporary))?;
    file.write_all(content).map_err(fail("write", &temporary))?;
    file.sync_all().map_err(fail("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(fail("rename to", path))?;
    // Without this the rename itself may be lost.
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordination::conformance;
    use std::os::unix::fs::PermissionsExt;

    /// A directory of its own, gone at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("pgregent-store-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn it_conforms_and_survives_a_restart() {
        let dir = Scratch::new("conforms");
        let store = SingleStore::open(&dir.0, "main").unwrap();
        let ground = conformance::Ground::empty();
        conformance::check(&store, &ground).await.unwrap();
        drop(store);
        let store = SingleStore::open(&dir.0, "main").unwrap();
        assert_eq!(store.recall().await.unwrap(), Some(ground.last()));
        let refused = store.record(conformance::sample(8, "a", 5)).await;
        assert!(matches!(refused, Err(StoreError::Backwards(_))), "{refused:?}");
        let mode = fs::metadata(dir.0.join("main.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_second_process_is_refused_while_the_first_lives() {
        let dir = Scratch::new("lock");
        let first = SingleStore::open(&dir.0, "main").unwrap();
        let second = SingleStore::open(&dir.0, "main").unwrap_err();
        assert!(matches!(second, StoreError::Locked { .. }), "{second}");
        SingleStore::open(&dir.0, "other").unwrap();
        drop(first);
        SingleStore::open(&dir.0, "main").unwrap();
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_store() {
        let dir = Scratch::new("damaged");
        fs::create_dir_all(&dir.0).unwrap();
        for content in [&b""[..], b"{", b"{\"epoch\":3}", b"\xff\xfe", &[b' '; STATE_BYTES_MAX as usize + 1]] {
            fs::write(dir.0.join("main.json"), content).unwrap();
            let opened = SingleStore::open(&dir.0, "main").unwrap_err();
            assert!(matches!(opened, StoreError::Damaged { .. }), "{opened}");
        }
    }

    #[tokio::test]
    async fn a_store_that_cannot_write_says_so_and_keeps_the_old_record() {
        let dir = Scratch::new("unwritable");
        let store = SingleStore::open(&dir.0, "main").unwrap();
        store.record(conformance::sample(1, "a", 1)).await.unwrap();
        // A directory in the temporary file's place makes the write fail, for root too.
        fs::create_dir(dir.0.join("main.new")).unwrap();
        let failed = store.record(conformance::sample(2, "b", 1)).await.unwrap_err();
        assert!(matches!(failed, StoreError::Io { act: "open", .. }), "{failed}");
        assert_eq!(store.recall().await.unwrap(), Some(conformance::sample(1, "a", 1)));
    }
}
