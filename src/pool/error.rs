//! Why a session gets no backend, and why a backend is closed instead of reused.
//!
//! Invariant: reasons are closed sets, because they are metric labels. Absent on purpose: retries.

use crate::backend::ConnectError;
use crate::error::{Classify, ClientError, Fault, Retry, SqlState};

/// Why a checkout failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckoutError {
    /// No backend became free before the deadline.
    #[error("no backend became free in time")]
    TimedOut {
        /// The last reason why no more could be opened, if any.
        last: Option<ConnectError>,
    },
    /// Too many sessions wait for this pool already.
    #[error("the queue of this pool is full")]
    QueueFull,
    /// The node went down or was fenced: another may be tried.
    #[error("the node is not available")]
    NodeGone,
    /// The node refuses this login for good.
    #[error("{0}")]
    Rejected(ConnectError),
    /// The proxy stops.
    #[error("the proxy is shutting down")]
    Closing,
}

impl Classify for CheckoutError {
    fn fault(&self) -> Fault {
        match self {
            Self::TimedOut { .. } | Self::QueueFull | Self::Closing => Fault::Proxy,
            Self::NodeGone => Fault::Topology,
            Self::Rejected(err) => err.fault(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::TimedOut { .. } | Self::QueueFull | Self::Closing => Retry::Later,
            Self::NodeGone => Retry::OtherNode,
            Self::Rejected(err) => err.retry(),
        }
    }

    fn client(&self) -> ClientError {
        match self {
            Self::TimedOut { last: Some(err) } if !matches!(err, ConnectError::Rejected(_)) => {
                ClientError::error(SqlState::CANNOT_CONNECT_NOW, "no node accepts connections at the moment")
                    .hint("Try again later; the proxy keeps trying to reach the nodes.")
            }
            Self::TimedOut { last } => {
                let error = ClientError::error(
                    SqlState::TOO_MANY_CONNECTIONS,
                    "timed out waiting for a connection from the pool",
                );
                match last {
                    Some(ConnectError::Rejected(rejection)) => {
                        error.detail(format!("The node refused to open another one: {}.", rejection.message))
                    }
                    _ => error.hint("Raise [pool] size or queue_timeout, or shorten transactions."),
                }
            }
            Self::QueueFull => {
                ClientError::error(SqlState::TOO_MANY_CONNECTIONS, "too many sessions wait for this pool")
                    .hint("Raise [pool] size, or open fewer sessions.")
            }
            Self::NodeGone => {
                ClientError::error(SqlState::CANNOT_CONNECT_NOW, "the node went away before the statement was sent")
                    .hint("Nothing was executed; try again.")
            }
            Self::Rejected(err) => err.client(),
            Self::Closing => ClientError::fatal(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection because the proxy is shutting down",
            ),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "queue_timeout",
            Self::QueueFull => "queue_full",
            Self::NodeGone => "node_gone",
            Self::Rejected(_) => "rejected",
            Self::Closing => "closing",
        }
    }
}

/// Why a backend was closed. The label is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiscardReason {
    /// Its session ended without releasing it (client gone in mid-transaction, say).
    Abandoned,
    /// Replies were still owed, or its state is not known.
    Dirty,
    /// A cancel request for it may still be on its way.
    Canceled,
    /// The connection ended or failed.
    Lost,
    /// It sent something that is not the protocol.
    Garbage,
    /// The topology fenced its node.
    Fenced,
    /// It was the primary of an epoch, and the permit to write in that was over when it answered.
    Unpermitted,
    /// Older than `lifetime`.
    Lifetime,
    /// Idle longer than `idle_timeout`, or its place was wanted by another pool.
    Idle,
    /// What backends begin with has changed since it was opened, or its database or node must be left alone.
    Outdated,
    /// The proxy stops, or the pool shrank.
    Closing,
}

impl DiscardReason {
    /// All of them, for metrics.
    pub const ALL: &'static [Self] = &[
        Self::Abandoned,
        Self::Dirty,
        Self::Canceled,
        Self::Lost,
        Self::Garbage,
        Self::Fenced,
        Self::Unpermitted,
        Self::Lifetime,
        Self::Idle,
        Self::Outdated,
        Self::Closing,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Dirty => "dirty",
            Self::Canceled => "canceled",
            Self::Lost => "lost",
            Self::Garbage => "garbage",
            Self::Fenced => "fenced",
            Self::Unpermitted => "unpermitted",
            Self::Lifetime => "lifetime",
            Self::Idle => "idle",
            Self::Outdated => "outdated",
            Self::Closing => "closing",
        }
    }
}
