//! A core's memory for requests: granted first come, first served; a waiting connection is not
//! read.
//!
//! Invariants
//!   B1  Granted bytes never exceed the total.
//!   B2  A request for more than the total is granted alone, when everything else is returned.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// See the module's documentation. Cloning shares it.
#[derive(Clone)]
pub struct Budget {
    inner: Rc<Inner>,
}

struct Inner {
    total: usize,
    left: Cell<usize>,
    next_ticket: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, Waker)>>,
}

/// Granted bytes; dropping returns them.
pub struct Charge {
    inner: Rc<Inner>,
    bytes: usize,
}

impl Budget {
    pub fn new(total: usize) -> Budget {
        let inner = Inner {
            total,
            left: Cell::new(total),
            next_ticket: Cell::new(0),
            waiting: RefCell::new(VecDeque::new()),
        };
        Budget { inner: Rc::new(inner) }
    }

    /// Waits for `bytes`.
    pub async fn charge(&self, bytes: usize) -> Charge {
        let bytes = bytes.min(self.inner.total);
        let mut place = Place { inner: &self.inner, ticket: None };
        poll_fn(|context| place.poll(bytes, context.waker())).await;
        Charge { inner: self.inner.clone(), bytes }
    }
}

/// A place in the queue; giving it up lets the next one look.
struct Place<'a> {
    inner: &'a Rc<Inner>,
    ticket: Option<u64>,
}

impl Place<'_> {
    fn poll(&mut self, bytes: usize, waker: &Waker) -> Poll<()> {
        let mut waiting = self.inner.waiting.borrow_mut();
        let is_first = match self.ticket {
            None => waiting.is_empty(),
            Some(ticket) => waiting.front().is_some_and(|(first, _)| *first == ticket),
        };
        if is_first && bytes <= self.inner.left.get() {
            self.inner.left.set(self.inner.left.get() - bytes);
            return Poll::Ready(());
        }
        match self.ticket {
            None => {
                let ticket = self.inner.next_ticket.get();
                self.inner.next_ticket.set(ticket + 1);
                waiting.push_back((ticket, waker.clone()));
                self.ticket = Some(ticket);
            }
            Some(ticket) => {
                if let Some(entry) = waiting.iter_mut().find(|(other, _)| *other == ticket) {
                    entry.1.clone_from(waker);
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.inner.waiting.borrow_mut().retain(|(other, _)| *other != ticket);
            self.inner.wake_first();
        }
    }
}

impl Inner {
    fn wake_first(&self) {
        if let Some((_, waker)) = self.waiting.borrow().front() {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.inner.left.set(self.inner.left.get() + self.bytes);
        self.inner.wake_first();
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
}
