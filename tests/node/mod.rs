//! A node started by `corelog serve` in a folder of its own, for the tests of the command line.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_corelog");

/// A node of one core, killed by its id at the end of the test.
pub struct Node {
    pub child: Child,
    pub address: String,
    folder: TempDir,
}

impl Node {
    pub fn start() -> Node {
        let folder = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = port.expect("a free port").to_string();
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", &address, "--shards", "1", "--data-dir"]);
        command.arg(folder.path().join("data")).args(["--set", "journal.file.bytes=4194304"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
        let mut node = Node { child, address, folder };
        let patience = Instant::now() + Duration::from_secs(60);
        while !is_listened_at(&node.address) {
            assert_eq!(node.child.try_wait().expect("a child"), None, "the node ended");
            assert!(Instant::now() < patience, "the node does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        node
    }

    /// The folder in which the node keeps `data`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Whether somebody listens at `address`. Linux lets a client's own port be the one that it connects
/// to, if nobody else has it, and gives it a connection to itself.
pub fn is_listened_at(address: &str) -> bool {
    let stream = TcpStream::connect(address);
    stream.is_ok_and(|stream| stream.local_addr().ok() != stream.peer_addr().ok())
}

impl Drop for Node {
    fn drop(&mut self) {
        // A node that has stopped is not killed again; both errors say just that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
