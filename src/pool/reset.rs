//! Makes a backend forget a session whose state was more than tracked settings.
//!
//! Invariants: bounded in time; a backend whose reset did not end exactly as expected is discarded.
//! Absent on purpose: deciding when (the session's matter).

use super::{DiscardReason, Pool};
use crate::backend::{Backend, Settings};
use crate::wire::{HEADER_LEN, TxStatus, backend as tags, encode, header};
use std::sync::Arc;
use std::time::Duration;

/// How long a reset may take.
const RESET_LIMIT: Duration = Duration::from_secs(5);
/// Longest message believed during a reset, bytes.
const RESET_MESSAGE_MAX: usize = 64 * 1024;

impl Pool {
    /// Runs DISCARD ALL on a backend that is clean otherwise, and puts it back.
    pub(super) async fn reset(self: Arc<Self>, mut backend: Box<Backend>) {
        let done = tokio::time::timeout(RESET_LIMIT, discard_all(&mut backend)).await;
        if matches!(done, Ok(Some(()))) {
            backend.settings = Arc::new(Settings::default());
            backend.statements.forget_all();
            self.release(backend, self.shared.clock.now());
        } else {
            self.discard(backend, DiscardReason::Dirty);
        }
    }
}

async fn discard_all(backend: &mut Backend) -> Option<()> {
    let mut out = Vec::new();
    encode::query(&mut out, "DISCARD ALL");
    backend.stream.write_all(&out).await.ok()?;
    let mut input = Vec::with_capacity(1024);
    loop {
        while let Some(head) = header(&input, RESET_MESSAGE_MAX).ok()? {
            if input.len() < head.message_len() {
                break;
            }
            let body = &input[HEADER_LEN..head.message_len()];
            match head.tag {
                tags::PARAMETER_STATUS => {
                    let (name, value) = tags::parameter(body).ok()?;
                    backend.parameters.note(name, value);
                }
                tags::COMMAND_COMPLETE | tags::NOTICE | tags::NOTIFICATION => {}
                tags::READY => {
                    return (tags::ready(body).ok()? == TxStatus::Idle && input.len() == head.message_len())
                        .then_some(());
                }
                _ => return None,
            }
            input.drain(..head.message_len());
        }
        backend.stream.read_more(&mut input).await.ok()?;
    }
}
