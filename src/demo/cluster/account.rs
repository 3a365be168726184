//! The unprivileged user that PostgreSQL's programs run as.
//!
//! Invariants: a command made here never runs a PostgreSQL program as root, and carries none of the
//! caller's `PG*` variables. Absent on purpose: `su`, `runuser` and pluggable authentication; the
//! standard library changes the user between fork and exec.

use super::error::ClusterError;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Users looked for when we are root, best first.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// Who PostgreSQL's programs run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// As the caller, who is not root.
    Caller,
    /// As this user, because the caller is root.
    Other {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl Account {
    /// Chooses: the caller, or `postgres` (or `nobody`) if the caller is root.
    pub(super) fn find() -> Result<Self, ClusterError> {
        let proc_self = Path::new("/proc/self");
        let uid = fs::metadata(proc_self).map_err(ClusterError::at("read", proc_self))?.uid();
        if uid != 0 {
            return Ok(Self::Caller);
        }
        for name in CANDIDATES {
            let answer = Command::new("getent").args(["passwd", name]).stdin(Stdio::null()).output();
            let line = answer.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            if let Some((uid, gid)) = ids(&line).filter(|(uid, _)| *uid != 0) {
                return Ok(Self::Other { uid, gid });
            }
        }
        Err(ClusterError::NoAccount { tried: CANDIDATES.join(", ") })
    }

    /// A command that runs as this user in `cwd`, in its own process group (so that Ctrl-C in the
    /// terminal reaches only us), with nothing on standard input.
    pub(super) fn command(self, program: impl AsRef<OsStr>, cwd: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").env("HOME", cwd).current_dir(cwd);
        command.stdin(Stdio::null()).process_group(0);
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// As [`Account::command`], in a network namespace. `nsenter` needs to be root until it is inside, so it
    /// changes the user itself; it ends by becoming the program, which keeps the process id.
    pub(super) fn command_in(self, namespace: &Path, program: &Path, cwd: &Path) -> Command {
        let mut command = Self::Caller.command("nsenter", cwd);
        command.arg(format!("--net={}", namespace.display()));
        if let Self::Other { uid, gid } = self {
            command.arg(format!("--setuid={uid}")).arg(format!("--setgid={gid}"));
        }
        command.arg("--").arg(program);
        command
    }

    /// Gives a path to this user.
    pub(super) fn own(self, path: &Path) -> Result<(), ClusterError> {
        match self {
            Self::Caller => Ok(()),
            Self::Other { uid, gid } => {
                chown(path, Some(uid), Some(gid)).map_err(ClusterError::at("change the owner of", path))
            }
        }
    }

    /// Writes a file that belongs to this user.
    pub(super) fn write(self, path: &Path, text: &str) -> Result<(), ClusterError> {
        fs::write(path, text).map_err(ClusterError::at("write", path))?;
        self.own(path)
    }

    /// Whether this user can get into `dir` (judged by the "others" bits if it is not the caller).
    pub(super) fn can_enter(self, dir: &Path) -> bool {
        const OTHERS_SEARCH: u32 = 0o001;
        match self {
            Self::Caller => true,
            Self::Other { .. } => {
                dir.ancestors().all(|part| fs::metadata(part).is_ok_and(|m| m.mode() & OTHERS_SEARCH != 0))
            }
        }
    }
}

/// User and group id from a line of passwd(5).
fn ids(line: &str) -> Option<(u32, u32)> {
    let mut fields = line.trim().split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd_line_gives_both_ids() {
        assert_eq!(ids("postgres:x:101:104:PostgreSQL,,,:/var/lib/postgresql:/bin/bash\n"), Some((101, 104)));
        assert_eq!(ids(""), None);
        assert_eq!(ids("postgres:x:many:104:"), None);
    }
}
