//! Whether the programs of `[hooks]` can be run on this machine.
//!
//! Invariants: nothing is run. Absent on purpose: what they do, and whom the service runs as.

use super::{Finding, Other, Where};
use crate::config::{Config, Fencing};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// An entry if any is configured.
pub(super) fn judge(config: &Config) -> Option<Other> {
    let hooks = &config.hooks;
    let fences = config.cluster.fencing == Fencing::Command;
    let programs = [
        ("fence_command", &hooks.fence_command, "no failover would begin where the old primary must be turned off"),
        ("before_promotion", &hooks.before_promotion, "every candidate would count as refused"),
        ("after_promotion", &hooks.after_promotion, "it would not run"),
        ("on_role_change", &hooks.on_role_change, "it would not run"),
        ("on_rejoin", &hooks.on_rejoin, "it would not run"),
    ];
    let configured =
        programs.into_iter().filter(|(name, words, _)| !words.is_empty() && (fences || *name != "fence_command"));
    let mut findings = Vec::new();
    let mut any = false;
    for (name, words, otherwise) in configured {
        any = true;
        if let Err((why, fix)) = runs(&words[0]) {
            findings.push(Finding::problem(format!("[hooks] {name}: {why}: {otherwise}")).fix(Where::Outside, fix));
        }
    }
    any.then(|| Other { name: "this machine".to_owned(), state: "  [hooks]".to_owned(), findings })
}

/// Why a program does not run, and what mends that.
fn runs(program: &str) -> Result<(), (String, String)> {
    let Some(path) = find(program) else {
        return Err((format!("there is no {program}"), "write the whole path of a program that is there".to_owned()));
    };
    let shown = path.display();
    let metadata = fs::metadata(&path).map_err(|e| (format!("{shown}: {e}"), "correct its path".to_owned()))?;
    if !metadata.is_file() {
        return Err((format!("{shown} is no file"), "write the whole path of a program".to_owned()));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err((format!("{shown} is not executable"), format!("chmod +x {shown}")));
    }
    let mut begins = [0; 4];
    let read = fs::File::open(&path).and_then(|mut file| file.read(&mut begins)).unwrap_or(0);
    if read >= 2 && !begins.starts_with(b"#!") && begins != *b"\x7fELF" {
        let fix = "let its first line be #!/bin/sh, or name the interpreter before it: [\"/bin/sh\", \"…\"]".to_owned();
        return Err((format!("{shown} is a script without its interpreter"), fix));
    }
    Ok(())
}

/// As the system looks for it: with a slash it is a path, else in PATH.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Path::new(program).exists().then(|| PathBuf::from(program));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_is_told_apart() {
        let folder = std::env::temp_dir().join(format!("pgregent-programs-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, text: &str, mode| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.display().to_string()
        };
        let why = |program: &str| runs(program).err().map(|(why, _)| why).unwrap_or_default();
        assert_eq!(runs("sh"), Ok(()));
        assert_eq!(runs(&file("good", "#!/bin/sh\n", 0o755)), Ok(()));
        assert!(why("no-such-program").starts_with("there is no no-such-program"));
        assert!(why("/no/such").starts_with("there is no /no/such"));
        assert!(why(&folder.display().to_string()).ends_with("is no file"));
        assert!(why(&file("plain", "#!/bin/sh\n", 0o644)).ends_with("is not executable"));
        assert!(why(&file("script", "echo\n", 0o755)).ends_with("is a script without its interpreter"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
