//! Settling: when a journal group is durable, its partitions' high watermarks rise, waiting fetches
//! wake, and the producers' answers leave.
//!
//! Invariants
//!   T1  Appends and answers settle in the order in which they were queued, none before its
//!       journal position is durable.
//!   T2  After poisoning every queued answer becomes an error, and no high watermark moves.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hint::black_box;
use std::rc::Rc;

use super::append::{ProduceAnswer, ProduceAnswers, ProduceReply};
use super::{Log, Owner};
use crate::base::ids::Offset;
use crate::io::Io;
use crate::io::mailbox::oneshot;
use crate::journal::Position;

/// Partitions whose states are fetched into the processor's cache side by side.
pub(super) const TOUCHED: usize = 16;

/// What waits for the disk on one core.
pub struct Settling {
    queue: RefCell<VecDeque<Waiting>>,
    /// Those of the answers in it, which are far larger than what else there is.
    answers: RefCell<VecDeque<(ProduceReply, ProduceAnswers)>>,
    /// Everything up to here has settled.
    settled: Cell<Position>,
    /// The newest position that was ever queued.
    newest: Cell<Position>,
    /// The journal is closed or poisoned: nothing settles any more.
    failed: Cell<bool>,
}

struct Waiting {
    position: Position,
    what: What,
}

enum What {
    /// A partition's records up to `next`.
    Appended { log: Log, next: Offset, bytes: u32 },
    /// A produce request's share of this core: the next of the answers.
    Answer,
    /// Anything else that must not happen before.
    Notice { reply: oneshot::Sender<bool> },
}

impl Settling {
    pub fn new() -> Settling {
        Settling {
            queue: RefCell::default(),
            answers: RefCell::default(),
            settled: Cell::new(Position(0)),
            newest: Cell::new(Position(0)),
            failed: Cell::new(false),
        }
    }

    pub fn appended(&self, position: Position, log: Log, next: Offset, bytes: u32) {
        self.push(position, What::Appended { log, next, bytes });
    }

    pub fn answer(&self, position: Position, reply: ProduceReply, answers: ProduceAnswers) {
        self.answers.borrow_mut().push_back((reply, answers));
        self.push(position, What::Answer);
    }

    /// The newest position that waits or has settled.
    pub fn newest(&self) -> Position {
        self.newest.get()
    }

    /// Resolves to true once `position` has settled, to false if it never will.
    pub async fn notice(&self, position: Position) -> bool {
        let (reply, answer) = oneshot::channel();
        self.push(position, What::Notice { reply });
        answer.await.unwrap_or(false)
    }

    fn push(&self, position: Position, what: What) {
        if self.failed.get() {
            return self.fail(what);
        }
        let mut queue = self.queue.borrow_mut();
        self.newest.set(position);
        if queue.is_empty() && position <= self.settled.get() {
            drop(queue);
            return self.settle(what);
        }
        debug_assert!(queue.back().is_none_or(|last| last.position <= position), "T1");
        queue.push_back(Waiting { position, what });
    }

    fn pop(&self, durable: Position) -> Option<What> {
        let mut queue = self.queue.borrow_mut();
        if queue.front()?.position > durable {
            return None;
        }
        queue.pop_front().map(|waiting| waiting.what)
    }

    fn settle(&self, what: What) {
        match what {
            What::Appended { log, next, bytes } => log.borrow_mut().settled(next, bytes),
            What::Answer => {
                let answer = self.answers.borrow_mut().pop_front();
                // A receiver that is gone belongs to a closed connection.
                answer.into_iter().for_each(|(reply, answers)| reply.send(answers));
            }
            What::Notice { reply } => drop(reply.send(true)),
        }
    }

    fn fail(&self, what: What) {
        match what {
            What::Appended { .. } => {}
            What::Answer => {
                let answer = self.answers.borrow_mut().pop_front();
                if let Some((reply, mut answers)) = answer {
                    answers.iter_mut().for_each(ProduceAnswer::fail_storage);
                    reply.send(answers);
                }
            }
            What::Notice { reply } => drop(reply.send(false)),
        }
    }

    /// Reads a little of the next partitions' states: see `PartitionLog::touch`.
    fn touch(&self) {
        let queue = self.queue.borrow();
        let next = queue.iter().take(TOUCHED).map(|waiting| match &waiting.what {
            What::Appended { log, .. } => log.borrow().high_watermark(),
            What::Answer | What::Notice { .. } => 0,
        });
        black_box(next.fold(0, Offset::wrapping_add));
    }

    fn fail_from_here(&self) {
        self.failed.set(true);
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        for waiting in queue {
            self.fail(waiting.what);
        }
    }
}

/// Settles what the journal makes durable, until the journal is closed or poisoned.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let mut settled = owner.journal.durable();
    loop {
        owner.settling.settled.set(settled);
        let mut count = 0_usize;
        while let Some(what) = owner.settling.pop(settled) {
            count += 1;
            if count.is_multiple_of(TOUCHED) {
                owner.settling.touch();
            }
            owner.settling.settle(what);
        }
        match owner.journal.durable_after(settled).await {
            Ok(durable) => settled = durable,
            Err(_) if owner.journal.is_closed() => break,
            Err(poisoned) => {
                if owner.shared.directories().count() == 1 {
                    tracing::error!("{} stops taking writes: {poisoned}", owner.core());
                }
                owner.give_up_directory(poisoned.cause());
                break;
            }
        }
    }
    owner.settling.fail_from_here();
}
