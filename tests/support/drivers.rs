//! Where the client drivers are that tests use: `tests/drivers/setup.sh` installs them.
//!
//! Absent on purpose: what is done with them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// The scripts that drive them.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers")
}

/// Their directory; installs them first if need be.
pub fn home() -> &'static Path {
    static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
        let script = scripts().join("setup.sh");
        let status = Command::new("sh").arg(&script).stdin(Stdio::null()).status().expect("sh exists");
        assert!(status.success(), "{} failed", script.display());
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
        target.join("drivers")
    });
    &HOME
}

/// Whether `PGREGENT_TEST_WITHOUT` (comma-separated) names this driver.
pub fn left_out(driver: &str) -> bool {
    std::env::var("PGREGENT_TEST_WITHOUT").is_ok_and(|names| names.split(',').any(|name| name.trim() == driver))
}
