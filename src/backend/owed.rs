//! The queue of replies owed: one entry per request sent, in order.
//!
//! Each entry says what happens to its reply: forwarded, swallowed (we asked for ourselves), or
//! invented (the client asked, the node was not). Reuse of a backend is legal only when the queue is
//! empty. Pure. Invariants: a reply that fits no entry is [`Unexpected`], never guessed at; after an
//! error, entries up to the next Sync are dropped, because the node skips their requests
//! (PostgreSQL docs, "Extended Query"). Absent on purpose: bytes, sockets.

use crate::wire::backend::*;
use std::collections::VecDeque;

/// Why a client's request was not passed on: what its error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The statement's rows are not those that the client was told.
    OtherRows,
    /// It would pin the session.
    Pin,
    /// It executes a statement that is not there any more.
    Unknown,
    /// It gives a setting of the proxy's a value that means nothing.
    Setting,
}

/// One request whose reply is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// Query: ends with ReadyForQuery.
    Query {
        /// Ours, not the client's.
        swallow: bool,
    },
    /// FunctionCall: ends with ReadyForQuery.
    Function,
    /// Parse: ParseComplete.
    Parse {
        /// Ours, not the client's.
        swallow: bool,
        /// Statement number that the backend learns, 0 for the unnamed one.
        id: u64,
    },
    /// Bind: BindComplete.
    Bind {
        /// Number of the statement that is bound, 0 if it is none that is shared.
        id: u64,
    },
    /// Describe: NoData or RowDescription (ParameterDescription before it does not end it).
    Describe {
        /// Ours, not the client's.
        swallow: bool,
        /// Number of the statement that is described, 0 if it is none that is shared.
        id: u64,
    },
    /// Execute: CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// Close: CloseComplete.
    Close {
        /// Ours, not the client's.
        swallow: bool,
    },
    /// Sync: ReadyForQuery.
    Sync {
        /// Ours, not the client's.
        swallow: bool,
    },
    /// A Parse that must fail: the client gets an error of ours in place of the node's.
    Refusal(Refused),
    /// Nothing was sent: the client gets ParseComplete in its turn.
    InventParse,
    /// Nothing was sent: the client gets CloseComplete in its turn.
    InventClose,
    /// CopyDone or CopyFail, sent before it was known whether the node waits for COPY data. It has no reply:
    /// it says where the data of the COPY before it end.
    CopyEnd,
}

impl Owed {
    /// Does this request end with ReadyForQuery?
    #[must_use]
    pub fn ends_with_ready(self) -> bool {
        matches!(self, Self::Query { .. } | Self::Function | Self::Sync { .. })
    }

    fn swallowed(self) -> bool {
        matches!(
            self,
            Self::Query { swallow: true }
                | Self::Parse { swallow: true, .. }
                | Self::Close { swallow: true }
                | Self::Describe { swallow: true, .. }
                | Self::Sync { swallow: true }
                | Self::CopyEnd
        )
    }
}

/// What to do with a message from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Pass it on.
    Forward,
    /// Hide it.
    Swallow,
}

/// The node sent something that no request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected message {0:?} from the node")]
pub struct Unexpected(pub char);

/// The queue.
#[derive(Debug, Default)]
pub struct Pipeline {
    entries: VecDeque<Owed>,
    /// Statements whose Parse was dropped by an error; the caller takes and forgets them.
    failed: Vec<u64>,
    /// Definitions and closes of the client that were dropped by an error.
    undefined: usize,
    /// A Close of ours was dropped by an error: the backend still knows a statement we believe gone.
    unclosed: bool,
    /// Requests that would have ended with ReadyForQuery, dropped by an error.
    unready: usize,
    /// Syncs that the node ignores, because it was reading COPY data when they came.
    ignored: usize,
    /// The node waits for COPY data; Sync is ignored there until it ends.
    copy_in: bool,
    /// An error of the extended protocol was seen; the node skips to the next Sync.
    skipping: bool,
}

impl Pipeline {
    /// Is nothing owed?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Is anything owed to the client, beside what we asked for ourselves?
    #[must_use]
    pub fn owes_client(&self) -> bool {
        self.entries.iter().any(|owed| !owed.swallowed())
    }

    /// How many replies are owed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The oldest request without an answer.
    #[must_use]
    pub fn front(&self) -> Option<Owed> {
        self.entries.front().copied()
    }

    /// Is the node waiting for COPY data?
    #[must_use]
    pub fn copy_in(&self) -> bool {
        self.copy_in
    }

    /// The client has ended its COPY data (CopyDone or CopyFail), perhaps before the node has asked for them.
    pub fn copy_ended(&mut self) {
        if !self.copy_in && !self.entries.is_empty() {
            self.entries.push_back(Owed::CopyEnd);
        }
        self.copy_in = false;
    }

    /// Notes a request. A Sync during COPY data is ignored by the node, so nothing is owed for it.
    pub fn push(&mut self, owed: Owed) {
        if self.copy_in && matches!(owed, Owed::Sync { .. }) {
            return;
        }
        self.entries.push_back(owed);
    }

    /// Takes an invented reply that is due now.
    pub fn take_invented(&mut self) -> Option<Owed> {
        match self.front()? {
            due @ (Owed::InventParse | Owed::InventClose) => {
                self.drop_front();
                Some(due)
            }
            _ => None,
        }
    }

    /// Takes a statement number whose Parse failed or was skipped.
    pub fn take_failed(&mut self) -> Option<u64> {
        self.failed.pop()
    }

    /// Takes the number of the client's definitions and closes that an error dropped.
    pub fn take_undefined(&mut self) -> usize {
        std::mem::take(&mut self.undefined)
    }

    /// Did an error drop a Close of ours? Asked once.
    pub fn take_unclosed(&mut self) -> bool {
        std::mem::take(&mut self.unclosed)
    }

    /// Takes the number of requests before the next Sync that the node skips although each would
    /// have ended with ReadyForQuery.
    pub fn take_unready(&mut self) -> usize {
        std::mem::take(&mut self.unready)
    }

    /// Takes the number of Syncs that turned out to stand between COPY data, where the node ignores them.
    pub fn take_ignored(&mut self) -> usize {
        std::mem::take(&mut self.ignored)
    }

    /// Counts the ReadyForQuery messages the client still waits for.
    #[must_use]
    pub fn readies_owed(&self) -> usize {
        self.entries.iter().filter(|owed| owed.ends_with_ready() && !owed.swallowed()).count()
    }

    /// A message with this tag arrived. Asynchronous messages must not be given here.
    ///
    /// # Errors
    /// [`Unexpected`] when it answers nothing.
    pub fn on_reply(&mut self, tag: u8) -> Result<Reply, Unexpected> {
        let unexpected = Unexpected(char::from(tag));
        let front = self.front().ok_or(unexpected)?;
        let simple = matches!(front, Owed::Query { .. } | Owed::Function);
        match tag {
            READY if front.ends_with_ready() => {
                self.skipping = false;
                self.copy_in = false;
                self.pop()
            }
            ERROR => Ok(self.on_error(front)),
            PARSE_COMPLETE if matches!(front, Owed::Parse { .. }) => self.pop(),
            BIND_COMPLETE if matches!(front, Owed::Bind { .. }) => self.pop(),
            CLOSE_COMPLETE if matches!(front, Owed::Close { .. }) => self.pop(),
            NO_DATA | ROW_DESCRIPTION if matches!(front, Owed::Describe { .. }) => self.pop(),
            PARAMETER_DESCRIPTION if matches!(front, Owed::Describe { .. }) => Ok(kept(front)),
            COMMAND_COMPLETE | EMPTY_QUERY | PORTAL_SUSPENDED if front == Owed::Execute => {
                self.copy_in = false;
                self.pop()
            }
            COPY_IN if simple || front == Owed::Execute => {
                self.start_copy_in();
                Ok(Reply::Forward)
            }
            DATA_ROW | COPY_OUT | COPY_DATA | COPY_DONE if simple || front == Owed::Execute => Ok(kept(front)),
            ROW_DESCRIPTION | COMMAND_COMPLETE | EMPTY_QUERY | FUNCTION_RESULT if simple => Ok(kept(front)),
            _ => Err(unexpected),
        }
    }

    fn pop(&mut self) -> Result<Reply, Unexpected> {
        self.drop_front().map(kept).ok_or(Unexpected('\0'))
    }

    /// Drops the oldest request, and the ends of COPY data behind it that no COPY has asked for.
    fn drop_front(&mut self) -> Option<Owed> {
        let dropped = self.entries.pop_front();
        while self.front() == Some(Owed::CopyEnd) {
            self.entries.pop_front();
        }
        dropped
    }

    /// Syncs sent behind a statement that turned out to read COPY data are ignored by the node, up to the end
    /// of the data.
    fn start_copy_in(&mut self) {
        while matches!(self.entries.get(1), Some(Owed::Sync { .. })) {
            self.entries.remove(1);
            self.ignored += 1;
        }
        self.copy_in = self.entries.get(1) != Some(&Owed::CopyEnd);
        if !self.copy_in {
            self.entries.remove(1);
        }
    }

    /// The node failed the front request; in the extended protocol it skips to the next Sync.
    fn on_error(&mut self, front: Owed) -> Reply {
        self.copy_in = false;
        if front.ends_with_ready() {
            return kept(front);
        }
        self.skipping = true;
        while let Some(owed) = self.front() {
            match owed {
                Owed::Sync { .. } => break,
                Owed::Parse { id, swallow } => {
                    self.failed.push(id);
                    self.undefined += usize::from(!swallow);
                }
                Owed::InventParse | Owed::InventClose => self.undefined += 1,
                Owed::Close { swallow: true } => self.unclosed = true,
                Owed::Query { .. } | Owed::Function => self.unready += 1,
                _ => {}
            }
            self.drop_front();
        }
        // Even our own Parse must tell the client why its statement did not run; unless nothing of the client's
        // depends on it before our own Sync.
        if self.front() == Some(Owed::Sync { swallow: true }) { Reply::Swallow } else { Reply::Forward }
    }

    /// Is a Parse of this statement among the requests without an answer?
    #[must_use]
    pub fn defines(&self, statement: u64) -> bool {
        self.entries.iter().any(|owed| matches!(owed, Owed::Parse { id, .. } if *id == statement))
    }

    /// Would the node skip what is sent now (an error was seen, no Sync since)?
    #[must_use]
    pub fn skipping(&self) -> bool {
        self.skipping && !self.entries.iter().any(|owed| owed.ends_with_ready())
    }

    /// Forgets everything; only for a backend that is going to be discarded.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.failed.clear();
        self.undefined = 0;
        self.unready = 0;
        self.ignored = 0;
        self.copy_in = false;
        self.skipping = false;
    }
}

const COPY_DATA: u8 = crate::wire::frontend::COPY_DATA;
const COPY_DONE: u8 = crate::wire::frontend::COPY_DONE;

fn kept(owed: Owed) -> Reply {
    if owed.swallowed() { Reply::Swallow } else { Reply::Forward }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(entries: &[Owed]) -> Pipeline {
        let mut pipeline = Pipeline::default();
        for entry in entries {
            pipeline.push(*entry);
        }
        pipeline
    }

    const SYNC: Owed = Owed::Sync { swallow: false };

    #[test]
    fn an_injected_parse_stays_invisible() {
        let mut p = pipeline(&[Owed::Parse { swallow: true, id: 7 }, Owed::Bind { id: 0 }, Owed::Execute, SYNC]);
        let got: Vec<_> = b"12DCZ".iter().map(|tag| p.on_reply(*tag).unwrap()).collect();
        assert_eq!(got, [Reply::Swallow, Reply::Forward, Reply::Forward, Reply::Forward, Reply::Forward]);
        assert!(p.is_empty());
    }

    #[test]
    fn an_error_skips_to_the_sync_and_forgets_the_parse() {
        let mut p = pipeline(&[
            Owed::Parse { swallow: false, id: 7 },
            Owed::InventParse,
            Owed::Bind { id: 0 },
            SYNC,
            Owed::Bind { id: 0 },
        ]);
        assert_eq!(p.on_reply(b'E'), Ok(Reply::Forward));
        assert_eq!(p.take_failed(), Some(7));
        assert_eq!(p.front(), Some(SYNC));
        assert_eq!(p.on_reply(b'Z'), Ok(Reply::Forward));
        assert_eq!(p.front(), Some(Owed::Bind { id: 0 }));
    }

    #[test]
    fn a_hidden_close_that_never_ran_is_told() {
        let mut p = pipeline(&[Owed::Bind { id: 0 }, Owed::Close { swallow: true }, SYNC]);
        p.on_reply(b'E').unwrap();
        assert!(p.take_unclosed() && !p.take_unclosed());
    }

    #[test]
    fn a_reply_nobody_asked_for_is_refused() {
        assert_eq!(pipeline(&[]).on_reply(b'Z'), Err(Unexpected('Z')));
        assert_eq!(pipeline(&[Owed::Bind { id: 0 }]).on_reply(b'1'), Err(Unexpected('1')));
        assert_eq!(pipeline(&[SYNC]).on_reply(b'D'), Err(Unexpected('D')));
        assert_eq!(pipeline(&[Owed::Execute]).on_reply(b'Z'), Err(Unexpected('Z')));
    }

    #[test]
    fn a_sync_during_copy_is_not_owed() {
        let mut p = pipeline(&[Owed::Bind { id: 0 }, Owed::Execute, SYNC]);
        p.on_reply(b'2').unwrap();
        p.on_reply(b'G').unwrap();
        assert_eq!(p.len(), 1);
        p.push(SYNC);
        assert_eq!(p.len(), 1);
        p.copy_ended();
        p.push(SYNC);
        p.on_reply(b'C').unwrap();
        p.on_reply(b'Z').unwrap();
        assert!(p.is_empty());
    }

    #[test]
    fn a_failed_copy_needs_the_next_sync() {
        let mut p = pipeline(&[Owed::Execute]);
        p.on_reply(b'G').unwrap();
        p.on_reply(b'E').unwrap();
        assert!(p.skipping());
        p.push(SYNC);
        assert!(!p.skipping());
        assert_eq!(p.on_reply(b'Z'), Ok(Reply::Forward));
    }

    #[test]
    fn invented_replies_wait_for_their_turn() {
        let mut p = pipeline(&[Owed::Bind { id: 0 }, Owed::InventParse, Owed::InventClose, SYNC]);
        assert_eq!(p.take_invented(), None);
        p.on_reply(b'2').unwrap();
        assert_eq!(p.take_invented(), Some(Owed::InventParse));
        assert_eq!(p.take_invented(), Some(Owed::InventClose));
        assert_eq!(p.take_invented(), None);
    }

    #[test]
    fn copy_data_may_end_before_the_node_has_asked_for_them() {
        // Execute, CopyData, CopyDone, Sync in one write.
        let mut pipeline = pipeline(&[Owed::Execute]);
        pipeline.copy_ended();
        pipeline.push(SYNC);
        assert_eq!(pipeline.on_reply(COPY_IN), Ok(Reply::Forward));
        assert!(!pipeline.copy_in());
        assert_eq!(pipeline.on_reply(COMMAND_COMPLETE), Ok(Reply::Forward));
        assert_eq!(pipeline.on_reply(READY), Ok(Reply::Forward));
        assert!(pipeline.is_empty() && pipeline.take_ignored() == 0);
    }

    #[test]
    fn syncs_between_copy_data_are_ignored() {
        // Query, Sync, Sync, CopyData, CopyDone, Query in one write.
        let mut pipeline = pipeline(&[Owed::Query { swallow: false }, SYNC, SYNC]);
        pipeline.copy_ended();
        pipeline.push(Owed::Query { swallow: false });
        assert_eq!(pipeline.on_reply(COPY_IN), Ok(Reply::Forward));
        assert_eq!((pipeline.take_ignored(), pipeline.len()), (2, 2));
        for tag in [COMMAND_COMPLETE, READY, COMMAND_COMPLETE, READY] {
            assert_eq!(pipeline.on_reply(tag), Ok(Reply::Forward));
        }
        assert!(pipeline.is_empty());
    }

    #[test]
    fn an_end_of_copy_data_that_nobody_asked_for_owes_nothing() {
        for failed in [false, true] {
            let mut pipeline = pipeline(&[Owed::Execute]);
            pipeline.copy_ended();
            pipeline.push(SYNC);
            assert!(pipeline.on_reply(if failed { ERROR } else { COMMAND_COMPLETE }).is_ok());
            assert_eq!(pipeline.on_reply(READY), Ok(Reply::Forward));
            pipeline.copy_ended();
            assert!(pipeline.is_empty());
        }
    }
}
