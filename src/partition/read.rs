//! Fetch on the owner core: from segments, from the journal's files or from memory, as references.
//!
//! Invariants
//!   F1  Only whole batches are given, only settled ones, the first one holding the offset asked
//!       for; the first of all parts in any case, whatever its size (KIP-74).
//!   F2  Bytes that come from a file are given only after every batch's CRC was verified.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::{Extent, FetchWatch, Log, Owner};
use crate::base::ids::{Epoch, Offset, PartitionId};
use crate::io::Io;
use crate::journal::{Journal, Location};
use crate::segment::{Segment, Span};
use crate::wire::error::ErrorCode;
use crate::wire::records::{self, BatchHeader};

/// Extents that lie this close together are read from the file in one piece.
const GAP_BYTES_MAX: u64 = 16 << 10;
/// How often a read begins again because what it reads was moved.
pub(super) const ATTEMPTS_MAX: u32 = 5;

/// Where a stretch of records comes from.
enum Source {
    Cold(Segment),
    Hot(Vec<Extent>),
}

/// What a fetch asks of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPart {
    pub partition: PartitionId,
    pub offset: Offset,
    pub bytes_max: usize,
    /// The epoch in which the client believes the leader to be; -1 if it does not say.
    pub leader_epoch: Epoch,
}

/// What one partition answers.
#[derive(Clone, Debug)]
pub struct FetchedPart {
    pub error: ErrorCode,
    pub high_watermark: Offset,
    pub log_start: Offset,
    pub records: Vec<Bytes>,
}

impl FetchedPart {
    fn failed(error: ErrorCode) -> FetchedPart {
        FetchedPart { error, high_watermark: -1, log_start: -1, records: Vec::new() }
    }

    /// The owner core has stopped.
    pub fn owner_gone() -> FetchedPart {
        FetchedPart::failed(ErrorCode::KAFKA_STORAGE_ERROR)
    }

    pub fn bytes(&self) -> usize {
        self.records.iter().map(Bytes::len).sum()
    }

    pub fn is_error(&self) -> bool {
        self.error.is_error()
    }
}

impl<I: Io> Owner<I> {
    /// Reads the parts in order until `bytes_max` is reached; later ones come without records.
    pub async fn read_all(
        self: &Rc<Self>,
        parts: &[FetchPart],
        bytes_max: usize,
    ) -> Vec<FetchedPart> {
        let mut left = bytes_max;
        let mut answers = Vec::with_capacity(parts.len());
        let mut is_first = true;
        for part in parts {
            let answer = self.read(part, left, is_first).await;
            is_first &= answer.bytes() == 0;
            left = left.saturating_sub(answer.bytes());
            answers.push(answer);
        }
        answers
    }

    /// Registers `watch` with the parts and counts what is there already.
    pub fn watch_all(&self, parts: &[FetchPart], watch: &Arc<FetchWatch>) {
        for part in parts {
            let is_unknown = self.image().topic_by_number(part.partition.topic).is_none();
            if is_unknown || self.is_offline() {
                watch.fire();
                continue;
            }
            let Some(log) = self.log_to_write(&self.image(), part.partition) else { continue };
            let mut log = log.borrow_mut();
            log.watch(watch.clone());
            let available = log.bytes_available(part.offset, part.bytes_max);
            watch.add(u32::try_from(available).unwrap_or(u32::MAX));
        }
    }

    async fn read(self: &Rc<Self>, part: &FetchPart, left: usize, is_first: bool) -> FetchedPart {
        let (mut answer, log) = match self.locate(part) {
            Ok(found) => found,
            Err(error) => return FetchedPart::failed(error),
        };
        let bytes_max = part.bytes_max.min(left);
        let Some(log) = log.filter(|_| bytes_max > 0 || is_first) else { return answer };
        match self.read_on(&log, part.offset, (bytes_max, is_first)).await {
            Ok(records) => {
                // More may have settled while this was read.
                answer.high_watermark = log.borrow().high_watermark();
                answer.records = records;
            }
            Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => {
                // The core's budget is spent: an empty answer slows the client down.
                self.ahead.clear();
            }
            Err(_) if log.borrow().log_start() > part.offset => {
                return FetchedPart::failed(ErrorCode::OFFSET_OUT_OF_RANGE);
            }
            Err(error) => {
                self.doubt_directory(&error).await;
                let partition = self.name_of(part.partition);
                self.tell_damage(&format!("{partition} cannot be read: {error}"));
                answer.error = ErrorCode::KAFKA_STORAGE_ERROR;
            }
        }
        answer
    }

    /// The answer without its records, and where to find them, if there are any.
    fn locate(&self, part: &FetchPart) -> Result<(FetchedPart, Option<Log>), ErrorCode> {
        let image = self.image();
        let topic = image.topic_by_number(part.partition.topic);
        if topic.is_none_or(|topic| part.partition.index >= topic.partitions) {
            return Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION);
        }
        self.check_online()?;
        check_epoch(part.leader_epoch, image.leader_epoch())?;
        let log = self.log(part.partition);
        let (log_start, high_watermark) = log.as_ref().map_or((0, 0), |log| {
            let log = log.borrow();
            (log.log_start(), log.high_watermark())
        });
        if !(log_start..=high_watermark).contains(&part.offset) {
            return Err(ErrorCode::OFFSET_OUT_OF_RANGE);
        }
        let answer =
            FetchedPart { error: ErrorCode::NONE, high_watermark, log_start, records: Vec::new() };
        Ok((answer, log.filter(|_| part.offset < high_watermark)))
    }

    /// The batches of a partition from the one that holds `from` on, at most `bytes_max` of them
    /// but one in any case if `at_least_one`. What is moved meanwhile is looked for again.
    pub(super) async fn gather(
        &self,
        log: &Log,
        from: Offset,
        (bytes_max, at_least_one): (usize, bool),
    ) -> std::io::Result<Vec<Bytes>> {
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        let mut attempts = 0;
        loop {
            if log.borrow().log_start() > next {
                let gone =
                    || std::io::Error::new(std::io::ErrorKind::NotFound, "deleted meanwhile");
                return if pieces.is_empty() { Err(gone()) } else { Ok(pieces) };
            }
            let moves = log.borrow().moves();
            let left = (bytes_max.saturating_sub(bytes), at_least_one && bytes == 0);
            let found = match log.borrow().segment_from(next) {
                Some(_) if left.0 == 0 && !left.1 => return Ok(pieces),
                Some(segment) => Source::Cold(segment),
                None => Source::Hot(log.borrow().extents_from(next, left.0)),
            };
            let outcome = match found {
                Source::Cold(segment) => self.read_cold(log, &segment, next, left).await,
                Source::Hot(extents) => {
                    let read = self.collect(log, next, &extents, left).await;
                    read.map(|mut last| {
                        pieces.append(&mut last);
                        None
                    })
                }
            };
            match outcome {
                Ok(None) => return Ok(pieces),
                Ok(Some(span)) => {
                    bytes += span.batches.len();
                    next = span.next;
                    if !span.batches.is_empty() {
                        pieces.push(span.batches);
                    }
                }
                // What there is already is given; the next fetch meets the error first.
                Err(_) if bytes > 0 => return Ok(pieces),
                Err(error) if log.borrow().moves() == moves || attempts >= ATTEMPTS_MAX => {
                    return Err(error);
                }
                Err(_) => attempts += 1,
            }
        }
    }

    /// One stretch of a segment; `None` if its first batch is too large for what is left.
    async fn read_cold(
        &self,
        log: &Log,
        segment: &Segment,
        from: Offset,
        (bytes_max, at_least_one): (usize, bool),
    ) -> std::io::Result<Option<Span>> {
        let id = segment.id(log.borrow().id());
        let Span { batches, next } = self.store.read(id, segment, from, bytes_max).await?;
        let span = Span { batches: self.with_true_epochs(log, batches), next };
        if span.batches.len() > bytes_max && !at_least_one {
            return Ok(None);
        }
        Ok(Some(span))
    }

    /// The batches of `extents` from the one that holds `from` on, at most `bytes_max` of them but
    /// one in any case if `at_least_one`.
    async fn collect(
        &self,
        log: &Log,
        from: Offset,
        extents: &[Extent],
        (bytes_max, at_least_one): (usize, bool),
    ) -> std::io::Result<Vec<Bytes>> {
        let mut pieces: Vec<Bytes> = Vec::with_capacity(extents.len());
        let mut bytes = 0;
        let mut next = 0;
        while let Some(extent) = extents.get(next) {
            let mut run = vec![(*extent, self.journal().tail(extent.location))];
            if run.iter().any(|(_, tail)| tail.is_none()) {
                run = self.read_span(log, &extents[next..]).await?;
            }
            next += run.len();
            for (extent, piece) in run {
                let piece = piece.unwrap_or_default();
                let piece = if extent.base < from { skip_batches(&piece, from) } else { piece };
                let piece = cut_batches(
                    &piece,
                    bytes_max.saturating_sub(bytes),
                    at_least_one && bytes == 0,
                );
                if piece.is_empty() {
                    return Ok(pieces);
                }
                bytes += piece.len();
                pieces.push(piece);
            }
        }
        Ok(pieces)
    }

    /// Reads the first extents that lie close together with one read of the file.
    async fn read_span(
        &self,
        log: &Log,
        extents: &[Extent],
    ) -> std::io::Result<Vec<(Extent, Option<Bytes>)>> {
        let Some(first) = extents.first() else { return Ok(Vec::new()) };
        let start = first.location.address;
        let file_bytes = self.journal().file_bytes();
        let mut end = start + u64::from(first.location.length);
        let most = self.read_pace.piece_bytes() as u64;
        let mut count = 1;
        for extent in extents.iter().skip(1) {
            let Location { address, length } = extent.location;
            let extended = address + u64::from(length);
            // What was carried on in the journal stands behind what follows it.
            let close = address.checked_sub(end).is_some_and(|gap| gap <= GAP_BYTES_MAX)
                && extended - start <= most
                && address / file_bytes == start / file_bytes;
            if !close {
                break;
            }
            end = extended;
            count += 1;
        }
        let length = u32::try_from(end - start).map_err(std::io::Error::other)?;
        let read = self.journal().read(Location { address: start, length });
        let span = self.read_pace.read(length as usize, read).await?;
        let mut found = Vec::with_capacity(count);
        for extent in extents.iter().take(count) {
            let at = usize::try_from(extent.location.address - start).unwrap_or(usize::MAX);
            let piece = span.slice(at..at + extent.location.length as usize);
            verify(extent, &piece)
                .map_err(|why| damaged_in_journal(self.journal(), extent, &why))?;
            found.push((*extent, Some(self.with_true_epochs(log, piece))));
        }
        Ok(found)
    }

    /// Reads one extent whole, for lookups inside it.
    pub(super) async fn read_extent(&self, log: &Log, extent: &Extent) -> std::io::Result<Bytes> {
        match self.journal().tail(extent.location) {
            Some(piece) => Ok(piece),
            None => {
                let piece = read_durable(self.journal(), extent).await?;
                Ok(self.with_true_epochs(log, piece))
            }
        }
    }
}

/// Compares the epoch that a client believes in with the one in force (KIP-320).
pub(super) fn check_epoch(claimed: Epoch, current: Epoch) -> Result<(), ErrorCode> {
    match claimed {
        -1 => Ok(()),
        claimed if claimed < current => Err(ErrorCode::FENCED_LEADER_EPOCH),
        claimed if claimed > current => Err(ErrorCode::UNKNOWN_LEADER_EPOCH),
        _ => Ok(()),
    }
}

/// Reads one extent whole from the journal's files.
pub(super) async fn read_durable<I: Io>(
    journal: &Journal<I>,
    extent: &Extent,
) -> std::io::Result<Bytes> {
    let piece = journal.read(extent.location).await?;
    verify(extent, &piece).map_err(|why| damaged_in_journal(journal, extent, &why))?;
    Ok(piece)
}

fn damaged_in_journal<I: Io>(journal: &Journal<I>, extent: &Extent, why: &str) -> std::io::Error {
    let (path, position) = journal.file_of(extent.location.address);
    let Extent { base, next, .. } = extent;
    let what = format!(
        "{} is damaged behind byte {position}: {why}; it holds offsets {base} to before {next}",
        path.display()
    );
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

fn verify(extent: &Extent, bytes: &[u8]) -> Result<(), String> {
    let mut next = extent.base;
    let mut seen = 0;
    for (header, batch) in records::batches(bytes) {
        if header.base_offset != next || header.crc != records::crc(batch) {
            break;
        }
        next = header.next_offset();
        seen += batch.len();
    }
    if seen == bytes.len() && next == extent.next {
        return Ok(());
    }
    Err(format!("the record batch at offset {next} is wrong"))
}

/// Drops the batches that lie wholly before `from`.
fn skip_batches(bytes: &Bytes, from: Offset) -> Bytes {
    let before: usize = records::batches(bytes)
        .take_while(|(header, _)| header.next_offset() <= from)
        .map(|(_, batch)| batch.len())
        .sum();
    bytes.slice(before..)
}

/// The leading batches of `pieces` that fit `bytes_max`; the first one in any case if
/// `at_least_one`.
pub(super) fn cut_pieces(pieces: Vec<Bytes>, bytes_max: usize, at_least_one: bool) -> Vec<Bytes> {
    let mut cut = Vec::with_capacity(pieces.len());
    let mut bytes = 0;
    for piece in pieces {
        let left = bytes_max.saturating_sub(bytes);
        let whole = cut_batches(&piece, left, at_least_one && bytes == 0);
        let is_last = whole.len() < piece.len();
        bytes += whole.len();
        cut.extend(Some(whole).filter(|whole| !whole.is_empty()));
        if is_last {
            break;
        }
    }
    cut
}

/// The leading batches that fit `bytes_max`; the first one in any case if `at_least_one`.
fn cut_batches(bytes: &Bytes, bytes_max: usize, at_least_one: bool) -> Bytes {
    if bytes.len() <= bytes_max {
        return bytes.clone();
    }
    let mut end = 0;
    while let Some(length) = BatchHeader::read(&bytes[end..]).and_then(|h| h.total_bytes()) {
        let fits = end + length <= bytes_max || (end == 0 && at_least_one);
        if !fits || end + length > bytes.len() {
            break;
        }
        end += length;
    }
    bytes.slice(..end)
}
