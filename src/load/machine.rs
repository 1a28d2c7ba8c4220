//! The machine that a run took place on, and what processes use of it, as `/proc` tells.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use serde_json::{Value, json};

use crate::io::ring::probe;

/// Kernel ticks per second in `/proc/PID/stat`: 100 on every Linux that this runs on (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_BYTES: u64 = 4096;

/// What a run names.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub host: String,
    pub cpu: String,
    pub cpus: usize,
    pub memory_bytes: u64,
    pub kernel: String,
}

impl Machine {
    pub fn this() -> Machine {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_string();
        let cpuinfo = text("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_string());
        Machine {
            host: text("/proc/sys/kernel/hostname"),
            cpu: model.unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cpus: probe::cpus().len(),
            memory_bytes: probe::memory_bytes(),
            kernel: probe::kernel_release(),
        }
    }

    pub fn text(&self) -> String {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        let Machine { host, cpu, cpus, kernel, .. } = self;
        format!("{host}: {cpus} CPUs ({cpu}), {gib:.1} GiB, Linux {kernel}")
    }

    pub fn json(&self) -> Value {
        json!({
            "host": self.host,
            "cpu": self.cpu,
            "cpus": self.cpus,
            "memory_bytes": self.memory_bytes,
            "kernel": self.kernel,
        })
    }
}

/// The broker's process, if it runs on this machine and may be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub command: String,
}

impl Process {
    pub fn json(&self) -> Value {
        json!({ "pid": self.pid, "command": self.command })
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub written_bytes: u64,
    pub context_switches: u64,
}

/// What process `pid` has used; `None` once it is gone.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; the numbers follow its last parenthesis.
    let numbers: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| numbers.get(at)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
    Some(Usage {
        cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
        resident_bytes: number(21)? * PAGE_BYTES,
        written_bytes: written.unwrap_or(0),
        context_switches: switches(pid),
    })
}

/// Voluntary and involuntary ones of all threads.
fn switches(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of_thread = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches:"));
        counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
    };
    threads.flatten().map(of_thread).sum()
}

/// Whether an address belongs to this machine.
pub fn is_local(address: IpAddr) -> bool {
    // Only an address of this machine can be bound.
    UdpSocket::bind((address, 0)).is_ok()
}

/// The process that listens on an address of this machine.
pub fn listener(address: SocketAddr) -> Option<Process> {
    if !is_local(address.ip()) {
        return None;
    }
    let mut sockets = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(|line| listening(line, address.port())));
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<u32> =
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let pid = pids.into_iter().find(|pid| holds(*pid, &sockets))?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let command = words.collect::<Vec<_>>().join(" ").trim().to_string();
    Some(Process { pid, command })
}

/// The socket of a line of `/proc/net/tcp` that listens on `port`, as descriptors name it.
fn listening(line: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let is_it = u16::from_str_radix(local_port, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
    is_it.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
}

fn holds(pid: u32, sockets: &BTreeSet<String>) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let target = fs::read_link(descriptor.path());
        target.is_ok_and(|target| target.to_str().is_some_and(|name| sockets.contains(name)))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_and_its_usage_read() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("bound");
        let found = listener(address).expect("this process listens");
        assert_eq!(found.pid, std::process::id());
        assert!(!found.command.is_empty());
        let usage = usage(found.pid).expect("this process lives");
        assert!(usage.resident_bytes > 0 && usage.context_switches > 0);
        drop(socket);
        assert_eq!(listener(address), None);
    }

    #[test]
    fn other_machines_are_told_apart() {
        assert!(is_local([127, 0, 0, 1].into()));
        // Documentation addresses (RFC 5737) belong to nobody.
        assert!(!is_local([192, 0, 2, 1].into()));
        let machine = Machine::this();
        assert!(machine.cpus > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
