//! Produce across cores: split by owner, admitted in order, answers merged by slot.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::base::few::Few;
use crate::base::ids::CoreId;
use crate::io::Io;
use crate::io::reply::Awaited;
use crate::partition::{Acks, ProduceAnswer, ProduceAnswers, ProducePart};
use crate::wire::error::ErrorCode;

use super::Dispatch;
use super::lanes::Append;

/// An admitted request whose answers are still to come.
pub struct ProduceTicket {
    /// Those that are there, by slot.
    answers: ProduceAnswers,
    shares: Few<Share>,
}

struct Share {
    parts: usize,
    /// For each part of the share, its slot; `None` where the share is the whole request.
    slots: Option<Vec<usize>>,
    answers: Awaited<ProduceAnswers>,
}

impl<I: Io> Dispatch<I> {
    /// Hands every part to its owner; a part's slot is its place among them. When this returns, a
    /// later request's parts come behind.
    pub async fn produce(&self, parts: Few<ProducePart>, acks: Acks) -> ProduceTicket {
        let count = parts.len();
        let mut shares = Few::new();
        if let Some(core) = self.only_owner(parts.iter().map(|part| part.partition)) {
            let answers = self.produce_on(core, parts, acks).await;
            shares.push(Share { parts: count, slots: None, answers });
            return ProduceTicket { answers: ProduceAnswers::new(), shares };
        }
        let mut by_core: Vec<(CoreId, Vec<usize>, Few<ProducePart>)> = Vec::new();
        for (slot, part) in parts.into_iter().enumerate() {
            let core = self.owner_of(part.partition);
            match by_core.iter_mut().find(|(owner, ..)| *owner == core) {
                Some((_, slots, parts)) => {
                    slots.push(slot);
                    parts.push(part);
                }
                None => by_core.push((core, vec![slot], Few::from_iter([part]))),
            }
        }
        for (core, slots, parts) in by_core {
            let answers = self.produce_on(core, parts, acks).await;
            shares.push(Share { parts: slots.len(), slots: Some(slots), answers });
        }
        // Each slot is in one share.
        let unanswered = || ProduceAnswer::refused(ErrorCode::UNKNOWN_SERVER_ERROR, None);
        let answers = (0..count).map(|_| unanswered()).collect();
        ProduceTicket { answers, shares }
    }

    async fn produce_on(
        &self,
        core: CoreId,
        parts: Few<ProducePart>,
        acks: Acks,
    ) -> Awaited<ProduceAnswers> {
        let (reply, answers) = self.owner.produce_replies().pair();
        if self.is_local(core) {
            self.owner.produce(parts, acks, reply).await;
        } else if let Some(lane) = self.lanes.get(core.index()) {
            // A refused append drops its reply, which the ticket reads as the owner gone.
            drop(lane.appends.send(Append { parts, acks, reply }).await);
        }
        answers
    }
}

impl ProduceTicket {
    /// The answer of each slot, as soon as the last is there.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<ProduceAnswers> {
        while let Some(share) = self.shares.last_mut() {
            let found = ready!(Pin::new(&mut share.answers).poll(context));
            let (parts, slots) = (share.parts, share.slots.take());
            self.shares.pop();
            let found = found.unwrap_or_else(|| (0..parts).map(|_| owner_gone()).collect());
            let Some(slots) = slots else {
                self.answers = found;
                continue;
            };
            for (slot, answer) in slots.into_iter().zip(found) {
                if let Some(place) = self.answers.get_mut(slot) {
                    *place = answer;
                }
            }
        }
        Poll::Ready(std::mem::take(&mut self.answers))
    }
}

fn owner_gone() -> ProduceAnswer {
    let why = "the partition's core has stopped".to_string();
    ProduceAnswer::refused(ErrorCode::KAFKA_STORAGE_ERROR, why)
}
