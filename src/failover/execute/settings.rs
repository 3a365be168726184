//! Settings of nodes: who must acknowledge commits, and a former primary's read-only default.
//!
//! Invariants: as of all actions (`execute`); a setting of ours is seen in force before the action is done. Absent on
//! purpose: which node and when; that is the machine's.

use super::super::conninfo::{ConnInfo, sql_literal};
use super::super::event::Outcome;
use super::{ActError, Executor, bounded};
use crate::coordination::voters::core::Lock;
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
        let session = self.acting(node, Lock::Shared).await?;
        self.admit(epoch)?;
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
        let session = self.acting(node, Lock::Shared).await?;
        self.admit(epoch)?;
        if on && session.flag("SELECT pg_is_in_recovery()").await? {
            return Err(ActError::InRecovery);
        }
        let what = if on { "SET default_transaction_read_only = on" } else { "RESET default_transaction_read_only" };
        let current = session.text("SELECT current_setting('primary_conninfo')").await?;
        // A string that cannot be read bears no mark, and gets none: the fence matters more.
        let marked = ConnInfo::parse(&current).map_or(current.clone(), |conninfo| conninfo.fenced(on).to_string());
        if marked != current {
            session.set_conninfo(&marked).await?;
        }
        session.run(&format!("ALTER SYSTEM {what}")).await?;
        session.reload().await?;
        let (wanted, mut polls) = (if on { "on" } else { "off" }, 0);
        while session.text("SELECT current_setting('default_transaction_read_only')").await? != wanted {
            polls = session.wait_a_little(polls).await?;
        }
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
