//! Looking offsets up: by position, by timestamp, by leader epoch.
//!
//! Invariants
//!   F1  Of all that are looked for by timestamp, and of what is produced, one batch of the core is
//!       unpacked at a time (`prepare`, E2), and others have their turn after each step of it.
//!   F2  Whoever reads from the offset that was found misses no record that was asked for: where a
//!       batch cannot be read to its end, it is there that reading begins.

use std::io;

use super::log::Place;
use super::read::{ATTEMPTS_MAX, check_epoch};
use super::{Extent, Log, Owner};
use crate::base::ids::{Epoch, Offset, PartitionId};
use crate::io::Io;
use crate::segment::Segment;
use crate::wire::error::ErrorCode;
use crate::wire::records::{self, BatchHeader, Codec, HEADER_BYTES, Record, Records, STEP_BYTES};

/// What ListOffsets asks for, as the wire numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetAt {
    Earliest,
    Latest,
    /// The record with the greatest timestamp (KIP-734).
    MaxTimestamp,
    /// The first record at or after a time in Unix milliseconds.
    Timestamp(i64),
    /// The end of what lies in remote storage, where nothing does (KIP-1005).
    LatestTiered,
}

impl OffsetAt {
    pub fn from_wire(timestamp: i64) -> Option<OffsetAt> {
        match timestamp {
            -1 => Some(OffsetAt::Latest),
            // The local log is the whole log (KIP-405).
            -2 | -4 => Some(OffsetAt::Earliest),
            -3 => Some(OffsetAt::MaxTimestamp),
            -5 => Some(OffsetAt::LatestTiered),
            0.. => Some(OffsetAt::Timestamp(timestamp)),
            _ => None,
        }
    }
}

/// An offset, with the timestamp and epoch of its record; -1 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    pub offset: Offset,
    pub timestamp: i64,
    pub epoch: Epoch,
}

impl FoundOffset {
    const NONE: FoundOffset = FoundOffset { offset: -1, timestamp: -1, epoch: -1 };
}

/// Where a leader epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    pub epoch: Epoch,
    pub end: Offset,
}

/// Bytes of a segment that are looked at in one piece.
const LOOK_BYTES: usize = 128 << 10;

impl<I: Io> Owner<I> {
    /// Answers one partition of ListOffsets.
    pub async fn find_offset(
        &self,
        id: PartitionId,
        at: OffsetAt,
        leader_epoch: Epoch,
    ) -> Result<FoundOffset, ErrorCode> {
        self.check_online()?;
        let current = self.leader_epoch();
        check_epoch(leader_epoch, current)?;
        let Some(log) = self.log(id) else {
            return Ok(match at {
                OffsetAt::Earliest | OffsetAt::Latest => {
                    FoundOffset { offset: 0, timestamp: -1, epoch: current }
                }
                _ => FoundOffset::NONE,
            });
        };
        let plain = |offset| FoundOffset { offset, timestamp: -1, epoch: current };
        let found = match at {
            OffsetAt::Earliest => return Ok(plain(log.borrow().log_start())),
            OffsetAt::Latest => return Ok(plain(log.borrow().high_watermark())),
            OffsetAt::LatestTiered => return Ok(FoundOffset::NONE),
            OffsetAt::MaxTimestamp => self.find_max_timestamp(&log).await,
            OffsetAt::Timestamp(timestamp) => self.find_timestamp(&log, timestamp).await,
        };
        let error = match found {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        self.doubt_directory(&error).await;
        tracing::error!("cannot look into {id} for {at:?}: {error}");
        Err(match error.kind() {
            io::ErrorKind::InvalidData => ErrorCode::CORRUPT_MESSAGE,
            _ => ErrorCode::KAFKA_STORAGE_ERROR,
        })
    }

    /// The first record of at least `timestamp`. A place whose newest records are deleted may hold
    /// none; what is moved meanwhile is looked for again.
    async fn find_timestamp(&self, log: &Log, timestamp: i64) -> io::Result<FoundOffset> {
        let mut from = 0;
        let mut attempts = 0;
        loop {
            let place = log.borrow().place_at_timestamp(timestamp, from);
            let Some(place) = place else { return Ok(FoundOffset::NONE) };
            let moves = log.borrow().moves();
            let found = match place {
                Place::Cold(segment) => self.find_in_segment(log, &segment, timestamp).await,
                Place::Hot(extent) => self.find_in_extent(log, &extent, timestamp).await,
            };
            match found {
                Ok(FoundOffset::NONE) => from = place.next(),
                Ok(found) => return Ok(found),
                Err(_) if log.borrow().moves() != moves && attempts < ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The record with the greatest timestamp. What the first place says of its own may hold for
    /// records only that are deleted: then it is gone through.
    async fn find_max_timestamp(&self, log: &Log) -> io::Result<FoundOffset> {
        let place = log.borrow().place_of_max_timestamp();
        let Some(place) = place.filter(|place| place.max_timestamp() >= 0) else {
            return Ok(FoundOffset::NONE);
        };
        let found = self.find_timestamp(log, place.max_timestamp()).await?;
        if found != FoundOffset::NONE {
            return Ok(found);
        }
        let log_start = log.borrow().log_start();
        let mut greatest = log.borrow().max_timestamp_behind(place.next()).unwrap_or(-1);
        let mut from = log_start;
        while from < place.next() {
            let pieces = self.gather(log, from, (LOOK_BYTES, true)).await?;
            let before = from;
            for (header, batch) in pieces.iter().flat_map(|piece| records::batches(piece)) {
                let told = self.max_timestamp_from(&header, batch, log_start).await?;
                greatest = greatest.max(told);
                from = from.max(header.next_offset());
            }
            if from == before {
                break;
            }
        }
        self.find_timestamp(log, greatest.max(0)).await
    }

    async fn find_in_segment(
        &self,
        log: &Log,
        segment: &Segment,
        timestamp: i64,
    ) -> io::Result<FoundOffset> {
        let id = segment.id(log.borrow().id());
        let Some(mut from) = self.store.look_from(id, segment, timestamp).await? else {
            return Ok(FoundOffset::NONE);
        };
        while from < segment.next {
            let span = self.store.read(id, segment, from, LOOK_BYTES).await?;
            from = span.next;
            let batches = self.with_true_headers(log, segment, span);
            let found = self.find_in_batches(log, &batches, timestamp).await?;
            if found != FoundOffset::NONE {
                return Ok(found);
            }
        }
        Ok(FoundOffset::NONE)
    }

    async fn find_in_extent(
        &self,
        log: &Log,
        extent: &Extent,
        timestamp: i64,
    ) -> io::Result<FoundOffset> {
        let bytes = match self.read_extent(log, extent).await {
            Ok(bytes) => bytes,
            // It was moved meanwhile: what it holds is the same elsewhere.
            Err(error) => {
                let from = extent.base.max(log.borrow().log_start());
                match self.gather(log, from, (0, true)).await? {
                    pieces if pieces.is_empty() => return Err(error),
                    pieces => pieces.concat().into(),
                }
            }
        };
        self.find_in_batches(log, &bytes, timestamp).await
    }

    /// The first record of at least `timestamp` that is not below the log start.
    async fn find_in_batches(
        &self,
        log: &Log,
        bytes: &[u8],
        timestamp: i64,
    ) -> io::Result<FoundOffset> {
        let log_start = log.borrow().log_start();
        for (header, batch) in records::batches(bytes) {
            if header.max_timestamp < timestamp || header.next_offset() <= log_start {
                continue;
            }
            let epoch = header.leader_epoch;
            let mut found = None;
            let look = |record: &Record<'_>| {
                let is_it = record.timestamp >= timestamp && record.offset >= log_start;
                found = is_it.then_some((record.offset, record.timestamp));
                is_it
            };
            let unseen = self.look_inside(&header, batch, look).await?;
            if let Some((offset, timestamp)) = found {
                return Ok(FoundOffset { offset, timestamp, epoch });
            }
            if let Some(from) = unseen {
                // Somewhere from there on: whoever begins to read there misses nothing.
                let (offset, timestamp) = (from.max(log_start), header.max_timestamp);
                return Ok(FoundOffset { offset, timestamp, epoch });
            }
        }
        Ok(FoundOffset::NONE)
    }

    /// The greatest timestamp of a batch's records from `log_start` on.
    async fn max_timestamp_from(
        &self,
        header: &BatchHeader,
        batch: &[u8],
        log_start: Offset,
    ) -> io::Result<i64> {
        if header.base_offset >= log_start {
            return Ok(header.max_timestamp);
        }
        let mut greatest = -1;
        let look = |record: &Record<'_>| {
            let counts = record.offset >= log_start;
            greatest = greatest.max(if counts { record.timestamp } else { -1 });
            false
        };
        let unseen = self.look_inside(header, batch, look).await?;
        Ok(if unseen.is_some() { header.max_timestamp } else { greatest })
    }

    /// Shows a batch's records to `look` until that has seen enough. The first offset that was not
    /// seen, where the batch holds more than is looked at, or what no consumer can read either: a
    /// compressed batch is taken without a look inside.
    async fn look_inside(
        &self,
        header: &BatchHeader,
        batch: &[u8],
        mut look: impl FnMut(&Record<'_>) -> bool,
    ) -> io::Result<Option<Offset>> {
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, "an unknown codec");
        let codec = header.codec().ok_or_else(unknown)?;
        self.io.cede().await;
        let (_turn, unpacked);
        let inside = match codec {
            Codec::None => batch.get(HEADER_BYTES..).unwrap_or_default(),
            _ => {
                _turn = self.opening.turn().await;
                match self.unpack(codec, batch).await {
                    Ok(inside) => unpacked = inside,
                    Err(_) => return Ok(Some(header.base_offset)),
                }
                unpacked.as_slice()
            }
        };
        let mut unseen = header.base_offset;
        let mut records = Records::new(header, inside);
        let mut left = inside.len();
        while let Some(record) = records.next() {
            let offsets = unseen..header.next_offset();
            let Some(record) = record.ok().filter(|one| offsets.contains(&one.offset)) else {
                return Ok(Some(unseen));
            };
            if look(&record) {
                return Ok(None);
            }
            unseen = record.offset + 1;
            if left - records.remaining() >= STEP_BYTES {
                left = records.remaining();
                self.io.cede().await;
            }
        }
        Ok(None)
    }

    /// Answers one partition of OffsetForLeaderEpoch.
    pub fn epoch_end(
        &self,
        id: PartitionId,
        epoch: Epoch,
        leader_epoch: Epoch,
    ) -> Result<EpochEnd, ErrorCode> {
        self.check_online()?;
        let current = self.leader_epoch();
        check_epoch(leader_epoch, current)?;
        let found = match self.log(id) {
            Some(log) => log.borrow().epoch_end(epoch, current),
            None => (0..=current).contains(&epoch).then_some((epoch, 0)),
        };
        let (epoch, end) = found.unwrap_or((-1, -1));
        Ok(EpochEnd { epoch, end })
    }

    /// Answers one partition of DeleteRecords: everything before `before` (-1 for the high
    /// watermark) goes. Returns the new log start once that is durable.
    pub async fn delete_records(
        &self,
        id: PartitionId,
        before: Offset,
    ) -> Result<Offset, ErrorCode> {
        self.check_online()?;
        let image = self.image();
        let topic = image.topic_by_number(id.topic);
        let topic = topic.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        let config = self.topic_config(topic);
        // Of a topic that is only compacted, each key's newest record is there to stay.
        if config.is_compacted && !config.is_deleted {
            return Err(ErrorCode::POLICY_VIOLATION);
        }
        let log = self.log_to_write(&image, id);
        let log = log.ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)?;
        let high_watermark = log.borrow().high_watermark();
        let before = if before == -1 { high_watermark } else { before };
        if before < 0 || before > high_watermark {
            return Err(ErrorCode::OFFSET_OUT_OF_RANGE);
        }
        if before <= log.borrow().log_start() {
            return Ok(log.borrow().log_start());
        }
        self.raise_log_start(&log, before).await?;
        let log_start = log.borrow().log_start();
        Ok(log_start)
    }
}
