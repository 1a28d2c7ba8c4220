//! A node started by `corelog serve` in a folder of its own, for the tests of the command line.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
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
    /// On a port that the kernel picks and the node tells. One that the test picks may look as if
    /// somebody listened before the node runs: a process that another test is just starting holds
    /// what the test listened with until it has its own program.
    pub fn start() -> Node {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--data-dir"]);
        command.arg(folder.path().join("data")).args(["--set", "journal.file.bytes=4194304"]);
        let file = File::create(&log).expect("writable");
        command.stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let mut child = command.spawn().expect("started");
        let patience = Instant::now() + Duration::from_secs(60);
        let address = loop {
            let said = fs::read_to_string(&log).expect("readable");
            let address =
                said.split_once("listening on ").and_then(|(_, rest)| rest.split_once(','));
            match address {
                Some((address, _)) => break address.to_string(),
                None => assert_eq!(child.try_wait().expect("a child"), None, "it ended: {said}"),
            }
            assert!(Instant::now() < patience, "the node is not ready: {said}");
            std::thread::sleep(Duration::from_millis(10));
        };
        Node { child, address, folder }
    }

    /// The folder in which the node keeps `data`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A node that has stopped is not killed again; both errors say just that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
