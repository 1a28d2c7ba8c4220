//! The node's data directories: which core's storage is in which, and which of them have failed.
//!
//!     core        0   1   2   3   4
//!     directory   0   1   0   1   0        of two
//!
//! Lives on: the node, shared by all cores.
//!
//! Invariants
//!   Q1  Everything that a core stores is in one directory.
//!   Q2  A directory that has failed stays so until the node starts again: nothing is known of its
//!       disk any more, so nothing on it is served, written or said to be led.
//!   Q3  A node of one directory has no others to go on with: its cores tell for themselves what
//!       they still take, and what is durable is still read.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};

use atomic_waker::AtomicWaker;

use crate::base::ids::CoreId;
use crate::io::writes::Writes;

/// See the module's documentation.
pub struct Directories {
    all: Vec<Directory>,
    /// Of the cores that wait for the failure of their directory.
    waiting: Vec<AtomicWaker>,
}

struct Directory {
    path: PathBuf,
    writes: Arc<Writes>,
    failure: OnceLock<String>,
}

/// The directory of a core, where there are so many.
pub fn directory_of(core: CoreId, directories: usize) -> usize {
    core.index() % directories.max(1)
}

impl Directories {
    /// Those of a node of `shards` cores, in the order of the layout.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, shards: u16) -> Directories {
        let new = |path| Directory { path, writes: Arc::default(), failure: OnceLock::new() };
        let all: Vec<Directory> = paths.into_iter().map(new).collect();
        assert!((1..=usize::from(shards)).contains(&all.len()), "each has a core");
        Directories { all, waiting: (0..shards).map(|_| AtomicWaker::new()).collect() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Where each is, and why it is not used if it has failed.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, Option<&str>)> {
        let failure = |one: &Directory| one.failure.get().is_some();
        debug_assert!(self.all.len() > 1 || !self.all.iter().any(failure), "Q3");
        self.all.iter().map(|one| (&*one.path, one.failure.get().map(String::as_str)))
    }

    /// The number of a core's directory.
    pub fn of(&self, core: CoreId) -> usize {
        directory_of(core, self.all.len())
    }

    /// The commits to a core's directory.
    pub fn writes(&self, core: CoreId) -> Arc<Writes> {
        self.all.get(self.of(core)).map(|one| one.writes.clone()).unwrap_or_default()
    }

    /// The cores of a directory.
    pub fn cores(&self, directory: usize) -> impl Iterator<Item = CoreId> {
        let cores = (0..u16::try_from(self.waiting.len()).unwrap_or(u16::MAX)).map(CoreId);
        cores.filter(move |core| self.of(*core) == directory)
    }

    /// Why a core's directory is not used, if it has failed.
    pub fn failure(&self, core: CoreId) -> Option<&str> {
        self.all.get(self.of(core))?.failure.get().map(String::as_str)
    }

    /// Whether anything of a core's is served.
    pub fn is_offline(&self, core: CoreId) -> bool {
        self.failure(core).is_some()
    }

    /// Takes a directory out of use, and tells its cores. False if that is nothing new, or if there
    /// is no other one (Q3).
    pub fn fail(&self, directory: usize, why: String) -> bool {
        let Some(failed) = self.all.get(directory).filter(|_| self.all.len() > 1) else {
            return false;
        };
        let is_new = failed.failure.set(why).is_ok();
        for core in self.cores(directory) {
            if let Some(waker) = self.waiting.get(core.index()) {
                waker.wake();
            }
        }
        is_new
    }

    /// As `fail`, of the directory of a core, and tells the operator.
    pub fn give_up(&self, core: CoreId, why: &str) {
        let directory = self.of(core);
        if self.fail(directory, why.to_string())
            && let Some(failed) = self.all.get(directory)
        {
            tracing::error!(
                "the data directory {} has failed ({why}): the partitions of {} are offline and \
                 answered with KAFKA_STORAGE_ERROR, all others are served; mend the disk and start \
                 the node again",
                failed.path.display(),
                cores_in_words(self.cores(directory)),
            );
        }
    }

    /// Whether the node cannot start without a core's directory: the first holds the metadata.
    pub fn is_needed(&self, core: CoreId) -> bool {
        self.of(core) == 0
    }

    /// Ready when a core's directory has failed.
    pub(super) fn poll_failure(&self, core: CoreId, waker: &Waker) -> Poll<&str> {
        if let Some(waiting) = self.waiting.get(core.index()) {
            waiting.register(waker);
        }
        self.failure(core).map_or(Poll::Pending, Poll::Ready)
    }
}

/// Numbers of cores in words.
pub fn cores_in_words(cores: impl Iterator<Item = CoreId>) -> String {
    let numbers: Vec<String> = cores.map(|CoreId(number)| number.to_string()).collect();
    let noun = if numbers.len() == 1 { "core" } else { "cores" };
    format!("{noun} {}", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_directory_takes_its_own_cores_with_it_and_no_others() {
        let directories = Directories::new(["/a", "/b"].map(PathBuf::from), 5);
        assert_eq!(cores_in_words(directories.cores(0)), "cores 0, 2, 4");
        assert_eq!(cores_in_words(directories.cores(1)), "cores 1, 3");
        let offline = |directories: &Directories| {
            (0..5).filter(|core| directories.is_offline(CoreId(*core))).collect::<Vec<_>>()
        };
        assert!(offline(&directories).is_empty());
        assert!(directories.fail(1, "it is gone".into()));
        assert!(!directories.fail(1, "it is still gone".into()), "that is known");
        assert_eq!(offline(&directories), [1, 3]);
        assert_eq!(directories.failure(CoreId(3)), Some("it is gone"));
    }

    #[test]
    fn the_only_directory_is_never_taken_out_of_use() {
        let directories = Directories::new([PathBuf::from("/a")], 2);
        assert!(!directories.fail(0, "it is gone".into()));
        assert!(!directories.is_offline(CoreId(0)) && !directories.is_offline(CoreId(1)));
    }
}
