//! The commit loop: while one group is being flushed, the next one fills.
//!
//! Invariants
//!   W1  One group is in flight at a time; the next write starts when its outcome is known.
//!   W2  An idle journal writes at once: entries of the same tick share a group, no timer waits
//!       for more.
//!   W3  A journal that a failed write has poisoned flushes what was written before: in mode
//!       `replicated` it was acknowledged. A failed flush is not tried again, since its success
//!       would prove nothing.
//!   W4  After a clean end with space left, damage to any group with entries is told from a torn
//!       end: a later group proves it.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::group::Filling;
use super::{Flush, Inner, Mark, Position, files};
use crate::io::{Durability, File, Io};

/// Runs until the journal is closed or poisoned.
pub async fn run<I: Io>(inner: Rc<Inner<I>>) {
    if let Flush::Within(interval) = inner.settings.flush {
        let inner = inner.clone();
        inner.io.clone().spawn("journal flusher", async move {
            while flush_when_due(&inner, interval).await {}
        });
    }
    while let Some(group) = next_group(&inner).await {
        if !write(&inner, group).await {
            break;
        }
    }
    finish(&inner).await;
}

/// The next group to write, as soon as there is one; `None` when the journal is closing and
/// everything is written, or is poisoned.
async fn next_group<I: Io>(inner: &Rc<Inner<I>>) -> Option<Filling> {
    let mut yielded = false;
    poll_fn(|context| {
        let mut state = inner.state.borrow_mut();
        if state.poisoned.is_some() {
            return Poll::Ready(None);
        }
        if let Some(group) = state.waiting.pop_front() {
            return Poll::Ready(Some(group));
        }
        if state.filling.is_none() {
            if state.closing {
                return Poll::Ready(None);
            }
            state.writer = Some(context.waker().clone());
            yielded = false;
            return Poll::Pending;
        }
        if !yielded {
            // Tasks that are ready in this tick append into the same group (W2).
            yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        state.seal_filling();
        Poll::Ready(state.waiting.pop_front())
    })
    .await
}

async fn write<I: Io>(inner: &Rc<Inner<I>>, group: Filling) -> bool {
    let file_bytes = inner.settings.file_bytes;
    let group = group.seal(&mut inner.state.borrow_mut(), file_bytes);
    let Some(file) = inner.state.borrow().files.get(group.address / file_bytes) else {
        unreachable!("a group is placed in a file that is open");
    };
    let durability = match inner.settings.flush {
        Flush::EveryGroup => Durability::Flushed,
        Flush::Within(_) => Durability::Written,
    };
    let at = group.address % file_bytes;
    let began = inner.io.now();
    let counted = inner.writes.get().map(|writes| (writes, writes.begin(began)));
    inner.state.borrow_mut().write_since = Some(began);
    let outcome = file.write_at(at, group.bytes.clone(), durability).await;
    if let Some((writes, write)) = counted {
        writes.end(write, inner.io.now());
    }
    let mut state = inner.state.borrow_mut();
    state.write_since = None;
    if let Err(error) = outcome {
        state.poison("write", &error);
        return false;
    }
    state.pending_bytes -= group.bytes.len();
    state.durable = Position(group.sequence);
    let end = group.address + group.bytes.len() as u64;
    state.written = Mark { sequence: group.sequence, end };
    if durability == Durability::Flushed {
        state.flushed = state.written;
        files::release_flushed(&mut state, file_bytes);
    }
    if let Some(held) = &mut state.held {
        *held += group.memory;
    }
    state.tail.push(group.address, group.bytes, group.memory);
    state.wake_watchers();
    true
}

/// Mode `replicated`: flushes what was written at most `interval` ago. False at the journal's end.
async fn flush_when_due<I: Io>(inner: &Rc<Inner<I>>, interval: std::time::Duration) -> bool {
    let behind = poll_fn(|context| {
        let mut state = inner.state.borrow_mut();
        if state.poisoned.is_some() || state.closed {
            return Poll::Ready(false);
        }
        if state.written != state.flushed {
            return Poll::Ready(true);
        }
        state.watch(context.waker());
        Poll::Pending
    });
    if !behind.await {
        return false;
    }
    inner.io.sleep(interval).await;
    flush(inner).await
}

async fn flush<I: Io>(inner: &Rc<Inner<I>>) -> bool {
    let file_bytes = inner.settings.file_bytes;
    let (through, files) = {
        let state = inner.state.borrow();
        let numbers = state.flushed.end / file_bytes..=state.written.end / file_bytes;
        (state.written, numbers.filter_map(|number| state.files.get(number)).collect::<Vec<_>>())
    };
    inner.state.borrow_mut().flush_since = Some(inner.io.now());
    for file in files {
        if let Err(error) = file.sync().await {
            let mut state = inner.state.borrow_mut();
            state.flush_since = None;
            state.flush_failed = true;
            state.poison("flush", &error);
            return false;
        }
    }
    let mut state = inner.state.borrow_mut();
    state.flush_since = None;
    // Another flush may have come further meanwhile.
    if through.sequence > state.flushed.sequence {
        state.flushed = through;
    }
    files::release_flushed(&mut state, file_bytes);
    state.wake_watchers();
    true
}

async fn finish<I: Io>(inner: &Rc<Inner<I>>) {
    let behind = {
        let state = inner.state.borrow();
        !state.flush_failed && state.flushed != state.written
    };
    if behind {
        flush(inner).await;
    }
    prove(inner).await;
    let mut state = inner.state.borrow_mut();
    state.closed = true;
    state.wake_watchers();
}

/// Ends the journal with a group without entries, which says that those before it are flushed: none
/// of them can be taken for a torn one (W4).
async fn prove<I: Io>(inner: &Rc<Inner<I>>) {
    let group = {
        let mut state = inner.state.borrow_mut();
        if state.poisoned.is_some() || state.written == state.reached {
            return;
        }
        state.closing_group(inner)
    };
    if let Some(group) = group {
        write(inner, group).await;
    }
}
