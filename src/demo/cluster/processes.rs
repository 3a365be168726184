//! The processes of a node, found by their working directory, and signals to them.
//!
//! PostgreSQL's processes all work in the data directory, so they are found there even after their
//! postmaster died. Invariants: a process id is looked up right before it is signalled, never kept.
//! Absent on purpose: a binding to kill(2); the shell's own `kill` needs no unsafe code and no crate.

use super::error::ClusterError;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A signal, by its POSIX name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Term,
    Int,
    Quit,
    Kill,
    Stop,
    Cont,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Cont => "CONT",
        }
    }
}

/// Ids of all PostgreSQL processes that work in `data_dir`, zombies excluded.
pub(super) fn in_directory(data_dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data_dir))
        .filter(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "postgres"))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Sends a signal to each process. One that is gone by now is no error.
pub(super) fn signal(pids: &[u32], signal: Signal) -> Result<(), ClusterError> {
    if pids.is_empty() {
        return Ok(());
    }
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill \"$@\"", "kill", &format!("-{}", signal.name())]);
    kill.args(pids.iter().map(u32::to_string)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let done = kill.status().map(drop);
    done.map_err(|source| ClusterError::Io { what: format!("send {} to {pids:?}", signal.name()), source })
}

/// Asks one process to stop.
pub(crate) fn signal_term(pid: u32) -> Result<(), ClusterError> {
    signal(&[pid], Signal::Term)
}
