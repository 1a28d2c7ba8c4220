//! A partition's state apart from its records, as the journal keeps it: one version byte, then an
//! `rkyv` archive.
//!
//! What is appended last counts, and holds all that was known at that moment: of what stood before
//! it in the journal only the records are still needed.
//!
//! Version 2 is version 1 with what compaction has done, version 3 is version 2 with the places of
//! segments that share files; each is written only where there is that, so that an older program
//! still opens a node which never did it.
//!
//! Invariants
//!   K1  A struct of a published version is never changed; a new version is a new struct beside it.
//!   K2  Decoding validates every offset inside the archive before it is followed.
//!   K3  The producers in it take at most `PRODUCERS_BYTES_MAX`, and less where journal files are
//!       small (`remember`): a drain writes it anew for every batch of files, and where it does not
//!       fit a file, nothing is drained any more.

use rkyv::rancor::Error;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::base::ids::Offset;
use crate::producer::{PRODUCERS_MAX, Producers, Remembered, WINDOW};
use crate::segment::{Home, Segment};

use super::log::EpochStart;

const VERSION_PLAIN: u8 = 1;
const VERSION_COMPACTED: u8 = 2;
const VERSION: u8 = 3;

const PRODUCERS_BYTES_MAX: usize = 512 << 10;
/// What one producer takes at most.
pub(super) const PRODUCER_BYTES: usize =
    size_of::<ArchivedProducerV1>() + WINDOW * size_of::<rkyv::Archived<(i32, i32, i64)>>();
const _: () = assert!(PRODUCERS_MAX * PRODUCER_BYTES <= PRODUCERS_BYTES_MAX, "K3");

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub log_start: Offset,
    /// The records from here on are in the journal, those before in the segments.
    pub hot_start: Offset,
    /// Compaction has been through everything before.
    pub cleaned: Offset,
    segments: Vec<Segment>,
    epochs: Vec<(i32, i64)>,
    producers: Vec<ProducerV1>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
struct CheckpointV1 {
    log_start: i64,
    hot_start: i64,
    segments: Vec<SegmentV1>,
    epochs: Vec<(i32, i64)>,
    producers: Vec<ProducerV1>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
struct CheckpointV2 {
    plain: CheckpointV1,
    cleaned: i64,
    /// Of the segments, in their order.
    generations: Vec<u32>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
struct CheckpointV3 {
    compacted: CheckpointV2,
    /// Of the segments, in their order: the number of the pack, or 0, and the position in it.
    packs: Vec<(u32, u64)>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
struct SegmentV1 {
    base: i64,
    next: i64,
    bytes: u64,
    max_timestamp: i64,
    begun: i64,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
struct ProducerV1 {
    id: i64,
    epoch: i16,
    heard: i64,
    /// First sequence, last sequence, base offset.
    batches: Vec<(i32, i32, i64)>,
}

impl Checkpoint {
    pub fn new(
        (log_start, hot_start, cleaned): (Offset, Offset, Offset),
        segments: &[Segment],
        epochs: &[EpochStart],
        producers: &Producers,
    ) -> Checkpoint {
        let producers = producers.remembered().into_iter().map(|producer| ProducerV1 {
            id: producer.producer_id,
            epoch: producer.epoch,
            heard: producer.heard,
            batches: producer.batches,
        });
        Checkpoint {
            log_start,
            hot_start,
            cleaned,
            segments: segments.to_vec(),
            epochs: epochs.iter().map(|epoch| (epoch.epoch, epoch.start)).collect(),
            producers: producers.collect(),
        }
    }

    pub fn segments(&self) -> Vec<Segment> {
        self.segments.clone()
    }

    pub fn epochs(&self) -> Vec<EpochStart> {
        self.epochs
            .iter()
            .map(|(epoch, start)| EpochStart { epoch: *epoch, start: *start })
            .collect()
    }

    pub fn producers(&self) -> Producers {
        let mut producers = Producers::default();
        for producer in &self.producers {
            producers.restore(&Remembered {
                producer_id: producer.id,
                epoch: producer.epoch,
                heard: producer.heard,
                batches: producer.batches.clone(),
            });
        }
        producers
    }

    /// The journal form.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let plain = self.plain();
        let generations: Vec<u32> = self.segments.iter().map(Segment::generation).collect();
        let packs: Vec<(u32, u64)> = self.segments.iter().map(pack_of).collect();
        let is_plain = self.cleaned == 0 && generations.iter().all(|generation| *generation == 0);
        let compacted = |plain| CheckpointV2 { plain, cleaned: self.cleaned, generations };
        let (version, archive) = if packs.iter().any(|(number, _)| *number > 0) {
            let whole = CheckpointV3 { compacted: compacted(plain), packs };
            (VERSION, rkyv::to_bytes::<Error>(&whole))
        } else if is_plain {
            (VERSION_PLAIN, rkyv::to_bytes::<Error>(&plain))
        } else {
            (VERSION_COMPACTED, rkyv::to_bytes::<Error>(&compacted(plain)))
        };
        let archive = archive.map_err(|error| error.to_string())?;
        let mut bytes = Vec::with_capacity(archive.len() + 1);
        bytes.push(version);
        bytes.extend_from_slice(&archive);
        Ok(bytes)
    }

    /// The checkpoint in a journal entry's body, or what is wrong with it.
    pub fn decode(body: &[u8]) -> Result<Checkpoint, String> {
        let (version, archive) = body.split_first().ok_or("a checkpoint is empty")?;
        if !(VERSION_PLAIN..=VERSION).contains(version) {
            return Err(format!(
                "a checkpoint has version {version}, this program knows up to {VERSION}: start \
                 the newer Corelog that wrote it"
            ));
        }
        // The archive's alignment inside a journal entry is arbitrary.
        let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
        aligned.extend_from_slice(archive);
        let malformed = |error: Error| format!("a checkpoint is malformed: {error}");
        let mut whole = match *version {
            VERSION_PLAIN => {
                let plain = rkyv::from_bytes::<CheckpointV1, Error>(&aligned).map_err(malformed)?;
                let generations = vec![0; plain.segments.len()];
                let compacted = CheckpointV2 { plain, cleaned: 0, generations };
                CheckpointV3 { compacted, packs: Vec::new() }
            }
            VERSION_COMPACTED => {
                let compacted = rkyv::from_bytes::<CheckpointV2, Error>(&aligned);
                CheckpointV3 { compacted: compacted.map_err(malformed)?, packs: Vec::new() }
            }
            _ => rkyv::from_bytes::<CheckpointV3, Error>(&aligned).map_err(malformed)?,
        };
        let count = whole.compacted.plain.segments.len();
        if *version < VERSION {
            whole.packs = vec![(0, 0); count];
        }
        let is_whole = whole.compacted.generations.len() == count && whole.packs.len() == count;
        let checkpoint = Checkpoint::from(whole);
        if is_whole && checkpoint.is_sound() {
            Ok(checkpoint)
        } else {
            Err("a checkpoint contradicts itself".into())
        }
    }

    fn plain(&self) -> CheckpointV1 {
        let segments = self.segments.iter().map(|segment| {
            let Segment { base, next, bytes, max_timestamp, begun, home: _ } = *segment;
            SegmentV1 { base, next, bytes, max_timestamp, begun }
        });
        CheckpointV1 {
            log_start: self.log_start,
            hot_start: self.hot_start,
            segments: segments.collect(),
            epochs: self.epochs.clone(),
            producers: self.producers.clone(),
        }
    }

    fn is_sound(&self) -> bool {
        let mut next = 0;
        let follow = self.segments.iter().all(|segment| {
            let sound = segment.base >= next && segment.next > segment.base && segment.bytes > 0;
            next = segment.next;
            sound
        });
        follow && next <= self.hot_start && self.log_start >= 0 && self.cleaned >= 0
    }
}

/// The number of the pack that a segment is in, or 0, and its position there.
fn pack_of(segment: &Segment) -> (u32, u64) {
    match segment.home {
        Home::File { .. } => (0, 0),
        Home::Pack { number, position } => (number, position),
    }
}

impl From<CheckpointV3> for Checkpoint {
    fn from(whole: CheckpointV3) -> Checkpoint {
        let CheckpointV3 { compacted: CheckpointV2 { plain, cleaned, generations }, packs } = whole;
        let homes = generations.into_iter().zip(packs).map(|(generation, pack)| match pack {
            (0, _) => Home::File { generation },
            (number, position) => Home::Pack { number, position },
        });
        let segments = plain.segments.iter().zip(homes).map(|(segment, home)| {
            let SegmentV1 { base, next, bytes, max_timestamp, begun } = *segment;
            Segment { base, next, bytes, max_timestamp, begun, home }
        });
        Checkpoint {
            log_start: plain.log_start,
            hot_start: plain.hot_start,
            cleaned,
            segments: segments.collect(),
            epochs: plain.epochs,
            producers: plain.producers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::Claim;

    fn some() -> Checkpoint {
        let segment = |base| Segment {
            base,
            next: base + 10,
            bytes: 100,
            max_timestamp: 7,
            begun: 9,
            home: Home::NEW,
        };
        let mut producers = Producers::default();
        let claim = Claim { producer_id: 5, epoch: 1, first_sequence: 0, last_sequence: 9 };
        producers.record(&claim, 10, 77);
        let epochs = [EpochStart { epoch: 1, start: 0 }, EpochStart { epoch: 3, start: 12 }];
        Checkpoint::new((3, 25, 0), &[segment(0), segment(10)], &epochs, &producers)
    }

    /// As `some`, after compaction.
    fn compacted() -> Checkpoint {
        let mut checkpoint = some();
        checkpoint.cleaned = 10;
        checkpoint.segments[0].home = Home::File { generation: 4 };
        checkpoint
    }

    /// As `compacted`, with a segment in a pack.
    fn packed() -> Checkpoint {
        let mut checkpoint = compacted();
        checkpoint.segments[1].home = Home::Pack { number: 9, position: 70_000 };
        checkpoint
    }

    #[test]
    fn checkpoints_survive_the_journal() {
        let checkpoint = some();
        let body = checkpoint.encode().expect("encodable");
        assert_eq!(Checkpoint::decode(&body), Ok(checkpoint.clone()));
        let again = Checkpoint::new(
            (3, 25, 0),
            &checkpoint.segments(),
            &checkpoint.epochs(),
            &checkpoint.producers(),
        );
        assert_eq!(again, checkpoint);
        for checkpoint in [compacted(), packed()] {
            let body = checkpoint.encode().expect("encodable");
            assert_eq!(Checkpoint::decode(&body), Ok(checkpoint));
        }
    }

    /// A checkpoint of 100,000 producers had eleven megabytes, more than a small journal file.
    #[test]
    fn a_checkpoint_of_all_producers_fits_a_small_journal_file() {
        let mut producers = Producers::default();
        for id in 0..=i64::try_from(PRODUCERS_MAX).expect("small") {
            for batch in 0..i32::try_from(WINDOW).expect("small") {
                let claim = Claim {
                    producer_id: id,
                    epoch: 0,
                    first_sequence: batch,
                    last_sequence: batch,
                };
                producers.record(&claim, i64::from(batch), id);
            }
        }
        let checkpoint = Checkpoint::new((0, 0, 0), &[], &[], &producers);
        let body = checkpoint.encode().expect("encodable");
        assert!(body.len() < PRODUCERS_BYTES_MAX, "{} bytes", body.len());
        let again = Checkpoint::decode(&body).expect("sound").producers();
        assert_eq!(again.remembered(), producers.remembered());
    }

    /// Version 1 is on users' disks: these bytes must decode for ever.
    #[test]
    fn the_bytes_of_version_one_are_frozen() {
        let body = some().encode().expect("encodable");
        assert_eq!((body.len(), crc32fast::hash(&body)), (GOLDEN_LENGTH, GOLDEN_CRC));
    }

    /// So is version 2.
    #[test]
    fn the_bytes_of_version_two_are_frozen() {
        let body = compacted().encode().expect("encodable");
        assert_eq!((body[0], body.len(), crc32fast::hash(&body)), (2, 225, 2_837_697_271));
    }

    /// And version 3.
    #[test]
    fn the_bytes_of_version_three_are_frozen() {
        let body = packed().encode().expect("encodable");
        assert_eq!((body[0], body.len(), crc32fast::hash(&body)), (3, 265, 2_400_357_508));
    }

    const GOLDEN_LENGTH: usize = 201;
    const GOLDEN_CRC: u32 = 1_942_779_931;

    #[test]
    fn damaged_checkpoints_are_refused_or_decode_without_panic() {
        assert!(Checkpoint::decode(&[]).is_err());
        assert!(Checkpoint::decode(&[9]).is_err_and(|why| why.contains("version 9")));
        for body in [some(), compacted(), packed()]
            .map(|checkpoint| checkpoint.encode().expect("encodable"))
        {
            for length in 1..body.len() {
                let _ = Checkpoint::decode(&body[..length]);
            }
            for position in 0..body.len() {
                let mut damaged = body.clone();
                damaged[position] ^= 0x55;
                let _ = Checkpoint::decode(&damaged);
            }
        }
    }
}
