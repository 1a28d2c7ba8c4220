//! A line: who comes first is served first, one at a time.
//!
//! The lock of `futures_util` wakes whoever waits in the first of its slots, and those who come
//! back take the first slot that is free: with three who come back at once, the third waits for
//! ever.
//!
//! Invariants
//!   W1  Places come in the order in which they were taken, each after the end of the one before.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// See the module's documentation.
#[derive(Default)]
pub struct Line {
    places: RefCell<VecDeque<(u64, Option<Waker>)>>,
    next: Cell<u64>,
}

/// A place in a line; its end lets the next one come.
pub struct Place {
    line: Rc<Line>,
    number: u64,
}

impl Line {
    /// The last place.
    pub fn stand(self: &Rc<Self>) -> Place {
        let number = self.next.get();
        self.next.set(number + 1);
        self.places.borrow_mut().push_back((number, None));
        Place { line: self.clone(), number }
    }

    /// The last place, once it has come.
    pub async fn turn(self: &Rc<Self>) -> Place {
        let place = self.stand();
        place.come().await;
        place
    }

    /// Whether nobody stands in it.
    pub fn is_empty(&self) -> bool {
        self.places.borrow().is_empty()
    }

    /// Places taken, the one that is served included.
    pub fn len(&self) -> usize {
        self.places.borrow().len()
    }
}

impl Place {
    /// Returns once all places before this one have ended.
    pub async fn come(&self) {
        poll_fn(|context| {
            let mut places = self.line.places.borrow_mut();
            if places.front().is_none_or(|(first, _)| *first == self.number) {
                return Poll::Ready(());
            }
            let at = places.partition_point(|(number, _)| *number < self.number);
            if let Some((_, waker)) = places.get_mut(at) {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.line.places.borrow_mut();
        let at = places.partition_point(|(number, _)| *number < self.number);
        places.remove(at);
        if at == 0
            && let Some((_, waker)) = places.front_mut()
        {
            waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn places_come_in_the_order_in_which_they_were_taken() {
        let line = Rc::new(Line::default());
        let mut all: Vec<Place> = (0..4).map(|_| line.stand()).collect();
        let has_come = |place: &Place| place.come().now_or_never().is_some();
        assert_eq!(all.iter().map(has_come).collect::<Vec<_>>(), [true, false, false, false]);
        drop(all.remove(2));
        assert_eq!(all.iter().map(has_come).collect::<Vec<_>>(), [true, false, false]);
        drop(all.remove(0));
        assert_eq!(all.iter().map(has_come).collect::<Vec<_>>(), [true, false]);
        assert_eq!(line.len(), 2);
        all.clear();
        assert_eq!(line.len(), 0);
        assert!(has_come(&line.stand()));
    }
}
