//! A userlist file, and each line of it as a stored secret.
//!
//! Promises: a file gives users or problems; a problem has no line break and names the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::auth::{Secrets, StoredSecret};
use pgregent::config::{AuthConfig, Config};
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// A configuration without users whose userlist is a file of this process.
fn config() -> &'static (AuthConfig, PathBuf) {
    static CONFIG: OnceLock<(AuthConfig, PathBuf)> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("pgregent-fuzz-userlist-{}", std::process::id()));
        let text = "cluster.failover = \"manual\"\n[[node]]\nname = \"pg1\"\naddress = \"10.0.0.1\"\n\
            [[auth.user]]\nname = \"u\"\npassword = \"p\"\n";
        let mut auth = Config::parse(text, "fuzz.toml").expect("valid").auth;
        auth.users.clear();
        auth.userlist = Some(path.clone());
        (auth, path)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (auth, path) = config();
    fs::write(path, bytes).expect("the temporary directory is writable");
    match Secrets::from_config(auth) {
        Ok(secrets) => assert!(secrets.len() <= bytes.iter().filter(|byte| **byte == b'\n').count() + 1),
        Err(problems) => {
            assert!(!problems.is_empty());
            assert!(problems.iter().all(|problem| problem.contains("pgregent-fuzz-userlist")), "{problems:?}");
        }
    }
    fs::remove_file(path).expect("written above");
    for line in String::from_utf8_lossy(bytes).lines() {
        let _ = StoredSecret::parse(line);
    }
});
