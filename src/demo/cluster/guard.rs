//! A directory that disappears, with every process in it, also when its owner is killed.
//!
//! A small shell process holds a pipe from us. When the pipe ends, because the guard is dropped or
//! because this process died of anything at all, it stops what works inside the directory and
//! removes it. Both ways use the same code, so the hard one is exercised by every test.
//!
//! Invariants: the directory's lock file is locked while its owner lives (the kernel frees it), so a
//! sweep can tell leftovers from neighbours, across process and container borders. Absent on purpose:
//! signal handlers and `PR_SET_PDEATHSIG` (needs unsafe code).

use super::account::Account;
use super::error::ClusterError;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What every cluster directory starts with; `guard.sh` refuses other names.
const PREFIX: &str = "pgregent-cluster-";
const LOCK_FILE: &str = "lock";
const SCRIPT: &str = include_str!("guard.sh");
/// Longest parent path: the directory also holds Unix sockets, whose paths may have 107 bytes.
const PARENT_BYTES_MAX: usize = 60;
/// Leftovers removed at one start; the rest waits for the next one.
const SWEEP_MAX: usize = 16;

/// A temporary directory with a watching process.
#[derive(Debug)]
pub(super) struct Guard {
    dir: PathBuf,
    watcher: Child,
    _lock: File,
}

impl Guard {
    /// Makes a directory below `parent` (or below the temporary directory), owned by `account`.
    pub(super) fn new(parent: Option<&Path>, account: Account) -> Result<Self, ClusterError> {
        let parent = parent.map_or_else(|| default_parent(account), Path::to_owned);
        sweep(&parent);
        let name = format!("{PREFIX}{:08x}", rand::random::<u32>());
        // Made under another name and renamed when locked, so that no sweep meets it half made.
        let making = parent.join(format!(".{name}"));
        DirBuilder::new().mode(0o700).create(&making).map_err(ClusterError::at("create", &making))?;
        let made = make(&making, &parent.join(&name), account);
        if made.is_err() {
            let _ = fs::remove_dir_all(&making);
        }
        made
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        let done = self.watcher.wait().is_ok_and(|status| status.success());
        if !done && self.dir.exists() {
            // The watcher itself was killed. Do its work once more, watched by nobody.
            let _ = script(&self.dir).stdin(Stdio::null()).status();
        }
    }
}

fn make(making: &Path, dir: &Path, account: Account) -> Result<Guard, ClusterError> {
    let lock_path = making.join(LOCK_FILE);
    let lock = File::create(&lock_path).map_err(ClusterError::at("create", &lock_path))?;
    lock.lock().map_err(ClusterError::at("lock", &lock_path))?;
    account.own(making)?;
    fs::rename(making, dir).map_err(ClusterError::at("rename", making))?;
    let watcher = script(dir).stdin(Stdio::piped()).spawn().map_err(ClusterError::at("start a shell to watch", dir))?;
    Ok(Guard { dir: dir.to_owned(), watcher, _lock: lock })
}

fn script(dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "guard.sh"]).arg(dir).current_dir("/");
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command
}

fn default_parent(account: Account) -> PathBuf {
    let parent = std::env::temp_dir();
    let short = parent.as_os_str().len() <= PARENT_BYTES_MAX;
    if short && account.can_enter(&parent) { parent } else { PathBuf::from("/tmp") }
}

/// Removes directories whose owner is gone. Best effort: a failure leaves them to the next start.
fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for entry in ours.take(SWEEP_MAX) {
        let dir = entry.path();
        let lock = File::options().write(true).open(dir.join(LOCK_FILE));
        if lock.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = script(&dir).stdin(Stdio::null()).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(name: &str) -> PathBuf {
        let parent = std::env::temp_dir().join(format!("pgregent-guard-{name}-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        parent
    }

    #[test]
    fn dropping_removes_the_directory() {
        let parent = parent("drop");
        let guard = Guard::new(Some(&parent), Account::Caller).unwrap();
        fs::write(guard.dir().join("file"), "x").unwrap();
        let dir = guard.dir().to_owned();
        drop(guard);
        assert!(!dir.exists());
        fs::remove_dir(&parent).unwrap();
    }

    #[test]
    fn a_sweep_spares_the_living_and_removes_the_rest() {
        let parent = parent("sweep");
        let alive = Guard::new(Some(&parent), Account::Caller).unwrap();
        let stale = parent.join(format!("{PREFIX}00000000"));
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join(LOCK_FILE), "").unwrap();
        let next = Guard::new(Some(&parent), Account::Caller).unwrap();
        assert!(alive.dir().exists());
        assert!(!stale.exists());
        drop((alive, next));
        fs::remove_dir(&parent).unwrap();
    }

    #[test]
    fn the_script_refuses_other_directories() {
        let parent = parent("other");
        assert!(!script(&parent).stdin(Stdio::null()).status().unwrap().success());
        fs::remove_dir(&parent).unwrap();
    }
}
