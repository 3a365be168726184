//! Sockets and the buffers that are read into.
//!
//! [`Stream`] (TCP or Unix, plain or TLS) is the only thing the data plane reads from and writes to; [`Buffer`] comes from a
//! small per-thread stock, so that an idle client holds none and a busy one allocates none.
//! Invariants: reading never grows a buffer beyond what its owner asked for; no call here blocks.
//! Absent on purpose: messages.

mod buffer;
mod driver;
mod listen;
mod peer;
mod proxy_header;
mod socket;
mod stream;
mod tls;
mod unix;

pub use buffer::{BUFFER_LEN, Buffer};
pub use driver::{DriverLink, DriverStream, connect_driver};
pub use listen::{Listener, UnixPlace, bind, bind_unix};
pub use peer::{ClientCertificate, Peer, TlsInfo};
pub use proxy_header::{BadProxyHeader, PROXY_HEADER_MAX, ProxyHeader, parse_proxy_header};
pub use stream::{Severer, Stream};
pub use tls::{ALPN_POSTGRESQL, HttpTls, NodeTls, TlsAcceptor, TlsAttempt, TlsSetupError, end_point_hash};
