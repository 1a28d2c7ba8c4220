//! Reading a file that the head has left, from its first group to its last: for draining it.
//!
//! Invariants
//!   E1  Every group is checked again; the walk ends where the head left the file, or fails to
//!       read. A damaged group is passed over and told of (`is_damaged`); of its entries those
//!       before the damage may have been given.
//!   E2  A body that is kept holds the memory of what was read with it, which whoever keeps it
//!       counts (`Reread::memory`).

use std::io;
use std::rc::Rc;

use bytes::Bytes;

use super::layout::{Entry, GroupHeader, HEADER_BYTES};
use super::mentions::Mentioned;
use super::window::Window;
use super::{Inner, Location, files};
use crate::io::{BLOCK_BYTES, Io};

/// Bytes read at a time: commits wait for the device meanwhile.
const WINDOW_BYTES: usize = 128 << 10;

/// An entry with its body, read again.
#[derive(Clone, Copy)]
pub struct Reread<'a> {
    pub entry: Entry,
    pub location: Location,
    pub body: &'a [u8],
    /// The stretch of the file that was read with it.
    window: &'a Bytes,
}

impl Reread<'_> {
    /// The body, to be kept.
    pub fn keep(&self) -> Bytes {
        self.window.slice_ref(self.body)
    }

    /// Bytes of memory that a kept body holds, if none of them is held by what was kept last: those
    /// of one stretch have it in common.
    pub fn memory(&self, last: &mut usize) -> usize {
        let start = self.window.as_ptr().addr();
        if std::mem::replace(last, start) == start { 0 } else { self.window.len() }
    }
}

/// The walk over one file.
pub struct Rereading<I: Io> {
    inner: Rc<Inner<I>>,
    number: u64,
    address: u64,
    end: u64,
    window: Window,
    is_damaged: bool,
}

/// The oldest file at or above `address` that holds something needed and is not released, if the
/// head has left it.
pub fn left_from<I: Io>(inner: &Rc<Inner<I>>, address: u64) -> Option<Rereading<I>> {
    let (number, end) = {
        let state = inner.state.borrow();
        let from = address.max(state.files.released_to()) / inner.settings.file_bytes;
        // Its last groups may still be on their way to the disk.
        state.files.oldest_left(from).filter(|(_, end)| *end <= state.written.end)?
    };
    let address = number * inner.settings.file_bytes;
    let (inner, window) = (inner.clone(), Window::new(WINDOW_BYTES));
    Some(Rereading { inner, number, address, end, window, is_damaged: false })
}

/// The needed files of a journal that takes nothing any more, oldest first, the last one up to its
/// head.
pub fn whole<I: Io>(inner: &Rc<Inner<I>>) -> Vec<Rereading<I>> {
    let state = inner.state.borrow();
    assert!(state.closing, "nothing is appended any more");
    let file_bytes = inner.settings.file_bytes;
    let head = state.written.end;
    let first = state.files.first_needed();
    let needed = state.files.numbers().filter(|number| *number >= first);
    let ends = needed.filter_map(|number| {
        let end = state.files.end_of(number).unwrap_or(head);
        (number * file_bytes < end).then_some((number, end))
    });
    let ends: Vec<(u64, u64)> = ends.collect();
    let of = |(number, end)| {
        let address = number * file_bytes;
        let (inner, window) = (inner.clone(), Window::new(WINDOW_BYTES));
        Rereading { inner, number, address, end, window, is_damaged: false }
    };
    ends.into_iter().map(of).collect()
}

impl<I: Io> Rereading<I> {
    /// Everything in the file lies below this address.
    pub fn file_end(&self) -> u64 {
        (self.number + 1) * self.inner.settings.file_bytes
    }

    /// What all entries of the file are about, where that is known without reading it.
    pub fn mentioned(&self) -> Option<Mentioned> {
        self.inner.state.borrow().files.mentioned(self.number)
    }

    /// Where the next group begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Gives `take` the entries of the next group; false after the last one.
    pub async fn next(&mut self, take: impl FnMut(Reread<'_>)) -> io::Result<bool> {
        if self.address >= self.end {
            return Ok(false);
        }
        let outcome = self.read_group(take).await;
        let placed = outcome.map_err(|error| {
            let path = files::path(&self.inner.settings.directory, self.number);
            let position = self.address % self.inner.settings.file_bytes;
            let what = format!("{error} (byte {position} of {})", path.display());
            io::Error::new(error.kind(), what)
        });
        match placed {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!("{error}: what is sound behind it is moved on");
                self.is_damaged = true;
                self.pass_damage().await?;
                Ok(true)
            }
            outcome => outcome.map(|()| true),
        }
    }

    /// Whether a group was passed over.
    pub fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Goes on where the next sound group begins, or at the end.
    async fn pass_damage(&mut self) -> io::Result<()> {
        let journal_id = self.inner.state.borrow().journal_id;
        loop {
            self.address += BLOCK_BYTES as u64;
            if self.address >= self.end {
                self.address = self.end;
                return Ok(());
            }
            let file = self.inner.state.borrow().files.get(self.number);
            let file = file.ok_or_else(|| io::Error::other("the file is not open any more"))?;
            let position = self.address % self.inner.settings.file_bytes;
            let start = self.window.bytes(&*file, self.number, position, HEADER_BYTES).await?;
            let Ok(header) = GroupHeader::read(start) else { continue };
            let fits = self.address + u64::from(header.length) <= self.end;
            if header.address == self.address && header.journal_id == journal_id && fits {
                let length = header.length as usize;
                let group = self.window.bytes(&*file, self.number, position, length).await?;
                if header.check(group).is_ok() {
                    return Ok(());
                }
            }
        }
    }

    async fn read_group(&mut self, mut take: impl FnMut(Reread<'_>)) -> io::Result<()> {
        let damaged = |flaw: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a commit group is damaged: {flaw}"))
        };
        let (file, journal_id) = {
            let state = self.inner.state.borrow();
            (state.files.get(self.number), state.journal_id)
        };
        let file = file.ok_or_else(|| io::Error::other("the file is not open any more"))?;
        let position = self.address % self.inner.settings.file_bytes;
        let start = self.window.bytes(&*file, self.number, position, HEADER_BYTES).await?;
        let header = GroupHeader::read(start).map_err(|flaw| damaged(&flaw))?;
        if header.address != self.address || header.journal_id != journal_id {
            return Err(damaged(&"it is another one"));
        }
        let length = header.length as usize;
        self.window.bytes(&*file, self.number, position, length).await?;
        let window = self.window.held();
        let group = self.window.bytes(&*file, self.number, position, length).await?;
        header.check(group).map_err(|flaw| damaged(&flaw))?;
        for entry in header.entries(group) {
            let (entry, place, body) = entry.map_err(|flaw| damaged(&flaw))?;
            let length = u32::try_from(body.len()).map_err(io::Error::other)?;
            let location = Location { address: self.address + u64::from(place), length };
            take(Reread { entry, location, body, window: &window });
        }
        self.address += u64::from(header.length);
        Ok(())
    }
}
