//! Virtual time and what happens when: timers and completions, by time.
//!
//! Invariants
//!   A1  Time never goes back, and moves only by a task's step or by a jump to the next event.
//!   A2  Events fire in the order of their times, those of one time in the order of their making.
//!   A3  A dropped timer leaves nothing behind: it can neither wake a task nor make time jump.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Inner;
use crate::base::time::Instant;

/// What a completion does.
pub type Call = Box<dyn FnOnce(&Rc<Inner>)>;

/// What happens at a time.
pub enum Event {
    Wake(Waker),
    /// The completion of an operation.
    Call(Call),
}

/// An event's place: its time and its number.
type Key = (u64, u64);

#[derive(Default)]
pub struct Agenda {
    now: Cell<u64>,
    made: Cell<u64>,
    events: RefCell<BTreeMap<Key, Event>>,
}

impl Agenda {
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    pub fn advance_to(&self, time: u64) {
        self.now.set(self.now.get().max(time));
    }

    /// The time of the next event.
    pub fn next(&self) -> Option<u64> {
        self.events.borrow().first_key_value().map(|((time, _), _)| *time)
    }

    /// The next event whose time has come.
    pub fn take_due(&self) -> Option<Event> {
        if self.next()? > self.now() {
            return None;
        }
        self.events.borrow_mut().pop_first().map(|(_, event)| event)
    }

    /// Lets `call` happen `delay` nanoseconds later.
    pub fn after(&self, delay: u64, call: impl FnOnce(&Rc<Inner>) + 'static) {
        self.insert(self.now() + delay, Event::Call(Box::new(call)));
    }

    fn insert(&self, time: u64, event: Event) -> Key {
        let key = (time, self.made.get());
        self.made.set(key.1 + 1);
        self.events.borrow_mut().insert(key, event);
        key
    }

    fn remove(&self, key: Key) {
        let removed = self.events.borrow_mut().remove(&key);
        drop(removed); // outside the borrow
    }

    pub fn clear(&self) {
        let events = self.events.take();
        drop(events);
    }
}

/// Ready at a deadline.
pub struct Sleep {
    inner: Rc<Inner>,
    deadline: Instant,
    key: Option<Key>,
}

impl Sleep {
    pub fn new(inner: Rc<Inner>, deadline: Instant) -> Sleep {
        Sleep { inner, deadline, key: None }
    }

    fn cancel(&mut self) {
        if let Some(key) = self.key.take() {
            self.inner.agenda.remove(key);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.cancel();
        if self.inner.agenda.now() >= self.deadline.0 {
            return Poll::Ready(());
        }
        if self.deadline != Instant::NEVER {
            let event = Event::Wake(context.waker().clone());
            self.key = Some(self.inner.agenda.insert(self.deadline.0, event));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}
