//! Reading from a segment: whole, verified batches from the one that holds an offset.
//!
//! What a sparse segment's seals vouch for is read from mark to mark, so that they can be verified;
//! one wrong offset between two marks is put right in what is given out, and told.

use std::io;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::marks::{Marks, MarksFlaw};
use super::seal::{Misplaced, Wrong};
use super::spans::Stretch;
use super::{Flaw, Segment, SegmentId, Store};
use crate::base::ids::Offset;
use crate::io::pace::ReadPace;
use crate::io::{BLOCK_BYTES, File, Io, OpenHow};
use crate::wire::records::{self, BatchHeader, HEADER_BYTES};

/// The least and the most that is read from a file at a time, but for a larger batch.
const READ_BYTES_MIN: usize = 64 << 10;
const READ_BYTES_MAX: usize = 1 << 20;
/// Segments of which it is remembered that they were told to have lost their marks.
const UNSEALED_MAX: usize = 4096;

/// Batches back to back.
#[derive(Clone, Debug)]
pub struct Span {
    pub batches: Bytes,
    /// One past the last record's offset.
    pub next: Offset,
    /// Batches that stand in the file with wrong offsets, near those that are given with the right
    /// ones.
    pub misplaced: Vec<Misplaced>,
}

impl Span {
    /// The leading batches within `bytes_max`.
    fn up_to(self, bytes_max: usize) -> Span {
        if self.batches.len() <= bytes_max {
            return self;
        }
        let (mut length, mut next) = (0, self.next);
        for (header, batch) in records::batches(&self.batches) {
            if length + batch.len() > bytes_max {
                break;
            }
            length += batch.len();
            next = header.next_offset();
        }
        Span { batches: self.batches.slice(..length), next, ..self }
    }
}

/// What vouches for a segment's offsets, and what it has found.
#[derive(Default)]
pub(super) struct Sealed {
    pub marks: Option<Rc<Marks>>,
    pub misplaced: Vec<Misplaced>,
}

impl Sealed {
    /// Bytes of a read from `position` on, `least` of them in any case, so that it ends with a
    /// stretch.
    fn reach(&self, position: u64, (least, wanted): (usize, usize)) -> usize {
        let Some(marks) = &self.marks else { return wanted };
        let end = marks.reach(position, (least as u64, wanted as u64));
        usize::try_from(end - position).unwrap_or(usize::MAX)
    }

    /// What was read from `position` on, with the right offsets, up to a stretch of which nobody
    /// knows them.
    fn verify(&mut self, position: u64, window: Bytes) -> Bytes {
        let Some(marks) = &self.marks else { return window };
        let mut end = window.len();
        for wrong in marks.judge(position, &window) {
            match wrong {
                Wrong::One(one) if self.misplaced.contains(&one) => {}
                Wrong::One(one) => self.misplaced.push(one),
                Wrong::Several { position: from, .. } => {
                    end = end.min(usize::try_from(from - position).unwrap_or(0));
                }
            }
        }
        if self.misplaced.is_empty() {
            return window.slice(..end);
        }
        let mut mended = BytesMut::from(&window[..end]);
        self.misplaced.iter().for_each(|one| one.mend(position, &mut mended));
        mended.freeze()
    }
}

impl<I: Io> Store<I> {
    /// Has what readers ask for read at this pace from here on.
    pub fn set_read_pace(&self, pace: Rc<ReadPace<I>>) {
        let _ = self.read_pace.set(pace);
    }

    /// Batches from the one that holds `from`, or the next one behind it, up to `bytes_max`; one in
    /// any case, unless the segment ends before `from`.
    pub async fn read(
        &self,
        id: SegmentId,
        segment: &Segment,
        from: Offset,
        bytes_max: usize,
    ) -> io::Result<Span> {
        if let Some(span) = self.held(id, from, bytes_max) {
            return Ok(span);
        }
        let place = self.spans.borrow_mut().stand(id);
        place.come().await;
        match self.held(id, from, bytes_max) {
            Some(span) => Ok(span),
            None => match self.read_anew(id, segment, from, bytes_max).await {
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                    self.spans.borrow_mut().clear();
                    self.read_file(id, segment, from, bytes_max).await
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    // It has become shorter since it was opened; what is left of it is served.
                    self.cache.borrow_mut().forget(id.file_key());
                    self.read_file(id, segment, from, bytes_max).await
                }
                outcome => outcome,
            },
        }
    }

    /// From where the read before ended, or from where a batch begins.
    async fn read_anew(
        &self,
        id: SegmentId,
        segment: &Segment,
        from: Offset,
        bytes_max: usize,
    ) -> io::Result<Span> {
        match self.read_behind(id, segment, from, bytes_max).await? {
            Some(span) => Ok(span),
            None => self.read_file(id, segment, from, bytes_max).await,
        }
    }

    /// What was read lately.
    pub fn held(&self, id: SegmentId, from: Offset, bytes_max: usize) -> Option<Span> {
        let (batches, next) = self.spans.borrow_mut().find(id, from, bytes_max)?;
        Some(Span { batches, next, misplaced: Vec::new() })
    }

    /// As `read`, from the file whatever was read of it before.
    pub async fn read_file(
        &self,
        id: SegmentId,
        segment: &Segment,
        from: Offset,
        bytes_max: usize,
    ) -> io::Result<Span> {
        let (file, end) = self.file_with(id, segment.bytes).await?;
        let mut sealed = Sealed { marks: self.seals(id, segment).await?, ..Sealed::default() };
        let (mut position, next) = match &sealed.marks {
            Some(marks) => begin_at(marks, segment, from),
            None => self.begin(id, segment, from).await?,
        };
        let mut due = Due::new(segment, next);
        let (mut least, mut wanted) = (1, self.window_bytes(bytes_max));
        let start = segment.start();
        while position < end {
            let most = within(start + position, wanted).max(least);
            let length = sealed.reach(position, (least, most));
            let window = self.read_paced(&file, start + position, length, start + end).await?;
            let window = sealed.verify(position, window);
            if window.is_empty() {
                return Err(self.damaged(id, position, Flaw::Offsets.words()));
            }
            let skipped = due.skip(&window, from);
            let found = window.slice(skipped..);
            position += skipped as u64;
            if skipped > 0 && found.len() < HEADER_BYTES {
                continue;
            }
            let left = (end - position).min(self.batch_bytes_max());
            let outcome = match due.whole_batch(&found, left) {
                // What was read for this batch is cut before it where its offset is unknown.
                Ok(bytes) if bytes > found.len() && (skipped > 0 || bytes > least) => {
                    let begun = ((from, due.next), (position, found));
                    if let Some(span) = self.read_cut(id, segment, begun, bytes_max).await? {
                        return Ok(span);
                    }
                    (least, wanted) = (bytes, wanted.max(bytes));
                    continue;
                }
                Ok(bytes) => due.take_verified(&found).map(|taken| (bytes, taken)),
                Err(why) => Err(why),
            };
            match outcome {
                Ok((first, (length, next))) => {
                    let misplaced = std::mem::take(&mut sealed.misplaced);
                    let whole = Span { batches: found.slice(..length), next, misplaced };
                    self.hold_found((id, segment, from), position, &whole, (&found, window.len()));
                    let span = whole.up_to(bytes_max.max(first));
                    let behind = position + span.batches.len() as u64;
                    self.cache.borrow_mut().hint(id, span.next, behind);
                    return Ok(span);
                }
                Err(why) => {
                    // What is damaged may lie before the offset that is wanted.
                    let sound = self.next_sound(&file, segment, (position, &due), &sealed).await?;
                    let sound = sound.filter(|(place, base)| *place > position && *base <= from);
                    let damaged = || self.damaged(id, position, why);
                    (position, due.next) = sound.ok_or_else(damaged)?;
                    least = 1;
                }
            }
        }
        if end < segment.bytes {
            return Err(self.damaged(id, end, "the file ends before its last record"));
        }
        let misplaced = sealed.misplaced;
        Ok(Span { batches: Bytes::new(), next: segment.next, misplaced })
    }

    /// Holds the whole batches that were found at a position in a window of so many bytes, and the
    /// beginning of the one behind them.
    fn hold_found(
        &self,
        (id, segment, from): (SegmentId, &Segment, Offset),
        position: u64,
        whole: &Span,
        (found, bytes): (&Bytes, usize),
    ) {
        let (batches, next) = (whole.batches.clone(), whole.next);
        self.cache.borrow_mut().hint(id, next, position + batches.len() as u64);
        // What seals vouch for ends with a batch.
        let end = if segment.is_sparse() { found.len() } else { batches.len() };
        let rest = found.slice(end..);
        self.spans.borrow_mut().hold((id, from), Stretch { batches, next, rest, bytes });
    }

    /// What is read from a file at a time for `bytes_max`, but for a larger batch.
    pub(super) fn window_bytes(&self, bytes_max: usize) -> usize {
        let pace = self.read_pace.get();
        let most = pace.map_or(READ_BYTES_MAX, |pace| pace.piece_bytes().min(READ_BYTES_MAX));
        bytes_max.clamp(READ_BYTES_MIN, most)
    }

    /// As `read_range`, at the readers' pace.
    pub(super) async fn read_paced(
        &self,
        file: &I::File,
        position: u64,
        wanted: usize,
        end: u64,
    ) -> io::Result<Bytes> {
        let left = usize::try_from(end - position).unwrap_or(usize::MAX);
        match self.read_pace.get() {
            Some(pace) => {
                let read = read_steps(file, (position, wanted, end), pace.step_bytes());
                pace.read(wanted.min(left), read).await
            }
            None => read_range(file, position, wanted, end).await,
        }
    }

    /// The file, and how many of its recorded bytes are there: all, unless it is damaged.
    pub(super) async fn file_with(
        &self,
        id: SegmentId,
        recorded: u64,
    ) -> io::Result<(Rc<I::File>, u64)> {
        let mut file = self.file(id).await?;
        if file.len() < id.start() + recorded {
            // It may have been opened while it was shorter.
            self.cache.borrow_mut().forget(id.file_key());
            file = self.file(id).await?;
        }
        let end = file.len().saturating_sub(id.start()).min(recorded);
        Ok((file, end))
    }

    /// The offset from which to look for a record of at least `timestamp`; `None` if no batch of
    /// the segment has one.
    pub async fn look_from(
        &self,
        id: SegmentId,
        segment: &Segment,
        timestamp: i64,
    ) -> io::Result<Option<Offset>> {
        if id.is_packed() {
            // It is short.
            return Ok((segment.max_timestamp >= timestamp).then_some(segment.base));
        }
        let marks = self.marks(id, segment).await?;
        Ok(marks.at_timestamp(timestamp).map(|mark| mark.offset))
    }

    /// The file, opened if it is not.
    pub(super) async fn file(&self, id: SegmentId) -> io::Result<Rc<I::File>> {
        if let Some(file) = self.cache.borrow_mut().file(id) {
            return Ok(file);
        }
        let path = self.path(id);
        let file = self.io.open(&path, OpenHow::Existing).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display()))
        })?;
        let mut cache = self.cache.borrow_mut();
        // Somebody else may have been faster, and have written to it since.
        if let Some(known) = cache.file(id) {
            return Ok(known);
        }
        let file = Rc::new(file);
        cache.hold(id, file.clone());
        Ok(file)
    }

    /// Where to begin reading for `from`, and the offset that comes there.
    async fn begin(
        &self,
        id: SegmentId,
        segment: &Segment,
        from: Offset,
    ) -> io::Result<(u64, Offset)> {
        if from <= segment.base {
            return Ok((0, segment.base));
        }
        let hint = self.cache.borrow().hinted(id, from);
        if let Some(position) = hint {
            return Ok((position, from));
        }
        if id.is_packed() {
            return Ok((0, segment.base));
        }
        Ok(begin_at(&*self.marks(id, segment).await?, segment, from))
    }

    /// Bytes of a batch at most: what a damaged length says is not waited for.
    pub(super) fn batch_bytes_max(&self) -> u64 {
        self.arena.budget() as u64 / 2
    }

    /// The marks of a segment whose offsets they vouch for.
    pub async fn seals(&self, id: SegmentId, segment: &Segment) -> io::Result<Option<Rc<Marks>>> {
        if !segment.is_sparse() {
            return Ok(None);
        }
        Ok(Some(self.marks(id, segment).await?).filter(|marks| marks.is_sealed()))
    }

    /// The marks of all of the segment: those in memory, those of its file, or made anew.
    async fn marks(&self, id: SegmentId, segment: &Segment) -> io::Result<Rc<Marks>> {
        let known = self.cache.borrow().marks(id);
        let mut marks = match known {
            Some(marks) if marks.covered() >= segment.bytes => return Ok(marks),
            Some(marks) => marks,
            None => Rc::new(self.read_marks(id, segment).await?.unwrap_or_default()),
        };
        if marks.covered() < segment.bytes {
            let grown = Rc::make_mut(&mut marks);
            self.scan(id, segment, grown).await?;
        }
        // The file may have been closed meanwhile; the marks are kept with it.
        self.file(id).await?;
        self.cache.borrow_mut().hold_marks(id, marks.clone());
        Ok(marks)
    }

    /// The marks in their file, if they are those of this segment. It is told if they are not, and
    /// if those of a sparse one are missing.
    async fn read_marks(&self, id: SegmentId, segment: &Segment) -> io::Result<Option<Marks>> {
        let why = match self.marks_file(id).await {
            Ok(bytes) => match Marks::decode_of(&bytes, segment.bytes) {
                Ok(marks) => return Ok(Some(marks)),
                Err(flaw) => flaw.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(error),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !segment.is_sparse() {
                    return Ok(None);
                }
                // Both go together, the segment first.
                self.io.open(&self.path(id), OpenHow::Existing).await?;
                MarksFlaw::Missing.to_string()
            }
            Err(error) => error.to_string(),
        };
        if segment.is_sparse() {
            self.tell_unsealed(id, segment, &why);
        } else {
            tracing::warn!("{} is made anew: {why}", self.marks_path(id).display());
        }
        Ok(None)
    }

    /// The bytes of a segment's marks, as they are.
    pub(super) async fn marks_file(&self, id: SegmentId) -> io::Result<Bytes> {
        let file = self.io.open(&self.marks_path(id), OpenHow::Existing).await?;
        let length = usize::try_from(file.len()).map_err(io::Error::other)?;
        Ok(file.read_at(0, length.next_multiple_of(BLOCK_BYTES)).await?.freeze())
    }

    /// Tells once that nothing vouches for a sparse segment's offsets any more.
    fn tell_unsealed(&self, id: SegmentId, segment: &Segment, why: &str) {
        let mut unsealed = self.unsealed.borrow_mut();
        if unsealed.contains(&id) {
            return;
        }
        if unsealed.len() < UNSEALED_MAX {
            unsealed.insert(id);
        }
        let Segment { base, next, .. } = segment;
        tracing::error!(
            "{}: {why}. It is made anew and no record is lost, but should an offset change in {}, \
             which holds offsets {base} to before {next} of {}, nobody will notice. Stop the node \
             and put back a copy, or run `corelog repair`, which takes the file's word for it",
            self.marks_path(id).display(),
            self.path(id).display(),
            id.partition
        );
    }

    /// Reads the headers of what the marks do not cover.
    async fn scan(&self, id: SegmentId, segment: &Segment, marks: &mut Marks) -> io::Result<()> {
        debug_assert!(!marks.is_sealed(), "what is read vouches for nothing");
        let (file, end) = self.file_with(id, segment.bytes).await?;
        let (mut least, wanted) = (1, READ_BYTES_MAX);
        let mut due = Due::new(segment, marks.next().unwrap_or(segment.base));
        let is_dense = due.is_dense;
        // Marks do not say what comes at their end.
        due.is_dense &= marks.covered() == 0;
        while marks.covered() < end {
            let position = marks.covered();
            let length = within(position, wanted).max(least);
            let window = read_range(&*file, position, length, end).await?;
            for (header, batch) in records::batches(&window) {
                if !due.is_sound(&header, batch) {
                    break;
                }
                marks.add(&header, batch.len());
                (due.next, due.is_dense) = (header.next_offset(), is_dense);
            }
            if marks.covered() == position {
                let left = (end - position).min(self.batch_bytes_max());
                let bytes = due.whole_batch(&window, left).unwrap_or(0);
                if bytes <= window.len() {
                    // Reads that begin there meet it; the others begin behind it.
                    let place = (position, &due);
                    let sound = self.next_sound(&file, segment, place, &Sealed::default()).await?;
                    marks.pass(sound, segment.bytes);
                    due.next = sound.map_or(due.next, |(_, next)| next);
                    continue;
                }
                least = bytes;
            } else {
                least = 1;
            }
            self.io.cede().await;
        }
        if end < segment.bytes {
            marks.pass(None, segment.bytes);
        }
        Ok(())
    }

    fn damaged(&self, id: SegmentId, position: u64, why: &str) -> io::Error {
        let position = position + id.start();
        let what = format!("{why} (byte {position} of {})", self.path(id).display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    }
}

/// Where to begin for `from` by the marks, and the offset that comes there.
fn begin_at(marks: &Marks, segment: &Segment, from: Offset) -> (u64, Offset) {
    let mark = marks.at(from).filter(|mark| (segment.base..=from).contains(&mark.offset));
    mark.map_or((0, segment.base), |mark| (mark.position, mark.offset))
}

/// The most that is read from `position` on with a buffer of `wanted` bytes: files are read in
/// whole blocks, and one block more would take a buffer of twice the size.
pub(super) fn within(position: u64, wanted: usize) -> usize {
    let skipped = usize::try_from(position % BLOCK_BYTES as u64).unwrap_or(0);
    wanted.saturating_sub(skipped)
}

/// `wanted` bytes from `position` on, or as many as there are before `end`.
pub(super) async fn read_range<F: File>(
    file: &F,
    position: u64,
    wanted: usize,
    end: u64,
) -> io::Result<Bytes> {
    read_steps(file, (position, wanted, end), usize::MAX).await
}

/// The same, with at most `step` bytes asked of the device at a time.
async fn read_steps<F: File>(
    file: &F,
    (position, wanted, end): (u64, usize, u64),
    step: usize,
) -> io::Result<Bytes> {
    let block = BLOCK_BYTES as u64;
    let start = position / block * block;
    let stop = end.min(position + wanted as u64);
    let length =
        usize::try_from((stop - start).next_multiple_of(block)).map_err(io::Error::other)?;
    let buffer = file.read_in_steps(start, length, step).await?.freeze();
    let at = |place: u64| usize::try_from(place - start).unwrap_or(usize::MAX);
    Ok(buffer.slice(at(position)..at(stop)))
}

/// Which batch may come next: no checksum covers a batch's offset and length, so they must go on
/// from what was there before.
pub(super) struct Due {
    pub next: Offset,
    /// One past the segment's last offset.
    last: Offset,
    /// No offset is left out.
    pub is_dense: bool,
}

impl Due {
    pub(super) fn new(segment: &Segment, next: Offset) -> Due {
        Due { next, last: segment.next, is_dense: !segment.is_sparse() }
    }

    fn fits(&self, header: &BatchHeader) -> bool {
        let goes_on = match self.is_dense {
            true => header.base_offset == self.next,
            false => header.base_offset >= self.next,
        };
        let is_within = header.last_offset_delta >= 0 && header.next_offset() <= self.last;
        header.magic == 2 && goes_on && is_within
    }

    fn is_sound(&self, header: &BatchHeader, batch: &[u8]) -> bool {
        self.fits(header) && header.crc == records::crc(batch)
    }

    /// The bytes of the batch with which `found` begins, with so many bytes left for it.
    pub(super) fn whole_batch(&self, found: &[u8], left: u64) -> Result<usize, &'static str> {
        let header = BatchHeader::read(found).filter(|header| self.fits(header));
        let bytes = header.ok_or("not the batch that should begin here")?.total_bytes();
        let bytes = bytes.filter(|bytes| *bytes as u64 <= left);
        bytes.ok_or("a batch's length cannot be")
    }

    /// Bytes of the sound batches that lie before `from`.
    fn skip(&mut self, window: &[u8], from: Offset) -> usize {
        let mut bytes = 0;
        for (header, batch) in records::batches(window) {
            if header.next_offset() > from || !self.is_sound(&header, batch) {
                break;
            }
            self.next = header.next_offset();
            bytes += batch.len();
        }
        bytes
    }

    /// The leading batches that are sound, one at least: their bytes, and the offset after them.
    pub(super) fn take_verified(&mut self, found: &[u8]) -> Result<(usize, Offset), &'static str> {
        let mut length = 0;
        for (header, batch) in records::batches(found) {
            if !self.is_sound(&header, batch) {
                // What is sound before it is given; the next read meets it first.
                break;
            }
            length += batch.len();
            self.next = header.next_offset();
        }
        if length == 0 { Err("a record batch is damaged") } else { Ok((length, self.next)) }
    }
}
