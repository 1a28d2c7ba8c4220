//! Turns at a partition: appends that are still being prepared, in the order in which they came.
//!
//! Invariants
//!   U1  Turns at one partition come in the order in which they were taken, each after the end of
//!       the one before it.
//!   U2  A partition at which nobody waits costs nothing.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::base::ids::PartitionId;

/// See the module's documentation.
#[derive(Default)]
pub struct Turns {
    queues: RefCell<HashMap<PartitionId, VecDeque<Place>>>,
    next: Cell<u64>,
}

struct Place {
    number: u64,
    waker: Option<Waker>,
}

/// A place in a partition's queue; its end lets the next one come.
pub struct Turn {
    turns: Rc<Turns>,
    partition: PartitionId,
    number: u64,
}

impl Turns {
    pub fn take(self: &Rc<Self>, partition: PartitionId) -> Turn {
        let number = self.next.get();
        self.next.set(number + 1);
        let mut queues = self.queues.borrow_mut();
        queues.entry(partition).or_default().push_back(Place { number, waker: None });
        Turn { turns: self.clone(), partition, number }
    }

    /// Whether somebody has or waits for a turn.
    pub fn is_taken(&self, partition: PartitionId) -> bool {
        self.queues.borrow().contains_key(&partition)
    }
}

impl Turn {
    /// Returns once all turns before this one have ended.
    pub async fn come(&self) {
        poll_fn(|context| {
            let mut queues = self.turns.queues.borrow_mut();
            let Some(queue) = queues.get_mut(&self.partition) else { return Poll::Ready(()) };
            if queue.front().is_none_or(|first| first.number == self.number) {
                return Poll::Ready(());
            }
            if let Some(place) = queue.iter_mut().find(|place| place.number == self.number) {
                place.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queues = self.turns.queues.borrow_mut();
        let Some(queue) = queues.get_mut(&self.partition) else { return };
        queue.retain(|place| place.number != self.number);
        match queue.front_mut() {
            Some(first) => first.waker.take().into_iter().for_each(Waker::wake),
            None => drop(queues.remove(&self.partition)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::base::ids::TopicNumber;

    #[test]
    fn turns_come_in_the_order_in_which_they_were_taken() {
        let turns = Rc::new(Turns::default());
        let id = |index| PartitionId { topic: TopicNumber(1), index };
        let mut all: Vec<Turn> = (0..4).map(|_| turns.take(id(0))).collect();
        let other = turns.take(id(1));
        assert!(other.come().now_or_never().is_some(), "another partition");
        let has_come = |turn: &Turn| turn.come().now_or_never().is_some();
        assert_eq!(all.iter().map(has_come).collect::<Vec<_>>(), [true, false, false, false]);
        drop(all.remove(2));
        drop(all.remove(0));
        assert_eq!(all.iter().map(has_come).collect::<Vec<_>>(), [true, false]);
        all.clear();
        assert!(!turns.is_taken(id(0)) && turns.is_taken(id(1)));
    }
}
