//! The demo while a person plays: what to try, live status, a few commands.
//!
//! Invariants: nothing that may block on a node runs on the task that draws and hears signals. Absent on
//! purpose: commands that go through the proxy's console; those are typed in psql.

use super::Playground;
use super::cluster::Cluster;
use super::heal::{self, Ailment, Chart};
use super::screen::Screen;
use super::status::{self, ClusterStatus, Rates, Statements};
use crate::clock::Clock;
use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const REFRESH: Duration = Duration::from_secs(1);
/// Typed lines that may wait.
const COMMANDS_MAX: usize = 16;

/// Runs `work` until it is done or a signal asks us to stop, which gives `None`.
pub(super) async fn unless_stopped<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
    tokio::select! {
        done = work => done.map(Some),
        stop = stop_signal() => stop.map(|()| None),
    }
}

/// SIGINT, SIGTERM or SIGHUP.
async fn stop_signal() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// What a person may type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Kill,
    Heal,
    Help,
    Quit,
}

impl Command {
    fn read(line: &str) -> Option<Self> {
        match line.trim() {
            "kill" | "k" => Some(Self::Kill),
            "heal" | "h" => Some(Self::Heal),
            "help" | "?" => Some(Self::Help),
            "quit" | "q" | "exit" => Some(Self::Quit),
            _ => None,
        }
    }
}

/// What one look at everything gave.
#[derive(Debug, Default)]
struct View {
    status: Option<ClusterStatus>,
    statements: Statements,
    pids: Vec<(String, Option<u32>)>,
    ill: Vec<(String, Ailment)>,
}

/// Plays until a signal, `quit`, or the end of the proxy.
pub(super) async fn play(playground: &mut Playground, keep_healing: bool) -> anyhow::Result<()> {
    let mut screen = Screen::new();
    screen.say(&introduction(playground, keep_healing));
    let mut game = Game {
        cluster: Arc::clone(&playground.cluster),
        admin_port: playground.proxy.admin_port(),
        keep_healing,
        screen,
        view: View::default(),
        chart: Chart::default(),
        clock: Clock::machine(),
        healing: None,
    };
    let mut commands = typed_lines();
    let mut stop = std::pin::pin!(stop_signal());
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            stopped = &mut stop => return stopped,
            _ = refresh.tick() => {
                anyhow::ensure!(playground.proxy.is_running(), "the proxy ended by itself");
                game.refresh().await;
            }
            Some(line) = commands.recv() => {
                game.screen.was_scrolled();
                match Command::read(&line) {
                    Some(Command::Quit) => return Ok(()),
                    Some(Command::Help) => game.screen.say(&introduction(playground, keep_healing)),
                    Some(Command::Kill) => game.kill(),
                    Some(Command::Heal) => game.heal_all(),
                    None if line.trim().is_empty() => {}
                    None => game.screen.say("unknown; one of: kill, heal, help, quit"),
                }
            }
        }
    }
}

fn introduction(playground: &Playground, keep_healing: bool) -> String {
    let proxy = &playground.proxy;
    let pid = playground.cluster.nodes().iter().find_map(super::cluster::Node::pid);
    let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    let healing = if keep_healing {
        "A node that stays broken for 3 seconds is rewound and rejoined by itself."
    } else {
        "Type `heal` to rewind a killed primary and let it rejoin as standby (or start with --keep-healing)."
    };
    format!(
        "\nConnect:   {psql}\n\
         Metrics:   http://127.0.0.1:{admin}/metrics\n\
         Cluster:   http://127.0.0.1:{admin}/api/v1/cluster\n\
         Log:       {log}\n\n\
         Try:\n\
         \x20 SELECT pg_is_in_recovery();                        in psql, several times: reads go to standbys\n\
         \x20 CREATE TABLE t (n int); INSERT INTO t VALUES (1);  writes go to the primary\n\
         \x20 SELECT * FROM t;                                   and you read what you wrote\n\
         \x20 kill -9 {pid:<42} the primary's postmaster; or type `kill` here\n\
         \x20 \\watch 0.5                                         keep a statement running meanwhile\n\
         {healing}\n\
         Ctrl-C or `quit` removes everything.\n",
        psql = playground.psql_line(),
        admin = proxy.admin_port(),
        log = proxy.log_path().display(),
    )
}

/// Lines typed by a person, read on a thread that ends with the process. None if nobody can type.
fn typed_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

struct Game {
    cluster: Arc<Cluster>,
    admin_port: u16,
    keep_healing: bool,
    screen: Screen,
    view: View,
    chart: Chart,
    clock: Clock,
    healing: Option<JoinHandle<String>>,
}

impl Game {
    async fn refresh(&mut self) {
        let (cluster, admin_port) = (Arc::clone(&self.cluster), self.admin_port);
        let healing = self.healing.is_some();
        let looked = tokio::task::spawn_blocking(move || look(&cluster, admin_port, healing)).await;
        let before = std::mem::replace(&mut self.view, looked.unwrap_or_default());
        self.tell_healed().await;
        let rates = Rates::between(&before.statements, &self.view.statements);
        let lines = status::lines(self.view.status.as_ref(), &self.view.pids, &rates);
        self.screen.show(&lines, &status::key(self.view.status.as_ref()));
        let due = self.chart.due(&self.view.ill, self.clock.now());
        // Without a primary a failover may be under way, and nobody should come back in the middle of it.
        if self.keep_healing && self.healing.is_none() && self.primary().is_some() && !due.is_empty() {
            self.heal(due);
        }
    }

    async fn tell_healed(&mut self) {
        if let Some(healing) = self.healing.take_if(|task| task.is_finished()) {
            let told = healing.await.unwrap_or_else(|error| format!("healing failed: {error}"));
            self.screen.say(&told);
        }
    }

    fn primary(&self) -> Option<String> {
        self.view.status.as_ref()?.primary.clone()
    }

    fn kill(&mut self) {
        let name = self.primary();
        let node = name.as_deref().and_then(|name| self.cluster.node(name)).filter(|node| node.is_running());
        let told = match node.map(|node| (node.name(), node.pid(), node.kill9())) {
            Some((name, pid, Ok(()))) => format!("killed {name}, pid {}, with SIGKILL", pid.unwrap_or_default()),
            Some((name, _, Err(error))) => format!("{name} could not be killed: {error}"),
            None => "there is no primary to kill".to_owned(),
        };
        self.screen.say(&told);
    }

    fn heal_all(&mut self) {
        let ill: Vec<_> = self.view.ill.iter().map(|(name, _)| name.clone()).collect();
        match (self.healing.is_some(), ill.is_empty()) {
            (true, _) => self.screen.say("already at it"),
            (false, true) => self.screen.say("nothing to heal, as far as the last look tells"),
            (false, false) => self.heal(ill),
        }
    }

    /// Starts to heal, in the background.
    fn heal(&mut self, names: Vec<String>) {
        let Some(primary) = self.primary() else { return self.heal_without_primary(names) };
        for (name, ailment) in self.view.ill.iter().filter(|(name, _)| names.contains(name)) {
            self.screen.say(&format!(
                "{name} {}: letting it follow {primary} (by rewind, if it has a history of its own)",
                ailment.words()
            ));
        }
        let cluster = Arc::clone(&self.cluster);
        self.healing = Some(tokio::task::spawn_blocking(move || {
            let nodes = names.iter().filter_map(|name| cluster.node(name));
            let told = nodes.map(|node| match heal::heal(&cluster, node, &primary) {
                Ok(Some(how)) => format!("{} was {how}, and follows {primary}", node.name()),
                Ok(None) => format!("{} waits for a primary that runs", node.name()),
                Err(error) => format!("{} could not rejoin: {error}", node.name()),
            });
            told.collect::<Vec<_>>().join("\n")
        }));
    }

    /// The proxy names no primary, so whatever is down has to come back as it is.
    fn heal_without_primary(&mut self, names: Vec<String>) {
        let cluster = Arc::clone(&self.cluster);
        self.healing = Some(tokio::task::spawn_blocking(move || {
            let nodes = names.iter().filter_map(|name| cluster.node(name)).filter(|node| !node.is_running());
            let told = nodes.map(|node| match node.start() {
                Ok(()) => format!("{} started again; there is no primary to follow", node.name()),
                Err(error) => format!("{} could not start: {error}", node.name()),
            });
            told.collect::<Vec<_>>().join("\n")
        }));
    }
}

/// Blocks. While a node is being healed, its ailments are not news.
fn look(cluster: &Cluster, admin_port: u16, healing: bool) -> View {
    let status = status::cluster(admin_port);
    let primary = status.as_ref().and_then(|status| status.primary.clone()).unwrap_or_default();
    let ill = if healing { Vec::new() } else { heal::examine(cluster, &primary) };
    View {
        status,
        statements: status::statements(admin_port),
        pids: cluster.nodes().iter().map(|node| (node.name().to_owned(), node.pid())).collect(),
        ill: ill.into_iter().map(|(node, ailment)| (node.name().to_owned(), ailment)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_short_forms_and_unknown_ones_are_refused() {
        assert_eq!(Command::read(" kill\n"), Some(Command::Kill));
        assert_eq!(Command::read("q"), Some(Command::Quit));
        assert_eq!(Command::read("drop table"), None);
    }
}
