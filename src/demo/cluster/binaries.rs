//! Where PostgreSQL's programs are.
//!
//! Invariants: a directory counts only if it holds `initdb` and `postgres`. Absent on purpose:
//! downloading anything (`scripts/fetch-postgres.sh` does), and mixing programs of two installations.

use super::error::ClusterError;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the directory with PostgreSQL's programs, before any search.
pub const BIN_VARIABLE: &str = "PGREGENT_PG_BIN";
/// Debian's place: one directory per major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The programs of one PostgreSQL installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// Looks in `PGREGENT_PG_BIN`, else in Debian's directories (newest first), else asks `pg_config`.
    ///
    /// # Errors
    /// [`ClusterError::NoBinaries`] if none of these holds the server programs. A directory named
    /// by the variable is never replaced by another one.
    pub fn find() -> Result<Self, ClusterError> {
        let candidates = match std::env::var_os(BIN_VARIABLE) {
            Some(dir) => vec![PathBuf::from(dir)],
            None => debian(Path::new(DEBIAN)).into_iter().chain(pg_config()).collect(),
        };
        match candidates.iter().find(|dir| serves(dir)) {
            Some(dir) => Ok(Self { dir: dir.clone() }),
            None => {
                let searched: Vec<_> = candidates.iter().map(|dir| dir.display().to_string()).collect();
                let searched = if searched.is_empty() { DEBIAN.to_owned() } else { searched.join(", ") };
                Err(ClusterError::NoBinaries { searched })
            }
        }
    }

    /// The programs in `dir`.
    ///
    /// # Errors
    /// [`ClusterError::NoBinaries`] if it lacks `initdb` or `postgres`.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self, ClusterError> {
        let dir = dir.into();
        if serves(&dir) {
            Ok(Self { dir })
        } else {
            Err(ClusterError::NoBinaries { searched: dir.display().to_string() })
        }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a program, whether it exists or not.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }

    /// Whether a program exists. Some packages carry the server only, without `pg_basebackup` and
    /// `pg_rewind`.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.path(program).exists()
    }
}

fn serves(dir: &Path) -> bool {
    dir.join("initdb").exists() && dir.join("postgres").exists()
}

/// `<root>/<major>/bin`, newest major first.
fn debian(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut majors: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors.into_iter().map(|major| root.join(major.to_string()).join("bin")).collect()
}

fn pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    (!dir.trim().is_empty()).then(|| PathBuf::from(dir.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_major_is_compared_as_a_number() {
        let root = std::env::temp_dir().join(format!("pgregent-binaries-{}", std::process::id()));
        for major in ["9", "15", "17", "common"] {
            fs::create_dir_all(root.join(major)).unwrap();
        }
        let found = debian(&root);
        fs::remove_dir_all(&root).unwrap();
        let majors: Vec<_> = ["17", "15", "9"].iter().map(|major| root.join(major).join("bin")).collect();
        assert_eq!(found, majors);
    }

    #[test]
    fn a_directory_without_the_server_is_refused() {
        assert!(matches!(Binaries::at("/nonexistent"), Err(ClusterError::NoBinaries { .. })));
    }
}
