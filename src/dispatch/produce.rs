//! Produce across cores: split by owner, admitted in order, answers merged by slot.

use crate::base::ids::CoreId;
use crate::io::Io;
use crate::io::mailbox::oneshot;
use crate::partition::{Acks, ProduceAnswer, ProducePart};
use crate::wire::error::ErrorCode;

use super::Dispatch;
use super::lanes::Append;

/// An admitted request whose answers are still to come.
pub struct ProduceTicket {
    slots: usize,
    shares: Vec<Share>,
}

struct Share {
    /// For each part of the share, its place in the request.
    slots: Vec<usize>,
    answers: oneshot::Receiver<Vec<ProduceAnswer>>,
}

impl<I: Io> Dispatch<I> {
    /// Hands every part to its owner. When this returns, a later request's parts come behind.
    pub async fn produce(&self, parts: Vec<(usize, ProducePart)>, acks: Acks) -> ProduceTicket {
        let slots = parts.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0);
        let mut by_core: Vec<(CoreId, Vec<usize>, Vec<ProducePart>)> = Vec::new();
        for (slot, part) in parts {
            let core = self.owner_of(part.partition);
            match by_core.iter_mut().find(|(owner, ..)| *owner == core) {
                Some((_, slots, parts)) => {
                    slots.push(slot);
                    parts.push(part);
                }
                None => by_core.push((core, vec![slot], vec![part])),
            }
        }
        let mut shares = Vec::with_capacity(by_core.len());
        for (core, slots, parts) in by_core {
            let (reply, answers) = oneshot::channel();
            if self.is_local(core) {
                self.owner.produce(parts, acks, reply).await;
            } else if let Some(lane) = self.lanes.get(core.index()) {
                // A refused append drops its reply, which the ticket reads as the owner gone.
                drop(lane.appends.send(Append { parts, acks, reply }).await);
            }
            shares.push(Share { slots, answers });
        }
        ProduceTicket { slots, shares }
    }
}

impl ProduceTicket {
    /// The answer of each slot, as soon as the last is there; `None` for slots without a part.
    pub async fn answers(self) -> Vec<Option<ProduceAnswer>> {
        let mut answers: Vec<Option<ProduceAnswer>> = vec![None; self.slots];
        for share in self.shares {
            let found = share.answers.await.unwrap_or_default();
            let mut found = found.into_iter();
            for slot in share.slots {
                let answer = found.next().unwrap_or_else(owner_gone);
                if let Some(place) = answers.get_mut(slot) {
                    *place = Some(answer);
                }
            }
        }
        answers
    }
}

fn owner_gone() -> ProduceAnswer {
    let why = "the partition's core has stopped".to_string();
    ProduceAnswer::refused(ErrorCode::KAFKA_STORAGE_ERROR, why)
}
