//! The queue of answers of one connection, and the task that writes them.
//!
//! Invariants
//!   A1  Answers are written in the order in which they were queued.
//!   A2  What is ready together goes out together.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Charge, Closed, Connection};
use crate::base::limits;
use crate::io::{Io, Stream};

/// An answer's bytes, when they are there; empty for a request without an answer.
pub type Answer = Pin<Box<dyn Future<Output = Result<Vec<Bytes>, Closed>>>>;

/// Bytes of answers that are collected for one write at most, unless one answer is larger.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// A slow reader is one that does not take this much within its time. Nor has the core's other
/// work to wait for more than this: a socket that takes everything at once copies it meanwhile.
const PROGRESS_BYTES: usize = 128 << 10;

struct Queued {
    answer: Answer,
    bytes: usize,
    _charge: Charge,
}

/// See the module's documentation.
pub struct Answers {
    queue: RefCell<VecDeque<Queued>>,
    /// Bytes of requests whose answers are not written.
    inflight_bytes: Cell<usize>,
    ended: Cell<bool>,
    writer: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
}

impl Answers {
    pub fn new() -> Answers {
        Answers {
            queue: RefCell::new(VecDeque::new()),
            inflight_bytes: Cell::new(0),
            ended: Cell::new(false),
            writer: RefCell::new(None),
            reader: RefCell::new(None),
        }
    }

    /// Queues the answer of a request of `bytes`.
    pub fn push(&self, answer: Answer, bytes: usize, charge: Charge) {
        self.inflight_bytes.set(self.inflight_bytes.get() + bytes);
        self.queue.borrow_mut().push_back(Queued { answer, bytes, _charge: charge });
        wake(&self.writer);
    }

    /// Waits until every answer is written.
    pub async fn all_written(&self) {
        self.wait_for(|answers| answers.inflight_bytes.get() == 0).await;
    }

    /// Waits until there is room for another request in flight.
    pub async fn room(&self, inflight_bytes_max: usize) {
        self.wait_for(|answers| {
            let few = answers.queue.borrow().len() < limits::REQUESTS_IN_FLIGHT_MAX;
            few && answers.inflight_bytes.get() < inflight_bytes_max
        })
        .await;
    }

    /// No further answer comes.
    pub fn end(&self) {
        self.ended.set(true);
        wake(&self.writer);
        wake(&self.reader);
    }

    pub fn is_ended(&self) -> bool {
        self.ended.get()
    }

    async fn wait_for(&self, done: impl Fn(&Answers) -> bool) {
        poll_fn(|context| {
            if self.ended.get() || done(self) {
                return Poll::Ready(());
            }
            *self.reader.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The bytes of all answers that are ready, and of how many request bytes they are the answer.
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Option<(Vec<Bytes>, usize)>> {
        let mut ready: Vec<Bytes> = Vec::new();
        let mut ready_bytes = 0;
        let mut answered = 0;
        loop {
            // The answer is polled outside the queue, which it may look at.
            let Some(mut first) = self.queue.borrow_mut().pop_front() else { break };
            match first.answer.as_mut().poll(context) {
                Poll::Ready(Ok(pieces)) => {
                    answered += first.bytes;
                    ready_bytes += pieces.iter().map(Bytes::len).sum::<usize>();
                    ready.extend(pieces);
                }
                Poll::Ready(Err(Closed(why))) => {
                    tracing::warn!("a connection is closed: {why}");
                    self.queue.borrow_mut().clear();
                    self.end();
                    break;
                }
                Poll::Pending => {
                    self.queue.borrow_mut().push_front(first);
                    break;
                }
            }
            if ready_bytes >= WRITE_BYTES_MAX {
                break;
            }
        }
        if answered > 0 {
            return Poll::Ready(Some((ready, answered)));
        }
        if self.ended.get() && self.queue.borrow().is_empty() {
            return Poll::Ready(None);
        }
        *self.writer.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    fn written(&self, answered: usize) {
        self.inflight_bytes.set(self.inflight_bytes.get() - answered);
        wake(&self.reader);
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow_mut().take() {
        waker.wake();
    }
}

/// Writes a connection's answers until it ends.
pub async fn write<I: Io>(io: &I, connection: &Connection<I>) {
    let answers = &connection.answers;
    while let Some((pieces, answered)) = poll_fn(|context| answers.poll_ready(context)).await {
        if write_all(io, connection, pieces.into()).await.is_err() {
            // The reader notices the same broken socket.
            answers.end();
            break;
        }
        answers.written(answered);
    }
    connection.stream.shutdown();
}

/// Writes in steps, so that a client which takes its answer slowly is told from one which takes
/// nothing.
async fn write_all<I: Io>(
    io: &I,
    connection: &Connection<I>,
    mut pieces: VecDeque<Bytes>,
) -> std::io::Result<()> {
    while !pieces.is_empty() {
        connection.writes_since.set(Some(io.now()));
        let outcome = connection.stream.write(next_step(&mut pieces)).await;
        connection.writes_since.set(None);
        outcome?;
        if !pieces.is_empty() {
            io.cede().await;
        }
    }
    Ok(())
}

fn next_step(pieces: &mut VecDeque<Bytes>) -> Vec<Bytes> {
    let mut step = Vec::with_capacity(pieces.len());
    let mut room = PROGRESS_BYTES;
    while room > 0
        && let Some(mut piece) = pieces.pop_front()
    {
        if piece.len() > room {
            pieces.push_front(piece.split_off(room));
        }
        room -= piece.len();
        step.push(piece);
    }
    step
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::connection::Budget;

    /// What `connection.inflight.bytes.max` promises.
    #[test]
    fn no_request_is_taken_while_too_many_bytes_are_in_flight() {
        let answers = Answers::new();
        let budget = Budget::new(1 << 20);
        let begin = || {
            let charge = budget.charge(600).now_or_never().expect("within the budget");
            answers.push(Box::pin(std::future::pending()), 600, charge);
        };
        begin();
        assert_eq!(answers.room(1000).now_or_never(), Some(()), "600 of 1000 bytes");
        begin();
        assert_eq!(answers.room(1000).now_or_never(), None, "1200 of 1000 bytes");
        answers.written(600);
        assert_eq!(answers.room(1000).now_or_never(), Some(()), "600 of 1000 bytes again");
    }
}
