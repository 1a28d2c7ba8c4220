//! Bounded queues and single answers between cores, woken by plain wakers.
//!
//! Any executor drives them, so the same code runs on glommio threads, in the simulator and on the
//! control thread. A sender on another core costs one wake of a parked receiver, however many
//! messages it finds.
//!
//! Invariants
//!   M1  A queue never holds more than its capacity; a full queue gives the message back.
//!   M2  Messages of one sender arrive in the order they were sent.
//!   M3  Senders that wait for room are woken in turn as messages are taken.
//!   M4  Every send that returned `Ok` while the receiver lives is received; a receiver waiting
//!       on an empty queue is woken by it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;

pub use futures_channel::oneshot;

struct Shared<T> {
    queue: ArrayQueue<T>,
    receiver: AtomicWaker,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
    /// Senders that found the queue full. Touched only then, so a queue with room costs no lock.
    waiting: Mutex<VecDeque<Waker>>,
    waiting_count: AtomicUsize,
}

impl<T> Shared<T> {
    fn pop(&self) -> Option<T> {
        let message = self.queue.pop()?;
        if self.waiting_count.load(Ordering::SeqCst) > 0 {
            self.wake_a_sender();
        }
        Some(message)
    }

    fn wake_a_sender(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waker = waiting.pop_front();
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn wait_for_room(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(waker.clone());
        self.waiting_count.store(waiting.len(), Ordering::SeqCst);
    }
}

/// The sending half; cloned for every core that sends.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving half; one owner.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// Why a message was not taken; it comes back to the caller.
#[derive(Debug)]
pub enum Refused<T> {
    Full(T),
    Closed(T),
}

/// A queue of at most `capacity` messages.
pub fn mailbox<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        receiver: AtomicWaker::new(),
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
        waiting: Mutex::new(VecDeque::new()),
        waiting_count: AtomicUsize::new(0),
    });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

impl<T: Send> Sender<T> {
    /// Puts `message` into the queue and wakes the receiver.
    pub fn try_send(&self, message: T) -> Result<(), Refused<T>> {
        if self.shared.receiver_gone.load(Ordering::Acquire) {
            return Err(Refused::Closed(message));
        }
        self.shared.queue.push(message).map_err(Refused::Full)?;
        self.shared.receiver.wake();
        Ok(())
    }

    /// Puts `message` into the queue as soon as there is room; gives it back if the receiver is
    /// gone.
    pub async fn send(&self, message: T) -> Result<(), T> {
        let mut held = Some(message);
        poll_fn(|context| {
            // The second try closes the gap between the first and the registration.
            for registered in [false, true] {
                let Some(message) = held.take() else { return Poll::Ready(Ok(())) };
                match self.try_send(message) {
                    Ok(()) => return Poll::Ready(Ok(())),
                    Err(Refused::Closed(message)) => return Poll::Ready(Err(message)),
                    Err(Refused::Full(message)) => held = Some(message),
                }
                if !registered {
                    self.shared.wait_for_room(context.waker());
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.receiver.wake();
        }
    }
}

impl<T: Send> Receiver<T> {
    /// The oldest message, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        self.shared.pop()
    }

    /// The oldest message, as soon as there is one; `None` once the queue is empty and every
    /// sender is gone.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| {
            if let Some(message) = self.shared.pop() {
                return Poll::Ready(Some(message));
            }
            self.shared.receiver.register(context.waker());
            // A message may have come between the look and the registration.
            if let Some(message) = self.shared.pop() {
                return Poll::Ready(Some(message));
            }
            if self.shared.senders.load(Ordering::Acquire) == 0 {
                return Poll::Ready(self.shared.pop());
            }
            Poll::Pending
        })
        .await
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        while self.shared.queue.pop().is_some() {}
        while self.shared.waiting_count.load(Ordering::SeqCst) > 0 {
            self.shared.wake_a_sender();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_full_queue_gives_the_message_back() {
        let (sender, mut receiver) = mailbox(2);
        assert!(sender.try_send(1).is_ok());
        assert!(sender.try_send(2).is_ok());
        assert!(matches!(sender.try_send(3), Err(Refused::Full(3))));
        assert_eq!(receiver.try_recv(), Some(1));
        assert!(sender.try_send(3).is_ok());
        assert_eq!(receiver.recv().now_or_never(), Some(Some(2)));
        assert_eq!(receiver.recv().now_or_never(), Some(Some(3)));
        assert_eq!(receiver.recv().now_or_never(), None);
    }

    #[test]
    fn a_receiver_learns_that_all_senders_are_gone() {
        let (sender, mut receiver) = mailbox::<u8>(1);
        let second = sender.clone();
        drop(sender);
        assert_eq!(receiver.recv().now_or_never(), None);
        drop(second);
        assert_eq!(receiver.recv().now_or_never(), Some(None));
    }

    #[test]
    fn a_sender_learns_that_the_receiver_is_gone() {
        let (sender, receiver) = mailbox(1);
        drop(receiver);
        assert!(matches!(sender.try_send(7), Err(Refused::Closed(7))));
    }

    #[test]
    fn a_sender_waits_for_room_and_is_woken_by_it() {
        let (sender, mut receiver) = mailbox(1);
        assert_eq!(sender.send(1).now_or_never(), Some(Ok(())));
        let mut second = Box::pin(sender.send(2));
        assert_eq!(second.as_mut().now_or_never(), None);
        assert_eq!(receiver.try_recv(), Some(1));
        assert_eq!(second.as_mut().now_or_never(), Some(Ok(())));
        let mut third = Box::pin(sender.send(3));
        assert_eq!(third.as_mut().now_or_never(), None);
        drop(receiver);
        assert_eq!(third.as_mut().now_or_never(), Some(Err(3)));
    }

    /// Miri interprets, which is a thousand times slower.
    const MESSAGES: usize = if cfg!(miri) { 20 } else { 1000 };

    #[test]
    fn every_message_of_many_threads_arrives_in_each_senders_order() {
        let (sender, mut receiver) = mailbox::<(usize, usize)>(8);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for number in 0..MESSAGES {
                        let mut message = (thread, number);
                        while let Err(Refused::Full(back)) = sender.try_send(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut next = [0; 4];
        while next != [MESSAGES; 4] {
            while let Some((thread, number)) = receiver.try_recv() {
                assert_eq!(next[thread], number);
                next[thread] += 1;
            }
            std::thread::yield_now();
        }
        for thread in threads {
            assert!(thread.join().is_ok());
        }
    }
}
