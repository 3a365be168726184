//! A small network of its own: one namespace per host, all on one bridge, links that can be cut.
//!
//! A link is cut in one direction by giving the sender a permanent neighbour entry with an address that
//! nobody has: its packets leave and reach no one, nobody is told, and replies the other way still come.
//! That needs no packet filter in the kernel. The bridge lives in a namespace too, the client's, so nothing
//! of the machine's own network is touched; [`Net::enter`] moves the calling thread there, and whatever it
//! starts. Invariants: names carry our process id; a guardian removes everything when the test process ends,
//! however it ends. Delay and loss are made by a small switch of our own in place of the bridge (`slow_switch.py`), since not
//! every kernel has netem. Absent on purpose: limits of bandwidth.

use super::guard::ProcessGuard;
use super::wait_for;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Nobody's hardware address (locally administered).
const NOBODY: &str = "02:00:00:00:00:de";
/// The host that the test itself is; it has the bridge.
const CLIENT: &str = "client";
/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// Deletes the namespaces `$@` when its input ends.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for name in "$@"; do ip netns del "$name" 2>/dev/null; done
"#;

static NETS: AtomicU32 = AtomicU32::new(0);

/// The network. Stays on the thread that made it.
pub struct Net {
    prefix: String,
    hosts: Vec<String>,
    cuts: RefCell<BTreeSet<(String, String)>>,
    switch: RefCell<Option<ProcessGuard>>,
    before: File,
    guardian: Child,
    _one_thread: std::marker::PhantomData<*const ()>,
}

impl Net {
    /// Makes a network and moves this thread into it, as its client.
    ///
    /// # Errors
    /// Why this machine cannot.
    pub fn enter(hosts: &[&str]) -> Result<Self, String> {
        let before = File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())?;
        let prefix = format!("pgregent-{}-{}", std::process::id(), NETS.fetch_add(1, Ordering::Relaxed));
        let names: Vec<_> = hosts.iter().chain([&CLIENT]).map(|host| format!("{prefix}-{host}")).collect();
        let mut guardian = Command::new("setsid");
        guardian.args(["sh", "-c", GUARDIAN, "guardian"]).args(&names);
        guardian.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let guardian = guardian.spawn().map_err(|error| format!("setsid: {error}"))?;
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let (cuts, switch) = Default::default();
        let net = Self { prefix, hosts, cuts, switch, before, guardian, _one_thread: std::marker::PhantomData };
        net.make()?;
        let client = File::open(net.namespace(CLIENT)).map_err(|error| error.to_string())?;
        move_into_link_name_space(client.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| format!("setns: {error}"))?;
        Ok(net)
    }

    fn make(&self) -> Result<(), String> {
        for host in self.hosts.iter().map(String::as_str).chain([CLIENT]) {
            ip(&["netns", "add", &self.name(host)])?;
            self.ip(host, &["link", "set", "lo", "up"])?;
        }
        self.ip(CLIENT, &["link", "add", "bridge", "type", "bridge"])?;
        self.ip(CLIENT, &["addr", "add", &format!("{}/24", self.address(CLIENT)), "dev", "bridge"])?;
        self.ip(CLIENT, &["link", "set", "bridge", "up"])?;
        for (index, host) in self.hosts.iter().enumerate() {
            let port = format!("port{index}");
            let peer = self.name(host);
            self.ip(CLIENT, &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &peer])?;
            self.ip(CLIENT, &["link", "set", &port, "master", "bridge", "up"])?;
            self.ip(host, &["addr", "add", &format!("{}/24", self.address(host)), "dev", "eth0"])?;
            // What is larger than a packet could not pass the slow switch.
            self.ip(host, &["link", "set", "eth0", "gso_max_segs", "1"])?;
            self.ip(host, &["link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// The file of a host's namespace.
    pub fn namespace(&self, host: &str) -> PathBuf {
        Path::new(NAMES).join(self.name(host))
    }

    /// A host's address.
    pub fn address(&self, host: &str) -> Ipv4Addr {
        let index = self.hosts.iter().position(|known| known == host);
        let last = index.map_or(1, |index| u8::try_from(index + 11).expect("few hosts"));
        Ipv4Addr::new(10, 77, 0, last)
    }

    /// From now on nothing that `from` sends to `to` arrives.
    pub fn cut(&self, from: &str, to: &str) {
        let address = self.address(to).to_string();
        self.ip(from, &["neigh", "replace", &address, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"]).unwrap();
        self.cuts.borrow_mut().insert((from.to_owned(), to.to_owned()));
    }

    /// Cuts both directions.
    pub fn cut_both(&self, one: &str, other: &str) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// From now on everything between hosts is late by so many milliseconds, and so many of a hundred frames are lost.
    /// The client's own links stay as they are.
    pub fn slow(&self, delay_ms: u32, jitter_ms: u32, loss_percent: u32) {
        self.isolate_ports(true);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/slow_switch.py");
        let numbers = [delay_ms, jitter_ms, loss_percent].map(|number| number.to_string());
        let ports: Vec<String> = (0..self.hosts.len()).map(|index| format!("port{index}")).collect();
        let mut arguments = vec![script.to_str().expect("a plain path")];
        arguments.extend(numbers.iter().chain(&ports).map(String::as_str));
        let directory = std::env::temp_dir().join(format!("{}-switch", self.prefix));
        std::fs::create_dir_all(&directory).expect("the temporary directory is writable");
        let log = directory.join("log");
        let output = File::create(&log).expect("the directory is writable");
        let guard = ProcessGuard::spawn(Path::new("python3"), &arguments, &directory, output);
        wait_for("the switch", Duration::from_secs(10), || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(guard.is_running(), "the switch ended: {text}");
            text.contains("ready")
        });
        *self.switch.borrow_mut() = Some(guard);
    }

    /// Whether the bridge passes nothing on between hosts.
    fn isolate_ports(&self, isolated: bool) {
        let word = if isolated { "on" } else { "off" };
        for index in 0..self.hosts.len() {
            let port = format!("port{index}");
            self.ip(CLIENT, &["link", "set", &port, "type", "bridge_slave", "isolated", word]).unwrap();
        }
    }

    /// Mends every link.
    pub fn mend(&self) {
        if self.switch.take().is_some() {
            self.isolate_ports(false);
        }
        for (from, to) in std::mem::take(&mut *self.cuts.borrow_mut()) {
            let address = self.address(&to).to_string();
            self.ip(&from, &["neigh", "del", &address, "dev", "eth0"]).unwrap();
        }
    }

    fn ip(&self, host: &str, arguments: &[&str]) -> Result<(), String> {
        let name = self.name(host);
        ip(&[&["-n", name.as_str()], arguments].concat())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // A thread that stays behind would only keep an empty namespace alive.
        let _ = move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network));
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let words = arguments.join(" ");
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip {words}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
