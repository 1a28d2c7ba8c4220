//! A consumer's hands: a fetch after the other on each lane, connected again when it breaks.
//!
//! Lives on: a core of the generator; one task per consumer and lane.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::consumer::{Consumer, Outcome};
use super::core::{ATTENTION, Core, connect};
use super::link::{Bell, await_frame, consume, frame, until};
use super::options::{Mode, Start};
use crate::base::time::Instant;
use crate::io::{Io, Stream};

const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// A broker holds an empty answer back for so long.
const WAIT_MS: i32 = 500;
/// The same, when all that is left to learn is that nothing follows.
const LAST_WAIT_MS: i32 = 50;
/// A broker that answers nothing for so long is hung up on (Kafka's request.timeout.ms).
const SILENCE_MAX: Duration = Duration::from_secs(30);

struct Hands<I: Io> {
    core: Rc<Core<I>>,
    mind: RefCell<Consumer>,
    lanes_left: Cell<usize>,
    ended: Bell,
}

/// Runs until the time is over or everything is read.
pub async fn run<I: Io>(core: Rc<Core<I>>, mind: Consumer, streams: Vec<I::Stream>) {
    let lanes: Vec<usize> = (0..mind.lanes()).filter(|lane| mind.is_used(*lane)).collect();
    let hands = Rc::new(Hands {
        core: core.clone(),
        mind: RefCell::new(mind),
        lanes_left: Cell::new(lanes.len()),
        ended: Bell::default(),
    });
    for (lane, stream) in streams.into_iter().enumerate().filter(|(lane, _)| lanes.contains(lane)) {
        core.io.spawn("fetches", fetch(hands.clone(), lane, stream));
    }
    while hands.lanes_left.get() > 0 {
        hands.ended.rung().await;
    }
    core.client_ended();
}

async fn fetch<I: Io>(hands: Rc<Hands<I>>, lane: usize, stream: I::Stream) {
    let address = hands.core.shape.target.brokers.get(lane).copied();
    let mut stream = Some(stream);
    loop {
        let Some(current) = stream.take() else {
            hands.core.io.sleep(RECONNECT_PAUSE).await;
            if hands.is_over(None) {
                break;
            }
            let Some(address) = address else { break };
            match connect(&hands.core.io, address).await {
                Ok(again) => stream = Some(again),
                Err(_) => hands.core.recorder.borrow_mut().error("CONNECT_FAILED"),
            }
            continue;
        };
        let Err(error) = converse(&hands, lane, &current).await else { break };
        current.shutdown();
        let name = match error.kind() {
            io::ErrorKind::InvalidData => "STRANGE_ANSWER",
            _ => "CONNECTION_LOST",
        };
        hands.core.recorder.borrow_mut().error(name);
        hands.mind.borrow_mut().lost(lane);
    }
    hands.lanes_left.set(hands.lanes_left.get() - 1);
    hands.ended.ring();
}

/// Request after request; `Ok` when there is nothing more to read.
async fn converse<I: Io>(hands: &Hands<I>, lane: usize, stream: &I::Stream) -> io::Result<()> {
    let core = &hands.core;
    let mut received = BytesMut::new();
    loop {
        let is_last = core.control.have_producers_ended();
        let wait_ms = if is_last { LAST_WAIT_MS } else { WAIT_MS };
        let request = hands.mind.borrow_mut().request(lane, wait_ms);
        stream.write(vec![request]).await?;
        let Some(length) = hands.await_answer(stream, &mut received).await? else { return Ok(()) };
        let outcome = {
            let answer = frame(&received, length);
            let recorder = &mut core.recorder.borrow_mut();
            let ledger = &mut core.ledger.borrow_mut();
            let mind = &mut hands.mind.borrow_mut();
            mind.answer(lane, answer, core.now(), recorder, ledger)
        };
        let outcome = outcome.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        consume(&mut received, length);
        let is_read = core.shape.plan.mode == Mode::Consume
            && core.shape.plan.from == Start::Beginning
            && hands.mind.borrow().has_reached_the_end(lane);
        let outcome_counts = Some(outcome).filter(|_| is_last);
        if is_read || hands.is_over(outcome_counts) {
            return Ok(());
        }
        if outcome.is_wrong {
            core.io.sleep(ERROR_PAUSE).await;
        }
    }
}

impl<I: Io> Hands<I> {
    /// Whether to stop; `last` is the answer to a request that was sent after all producers ended.
    fn is_over(&self, last: Option<Outcome>) -> bool {
        if !self.core.is_over() {
            return false;
        }
        match self.core.shape.plan.mode {
            Mode::E2e | Mode::Verify => {
                let is_drained = last.is_some_and(|last| last.is_empty && !last.is_wrong);
                is_drained || self.core.now() >= self.core.patience()
            }
            _ => true,
        }
    }

    /// The next answer's length; `None` if the run is over before it is there.
    async fn await_answer(
        &self,
        stream: &I::Stream,
        received: &mut BytesMut,
    ) -> io::Result<Option<usize>> {
        let deadline = Instant(self.core.now()) + SILENCE_MAX;
        loop {
            let io = &self.core.io;
            // A read that is given up half-way has left what it got in `received`.
            let answer = await_frame(stream, received);
            if let Some(outcome) = until(answer, io.sleep(ATTENTION)).await {
                return outcome.map(Some);
            }
            if self.is_over(None) {
                return Ok(None);
            }
            if io.now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
