//! Runs the configured programs of `[hooks]`.
//!
//! Invariants: of each kind one program runs at a time, on the control plane's runtime; it leads a process group of its
//! own, and when it runs too long, or we stop, the whole group is killed; it is always waited for; what it prints is
//! read to the end and kept in part. Absent on purpose: a shell, retries, and what follows from an exit status.

use super::action::{HookCall, HookKind};
use super::event::Outcome;
use crate::config::{Config, HooksConfig, NodeConfig};
use crate::ids::NodeId;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// Calls of one kind that may wait for their turn.
const WAITING_MAX: usize = 8;
/// Bytes kept of what a program prints; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 4096;
/// Lines of it that are logged.
const OUTPUT_LINES_MAX: usize = 20;
/// How long the output is read after the program has ended: a process that it left behind may hold the pipe.
const OUTPUT_WAIT: Duration = Duration::from_millis(200);

/// The programs, and whose turn it is.
#[derive(Debug)]
pub struct Hooks {
    config: HooksConfig,
    cluster: String,
    nodes: Vec<NodeConfig>,
    turns: [tokio::sync::Mutex<()>; HookKind::ALL.len()],
    waiting: [AtomicUsize; HookKind::ALL.len()],
}

/// Why a program did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("no program is configured")]
    None,
    #[error("{WAITING_MAX} calls wait for their turn already")]
    Crowded,
    #[error("{program} cannot be started: {cause}")]
    Start { program: String, cause: std::io::Error },
    #[error("{program} was lost: {cause}")]
    Lost { program: String, cause: std::io::Error },
    #[error("{program} was killed after {} s", .limit.as_secs_f32())]
    TooLong { program: String, limit: Duration },
    #[error("{program}: {status}{said}")]
    Refused { program: String, status: ExitStatus, said: String },
}

impl Hooks {
    /// What the configuration names.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.hooks.clone(),
            cluster: config.cluster.name.clone(),
            nodes: config.nodes.clone(),
            turns: Default::default(),
            waiting: Default::default(),
        }
    }

    /// Runs the program of this kind to its end. `Done`: exit status 0.
    pub async fn run(&self, call: HookCall) -> Outcome {
        match self.in_turn(call).await {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    async fn in_turn(&self, call: HookCall) -> Result<(), HookError> {
        let slot = call.kind as usize;
        let waits = Counted::enter(&self.waiting[slot]).ok_or(HookError::Crowded)?;
        let _turn = self.turns[slot].lock().await;
        drop(waits);
        self.perform(call).await
    }

    async fn perform(&self, call: HookCall) -> Result<(), HookError> {
        let words = self.program(call.kind);
        let Some((program, arguments)) = words.split_first() else { return Err(HookError::None) };
        let mut command = Command::new(program);
        command.args(arguments).envs(self.variables(call));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|cause| HookError::Start { program: program.clone(), cause })?;
        let group = Group::of(&child);
        let (out, err) = (Kept::default(), Kept::default());
        let reading = futures::future::join(out.read(child.stdout.take()), err.read(child.stderr.take()));
        tokio::pin!(reading);
        let mut read = false;
        let ended = tokio::time::timeout(self.config.timeout, async {
            loop {
                tokio::select! {
                    status = child.wait() => break status,
                    _ = &mut reading, if !read => read = true,
                }
            }
        });
        let Ok(ended) = ended.await else {
            drop(group);
            // Killed as it is, this takes a moment only.
            let _ = child.wait().await;
            log(call.kind, &out, &err);
            return Err(HookError::TooLong { program: program.clone(), limit: self.config.timeout });
        };
        group.forget();
        if !read {
            let _ = tokio::time::timeout(OUTPUT_WAIT, &mut reading).await;
        }
        log(call.kind, &out, &err);
        let status = ended.map_err(|cause| HookError::Lost { program: program.clone(), cause })?;
        if status.success() {
            return Ok(());
        }
        let said = err.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
        Err(HookError::Refused { program: program.clone(), status, said })
    }

    fn program(&self, kind: HookKind) -> &[String] {
        match kind {
            HookKind::Fence => &self.config.fence_command,
            HookKind::BeforePromotion => &self.config.before_promotion,
            HookKind::AfterPromotion => &self.config.after_promotion,
            HookKind::RoleChange => &self.config.on_role_change,
            HookKind::Rejoin => &self.config.on_rejoin,
        }
    }

    /// What a program is told; the contract stands in docs/operations.md.
    fn variables(&self, call: HookCall) -> Vec<(&'static str, String)> {
        let node = self.nodes.get(call.node.index());
        let name = |id: Option<NodeId>| {
            id.and_then(|id| self.nodes.get(id.index())).map_or_else(String::new, |node| node.name.to_string())
        };
        vec![
            ("PGREGENT_HOOK", call.kind.word().to_owned()),
            ("PGREGENT_CLUSTER", self.cluster.clone()),
            ("PGREGENT_NODE", name(Some(call.node))),
            ("PGREGENT_HOST", node.map_or_else(String::new, |node| node.host.clone())),
            ("PGREGENT_PORT", node.map_or_else(String::new, |node| node.port.to_string())),
            ("PGREGENT_EPOCH", call.epoch.to_string()),
            ("PGREGENT_OLD_PRIMARY", name(call.old)),
            ("PGREGENT_NEW_PRIMARY", name(call.new)),
            ("PGREGENT_TIMELINE", call.timeline.map_or_else(String::new, |timeline| timeline.to_string())),
            ("PGREGENT_REASON", call.reason.to_owned()),
        ]
    }
}

/// One that waits, while there is room.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn enter(count: &'a AtomicUsize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let entered = Self(count);
        (before < WAITING_MAX).then_some(entered)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The processes of a program; killed when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// Its first process was waited for: the number may be another's by now.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(first) = self.0 {
            // Gone already is as good.
            let _ = kill_process_group(first, Signal::KILL);
        }
    }
}

/// The beginning of what was printed.
#[derive(Default)]
struct Kept(Mutex<Vec<u8>>);

impl Kept {
    /// Reads to the end, whatever is kept: a program must not hang on a full pipe.
    async fn read(&self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut bytes).await {
            let mut kept = self.0.lock();
            let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..count.min(room)]);
        }
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock()).into_owned();
        let clean = |line: &str| line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        let lines = text.lines().map(clean).filter(|line| !line.trim().is_empty());
        lines.take(OUTPUT_LINES_MAX).collect()
    }
}

fn log(kind: HookKind, out: &Kept, err: &Kept) {
    for line in out.lines() {
        tracing::info!(hook = kind.word(), "{line}");
    }
    for line in err.lines() {
        tracing::warn!(hook = kind.word(), "{line}");
    }
}

#[cfg(test)]
mod tests;
