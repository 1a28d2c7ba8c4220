//! The queue of answers of one connection, and the task that writes them.
//!
//! Invariants
//!   A1  Answers are written in the order in which they were queued.
//!   A2  What is ready together goes out together, but for a backlog that is read beside writes:
//!       that goes out a little at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::{Charge, Closed, Connection};
use crate::base::few::Few;
use crate::base::limits;
use crate::handler::produce;
use crate::io::pace::BREATH;
use crate::io::{Io, Stream};
use crate::partition::Held;
use crate::wire::pieces::Pieces;

/// An answer, or what it will be made of.
pub enum Answer {
    /// It is among the pieces already: everything before it is written.
    Written,
    Ready(Vec<Bytes>),
    /// It follows when the disk has the records.
    Produce(produce::Pending),
}

/// Bytes of answers that are collected for one write at most, unless one answer is larger.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// A slow reader is one that does not take this much within its time. Nor has the core's other
/// work to wait for more than this: a socket that takes everything at once copies it meanwhile.
const PROGRESS_BYTES: usize = 128 << 10;
/// What goes out before a `BREATH` where it gives way.
const GIVE_WAY_BYTES: usize = 64 << 10;
/// Places for pieces, and for answers, that a connection keeps.
const KEEP_PIECES_MAX: usize = 256;
const KEEP_QUEUED_MAX: usize = 32;

struct Queued {
    answer: Answer,
    bytes: usize,
    _charge: Charge,
}

/// See the module's documentation.
pub struct Answers {
    queue: RefCell<VecDeque<Queued>>,
    /// Of the answers that are ready and not yet on their way.
    pieces: RefCell<Pieces>,
    /// Bytes of requests whose answers are not written.
    inflight_bytes: Cell<usize>,
    /// Counts the records among the pieces until they are written.
    held: RefCell<Few<Held>>,
    ended: Cell<bool>,
    writer: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
}

impl Answers {
    pub fn new() -> Answers {
        Answers {
            queue: RefCell::new(VecDeque::new()),
            pieces: RefCell::new(Pieces::new()),
            inflight_bytes: Cell::new(0),
            held: RefCell::default(),
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

    /// Where an answer is put that is then pushed as `Written`; only once all others are.
    pub fn pieces(&self) -> &RefCell<Pieces> {
        &self.pieces
    }

    /// Keeps what counts the records put among the pieces, until these are written.
    pub fn hold(&self, held: Few<Held>) {
        *self.held.borrow_mut() = held;
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

    /// Moves all answers that are ready behind `out`, and says of how many request bytes they are
    /// the answer.
    fn poll_ready(
        &self,
        context: &mut Context<'_>,
        out: &mut VecDeque<Bytes>,
    ) -> Poll<Option<usize>> {
        let mut pieces = self.pieces.borrow_mut();
        let mut answered = 0;
        loop {
            // The answer is polled outside the queue, which it may look at.
            let Some(mut first) = self.queue.borrow_mut().pop_front() else { break };
            match first.answer.poll(context, &mut pieces) {
                Poll::Ready(Ok(())) => answered += first.bytes,
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
            if pieces.len() >= WRITE_BYTES_MAX {
                break;
            }
        }
        if answered > 0 {
            self.queue.borrow_mut().shrink_to(KEEP_QUEUED_MAX);
            pieces.take(out);
            return Poll::Ready(Some(answered));
        }
        if self.ended.get() && self.queue.borrow().is_empty() {
            return Poll::Ready(None);
        }
        *self.writer.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whether writing what is ready gives way to others.
    fn gives_way(&self) -> bool {
        self.held.borrow().iter().any(|held| held.gives_way)
    }

    fn written(&self, answered: usize) {
        // An answer with records is the first of those in the queue.
        self.held.borrow_mut().clear();
        self.inflight_bytes.set(self.inflight_bytes.get() - answered);
        wake(&self.reader);
    }
}

impl Answer {
    /// Puts it behind `out` once it is there.
    fn poll(&mut self, context: &mut Context<'_>, out: &mut Pieces) -> Poll<Result<(), Closed>> {
        match self {
            Answer::Written => Poll::Ready(Ok(())),
            Answer::Ready(pieces) => {
                pieces.drain(..).for_each(|piece| out.put(piece));
                Poll::Ready(Ok(()))
            }
            Answer::Produce(pending) => pending.poll(context, out),
        }
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
    let (mut pieces, mut step) = (VecDeque::new(), Vec::new());
    while let Some(answered) = poll_fn(|context| answers.poll_ready(context, &mut pieces)).await {
        let gives_way = answers.gives_way();
        if write_all(io, connection, (&mut pieces, &mut step), gives_way).await.is_err() {
            // The reader notices the same broken socket.
            answers.end();
            break;
        }
        pieces.shrink_to(KEEP_PIECES_MAX);
        step.shrink_to(KEEP_PIECES_MAX);
        answers.written(answered);
    }
    connection.stream.shutdown();
}

/// Writes in steps, so that a client which takes its answer slowly is told from one which takes
/// nothing, and others have the core, or its CPU, between them.
async fn write_all<I: Io>(
    io: &I,
    connection: &Connection<I>,
    (pieces, step): (&mut VecDeque<Bytes>, &mut Vec<Bytes>),
    gives_way: bool,
) -> std::io::Result<()> {
    while !pieces.is_empty() {
        connection.writes_since.set(Some(io.now()));
        fill_step(step, pieces, if gives_way { GIVE_WAY_BYTES } else { PROGRESS_BYTES });
        let outcome = connection.stream.write_out(step).await;
        connection.writes_since.set(None);
        outcome?;
        match pieces.is_empty() {
            true => {}
            false if gives_way => io.sleep(BREATH).await,
            false => io.cede().await,
        }
    }
    Ok(())
}

fn fill_step(step: &mut Vec<Bytes>, pieces: &mut VecDeque<Bytes>, mut room: usize) {
    while room > 0
        && let Some(mut piece) = pieces.pop_front()
    {
        if piece.len() > room {
            pieces.push_front(piece.split_off(room));
        }
        room -= piece.len();
        step.push(piece);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::connection::Budget;
    use crate::io::Listener;
    use crate::io::sim::{Settings, World};

    /// What `connection.inflight.bytes.max` promises.
    #[test]
    fn no_request_is_taken_while_too_many_bytes_are_in_flight() {
        let answers = Answers::new();
        let budget = Budget::new(1 << 20);
        let begin = || {
            let charge = budget.charge(600).now_or_never().expect("within the budget");
            answers.push(Answer::Ready(Vec::new()), 600, charge);
        };
        begin();
        assert_eq!(answers.room(1000).now_or_never(), Some(()), "600 of 1000 bytes");
        begin();
        assert_eq!(answers.room(1000).now_or_never(), None, "1200 of 1000 bytes");
        answers.written(600);
        assert_eq!(answers.room(1000).now_or_never(), Some(()), "600 of 1000 bytes again");
    }

    #[test]
    fn an_answer_that_gives_way_goes_out_a_little_at_a_time() {
        const BYTES: usize = 8 * GIVE_WAY_BYTES;
        let mut settings = Settings::default();
        // So wide that nobody waits for the client.
        settings.network.buffers = (2 * BYTES as u64, 2 * BYTES as u64);
        let world = World::with(1, settings);
        let io = world.node().core(0);
        world.block_on(async {
            let listener = io.listen("0.0.0.0:9092".parse().expect("an address")).expect("free");
            let _client = io.connect(listener.address()).await.expect("accepted");
            let stream = listener.accept().await.expect("a client");
            let connection = Connection::new(stream, io.now());
            for (gives_way, least, most) in
                [(true, 7 * BREATH, 8 * BREATH), (false, Duration::ZERO, BREATH)]
            {
                let (mut pieces, mut step) =
                    (VecDeque::from([Bytes::from(vec![7; BYTES])]), Vec::new());
                let began = io.now();
                let outcome =
                    write_all(&io, &connection, (&mut pieces, &mut step), gives_way).await;
                assert!(outcome.is_ok() && pieces.is_empty());
                let took = io.now() - began;
                assert!((least..=most).contains(&took), "A2: {took:?}, giving way: {gives_way}");
            }
        });
    }
}
