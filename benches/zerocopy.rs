//! Whether zero-copy sends are worth it: `SEND_ZC` from plain and from registered memory against
//! gathered plain sends, over loopback and over a veth pair between two network namespaces, with
//! the kernel's own report of how many it copied after all.
//!
//! `cargo bench --bench zerocopy`; the veth pair needs root and iproute2, and is left out without.
//! Without `--bench`, as in `cargo test --bench zerocopy`, a few pieces go over loopback only.
//! CPU seconds per GB are those of the sender and of the receiver, which reads and drops; what the
//! kernel does for a packet in the sender's softirq counts as the sender's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, types};

const PIECE_BYTES: usize = 256 << 10;
/// A gathered send has so many parts.
const PARTS: usize = 16;
/// Zero-copy sends whose memory the kernel may still use.
const DEPTH: usize = 8;
const BYTES: u64 = 4 << 30;
const BYTES_TINY: u64 = 8 << 20;
const ROUNDS: usize = 3;
/// The kernel reports in a send's notification whether it copied (IORING_SEND_ZC_REPORT_USAGE,
/// IORING_NOTIF_USAGE_ZC_COPIED).
const REPORT_USAGE: u16 = 1 << 3;
const COPIED: u32 = 1 << 31;
/// Of RFC 1918, between the namespaces only.
const OURS: &str = "10.213.77.1";
const THEIRS: &str = "10.213.77.2";

#[derive(Clone, Copy, Debug)]
enum Way {
    Gathered,
    ZeroCopy,
    ZeroCopyRegistered,
}

const WAYS: [Way; 3] = [Way::Gathered, Way::ZeroCopy, Way::ZeroCopyRegistered];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, address] = &arguments[..]
        && mode == "--receive"
    {
        return receive(address.parse().expect("an address"));
    }
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let (bytes, rounds) = if is_bench { (BYTES, ROUNDS) } else { (BYTES_TINY, 1) };
    println!("| path | way | GB/s | sender, CPU s/GB | receiver, CPU s/GB | copied |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let loopback = Receiver::start(&[], "127.0.0.1");
    measure("loopback", &loopback, bytes, rounds);
    drop(loopback);
    if !is_bench {
        return;
    }
    match Namespace::make() {
        Ok(namespace) => {
            let prefix = ["ip", "netns", "exec", &namespace.name];
            let receiver = Receiver::start(&prefix, THEIRS);
            measure("veth", &receiver, bytes, rounds);
        }
        Err(why) => println!("skipped: veth: {why}"),
    }
}

fn measure(path: &str, receiver: &Receiver, bytes: u64, rounds: usize) {
    for _ in 0..rounds {
        for way in WAYS {
            let mut stream = receiver.connect();
            stream.write_all(&bytes.to_be_bytes()).expect("writable");
            let (began, before) = (Instant::now(), cpu());
            let pieces = bytes / PIECE_BYTES as u64;
            let copied = match way {
                Way::Gathered => gathered(&stream, pieces),
                Way::ZeroCopy => zero_copy(&stream, pieces, false),
                Way::ZeroCopyRegistered => zero_copy(&stream, pieces, true),
            };
            let mut theirs = [0; 8];
            stream.read_exact(&mut theirs).expect("the receiver's word");
            let (sender, took) = (cpu() - before, began.elapsed());
            let gigabytes = bytes as f64 / 1e9;
            let receiver = Duration::from_micros(u64::from_be_bytes(theirs));
            println!(
                "| {path} | {way:?} | {:.2} | {:.3} | {:.3} | {} |",
                gigabytes / took.as_secs_f64(),
                sender.as_secs_f64() / gigabytes,
                receiver.as_secs_f64() / gigabytes,
                copied.map_or("all".to_string(), |copied| format!("{copied} of {pieces}")),
            );
        }
    }
}

/// As the broker sends: one `sendmsg` of several parts.
fn gathered(stream: &TcpStream, pieces: u64) -> Option<u64> {
    let memory = vec![7_u8; PIECE_BYTES];
    for _ in 0..pieces {
        let mut sent = 0;
        while sent < PIECE_BYTES {
            let part = |chunk: &[u8]| libc::iovec {
                iov_base: chunk.as_ptr().cast_mut().cast(),
                iov_len: chunk.len(),
            };
            let mut vector: Vec<libc::iovec> =
                memory[sent..].chunks(PIECE_BYTES / PARTS).map(part).collect();
            // SAFETY: a zeroed header is a valid empty one.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = vector.as_mut_ptr();
            message.msg_iovlen = vector.len();
            // SAFETY: vector and memory live across the call, which only reads them.
            let count = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, 0) };
            sent += usize::try_from(count).expect("the receiver is there");
        }
    }
    None
}

/// `SEND_ZC`, a few at a time; returns how many the kernel says it copied.
fn zero_copy(stream: &TcpStream, pieces: u64, is_registered: bool) -> Option<u64> {
    let mut ring = IoUring::new(64).expect("a ring");
    let memory: Vec<Vec<u8>> = (0..DEPTH).map(|_| vec![7; PIECE_BYTES]).collect();
    if is_registered {
        let vector: Vec<libc::iovec> = memory
            .iter()
            .map(|piece| libc::iovec {
                iov_base: piece.as_ptr().cast_mut().cast(),
                iov_len: piece.len(),
            })
            .collect();
        // SAFETY: the memory outlives the ring's last send: every notification is awaited below.
        unsafe { ring.submitter().register_buffers(&vector) }.expect("lockable");
    }
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let (mut left, mut copied, mut waiting) = (pieces, 0, 0);
    while left > 0 || waiting > 0 {
        while left > 0
            && let Some(slot) = free.pop()
        {
            let index = is_registered.then(|| u16::try_from(slot).expect("few"));
            let length = u32::try_from(PIECE_BYTES).expect("small");
            let fd = types::Fd(stream.as_raw_fd());
            let entry = opcode::SendZc::new(fd, memory[slot].as_ptr(), length)
                .flags(libc::MSG_WAITALL)
                .zc_flags(REPORT_USAGE)
                .buf_index(index)
                .build()
                .user_data(slot as u64);
            // SAFETY: the memory is not touched before its notification.
            unsafe { ring.submission().push(&entry) }.expect("there is room");
            (left, waiting) = (left - 1, waiting + 1);
        }
        ring.submit_and_wait(1).expect("it works");
        for completion in ring.completion() {
            let is_notification = cqueue::notif(completion.flags());
            if is_notification {
                copied += u64::from(completion.result().cast_unsigned() & COPIED != 0);
            } else {
                let sent = usize::try_from(completion.result()).expect("the receiver is there");
                assert_eq!(sent, PIECE_BYTES, "MSG_WAITALL sends all");
            }
            // What will not be notified of is free with its result.
            if is_notification || !cqueue::more(completion.flags()) {
                free.push(usize::try_from(completion.user_data()).expect("few"));
                waiting -= 1;
            }
        }
    }
    Some(copied)
}

/// User and system time of this process.
fn cpu() -> Duration {
    // SAFETY: zeroes are a valid `rusage`, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_micros((time.tv_sec * 1_000_000 + time.tv_usec).cast_unsigned())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Takes connections one after the other: a length, so many bytes, and its CPU time as the answer.
fn receive(address: SocketAddr) {
    let listener = TcpListener::bind(address).expect("a free port");
    println!("{}", listener.local_addr().expect("bound"));
    let mut buffer = vec![0; PIECE_BYTES];
    for stream in listener.incoming() {
        let mut stream = stream.expect("a sender");
        let before = cpu();
        let mut length = [0; 8];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut left = u64::from_be_bytes(length);
        while left > 0 {
            let count = stream.read(&mut buffer).expect("readable");
            assert!(count > 0, "the sender went away");
            left -= count as u64;
        }
        let micros = u64::try_from((cpu() - before).as_micros()).expect("short");
        stream.write_all(&micros.to_be_bytes()).expect("writable");
    }
}

/// This program as a receiver in a process of its own.
struct Receiver {
    child: Child,
    address: SocketAddr,
}

impl Receiver {
    fn start(prefix: &[&str], host: &str) -> Receiver {
        let program = std::env::current_exe().expect("this program").display().to_string();
        let address = format!("{host}:0");
        let words = prefix.iter().copied().chain([program.as_str(), "--receive", &address]);
        let words: Vec<&str> = words.collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut told = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut told, &mut line).expect("an address");
        Receiver { child, address: line.trim().parse().expect("an address") }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).expect("it listens")
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // One that has ended is not killed again; both errors say just that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network namespace with a veth pair between it and ours; gone when it is dropped.
struct Namespace {
    name: String,
}

impl Namespace {
    fn make() -> Result<Namespace, String> {
        let id = std::process::id();
        let namespace = Namespace { name: format!("corelog-{id}") };
        let (name, link) = (&namespace.name, format!("clz{id}"));
        for line in [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            format!("address add {OURS}/30 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} address add {THEIRS}/30 dev eth0"),
            format!("-n {name} link set eth0 up"),
        ] {
            ip(&line)?;
        }
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its end of the pair goes with it, and ours with that.
        drop(ip(&format!("netns delete {}", self.name)));
    }
}

fn ip(line: &str) -> Result<(), String> {
    let output = Command::new("ip").args(line.split(' ')).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
