//! Which host an event concerns, and who handles it. Absent on purpose: what they do.

use crate::fault::HEAL_BOUND;
use crate::world::{Event, World};
use pgregent::coordination::etcd::core::Answer;
use pgregent::failover::event::Event as Told;

impl World {
    /// The host whose processes must run for this to happen; `None`: the kernel's, the network's or fate's.
    pub fn host_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Arrive { session, up, .. } | Event::Reset { session, up } => Some(self.end_of(*session, *up)),
            Event::Knock { session } => Some(self.end_of(*session, true)),
            Event::Knocked { session, .. } | Event::OpenTimeout { session } => Some(self.end_of(*session, false)),
            Event::Idle { voter, .. } | Event::Started { voter, .. } => Some(*voter),
            Event::Probe { node, .. }
            | Event::ReceiverTry { node, .. }
            | Event::ReceiverEof { node, .. }
            | Event::ReceiverTimeout { node, .. }
            | Event::Rewire { node, .. }
            | Event::Commit { node, .. }
            | Event::Promoted { node, .. }
            | Event::Streaming { node, .. }
            | Event::DeedEnd { node, .. }
            | Event::Renamed { node, .. }
            | Event::OrphansEnd { node, .. } => Some(*node),
            Event::Attach { from, .. }
            | Event::Flushed { from, .. }
            | Event::Restream { from, .. }
            | Event::Keepalive { from, .. } => Some(*from),
            Event::EtcdAsk { member, .. } => Some(self.member_host(*member)),
            Event::Attached { to, .. } | Event::Stream { to, .. } => Some(*to),
            Event::ProbeDue { proxy, .. }
            | Event::Probed { proxy, .. }
            | Event::ProbeTimeout { proxy, .. }
            | Event::ProbeLost { proxy, .. }
            | Event::MachineTick { proxy, .. }
            | Event::CoreTick { proxy, .. }
            | Event::Recall { proxy, .. }
            | Event::Reopen { proxy, .. }
            | Event::AskTimeout { proxy, .. }
            | Event::RecordTick { proxy, .. }
            | Event::ActEnded { proxy, .. }
            | Event::ErrandLate { proxy, .. }
            | Event::EtcdSays { proxy, .. }
            | Event::EtcdLate { proxy, .. }
            | Event::EtcdChanged { proxy, .. }
            | Event::ClientDue { proxy, .. } => Some(self.proxy_host(*proxy)),
            Event::Retransmit { .. }
            | Event::Start { .. }
            | Event::Boot { .. }
            | Event::Fault { .. }
            | Event::FaultEnd { .. }
            | Event::Person
            | Event::Cancel { .. }
            | Event::DirectWrite
            | Event::FenceOff { .. }
            | Event::EtcdDo { .. }
            | Event::EtcdExpire { .. }
            | Event::FenceOver { .. }
            | Event::Heal
            | Event::Verdict => None,
        }
    }

    fn end_of(&self, session: u32, up: bool) -> usize {
        let session = &self.sessions[session as usize];
        if up { session.server } else { self.proxy_host(session.proxy) }
    }

    /// Whether the process that set this up still lives.
    fn current(&self, event: &Event) -> bool {
        match event {
            Event::ProbeDue { proxy, run, .. }
            | Event::Probed { proxy, run, .. }
            | Event::ProbeTimeout { proxy, run, .. }
            | Event::ProbeLost { proxy, run, .. }
            | Event::MachineTick { proxy, run }
            | Event::CoreTick { proxy, run }
            | Event::Recall { proxy, run }
            | Event::Reopen { proxy, run, .. }
            | Event::AskTimeout { proxy, run, .. }
            | Event::RecordTick { proxy, run, .. }
            | Event::ActEnded { proxy, run, .. }
            | Event::ErrandLate { proxy, run, .. }
            | Event::EtcdSays { proxy, run, .. }
            | Event::EtcdLate { proxy, run, .. }
            | Event::EtcdChanged { proxy, run }
            | Event::ClientDue { proxy, run, .. } => self.lives(*proxy, *run),
            _ => true,
        }
    }

    pub fn handle(&mut self, event: Event) {
        if !self.current(&event) {
            return;
        }
        match event {
            Event::Arrive { session, up, seq, msg } => {
                if let Some(msg) = self.arrives(session, up, seq, msg) {
                    self.arrive(session, up, seq, msg);
                }
            }
            Event::Retransmit { session, up } => self.retransmit(session, up),
            Event::Knock { session } => self.knock(session),
            Event::Knocked { session, welcome } => self.knocked(session, welcome),
            Event::OpenTimeout { session } => self.open_timeout(session),
            Event::Reset { session, up } => self.reset(session, up),
            Event::Idle { voter, session } => self.idle(voter, session),
            Event::Started { voter, run } => self.started(voter, run),
            Event::Start { voter, run } => self.start_server(voter, run),
            Event::Boot { proxy } => self.boot(proxy),
            Event::Fault { index } => self.strike(index),
            Event::FaultEnd { index } => self.fault_end(index),
            Event::Person => self.person(),
            Event::Cancel { node } => self.cancel_waiters(node),
            Event::DirectWrite => self.direct_write(),
            Event::FenceOff { node } => self.fence_off(node),
            Event::FenceOver { node } => self.power_on(node),
            Event::Heal => self.heal(),
            Event::Verdict => self.verdict(HEAL_BOUND),
            other => self.handle_node(other),
        }
    }

    fn handle_node(&mut self, event: Event) {
        match event {
            Event::Attach { from, to, line } => self.attach(from, to, line),
            Event::Attached { from, to, line } => self.attached(from, to, line),
            Event::Stream { from, to, line, tip } => self.streamed(from, to, line, tip),
            Event::Flushed { from, to, line, tip } => self.flushed(from, to, line, tip),
            Event::Restream { from, to, line } => self.restream(from, to, line),
            Event::Keepalive { from, to, line } => self.keepalive(from, to, line),
            Event::ReceiverTry { node, line } => self.receiver_try(node, line),
            Event::ReceiverEof { node, line } => self.receiver_eof(node, line),
            Event::ReceiverTimeout { node, line } => self.receiver_timeout(node, line),
            Event::Rewire { node, run, wire } => self.rewire(node, run, wire),
            Event::Commit { node, run, session, write } => self.commit(node, run, session, write),
            Event::Promoted { node, run } => self.promoted(node, run),
            Event::Renamed { node, run } => self.renamed(node, run),
            Event::Streaming { node, run, session, id, want, until } => {
                self.streaming(node, run, session, (id, want), until);
            }

            Event::DeedEnd { node, run, session, id, detach } => self.deed_end(node, run, session, id, detach),
            Event::OrphansEnd { node, run } => self.orphans_end(node, run),
            other => self.handle_proxy(other),
        }
    }

    fn handle_proxy(&mut self, event: Event) {
        match event {
            Event::ProbeDue { proxy, node, turn, .. } => self.probe_due(proxy, node, turn),
            Event::Probe { proxy, run, node, turn, sent_at } => self.probe_arrives(proxy, run, node, turn, sent_at),
            Event::Probed { proxy, node, turn, outcome, tip, .. } => {
                self.probed(proxy, node, turn, *outcome, Some(tip))
            }
            Event::ProbeTimeout { proxy, node, turn, .. } => self.probe_timeout(proxy, node, turn),
            Event::ProbeLost { proxy, node, .. } => self.probe_lost(proxy, node),
            Event::MachineTick { proxy, .. } => self.machine_tick(proxy),
            Event::CoreTick { proxy, .. } if self.proxies[proxy].etcd.is_some() => self.etcd_tick(proxy),
            Event::CoreTick { proxy, .. } => self.core_tick(proxy),
            Event::EtcdAsk { proxy, run, member, turn, request } => {
                self.etcd_arrives(proxy, run, (member, turn), request);
            }
            Event::EtcdDo { proxy, run, member, turn, request, tries } => {
                self.etcd_do(proxy, run, (member, turn), request, tries);
            }
            Event::EtcdSays { proxy, turn, answer, .. } => self.etcd_says(proxy, turn, *answer),
            Event::EtcdLate { proxy, turn, .. } => self.etcd_says(proxy, turn, Answer::Failed),
            Event::EtcdChanged { proxy, .. } => self.etcd_look(proxy),
            Event::EtcdExpire { lease } => self.etcd_expire(lease),
            Event::Recall { proxy, .. } => self.recall(proxy),
            Event::Reopen { proxy, voter, .. } => self.reopen(proxy, voter),
            Event::AskTimeout { proxy, voter, session, asked, .. } => self.ask_timeout(proxy, voter, session, asked),
            Event::RecordTick { proxy, .. } => self.further_records(proxy),
            Event::ErrandLate { proxy, session, .. } => self.errand_lost(proxy, session),
            Event::ActEnded { proxy, id, outcome, .. } => self.tell(proxy, Told::ActionDone { id, outcome }),
            Event::ClientDue { proxy, client, .. } => self.client_due(proxy, client),
            _ => {}
        }
    }
}
