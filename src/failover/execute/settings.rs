//! Settings of nodes: who must acknowledge commits, and a former primary's read-only default.
//!
//! Invariants: as of all actions (`execute`); a setting of ours is seen in force before the action is done. Absent on
//! purpose: which node and when; that is the machine's.

use super::super::conninfo::sql_literal;
use super::super::event::Outcome;
use super::{ActError, Executor, bounded};
use crate::ids::{Epoch, NodeId};
use std::time::Duration;

/// How long changing a setting may take.
const SETTING_LIMIT: Duration = Duration::from_secs(5);

impl Executor {
    /// Sets `synchronous_standby_names`.
    pub async fn name_sync(&self, node: NodeId, names: &str, epoch: Epoch) -> Outcome {
        bounded(SETTING_LIMIT, async { self.try_name_sync(node, names, epoch).await.map(|()| Outcome::Done) }).await
    }

    /// Makes a former primary read-only and ends its sessions, or takes the former back.
    pub async fn fence_sql(&self, node: NodeId, epoch: Epoch, on: bool) -> Outcome {
        bounded(SETTING_LIMIT, async { self.try_fence_sql(node, epoch, on).await.map(|()| Outcome::Done) }).await
    }

    async fn try_name_sync(&self, node: NodeId, names: &str, epoch: Epoch) -> Result<(), ActError> {
        self.admit(epoch)?;
        let session = self.session(node).await?;
        session.run(&format!("ALTER SYSTEM SET synchronous_standby_names = {}", sql_literal(names))).await?;
        session.reload().await?;
        let mut polls = 0;
        while session.text("SELECT current_setting('synchronous_standby_names')").await? != names {
            polls = session.wait_a_little(polls).await?;
        }
        session.release();
        Ok(())
    }

    async fn try_fence_sql(&self, node: NodeId, epoch: Epoch, on: bool) -> Result<(), ActError> {
        self.admit(epoch)?;
        let session = self.session(node).await?;
        if on && session.flag("SELECT pg_is_in_recovery()").await? {
            return Err(ActError::InRecovery);
        }
        let what = if on { "SET default_transaction_read_only = on" } else { "RESET default_transaction_read_only" };
        session.run(&format!("ALTER SYSTEM {what}")).await?;
        session.reload().await?;
        if on {
            // Sessions of superusers are not ours to end.
            let end = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid \
                       WHERE a.backend_type = 'client backend' AND NOT r.rolsuper AND a.usename <> current_user";
            session.row(end, &[]).await?;
        }
        session.release();
        Ok(())
    }
}
