//! Looking offsets up: by position, by timestamp, by leader epoch.

use std::borrow::Cow;
use std::io;

use super::log::Place;
use super::read::{ATTEMPTS_MAX, check_epoch};
use super::{Extent, Log, Owner};
use crate::base::ids::{Epoch, Offset, PartitionId};
use crate::base::limits;
use crate::io::Io;
use crate::segment::Segment;
use crate::wire::error::ErrorCode;
use crate::wire::records::{self, BatchHeader, CodecError, HEADER_BYTES, Records};

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

/// The first record of at least `timestamp` that is not below the log start.
fn find_in_batches(bytes: &[u8], timestamp: i64, log_start: Offset) -> io::Result<FoundOffset> {
    for (header, batch) in records::batches(bytes) {
        if header.max_timestamp < timestamp {
            continue;
        }
        let place = header.base_offset.max(log_start);
        let Some(inside) = look_inside(&header, batch)? else {
            // Somewhere in it: whoever begins to read there misses nothing.
            let (timestamp, epoch) = (header.max_timestamp, header.leader_epoch);
            return Ok(FoundOffset { offset: place, timestamp, epoch });
        };
        let found = Records::new(&header, &inside)
            .flatten()
            .find(|record| record.timestamp >= timestamp && record.offset >= log_start);
        if let Some(record) = found {
            return Ok(FoundOffset {
                offset: record.offset,
                timestamp: record.timestamp,
                epoch: header.leader_epoch,
            });
        }
    }
    Ok(FoundOffset::NONE)
}

/// The greatest timestamp of a batch's records from `log_start` on.
fn max_timestamp_from(header: &BatchHeader, batch: &[u8], log_start: Offset) -> io::Result<i64> {
    if header.base_offset >= log_start {
        return Ok(header.max_timestamp);
    }
    let Some(inside) = look_inside(header, batch)? else { return Ok(header.max_timestamp) };
    let left = Records::new(header, &inside).flatten().filter(|one| one.offset >= log_start);
    Ok(left.map(|record| record.timestamp).max().unwrap_or(-1))
}

/// A batch's records, decompressed; none if they are more than is looked at.
fn look_inside<'a>(header: &BatchHeader, batch: &'a [u8]) -> io::Result<Option<Cow<'a, [u8]>>> {
    let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let codec = header.codec().ok_or_else(|| damaged("an unknown codec".into()))?;
    let packed = batch.get(HEADER_BYTES..).unwrap_or_default();
    match records::decompress(codec, packed, limits::LOOKUP_BYTES_MAX) {
        Ok(inside) => Ok(Some(inside)),
        Err(CodecError::TooLarge { .. }) => Ok(None),
        Err(error) => Err(damaged(error.to_string())),
    }
}

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
                greatest = greatest.max(max_timestamp_from(&header, batch, log_start)?);
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
            let found = find_in_batches(&batches, timestamp, log.borrow().log_start())?;
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
        find_in_batches(&bytes, timestamp, log.borrow().log_start())
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
