//! `corelog inspect`: a journal or segment file in words, every checksum checked.
//!
//! A group knows its address in the whole journal. Those that stand where an earlier use of the
//! file put them are told as left over; recovery passes over them, and so does the count.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::base::ids::PartitionId;
use crate::client::failure::{Failure, in_words};
use crate::journal::inspect::{Met, walk};
use crate::journal::{Entry, EntryKind, NO_PARTITION};
use crate::metadata;
use crate::metadata::Command;
use crate::partition::Checkpoint;
use crate::segment::{
    Damage, DirectoryFlaw, MarksFlaw, Misplaced, Piece, Seen, Segment, check_file, marks_path,
    named, read_pack, read_seals,
};
use crate::wire::records::{self, BatchHeader};

#[derive(clap::Args)]
pub struct Arguments {
    /// A file of a journal, a segment (.log) or a pack (.pack), in the data directory.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Write JSON, one value a line.
    #[arg(long)]
    json: bool,
}

/// What is in a pack: what is wrong with its directory, each piece, and what is in that.
enum InPack<'a> {
    Flaw(DirectoryFlaw),
    Piece(&'a Piece),
    Seen(Seen<'a>),
}

/// What was met so far.
#[derive(Default)]
struct Totals {
    groups: u64,
    left_over: u64,
    batches: u64,
    records: i64,
    damaged: u64,
    /// Address of the file's first byte, by its first group.
    base: Option<u64>,
    /// Whether the group met last is left over.
    in_left_over: bool,
}

impl Arguments {
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let place = self.file.display();
        let mut totals = Totals::default();
        let mut output = Ok(());
        let mut write = |lines: Vec<String>| {
            for line in lines {
                if output.is_ok() {
                    output = writeln!(out, "{line}");
                }
            }
        };
        let walked = match self.segment() {
            _ if self.is_pack() => self.walk_pack(&mut |met| match met {
                InPack::Seen(seen) => write(totals.see(&seen, self.json)),
                InPack::Piece(piece) => write(vec![piece_words(piece, self.json)]),
                InPack::Flaw(flaw) => write(totals.flaw(flaw, self.json)),
            }),
            Some(found) => found.and_then(|segment| {
                if let Err(flaw) = read_seals(&self.file, &segment)? {
                    write(vec![unsealed_words(&self.file, flaw, self.json)]);
                }
                let mut note = |seen: Seen<'_>| write(totals.see(&seen, self.json));
                check_file(&self.file, &segment, &mut note)
            }),
            None => walk(&self.file, &mut |met| write(totals.meet(&met, self.json))),
        };
        walked.map_err(|error| {
            Failure::Failed(format!("cannot read {place}: {}", in_words(&error)))
        })?;
        output?;
        writeln!(out, "{}", totals.summary(self.json))?;
        if totals.damaged > 0 {
            out.flush()?;
            let count = totals.damaged;
            return Err(Failure::Failed(format!(
                "{place} is damaged at {count} places; what was being written when the node was \
                 killed may be the last of them. `corelog repair --dry-run` tells what is lost"
            )));
        }
        Ok(())
    }
}

impl Arguments {
    fn is_pack(&self) -> bool {
        self.file.extension().is_some_and(|extension| extension == "pack")
    }

    fn walk_pack(&self, visit: &mut dyn FnMut(InPack<'_>)) -> std::io::Result<()> {
        let (pack, flaw) = read_pack(&self.file)?;
        if let Some(flaw) = flaw {
            visit(InPack::Flaw(flaw));
        }
        for piece in &pack.pieces {
            visit(InPack::Piece(piece));
            check_file(&self.file, &pack.segment(piece, 0), &mut |seen| visit(InPack::Seen(seen)))?;
        }
        Ok(())
    }

    /// The segment that the file is, if its name is one of those; how much of it is recorded only
    /// the journal knows.
    fn segment(&self) -> Option<std::io::Result<Segment>> {
        let name = self.file.file_name()?.to_str()?;
        let id = named(NO_PARTITION, name)?;
        Some(std::fs::metadata(&self.file).map(|metadata| Segment {
            base: id.base,
            next: i64::MAX,
            bytes: metadata.len(),
            max_timestamp: -1,
            begun: 0,
            home: id.home,
        }))
    }
}

impl Totals {
    /// The lines that tell of a pack's directory.
    fn flaw(&mut self, flaw: DirectoryFlaw, as_json: bool) -> Vec<String> {
        self.damaged += 1;
        vec![if as_json {
            json!({ "damage": flaw.to_string() }).to_string()
        } else {
            format!(
                "{:>12}  DAMAGED: {flaw}; the node goes by its checkpoints, and `corelog repair` \
                 makes the directory anew from them",
                ""
            )
        }]
    }

    /// The lines that tell of a segment's batch or damage.
    fn see(&mut self, seen: &Seen<'_>, as_json: bool) -> Vec<String> {
        match seen {
            Seen::Batch { position, header, batch } => {
                let detail = batch_detail(header, batch.len());
                self.batches += 1;
                self.records += detail.records;
                vec![if as_json {
                    json!({ "position": position, "batch": detail.json }).to_string()
                } else {
                    format!("{position:>12}  {}", detail.words)
                }]
            }
            Seen::Misplaced(Misplaced { position, found, due, .. }) => {
                self.damaged += 1;
                vec![if as_json {
                    json!({
                        "damage": "the offset is wrong", "position": position, "found": found,
                        "due": due,
                    })
                    .to_string()
                } else {
                    format!(
                        "{position:>12}  DAMAGED: a record batch says that it begins with offset \
                         {found}, where {due} belongs"
                    )
                }]
            }
            Seen::Damage(damage) => {
                self.damaged += 1;
                let Damage { position, bytes, from, before, flaw } = damage;
                let before = (*before != i64::MAX).then_some(*before);
                vec![if as_json {
                    let (flaw, from) = (flaw.to_string(), *from);
                    json!({
                        "damage": flaw, "position": position, "bytes": bytes,
                        "from": from, "before": before,
                    })
                    .to_string()
                } else {
                    let to = before.map_or("on".into(), |before| format!("to before {before}"));
                    format!("{position:>12}  DAMAGED, {bytes} bytes: {flaw}; offsets {from} {to}")
                }]
            }
        }
    }

    /// The lines that tell of it.
    fn meet(&mut self, met: &Met<'_>, as_json: bool) -> Vec<String> {
        match met {
            Met::Group { position, header } => {
                let base = header.address.wrapping_sub(*position);
                self.in_left_over = *self.base.get_or_insert(base) != base;
                *(if self.in_left_over { &mut self.left_over } else { &mut self.groups }) += 1;
                let left_over = if self.in_left_over { ", left over" } else { "" };
                vec![if as_json {
                    json!({
                        "group": header.sequence,
                        "position": position,
                        "address": header.address,
                        "bytes": header.length,
                        "entries": header.entries,
                        "flushed": header.flushed,
                        "journal": format!("{:016x}", header.journal_id),
                        "left_over": self.in_left_over,
                    })
                    .to_string()
                } else {
                    format!(
                        "{position:>12}  group {}: {} bytes at address {}, entries {}, group {} \
                         was flushed, journal {:016x}{left_over}",
                        header.sequence,
                        header.length,
                        header.address,
                        header.entries,
                        header.flushed,
                        header.journal_id,
                    )
                }]
            }
            Met::Entry { entry, position, body } => self.entry(entry, *position, body, as_json),
            Met::Damage { position, flaw } => {
                self.damaged += 1;
                vec![if as_json {
                    json!({ "damage": flaw.to_string(), "position": position }).to_string()
                } else {
                    format!("{position:>12}  DAMAGED: {flaw}")
                }]
            }
            Met::Gap { position, bytes } => vec![if as_json {
                json!({ "gap": bytes, "position": position }).to_string()
            } else {
                format!("{position:>12}  no group in {bytes} bytes")
            }],
        }
    }

    fn entry(&mut self, entry: &Entry, position: u64, body: &[u8], as_json: bool) -> Vec<String> {
        let details = match entry.kind {
            EntryKind::Batches | EntryKind::Carried => batch_details(body),
            EntryKind::Checkpoint => vec![checkpoint_details(body)],
            EntryKind::Metadata => command_details(body),
            EntryKind::LogStart => vec![Detail {
                words: format!("the log starts at offset {}", entry.base_offset),
                json: json!({ "log_start": entry.base_offset }),
                records: 0,
            }],
        };
        let is_records = matches!(entry.kind, EntryKind::Batches | EntryKind::Carried);
        if is_records && !self.in_left_over {
            self.batches += details.len() as u64;
            self.records += details.iter().map(|detail| detail.records).sum::<i64>();
        }
        let whose = of_partition(entry.partition);
        if as_json {
            let details: Vec<Value> = details.into_iter().map(|detail| detail.json).collect();
            let no_partition = entry.partition == NO_PARTITION;
            let row = json!({
                "entry": entry.kind.name(),
                "position": position,
                "topic_number": (!no_partition).then_some(entry.partition.topic.0),
                "partition": (!no_partition).then_some(entry.partition.index),
                "epoch": entry.epoch,
                "bytes": body.len(),
                "contents": details,
            });
            return vec![row.to_string()];
        }
        let (kind, bytes, epoch) = (entry.kind.name(), body.len(), entry.epoch);
        let head = format!("{position:>12}    {kind}{whose}, {bytes} bytes, epoch {epoch}");
        let details = details.into_iter().map(|d| format!("{:>12}      {}", "", d.words));
        std::iter::once(head).chain(details).collect()
    }

    fn summary(&self, as_json: bool) -> String {
        let Totals { groups, left_over, batches, records, damaged, .. } = self;
        if as_json {
            return json!({
                "groups": groups,
                "left_over_groups": left_over,
                "batches": batches,
                "records": records,
                "damaged": damaged,
            })
            .to_string();
        }
        format!(
            "groups {groups}, batches {batches}, records {records}, damaged places {damaged}, \
             left over groups {left_over}"
        )
    }
}

/// One line about a part of an entry.
struct Detail {
    words: String,
    json: Value,
    records: i64,
}

/// Nothing vouches for the offsets in a file.
fn unsealed_words(file: &Path, flaw: MarksFlaw, as_json: bool) -> String {
    let marks = marks_path(file).display().to_string();
    if as_json {
        return json!({ "unverified_offsets": flaw.to_string(), "marks": marks }).to_string();
    }
    format!("{marks}: {flaw}; whether offsets are right cannot be told")
}

/// What a pack's directory says of a piece.
fn piece_words(piece: &Piece, as_json: bool) -> String {
    let Piece { partition, base, next, position, bytes, max_timestamp: _ } = piece;
    if as_json {
        return json!({
            "position": position, "bytes": bytes, "topic": partition.topic.0,
            "partition": partition.index, "base": base, "next": next,
        })
        .to_string();
    }
    format!(
        "{position:>12}  piece of {partition}: offsets {base} to before {next}, {bytes} bytes; \
         positions in it:"
    )
}

fn of_partition(partition: PartitionId) -> String {
    if partition == NO_PARTITION { String::new() } else { format!(" of {partition}") }
}

fn checkpoint_details(body: &[u8]) -> Detail {
    let (words, json) = match Checkpoint::decode(body) {
        Ok(checkpoint) => {
            let Checkpoint { log_start, hot_start, cleaned, .. } = checkpoint;
            let segments = checkpoint.segments();
            let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
            let count = segments.len();
            let words = format!(
                "the log starts at offset {log_start}, {count} segments of {bytes} bytes hold it \
                 to before {hot_start}, compacted to before {cleaned}"
            );
            let json = json!({
                "log_start": log_start,
                "hot_start": hot_start,
                "compacted_before": cleaned,
                "segments": count,
                "segment_bytes": bytes,
            });
            (words, json)
        }
        Err(why) => (why.clone(), json!({ "unreadable": why })),
    };
    Detail { words, json, records: 0 }
}

fn batch_details(body: &[u8]) -> Vec<Detail> {
    records::batches(body).map(|(header, batch)| batch_detail(&header, batch.len())).collect()
}

fn batch_detail(header: &BatchHeader, bytes: usize) -> Detail {
    let codec = header.codec().map_or("unknown", |codec| codec.name());
    let (first, last) = (header.base_offset, header.next_offset() - 1);
    let producer = if header.has_producer() {
        let (id, epoch) = (header.producer_id, header.producer_epoch);
        let (first, last) = (header.base_sequence, header.last_sequence());
        format!(", producer {id} epoch {epoch} sequences {first} to {last}")
    } else {
        String::new()
    };
    Detail {
        words: format!(
            "offsets {first} to {last}, records {}, codec {codec}, {bytes} bytes, times {} to \
             {}{producer}",
            header.count, header.base_timestamp, header.max_timestamp
        ),
        json: json!({
            "first": first,
            "last": last,
            "records": header.count,
            "codec": codec,
            "bytes": bytes,
            "base_timestamp": header.base_timestamp,
            "max_timestamp": header.max_timestamp,
            "producer": header.has_producer().then_some(header.producer_id),
        }),
        records: i64::from(header.count),
    }
}

fn command_details(body: &[u8]) -> Vec<Detail> {
    let detail = |words: String| Detail { json: json!(words), words, records: 0 };
    match metadata::decode(body) {
        Ok(commands) => commands.iter().map(|command| detail(command_words(command))).collect(),
        Err(error) => vec![detail(error.to_string())],
    }
}

fn command_words(command: &Command) -> String {
    let settings = |changes: &[metadata::ConfigChange]| {
        let one = |change: &metadata::ConfigChange| match &change.value {
            Some(value) => format!("{}={value}", change.name),
            None => format!("{} back to its default", change.name),
        };
        changes.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    match command {
        Command::ClusterCreated { cluster_id } => format!("cluster {cluster_id} is founded"),
        Command::TopicCreated { name, number, partitions, configs, .. } => {
            let configs: String =
                configs.iter().map(|(name, value)| format!(", {name}={value}")).collect();
            format!("topic {name} is created, number {number}, partitions {partitions}{configs}")
        }
        Command::TopicDeleted { number } => format!("topic number {number} is deleted"),
        Command::PartitionsAdded { number, partitions } => {
            format!("topic number {number} has {partitions} partitions")
        }
        Command::TopicConfigChanged { number, changes } => {
            format!("topic number {number} is set to {}", settings(changes))
        }
        Command::BrokerConfigChanged { changes } => {
            format!("the node is set to {}", settings(changes))
        }
        Command::ProducerIdsReserved { next } => {
            format!("producer ids below {next} are given out")
        }
        Command::TopicNumbersGiven { next } => format!("topic numbers below {next} are given"),
        Command::LeaderEpochOpened { epoch } => format!("leader epoch {epoch} begins"),
    }
}
