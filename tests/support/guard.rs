//! Processes that cannot outlive the test.
//!
//! A guardian shell holds the reading end of a pipe and sleeps; when the test process ends, also by
//! SIGKILL, the pipe closes and the guardian cleans up. Absent on purpose: parent-death signals;
//! they are tied to the thread that spawned, and test threads come and go.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Stops every node below `$1` at once, waits for them, removes the directory.
const CLUSTER_GUARDIAN: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for round in 1 2 3 4 5; do
  for file in "$1"/*/postmaster.pid; do
    [ -f "$file" ] && kill -QUIT "$(head -n 1 "$file")" 2>/dev/null
  done
  sleep 0.2
  rm -rf "$1" 2>/dev/null && break
done
"#;

/// Runs a program, tells its pid; when the pipe closes, kills it and removes its directory `$1`.
const PROCESS_GUARDIAN: &str = r#"
trap '' INT TERM HUP
directory=$1
shift
"$@" </dev/null >&2 &
pid=$!
echo "$pid"
cat >/dev/null
kill -KILL "$pid" 2>/dev/null
wait "$pid" 2>/dev/null
rm -rf "$directory"
"#;

/// Cleans up a directory of database clusters when dropped, or when the test process is gone.
pub struct ClusterGuard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl ClusterGuard {
    /// Watches `directory`.
    pub fn new(directory: &Path) -> Self {
        let mut child = Command::new("setsid")
            .args(["sh", "-c", CLUSTER_GUARDIAN, "guardian"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid and sh exist");
        let pipe = child.stdin.take();
        Self { child, pipe }
    }
}

impl Drop for ClusterGuard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// A program that runs until dropped, or until the test process is gone.
pub struct ProcessGuard {
    child: Child,
    pipe: Option<ChildStdin>,
    /// The program's process id.
    pub pid: u32,
}

impl ProcessGuard {
    /// Starts `program` with its output in `log`; `directory` is removed after it ended.
    pub fn spawn(program: &Path, arguments: &[&str], directory: &Path, log: File) -> Self {
        let mut child = Command::new("setsid")
            .args(["sh", "-c", PROCESS_GUARDIAN, "guardian"])
            .args([directory, program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("setsid and sh exist");
        let pipe = child.stdin.take();
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the guardian tells the pid");
        let pid = line.trim().parse().expect("a pid");
        Self { child, pipe, pid }
    }

    /// Whether the program still runs (a zombie does not).
    pub fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
    }

    /// Sends a signal by name (`TERM`, `HUP`, …).
    pub fn signal(&self, name: &str) {
        let _ = Command::new("kill").arg(format!("-{name}")).arg(self.pid.to_string()).status();
    }
}

impl Drop for ProcessGuard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}
