//! The PostgreSQL protocol as values and bytes (PostgreSQL docs, "Frontend/Backend Protocol").
//!
//! Own framing and bounds-checked readers; whole messages of our own are encoded with `pgwire`'s
//! types. Invariants: no length from outside is believed before it was checked against a minimum
//! and a maximum; reading never panics, whatever the bytes. Absent on purpose: sockets, SQL, pools;
//! and `pgwire`'s decoders, which panic on malformed frames.

pub mod backend;
pub mod encode;
mod frame;
pub mod frontend;
mod startup;

pub use frame::{FrameError, HEADER_LEN, Header, LENGTH_MAX, Reader, header};
pub use startup::{
    CANCEL_KEY_LEN_MAX, PROTOCOL_3_0, PROTOCOL_3_2, STARTUP_LEN_MAX, StartupError, StartupPacket, parse_startup,
};

/// The transaction status byte of ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxStatus {
    /// `I`: not in a transaction block.
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block.
    Failed,
}

impl TxStatus {
    /// From the byte of ReadyForQuery.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The byte of ReadyForQuery.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}
