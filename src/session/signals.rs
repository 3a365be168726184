//! `pg_terminate_backend()` and `pg_cancel_backend()` of a process id that we told a client.
//!
//! Clients know themselves, and each other, by the process ids of their cancel keys, which no process of a node
//! has. Where a statement signals such a one, the node is given the process that the client's session has there.
//! Invariants: the node decides whether the caller may; a session that is ended while it has no backend ends
//! only for a caller of the same role. Process ids of nodes mean what they
//! say; whoever has such a process at that moment is ended with it. Absent on purpose: signals that clients cause without naming a
//! process by a literal or a parameter.

use super::{Attachment, Session};
use crate::client::Signal;
use crate::sql::{Classification, integers};
use crate::wire::Reader;

/// Values of one Bind that are looked at.
const VALUES_MAX: i16 = 64;

impl Session {
    /// The text with the node's process ids in place of ours, if it signals any of ours.
    pub(super) fn signals_in_text(
        &self,
        attachment: &Attachment,
        class: &Classification,
        text: &[u8],
    ) -> Option<Vec<u8>> {
        let signal = class.effects.signals?;
        let mut changed = None;
        let mut shift = 0;
        for place in integers(text) {
            let number = std::str::from_utf8(&text[place.clone()]).ok().and_then(|digits| digits.parse().ok());
            let Some(real) = number.and_then(|pid| self.real_pid(attachment, pid, signal)) else { continue };
            let out: &mut Vec<u8> = changed.get_or_insert_with(|| text.to_vec());
            let digits = real.to_string();
            let old_len = place.len();
            let start = place.start.checked_add_signed(shift)?;
            out.splice(start..start + old_len, digits.bytes());
            shift += isize::try_from(digits.len()).ok()? - isize::try_from(old_len).ok()?;
        }
        changed
    }

    /// A whole Bind body with the node's process ids in place of ours, if it signals any of ours.
    pub(super) fn signals_in_values(
        &self,
        attachment: &Attachment,
        class: &Classification,
        body: &[u8],
    ) -> Option<Vec<u8>> {
        let signal = class.effects.signals?;
        let mut reader = Reader::new(body);
        reader.cstr().ok()?;
        reader.cstr().ok()?;
        let formats = reader.int16().ok()?;
        let formats: Vec<i16> = (0..formats).map(|_| reader.int16().ok()).collect::<Option<_>>()?;
        let count = reader.int16().ok().filter(|count| (0..=VALUES_MAX).contains(count))?;
        let mut out = body[..body.len() - reader.rest().len()].to_vec();
        let mut changed = false;
        for index in 0..usize::try_from(count).ok()? {
            let len = reader.int32().ok()?;
            let Ok(len) = usize::try_from(len) else {
                out.extend_from_slice(&len.to_be_bytes());
                continue;
            };
            let value = reader.bytes(len).ok()?;
            let is_text = match formats.as_slice() {
                [] => true,
                [all] => *all == 0,
                each => *each.get(index)? == 0,
            };
            let real = pid_of(value, is_text).and_then(|pid| self.real_pid(attachment, pid, signal));
            let value = match (real, is_text, len) {
                (None, ..) => value.to_vec(),
                (Some(real), true, _) => real.to_string().into_bytes(),
                (Some(real), false, 4) => real.to_be_bytes().to_vec(),
                (Some(real), false, _) => i64::from(real).to_be_bytes().to_vec(),
            };
            changed |= real.is_some();
            out.extend_from_slice(&i32::try_from(value.len()).ok()?.to_be_bytes());
            out.extend_from_slice(&value);
        }
        out.extend_from_slice(reader.rest());
        changed.then_some(out)
    }

    /// The process that the session of this client has on the node where the caller is.
    fn real_pid(&self, attachment: &Attachment, pid: i32, signal: crate::sql::BackendSignal) -> Option<i32> {
        let ends = signal == crate::sql::BackendSignal::Terminate;
        let Some(handle) = self.deps.registry.by_pid(pid) else {
            if ends {
                self.doom_holder(attachment.target.node, pid);
            }
            return None;
        };
        if let Some(control) = handle.signaled_on(attachment.target.node) {
            if ends {
                // When its backend says that it was terminated, that is for its client.
                handle.signal(Signal::Doomed);
            }
            return Some(control.pid);
        }
        if ends && handle.identity().user == self.identity.user {
            handle.signal(Signal::Terminate);
        }
        None
    }

    /// A process of a node is going to be ended: so is the session that has it now.
    fn doom_holder(&self, node: crate::ids::NodeId, pid: i32) {
        let holder = self.deps.pools.session_pid(node, pid).and_then(|known| self.deps.registry.by_pid(known));
        if let Some(holder) = holder
            && holder.signaled_on(node).is_some_and(|control| control.pid == pid)
        {
            holder.signal(Signal::Doomed);
        }
    }
}

fn pid_of(value: &[u8], is_text: bool) -> Option<i32> {
    if is_text {
        return std::str::from_utf8(value).ok()?.trim().parse().ok();
    }
    match value.len() {
        4 => Some(i32::from_be_bytes(*value.first_chunk()?)),
        8 => i32::try_from(i64::from_be_bytes(*value.first_chunk()?)).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_id_is_read_in_every_format() {
        let pid = 1 << 30 | 77;
        assert_eq!(pid_of(pid.to_string().as_bytes(), true), Some(pid));
        assert_eq!(pid_of(&pid.to_be_bytes(), false), Some(pid));
        assert_eq!(pid_of(&i64::from(pid).to_be_bytes(), false), Some(pid));
        assert_eq!(pid_of(b"x", true), None);
        assert_eq!(pid_of(b"abc", false), None);
    }
}
