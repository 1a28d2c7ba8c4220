//! Where the next group goes, and who waits for room.
//!
//!     | file n: groups ... head >  allocated  > ... |     | file n+1: allocated > ... |
//!
//! Invariants
//!   S1  A group is placed only into allocated bytes of one file.
//!   S2  Appenders of records get room in the order in which they asked.
//!   S3  Records leave the end of the last file to management.
//!   S4  Of what is allocated, records leave some to draining, and both leave some to decisions:
//!       when the disk gives no more, there is still room to delete something and to start again.
//!   S5  What was left for them can be used up, by many starts in a row before anything is drained.
//!       Then they get one file beyond `bytes_max`, which is given back once a file is free.
//!   S6  Only records wait for what is held in memory: moving it needs room for its checkpoints.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use super::group::bytes_alone;
use super::{Inner, Refusal, Settings, State};
use crate::io::Io;

/// Kept from records at the end of the last file, unless that is small: some thousand groups.
const RESERVE_BYTES_MAX: u64 = 8 << 20;
/// The share of a small file that is kept.
const RESERVE_SHARE: u64 = 4;

/// What draining and decisions are left each, in an entry's smallest group some sixty times.
const LEFT_BYTES_MAX: u64 = 256 << 10;
/// The share of a small file.
const LEFT_SHARE: u64 = 16;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Records,
    /// What the journal is emptied with.
    Draining,
    /// What the node or its operator has decided: topics, deletions, leader epochs.
    Decisions,
}

impl Purpose {
    /// Allocated bytes that must be left behind such an entry (S4).
    fn leaves(self, file_bytes: u64) -> u64 {
        let portion = LEFT_BYTES_MAX.min(file_bytes / LEFT_SHARE);
        match self {
            Purpose::Records => 2 * portion,
            Purpose::Draining => portion,
            Purpose::Decisions => 0,
        }
    }
}

/// The current file and the one after it, as far as they are allocated.
pub struct Space {
    pub file_bytes: u64,
    /// The address after the last sealed group, and where it was when the journal was opened.
    pub head: u64,
    pub began: u64,
    /// The address up to which the current file is allocated.
    pub allocated: u64,
    /// The next file's allocated end, once it is there.
    pub next_allocated: Option<u64>,
    /// The largest group that somebody waits to place.
    pub wanted: usize,
    /// What empties the journal waits for a file beyond the limit (S5).
    pub is_beyond_wanted: bool,
    /// Why no more space comes at the moment.
    pub refusal: Option<Refusal>,
}

impl Space {
    pub fn file_number(&self) -> u64 {
        // The head may stand at the very end of its file.
        self.allocated.saturating_sub(1) / self.file_bytes
    }

    pub fn file_end(&self) -> u64 {
        (self.file_number() + 1) * self.file_bytes
    }

    /// Whether `bytes` at `address` in the current file are allocated.
    pub fn holds_in_file(&self, address: u64, bytes: usize) -> bool {
        address + bytes as u64 <= self.allocated
    }

    /// What is allocated from `address` on; as good as anything where no more could be.
    fn left_from(&self, address: u64) -> u64 {
        let end = self.file_end();
        match self.next_allocated {
            Some(next) if next >= end + self.file_bytes => u64::MAX,
            Some(next) if address >= end => next.saturating_sub(address),
            next => {
                let here = self.allocated.saturating_sub(address);
                here + next.map_or(0, |next| next - end)
            }
        }
    }

    fn next_holds(&self, bytes: usize) -> bool {
        self.next_allocated.is_some_and(|end| self.file_end() + bytes as u64 <= end)
    }

    /// The address of a new group of `bytes`; rolls to the next file if it must.
    pub fn place(&mut self, bytes: usize) -> Result<u64, Refusal> {
        if !self.holds_in_file(self.head, bytes) {
            if !self.next_holds(bytes) {
                return Err(self.why_not(bytes));
            }
            let start = self.file_end();
            self.allocated = self.next_allocated.take().unwrap_or(start);
            self.head = start;
        }
        Ok(self.head)
    }

    fn why_not(&self, bytes: usize) -> Refusal {
        if bytes as u64 > self.file_bytes {
            return Refusal::TooLarge { bytes, bytes_max: self.file_bytes };
        }
        let wait = || Refusal::NoSpace("the next journal file is not ready".into());
        self.refusal.clone().unwrap_or_else(wait)
    }
}

/// See `Journal::room`.
pub async fn room<I: Io>(inner: &Inner<I>, body: usize, purpose: Purpose) -> Result<(), Refusal> {
    let mut turn = Turn { inner, purpose, ticket: None };
    poll_fn(|context| turn.poll(body, context)).await
}

/// A place in the queue of appenders; leaving it lets the next one look.
struct Turn<'a, I: Io> {
    inner: &'a Inner<I>,
    purpose: Purpose,
    ticket: Option<u64>,
}

impl<I: Io> Turn<'_, I> {
    fn poll(&mut self, body: usize, context: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let mut state = self.inner.state.borrow_mut();
        if let Some(refusal) = state.ended() {
            return Poll::Ready(Err(refusal));
        }
        let bytes = bytes_alone(body);
        if bytes as u64 > state.space.file_bytes {
            return Poll::Ready(Err(state.space.why_not(bytes)));
        }
        let is_first = match self.ticket {
            // What empties the journal does not wait for those who wait for it to be empty.
            _ if self.purpose != Purpose::Records => true,
            Some(ticket) => state.room_queue.front().is_some_and(|(first, _)| *first == ticket),
            None => state.room_queue.is_empty(),
        };
        if is_first {
            let pending_max = self.inner.settings.pending_bytes_max;
            let waits_for_disk =
                state.pending_bytes > 0 && state.pending_bytes + bytes > pending_max;
            let waits_for_move = self.purpose == Purpose::Records
                && state.would_push_out(bytes, self.inner.settings.tail_bytes_max);
            if !waits_for_disk && !waits_for_move {
                let settings = &self.inner.settings;
                let is_reserved =
                    self.purpose == Purpose::Records && state.is_reserved(bytes, settings);
                let left = state.left_behind(body, settings.group_bytes_max);
                let leaves = self.purpose.leaves(state.space.file_bytes);
                if !is_reserved && left.is_some_and(|left| left >= leaves) {
                    return Poll::Ready(Ok(()));
                }
                let full = Refusal::Full { bytes_max: settings.bytes_max };
                let refusal = if is_reserved { Some(&full) } else { state.space.refusal.as_ref() };
                let is_kept_used_up = self.purpose != Purpose::Records
                    && !state.files.exceed(settings.bytes_max, state.space.file_bytes);
                match refusal {
                    Some(Refusal::Full { .. }) if is_kept_used_up => {
                        state.space.is_beyond_wanted = true;
                        state.space.wanted = state.space.wanted.max(bytes);
                        state.wake_preparer();
                    }
                    // A file will be free soon (J8).
                    Some(Refusal::Full { .. }) if state.draining => {}
                    Some(refusal) => return Poll::Ready(Err(refusal.clone())),
                    None => {
                        state.space.wanted = state.space.wanted.max(bytes);
                        state.wake_preparer();
                    }
                }
            }
        }
        match self.purpose {
            Purpose::Draining | Purpose::Decisions => state.watch(context.waker()),
            Purpose::Records => self.wait(&mut state, context.waker()),
        }
        Poll::Pending
    }

    fn wait(&mut self, state: &mut State<I>, waker: &Waker) {
        let Some(ticket) = self.ticket else {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.room_queue.push_back((ticket, waker.clone()));
            self.ticket = Some(ticket);
            return;
        };
        let waiting = state.room_queue.iter_mut().find(|(waiting, _)| *waiting == ticket);
        if let Some((_, known)) = waiting {
            known.clone_from(waker);
        }
    }
}

impl<I: Io> Drop for Turn<'_, I> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.inner.state.borrow_mut();
            let was_first = state.room_queue.front().is_some_and(|(first, _)| *first == ticket);
            if was_first {
                state.room_queue.pop_front();
                state.wake_first_in_room();
            } else {
                state.room_queue.retain(|(waiting, _)| *waiting != ticket);
            }
        }
    }
}

impl<I: Io> State<I> {
    /// Lets the appender whose turn it is look again.
    pub(super) fn wake_first_in_room(&self) {
        if let Some((_, waker)) = self.room_queue.front() {
            waker.wake_by_ref();
        }
    }

    /// Whether a group of `bytes` would push out of the memory what is held there.
    fn would_push_out(&self, bytes: usize, tail_bytes_max: usize) -> bool {
        // Those that wait for the disk have some more memory than they have bytes.
        let coming = self.pending_bytes + self.pending_bytes / 4 + bytes;
        self.held.is_some_and(|held| held + coming > tail_bytes_max)
    }

    /// Whether a group of `bytes` would reach into what is kept from records.
    fn is_reserved(&self, bytes: usize, settings: &Settings) -> bool {
        let file_bytes = self.space.file_bytes;
        let most = settings.record_files();
        let used = self.used_files();
        if used != most {
            return used > most;
        }
        let filling = self.filling.as_ref().map_or(0, |filling| filling.bytes());
        let end = self.space.head + (filling + bytes) as u64;
        end > self.space.file_end() - RESERVE_BYTES_MAX.min(file_bytes / RESERVE_SHARE)
    }

    /// Whether an entry of `body` bytes has a place at once, and draining and decisions all that is
    /// kept for them.
    pub(super) fn has_room_to_spare(&self, body: usize, settings: &Settings) -> bool {
        let leaves = Purpose::Records.leaves(self.space.file_bytes);
        let left = self.left_behind(body, settings.group_bytes_max);
        !self.is_reserved(bytes_alone(body), settings) && left.is_some_and(|left| left >= leaves)
    }

    /// Allocated bytes behind an entry of `body` bytes, if it has a place at once.
    fn left_behind(&self, body: usize, group_bytes_max: usize) -> Option<u64> {
        let space = &self.space;
        let mut start = space.head;
        if let Some(filling) = &self.filling {
            let bytes = filling.bytes_with(body);
            if bytes <= group_bytes_max && space.holds_in_file(start, bytes) {
                return Some(space.left_from(start + bytes as u64));
            }
            start += filling.bytes() as u64;
        }
        let bytes = bytes_alone(body);
        if space.holds_in_file(start, bytes) {
            return Some(space.left_from(start + bytes as u64));
        }
        space.next_holds(bytes).then(|| space.left_from(space.file_end() + bytes as u64))
    }
}
