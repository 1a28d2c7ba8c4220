//! Segments: the cold part of a partition's log, files of record batches back to back, as Apache
//! Kafka writes them.
//!
//!     segments/topic-7/3/00000000000000000000.log        batches of topic number 7, partition 3
//!                        00000000000000000000.marks      where to begin reading, for a closed one
//!                        00000000000000000000.2.log      the same offsets, compacted twice
//!     segments/packs/0000000009.pack                     small segments of many partitions
//!
//! How many bytes of a file count is recorded in the journal, after they were synced; what lies
//! behind them is left over from a crash and is written over.
//!
//! Lives on: every core, one store, never shared.  Talks to: `io::File`.  Used by: `partition`.
//!
//! Invariants
//!   G1  A file's recorded bytes never change: an append that begins inside a block writes the
//!       bytes before it once more, the same.
//!   G2  Nothing that is read from a file is given out before every batch's CRC was verified.
//!   G3  A file's marks only say where to begin; each is checked against the batch that it names.
//!       Those of a compacted segment also vouch for the offsets in it (`seal`).
//!   G4  Open files, and marks and what was read in memory, are bounded.

mod adopt;
pub mod cache;
mod check;
pub mod marks;
mod pack;
mod read;
mod seal;
mod seam;
mod spans;
mod unpack;
mod write;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::base::buffer::Arena;
use crate::base::ids::{Offset, PartitionId, TopicNumber};
use crate::io::Io;
use crate::io::pace::ReadPace;

use cache::Cache;
pub use check::{Damage, Flaw, Reader, Seen, check_file, read_seals};
pub use marks::{Marks, MarksFlaw};
pub use pack::{DirectoryFlaw, Pack, PackWriter, Piece};
pub use read::Span;
pub use seal::Misplaced;
use spans::Spans;
pub use unpack::{Unpacking, read_pack, write_directory};

/// The share of the core's memory for what was read lately.
const SPANS_SHARE: usize = 8;

/// Where the bytes of a segment are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    /// In a file of its own, which compaction has written anew so often.
    File { generation: u32 },
    /// In a file that it shares with other partitions' segments, from `position` on.
    Pack { number: u32, position: u64 },
}

impl Home {
    /// A file of its own, never compacted.
    pub const NEW: Home = Home::File { generation: 0 };

    fn start(self) -> u64 {
        match self {
            Home::File { .. } => 0,
            Home::Pack { position, .. } => position,
        }
    }
}

/// A stretch of a partition's log, as far as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub base: Offset,
    /// One past the last record's offset.
    pub next: Offset,
    pub bytes: u64,
    /// The greatest timestamp of its batches, in Unix milliseconds.
    pub max_timestamp: i64,
    /// When it was begun, in Unix milliseconds of the broker's clock.
    pub begun: i64,
    pub home: Home,
}

impl Segment {
    /// The name of its file, in `partition`.
    pub fn id(&self, partition: PartitionId) -> SegmentId {
        SegmentId { partition, base: self.base, home: self.home }
    }

    /// How often its records were compacted.
    pub fn generation(&self) -> u32 {
        match self.home {
            Home::File { generation } => generation,
            Home::Pack { .. } => 0,
        }
    }

    /// Whether offsets may be left out in it. Such a file is written once and takes no more; its
    /// marks have seals, unless they were lost or an older version wrote it.
    pub fn is_sparse(&self) -> bool {
        self.generation() > 0
    }

    /// The number of the pack that it is in.
    pub fn pack(&self) -> Option<u32> {
        match self.home {
            Home::File { .. } => None,
            Home::Pack { number, .. } => Some(number),
        }
    }

    /// Where its bytes begin in the file that holds them.
    pub fn start(&self) -> u64 {
        self.home.start()
    }
}

/// The name of a segment: its partition, first offset and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    pub partition: PartitionId,
    pub base: Offset,
    pub home: Home,
}

impl SegmentId {
    fn is_packed(self) -> bool {
        matches!(self.home, Home::Pack { .. })
    }

    fn is_sparse(self) -> bool {
        matches!(self.home, Home::File { generation: 1.. })
    }

    fn is_in_pack(self, pack: u32) -> bool {
        matches!(self.home, Home::Pack { number, .. } if number == pack)
    }

    fn start(self) -> u64 {
        self.home.start()
    }

    /// The name in a partition's folder, of a segment with a file of its own.
    fn name(self) -> Option<String> {
        match self.home {
            Home::File { generation } => Some(file_name(self.base, generation)),
            Home::Pack { .. } => None,
        }
    }

    /// As what its open file is known: a pack's is that of all its segments.
    fn file_key(self) -> SegmentId {
        match self.home {
            Home::File { .. } => self,
            Home::Pack { number, .. } => pack_key(number),
        }
    }
}

fn file_name(base: Offset, generation: u32) -> String {
    match generation {
        0 => format!("{base:020}.log"),
        generation => format!("{base:020}.{generation}.log"),
    }
}

fn pack_key(number: u32) -> SegmentId {
    let partition = PartitionId { topic: TopicNumber(u32::MAX), index: u32::MAX };
    SegmentId { partition, base: 0, home: Home::Pack { number, position: 0 } }
}

fn topic_path(directory: &Path, topic: TopicNumber) -> PathBuf {
    directory.join(format!("topic-{}", topic.0))
}

fn partition_path(directory: &Path, partition: PartitionId) -> PathBuf {
    topic_path(directory, partition.topic).join(partition.index.to_string())
}

/// The file of a segment in a store's directory.
pub fn file_path(directory: &Path, id: SegmentId) -> PathBuf {
    match id.home {
        Home::File { generation } => {
            partition_path(directory, id.partition).join(file_name(id.base, generation))
        }
        Home::Pack { number, .. } => pack::path(directory, number),
    }
}

/// The marks of a segment's file.
pub fn marks_path(segment: &Path) -> PathBuf {
    segment.with_extension("marks")
}

/// The file of a pack in a store's directory.
pub fn pack_path(directory: &Path, number: u32) -> PathBuf {
    pack::path(directory, number)
}

/// The segment that a file's name means, in some partition.
pub fn named(partition: PartitionId, name: &str) -> Option<SegmentId> {
    let stem = name.strip_suffix(".log")?;
    let (base, generation) = stem.split_once('.').unwrap_or((stem, "0"));
    let home = Home::File { generation: generation.parse().ok()? };
    Some(SegmentId { partition, base: base.parse().ok()?, home })
}

/// A partition's files in a store that no node uses, by base, of each the newest that is whole: one
/// that a compaction has left unfinished has no seals yet. Blocking.
pub fn on_disk(directory: &Path, partition: PartitionId) -> Vec<SegmentId> {
    let names = std::fs::read_dir(partition_path(directory, partition));
    let names = names
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|name| named(partition, name.file_name().to_str()?));
    let rank = |id: &SegmentId| {
        let is_whole = !id.is_sparse() || is_sealed(&file_path(directory, *id));
        (is_whole, *id)
    };
    let mut newest: BTreeMap<Offset, SegmentId> = BTreeMap::new();
    for id in names {
        let known = newest.entry(id.base).or_insert(id);
        *known = std::cmp::max_by_key(id, *known, rank);
    }
    newest.into_values().collect()
}

/// The partitions that have a folder in a store that no node uses. Blocking.
pub fn partitions_on_disk(directory: &Path) -> Vec<PartitionId> {
    let mut found = Vec::new();
    for name in names_on_disk(directory) {
        let number = name.strip_prefix("topic-").and_then(|number| number.parse().ok());
        let Some(topic) = number.map(TopicNumber) else { continue };
        let indexes = names_on_disk(&topic_path(directory, topic));
        let indexes = indexes.iter().filter_map(|index| index.parse().ok());
        found.extend(indexes.map(|index| PartitionId { topic, index }));
    }
    found
}

/// The packs in a store that no node uses, by number. Blocking.
pub fn packs_on_disk(directory: &Path) -> Vec<u32> {
    let names = names_on_disk(&pack::folder(directory));
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| pack::number(name)).collect();
    numbers.sort_unstable();
    numbers
}

fn names_on_disk(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether there are marks for all of a segment's file, of whatever version.
fn is_sealed(path: &Path) -> bool {
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let marks = std::fs::read(marks_path(path)).ok();
    marks.is_some_and(|marks| Marks::decode_of(&marks, bytes).is_ok())
}

/// See the module's documentation.
pub struct Store<I: Io> {
    io: I,
    arena: Arena,
    directory: PathBuf,
    cache: RefCell<Cache<I::File>>,
    spans: RefCell<Spans>,
    packs: RefCell<BTreeMap<u32, pack::Known>>,
    last_pack: Cell<u32>,
    /// Files whose names power loss may still take.
    unnamed: RefCell<BTreeSet<SegmentId>>,
    /// Of sparse segments that are being written.
    growing: RefCell<BTreeMap<SegmentId, Marks>>,
    /// Sparse segments of which it was told that their marks are lost.
    unsealed: RefCell<BTreeSet<SegmentId>>,
    /// Bytes a second.
    pace: Cell<Option<f64>>,
    /// Of reads; none before `set_read_pace`.
    read_pace: OnceCell<Rc<ReadPace<I>>>,
}

impl<I: Io> Store<I> {
    /// The store in `directory`, which need not be there. Blocking; for start-up.
    pub fn new(io: I, arena: Arena, directory: PathBuf) -> Store<I> {
        let cache = RefCell::new(Cache::default());
        let spans = RefCell::new(Spans::new(arena.budget() / SPANS_SHARE));
        let store = Store {
            io,
            arena,
            directory,
            cache,
            spans,
            packs: RefCell::default(),
            last_pack: Cell::new(0),
            unnamed: RefCell::default(),
            growing: RefCell::default(),
            unsealed: RefCell::default(),
            pace: Cell::new(None),
            read_pace: OnceCell::new(),
        };
        store.find_packs();
        store
    }

    /// The file of a segment.
    pub fn path(&self, id: SegmentId) -> PathBuf {
        file_path(&self.directory, id)
    }

    fn marks_path(&self, id: SegmentId) -> PathBuf {
        marks_path(&self.path(id))
    }

    fn topic_directory(&self, topic: TopicNumber) -> PathBuf {
        topic_path(&self.directory, topic)
    }

    fn partition_directory(&self, partition: PartitionId) -> PathBuf {
        partition_path(&self.directory, partition)
    }

    /// The topics that have a folder here. Blocking; for start-up.
    pub fn topics(&self) -> Vec<TopicNumber> {
        let names = self.io.list(&self.directory).unwrap_or_default();
        names
            .iter()
            .filter_map(|name| name.strip_prefix("topic-")?.parse().ok())
            .map(TopicNumber)
            .collect()
    }

    /// Removes a segment's files, durably after `sync_names`; those that are gone already are no
    /// error. What it has of a pack is left to those who remove whole packs.
    pub async fn remove(&self, id: SegmentId) -> std::io::Result<()> {
        if id.is_packed() {
            return Ok(());
        }
        self.cache.borrow_mut().forget(id);
        self.spans.borrow_mut().forget(|one| *one == id);
        self.unnamed.borrow_mut().remove(&id);
        self.growing.borrow_mut().remove(&id);
        self.unsealed.borrow_mut().remove(&id);
        for path in [self.path(id), self.marks_path(id)] {
            tolerate_absent(self.io.remove_unsynced(&path).await)?;
        }
        Ok(())
    }

    /// Makes durable which files a partition has.
    pub async fn sync_names(&self, partition: PartitionId) -> std::io::Result<()> {
        tolerate_absent(self.io.sync_directory(&self.partition_directory(partition)).await)
    }

    /// Removes the files in a partition's folder that belong to none of `segments`.
    pub async fn remove_strays(
        &self,
        partition: PartitionId,
        segments: &[Segment],
    ) -> std::io::Result<()> {
        // A stray that is open must not be written to once its name is gone.
        self.cache.borrow_mut().forget_partition(partition);
        self.spans.borrow_mut().forget(|one| one.partition == partition);
        let directory = self.partition_directory(partition);
        let stem = |name: &str| name.rsplit_once('.').map(|(stem, _)| stem.to_string());
        let names = segments.iter().filter_map(|segment| segment.id(partition).name());
        let named: BTreeSet<String> = names.filter_map(|name| stem(&name)).collect();
        for name in self.names_in(&directory) {
            if stem(&name).is_some_and(|stem| !named.contains(&stem)) {
                tolerate_absent(self.io.remove_unsynced(&directory.join(name)).await)?;
            }
        }
        Ok(())
    }

    /// Removes everything of a topic. What power loss brings back, the next start removes.
    pub async fn remove_topic(&self, topic: TopicNumber) -> std::io::Result<()> {
        self.cache.borrow_mut().forget_topic(topic);
        self.spans.borrow_mut().forget(|one| one.partition.topic == topic);
        let directory = self.topic_directory(topic);
        for partition in self.names_in(&directory) {
            let partition = directory.join(partition);
            for name in self.names_in(&partition) {
                tolerate_absent(self.io.remove_unsynced(&partition.join(name)).await)?;
            }
            tolerate_absent(self.io.remove_directory(&partition).await)?;
        }
        tolerate_absent(self.io.remove_directory(&directory).await)
    }

    /// What is in a directory; nothing if it is not there.
    fn names_in(&self, directory: &Path) -> Vec<String> {
        self.io.list(directory).unwrap_or_default()
    }
}

fn tolerate_absent(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests;
