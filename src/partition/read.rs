//! Fetch on the owner core: from segments, from the journal's files or from memory, as references.
//!
//! Invariants
//!   F1  Only whole batches are given, only settled ones, the first one holding the offset asked
//!       for; the first of all parts in any case, whatever its size (KIP-74).
//!   F2  Bytes that come from a file are given only after every batch's CRC was verified.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::shortage::is_shortage;
use super::unwritten::Room;
use super::watch::Watcher;
use super::{Extent, FetchWatch, Held, Log, Owner};
use crate::base::few::Few;
use crate::base::ids::{Epoch, Offset, PartitionId};
use crate::io::{BLOCK_BYTES, Io};
use crate::journal::{Journal, Location};
use crate::segment::Segment;
use crate::wire::error::ErrorCode;
use crate::wire::records::{self, BatchHeader};

/// Extents that lie this close together are read from the file in one piece.
const GAP_BYTES_MAX: u64 = 16 << 10;
/// How often a read begins again because what it reads was moved.
pub(super) const ATTEMPTS_MAX: u32 = 5;

/// Records that are gathered for one answer.
struct Gathered {
    pieces: Few<Bytes>,
    bytes: usize,
    /// The offset at which it goes on.
    next: Offset,
    bytes_max: usize,
    /// The first batch is given whatever its size.
    at_least_one: bool,
}

impl Gathered {
    /// Bytes that may be added, and whether one batch may be larger.
    fn left(&self) -> (usize, bool) {
        (self.bytes_max.saturating_sub(self.bytes), self.at_least_one && self.bytes == 0)
    }

    fn is_full(&self) -> bool {
        self.left() == (0, false)
    }

    /// So much that nobody waits for another read of the disk first.
    fn is_enough(&self) -> bool {
        self.bytes > 0 && self.bytes >= self.bytes_max / 2
    }

    fn push(&mut self, batches: Bytes, next: Offset) {
        self.bytes += batches.len();
        self.next = next;
        if !batches.is_empty() {
            self.pieces.push(batches);
        }
    }

    /// Adds of an entry's batches those from `next` on that fit; false if one does not.
    fn push_entry(&mut self, extent: &Extent, entry: Bytes) -> bool {
        let wanted = if extent.base < self.next { skip_batches(&entry, self.next) } else { entry };
        let (bytes_max, at_least_one) = self.left();
        let fitting = cut_batches(&wanted, bytes_max, at_least_one);
        let fits = fitting.len() == wanted.len();
        self.push(fitting, extent.next);
        fits
    }
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
    pub records: Few<Bytes>,
    /// Counts the records as long as they are not written.
    pub held: Option<Held>,
    /// There are records, but no memory to read them.
    pub is_short: bool,
    /// They were read from files while somebody writes: sending them must not keep others waiting.
    pub gives_way: bool,
}

impl FetchedPart {
    fn failed(error: ErrorCode) -> FetchedPart {
        let (high_watermark, log_start, records) = (-1, -1, Few::new());
        let (is_short, gives_way) = (false, false);
        let held = None;
        FetchedPart { error, high_watermark, log_start, records, held, is_short, gives_way }
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
    /// Reads the parts in order until `bytes_max` is reached, for a client, who may take what it
    /// gets slowly; later ones come without records.
    pub async fn answer_all(
        self: &Rc<Self>,
        parts: &[FetchPart],
        bytes_max: usize,
    ) -> Few<FetchedPart> {
        let mut left = bytes_max;
        let mut answers = Few::with_capacity(parts.len());
        let mut is_first = true;
        for part in parts {
            let room = self.unwritten.room();
            left = left.min(room.bytes());
            let mut answer = self.read(part, left, is_first && room != Room::Nothing).await;
            is_first &= answer.bytes() == 0 && !answer.is_short;
            // Nor is there memory for the others.
            left = if answer.is_short { 0 } else { left.saturating_sub(answer.bytes()) };
            self.unwritten.hold(&mut answer, room);
            answers.push(answer);
        }
        answers
    }

    /// As `answer_all`; if that is less than `watch` waits for, it is told of all that comes.
    pub async fn answer_or_watch(
        self: &Rc<Self>,
        parts: &[FetchPart],
        bytes_max: usize,
        watch: &Arc<FetchWatch>,
    ) -> Few<FetchedPart> {
        let found = self.answer_all(parts, bytes_max).await;
        let is_met = watch.is_met_by(found.iter().map(FetchedPart::bytes).sum());
        if !is_met && !found.iter().any(FetchedPart::is_error) {
            self.watch_all(parts, Watcher { watch: watch.clone(), core: self.core() });
        }
        found
    }

    /// Registers `watch` with the parts and counts what is there already.
    fn watch_all(&self, parts: &[FetchPart], watch: Watcher) {
        for part in parts {
            let is_unknown = self.image().topic_by_number(part.partition.topic).is_none();
            if is_unknown || self.is_offline() {
                watch.fire();
                continue;
            }
            let Some(log) = self.log_to_write(&self.image(), part.partition) else { continue };
            let mut log = log.borrow_mut();
            let available = log.bytes_available(part.offset, part.bytes_max);
            if watch.add(u32::try_from(available).unwrap_or(u32::MAX)) {
                log.watch(watch.clone());
            }
        }
    }

    /// Reads one part, at most `left` bytes of it, but one batch in any case if it `is_first`.
    pub(super) async fn read(
        self: &Rc<Self>,
        part: &FetchPart,
        left: usize,
        is_first: bool,
    ) -> FetchedPart {
        let (mut answer, log) = match self.locate(part) {
            Ok(found) => found,
            Err(error) => return FetchedPart::failed(error),
        };
        let bytes_max = part.bytes_max.min(left);
        let Some(log) = log.filter(|_| bytes_max > 0 || is_first) else { return answer };
        match self.read_on(&log, part.offset, (bytes_max, is_first)).await {
            Ok((records, gives_way)) => {
                // More may have settled while this was read.
                answer.high_watermark = log.borrow().high_watermark();
                (answer.records, answer.gives_way) = (records, gives_way);
            }
            Err(error) if is_shortage(&error) => {
                self.bear_shortage(part.partition).await;
                answer.is_short = true;
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
        let (records, held) = (Few::new(), None);
        let (error, is_short, gives_way) = (ErrorCode::NONE, false, false);
        let answer =
            FetchedPart { error, high_watermark, log_start, records, held, is_short, gives_way };
        Ok((answer, log.filter(|_| part.offset < high_watermark)))
    }

    /// The batches of a partition from the one that holds `from` on, at most `bytes_max` of them
    /// but one in any case if `at_least_one`. What is moved meanwhile is looked for again.
    pub(super) async fn gather(
        &self,
        log: &Log,
        from: Offset,
        (bytes_max, at_least_one): (usize, bool),
    ) -> std::io::Result<Few<Bytes>> {
        let (pieces, bytes, next) = (Few::new(), 0, from);
        let mut gathered = Gathered { pieces, bytes, next, bytes_max, at_least_one };
        let mut attempts = 0;
        loop {
            if log.borrow().log_start() > gathered.next {
                let gone =
                    || std::io::Error::new(std::io::ErrorKind::NotFound, "deleted meanwhile");
                let pieces = gathered.pieces;
                return if pieces.is_empty() { Err(gone()) } else { Ok(pieces) };
            }
            if gathered.is_full() {
                return Ok(gathered.pieces);
            }
            let moves = log.borrow().moves();
            let segment = log.borrow().segment_from(gathered.next);
            let outcome = match segment {
                Some(segment) => self.read_cold(log, &segment, &mut gathered).await,
                None => self.read_hot(log, &mut gathered).await,
            };
            match outcome {
                Ok(true) => {}
                Ok(false) => return Ok(gathered.pieces),
                // What there is already is given; the next fetch meets the error first.
                Err(_) if gathered.bytes > 0 => return Ok(gathered.pieces),
                Err(error) if log.borrow().moves() == moves || attempts >= ATTEMPTS_MAX => {
                    return Err(error);
                }
                Err(_) => attempts += 1,
            }
        }
    }

    /// Whether to answer with what there is before the disk is read again: while reads rest between
    /// each other, half of what may be given is given at once.
    fn is_time_to_answer(&self, gathered: &Gathered) -> bool {
        self.read_pace.is_beside_writes() && gathered.is_enough()
    }

    /// Adds one stretch of a segment; false if its first batch is too large for what is left, or
    /// if there is enough.
    async fn read_cold(
        &self,
        log: &Log,
        segment: &Segment,
        gathered: &mut Gathered,
    ) -> std::io::Result<bool> {
        let id = segment.id(log.borrow().id());
        let (bytes_max, at_least_one) = gathered.left();
        let span = match self.store.held(id, gathered.next, bytes_max) {
            Some(span) => span,
            None if self.is_time_to_answer(gathered) => return Ok(false),
            None => {
                let span = self.store.read(id, segment, gathered.next, bytes_max).await?;
                self.read_pace.breathe().await;
                span
            }
        };
        let next = span.next;
        let batches = self.with_true_headers(log, segment, span);
        let fits = batches.len() <= bytes_max || at_least_one;
        if fits {
            gathered.push(batches, next);
        }
        Ok(fits)
    }

    /// Adds what is in the journal: all that is in memory, then one stretch of a file; false if
    /// nothing follows that is settled and fits, or if there is enough.
    async fn read_hot(&self, log: &Log, gathered: &mut Gathered) -> std::io::Result<bool> {
        if !self.read_tail(log, gathered) || self.is_time_to_answer(gathered) {
            return Ok(false);
        }
        let bytes_max = gathered.left().0;
        let extents: Vec<Extent> = log.borrow().extents_from(gathered.next, bytes_max).collect();
        for (extent, entry) in self.read_span(log, &extents).await? {
            if !gathered.push_entry(&extent, entry) {
                return Ok(false);
            }
        }
        Ok(!extents.is_empty())
    }

    /// Adds what is in memory; whether an entry follows that is in a file only.
    fn read_tail(&self, log: &Log, gathered: &mut Gathered) -> bool {
        let log = log.borrow();
        for extent in log.extents_from(gathered.next, gathered.left().0) {
            let Some(entry) = self.journal().tail(extent.location) else { return true };
            if !gathered.push_entry(&extent, entry) {
                return false;
            }
        }
        false
    }

    /// Reads the first extents that lie close together with one read of the file.
    async fn read_span(
        &self,
        log: &Log,
        extents: &[Extent],
    ) -> std::io::Result<Vec<(Extent, Bytes)>> {
        let Some(first) = extents.first() else { return Ok(Vec::new()) };
        let start = first.location.address;
        let file_bytes = self.journal().file_bytes();
        // Files are read in whole blocks.
        let aligned = start / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let mut end = start + u64::from(first.location.length);
        let most = self.read_pace.piece_bytes() as u64;
        let mut count = 1;
        for extent in extents.iter().skip(1) {
            let Location { address, length } = extent.location;
            let extended = address + u64::from(length);
            // What was carried on in the journal stands behind what follows it.
            let close = address.checked_sub(end).is_some_and(|gap| gap <= GAP_BYTES_MAX)
                && extended - aligned <= most
                && address / file_bytes == start / file_bytes;
            if !close {
                break;
            }
            end = extended;
            count += 1;
        }
        let length = u32::try_from(end - start).map_err(std::io::Error::other)?;
        let (location, step) = (Location { address: start, length }, self.read_pace.step_bytes());
        let read = self.journal().read(location, step);
        let span = self.read_pace.read(length as usize, read).await?;
        let mut found = Vec::with_capacity(count);
        for extent in extents.iter().take(count) {
            let at = usize::try_from(extent.location.address - start).unwrap_or(usize::MAX);
            let piece = span.slice(at..at + extent.location.length as usize);
            verify(extent, &piece)
                .map_err(|why| damaged_in_journal(self.journal(), extent, &why))?;
            found.push((*extent, self.with_true_epochs(log, piece)));
        }
        self.read_pace.breathe().await;
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
    let piece = journal.read(extent.location, usize::MAX).await?;
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
pub(super) fn cut_pieces(pieces: Few<Bytes>, bytes_max: usize, at_least_one: bool) -> Few<Bytes> {
    let mut cut = Few::with_capacity(pieces.len());
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
