//! Checking a segment's bytes, batch by batch: what is sound, what is damaged, and which offsets
//! are lost with it. Behind a damaged place the next sound batch is looked for.
//!
//!     | batch | batch | damaged ..... | batch | batch ... | recorded end
//!                       ^ from           ^ before           what a shorter file lacks
//!
//! Pure but for `Reader`; windows of bytes come in, what was seen goes out.
//!
//! Invariants
//!   H1  Nothing is told as sound whose CRC was not verified, nor offsets that do not ascend within
//!       those of the segment; where it was never compacted they are dense, otherwise those that
//!       its seals vouch for, if it has any.
//!   H2  Every recorded byte is in exactly one batch or damage that is told, in the file's order.
//!   H3  Memory is bounded by one window, or by one batch that is larger.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;

use super::marks::{Marks, MarksFlaw};
use super::read::{Due, Sealed, read_range};
use super::seal::{Misplaced, Wrong};
use super::{Segment, SegmentId, Store, marks_path};
use crate::base::ids::Offset;
use crate::io::around::Around;
use crate::io::{File, Io, OpenHow};
use crate::wire::records::{self, BatchHeader, HEADER_BYTES};

/// Bytes of a window, but for a larger batch.
const WINDOW_BYTES: usize = 256 << 10;
/// No request that holds a batch is larger.
const BATCH_BYTES_MAX: u64 = 1 << 30;
const MAGIC: i8 = 2;

/// One thing met on the way through the file.
#[derive(Debug)]
pub enum Seen<'a> {
    /// `header` has the right offset, even where `batch` has another one.
    Batch {
        position: u64,
        header: BatchHeader,
        batch: &'a [u8],
    },
    /// The batch that comes next has a wrong offset.
    Misplaced(Misplaced),
    Damage(Damage),
}

/// A stretch that holds no sound batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub position: u64,
    pub bytes: u64,
    /// The offsets from here to before `before` are lost, as far as there were any.
    pub from: Offset,
    pub before: Offset,
    pub flaw: Flaw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    NoBatch,
    Crc,
    Offsets,
    Ends,
    Missing,
    Unreadable,
}

impl Flaw {
    pub(super) fn words(self) -> &'static str {
        match self {
            Flaw::NoBatch => "no record batch begins here",
            Flaw::Crc => "a record batch's checksum is wrong",
            Flaw::Offsets => "several record batches from here on have wrong offsets",
            Flaw::Ends => "the file ends here, before its last record",
            Flaw::Missing => "the file is missing",
            Flaw::Unreadable => "it cannot be read",
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Check {
    position: u64,
    /// The offset that comes next.
    next: Offset,
    /// Where the looking ends, and how much of what was recorded lies behind that.
    end: u64,
    lacking: u64,
    last: Offset,
    is_dense: bool,
    batch_bytes_max: u64,
    /// Bytes of the window that is wanted, and of those that are needed.
    wanted: usize,
    least: usize,
    /// The damage that is being passed: where it began.
    bad: Option<(u64, Flaw)>,
    seals: Option<Rc<Marks>>,
    /// By position.
    misplaced: BTreeMap<u64, Misplaced>,
    /// Stretches with several wrong offsets: where each begins and ends.
    confused: BTreeMap<u64, u64>,
}

/// What stands at a place.
enum Judged {
    Sound(BatchHeader, usize),
    /// And so many bytes are passed.
    Bad(Flaw, u64),
    /// A window of so many bytes is needed to tell.
    More(usize),
}

impl Check {
    /// Of a segment in a file of so many bytes.
    fn new(segment: &Segment, file_bytes: u64) -> Check {
        let end = segment.bytes.min(file_bytes);
        Check {
            position: 0,
            next: segment.base,
            end,
            lacking: segment.bytes - end,
            last: segment.next,
            is_dense: !segment.is_sparse(),
            batch_bytes_max: BATCH_BYTES_MAX,
            wanted: WINDOW_BYTES,
            least: 1,
            bad: None,
            seals: None,
            misplaced: BTreeMap::new(),
            confused: BTreeMap::new(),
        }
    }

    /// With what vouches for the offsets.
    pub fn with_seals(mut self, seals: Option<Rc<Marks>>) -> Check {
        self.seals = seals;
        self
    }

    /// From a place on where this is due.
    fn from(mut self, position: u64, due: &Due) -> Check {
        (self.position, self.next, self.is_dense) = (position, due.next, due.is_dense);
        self
    }

    /// What claims to be a larger batch is none: no window holds it.
    fn with_batches_up_to(mut self, bytes: u64) -> Check {
        self.batch_bytes_max = self.batch_bytes_max.min(bytes);
        self
    }

    /// Where the next window begins, and its bytes at most; `None` at the end.
    pub fn wants(&self) -> Option<(u64, usize)> {
        let Some(seals) = &self.seals else {
            return (self.position < self.end).then_some((self.position, self.wanted));
        };
        let end = seals.reach(self.position, (self.least as u64, self.wanted as u64));
        let wanted = usize::try_from(end - self.position).unwrap_or(usize::MAX);
        (self.position < self.end).then_some((self.position, wanted))
    }

    /// The offset that comes next: everything before it was seen.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Looks at the window that it wants, and tells what it sees.
    pub fn take(&mut self, window: &[u8], visit: &mut dyn FnMut(Seen<'_>)) {
        let mut left = window;
        (self.wanted, self.least) = (WINDOW_BYTES, 1);
        self.verify(window);
        while !left.is_empty() {
            match self.judge(left) {
                Judged::Sound(header, bytes) => {
                    self.tell_damage(header.base_offset, visit);
                    if let Some(misplaced) = self.misplaced.get(&self.position) {
                        visit(Seen::Misplaced(*misplaced));
                    }
                    let (batch, rest) = left.split_at(bytes);
                    visit(Seen::Batch { position: self.position, header, batch });
                    self.next = header.next_offset();
                    self.position += bytes as u64;
                    left = rest;
                }
                Judged::Bad(flaw, bytes) => {
                    self.bad.get_or_insert((self.position, flaw));
                    self.position += bytes;
                    left = left.get(usize::try_from(bytes).unwrap_or(usize::MAX)..).unwrap_or(&[]);
                }
                Judged::More(bytes) if bytes > left.len() => {
                    (self.wanted, self.least) = (bytes.max(WINDOW_BYTES), bytes);
                    // A window that begins here holds it, unless the file is shorter than it was.
                    let is_short = left.len() == window.len() && window.len() >= bytes;
                    debug_assert!(!is_short, "what was asked for is there");
                    return;
                }
                Judged::More(_) => unreachable!("more is asked for only where there is less"),
            }
        }
    }

    /// Looks at the offsets in a window.
    fn verify(&mut self, window: &[u8]) {
        let Some(seals) = &self.seals else { return };
        for wrong in seals.judge(self.position, window) {
            match wrong {
                Wrong::One(one) => drop(self.misplaced.insert(one.position, one)),
                Wrong::Several { position, end } => drop(self.confused.insert(position, end)),
            }
        }
    }

    /// Tells of what is missing at the end. Called once `wants` has nothing more.
    pub fn finish(&mut self, visit: &mut dyn FnMut(Seen<'_>)) {
        if self.lacking > 0 {
            let (began, _) = self.bad.unwrap_or((self.position, Flaw::Ends));
            self.bad = Some((began, Flaw::Ends));
            self.position += std::mem::take(&mut self.lacking);
        }
        self.tell_damage(self.last, visit);
    }

    fn tell_damage(&mut self, before: Offset, visit: &mut dyn FnMut(Seen<'_>)) {
        if let Some((position, flaw)) = self.bad.take() {
            let bytes = self.position - position;
            visit(Seen::Damage(Damage { position, bytes, from: self.next, before, flaw }));
        }
    }

    fn judge(&self, bytes: &[u8]) -> Judged {
        let left = self.end - self.position;
        if left < HEADER_BYTES as u64 {
            return Judged::Bad(Flaw::NoBatch, left);
        }
        if let Some(end) = self.confused.get(&self.position) {
            return Judged::Bad(Flaw::Offsets, end - self.position);
        }
        let Some(header) = self.header(self.position, bytes) else {
            return Judged::More(HEADER_BYTES);
        };
        let is_next = !self.is_dense || self.bad.is_some() || header.base_offset == self.next;
        let Some(total) = self.plausible(&header, left).filter(|_| is_next) else {
            return Judged::Bad(Flaw::NoBatch, 1);
        };
        let Some(batch) = bytes.get(..total) else { return Judged::More(total) };
        if header.crc == records::crc(batch) {
            return Judged::Sound(header, total);
        }
        // Where another batch follows, the length is right, and only what is inside is not.
        let rest = left - total as u64;
        if rest < HEADER_BYTES as u64 {
            return Judged::Bad(Flaw::Crc, left);
        }
        let after = self.position + total as u64;
        match self.header(after, bytes.get(total..).unwrap_or_default()) {
            None => Judged::More(total + HEADER_BYTES),
            Some(next) if self.plausible(&next, rest).is_some() => {
                Judged::Bad(Flaw::Crc, total as u64)
            }
            Some(_) => Judged::Bad(Flaw::Crc, 1),
        }
    }

    /// A header, with the right offset.
    fn header(&self, position: u64, bytes: &[u8]) -> Option<BatchHeader> {
        let mut header = BatchHeader::read(bytes)?;
        if let Some(misplaced) = self.misplaced.get(&position) {
            header.base_offset = misplaced.due;
        }
        Some(header)
    }

    /// The bytes of a batch whose header can be one, with so many bytes left.
    fn plausible(&self, header: &BatchHeader, left: u64) -> Option<usize> {
        let total = header.total_bytes().filter(|total| *total as u64 <= self.batch_bytes_max)?;
        let is_it = header.magic == MAGIC
            && header.last_offset_delta >= 0
            && header.base_offset >= self.next
            && header.next_offset() <= self.last
            && total as u64 <= left;
        is_it.then_some(total)
    }
}

/// A segment's file, opened for checking, beside those that reads keep open.
pub struct Reader<F> {
    file: F,
    /// Where the segment begins in it.
    start: u64,
}

impl<F: File> Reader<F> {
    /// Bytes that are there of the segment, and perhaps more.
    pub fn bytes(&self) -> u64 {
        self.file.len().saturating_sub(self.start)
    }

    /// The window that a check wants.
    pub async fn window(&self, position: u64, bytes: usize, end: u64) -> io::Result<Bytes> {
        let end = self.start + end.min(self.bytes());
        read_range(&self.file, self.start + position, bytes, end).await
    }
}

impl<I: Io> Store<I> {
    /// A check of a segment in a file of so many bytes, within the core's memory.
    pub fn check(&self, segment: &Segment, file_bytes: u64) -> Check {
        Check::new(segment, file_bytes).with_batches_up_to(self.batch_bytes_max())
    }

    /// Opens a segment's file beside those that reads keep open.
    pub async fn reader(&self, id: SegmentId) -> io::Result<Reader<I::File>> {
        let file = self.io.open(&self.path(id), OpenHow::Existing).await?;
        Ok(Reader { file, start: id.start() })
    }

    /// Whether a segment's file is there with all its recorded bytes, so that it may grow.
    pub async fn takes_more(&self, id: SegmentId, recorded: u64) -> bool {
        if recorded == 0 {
            return true;
        }
        let path = self.path(id);
        // One that is open already may have lost its name, or its end, and more than that with it.
        let why = match self.reader(id).await {
            Ok(reader) if reader.bytes() >= recorded => return true,
            Ok(reader) => format!("it ends at byte {}", reader.bytes()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it is missing".into(),
            // Whoever writes to it is told.
            Err(_) => return true,
        };
        self.cache.borrow_mut().forget(id);
        tracing::error!("{} should have {recorded} bytes and is damaged: {why}", path.display());
        false
    }

    /// Behind a damaged place: where the next sound batch begins, and its first offset.
    pub(super) async fn next_sound(
        &self,
        file: &I::File,
        segment: &Segment,
        (position, due): (u64, &Due),
        sealed: &Sealed,
    ) -> io::Result<Option<(u64, Offset)>> {
        let start = segment.start();
        let file_bytes = file.len().saturating_sub(start);
        let mut check = self.check(segment, file_bytes).from(position, due);
        check = check.with_seals(sealed.marks.clone());
        check.misplaced = sealed.misplaced.iter().map(|one| (one.position, *one)).collect();
        let mut found = None;
        while let Some((at, wanted)) = check.wants().filter(|_| found.is_none()) {
            let window = read_range(file, start + at, wanted, start + check.end).await?;
            check.take(&window, &mut |seen| {
                if let (Seen::Batch { position, header, .. }, None) = (seen, found) {
                    found = Some((position, header.base_offset));
                }
            });
            self.io.cede().await;
        }
        Ok(found)
    }
}

/// Checks a segment in a file that no node uses: plain blocking reads. Blocks that cannot be read
/// are damage like any other.
pub fn check_file(
    path: &Path,
    segment: &Segment,
    visit: &mut dyn FnMut(Seen<'_>),
) -> io::Result<()> {
    let mut file = Around::open(path)?;
    let seals = read_seals(path, segment)?.unwrap_or_default().map(Rc::new);
    check_around(&mut file, segment, seals, visit)
}

fn check_around<F: FileExt>(
    file: &mut Around<F>,
    segment: &Segment,
    seals: Option<Rc<Marks>>,
    visit: &mut dyn FnMut(Seen<'_>),
) -> io::Result<()> {
    let start = segment.start();
    let check = Check::new(segment, file.length().saturating_sub(start));
    let mut check = check.with_seals(seals);
    let mut window = Vec::new();
    while let Some((position, wanted)) = check.wants() {
        let left = check.end - position;
        window.resize(wanted.min(usize::try_from(left).unwrap_or(usize::MAX)), 0);
        file.read_exact_at(&mut window, start + position)?;
        check.take(&window, &mut |seen| visit(with_cause(seen, file, start)));
    }
    check.finish(&mut |seen| visit(with_cause(seen, file, start)));
    Ok(())
}

/// What could not be read is told as that.
fn with_cause<'a, F: FileExt>(seen: Seen<'a>, file: &Around<F>, start: u64) -> Seen<'a> {
    match seen {
        Seen::Damage(damage) => {
            let from = start + damage.position;
            let is_unread = file.is_unread(from, from + damage.bytes);
            let flaw = if is_unread { Flaw::Unreadable } else { damage.flaw };
            Seen::Damage(Damage { flaw, ..damage })
        }
        seen => seen,
    }
}

/// What vouches for the offsets in a segment's file that no node uses, or what is wrong with that;
/// `None` where an older version has written none, or nothing needs to.
pub fn read_seals(path: &Path, segment: &Segment) -> io::Result<Result<Option<Marks>, MarksFlaw>> {
    if !segment.is_sparse() {
        return Ok(Ok(None));
    }
    let mut bytes = Vec::new();
    let read = Around::open(&marks_path(path)).and_then(|mut file| file.read_to_end(&mut bytes));
    match read {
        Ok(_) => {
            let marks = Marks::decode_of(&bytes, segment.bytes);
            Ok(marks.map(|marks| Some(marks).filter(Marks::is_sealed)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Err(MarksFlaw::Missing)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::io::around::tests::Bad;
    use crate::segment::Home;
    use crate::wire::records::{BatchBuilder, Codec, NewRecord};

    /// Batches of some sizes from offset 100 on, two records each, and where each begins.
    fn file() -> (Vec<u8>, Vec<u64>, Segment) {
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        let mut next = 100;
        for value_bytes in [10, 300_000, 5, 70_000, 900, 1, 2000] {
            let mut builder = BatchBuilder::new();
            for _ in 0..2 {
                let value = vec![b'v'; value_bytes];
                builder.push(&NewRecord { value: Some(&value), ..NewRecord::default() });
            }
            let built = builder.build(Codec::None).expect("nothing to compress");
            let mut stamped = BytesMut::from(&built[..]);
            records::stamp(&mut stamped, next, 1);
            places.push(bytes.len() as u64);
            bytes.extend_from_slice(&stamped);
            next += 2;
        }
        let (base, length) = (100, bytes.len() as u64);
        let segment =
            Segment { base, next, bytes: length, max_timestamp: 0, begun: 0, home: Home::NEW };
        (bytes, places, segment)
    }

    /// Everything else can be repaired.
    #[test]
    fn a_block_that_cannot_be_read_costs_its_own_batches_alone() {
        let (bytes, places, segment) = file();
        let length = bytes.len() as u64;
        // Inside of the last but three.
        let block = (places[3] + 20_000) / 4096;
        let mut around = Around::new(Bad { bytes, blocks: vec![block] }, length);
        let (mut bases, mut damage) = (Vec::new(), Vec::new());
        let seen = check_around(&mut around, &segment, None, &mut |seen| match seen {
            Seen::Batch { header, .. } => bases.push(header.base_offset),
            Seen::Damage(found) => damage.push(found),
            Seen::Misplaced(found) => panic!("there are no seals: {found:?}"),
        });
        seen.expect("read around");
        assert_eq!(bases, [100, 102, 104, 108, 110, 112]);
        let [Damage { from, before, flaw, .. }] = damage[..] else { panic!("{damage:?}") };
        assert_eq!((from, before, flaw), (106, 108, Flaw::Unreadable));
    }

    /// The base offsets of the sound batches, and the damage.
    fn check(bytes: &[u8], segment: &Segment) -> (Vec<Offset>, Vec<Damage>) {
        let mut check = Check::new(segment, bytes.len() as u64);
        let (mut bases, mut damage, mut told) = (Vec::new(), Vec::new(), 0);
        let mut note = |seen: Seen<'_>| match seen {
            Seen::Batch { position, header, batch } => {
                assert_eq!(position, told, "H2");
                told += batch.len() as u64;
                bases.push(header.base_offset);
            }
            Seen::Damage(found) => {
                assert_eq!(found.position, told, "H2");
                told += found.bytes;
                damage.push(found);
            }
            Seen::Misplaced(found) => panic!("there are no seals: {found:?}"),
        };
        while let Some((position, wanted)) = check.wants() {
            let from = usize::try_from(position).expect("small");
            let to =
                (from + wanted).min(bytes.len()).min(usize::try_from(check.end).expect("small"));
            check.take(&bytes[from..to], &mut note);
        }
        check.finish(&mut note);
        assert_eq!(told, segment.bytes, "H2");
        (bases, damage)
    }

    #[test]
    fn what_is_sound_is_told_as_sound() {
        let (bytes, _, segment) = file();
        assert_eq!(check(&bytes, &segment), ((0..7).map(|n| 100 + 2 * n).collect(), vec![]));
    }

    /// But for the leader epoch, which no checksum covers.
    #[test]
    fn a_flipped_byte_costs_its_batch_and_no_other() {
        let (bytes, places, segment) = file();
        for (index, place) in places.iter().enumerate() {
            let inside = [0, 7, 8, 9, 11, 16, 17, 21, 23, 27, 57, 60, 62, 65];
            for at in inside {
                let mut damaged = bytes.clone();
                damaged[usize::try_from(*place).expect("small") + at] ^= 0x41;
                let (bases, found) = check(&damaged, &segment);
                let what = format!("byte {at} of batch {index}: {found:?}");
                assert_eq!(found.len(), 1, "{what}");
                let lost = 100 + 2 * Offset::try_from(index).expect("small");
                assert_eq!((found[0].from, found[0].before), (lost, lost + 2), "{what}");
                assert_eq!(found[0].position, *place, "{what}");
                assert_eq!(bases.len(), 6, "{what}");
            }
        }
    }

    #[test]
    fn a_shorter_file_says_what_it_lacks() {
        let (bytes, places, segment) = file();
        for (cut, lost) in [(0, 100), (30, 100), (places[3] + 5, 106), (places[6], 112)] {
            let (bases, found) = check(&bytes[..usize::try_from(cut).expect("small")], &segment);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].from, found[0].before), (lost, 114), "{found:?}");
            assert_eq!(bases.len(), usize::try_from((lost - 100) / 2).expect("small"));
        }
    }

    #[test]
    fn zeros_and_noise_over_several_batches_are_one_damage() {
        let (bytes, places, segment) = file();
        let [from, to] =
            [places[1] + 7, places[4] + 20].map(|at| usize::try_from(at).expect("small"));
        for noise in [0_u8, 2, 0xff] {
            let mut damaged = bytes.clone();
            damaged[from..to].fill(noise);
            let (bases, found) = check(&damaged, &segment);
            assert_eq!(bases, [100, 110, 112], "{found:?}");
            assert_eq!((found.len(), found[0].from, found[0].before), (1, 102, 110), "{found:?}");
        }
    }
}
