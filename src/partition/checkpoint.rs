//! A partition's state apart from its records, as the journal keeps it: one version byte, then an
//! `rkyv` archive.
//!
//! What is appended last counts, and holds all that was known at that moment: of what stood before
//! it in the journal only the records are still needed.
//!
//! Invariants
//!   K1  A struct of a published version is never changed; a new version is a new struct beside it.
//!   K2  Decoding validates every offset inside the archive before it is followed.

use rkyv::rancor::Error;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::base::ids::Offset;
use crate::producer::{Producers, Remembered};
use crate::segment::Segment;

use super::log::EpochStart;

const VERSION: u8 = 1;

/// See the module's documentation.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub log_start: Offset,
    /// The records from here on are in the journal, those before in the segments.
    pub hot_start: Offset,
    segments: Vec<SegmentV1>,
    epochs: Vec<(i32, i64)>,
    producers: Vec<ProducerV1>,
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
        (log_start, hot_start): (Offset, Offset),
        segments: &[Segment],
        epochs: &[EpochStart],
        producers: &Producers,
    ) -> Checkpoint {
        let segments = segments.iter().map(|segment| {
            let Segment { base, next, bytes, max_timestamp, begun } = *segment;
            SegmentV1 { base, next, bytes, max_timestamp, begun }
        });
        let producers = producers.remembered().into_iter().map(|producer| ProducerV1 {
            id: producer.producer_id,
            epoch: producer.epoch,
            heard: producer.heard,
            batches: producer.batches,
        });
        Checkpoint {
            log_start,
            hot_start,
            segments: segments.collect(),
            epochs: epochs.iter().map(|epoch| (epoch.epoch, epoch.start)).collect(),
            producers: producers.collect(),
        }
    }

    pub fn segments(&self) -> Vec<Segment> {
        let segments = self.segments.iter().map(|segment| {
            let SegmentV1 { base, next, bytes, max_timestamp, begun } = *segment;
            Segment { base, next, bytes, max_timestamp, begun }
        });
        segments.collect()
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
        let archive = rkyv::to_bytes::<Error>(self).map_err(|error| error.to_string())?;
        let mut bytes = Vec::with_capacity(archive.len() + 1);
        bytes.push(VERSION);
        bytes.extend_from_slice(&archive);
        Ok(bytes)
    }

    /// The checkpoint in a journal entry's body, or what is wrong with it.
    pub fn decode(body: &[u8]) -> Result<Checkpoint, String> {
        let (version, archive) = body.split_first().ok_or("a checkpoint is empty")?;
        if *version != VERSION {
            return Err(format!(
                "a checkpoint has version {version}, this program knows up to {VERSION}: start \
                 the newer Corelog that wrote it"
            ));
        }
        // The archive's alignment inside a journal entry is arbitrary.
        let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
        aligned.extend_from_slice(archive);
        let checkpoint = rkyv::from_bytes::<Checkpoint, Error>(&aligned)
            .map_err(|error| format!("a checkpoint is malformed: {error}"))?;
        if checkpoint.is_sound() {
            Ok(checkpoint)
        } else {
            Err("a checkpoint contradicts itself".into())
        }
    }

    fn is_sound(&self) -> bool {
        let mut next = 0;
        let follow = self.segments.iter().all(|segment| {
            let sound = segment.base >= next && segment.next > segment.base && segment.bytes > 0;
            next = segment.next;
            sound
        });
        follow && next <= self.hot_start && self.log_start >= 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::Claim;

    fn some() -> Checkpoint {
        let segment =
            |base| Segment { base, next: base + 10, bytes: 100, max_timestamp: 7, begun: 9 };
        let mut producers = Producers::default();
        let claim = Claim { producer_id: 5, epoch: 1, first_sequence: 0, last_sequence: 9 };
        producers.record(&claim, 10, 77);
        let epochs = [EpochStart { epoch: 1, start: 0 }, EpochStart { epoch: 3, start: 12 }];
        Checkpoint::new((3, 25), &[segment(0), segment(10)], &epochs, &producers)
    }

    #[test]
    fn checkpoints_survive_the_journal() {
        let checkpoint = some();
        let body = checkpoint.encode().expect("encodable");
        assert_eq!(Checkpoint::decode(&body), Ok(checkpoint.clone()));
        let again = Checkpoint::new(
            (3, 25),
            &checkpoint.segments(),
            &checkpoint.epochs(),
            &checkpoint.producers(),
        );
        assert_eq!(again, checkpoint);
    }

    /// Version 1 is on users' disks: these bytes must decode for ever.
    #[test]
    fn the_bytes_of_version_one_are_frozen() {
        let body = some().encode().expect("encodable");
        assert_eq!((body.len(), crc32fast::hash(&body)), (GOLDEN_LENGTH, GOLDEN_CRC));
    }

    const GOLDEN_LENGTH: usize = 201;
    const GOLDEN_CRC: u32 = 1_942_779_931;

    #[test]
    fn damaged_checkpoints_are_refused_or_decode_without_panic() {
        let body = some().encode().expect("encodable");
        assert!(Checkpoint::decode(&[]).is_err());
        assert!(Checkpoint::decode(&[9]).is_err_and(|why| why.contains("version 9")));
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
