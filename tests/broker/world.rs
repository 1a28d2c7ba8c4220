//! A broker of the test's own: started on a free port, awaited, killed by its id, its log kept.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a broker may take to answer after it was started.
const START_MAX: Duration = Duration::from_secs(20);

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
            },
            Err(_) => Broker::start(&[]),
        }
    }

    /// Starts the binary on an empty folder with these settings beside the small ones.
    pub fn start(settings: &[(&str, &str)]) -> Broker {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let settings = SMALL.iter().chain(settings).map(owned).collect();
        let address = free_address();
        let mut broker = Broker { child: None, address, settings, folder: folder() };
        broker.launch();
        broker
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

    /// Starts the binary on the data that is there.
    pub fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.expect("the log can be written");
        let mut command = Command::new(binary());
        command
            .env_remove("CORELOG_BIN")
            .env_remove("CORELOG_TEST_BOOTSTRAP")
            .arg("serve")
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .arg("--listen")
            .arg(self.bootstrap())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        for (name, value) in &self.settings {
            command.env(format!("CORELOG_{}", name.replace('.', "_").to_uppercase()), value);
        }
        self.child = Some(command.spawn().expect("the binary starts"));
        self.await_answer();
    }

    fn await_answer(&mut self) {
        let until = Instant::now() + START_MAX;
        while TcpStream::connect(self.address).is_err() {
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

fn binary() -> PathBuf {
    std::env::var_os("CORELOG_BIN").unwrap_or(env!("CARGO_BIN_EXE_corelog").into()).into()
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("corelog-test-").tempdir().expect("a temporary folder")
}

/// A free port with free ones behind it, for the cores that are brokers of their own.
fn free_address() -> SocketAddr {
    loop {
        let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = probe.local_addr().expect("its address");
        let behind = (1..=2).map(|core| address.port().saturating_add(core));
        let mut behind = behind.map(|port| TcpListener::bind((address.ip(), port)));
        if behind.all(|bound| bound.is_ok()) {
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
