//! A core's memory for requests: granted first come, first served; a waiting connection is not
//! read.
//!
//! A frame is charged as its bytes arrive, so that a client which announces much and sends little
//! holds little. When everything is granted to frames that are half there, one of them at a time
//! goes on beside the total; so the largest request has its place beside it.
//!
//! Invariants
//!   B1  Granted bytes never exceed the total, beside those of one frame.
//!   B2  One frame that has begun can always go on: none waits for another that waits.
//!   B3  A part of the total is for the first bytes of frames alone: a few that are large and do
//!       not come keep no small one out.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The part of the total that is for first bytes alone.
const FIRST_SHARE: usize = 8;

/// See the module's documentation. Cloning shares it.
#[derive(Clone)]
pub struct Budget {
    inner: Rc<Inner>,
}

struct Inner {
    total: usize,
    left: Cell<usize>,
    /// A frame goes on beside the total.
    beside: Cell<bool>,
    next_ticket: Cell<u64>,
    begun: Queue,
    new: Queue,
}

/// Frames that wait, by ticket.
type Queue = RefCell<VecDeque<(u64, Waker)>>;

/// Granted bytes; dropping returns them.
pub struct Charge {
    inner: Rc<Inner>,
    /// Of the total.
    bytes: usize,
    /// Granted beside the total, when this is the frame that may.
    beside: Option<usize>,
}

impl Budget {
    pub fn new(total: usize) -> Budget {
        let inner = Inner {
            total,
            left: Cell::new(total),
            beside: Cell::new(false),
            next_ticket: Cell::new(0),
            begun: RefCell::default(),
            new: RefCell::default(),
        };
        Budget { inner: Rc::new(inner) }
    }

    /// Waits for the first `bytes` of a frame.
    pub async fn charge(&self, bytes: usize) -> Charge {
        let inner = &self.inner;
        let bytes = bytes.min(inner.total);
        let mut place = Place { inner, queue: &inner.new, ticket: None };
        poll_fn(|context| {
            if place.is_first() && bytes <= inner.left.get() {
                inner.left.set(inner.left.get() - bytes);
                return Poll::Ready(());
            }
            place.wait(context.waker());
            Poll::Pending
        })
        .await;
        Charge { inner: inner.clone(), bytes, beside: None }
    }
}

impl Charge {
    pub fn bytes(&self) -> usize {
        self.bytes + self.beside.unwrap_or(0)
    }

    /// Charges up to `more` bytes that are in memory already, as far as the total goes.
    pub fn take(&mut self, more: usize) {
        let more = more.min(self.inner.left.get());
        self.inner.left.set(self.inner.left.get() - more);
        self.bytes += more;
    }

    /// Waits for `more` bytes of the same frame.
    pub async fn grow(&mut self, more: usize) {
        if let Some(beside) = &mut self.beside {
            *beside += more;
            return;
        }
        let inner = &self.inner;
        let mut place = Place { inner, queue: &inner.begun, ticket: None };
        let goes_beside = poll_fn(|context| {
            if place.is_first() {
                if more + inner.total / FIRST_SHARE <= inner.left.get() {
                    inner.left.set(inner.left.get() - more);
                    return Poll::Ready(false);
                }
                if !inner.beside.replace(true) {
                    return Poll::Ready(true);
                }
            }
            place.wait(context.waker());
            Poll::Pending
        });
        let goes_beside = goes_beside.await;
        drop(place);
        if goes_beside {
            self.beside = Some(more);
        } else {
            self.bytes += more;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.inner.left.set(self.inner.left.get() + self.bytes);
        if self.beside.is_some() {
            self.inner.beside.set(false);
        }
        self.inner.wake_first();
    }
}

/// A place in a queue; leaving it lets the next one look.
struct Place<'a> {
    inner: &'a Inner,
    queue: &'a Queue,
    ticket: Option<u64>,
}

impl Place<'_> {
    fn is_first(&self) -> bool {
        let queue = self.queue.borrow();
        match self.ticket {
            None => queue.is_empty(),
            Some(ticket) => queue.front().is_some_and(|(first, _)| *first == ticket),
        }
    }

    fn wait(&mut self, waker: &Waker) {
        let mut queue = self.queue.borrow_mut();
        let Some(ticket) = self.ticket else {
            let ticket = self.inner.next_ticket.get();
            self.inner.next_ticket.set(ticket + 1);
            queue.push_back((ticket, waker.clone()));
            self.ticket = Some(ticket);
            return;
        };
        if let Some((_, known)) = queue.iter_mut().find(|(other, _)| *other == ticket) {
            known.clone_from(waker);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.queue.borrow_mut().retain(|(other, _)| *other != ticket);
            self.inner.wake_first();
        }
    }
}

impl Inner {
    fn wake_first(&self) {
        let begun = self.begun.borrow();
        let new = self.new.borrow();
        for (_, waker) in begun.front().into_iter().chain(new.front()) {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn bytes_are_granted_in_turn_and_returned() {
        let budget = Budget::new(100);
        let first = budget.charge(60).now_or_never().expect("there is room");
        let mut second = Box::pin(budget.charge(50));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(budget.charge(10));
        assert!(third.as_mut().now_or_never().is_none(), "it waits behind the second");
        drop(first);
        let second = second.as_mut().now_or_never().expect("its turn");
        assert!(third.as_mut().now_or_never().is_some());
        drop(second);
        assert!(budget.charge(1000).now_or_never().is_some(), "a whole budget is the most");
    }

    #[test]
    fn one_that_gives_up_blocks_nobody() {
        let budget = Budget::new(10);
        let first = budget.charge(10).now_or_never().expect("there is room");
        let mut gives_up = Box::pin(budget.charge(10));
        assert!(gives_up.as_mut().now_or_never().is_none());
        let mut next = Box::pin(budget.charge(5));
        assert!(next.as_mut().now_or_never().is_none());
        drop(gives_up);
        drop(first);
        assert!(next.as_mut().now_or_never().is_some());
    }

    #[test]
    fn frames_that_are_half_there_go_on_one_after_the_other() {
        let budget = Budget::new(100);
        let mut first = budget.charge(50).now_or_never().expect("there is room");
        let mut second = budget.charge(50).now_or_never().expect("there is room");
        let mut new = Box::pin(budget.charge(1));
        assert!(new.as_mut().now_or_never().is_none());
        first.grow(70).now_or_never().expect("beside the total");
        first.grow(30).now_or_never().expect("to its end");
        assert_eq!(first.bytes(), 150);
        {
            let mut grows = Box::pin(second.grow(20));
            assert!(grows.as_mut().now_or_never().is_none(), "one at a time");
            drop(first);
            assert!(grows.as_mut().now_or_never().is_some());
        }
        assert_eq!(second.bytes(), 70);
        assert!(new.as_mut().now_or_never().is_some());
        drop((second, new));
        assert_eq!(budget.inner.left.get(), 100);
    }
}
