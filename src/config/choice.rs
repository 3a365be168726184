//! The words of settings that are one of a few: spelt once, for reading, for the table of settings
//! and for showing.
//!
//! Invariants: `ALL` and `WORDS` are in the same order (the macro sees to it). Absent on purpose:
//! aliases; one word means one thing.

use super::{
    AuthMethod, BalanceKind, ChannelBinding, Consistency, CoordinationKind, Degrade, FailoverMode, Fencing,
    ForeignTables, Pinning, PoolMode, QuorumLoss, SslMode, TargetSessionAttrs, TlsMode, TlsVersion,
};

/// A setting that is one of a few words.
pub trait Choice: Copy + PartialEq + 'static {
    /// All values.
    const ALL: &'static [Self];
    /// Their words, in the same order.
    const WORDS: &'static [&'static str];

    /// The word of this value.
    fn word(self) -> &'static str;

    /// The value of a word, if it is one.
    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.word() == word)
    }
}

macro_rules! choice {
    ($type:ty { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl Choice for $type {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            const WORDS: &'static [&'static str] = &[$($word),+];

            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

choice!(FailoverMode { Automatic = "automatic", Manual = "manual", Follow = "follow" });
choice!(CoordinationKind { Single = "single", Voters = "voters", Etcd = "etcd" });
choice!(QuorumLoss { StopWrites = "stop_writes", KeepPrimary = "keep_primary" });
choice!(Fencing { Proxy = "proxy", Command = "command" });
choice!(Degrade { Never = "never", Allow = "allow" });
choice!(Pinning { Allow = "allow", Refuse = "refuse" });
choice!(PoolMode { Session = "session", Transaction = "transaction", Statement = "statement" });
choice!(Consistency { Eventual = "eventual", Session = "session", Global = "global" });
choice!(TargetSessionAttrs {
    Any = "any",
    ReadWrite = "read-write",
    ReadOnly = "read-only",
    Primary = "primary",
    Standby = "standby",
    PreferStandby = "prefer-standby",
});
choice!(BalanceKind { Random2 = "random2", RoundRobin = "round_robin", LeastConnections = "least_connections" });
choice!(ForeignTables { Primary = "primary", Any = "any" });
choice!(AuthMethod { Trust = "trust", Password = "password", Md5 = "md5", ScramSha256 = "scram-sha-256" });
choice!(TlsMode { Disable = "disable", Allow = "allow", Require = "require" });
choice!(TlsVersion { V1_2 = "1.2", V1_3 = "1.3" });
choice!(ChannelBinding { Disable = "disable", Prefer = "prefer", Require = "require" });
choice!(SslMode {
    Disable = "disable",
    Allow = "allow",
    Prefer = "prefer",
    Require = "require",
    VerifyCa = "verify-ca",
    VerifyFull = "verify-full",
});
