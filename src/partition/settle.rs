//! Settling: when a journal group is durable, its partitions' high watermarks rise, waiting fetches
//! wake, and the producers' answers leave.
//!
//! Invariants
//!   T1  Appends and answers settle in the order in which they were queued, none before its
//!       journal position is durable.
//!   T2  After poisoning every queued answer becomes an error, and no high watermark moves.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::append::{ProduceAnswer, ProduceAnswers, ProduceReply};
use super::{Log, Owner};
use crate::base::ids::Offset;
use crate::io::Io;
use crate::io::mailbox::oneshot;
use crate::journal::Position;

/// What waits for the disk on one core.
pub struct Settling {
    queue: RefCell<VecDeque<Waiting>>,
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
    /// A produce request's share of this core.
    Answer { reply: ProduceReply, answers: ProduceAnswers },
    /// Anything else that must not happen before.
    Notice { reply: oneshot::Sender<bool> },
}

impl Settling {
    pub fn new() -> Settling {
        Settling {
            queue: RefCell::new(VecDeque::new()),
            settled: Cell::new(Position(0)),
            newest: Cell::new(Position(0)),
            failed: Cell::new(false),
        }
    }

    pub fn appended(&self, position: Position, log: Log, next: Offset, bytes: u32) {
        self.push(position, What::Appended { log, next, bytes });
    }

    pub fn answer(&self, position: Position, reply: ProduceReply, answers: ProduceAnswers) {
        self.push(position, What::Answer { reply, answers });
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
            return what.fail();
        }
        let mut queue = self.queue.borrow_mut();
        self.newest.set(position);
        if queue.is_empty() && position <= self.settled.get() {
            drop(queue);
            return what.settle();
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

    fn fail_from_here(&self) {
        self.failed.set(true);
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        for waiting in queue {
            waiting.what.fail();
        }
    }
}

impl What {
    fn settle(self) {
        match self {
            What::Appended { log, next, bytes } => log.borrow_mut().settled(next, bytes),
            // A receiver that is gone belongs to a closed connection.
            What::Answer { reply, answers } => reply.send(answers),
            What::Notice { reply } => drop(reply.send(true)),
        }
    }

    fn fail(self) {
        match self {
            What::Appended { .. } => {}
            What::Answer { reply, mut answers } => {
                answers.iter_mut().for_each(ProduceAnswer::fail_storage);
                reply.send(answers);
            }
            What::Notice { reply } => drop(reply.send(false)),
        }
    }
}

/// Settles what the journal makes durable, until the journal is closed or poisoned.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    let mut settled = owner.journal.durable();
    loop {
        owner.settling.settled.set(settled);
        while let Some(what) = owner.settling.pop(settled) {
            what.settle();
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
