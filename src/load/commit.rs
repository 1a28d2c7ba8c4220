//! A transactional producer's hands at its coordinator: one connection, one request at a time.
//!
//! Lives on: a core of the generator; one task per producer whose run has transactions.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::core::ATTENTION;
use super::line::Line;
use super::link::until;
use super::member::To;
use super::produce::Hands;
use crate::base::time::Instant;
use crate::io::Io;

/// A coordinator that answers nothing for so long is hung up on (Kafka's request.timeout.ms).
const SILENCE_MAX: Duration = Duration::from_secs(30);

struct Talk<I: Io> {
    hands: Rc<Hands<I>>,
    line: Option<Line<I>>,
    /// Brokers that were asked for the coordinator.
    tried: usize,
}

/// Tells the coordinator what there is to tell until the producer has come to its end.
pub async fn run<I: Io>(hands: Rc<Hands<I>>) {
    let mut talk = Talk { hands: hands.clone(), line: None, tried: 0 };
    while !hands.is_over() {
        talk.step().await;
    }
    if let Some(line) = talk.line {
        line.close();
    }
}

impl<I: Io> Talk<I> {
    /// One request and its answer, or a while of rest.
    async fn step(&mut self) {
        let hands = self.hands.clone();
        let (core, now) = (&hands.core, hands.core.now());
        let request = {
            let ledger = &mut core.ledger.borrow_mut();
            hands.mind.borrow_mut().coordinator_request(now, ledger)
        };
        let Some((to, request)) = request else {
            let attention = (Instant(now) + ATTENTION).0;
            let wake = hands.mind.borrow().coordinator_wake(now).unwrap_or(attention);
            let wake = core.io.sleep_until(Instant(wake.min(attention)));
            until(hands.coordinator_bell.rung(), wake).await;
            return;
        };
        let outcome = self.exchange(to, request).await;
        let taken = outcome.and_then(|length| self.take(length));
        hands.bell.ring();
        let Err(error) = taken else { return };
        self.line = None;
        hands.mind.borrow_mut().coordinator_lost(core.now());
        let name = match error.kind() {
            // Our own doing, at the end.
            io::ErrorKind::Interrupted => return,
            io::ErrorKind::InvalidData => "STRANGE_ANSWER",
            _ => "COORDINATOR_LOST",
        };
        core.recorder.borrow_mut().error(name);
    }

    /// Sends a request and waits for its answer; returns its length.
    async fn exchange(&mut self, to: To, request: Bytes) -> io::Result<usize> {
        let address = self.address(to).ok_or(io::ErrorKind::NotFound)?;
        let hands = self.hands.clone();
        let line = match self.line.take().filter(|line| line.address == address) {
            Some(line) => line,
            None => {
                let route = hands.mind.borrow().route().clone();
                Line::open(&hands.core, &route, address).await?
            }
        };
        let is_over = || hands.is_over();
        self.line.insert(line).ask(&hands.core, request, SILENCE_MAX, is_over).await
    }

    /// Gives the answer to the mind.
    fn take(&mut self, length: usize) -> io::Result<()> {
        let Some(line) = &mut self.line else { return Ok(()) };
        let core = &self.hands.core;
        let mind = &mut self.hands.mind.borrow_mut();
        let (recorder, ledger) = (&mut core.recorder.borrow_mut(), &mut core.ledger.borrow_mut());
        let taken = mind.coordinator_answer(line.answer(length), core.now(), recorder, ledger);
        line.consume(length);
        taken.map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn address(&mut self, to: To) -> Option<SocketAddr> {
        let mind = self.hands.mind.borrow();
        let route = mind.route();
        match to {
            To::Node(id) => route.address(id),
            To::Anyone => {
                self.tried += 1;
                route.broker(self.tried % route.brokers().len().max(1))
            }
        }
    }
}
