//! Files that the config file names: secrets and lists.
//!
//! Invariants: reads are bounded; contents are never part of a message. Absent on purpose: writing.

use super::Secret;
use super::value::{Flaw, format_size};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use zeroize::Zeroizing;

/// Longest config file, bytes.
pub(super) const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Longest file that holds one secret, bytes.
const SECRET_BYTES_MAX: usize = 4 * 1024;

/// Reads a whole text file.
pub(super) fn read_text(path: &Path, bytes_max: usize) -> Result<String, Flaw> {
    read(path, bytes_max).map(|mut text| std::mem::take(&mut *text))
}

/// Reads a whole text file that may hold a secret: its memory is wiped in the end.
pub(super) fn read_private(path: &Path, bytes_max: usize) -> Result<Zeroizing<String>, Flaw> {
    read(path, bytes_max)
}

/// Reads the secret in a file: its only line, without the line end.
pub(super) fn read_secret(path: &Path) -> Result<Secret, Flaw> {
    let text = read(path, SECRET_BYTES_MAX)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let flaw =
        |what: &str| Flaw::new(format!("{} {what}", path.display())).suggest("write the secret as its only line");
    if line.is_empty() {
        return Err(flaw("is empty"));
    }
    if line.contains(['\n', '\0']) {
        return Err(flaw("holds more than one line"));
    }
    Ok(Secret::new(line))
}

/// Makes sure that a file can be read.
pub(super) fn readable(path: &Path) -> Result<(), Flaw> {
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let is_file = file.metadata().map_err(|e| unreadable(path, &e))?.is_file();
    if is_file { Ok(()) } else { Err(Flaw::new(format!("{} is not a file", path.display()))) }
}

/// Whether everybody on this machine may read a file that should be private.
pub(super) fn public(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

fn read(path: &Path, bytes_max: usize) -> Result<Zeroizing<String>, Flaw> {
    readable(path)?;
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut bytes = Zeroizing::new(Vec::new());
    let limit = bytes_max as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(|e| unreadable(path, &e))?;
    if bytes.len() > bytes_max {
        return Err(Flaw::new(format!("{} is longer than {}", path.display(), format_size(bytes_max as u64))));
    }
    let text = String::from_utf8(std::mem::take(&mut *bytes));
    text.map(Zeroizing::new).map_err(|_| Flaw::new(format!("{} is not UTF-8 text", path.display())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Flaw {
    use std::io::ErrorKind;
    let why = match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    Flaw::new(format!("cannot read {}: {why}", path.display()))
}
