//! Moving a resting node's partitions to another number of cores: everything goes into new folders,
//! beside the old ones, which stay as they are.
//!
//!     old core 0: journal ─► runs, sorted ─┐             ┌► new core 0: packs, files, journal
//!                 packs ──────────────────►├─► by owner ─┤
//!                 files ── a second name ──┘             └► new core 1: ...
//!     old core 1: ...
//!
//! The caller then has the node name the new folders, and removes the old ones.
//!
//! Lives on: one core, before the node's cores run.  Talks to: `journal`, `segment`.
//!
//! Invariants
//!   R1  Nothing that the old cores go by is changed: until the node names the new folders, a crash
//!       leaves it as it was.
//!   R2  When `reshard` has returned, everything in the new folders is durable.
//!   R3  Every partition that the metadata knows is in just one new folder, its owner's, with all
//!       that its old owner's recovery accepted.
//!   R4  Memory is bounded by the partitions' state, as that of a running node, one run of records,
//!       and a stretch for each pack that is read or written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::drain::{SMALL_BYTES_MAX, SMALL_SHARE, SPAN_MAX, append_to, copy_image};
use super::recover::{Recovered, recover};
use super::{Log, Logs, read};
use crate::base::buffer::Arena;
use crate::base::ids::{CoreId, Offset, PartitionId};
use crate::config::{BrokerConfig, TopicConfig};
use crate::io::Io;
use crate::journal::{Entry, EntryKind, Flush, Journal, OpenError, Reread, Settings};
use crate::metadata::{self, Image};
use crate::segment::{Home, Pack, PackWriter, Segment, Store, Unpacking};
use crate::wire::records;

/// Bytes of records that are sorted in memory: the most, and the share of the memory.
const RUN_BYTES_MAX: usize = 64 << 20;
const RUN_SHARE: usize = 16;
/// A pack that is larger is ended, and another one begun.
const PACK_BYTES_MAX: u64 = 1 << 30;
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// The folder of the runs, in the first new core's.
const RUNS: &str = "runs";

/// From which folders to which.
pub struct Resharding {
    pub from: Vec<Settings>,
    pub to: Vec<Settings>,
}

/// What was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub partitions: u64,
    /// Bytes of records that were written anew.
    pub bytes: u64,
    /// Files that were given a second name.
    pub files: u64,
}

/// An old core.
struct Source<I: Io> {
    recovered: Recovered<I>,
    store: Store<I>,
    unpacking: Unpacking,
}

/// A new core.
struct Target<'a, I: Io> {
    store: &'a Store<I>,
    writer: Option<PackWriter<'a, I>>,
    partitions: Vec<(Log, Vec<Segment>)>,
}

/// Records out of the journal of an old core, sorted by partition.
struct Runs<'a, I: Io> {
    store: &'a Store<I>,
    packs: Vec<Pack>,
    pieces: BTreeMap<PartitionId, Vec<Segment>>,
    unpacking: Unpacking,
    /// When they were, in Unix milliseconds of the broker's clock.
    begun: i64,
    /// Entries that are in no run yet, and where their bodies are in `bodies`.
    found: BTreeMap<(PartitionId, Offset), Range<usize>>,
    bodies: Vec<u8>,
}

/// See the module's documentation. The error says what went wrong, without a remedy.
pub async fn reshard<I: Io>(
    io: &I,
    arena: &Arena,
    config: &BrokerConfig,
    Resharding { from, to }: Resharding,
) -> Result<Moved, String> {
    let (mut sources, image) = open_sources(io, arena, from).await?;
    let failed = |error: io::Error| error.to_string();
    for settings in &to {
        io.create_directory(&settings.directory).map_err(failed)?;
    }
    let store = |directory: PathBuf| Store::new(io.clone(), arena.clone(), directory);
    let stores: Vec<Store<I>> =
        to.iter().map(|settings| store(settings.directory.join("segments"))).collect();
    let runs = to.first().map(|first| first.directory.join(RUNS)).unwrap_or_default();
    let runs = store(runs);
    let of = |store| Target { store, writer: None, partitions: Vec::new() };
    let targets = stores.iter().map(of).collect();
    let journal_bytes = to.first().map_or(0, |first| first.bytes_max);
    let small_bytes = SMALL_BYTES_MAX.min(journal_bytes / SMALL_SHARE);
    let moved = Moved::default();
    let mut moving = Moving { io, config, image: &image, targets, small_bytes, moved };
    for source in &mut sources {
        moving.take(source, &runs, arena).await.map_err(failed)?;
    }
    moving.end_packs().await.map_err(failed)?;
    runs.remove_folders().await.map_err(failed)?;
    for (core, (target, settings)) in moving.targets.iter().zip(to).enumerate() {
        let metadata = (core == CoreId::FIRST.index()).then_some(&image);
        let written = write_journal(io, arena, settings, target, metadata, &image).await;
        written.map_err(|why| format!("the journal of core {core}: {why}"))?;
    }
    Ok(moving.moved)
}

/// Recovers the old cores, which take nothing any more.
async fn open_sources<I: Io>(
    io: &I,
    arena: &Arena,
    from: Vec<Settings>,
) -> Result<(Vec<Source<I>>, Image), String> {
    let mut sources: Vec<Source<I>> = Vec::new();
    for settings in from {
        let store = settings.directory.join("segments");
        let recovered = recover(io.clone(), arena.clone(), settings).await;
        let mut recovered = recovered.map_err(|error: OpenError| error.to_string())?;
        recovered.journal.close().await;
        if let Some(why) = recovered.contradiction.take() {
            return Err(why);
        }
        let store = Store::new(io.clone(), arena.clone(), store);
        sources.push(Source { recovered, store, unpacking: Unpacking::default() });
    }
    let image = sources.first().map(|first| first.recovered.image.clone());
    let image = image.ok_or("the node has no core")?;
    for source in &mut sources {
        source.recovered.forget_unknown(&image)?;
    }
    Ok((sources, image))
}

/// The move as it goes on.
struct Moving<'a, I: Io> {
    io: &'a I,
    config: &'a BrokerConfig,
    image: &'a Image,
    targets: Vec<Target<'a, I>>,
    /// A partition with so much in the journal gets files of its own for it.
    small_bytes: u64,
    moved: Moved,
}

impl<I: Io> Moving<'_, I> {
    /// Moves everything of an old core.
    async fn take(
        &mut self,
        source: &mut Source<I>,
        runs: &Store<I>,
        arena: &Arena,
    ) -> io::Result<()> {
        let run_bytes = RUN_BYTES_MAX.min(arena.budget() / RUN_SHARE);
        let mut runs = Runs::new(runs, self.io.wall().0);
        sort_journal(source, &mut runs, run_bytes).await?;
        let ids: BTreeSet<PartitionId> = source.recovered.logs.keys().copied().collect();
        for id in ids {
            self.take_partition(source, &mut runs, id).await?;
        }
        for pack in &runs.packs {
            runs.store.remove_pack(pack.number).await?;
        }
        Ok(())
    }

    async fn take_partition(
        &mut self,
        source: &mut Source<I>,
        runs: &mut Runs<'_, I>,
        id: PartitionId,
    ) -> io::Result<()> {
        let Some(log) = source.recovered.logs.get(&id).cloned() else { return Ok(()) };
        let Some(topic) = self.image.topic_by_number(id.topic) else { return Ok(()) };
        let config = TopicConfig::new(|name| topic.configs.get(name), self.config);
        let cores = self.targets.len();
        let owner = metadata::owner(id, u16::try_from(cores).unwrap_or(u16::MAX));
        let Some(target) = self.targets.get_mut(owner.index()) else { return Ok(()) };
        let mut segments = Vec::new();
        let live: Vec<Segment> = log.borrow().live_segments().copied().collect();
        for segment in live {
            if let Home::File { .. } = segment.home {
                self.moved.bytes += target.store.adopt(&source.store, id, &segment).await?;
                self.moved.files += 1;
                segments.push(segment);
                continue;
            }
            let writer = target.writer().await?;
            writer.begin(id, segment.base);
            let unpacking = &mut source.unpacking;
            if let Some(damage) = writer.copy_from(&source.store, unpacking, &segment).await? {
                // It stays what it is: whoever reads it is told.
                tracing::error!(
                    "{} is damaged at byte {}: {}; offsets {} to before {} of {id} cannot be read",
                    source.store.path(segment.id(id)).display(),
                    segment.start() + damage.position,
                    damage.flaw,
                    damage.from,
                    damage.before
                );
                writer.begin(id, segment.base);
                writer.copy_as_it_is(&source.store, unpacking, &segment).await?;
            }
            segments.extend(writer.segment(segment.begun));
            self.moved.bytes += segment.bytes;
        }
        let hot = runs.pieces.remove(&id).unwrap_or_default();
        let end = hot.last().map_or_else(|| log.borrow().hot_start(), |last| last.next);
        if end != log.borrow().next() {
            return Err(io::Error::other(format!("records of {id} are missing from offset {end}")));
        }
        let bytes: u64 = hot.iter().map(|piece| piece.bytes).sum();
        if bytes >= self.small_bytes.max(1) {
            segments.extend(target.write_files(runs.store, id, &hot, &config).await?);
        } else if let Some(first) = hot.first() {
            let begun = self.io.wall().0;
            let writer = target.writer().await?;
            writer.begin(id, first.base);
            for piece in &hot {
                if writer.copy_from(runs.store, &mut runs.unpacking, piece).await?.is_some() {
                    let what = format!("records of {id} went bad on their way: start once more");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
            segments.extend(writer.segment(begun));
        }
        self.moved.bytes += bytes;
        self.moved.partitions += 1;
        target.partitions.push((log, segments));
        Ok(())
    }

    async fn end_packs(&mut self) -> io::Result<()> {
        for target in &mut self.targets {
            if let Some(writer) = target.writer.take() {
                writer.finish().await?;
            }
        }
        Ok(())
    }
}

impl<'a, I: Io> Target<'a, I> {
    /// The pack being written.
    async fn writer(&mut self) -> io::Result<&mut PackWriter<'a, I>> {
        let full = self.writer.take_if(|writer| writer.bytes() >= PACK_BYTES_MAX);
        if let Some(full) = full {
            full.finish().await?;
        }
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.store.begin_pack().await?,
        };
        Ok(self.writer.insert(writer))
    }

    /// Writes what is in runs into files of the partition's own, durably.
    async fn write_files(
        &self,
        runs: &Store<I>,
        id: PartitionId,
        hot: &[Segment],
        config: &TopicConfig,
    ) -> io::Result<Vec<Segment>> {
        let mut segments: Vec<Segment> = Vec::new();
        let most = COPY_BYTES.min(usize::try_from(config.segment_bytes).unwrap_or(COPY_BYTES));
        for run in hot {
            let mut base = run.base;
            while base < run.next {
                let span = runs.read(run.id(id), run, base, most).await?;
                let bytes = span.batches.len() as u64;
                let timestamps = records::batches(&span.batches).map(|(h, _)| h.max_timestamp);
                let max_timestamp = timestamps.max().unwrap_or(-1);
                let takes = |last: &mut Segment| {
                    last.bytes + bytes <= config.segment_bytes && span.next - last.base <= SPAN_MAX
                };
                let (begun, home) = (run.begun, Home::NEW);
                let new = Segment { base, next: base, bytes: 0, max_timestamp, begun, home };
                let mut grown = segments.pop_if(takes).unwrap_or(new);
                self.store.append(grown.id(id), grown.bytes, &[span.batches]).await?;
                grown.bytes += bytes;
                grown.next = span.next;
                grown.max_timestamp = grown.max_timestamp.max(max_timestamp);
                segments.push(grown);
                base = span.next;
            }
        }
        for segment in &segments {
            self.store.sync(segment.id(id)).await?;
            self.store.close(segment.id(id), segment.bytes).await?;
        }
        Ok(segments)
    }
}

/// Reads the journal of an old core from front to back, and sorts what counts by partition.
async fn sort_journal<I: Io>(
    source: &Source<I>,
    runs: &mut Runs<'_, I>,
    run_bytes: usize,
) -> io::Result<()> {
    for mut file in source.recovered.journal.whole() {
        let logs = &source.recovered.logs;
        while file.next(|found| runs.take(logs, &found)).await? {
            if runs.bodies.len() >= run_bytes {
                runs.write(source).await?;
            }
        }
        // Its damaged groups were passed over.
        if file.is_damaged() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a journal file is damaged"));
        }
    }
    runs.write(source).await
}

impl<'a, I: Io> Runs<'a, I> {
    fn new(store: &'a Store<I>, begun: i64) -> Runs<'a, I> {
        Runs {
            store,
            packs: Vec::new(),
            pieces: BTreeMap::new(),
            unpacking: Unpacking::default(),
            begun,
            found: BTreeMap::new(),
            bodies: Vec::new(),
        }
    }

    /// Takes an entry's records if they are those that the partition's state means.
    fn take(&mut self, logs: &Logs, found: &Reread<'_>) {
        if !found.entry.kind.is_records() {
            return;
        }
        let (id, base) = (found.entry.partition, found.entry.base_offset);
        let extent = logs.get(&id).and_then(|log| log.borrow().extent(base));
        if extent.is_some_and(|extent| extent.location == found.location) {
            let start = self.bodies.len();
            self.bodies.extend_from_slice(found.body);
            self.found.insert((id, base), start..self.bodies.len());
        }
    }

    /// Writes what is in memory, sorted by partition.
    async fn write(&mut self, source: &Source<I>) -> io::Result<()> {
        if self.found.is_empty() {
            return Ok(());
        }
        let (found, bodies) = (std::mem::take(&mut self.found), std::mem::take(&mut self.bodies));
        let mut through: BTreeMap<PartitionId, Offset> = BTreeMap::new();
        through.extend(found.keys().copied());
        let mut writer = self.store.begin_pack().await?;
        for (id, through) in through {
            let Some(log) = source.recovered.logs.get(&id) else { continue };
            let pieces = self.pieces.entry(id).or_default();
            let end = pieces.last().map_or(0, |last| last.next);
            let mut extents = log.borrow().extents_through(through);
            extents.retain(|extent| extent.base >= end);
            let Some(first) = extents.first() else { continue };
            writer.begin(id, first.base);
            for extent in extents {
                let place = found.get(&(id, extent.base)).cloned();
                match place.and_then(|place| bodies.get(place)) {
                    Some(body) => writer.put(body, extent.next, extent.max_timestamp).await?,
                    None => {
                        // What was carried on stands elsewhere than its neighbours.
                        let body = read::read_durable(&source.recovered.journal, &extent).await?;
                        writer.put(&body, extent.next, extent.max_timestamp).await?;
                    }
                }
            }
            pieces.extend(writer.segment(self.begun));
        }
        self.packs.push(writer.finish_run().await?);
        Ok(())
    }
}

/// Makes a new core's journal, with all it needs to know.
async fn write_journal<I: Io>(
    io: &I,
    arena: &Arena,
    settings: Settings,
    target: &Target<'_, I>,
    metadata: Option<&Image>,
    image: &Image,
) -> Result<(), String> {
    let settings = Settings { flush: Flush::EveryGroup, ..settings };
    let opened = Journal::open(io.clone(), arena.clone(), settings, &mut |_| {}).await;
    let journal = opened.map_err(|error| error.to_string())?;
    let written = async {
        if let Some(image) = metadata {
            copy_image(&journal, image).await?;
        }
        for (log, segments) in &target.partitions {
            let (id, checkpoint) = {
                let log = log.borrow();
                (log.id(), log.checkpoint(segments, log.next()))
            };
            let entry = Entry {
                kind: EntryKind::Checkpoint,
                partition: id,
                base_offset: checkpoint.hot_start,
                epoch: image.leader_epoch(),
            };
            let body = checkpoint.encode().map_err(io::Error::other)?;
            append_to(&journal, entry, &body).await?;
        }
        Ok(())
    };
    let written: io::Result<()> = written.await;
    journal.close().await;
    let whole = journal.poisoned().map_or(Ok(()), |why| Err(why.to_string()));
    written.map_err(|error| error.to_string()).and(whole)
}
