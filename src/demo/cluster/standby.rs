//! Making a node a standby: base backup, rewind, rebuild, another upstream, promotion.
//!
//! Invariants: each standby streams through a physical slot of its own name on its upstream; whatever
//! a copied configuration said about an upstream is replaced. Absent on purpose: deciding who follows
//! whom, and proving that a rewind was possible: two nodes that were both promoted from the same
//! timeline get the same new timeline number, which `pg_rewind` takes for "nothing to do". Who lets
//! that happen must rebuild.

use super::error::ClusterError;
use super::node::{Node, Shutdown};
use super::roles::{REPLICATION_USER, SUPERUSER};
use super::sql::{self, Failure};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long [`Node::promote`] waits.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a copy of a running node's files leaves out: what belongs to the running process or to this
/// node alone (PostgreSQL docs, "Backing Up the Data Directory").
const NOT_COPIED: [&str; 4] = ["postmaster.pid", "postmaster.opts", "standby.signal", "backup_label.old"];
/// Directories that are copied empty.
const COPIED_EMPTY: [&str; 9] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pgsql_tmp",
];

/// How long a restarted standby gets to find its place in its upstream's history.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// How a node was made a standby again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejoined {
    /// It had been a standby and had nothing of its own: it just started and streams.
    Restarted,
    /// Its own files were taken back to where the histories part.
    Rewound,
    /// All files were copied anew.
    Rebuilt {
        /// Why a rewind was not possible.
        why: String,
    },
}

impl fmt::Display for Rejoined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restarted => f.write_str("restarted"),
            Self::Rewound => f.write_str("rewound"),
            Self::Rebuilt { why } => write!(f, "rebuilt, because: {why}"),
        }
    }
}

impl Node {
    /// Takes this node's files back to where its history and `source`'s part, and starts it as a
    /// standby of `source`. Stops it first if it runs.
    ///
    /// # Errors
    /// When `pg_rewind` is missing or refuses, which leaves the files fit for
    /// [`Node::rebuild_from`] only; and as [`Node::start`].
    pub fn rewind_from(&self, source: &Node) -> Result<(), ClusterError> {
        self.stop(Shutdown::Fast)?;
        self.clear_orphans()?;
        // A source promoted a moment ago still shows its old timeline in its control file.
        source.psql("CHECKPOINT")?;
        let conninfo = format!(
            "host={} port={} user={SUPERUSER} password={} dbname=postgres",
            source.address(),
            source.port(),
            self.shared.passwords.superuser
        );
        let mut command = self.shared.tool("pg_rewind")?;
        command.arg("-D").arg(self.data_dir()).args(["--no-sync", "--source-server", &conninfo]);
        self.shared.run("pg_rewind", &mut command)?;
        self.become_standby_of(source)
    }

    /// Replaces all its files by a copy of `source`'s and starts it as a standby of `source`. Stops
    /// it first if it runs.
    ///
    /// # Errors
    /// When a file or a tool fails, and as [`Node::start`].
    pub fn rebuild_from(&self, source: &Node) -> Result<(), ClusterError> {
        self.stop(Shutdown::Immediate)?;
        self.clear_orphans()?;
        let data_dir = self.data_dir();
        if data_dir.exists() {
            self.free_shared_memory();
            fs::remove_dir_all(&data_dir).map_err(ClusterError::at("remove", &data_dir))?;
        }
        source.make_slot(self.name())?;
        if self.shared.binaries.has("pg_basebackup") {
            self.base_backup(source)?;
        } else {
            self.copy_backup(source)?;
        }
        self.become_standby_of(source)
    }

    /// Makes it a standby of `source` by the least means: a restart if it was a standby and can follow,
    /// a rewind if that is possible, a rebuild otherwise.
    ///
    /// # Errors
    /// As [`Node::rebuild_from`].
    pub fn rejoin(&self, source: &Node) -> Result<Rejoined, ClusterError> {
        // pg_rewind cannot recover a crashed standby anyway: that is a standby's own start.
        if self.path("standby.signal").exists() && self.restart_behind(source)? {
            return Ok(Rejoined::Restarted);
        }
        match self.rewind_from(source) {
            Ok(()) => Ok(Rejoined::Rewound),
            Err(error) => self.rebuild_from(source).map(|()| Rejoined::Rebuilt { why: error.to_string() }),
        }
    }

    /// Starts a standby with this upstream; whether it streams from there soon.
    fn restart_behind(&self, upstream: &Node) -> Result<bool, ClusterError> {
        self.stop(Shutdown::Fast)?;
        if self.become_standby_of(upstream).is_err() {
            return Ok(false);
        }
        let deadline = self.deadline(STREAM_TIMEOUT);
        while !self.passed(deadline) {
            if self.streams_from(upstream) {
                return Ok(true);
            }
            std::thread::sleep(POLL);
        }
        Ok(false)
    }

    /// Whether it streams from this very node, on the timeline that this one writes. One that is ahead of where the
    /// histories part streams the old timeline for a moment, again and again.
    #[must_use]
    pub fn streams_from(&self, upstream: &Self) -> bool {
        let timeline = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";
        let Ok(timeline) = upstream.psql(timeline) else { return false };
        let receiver = "SELECT sender_port, received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        self.psql(receiver).is_ok_and(|found| found == format!("{}|{timeline}", upstream.port()))
    }

    /// Gives a running standby another upstream.
    ///
    /// # Errors
    /// What either node said.
    pub fn follow(&self, upstream: &Node) -> Result<(), ClusterError> {
        upstream.make_slot(self.name())?;
        let conninfo = self.conninfo(upstream).replace('\'', "''");
        self.psql(&format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'"))?;
        self.psql(&format!("ALTER SYSTEM SET primary_slot_name = '{}'", self.name))?;
        self.psql("SELECT pg_reload_conf()").map(drop)
    }

    /// Promotes a standby and waits until it left recovery.
    ///
    /// # Errors
    /// What PostgreSQL said; [`ClusterError::Late`] after 30 s.
    pub fn promote(&self) -> Result<(), ClusterError> {
        let done = self.psql(&format!("SELECT pg_promote(true, {})", PROMOTE_TIMEOUT.as_secs()))?;
        if done == "t" { Ok(()) } else { Err(self.late("promote", PROMOTE_TIMEOUT)) }
    }

    /// A physical slot that keeps WAL for a standby from now on, unless it exists.
    fn make_slot(&self, standby: &str) -> Result<(), ClusterError> {
        self.psql(&format!(
            "SELECT pg_create_physical_replication_slot('{standby}', true) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{standby}')"
        ))
        .map(drop)
    }

    fn conninfo(&self, upstream: &Node) -> String {
        format!(
            "host={} port={} user={REPLICATION_USER} password={} application_name={}",
            upstream.address(),
            upstream.port(),
            self.shared.passwords.replication,
            self.name
        )
    }

    fn base_backup(&self, source: &Node) -> Result<(), ClusterError> {
        let mut command = self.shared.tool("pg_basebackup")?;
        command.arg("-D").arg(self.data_dir()).args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]);
        command.args(["-S", self.name(), "-d", &self.conninfo(source)]);
        self.shared.run("pg_basebackup", &mut command)
    }

    /// A low-level base backup for installations without `pg_basebackup`. WAL is not copied: the slot
    /// exists since before the backup, so the standby streams all of it.
    fn copy_backup(&self, source: &Node) -> Result<(), ClusterError> {
        let (from, to) = (source.data_dir(), self.data_dir());
        let config = source.superuser_config("postgres");
        let label = sql::on_connection(source.name(), &config, "pg_backup_start", async |client| {
            // Their names until PostgreSQL 14.
            let old = sql::text(client, "SELECT to_regproc('pg_backup_start') IS NULL").await? == "t";
            let (start, stop) = match old {
                true => ("pg_start_backup('playground', true, false)", "pg_stop_backup(false)"),
                false => ("pg_backup_start('playground', true)", "pg_backup_stop(false)"),
            };
            sql::text(client, &format!("SELECT {start}")).await?;
            let copied: Result<(), Failure> = copy_tree(&from, &to, self.shared.account).map_err(Failure::from);
            let label = client.query_one(&format!("SELECT labelfile FROM {stop}"), &[]).await;
            copied?;
            Ok(label?.try_get::<_, String>(0)?)
        })?;
        self.shared.account.write(&self.path("backup_label"), &label)
    }

    /// Replaces what the files say about an upstream, and starts.
    fn become_standby_of(&self, upstream: &Node) -> Result<(), ClusterError> {
        upstream.make_slot(self.name())?;
        let path = self.path("postgresql.auto.conf");
        let before = fs::read_to_string(&path).unwrap_or_default();
        let conninfo = self.conninfo(upstream);
        self.shared.account.write(&path, &with_upstream(&before, &conninfo, self.name()))?;
        self.shared.account.write(&self.path("standby.signal"), "")?;
        self.start()
    }
}

/// `postgresql.auto.conf` with this upstream and no other.
fn with_upstream(before: &str, conninfo: &str, slot: &str) -> String {
    let is_upstream = |line: &&str| line.starts_with("primary_conninfo") || line.starts_with("primary_slot_name");
    let mut text: String = before.lines().filter(|line| !is_upstream(line)).flat_map(|line| [line, "\n"]).collect();
    text.push_str(&format!("primary_conninfo = '{}'\n", conninfo.replace('\'', "''")));
    text.push_str(&format!("primary_slot_name = '{slot}'\n"));
    text
}

/// Copies a running node's files. Files may vanish while it runs; that is what the backup label is for.
fn copy_tree(from: &Path, to: &Path, account: super::account::Account) -> Result<(), ClusterError> {
    fs::create_dir(to).map_err(ClusterError::at("create", to))?;
    let mode = fs::metadata(from).map_err(ClusterError::at("read", from))?.permissions();
    fs::set_permissions(to, mode).map_err(ClusterError::at("change the mode of", to))?;
    account.own(to)?;
    let empty = from.file_name().is_some_and(|name| COPIED_EMPTY.iter().any(|one| name == *one));
    for entry in fs::read_dir(from).map_err(ClusterError::at("list", from))?.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir {
            // Subdirectories of emptied ones (pg_wal/archive_status, …) are expected to exist.
            if !empty || entry.file_name() == "archive_status" || entry.file_name() == "summaries" {
                copy_tree(&source, &target, account)?;
            }
        } else if !empty && !NOT_COPIED.iter().any(|name| entry.file_name() == *name) {
            match fs::copy(&source, &target) {
                Ok(_) => account.own(&target)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(ClusterError::at("copy", &source)(error)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_upstream_is_replaced_and_other_settings_stay() {
        let before = "# kept\nprimary_conninfo = 'host=old'\nwork_mem = '8MB'\nprimary_slot_name = 'old'\n";
        let after = with_upstream(before, "host=new password=it's", "pg2");
        let expected =
            "# kept\nwork_mem = '8MB'\nprimary_conninfo = 'host=new password=it''s'\nprimary_slot_name = 'pg2'\n";
        assert_eq!(after, expected);
    }
}
