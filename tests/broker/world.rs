//! A broker of the test's own: started on a free port, awaited, killed by its id, its log kept.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::cage::{Lack, lacking};

/// How long a broker may take to answer after it was started.
const START_MAX: Duration = Duration::from_secs(20);

/// What a broker says when it serves.
const READY: &str = "ready in ";

/// Settings that keep a broker small enough for many at once.
const SMALL: &[(&str, &str)] = &[
    ("cores", "0-1"),
    ("num.partitions", "4"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("journal.file.bytes", "16777216"),
];

pub struct Broker {
    child: Option<Child>,
    address: SocketAddr,
    settings: Vec<(String, String)>,
    folder: TempDir,
    /// Data directories beside or instead of the folder's own.
    directories: Vec<PathBuf>,
    lacks: &'static [Lack],
}

impl Broker {
    /// A broker for real clients: the one that `CORELOG_TEST_BOOTSTRAP` names, or one of our own.
    pub fn for_clients() -> Broker {
        match std::env::var("CORELOG_TEST_BOOTSTRAP") {
            Ok(address) => Broker {
                child: None,
                address: address.parse().expect("CORELOG_TEST_BOOTSTRAP is IP:PORT"),
                settings: Vec::new(),
                folder: folder(),
                directories: Vec::new(),
                lacks: &[],
            },
            Err(_) => Broker::start(&[]),
        }
    }

    /// Starts the binary on an empty folder with these settings beside the small ones.
    pub fn start(settings: &[(&str, &str)]) -> Broker {
        Broker::start_in(&std::env::temp_dir(), settings)
    }

    /// As `start`, with its data below `parent`.
    pub fn start_in(parent: &Path, settings: &[(&str, &str)]) -> Broker {
        let mut broker = Broker::prepare(&[SMALL, settings].concat());
        broker.folder = folder_in(parent);
        broker.launch();
        broker
    }

    /// As `start`, with its data in `folder`, and its log where there is space.
    pub fn start_on(folder: &Path, settings: &[(&str, &str)]) -> Broker {
        let mut broker = Broker::prepare(&[SMALL, settings].concat());
        std::os::unix::fs::symlink(folder, broker.data()).expect("a link");
        broker.launch();
        broker
    }

    /// As `start`, with its data in these directories.
    pub fn start_across(directories: &[PathBuf], settings: &[(&str, &str)]) -> Broker {
        let mut broker = Broker::prepare(&[SMALL, settings].concat());
        broker.set_directories(directories);
        broker.launch();
        broker
    }

    /// As `start`, on a machine that lacks something.
    pub fn start_lacking(lacks: &'static [Lack], settings: &[(&str, &str)]) -> Broker {
        let mut broker = Broker::prepare(&[SMALL, settings].concat());
        broker.lacks = lacks;
        broker.launch();
        broker
    }

    /// Starts the binary as it comes, on an empty folder.
    pub fn start_with_defaults() -> Broker {
        let mut broker = Broker::prepare(&[]);
        broker.launch();
        broker
    }

    fn prepare(settings: &[(&str, &str)]) -> Broker {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let settings = settings.iter().map(owned).collect();
        let (folder, directories) = (folder(), Vec::new());
        let address = free_address();
        Broker { child: None, address, settings, folder, directories, lacks: &[] }
    }

    /// Changes a setting, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_string(), value.to_string()));
    }

    /// Changes the data directories, from the next start on.
    pub fn set_directories(&mut self, directories: &[PathBuf]) {
        self.directories = directories.to_vec();
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Sends a signal by its name, as `kill` does.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let told = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(told.expect("a kill command").success(), "{name} to {pid}");
    }

    /// Waits until the process has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the broker is our own");
        let status = end_of(child).unwrap_or_else(|| panic!("it does not end:\n{}", self.log()));
        self.child = None;
        status
    }

    /// SIGTERM, and the start after it.
    pub fn restart(&mut self) {
        self.signal("TERM");
        assert!(self.ended().success(), "{}", self.log());
        self.launch();
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it is a process of this test, and no broker that already ran.
    pub fn is_ours(&self) -> bool {
        self.child.is_some()
    }

    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// The broker's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the broker is our own").id()
    }

    /// `kill -9`, and no more: the data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts the binary on the data that is there; what it says if it refuses.
    pub fn try_launch(&mut self) -> Option<String> {
        let before = self.log().len();
        let ready = self.spawn();
        let until = Instant::now() + START_MAX;
        while self.log().matches(READY).count() == ready {
            let child = self.child.as_mut().expect("it was started");
            if let Some(status) = child.try_wait().expect("its status can be asked") {
                self.child = None;
                let said = self.log()[before..].to_string();
                assert_eq!(status.code(), Some(1), "{said}");
                return Some(said);
            }
            assert!(Instant::now() < until, "no answer in {START_MAX:?}:\n{}", self.log());
            sleep(Duration::from_millis(2));
        }
        None
    }

    /// Starts the binary on the data that is there.
    pub fn launch(&mut self) {
        let ready = self.spawn();
        self.await_ready(ready);
    }

    /// Starts the binary and waits for nothing.
    pub fn begin(&mut self) {
        self.spawn();
    }

    /// Starts the binary; how often its log says that it was ready before.
    fn spawn(&mut self) -> usize {
        let ready = self.log().matches(READY).count();
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.expect("the log can be written");
        let mut command = self.command();
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.child = Some(command.spawn().expect("the binary starts"));
        ready
    }

    /// The command that starts it on its data.
    pub fn command(&self) -> Command {
        let data = self.data();
        let (first, others) = match self.directories.split_first() {
            Some((first, others)) => (first, others),
            None => (&data, &[][..]),
        };
        let mut command = serve(first, &self.bootstrap());
        lacking(&mut command, self.lacks);
        for directory in others {
            command.arg("--data-dir").arg(directory);
        }
        for (name, value) in &self.settings {
            command.env(format!("CORELOG_{}", name.replace('.', "_").to_uppercase()), value);
        }
        command
    }

    /// Waits until it has said so once more: a connection alone may still reach the listener of
    /// a process that was killed.
    fn await_ready(&mut self, before: usize) {
        let until = Instant::now() + START_MAX;
        while self.log().matches(READY).count() == before {
            let child = self.child.as_mut().expect("it was started");
            if let Some(status) = child.try_wait().expect("its status can be asked") {
                panic!("the broker ended at start, {status}:\n{}", self.log());
            }
            assert!(Instant::now() < until, "no answer in {START_MAX:?}:\n{}", self.log());
            sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("broker.log")
    }

    /// Fails the test with the broker's log unless the process lives.
    pub fn assert_alive(&mut self) {
        let Some(child) = self.child.as_mut() else { return };
        if let Some(status) = child.try_wait().expect("its status can be asked") {
            panic!("the broker died, {status}:\n{}", self.log());
        }
    }

    /// CPU time of all its threads so far.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.expect("the broker lives");
        // Behind the name in brackets: user and system ticks are the 12th and 13th fields.
        let fields = stat.rsplit(')').next().expect("a name").split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|t| t.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Open sockets; its files come and go with the journal.
    pub fn sockets(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        let links = open.expect("the broker lives").flatten();
        let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Waits until the log holds `text`.
    pub fn await_log(&self, text: &str) {
        let until = Instant::now() + START_MAX;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "no `{text}` in the log:\n{}", self.log());
            sleep(Duration::from_millis(2));
        }
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the broker lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS is told");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("KiB");
        kib * 1024
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() && self.log_path().exists() {
            let log = self.log();
            let from = log.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
            eprintln!("the broker's log ends:\n{}", &log[from..]);
        }
    }
}

pub fn binary() -> PathBuf {
    std::env::var_os("CORELOG_BIN").unwrap_or(env!("CARGO_BIN_EXE_corelog").into()).into()
}

/// Runs the binary with these arguments to its end: the exit code, and both its outputs.
pub fn corelog(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary()).args(arguments).stdin(Stdio::null()).output();
    let output = output.expect("the binary runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).expect("UTF-8"))
}

/// `corelog serve` on this data directory, without any other setting.
pub fn serve(data: &Path, address: &str) -> Command {
    let mut command = Command::new(binary());
    command
        .env_remove("CORELOG_BIN")
        .env_remove("CORELOG_TEST_BOOTSTRAP")
        .arg("serve")
        .arg("--data-dir")
        .arg(data)
        .args(["--listen", address])
        .stdin(Stdio::null());
    command
}

/// How a process ends by itself; None if it goes on for too long, and is killed.
pub fn end_of(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + START_MAX;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().expect("its status can be asked") {
            return Some(status);
        }
        sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn folder() -> TempDir {
    folder_in(&std::env::temp_dir())
}

fn folder_in(parent: &Path) -> TempDir {
    let named = tempfile::Builder::new().prefix("corelog-test-").tempdir_in(parent);
    named.expect("a temporary folder")
}

/// A free port with free ones behind it, for the cores that are brokers of their own. Nothing
/// listens meanwhile: a process that another test is just starting would hold that listener for a
/// moment, and be taken for the broker.
pub fn free_address() -> SocketAddr {
    let bound = |port: u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
        std::io::Result::Ok(socket)
    };
    loop {
        let probe = bound(0).expect("a free port");
        let address = probe.local_addr().ok().and_then(|address| address.as_socket());
        let address = address.expect("its address");
        let behind = (1..=2).map(|core| address.port().saturating_add(core));
        if behind.map(bound).all(|bound| bound.is_ok()) {
            return address;
        }
    }
}

/// A name that no other test, nor an earlier run against the same broker, uses.
pub fn fresh(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = now.expect("after 1970").as_millis();
    format!("{stem}-{}-{millis}-{count}", std::process::id())
}
