//! A group member's hands: one connection to the coordinator, one request at a time.
//!
//! Lives on: a core of the generator; one task per consumer that is in a group.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::consume::Hands;
use super::core::ATTENTION;
use super::line::Line;
use super::member::{Member, To};
use crate::base::time::Instant;
use crate::io::Io;

/// The last commit and the farewell have this long.
const PARTING_TIME: Duration = Duration::from_secs(5);
/// Longer than a coordinator holds a JoinGroup back.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A conversation with whoever is to be talked to.
struct Talk<I: Io> {
    hands: Rc<Hands<I>>,
    member: Member,
    line: Option<Line<I>>,
    /// Brokers that were asked for the coordinator.
    tried: usize,
    /// When the member stops waiting for a farewell; set once the consumer has come to its end.
    deadline: Option<u64>,
}

/// Keeps the membership until the consumer has come to its end.
pub async fn run<I: Io>(hands: Rc<Hands<I>>, member: Member) {
    let mut talk = Talk { hands: hands.clone(), member, line: None, tried: 0, deadline: None };
    while !talk.is_over() {
        talk.step().await;
        hands.settle(talk.member.is_settled());
    }
    if let Some(line) = talk.line {
        line.close();
    }
    hands.settle(false);
    hands.task_ended();
}

impl<I: Io> Talk<I> {
    fn is_over(&self) -> bool {
        let is_late = |deadline| self.hands.core.now() >= deadline;
        self.member.is_gone() || self.deadline.is_some_and(is_late)
    }

    /// One request and its answer, or a while of rest.
    async fn step(&mut self) {
        let hands = self.hands.clone();
        let (core, now) = (&hands.core, hands.core.now());
        if self.deadline.is_none() && hands.is_over() {
            self.deadline = Some((Instant(now) + PARTING_TIME).0);
            self.member.leave(&mut hands.mind.borrow_mut());
        }
        let request = self.member.request(now, &hands.mind.borrow());
        let Some((to, request)) = request else {
            let attention = (Instant(now) + ATTENTION).0;
            let wake = self.member.next_wake().unwrap_or(attention).min(attention);
            return core.io.sleep_until(Instant(wake)).await;
        };
        let outcome = self.exchange(to, request).await;
        let taken = outcome.and_then(|length| self.take(length));
        let Err(error) = taken else { return };
        self.line = None;
        self.member.lost(core.now());
        let name = match error.kind() {
            // Our own doing, at the end.
            io::ErrorKind::Interrupted => return,
            io::ErrorKind::InvalidData => "STRANGE_ANSWER",
            _ => "COORDINATOR_LOST",
        };
        core.recorder.borrow_mut().error(name);
        hands.mind.borrow_mut().unreached();
    }

    /// Sends a request and waits for its answer; returns its length.
    async fn exchange(&mut self, to: To, request: Bytes) -> io::Result<usize> {
        let address = self.address(to).ok_or(io::ErrorKind::NotFound)?;
        let core = self.hands.core.clone();
        let line = match self.line.take().filter(|line| line.address == address) {
            Some(line) => line,
            None => {
                let route = self.hands.mind.borrow().route().clone();
                Line::open(&core, &route, address).await?
            }
        };
        let is_over = || match self.deadline {
            Some(deadline) => core.now() >= deadline,
            None => self.member.waits_for_others() && self.hands.is_over(),
        };
        self.line.insert(line).ask(&core, request, SILENCE_MAX, is_over).await
    }

    /// Gives the answer to the mind.
    fn take(&mut self, length: usize) -> io::Result<()> {
        let Some(line) = &mut self.line else { return Ok(()) };
        let core = &self.hands.core;
        let mind = &mut self.hands.mind.borrow_mut();
        let recorder = &mut core.recorder.borrow_mut();
        let taken = self.member.answer(line.answer(length), core.now(), mind, recorder);
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
