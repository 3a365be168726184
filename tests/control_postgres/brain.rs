//! A scripted decider: the first node is primary; when it refuses connections, the second is promoted
//! by the book and the others follow. No safety rules: those are the machine's.

use pgregent::clock::Time;
use pgregent::failover::action::{Action, ActionId, Level, NodePlan, Notice, Plan};
use pgregent::failover::controller::{Brain, BrainSummary, COMMAND_REFUSED};
use pgregent::failover::event::{Command, Event, Outcome, Record};
use pgregent::failover::{Hold, Outlook};
use pgregent::ids::{Epoch, NodeId, SystemId, TimelineId};
use pgregent::topology::{Health, NodeReport, ProbeFailure, Role, Writes};

pub struct FirstStandby {
    reports: Vec<Option<NodeReport>>,
    step: Step,
    next: u64,
    waiting: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Starting,
    Stable(u16),
    Detaching,
    Recording,
    Promoting,
}

impl FirstStandby {
    pub fn new(nodes: usize) -> Self {
        Self { reports: vec![None; nodes], step: Step::Starting, next: 0, waiting: 0 }
    }

    fn id(&mut self) -> ActionId {
        self.next += 1;
        self.waiting += 1;
        ActionId(self.next)
    }

    fn plan(&self, epoch: u64, primary: Option<u16>) -> Action {
        let nodes = self.reports.iter().enumerate().map(|(index, report)| NodePlan {
            role: match report {
                _ if primary == Some(index as u16) => Role::Primary,
                Some(report) if report.in_recovery => Role::Standby,
                _ => Role::Unassigned,
            },
            health: Health::Healthy,
            readable: report.as_ref().is_some_and(|r| r.in_recovery) || primary == Some(index as u16),
            // The old primary is given up with the first step of the change.
            fence: u64::from(index == 0 && !matches!(self.step, Step::Starting | Step::Stable(0))),
            note: None,
        });
        let writes = if primary.is_some() { Writes::Open } else { Writes::Held { why: "changing".into() } };
        Action::Publish(Plan { epoch: Epoch(epoch), primary: primary.map(NodeId), writes, nodes: nodes.collect() })
    }

    fn record(&mut self, epoch: u64, primary: &str) -> Action {
        let system_id = self.reports.iter().flatten().map(|r| r.system_id).next().unwrap_or(SystemId(0));
        let record = Record {
            system_id,
            epoch: Epoch(epoch),
            primary: primary.into(),
            timeline: TimelineId(1),
            promoted: true,
            given_up: Vec::new(),
        };
        Action::Record(self.id(), record)
    }
}

impl Brain for FirstStandby {
    fn step(&mut self, event: Event, _now: Time) -> Vec<Action> {
        match (self.step, event) {
            (step, Event::Observed(seen)) => {
                let index = seen.node.index();
                match seen.outcome {
                    Ok(report) => self.reports[index] = Some(report),
                    Err(ProbeFailure::Refused) if step == Step::Stable(0) && index == 0 => {
                        self.step = Step::Detaching;
                        let hold = self.plan(1, None);
                        let others = (1..self.reports.len() as u16).map(NodeId).collect::<Vec<_>>();
                        let detach = others.into_iter().map(|node| Action::Detach(self.id(), node, Epoch(2)));
                        return std::iter::once(hold).chain(detach.collect::<Vec<_>>()).collect();
                    }
                    Err(_) => {}
                }
                match self.step {
                    Step::Starting if self.reports.iter().all(Option::is_some) => {
                        self.step = Step::Stable(0);
                        vec![self.record(1, "pg1"), self.plan(1, Some(0))]
                    }
                    Step::Stable(primary) => vec![self.plan(if primary == 0 { 1 } else { 2 }, Some(primary))],
                    _ => vec![],
                }
            }
            (_, Event::ActionDone { outcome: Outcome::Failed(why), .. }) => panic!("action failed: {why}"),
            (step, Event::ActionDone { .. }) => {
                self.waiting -= 1;
                match step {
                    Step::Detaching if self.waiting == 0 => {
                        self.step = Step::Recording;
                        vec![self.record(2, "pg2")]
                    }
                    Step::Recording => {
                        self.step = Step::Promoting;
                        vec![Action::Promote(self.id(), NodeId(1), Epoch(2))]
                    }
                    Step::Promoting => {
                        self.step = Step::Stable(1);
                        let (upstream, epoch) = (NodeId(1), Epoch(2));
                        let (id, node, timeline) = (self.id(), NodeId(2), TimelineId(2));
                        let repoint = Action::Repoint { id, node, upstream, epoch, timeline };
                        vec![self.plan(2, Some(1)), repoint]
                    }
                    _ => vec![],
                }
            }
            (_, Event::Command(Command::Failover { .. })) => vec![told(COMMAND_REFUSED, "not by hand")],
            // Writes are held for a while, and nobody is given up.
            (_, Event::Command(Command::Resume)) => vec![self.plan(1, None), told("command", "noted")],
            (_, Event::Command(_)) => vec![told("command", "noted")],
            _ => vec![],
        }
    }

    fn holds(&self) -> Vec<Hold> {
        vec![]
    }

    fn outlook(&self) -> Outlook {
        Outlook::default()
    }

    fn summary(&self) -> BrainSummary {
        BrainSummary { state: "scripted", ..BrainSummary::default() }
    }
}

fn told(kind: &'static str, text: &str) -> Action {
    Action::Tell(Notice { level: Level::Info, kind, node: None, text: text.to_owned() })
}
