//! What an operator orders in the console: RELOAD, nodes in and out, FAILOVER, PAUSE FAILOVER and their like.
//!
//! Invariants: only `console_users` order anything; an order is carried out or refused with a sentence, within a limit
//! of time. Absent on purpose: whether an order is obeyed (whoever owns the config, and the failover machine, decide).

use super::session::{Answer, ConsoleSession, Outcome};
use super::{Access, Order};
use crate::error::{ClientError, SqlState};
use crate::failover::controller::CommandError;
use crate::failover::event::Command;
use crate::ids::NodeId;
use crate::route::Service;
use crate::wire::encode;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long an order may take.
const ORDER_LIMIT: Duration = Duration::from_secs(30);

impl ConsoleSession {
    pub(super) fn forget_learned(&self) -> Answer<Outcome> {
        self.check_access("FORGET LEARNED")?;
        Ok(Outcome::done(format!("FORGET {}", self.console.sources.learned.forget())))
    }

    pub(super) async fn reload(&mut self) -> Answer<Outcome> {
        self.order(Order::Reload, "RELOAD", "the config was not reloaded").await?;
        Ok(Outcome::done("RELOAD"))
    }

    pub(super) async fn serve(&mut self, service: Service, name: &str) -> Answer<Outcome> {
        let node = self.node(name)?;
        let tag = match service {
            Service::Enabled => "ENABLE NODE",
            Service::Draining => "DRAIN NODE",
            Service::Maintenance => "MAINTENANCE NODE",
        };
        self.order(Order::Serve(node, service), tag, "the node serves as before").await?;
        Ok(Outcome::done(tag))
    }

    pub(super) async fn fail_over(&mut self, to: Option<&str>) -> Answer<Outcome> {
        self.check_access("FAILOVER")?;
        let to = to.map(|name| self.node(name)).transpose()?;
        self.command(Command::Failover { to }, "FAILOVER").await
    }

    pub(super) async fn pause_failover(&mut self, on: bool) -> Answer<Outcome> {
        let (command, tag) = if on { (Command::Pause, "PAUSE FAILOVER") } else { (Command::Resume, "RESUME FAILOVER") };
        self.check_access(tag)?;
        self.command(command, tag).await
    }

    /// Gives the failover machine a command and tells what it said.
    async fn command(&mut self, command: Command, tag: &'static str) -> Answer<Outcome> {
        let answer = tokio::time::timeout(ORDER_LIMIT, self.console.sources.control.send(command)).await;
        let gone =
            |why| ClientError::error(SqlState::CANNOT_CONNECT_NOW, "nobody knows whether it is done").detail(why);
        match answer {
            Ok(Ok(text)) => {
                encode::notice(&mut self.out, &text);
                Ok(Outcome::done(tag))
            }
            Ok(Err(CommandError::Refused(why))) => Err(ClientError::error(SqlState::NOT_IN_PREREQUISITE_STATE, why)
                .hint("SHOW FAILOVER tells where things stand, SHOW HOLDS what keeps a failover from happening.")),
            Ok(Err(CommandError::Stopped)) => Err(gone("The control plane has stopped.")),
            Err(_) => Err(gone("The control plane does not answer.")),
        }
    }

    fn node(&self, name: &str) -> Answer<NodeId> {
        let topology = self.console.sources.topology.snapshot();
        let of = |same: &dyn Fn(&str) -> bool| topology.nodes.iter().find(|view| same(&view.name));
        // Names that are not quoted have lost their capitals.
        let view = of(&|known| known == name).or_else(|| of(&|known| known.eq_ignore_ascii_case(name)));
        view.map(|view| view.id).ok_or_else(|| {
            ClientError::error(SqlState("42704"), format!("node \"{name}\" does not exist"))
                .hint("SHOW NODES lists the nodes.")
        })
    }

    fn check_access(&self, command: &str) -> Answer<()> {
        if self.client.access == Access::Full {
            return Ok(());
        }
        let error = ClientError::error(SqlState("42501"), format!("permission denied: {command} is for console_users"));
        Err(error.hint("Name the user in [admin] console_users."))
    }

    /// Has an order carried out; `unchanged` is what holds if it was not.
    async fn order(&mut self, order: Order, command: &str, unchanged: &str) -> Answer<()> {
        self.check_access(command)?;
        let failed = |why: String| ClientError::error(SqlState("F0000"), unchanged.to_owned()).detail(why);
        let (reply, answer) = oneshot::channel();
        let asked = self.console.orders.try_send((order, reply));
        asked.map_err(|_| failed("Other orders are under way, or the proxy is stopping.".to_owned()))?;
        let carried = tokio::time::timeout(ORDER_LIMIT, answer).await;
        let Ok(Ok(carried)) = carried else { return Err(failed("Nobody answered.".to_owned())) };
        carried.map_err(failed)
    }
}
