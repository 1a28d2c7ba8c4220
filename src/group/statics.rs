//! Static members that come back under a new member id (KIP-345).

use std::time::Duration;

use bytes::Bytes;

use super::message::{Answer, Join, JoinAnswer, Ticket};
use super::state::{Group, State, Step};
use super::write::Pending;
use crate::wire::error::ErrorCode;

/// A replaced static member whose record is on its way.
#[derive(Clone, Debug)]
pub(super) struct StaticRejoin {
    pub generation: i32,
    pub old_id: String,
    pub member_id: String,
    /// What the member said of itself before, should the record fail.
    pub old_protocols: Vec<(String, Bytes)>,
    pub old_timeouts: (Duration, Duration),
    /// The leader that a client too old to skip the assignment is told.
    pub told_leader: String,
    pub may_skip_assignment: bool,
}

impl Group {
    /// `ids` are the member's old and new one.
    pub(super) fn rejoin_static(
        &mut self,
        ticket: Ticket,
        join: Join,
        ids: (String, String),
        step: &mut Step<'_>,
    ) {
        let (old_id, member_id) = ids;
        let told_leader = self.leader.clone().unwrap_or_default();
        let may_skip_assignment = join.may_skip_assignment;
        self.replace_static(&old_id, &member_id, step);
        let Some(member) = self.members.get(&member_id) else { return };
        let old_protocols = member.protocols.clone();
        let old_timeouts = (member.session_timeout, member.rebalance_timeout);
        self.update_member(&member_id, ticket, join, step);
        self.heard_of(&member_id, step);
        let keeps_generation =
            self.state == State::Stable && self.select_protocol() == self.protocol;
        if !keeps_generation {
            // Also while completing: the leader may be assigning to the old id already.
            self.rebalance(step);
            return;
        }
        let records = vec![self.record(None)];
        self.recorded = true;
        let write = step.write(&self.id, records);
        let rejoin = StaticRejoin {
            generation: self.generation,
            old_id,
            member_id,
            old_protocols,
            old_timeouts,
            told_leader,
            may_skip_assignment,
        };
        self.writes.insert(write, Pending::StaticRejoin(Box::new(rejoin)));
    }

    /// Gives a static member another id; who waits under the old one is fenced.
    fn replace_static(&mut self, old_id: &str, member_id: &str, step: &mut Step<'_>) {
        self.release(old_id, ErrorCode::FENCED_INSTANCE_ID, step);
        let Some(member) = self.members.remove(old_id) else { return };
        if let Some(instance_id) = &member.instance_id {
            self.statics.insert(instance_id.clone(), member_id.to_owned());
        }
        if self.is_leader(old_id) {
            self.leader = Some(member_id.to_owned());
        }
        if let Some(unsynced) = &mut self.unsynced
            && unsynced.members.remove(old_id)
        {
            unsynced.members.insert(member_id.to_owned());
        }
        self.members.insert(member_id.to_owned(), member);
    }

    /// The record of a replaced member is durable, or lost.
    pub(super) fn static_rejoined(
        &mut self,
        rejoin: StaticRejoin,
        error: ErrorCode,
        step: &mut Step<'_>,
    ) {
        let is_joining = self.members.get(&rejoin.member_id).is_some_and(|m| m.is_joining());
        if self.state != State::Stable || self.generation != rejoin.generation || !is_joining {
            return; // a rebalance has come between, and answers it
        }
        if error.is_error() {
            self.release(&rejoin.member_id, error, step);
            self.replace_static(&rejoin.member_id, &rejoin.old_id, step);
            if let Some(member) = self.members.get_mut(&rejoin.old_id) {
                member.protocols = rejoin.old_protocols;
                (member.session_timeout, member.rebalance_timeout) = rejoin.old_timeouts;
            }
            return;
        }
        let Answer::Join(mut answer) = self.joined(&rejoin.member_id) else { return };
        if rejoin.may_skip_assignment {
            answer.skip_assignment = self.is_leader(&rejoin.member_id);
        } else {
            // It must not take itself for the leader, or it would assign within a generation.
            answer = JoinAnswer { members: Vec::new(), leader: rejoin.told_leader, ..answer };
        }
        self.answer_join(&rejoin.member_id, Answer::Join(answer), step);
    }
}
