//! Unix sockets to listen on, at the place where libpq looks for them.
//!
//! Invariants, as PostgreSQL's: a lock file beside the socket says who has it, so that a socket that
//! somebody still serves is never taken away, and one that was left behind is; both files go when the
//! listener does. The permissions are in place before anybody can connect. Absent on purpose: abstract
//! sockets (anybody may squat on their names).

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Lock files removed because nobody is behind them, before we give up.
const TRIES: usize = 10;

/// A socket file with its lock; both are removed with it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    lock: PathBuf,
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the place of port `port` in this directory.
    fn claim(directory: &Path, port: u16) -> io::Result<Self> {
        let path = directory.join(format!(".s.PGSQL.{port}"));
        let lock = directory.join(format!(".s.PGSQL.{port}.lock"));
        for _ in 0..TRIES {
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock) {
                Ok(mut file) => {
                    let claimed = Self { path, lock };
                    // PostgreSQL's first line; what it writes below is about its data directory.
                    writeln!(file, "{}", std::process::id())?;
                    return match fs::remove_file(&claimed.path) {
                        Err(err) if err.kind() != ErrorKind::NotFound => Err(err),
                        _ => Ok(claimed),
                    };
                }
                Err(err) if err.kind() == ErrorKind::AlreadyExists => remove_if_stale(&lock)?,
                Err(err) => return Err(err),
            }
        }
        Err(io::Error::new(ErrorKind::AddrInUse, format!("{} comes back each time", lock.display())))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed them before us wanted the same.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock);
    }
}

fn remove_if_stale(lock: &Path) -> io::Result<()> {
    let text = match fs::read_to_string(lock) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let owner = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).map(i32::abs);
    // An empty one is being written by somebody, or was when the machine went down; a person must say.
    let Some(owner) = owner else {
        let told = format!("{} does not say whose it is; remove it if nobody serves there", lock.display());
        return Err(io::Error::new(ErrorKind::AddrInUse, told));
    };
    // In a container our predecessor often had our own number.
    let ours = u32::try_from(owner).is_ok_and(|owner| owner == std::process::id());
    if !ours && is_alive(owner) {
        let told = format!("process {owner} serves there, says {}", lock.display());
        return Err(io::Error::new(ErrorKind::AddrInUse, told));
    }
    match fs::remove_file(lock) {
        Err(err) if err.kind() != ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

fn is_alive(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return false };
    // "Not permitted" means somebody else's, but alive.
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// Listens at the place of port `port` in this directory. Must run inside a tokio runtime.
pub(super) fn listen(
    directory: &Path,
    port: u16,
    permissions: u32,
    backlog: u32,
) -> io::Result<(UnixListener, SocketFile)> {
    let file = SocketFile::claim(directory, port)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(&file.path)?)?;
    fs::set_permissions(&file.path, fs::Permissions::from_mode(permissions))?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pgregent-unix-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[tokio::test]
    async fn what_was_left_behind_is_replaced_and_nothing_else() {
        let place = directory("stale");
        let (socket, lock) = (place.join(".s.PGSQL.7"), place.join(".s.PGSQL.7.lock"));
        // Nobody has this number: it is above what the kernel gives.
        fs::write(&lock, "2147483646\n").unwrap();
        fs::write(&socket, "").unwrap();
        let (_listener, file) = listen(&place, 7, 0o700, 8).unwrap();
        assert_eq!(fs::read_to_string(&lock).unwrap().trim(), std::process::id().to_string());
        assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        drop(file);
        assert!(!socket.exists() && !lock.exists());

        // Somebody else lives: process 1 always does.
        fs::write(&lock, "1\n/var/lib/postgresql\n").unwrap();
        fs::write(&socket, "").unwrap();
        assert_eq!(listen(&place, 7, 0o777, 8).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(socket.exists() && lock.exists(), "left alone");
        fs::write(&lock, "").unwrap();
        assert_eq!(listen(&place, 7, 0o777, 8).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(listen(&place.join("none"), 7, 0o777, 8).is_err());
        fs::remove_dir_all(place).unwrap();
    }
}
