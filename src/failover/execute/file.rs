//! Small JSON files in the state directory.
//!
//! Invariants: what is read is bounded; after a crash either the old or the new content is there (`replace_file`).
//! Absent on purpose: what is in them, and who writes when.

use crate::coordination::{StoreError, replace_file};
use serde::de::DeserializeOwned;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The content; `None` where there is no file. `why` says what is wrong with a damaged one.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    why: fn(serde_json::Error) -> String,
) -> Result<Option<T>, StoreError> {
    let fail = |act| move |cause| StoreError::Io { act, path: path.to_owned(), cause };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(fail("open"))?,
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(fail("read"))?;
    let damaged = |e| StoreError::Damaged { path: path.to_owned(), why: why(e) };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Replaces the content, where a slow disk cannot stop the control plane.
pub(super) async fn write(path: PathBuf, text: Result<Vec<u8>, serde_json::Error>) -> Result<(), StoreError> {
    let text = text.map_err(|e| StoreError::Io { act: "encode", path: path.clone(), cause: e.into() })?;
    tokio::task::spawn_blocking(move || replace_file(&path, &text)).await.map_err(|_| StoreError::Stopping)?
}
