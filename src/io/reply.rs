//! Single answers, as a oneshot channel gives them, in places that are used again: a request on
//! the steady path asks for no memory.
//!
//! Lives on: the asking core, one pool for each kind of answer; replies go to any core.
//!
//! Invariants
//!   R1  A reply that is sent, or dropped, wakes and ends the wait for it.
//!   R2  A place is used again only when both of its ends are gone.
//!   R3  At most `SPARE_MAX` places are kept.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Places kept: more requests than this are seldom under way on a core.
const SPARE_MAX: usize = 1024;

/// See the module's documentation.
pub struct Replies<T> {
    spare: Spare<T>,
}

type Spare<T> = Rc<RefCell<Vec<Arc<Place<T>>>>>;

struct Place<T> {
    state: Mutex<State<T>>,
}

enum State<T> {
    Open(Option<Waker>),
    Sent(T),
    Gone,
}

/// The end that answers, on any core.
pub struct Reply<T> {
    place: Option<Arc<Place<T>>>,
}

/// The end that waits: resolves to the answer, or to `None` if none will come.
pub struct Awaited<T> {
    place: Option<Arc<Place<T>>>,
    spare: Spare<T>,
}

impl<T> Replies<T> {
    pub fn new() -> Replies<T> {
        Replies { spare: Rc::default() }
    }

    /// Both ends of one answer.
    pub fn pair(&self) -> (Reply<T>, Awaited<T>) {
        let spare = self.spare.borrow_mut().pop();
        let place = spare.unwrap_or_else(|| Arc::new(Place { state: Mutex::new(State::EMPTY) }));
        let reply = Reply { place: Some(place.clone()) };
        (reply, Awaited { place: Some(place), spare: self.spare.clone() })
    }
}

impl<T> Default for Replies<T> {
    fn default() -> Self {
        Replies::new()
    }
}

impl<T> State<T> {
    const EMPTY: State<T> = State::Open(None);
}

impl<T> Place<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // It is whole between any two statements, so a poisoned lock is usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Reply<T> {
    /// Answers; nobody hears it where the other end is gone.
    pub fn send(mut self, answer: T) {
        self.end(State::Sent(answer));
    }

    fn end(&mut self, state: State<T>) {
        let Some(place) = self.place.take() else { return };
        let before = std::mem::replace(&mut *place.state(), state);
        // Whoever is woken finds that this end is gone (R2).
        drop(place);
        if let State::Open(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.end(State::Gone);
    }
}

impl<T> Future for Awaited<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let Some(place) = &self.place else { return Poll::Ready(None) };
        let mut state = place.state();
        match std::mem::replace(&mut *state, State::Gone) {
            State::Sent(answer) => Poll::Ready(Some(answer)),
            State::Gone => Poll::Ready(None),
            State::Open(_) => {
                *state = State::Open(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        let Some(mut place) = self.place.take() else { return };
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX
            && let Some(alone) = Arc::get_mut(&mut place)
        {
            // What was sent and never taken is dropped once nothing is borrowed.
            let state = alone.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            let unheard = std::mem::replace(state, State::EMPTY);
            spare.push(place);
            drop(spare);
            drop(unheard);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn kept<T>(replies: &Replies<T>) -> usize {
        replies.spare.borrow().len()
    }

    #[test]
    fn a_place_is_used_again_once_both_ends_are_gone() {
        let replies = Replies::new();
        let (reply, mut awaited) = replies.pair();
        assert_eq!((&mut awaited).now_or_never(), None);
        reply.send(1);
        assert_eq!((&mut awaited).now_or_never(), Some(Some(1)));
        drop(awaited);
        assert_eq!(kept(&replies), 1);

        let (reply, awaited) = replies.pair();
        assert_eq!(kept(&replies), 0, "taken");
        drop(awaited);
        reply.send(2);
        assert_eq!(kept(&replies), 0, "the other end was still there");

        let (reply, awaited) = replies.pair();
        reply.send(3);
        drop(awaited);
        let (_reply, mut awaited) = replies.pair();
        assert_eq!((&mut awaited).now_or_never(), None, "nothing is left of what nobody heard");
    }

    #[test]
    fn a_reply_that_is_dropped_ends_the_wait() {
        let replies = Replies::<u8>::new();
        let (reply, awaited) = replies.pair();
        let waits = std::thread::spawn(move || drop(reply));
        assert_eq!(
            futures_util::FutureExt::now_or_never(async {
                waits.join().expect("it ends");
                awaited.await
            }),
            Some(None)
        );
    }

    #[test]
    fn an_answer_from_another_thread_wakes() {
        let replies = Replies::new();
        for number in 0..1000 {
            let (reply, awaited) = replies.pair();
            let sends = std::thread::spawn(move || reply.send(number));
            assert_eq!(block_on(awaited), Some(number));
            sends.join().expect("it ends");
        }
        assert!(kept(&replies) <= 1);
    }

    fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            match Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}
