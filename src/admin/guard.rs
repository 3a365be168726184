//! Accepts HTTP connections within limits: so many at once, so long, so many bytes.
//!
//! A health check must get its answer however many slow clients hang on, so a full house does not
//! wait: the connection that is there longest is cut for the newcomer. (One request per connection
//! takes milliseconds; who is there longest is the slow one.)
//!
//! Invariants: a connection ends at its time limit, at its byte limit, when it is cut for another,
//! or shortly after the stop; `accept` never fails for good.
//! Absent on purpose: HTTP.

use axum::serve::Listener;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Connections at once; one more cuts the oldest.
pub const CONNECTIONS_MAX: usize = 64;
/// From accept to the last byte of the answer.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes read from one connection (request line, headers, and the body that is ignored).
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// After the stop, what is under way may take this long.
pub const STOP_GRACE: Duration = Duration::from_millis(500);
/// Pause after a failed accept (no file descriptor left, say).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What HTTP clients may take. The defaults are [`CONNECTIONS_MAX`] and its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections at once; one more cuts the oldest. At least 1.
    pub connections_max: usize,
    /// From accept to the last byte of the answer.
    pub connection_time_max: Duration,
    /// Bytes read from one connection.
    pub request_bytes_max: usize,
    /// How long requests under way may take after the stop.
    pub stop_grace: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            connection_time_max: CONNECTION_TIME_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
            stop_grace: STOP_GRACE,
        }
    }
}

/// A listener whose connections are limited.
pub(super) struct GuardedListener {
    listener: TcpListener,
    limits: HttpLimits,
    places: Arc<Places>,
    stop: CancellationToken,
}

impl GuardedListener {
    pub(super) fn new(listener: TcpListener, limits: HttpLimits, stop: CancellationToken) -> Self {
        Self { listener, limits, places: Arc::default(), stop }
    }

    fn guard(&self, stream: TcpStream) -> GuardedStream {
        let place = Places::take(&self.places, self.limits.connections_max);
        let (limits, evicted, stop) = (self.limits, place.evicted.clone(), self.stop.clone());
        let cut = async move {
            tokio::select! {
                () = tokio::time::sleep(limits.connection_time_max) => {}
                () = evicted.cancelled() => {}
                () = async { stop.cancelled().await; tokio::time::sleep(limits.stop_grace).await } => {}
            }
        };
        GuardedStream { stream, cut: Cut::Armed(Box::pin(cut)), bytes_left: limits.request_bytes_max, _place: place }
    }
}

impl Listener for GuardedListener {
    type Io = GuardedStream;
    type Addr = SocketAddr;

    /// The next connection. Cancel-safe: nothing is held across the awaits.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let mut failed_before = false;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (self.guard(stream), peer),
                Err(error) => {
                    if !std::mem::replace(&mut failed_before, true) {
                        tracing::warn!(%error, "HTTP connections cannot be accepted, trying again");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Who is here, in the order of arrival.
#[derive(Default)]
struct Places {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    by_arrival: BTreeMap<u64, CancellationToken>,
}

impl Places {
    /// Takes a place, and cuts the oldest connection if there are then too many.
    fn take(places: &Arc<Self>, connections_max: usize) -> Place {
        let mut taken = places.taken.lock();
        while taken.by_arrival.len() >= connections_max.max(1) {
            let Some((_, oldest)) = taken.by_arrival.pop_first() else { break };
            oldest.cancel();
        }
        let arrival = taken.next;
        taken.next += 1;
        let evicted = CancellationToken::new();
        taken.by_arrival.insert(arrival, evicted.clone());
        Place { places: Arc::clone(places), arrival, evicted }
    }
}

/// A connection's place; dropping it makes room.
struct Place {
    places: Arc<Places>,
    arrival: u64,
    evicted: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().by_arrival.remove(&self.arrival);
    }
}

enum Cut {
    Armed(Pin<Box<dyn Future<Output = ()> + Send>>),
    Done,
}

/// A connection that ends at its limits.
pub(super) struct GuardedStream {
    stream: TcpStream,
    cut: Cut,
    bytes_left: usize,
    _place: Place,
}

impl GuardedStream {
    /// Fails once the connection is to be cut, and otherwise arranges to be woken for it.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Cut::Armed(cut) = &mut self.cut {
            if cut.as_mut().poll(context).is_pending() {
                return Ok(());
            }
            self.cut = Cut::Done;
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        if self.bytes_left == 0 {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.bytes_left = self.bytes_left.saturating_sub(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_house_cuts_the_oldest_and_forgets_who_left() {
        let places = Arc::new(Places::default());
        let first = Places::take(&places, 2);
        let second = Places::take(&places, 2);
        let third = Places::take(&places, 2);
        let cut = |place: &Place| place.evicted.is_cancelled();
        assert_eq!((cut(&first), cut(&second), cut(&third)), (true, false, false));
        drop(second);
        let fourth = Places::take(&places, 2);
        assert_eq!((cut(&third), cut(&fourth)), (false, false));
        drop((first, third, fourth));
        assert_eq!(places.taken.lock().by_arrival.len(), 0);
    }
}
