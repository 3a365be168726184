//! What goes wrong, drawn from the seed: for minutes beforehand, and right after something decisive (an ambush).
//!
//! Invariants: every fault ends by itself or at the heal, after which nothing goes wrong any more.

use crate::random::Random;
use crate::setup::Store;
use crate::world::{Event, MS, Nanos, SEC, World, note};
use pgregent::failover::event::{Command, Event as Told};
use pgregent::ids::NodeId;

#[derive(Clone, Debug)]
enum Fault {
    /// The postmaster is killed and started again later.
    Kill {
        voter: usize,
        orphans: bool,
    },
    /// Several voters in a row.
    Rolling {
        gap: Nanos,
    },
    Power {
        voter: usize,
    },
    Stall {
        host: usize,
    },
    Cut {
        from: usize,
        to: usize,
        both: bool,
    },
    Isolate {
        host: usize,
        inward: bool,
        outward: bool,
    },
    Split {
        side: u32,
    },
    Bad {
        host: usize,
        loss: u64,
        slow: Nanos,
    },
    CrashProxy {
        proxy: usize,
    },
    /// The proxy crashes right after so many more actions.
    Mine {
        proxy: usize,
        actions: u32,
    },
    PauseReplay {
        node: usize,
    },
    SlowPromotion {
        node: usize,
        span: Nanos,
    },
    /// The primary is cut off from its standbys, commits that wait are cancelled, and it loses power.
    Forsake {
        node: usize,
    },
    /// A proxy does not hear from most voters while another one is told to change the primary.
    Duel {
        deaf: usize,
        primary: usize,
        order: usize,
        restarts: bool,
    },
    /// What voters say reaches a proxy late, then it is not heard by them any more, while another one that does not see the
    /// primary changes it.
    Late {
        proxy: usize,
        primary: usize,
        slow: Nanos,
        cut_after: Nanos,
        order: Option<usize>,
    },
    /// The primary is cut off from all proxies but one, and from the other voters where `voters` says so.
    Apart {
        primary: usize,
        but: usize,
        voters: bool,
    },
    /// No voter but the primary hears from a proxy.
    Mute {
        proxy: usize,
        primary: usize,
    },
    /// All proxies but one crash once they have told a standby to promote itself, which takes long; the old primary comes
    /// back before, while another node is away.
    HalfDone {
        primary: usize,
        but: usize,
        away: usize,
        slow: Nanos,
    },
    /// A proxy stands still while another one is told to change the primary.
    Doze {
        proxy: usize,
        order: usize,
    },
    Order {
        proxy: usize,
        to: Option<usize>,
    },
    /// A person pauses a proxy's automatic decisions.
    Pause {
        proxy: usize,
    },
    /// A person works on a node, says one proxy.
    Maintain {
        proxy: usize,
        node: usize,
    },
    /// A member of etcd is off.
    Member {
        member: usize,
    },
    /// etcd has no leader.
    Leaderless,
    /// etcd answers renewals and forgets them.
    DeafEtcd,
    /// A lease ends although it was renewed.
    Revoke,
}

#[derive(Debug, Default)]
pub struct Faults {
    /// What, drawn when it strikes, and for how long.
    list: Vec<(Option<Fault>, Nanos)>,
    active: Vec<usize>,
    /// When everything was mended.
    pub healed: Option<Nanos>,
}

/// Until when the cluster must be writable through every proxy after the last fault.
pub const HEAL_BOUND: Nanos = 60 * SEC;

impl World {
    pub fn draw_faults(&mut self) {
        for _ in 0..self.setup.faults {
            let at = self.random.between(2 * SEC, self.setup.faults_end - SEC);
            self.draw_fault(at);
        }
    }

    fn draw_fault(&mut self, at: Nanos) {
        let span = match self.random.below(10) {
            0..4 => self.random.between(20 * MS, 900 * MS),
            4..8 => self.random.between(900 * MS, 5 * SEC),
            _ => self.random.between(5 * SEC, 15 * SEC),
        };
        let index = self.faults.list.len();
        self.faults.list.push((None, span));
        self.at(at, Event::Fault { index });
    }

    fn any_fault(&mut self) -> Fault {
        let (voters, proxies, nodes) = (self.setup.voters(), self.setup.proxies, self.setup.nodes);
        let latest = self.oracle.latest.map(|(_, primary, _)| primary);
        let random = &mut self.random;
        let (any, node, proxy) = (random.below(voters), random.below(nodes), random.below(proxies));
        // The primary is the most interesting of them.
        let primary = latest.unwrap_or(0);
        let voter = if random.chance(350) { primary } else { any };
        let members = self.setup.members();
        let host = if random.chance(250) { voter } else { random.below(voters + proxies + members) };
        if members > 0 && random.chance(self.setup.revokes) {
            return Fault::Revoke;
        }
        if members > 0 && random.chance(200) {
            let member = random.below(members);
            return [Fault::Member { member }, Fault::Leaderless, Fault::DeafEtcd, Fault::Revoke][random.below(4)]
                .clone();
        }
        if random.chance(self.setup.duels) {
            return Fault::Duel { deaf: proxy, primary, order: (proxy + 1) % proxies, restarts: random.chance(500) };
        }
        if random.chance(self.setup.late) {
            return Self::late(random, proxy, primary, proxies);
        }
        if random.chance(self.setup.halves) {
            return Self::half_done(random, proxy, primary, nodes);
        }
        if random.chance(self.setup.doze) {
            return Fault::Doze { proxy, order: (proxy + 1) % proxies };
        }
        match random.below(30) {
            0..4 => Fault::Kill { voter, orphans: random.chance(500) },
            4 => Fault::Rolling { gap: random.between(10 * MS, 900 * MS) },
            5 => Fault::Power { voter },
            6..9 => Fault::Stall { host },
            9..12 => {
                let hosts = voters + proxies + members;
                let to = (host + 1 + random.below(hosts - 1)) % hosts;
                Fault::Cut { from: host, to, both: random.chance(600) }
            }
            12..14 => {
                let way = random.below(3);
                Fault::Isolate { host, inward: way != 0, outward: way != 1 }
            }
            14..16 => Fault::Split { side: u32::try_from(random.next() & 0xFF).unwrap_or(1) },
            16 => Fault::Bad { host, loss: random.between(10, 500), slow: random.between(0, 900 * MS) },
            17 => Fault::CrashProxy { proxy },
            18..20 => Fault::Mine { proxy, actions: u32::try_from(random.between(0, 6)).unwrap_or(0) },
            20 => Fault::PauseReplay { node },
            21 => Fault::SlowPromotion { node, span: random.between(500 * MS, 8 * SEC) },
            22 => Fault::Forsake { node: latest.unwrap_or(node) },
            23 => Fault::Duel { deaf: proxy, primary, order: (proxy + 1) % proxies, restarts: random.chance(500) },
            26 => Fault::Pause { proxy },
            27 => Fault::Maintain { proxy, node },
            24 => Self::late(random, proxy, primary, proxies),
            25 => Fault::Doze { proxy, order: (proxy + 1) % proxies },
            28 => Self::half_done(random, proxy, primary, nodes),
            _ => Fault::Order { proxy, to: random.chance(500).then_some(node) },
        }
    }

    fn half_done(random: &mut Random, proxy: usize, primary: usize, nodes: usize) -> Fault {
        let away = (primary + 1 + random.below(nodes - 1)) % nodes;
        Fault::HalfDone { primary, but: proxy, away, slow: random.between(2 * SEC, 7 * SEC) }
    }

    fn late(random: &mut Random, proxy: usize, primary: usize, proxies: usize) -> Fault {
        let slow = random.between(500 * MS, 1900 * MS);
        let order = random.chance(500).then_some((proxy + 1) % proxies);
        let cut_after = if order.is_some() { random.between(SEC, 3 * SEC) } else { random.between(3 * SEC, 7 * SEC) };
        Fault::Late { proxy, primary, slow, cut_after, order }
    }

    pub fn strike(&mut self, index: usize) {
        if self.faults.healed.is_some() {
            return;
        }
        let (drawn, span) = self.faults.list[index].clone();
        let fault = drawn.unwrap_or_else(|| self.any_fault());
        self.faults.list[index].0 = Some(fault.clone());
        note!(self, "FAULT {fault:?} for {} ms", span / MS);
        self.faults.active.push(index);
        self.later(span, Event::FaultEnd { index });
        match fault {
            Fault::Kill { voter, orphans } => self.kill(voter, orphans, span),
            Fault::Rolling { gap } => {
                for voter in 0..self.setup.voters() {
                    let index = self.faults.list.len();
                    self.faults.list.push((Some(Fault::Kill { voter, orphans: false }), 50 * MS));
                    self.later(gap * voter as u64, Event::Fault { index });
                }
            }
            Fault::Power { voter } => {
                self.hosts[voter].off = true;
                self.stop_server(voter, false);
            }
            Fault::Stall { host } => self.hosts[host].stalled += 1,
            Fault::Cut { .. }
            | Fault::Isolate { .. }
            | Fault::Split { .. }
            | Fault::Apart { .. }
            | Fault::Mute { .. } => self.cut(&fault, true),
            Fault::Bad { host, loss, slow } => self.bad(host, loss, slow),
            Fault::CrashProxy { proxy } => self.crash(proxy),
            Fault::Mine { proxy, actions } => self.proxies[proxy].crash_after = Some(actions),
            Fault::PauseReplay { node } => self.nodes[node].replay_paused = !self.nodes[node].primary,
            Fault::SlowPromotion { node, span } => self.nodes[node].slow_promotion = span,
            Fault::Forsake { node } => {
                self.forsake(node, true);
                self.later(400 * MS, Event::Cancel { node });
                self.follow_up(Fault::Power { voter: node }, 500 * MS);
            }
            Fault::Duel { deaf, primary, order, restarts } => self.duel(deaf, primary, order, restarts),
            Fault::Late { proxy, primary, slow, cut_after, order } => {
                self.belate(proxy, primary, slow);
                self.follow_up(Fault::Apart { primary, but: proxy, voters: order.is_none() }, 0);
                self.follow_up(Fault::Mute { proxy, primary }, cut_after);
                if let Some(proxy) = order {
                    self.follow_up(Fault::Order { proxy, to: None }, cut_after);
                }
            }
            Fault::HalfDone { primary, but, away, slow } => self.half(primary, but, away, slow),
            Fault::Doze { proxy, order } => {
                let host = self.proxy_host(proxy);
                self.hosts[host].stalled += 1;
                self.follow_up(Fault::Order { proxy: order, to: None }, 50 * MS);
            }
            Fault::Pause { proxy } => self.command(proxy, Command::Pause),
            Fault::Maintain { proxy, node } => self.maintain(proxy, node, true),
            Fault::Member { member } => {
                let host = self.member_host(member);
                self.hosts[host].off = true;
            }
            Fault::Leaderless => self.etcd.leaderless_until = self.now + span,
            Fault::DeafEtcd => self.etcd.deaf_until = self.now + span,
            Fault::Revoke => self.etcd_revoke(),
            Fault::Order { proxy, to } => {
                let to = to.map(|n| NodeId(u16::try_from(n).unwrap_or(0)));
                self.command(proxy, Command::Failover { to });
            }
        }
    }

    fn command(&mut self, proxy: usize, command: Command) {
        if self.proxies[proxy].up && self.hosts[self.proxy_host(proxy)].stalled == 0 {
            // Whoever names one of several primaries gives up what the others have.
            let settles = |to: &NodeId| self.nodes[to.index()].primary;
            let named = matches!(&command, Command::Failover { to: Some(to) } if settles(to));
            self.proxies[proxy].risks |= named;
            self.tell(proxy, Told::Command(command));
            self.proxies[proxy].risks &= !named || self.proxies[proxy].machine.summary().state == "adopting";
        }
    }

    fn maintain(&mut self, proxy: usize, node: usize, on: bool) {
        let node = NodeId(u16::try_from(node).unwrap_or(0));
        self.command(proxy, Command::Maintain { node, on });
    }

    /// Another fault, which belongs to one that has struck.
    fn follow_up(&mut self, fault: Fault, after: Nanos) {
        let index = self.faults.list.len();
        let span = if matches!(fault, Fault::Kill { .. }) { 50 * MS } else { 8 * SEC };
        self.faults.list.push((Some(fault), span));
        self.later(after, Event::Fault { index });
    }

    fn duel(&mut self, deaf: usize, primary: usize, order: usize, restarts: bool) {
        self.deafen(deaf, primary, true);
        for voter in (0..self.setup.voters()).filter(|v| restarts && *v != primary) {
            self.follow_up(Fault::Kill { voter, orphans: false }, 50 * MS);
        }
        self.follow_up(Fault::Order { proxy: order, to: None }, 100 * MS);
    }

    fn belate(&mut self, proxy: usize, primary: usize, slow: Nanos) {
        let to = self.proxy_host(proxy);
        for from in (0..self.setup.voters()).filter(|v| *v != primary) {
            self.links[from][to].slow = slow;
        }
    }

    fn half(&mut self, primary: usize, but: usize, away: usize, slow: Nanos) {
        self.nodes.iter_mut().for_each(|node| node.slow_promotion = slow);
        let actions = u32::try_from(self.setup.nodes).unwrap_or(3);
        for proxy in (0..self.setup.proxies).filter(|proxy| *proxy != but) {
            self.proxies[proxy].crash_after = Some(actions);
        }
        let (back, gone, span) =
            (self.random.between(SEC, 3 * SEC), self.random.between(SEC, 3 * SEC), self.random.between(SEC, 4 * SEC));
        self.kill(primary, false, back);
        let index = self.faults.list.len();
        self.faults.list.push((Some(Fault::Kill { voter: away, orphans: false }), span));
        self.later(gone, Event::Fault { index });
    }

    fn forsake(&mut self, node: usize, on: bool) {
        for other in (0..self.setup.nodes).filter(|n| *n != node) {
            self.cut(&Fault::Cut { from: node, to: other, both: true }, on);
        }
    }

    fn deafen(&mut self, proxy: usize, primary: usize, on: bool) {
        let to = self.proxy_host(proxy);
        for from in (0..self.setup.voters()).filter(|v| *v != primary) {
            if self.setup.direct {
                // Late and lost answers instead of none.
                (self.links[from][to].loss, self.links[from][to].slow) = if on { (500, SEC) } else { (0, 0) };
            } else {
                self.cut(&Fault::Cut { from, to, both: false }, on);
            }
        }
    }

    fn kill(&mut self, voter: usize, orphans: bool, span: Nanos) {
        if self.servers[voter].up || self.servers[voter].starting {
            self.stop_server(voter, orphans);
            let run = self.servers[voter].run;
            self.later(span, Event::Start { voter, run });
        }
    }

    fn cut(&mut self, fault: &Fault, on: bool) {
        let (count, voters) = (self.hosts.len(), self.setup.voters());
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let hit = match *fault {
                    Fault::Cut { from: a, to: b, both } => (from, to) == (a, b) || (both && (to, from) == (a, b)),
                    Fault::Isolate { host, inward, outward } => (to == host && inward) || (from == host && outward),
                    Fault::Apart { primary, but, voters: all } => {
                        let other = if from == primary { to } else { from };
                        let at = (from == primary || to == primary) && other != voters + but;
                        at && (all || other >= voters)
                    }
                    Fault::Mute { proxy, primary } => from == voters + proxy && to < voters && to != primary,
                    Fault::Split { side } => (side >> from & 1) != (side >> to & 1),
                    _ => false,
                };
                if hit {
                    let cut = &mut self.links[from][to].cut;
                    *cut = if on { *cut + 1 } else { cut.saturating_sub(1) };
                }
            }
        }
    }

    fn bad(&mut self, host: usize, loss: u64, slow: Nanos) {
        for other in 0..self.hosts.len() {
            for (from, to) in [(host, other), (other, host)] {
                (self.links[from][to].loss, self.links[from][to].slow) = (loss, slow);
            }
        }
    }

    pub fn fault_end(&mut self, index: usize) {
        if self.faults.healed.is_some() || !self.faults.active.contains(&index) {
            return;
        }
        self.faults.active.retain(|active| *active != index);
        let Some(fault) = self.faults.list[index].0.clone() else { return };
        match fault {
            Fault::Power { voter } => self.power_on(voter),
            Fault::Stall { host } => self.go_on(host),
            Fault::Cut { .. }
            | Fault::Isolate { .. }
            | Fault::Split { .. }
            | Fault::Apart { .. }
            | Fault::Mute { .. } => self.cut(&fault, false),
            Fault::Bad { host, .. } => self.bad(host, 0, 0),
            Fault::CrashProxy { proxy } => self.boot(proxy),
            Fault::Mine { proxy, .. } => {
                self.proxies[proxy].crash_after = None;
                self.boot(proxy);
            }
            Fault::PauseReplay { node } => self.resume_replay(node),
            Fault::SlowPromotion { node, .. } => self.nodes[node].slow_promotion = 0,
            Fault::Forsake { node } => self.forsake(node, false),
            Fault::Duel { deaf, primary, .. } => self.deafen(deaf, primary, false),
            Fault::Late { proxy, primary, .. } => self.belate(proxy, primary, 0),
            Fault::Doze { proxy, .. } => {
                let host = self.proxy_host(proxy);
                self.go_on(host);
            }
            Fault::Pause { proxy } => self.command(proxy, Command::Resume),
            Fault::Maintain { proxy, node } => self.maintain(proxy, node, false),
            Fault::Member { member } => {
                let host = self.member_host(member);
                self.hosts[host].off = false;
            }
            Fault::HalfDone { .. } => {
                self.nodes.iter_mut().for_each(|node| node.slow_promotion = 0);
                for proxy in 0..self.setup.proxies {
                    self.proxies[proxy].crash_after = None;
                    self.boot(proxy);
                }
            }
            Fault::Kill { .. }
            | Fault::Rolling { .. }
            | Fault::Order { .. }
            | Fault::Leaderless
            | Fault::DeafEtcd
            | Fault::Revoke => {}
        }
    }

    pub fn power_on(&mut self, voter: usize) {
        self.hosts[voter].off = false;
        let run = self.servers[voter].run;
        self.later(10 * MS, Event::Start { voter, run });
    }

    fn resume_replay(&mut self, node: usize) {
        self.nodes[node].replay_paused = false;
        self.nodes[node].replayed = self.nodes[node].tip;
    }

    /// Something decisive was just begun by this proxy.
    pub fn ambush(&mut self, proxy: usize) {
        if let Some(left) = self.proxies[proxy].crash_after {
            self.proxies[proxy].crash_after = left.checked_sub(1);
            if left == 0 {
                self.crash(proxy);
            }
        }
        if self.faults.healed.is_none() && self.setup.ambush > 0 && self.random.chance(self.setup.ambush) {
            let at = self.now + self.random.between(0, 300 * MS);
            self.draw_fault(at);
        }
    }

    pub fn heal(&mut self) {
        note!(self, "all faults end");
        self.faults.healed = Some(self.now);
        self.oracle.healed = vec![false; self.proxies.len()];
        for row in &mut self.links {
            row.fill(crate::net::Link::default());
        }
        for voter in 0..self.setup.voters() {
            self.hosts[voter].off = false;
            if !self.servers[voter].up && !self.servers[voter].starting {
                self.power_on(voter);
            }
        }
        for node in 0..self.setup.nodes {
            self.resume_replay(node);
            self.nodes[node].slow_promotion = 0;
        }
        for host in 0..self.hosts.len() {
            self.hosts[host].stalled = self.hosts[host].stalled.min(1);
            self.go_on(host);
        }
        for proxy in 0..self.proxies.len() {
            self.proxies[proxy].crash_after = None;
            self.boot(proxy);
            self.command(proxy, Command::Resume);
            (0..self.setup.nodes).for_each(|node| self.maintain(proxy, node, false));
        }
        (self.etcd.leaderless_until, self.etcd.deaf_until) = (0, 0);
        for member in 0..self.setup.members() {
            let host = self.member_host(member);
            self.hosts[host].off = false;
        }
        self.later(SEC, Event::Verdict);
    }

    /// Whether every majority of voters still has one that knows the newest epoch, once this node has forgotten it: nodes
    /// are rebuilt one at a time, until the proxies have marked them.
    fn remembered_without(&self, node: usize) -> bool {
        let newest = self.oracle.newest_epoch();
        let knows = |voter: &usize| match self.servers[*voter].row {
            Some(row) => row.epoch >= newest,
            None => self.node_epoch(*voter) >= newest,
        };
        let voters = self.setup.voters();
        let without = (0..voters).filter(|voter| *voter != node && knows(voter)).count();
        self.setup.store != Store::Voters || !knows(&node) || without + voters / 2 + 1 > voters
    }

    /// A careful person: rewinds what does not belong to the primary's line, and who was chosen once and not promoted, when
    /// a primary takes writes.
    pub fn person(&mut self) {
        self.later(2 * SEC, Event::Person);
        let Some((epoch, primary, since)) = self.oracle.latest else { return };
        let stands = self.servers[primary].up && self.nodes[primary].primary && !self.hosts[primary].off;
        let routed =
            (0..self.proxies.len()).any(|p| self.permit_live(p).is_some_and(|permit| permit.primary == primary));
        if !stands || !routed || self.now - since < 2 * SEC {
            return;
        }
        for node in (0..self.setup.nodes).filter(|n| *n != primary) {
            let data = &self.nodes[node];
            let stray = data.primary || data.diverged || !self.wal.same_line(data.tip, self.nodes[primary].tip);
            // Proxies leave it alone: it may be promoted at any moment.
            let stray = stray || (data.conninfo.to == Some(node) && data.conninfo.epoch < epoch);
            let idle = self.servers[node].up && self.hosts[node].stalled == 0 && data.promoting.is_none();
            if stray && idle && self.remembered_without(node) && self.random.chance(400) {
                note!(self, "a person rewinds n{node} from n{primary}");
                self.stop_server(node, false);
                self.rewind(node, primary);
                let (run, span) = (self.servers[node].run, self.random.between(500 * MS, 3 * SEC));
                self.later(span, Event::Start { voter: node, run });
            }
        }
    }
}
