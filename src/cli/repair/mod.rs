//! `corelog repair`: what is damaged in a stopped node's data directory, what is lost with it, and
//! the changes with which the node starts and serves everything else.
//!
//!     look at journals and segments ─► findings, plan ─► --dry-run ends here
//!                                          └► copy what is changed ─► segments ─► journals
//!
//! Invariants
//!   R1  A dry run changes nothing, and tells what a real one would do.
//!   R2  Whatever a real run changes or replaces is kept in a folder of its own before.
//!   R3  A run that was interrupted may be made again.

mod cold;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::base::ids::{Epoch, Offset, PartitionId, TopicNumber};
use crate::base::limits::{PARTITIONS_PER_TOPIC_MAX, PRODUCER_ID_BLOCK};
use crate::client::failure::Failure;
use crate::io::around::Around;
use crate::journal::mend::{Break, Patch, Survey};
use crate::journal::{self, Entry, NO_PARTITION};
use crate::metadata::{Image, owner};
use crate::node::{DataDirectories, LostPart};
use crate::partition::{
    Account, EpochStart, Lost, Unnamed, directory_of, epoch_at, recovered_name, wrong_epoch,
};
use crate::segment::{
    self, Damage, Home, Marks, MarksFlaw, Misplaced, Piece, Seen, Segment, SegmentId,
};
use crate::wire::records::{self, BatchHeader};
use cold::{Adopted, ColdFiles};

/// Leader epochs, and blocks of producer ids, that a missing end of the journal has named at most.
const GIVEN_MAX: Epoch = 1024;

#[derive(clap::Args)]
pub struct Arguments {
    /// The data directory of a node that is stopped; the first of several is enough, if the others
    /// are where they were.
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_value = "./corelog-data")]
    data_dir: Vec<PathBuf>,
    /// Give up a data directory whose disk is lost for good: this empty one, named with --data-dir
    /// like the others, takes its place, and the partitions that were there begin anew. Or the
    /// folder of a core that is gone.
    #[arg(long, value_name = "DIR")]
    replace_lost: Option<PathBuf>,
    /// Say what is damaged, what is lost and what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// One core's journal and what it says.
struct Core {
    folder: PathBuf,
    survey: Survey,
    account: Account,
    /// What lost groups name.
    named: Vec<(Entry, Option<Offset>)>,
    entries: Vec<(Entry, Vec<u8>)>,
    segments: Vec<Mending>,
    /// Packs that get a directory, of these pieces.
    packs: Vec<(PathBuf, Vec<Piece>)>,
    /// Sound files whose marks are made anew.
    unsealed: Vec<(PathBuf, Segment)>,
}

/// The segments of partitions that get other ones, and where the journal goes on behind those.
type Replaced = BTreeMap<PartitionId, (Vec<Segment>, Offset)>;

/// A damaged segment, and what comes in its place.
struct Mending {
    id: SegmentId,
    damage: Vec<Damage>,
    old: Segment,
    new: SegmentId,
    epochs: Vec<EpochStart>,
}

/// What was found, in sentences, and whether all of it can be mended.
#[derive(Default)]
struct Findings {
    lines: Vec<String>,
    damaged: usize,
    hopeless: usize,
}

impl Findings {
    fn damage(&mut self, what: String) {
        self.damaged += 1;
        self.lines.push(what);
    }

    fn hopeless(&mut self, what: String) {
        self.hopeless += 1;
        self.damage(what);
    }

    fn detail(&mut self, what: &str) {
        self.lines.push(format!("    {what}"));
    }
}

impl Arguments {
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
        if let Some(empty) = &self.replace_lost {
            return self.replace(out, empty);
        }
        let taken = DataDirectories::take_existing(&self.data_dir, self.dry_run);
        let taken = taken.map_err(|e| failed(&e))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let mut findings = Findings::default();
        let mut cores = survey(&taken, now, &mut findings);
        let image = cores.first().map(|core| core.account.image().clone()).unwrap_or_default();
        let unnamed = unnamed(&cores, &image);
        let names = Names { image: &image, unnamed: &unnamed };
        for core in &mut cores {
            core.judge(&names, &mut findings);
        }
        restore_metadata(&mut cores, &names, &mut findings);
        let mut plans = Vec::new();
        for core in &cores {
            match core.survey.plan(&core.entries) {
                Ok(patches) => plans.push(patches),
                Err(why) => findings.hopeless(why),
            }
        }
        for line in &findings.lines {
            writeln!(out, "{line}")?;
        }
        self.finish(out, &taken, &findings, (&cores, &plans), now)
    }

    /// Gives up a directory, or a core's folder, that is lost.
    fn replace(&self, out: &mut dyn Write, empty: &Path) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
        let (taken, lost) = DataDirectories::replace_lost(&self.data_dir, empty, self.dry_run)
            .map_err(|e| failed(&e))?;
        let layout = taken.layout();
        let survey = Survey::of(&layout.core(0)).map_err(|e| failed(&e))?;
        let mut account = Account::new(0);
        if let Some(survey) = survey {
            survey.replay(&mut |found| account.take(&found)).map_err(|e| failed(&e))?;
        }
        let (shards, directories) = (layout.shards, layout.places.len());
        let is_lost = |topic: TopicNumber, index: u32| {
            let core = owner(PartitionId { topic, index }, shards);
            match lost {
                LostPart::Core(number) => core.0 == number,
                LostPart::Directory(number) => directory_of(core, directories) == number,
            }
        };
        for topic in account.image().topics() {
            let indexes = (0..topic.partitions).filter(|index| is_lost(topic.number, *index));
            let words: Vec<String> = indexes.map(|index| index.to_string()).collect();
            if !words.is_empty() {
                writeln!(
                    out,
                    "lost: topic {}, all of partitions {}",
                    topic.name,
                    words.join(", ")
                )?;
            }
        }
        let place = empty.display();
        if self.dry_run {
            writeln!(out, "nothing was changed; they would begin anew, at offset 0, in {place}")?;
            return Ok(());
        }
        taken.begin_anew(lost).map_err(|e| failed(&e))?;
        writeln!(out, "they begin anew, at offset 0, in {place}")?;
        Ok(())
    }

    fn finish(
        &self,
        out: &mut dyn Write,
        taken: &DataDirectories,
        findings: &Findings,
        (cores, plans): (&[Core], &[Vec<Patch>]),
        now: i64,
    ) -> Result<(), Failure> {
        let count = findings.damaged;
        let place = taken.layout().first().display();
        if count == 0 {
            writeln!(out, "nothing in {place} is damaged")?;
            return Ok(());
        }
        out.flush()?;
        if findings.hopeless > 0 {
            return Err(Failure::Failed(format!(
                "{place} is damaged at {count} places, and {} of them cannot be mended: restore \
                 them from a copy; nothing was changed",
                findings.hopeless
            )));
        }
        if self.dry_run {
            return Err(Failure::Failed(format!(
                "{place} is damaged at {count} places; nothing was changed. Restore the files from \
                 a copy if there is one; otherwise `corelog repair --data-dir {place}` gives up \
                 what is lost, as told, and keeps everything else"
            )));
        }
        let directories = taken.layout().places.iter().map(|place| place.path.clone());
        let keep = Keep { name: format!("damaged-{now}"), directories: directories.collect() };
        let mended = mend(&keep, cores, plans);
        mended.map_err(|error| {
            Failure::Failed(format!(
                "the repair of {place} is not complete: {error}; mend that and run it again"
            ))
        })?;
        writeln!(
            out,
            "mended {count} places; what was changed is kept in {}: remove it once it is not \
             needed",
            keep.folders().join(" and ")
        )?;
        Ok(())
    }
}

/// Looks at every core's journal.
fn survey(taken: &DataDirectories, now: i64, findings: &mut Findings) -> Vec<Core> {
    let mut cores = Vec::new();
    let layout = taken.layout();
    for index in 0..layout.shards {
        let folder = layout.core(index);
        let survey = match Survey::of(&folder) {
            Ok(Some(survey)) => survey,
            // It has yet to begin.
            Ok(None) if journal::is_prepared(&folder).is_ok_and(|is_there| is_there) => continue,
            Ok(None) => {
                findings.hopeless(format!("{} holds no journal file", folder.display()));
                continue;
            }
            Err(why) => {
                findings.hopeless(why);
                continue;
            }
        };
        let mut account = Account::new(now);
        let replayed = survey.replay(&mut |found| account.take(&found));
        if let Some(why) = replayed.err().or_else(|| account.contradiction()) {
            findings.hopeless(format!("{}: {why}", folder.display()));
            continue;
        }
        let named = survey.breaks.iter().flat_map(|broken| broken.named.iter().copied());
        let named = named.collect();
        let (entries, segments, packs) = (Vec::new(), Vec::new(), Vec::new());
        let unsealed = Vec::new();
        cores.push(Core { folder, survey, account, named, entries, segments, packs, unsealed });
    }
    cores
}

/// What is there of topics, and whose creation, or that of its partitions, is lost.
fn unnamed(cores: &[Core], image: &Image) -> Unnamed {
    let mut found = Unnamed::default();
    let Some(first) = cores.first().filter(|core| core.survey.is_damaged()) else {
        return found;
    };
    // Of topics that were deleted long ago, old files may hold anything.
    let is_broken = |topic: TopicNumber| {
        let broken = cores.iter().flat_map(|core| core.account.broken().keys());
        topic.0 < image.next_topic_number() && broken.into_iter().any(|id| id.topic == topic)
    };
    for core in cores {
        let named = core.named.iter().map(|(entry, _)| entry.partition);
        let files = ColdFiles::of(&core.segments_folder());
        let all = core.account.partitions().chain(named).chain(files.partitions());
        let is_one = |id: &PartitionId| i64::from(id.index) < i64::from(PARTITIONS_PER_TOPIC_MAX);
        for id in all.filter(|id| *id != NO_PARTITION && is_one(id)) {
            let partitions = match image.topic_by_number(id.topic) {
                Some(topic) if id.index < topic.partitions => continue,
                Some(_) => found.grown.entry(id.topic),
                None if first.account.is_deleted(id.topic) || is_broken(id.topic) => continue,
                None => found.topics.entry(id.topic),
            };
            let partitions = partitions.or_insert(0);
            *partitions = (id.index + 1).max(*partitions);
        }
    }
    found
}

/// How partitions are called.
struct Names<'a> {
    image: &'a Image,
    unnamed: &'a Unnamed,
}

impl Names<'_> {
    /// Whether the topic is there, or will be.
    fn know(&self, id: PartitionId) -> bool {
        self.image.topic_by_number(id.topic).is_some()
            || self.unnamed.topics.contains_key(&id.topic)
    }

    fn of(&self, id: PartitionId) -> String {
        match self.image.topic_by_number(id.topic) {
            Some(topic) => format!("topic {} partition {}", topic.name, id.index),
            None if self.unnamed.topics.contains_key(&id.topic) => {
                format!("topic {} partition {}", recovered_name(id.topic), id.index)
            }
            None => id.to_string(),
        }
    }
}

impl Core {
    /// What is lost on this core, and the entries and segments that make up for it.
    fn judge(&mut self, names: &Names<'_>, findings: &mut Findings) {
        for broken in &self.survey.breaks {
            let (file, position) = (broken.file.display(), broken.position);
            findings.damage(format!("{file} is damaged at byte {position}: {}", broken.flaw));
            let kinds: BTreeSet<String> = broken
                .named
                .iter()
                .filter(|(entry, _)| entry.partition == NO_PARTITION || names.know(entry.partition))
                .map(|(entry, _)| match entry.partition {
                    NO_PARTITION => entry.kind.name().to_string(),
                    id => format!("{} of {}", entry.kind.name(), names.of(id)),
                })
                .collect();
            for kind in kinds {
                findings.detail(&format!("it holds {kind}"));
            }
        }
        for file in &self.survey.missing_tail {
            findings.damage(format!("{} is missing", file.display()));
            findings.detail(
                "lost: what was written last on this core, if the file held anything; how much \
                 cannot be told, and its offsets are given again",
            );
        }
        self.judge_entries(names, findings);
        let lost = self.account.lost(&self.named);
        let mut lost: Vec<Lost> = lost.into_iter().filter(|l| names.know(l.partition)).collect();
        let mut replaced = self.adopt(names, &mut lost, findings);
        lost.retain(|gap| gap.from < gap.before);
        for gap in &lost {
            let Lost { partition, from, before, is_tail } = gap;
            let more = if *is_tail { ", and perhaps more behind them" } else { "" };
            let name = names.of(*partition);
            if !self.survey.is_damaged() {
                findings.damage(format!("{} lacks records", self.folder.display()));
            }
            findings.detail(&format!("lost: {name}, offsets {from} to before {before}{more}"));
        }
        self.entries = self.account.stand_ins(&lost);
        self.judge_segments(names, findings, &mut replaced);
        for (id, (segments, hot_start)) in replaced {
            match self.account.checkpoint(id, &segments, hot_start) {
                Ok(entry) => self.entries.push(entry),
                Err(why) => findings.hopeless(why),
            }
        }
    }

    fn segments_folder(&self) -> PathBuf {
        self.folder.join("segments")
    }

    /// Whether there was metadata in what is lost, or nobody knows what was there.
    fn may_lack_metadata(&self) -> bool {
        let is_it = |(entry, _): &(Entry, Option<Offset>)| entry.partition == NO_PARTITION;
        let is_in = |broken: &Break| broken.named.is_empty() || broken.named.iter().any(is_it);
        !self.survey.missing_tail.is_empty() || self.survey.breaks.iter().any(is_in)
    }

    /// What contradicts itself in sound entries, the start refuses, whatever else is mended.
    fn judge_entries(&self, names: &Names<'_>, findings: &mut Findings) {
        for (id, why) in self.account.broken().iter().filter(|(id, _)| names.know(**id)) {
            let (folder, name) = (self.folder.display(), names.of(*id));
            findings.hopeless(format!("{folder}, {name}: {why}"));
        }
    }

    /// Segments on the disk behind those that are recorded, where the journal lacks records: their
    /// checkpoint is lost. The gaps become as much smaller.
    fn adopt(
        &mut self,
        names: &Names<'_>,
        lost: &mut Vec<Lost>,
        findings: &mut Findings,
    ) -> Replaced {
        let mut replaced = Replaced::new();
        if lost.is_empty() && !self.survey.is_damaged() {
            return replaced;
        }
        let files = ColdFiles::of(&self.segments_folder());
        let tails: BTreeSet<PartitionId> =
            lost.iter().filter(|gap| gap.is_tail).map(|gap| gap.partition).collect();
        // Nothing may be left in the journal that says so.
        for partition in files.partitions().filter(|id| self.survey.is_damaged() && names.know(*id))
        {
            if !tails.contains(&partition) {
                let end = self.account.next(partition);
                lost.push(Lost { partition, from: end, before: end, is_tail: true });
            }
        }
        for gap in lost {
            let id = gap.partition;
            let known = replaced.get(&id).map(|(segments, _)| segments.clone());
            let known = known.unwrap_or_else(|| self.account.segments(id));
            let found = files.adopt(gap, &known, self.account.log_start(id));
            let Some(Adopted { segments, epochs }) = found else { continue };
            let end = segments.last().map_or(0, |last| last.next);
            let (name, from) = (names.of(id), gap.from);
            findings.detail(&format!(
                "found: {name}, offsets {from} to before {end}, in files that nothing else names"
            ));
            gap.from = end;
            gap.before = gap.before.max(end);
            epochs.into_iter().for_each(|epoch| self.account.learn(id, epoch));
            replaced.insert(id, (segments, end));
        }
        replaced
    }

    fn judge_segments(
        &mut self,
        names: &Names<'_>,
        findings: &mut Findings,
        replaced: &mut Replaced,
    ) {
        let mut ids: BTreeSet<PartitionId> = self.account.partitions().collect();
        ids.extend(replaced.keys());
        ids.retain(|id| names.know(*id));
        let mut packed: BTreeMap<u32, Vec<Piece>> = BTreeMap::new();
        for partition in ids {
            let adopted = replaced.remove(&partition);
            let mut is_changed = adopted.is_some();
            let (mut segments, hot_start) =
                adopted.unwrap_or_else(|| (self.account.segments(partition), 0));
            for segment in &mut segments {
                if let Some(mending) = self.judge_segment(partition, segment, names, findings) {
                    segment.home = mending.new.home;
                    segment.bytes = mended_bytes(&mending.old, &mending.damage);
                    is_changed = true;
                    self.segments.push(mending);
                }
                if let Home::Pack { number, position } = segment.home {
                    let Segment { base, next, bytes, max_timestamp, .. } = *segment;
                    let piece = Piece { partition, base, next, position, bytes, max_timestamp };
                    packed.entry(number).or_default().push(piece);
                }
            }
            if is_changed {
                replaced.insert(partition, (segments, hot_start));
            }
        }
        self.judge_packs(packed, findings);
    }

    /// What is wrong with a segment, if something is.
    fn judge_segment(
        &mut self,
        partition: PartitionId,
        segment: &Segment,
        names: &Names<'_>,
        findings: &mut Findings,
    ) -> Option<Mending> {
        let id = segment.id(partition);
        let path = segment::file_path(&self.segments_folder(), id);
        let epochs = self.account.epochs(partition);
        let Looked { damage, wrong, misplaced, unsealed } =
            Looked::at(&path, segment, epochs, findings);
        let (file, name) = (path.display(), names.of(partition));
        for Damage { position, from, before, flaw, .. } in &damage {
            let position = position + segment.start();
            findings.damage(format!("{file} is damaged at byte {position}: {flaw}"));
            findings.detail(&format!("lost: {name}, offsets {from} to before {before}"));
        }
        for WrongEpoch { position, header, due } in &wrong {
            let position = position + segment.start();
            let (from, before) = (header.base_offset, header.next_offset());
            findings.damage(format!(
                "{file} is damaged at byte {position}: a leader epoch is {} where {due} belongs",
                header.leader_epoch
            ));
            findings.detail(&format!(
                "nothing is lost: {name}, offsets {from} to before {before}, get the right one"
            ));
        }
        for Misplaced { position, found, due, next } in &misplaced {
            findings.damage(format!(
                "{file} is damaged at byte {position}: a record batch says that it begins with \
                 offset {found} where {due} belongs"
            ));
            findings.detail(&format!(
                "nothing is lost: {name}, offsets {due} to before {next}, get the right ones"
            ));
        }
        if let Some(flaw) = unsealed {
            findings.damage(format!("{}: {flaw}", segment::marks_path(&path).display()));
            findings.detail(&format!(
                "nothing is lost: it is made anew, of what {file} says; what offsets have changed \
                 there nobody can tell"
            ));
        }
        let home = Home::File { generation: segment.generation() + 1 };
        let (old, new) = (*segment, SegmentId { home, ..id });
        let epochs = epochs.to_vec();
        let is_damaged = !damage.is_empty() || !wrong.is_empty() || !misplaced.is_empty();
        if unsealed.is_some() && !is_damaged {
            self.unsealed.push((path, old));
        }
        is_damaged.then_some(Mending { id, damage, old, new, epochs })
    }

    /// Packs whose directory is damaged, of those in which something is left.
    fn judge_packs(&mut self, packed: BTreeMap<u32, Vec<Piece>>, findings: &mut Findings) {
        for (number, pieces) in packed {
            let path = segment::pack_path(&self.segments_folder(), number);
            match segment::read_pack(&path) {
                Ok((_, None)) => {}
                Ok((_, Some(flaw))) => {
                    findings.damage(format!("{} is damaged: {flaw}", path.display()));
                    findings.detail("nothing is lost with that: the directory is made anew");
                    self.packs.push((path, pieces));
                }
                Err(error) => {
                    findings.hopeless(format!("{} cannot be read: {error}", path.display()));
                }
            }
        }
    }
}

/// A batch whose leader epoch is not that of its offsets.
struct WrongEpoch {
    position: u64,
    header: BatchHeader,
    due: Epoch,
}

/// A topic for each number without a name, and numbers given out stay given out.
fn restore_metadata(cores: &mut [Core], names: &Names<'_>, findings: &mut Findings) {
    let epoch: Epoch = cores.iter().map(|core| core.account.epoch()).max().unwrap_or(0);
    let producer = cores.iter().map(|core| core.account.producer_id()).max().unwrap_or(-1);
    let Some(first) = cores.first_mut().filter(|core| core.survey.is_damaged()) else {
        return;
    };
    // What was given out in files that are missing is not known.
    let unknown = if first.survey.missing_tail.is_empty() { 0 } else { GIVEN_MAX };
    let (epoch, producer) = (epoch + unknown, producer + i64::from(unknown) * PRODUCER_ID_BLOCK);
    for number in names.unnamed.topics.keys() {
        findings.detail(&format!(
            "the name of topic number {} is lost: it is called {} and keeps its records for ever",
            number.0,
            recovered_name(*number)
        ));
    }
    for (number, partitions) in &names.unnamed.grown {
        if let Some(topic) = names.image.topic_by_number(*number) {
            findings.detail(&format!(
                "topic {} has {partitions} partitions, where the metadata that is left knows {}",
                topic.name, topic.partitions
            ));
        }
    }
    if first.may_lack_metadata() {
        findings.detail(
            "metadata may be lost: topics without records, and settings that were changed last; \
             look at those of every topic",
        );
    }
    match first.account.metadata(names.unnamed, epoch, producer) {
        Ok(entry) => first.entries.insert(0, entry),
        Err(why) => findings.hopeless(why),
    }
}

/// What is wrong with a segment's file.
#[derive(Default)]
struct Looked {
    damage: Vec<Damage>,
    wrong: Vec<WrongEpoch>,
    misplaced: Vec<Misplaced>,
    /// Why nothing vouches for its offsets, where something should.
    unsealed: Option<MarksFlaw>,
}

impl Looked {
    fn at(
        path: &Path,
        segment: &Segment,
        epochs: &[EpochStart],
        findings: &mut Findings,
    ) -> Looked {
        let mut looked = Looked::default();
        let Looked { damage, wrong, misplaced, .. } = &mut looked;
        let outcome = segment::check_file(path, segment, &mut |seen| match seen {
            Seen::Damage(found) => damage.push(found),
            Seen::Misplaced(found) => misplaced.push(found),
            Seen::Batch { position, header, .. } => {
                let due = wrong_epoch(epochs, &header);
                wrong.extend(due.map(|due| WrongEpoch { position, header, due }));
            }
        });
        match outcome.and_then(|()| segment::read_seals(path, segment)) {
            Ok(seals) => looked.unsealed = seals.err(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (from, before, flaw) = (segment.base, segment.next, segment::Flaw::Missing);
                looked.damage =
                    vec![Damage { position: 0, bytes: segment.bytes, from, before, flaw }];
            }
            Err(error) => {
                findings.hopeless(format!("{} cannot be read: {error}", path.display()));
            }
        }
        looked
    }
}

/// Bytes of a segment with batches without records in the place of what is damaged.
fn mended_bytes(old: &Segment, damage: &[Damage]) -> u64 {
    let lost: u64 = damage.iter().map(|damage| damage.bytes).sum();
    let stand_ins = damage.iter().filter(|damage| damage.from < damage.before).count();
    old.bytes - lost + (stand_ins * records::HEADER_BYTES) as u64
}

/// Writes the new file of a damaged segment.
fn rewrite(folder: &Path, mending: &Mending) -> io::Result<()> {
    let path = segment::file_path(folder, mending.new);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = io::BufWriter::new(fs::File::create(&path)?);
    let mut outcome = Ok(());
    let mut last = 0;
    let mut marks = Marks::sealed();
    let mut write = |seen: Seen<'_>| {
        let batch = match seen {
            Seen::Batch { header, batch, .. } => {
                let due = wrong_epoch(&mending.epochs, &header);
                last = due.unwrap_or(header.leader_epoch);
                let mut batch = batch.to_vec();
                records::stamp(&mut batch, header.base_offset, last);
                batch
            }
            Seen::Damage(Damage { from, before, .. }) if from < before => {
                let time = mending.old.max_timestamp;
                let epoch = epoch_at(&mending.epochs, from).unwrap_or(last);
                records::empty(from, before, epoch, time)
            }
            Seen::Damage(_) | Seen::Misplaced(_) => return,
        };
        records::batches(&batch).for_each(|(header, batch)| marks.add(&header, batch.len()));
        if outcome.is_ok() {
            outcome = file.write_all(&batch);
        }
    };
    let old = segment::file_path(folder, mending.id);
    if old.exists() {
        segment::check_file(&old, &mending.old, &mut write)?;
    } else {
        mending.damage.iter().for_each(|damage| write(Seen::Damage(*damage)));
    }
    outcome?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    write_marks(&path, &marks)
}

/// Writes the marks of a segment's file, durably with the names of both.
fn write_marks(path: &Path, marks: &Marks) -> io::Result<()> {
    let mut file = fs::File::create(segment::marks_path(path))?;
    file.write_all(&marks.encode())?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
}

/// Makes the marks of a sound file anew.
fn seal(path: &Path, segment: &Segment) -> io::Result<()> {
    let mut marks = Marks::sealed();
    segment::check_file(path, segment, &mut |seen| {
        if let Seen::Batch { header, batch, .. } = seen {
            marks.add(&header, batch.len());
        }
    })?;
    write_marks(path, &marks)
}

/// Where what is changed is kept: in a folder of this name, in its own data directory.
struct Keep {
    name: String,
    directories: Vec<PathBuf>,
}

impl Keep {
    fn keep(&self, path: &Path) -> io::Result<()> {
        let inside =
            |data: &PathBuf| Some(data.join(&self.name).join(path.strip_prefix(data).ok()?));
        let to = self.directories.iter().find_map(inside);
        let to = to.ok_or_else(|| io::Error::other("it is in no data directory"))?;
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        if path.exists() && !to.exists() {
            // What cannot be read, cannot be kept either.
            let mut file = fs::File::create(&to)?;
            io::copy(&mut Around::open(path)?, &mut file)?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// The folders that something is in.
    fn folders(&self) -> Vec<String> {
        let folders = self.directories.iter().map(|data| data.join(&self.name));
        folders
            .filter(|folder| folder.exists())
            .map(|folder| folder.display().to_string())
            .collect()
    }
}

/// Keeps what will be changed, and changes it: the segments before the journals that name them.
fn mend(keep: &Keep, cores: &[Core], plans: &[Vec<Patch>]) -> io::Result<()> {
    for patch in plans.iter().flatten() {
        keep.keep(&patch.file)?;
    }
    for core in cores {
        let folder = core.segments_folder();
        for mending in &core.segments {
            let old = segment::file_path(&folder, mending.id);
            keep.keep(&old)?;
            keep.keep(&segment::marks_path(&old))?;
            rewrite(&folder, mending)?;
        }
        for (path, segment) in &core.unsealed {
            keep.keep(&segment::marks_path(path))?;
            seal(path, segment)?;
        }
        for (path, pieces) in &core.packs {
            keep.keep(path)?;
            segment::write_directory(path, pieces)?;
        }
    }
    for patch in plans.iter().flatten() {
        patch.apply()?;
    }
    for core in cores {
        let folder = core.segments_folder();
        fs::File::open(&core.folder)?.sync_all()?;
        for mending in &core.segments {
            let old = segment::file_path(&folder, mending.id);
            if mending.old.pack().is_some() {
                continue; // other partitions' segments are in it
            }
            for path in [segment::marks_path(&old), old] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}
