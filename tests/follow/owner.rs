//! Command lines that run as the owner of the nodes' data, who is not root.
//!
//! Absent on purpose: what is run.

use crate::support::guard::ProcessGuard;
use crate::support::rig::Rig;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The owner, and a directory of its own inside the cluster's.
pub struct Owner {
    pub directory: PathBuf,
    uid: u32,
    gid: u32,
}

impl Owner {
    pub fn of(rig: &Rig, directory: &str) -> Self {
        let data = fs::metadata(rig.node("pg1").data_dir()).unwrap();
        let owner = Self { directory: rig.cluster.dir().join(directory), uid: data.uid(), gid: data.gid() };
        fs::create_dir(&owner.directory).unwrap();
        owner.own(&owner.directory);
        owner
    }

    fn own(&self, path: &Path) {
        chown(path, Some(self.uid), Some(self.gid)).unwrap();
    }

    /// Writes a file that only the owner reads; its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self.own(&path);
        path
    }

    /// What follows `env`, which ends by becoming the program.
    fn line(&self, program: &Path, arguments: &[&str]) -> Vec<String> {
        let directory = self.directory.display();
        let mut line = vec![format!("--chdir={directory}"), format!("HOME={directory}"), "LC_ALL=C".to_owned()];
        line.push(format!("PGPASSFILE={directory}/passwords"));
        if fs::metadata("/proc/self").unwrap().uid() != self.uid {
            let (user, group) = (format!("--reuid={}", self.uid), format!("--regid={}", self.gid));
            line.extend(["setpriv".to_owned(), user, group, "--clear-groups".to_owned(), "--".to_owned()]);
        }
        line.push(program.display().to_string());
        line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        line
    }

    /// Runs a program to its end; what it printed, or how it failed.
    pub fn run(&self, program: &Path, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("env").args(self.line(program, arguments)).stdin(Stdio::null()).output().unwrap();
        let [out, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        if output.status.success() { Ok(out.into_owned()) } else { Err(format!("{arguments:?}: {out}\n{errors}")) }
    }

    /// Starts a program that goes on; `name` is that of its log.
    pub fn spawn(&self, name: &str, program: &Path, arguments: &[&str]) -> ProcessGuard {
        let log = File::options().create(true).append(true).open(self.directory.join(name)).unwrap();
        let line = self.line(program, arguments);
        let run = self.directory.join(format!("{name}-run"));
        fs::create_dir_all(&run).unwrap();
        ProcessGuard::spawn(Path::new("env"), &line.iter().map(String::as_str).collect::<Vec<_>>(), &run, log)
    }
}
