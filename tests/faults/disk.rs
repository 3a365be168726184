//! A small disk for a node's WAL.
//!
//! Invariant: a guardian unmounts it when the test process ends, however it ends. Absent on purpose: disks
//! that hang or fail to write.

use crate::support::rig::Rig;
use pgregent::demo::cluster::{Node, Shutdown};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Room for some WAL segments of 16 MiB.
const SIZE: &str = "size=96m";
/// What takes up the rest of the disk.
const FILLER: &str = "filler";

/// Mounts a file system of this size at `$2` and unmounts it when its input ends.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP
mount -t tmpfs -o "$1" pgregent-test "$2" || exit 1
echo mounted
cat >/dev/null
umount -l "$2"
rmdir "$2"
"#;

/// The disk.
pub struct Disk {
    guardian: Child,
}

impl Disk {
    /// Moves the WAL of a node to a small disk. The proxy is away meanwhile.
    ///
    /// # Errors
    /// Why this machine mounts nothing.
    pub fn under(rig: &Rig, node: &Node) -> Result<Self, String> {
        let place = std::env::temp_dir().join(format!("pgregent-test-wal-{}", std::process::id()));
        fs::create_dir_all(&place).map_err(|error| error.to_string())?;
        let mut guardian = Command::new("setsid");
        let owner = fs::metadata(node.data_dir()).map_err(|error| error.to_string())?;
        let options = format!("{SIZE},mode=700,uid={},gid={}", owner.uid(), owner.gid());
        guardian.args(["sh", "-c", GUARDIAN, "guardian", &options]).arg(&place);
        guardian.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guardian = guardian.spawn().map_err(|error| error.to_string())?;
        let mut said = String::new();
        let output = guardian.stdout.take().expect("a pipe");
        let _ = std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said);
        let disk = Self { guardian };
        if said.trim() != "mounted" {
            return Err("mount -t tmpfs failed".to_owned());
        }
        rig.kill_proxy();
        node.stop(Shutdown::Fast).unwrap();
        move_to(&node.data_dir().join("pg_wal"), &place);
        node.start().unwrap();
        rig.start_proxy();
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

fn move_to(wal: &Path, place: &Path) {
    let moved =
        Command::new("sh").args(["-c", r#"cp -a "$1"/. "$2" && rm -r "$1""#, "move"]).args([wal, place]).status();
    assert!(moved.unwrap().success(), "the WAL moves");
    symlink(place, wal).unwrap();
}

fn filler(wal: &Path) -> PathBuf {
    wal.join(FILLER)
}

/// Takes all that is left.
pub fn fill(wal: &Path) {
    let file = filler(wal);
    let _ = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", file.display()))
        .stderr(Stdio::null())
        .status();
    assert!(file.exists(), "the disk is full");
}

/// Gives it back.
pub fn empty(wal: &Path) {
    // Whoever copied the node's files anew has removed it already.
    let _ = fs::remove_file(filler(wal));
}
