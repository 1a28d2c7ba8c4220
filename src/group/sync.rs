//! Sync, by which the leader's assignment reaches the members, and the heartbeat.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::member::Waiting;
use super::message::{Answer, Heartbeat, Sync, SyncAnswer, Ticket};
use super::state::{Group, State, Step};
use super::write::Pending;
use crate::wire::error::ErrorCode;

impl Group {
    pub(super) fn sync(&mut self, ticket: Ticket, sync: Sync, step: &mut Step<'_>) {
        if let Err(error) = self.validate_sync(&sync) {
            step.answer(ticket, SyncAnswer::refused(error));
            return;
        }
        if let Some(unsynced) = &mut self.unsynced {
            unsynced.members.remove(&sync.member_id);
            if unsynced.members.is_empty() {
                self.unsynced = None;
            }
        }
        if self.state == State::Stable {
            self.heard_of(&sync.member_id, step);
            let answer = self.synced(&sync.member_id);
            step.answer(ticket, answer);
            return;
        }
        self.hold(&sync.member_id, Waiting::Sync(ticket), step);
        if self.is_leader(&sync.member_id) && !self.is_assigning() {
            self.assign(sync.assignments, step);
        }
    }

    fn validate_sync(&self, sync: &Sync) -> Result<(), ErrorCode> {
        self.validate_member(&sync.member_id, sync.instance_id.as_ref())?;
        self.validate_generation(sync.generation)?;
        let differs = |said: &Option<String>, is: &Option<String>| said.is_some() && said != is;
        if differs(&sync.protocol_type, &self.protocol_type)
            || differs(&sync.protocol_name, &self.protocol)
        {
            return Err(ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
        }
        match self.state {
            State::CompletingRebalance | State::Stable => Ok(()),
            State::PreparingRebalance { .. } => Err(ErrorCode::REBALANCE_IN_PROGRESS),
            State::Empty | State::Dead => Err(ErrorCode::UNKNOWN_MEMBER_ID),
        }
    }

    /// Whether the assignment of this generation is on its way to the disk.
    fn is_assigning(&self) -> bool {
        self.writes.values().any(|pending| match pending {
            Pending::Assignment { generation, .. } => *generation == self.generation,
            _ => false,
        })
    }

    fn assign(&mut self, assignments: Vec<(String, Bytes)>, step: &mut Step<'_>) {
        let mut of_members: BTreeMap<String, Bytes> = BTreeMap::new();
        for (member_id, assignment) in assignments {
            if self.members.contains_key(&member_id) {
                of_members.insert(member_id, assignment);
            }
        }
        let records = vec![self.record(Some(&of_members))];
        self.recorded = true;
        let write = step.write(&self.id, records);
        let pending = Pending::Assignment { generation: self.generation, assignments: of_members };
        self.writes.insert(write, pending);
    }

    /// The leader's assignment is durable, or lost.
    pub(super) fn assigned(
        &mut self,
        generation: i32,
        mut assignments: BTreeMap<String, Bytes>,
        error: ErrorCode,
        step: &mut Step<'_>,
    ) {
        if self.state != State::CompletingRebalance || self.generation != generation {
            return; // a rebalance has come between, and answered those who waited
        }
        if error.is_error() {
            self.fail_syncs(error, step);
            self.rebalance(step);
            return;
        }
        for (member_id, member) in &mut self.members {
            member.assignment = assignments.remove(member_id).unwrap_or_default();
        }
        self.enter(State::Stable, step);
        let member_ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in member_ids {
            let answer = self.synced(&member_id);
            let Some(member) = self.members.get_mut(&member_id) else { continue };
            if let Waiting::Sync(ticket) = member.waiting {
                member.waiting = Waiting::Nothing;
                member.heard(step.now.monotonic);
                step.answer(ticket, answer);
            }
        }
    }

    fn synced(&self, member_id: &str) -> Answer {
        let member = self.members.get(member_id);
        Answer::Sync(SyncAnswer {
            error: ErrorCode::NONE,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol.clone(),
            assignment: member.map(|member| member.assignment.clone()).unwrap_or_default(),
        })
    }

    /// No assignment comes of this generation: everybody who waits for it is told.
    pub(super) fn fail_syncs(&mut self, error: ErrorCode, step: &mut Step<'_>) {
        let member_ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in member_ids {
            let Some(member) = self.members.get_mut(&member_id) else { continue };
            member.assignment = Bytes::new();
            if matches!(member.waiting, Waiting::Sync(_)) {
                self.release(&member_id, error, step);
            }
        }
    }

    pub(super) fn heartbeat(&mut self, ticket: Ticket, heartbeat: &Heartbeat, step: &mut Step<'_>) {
        let instance_id = heartbeat.instance_id.as_ref();
        let outcome = self
            .validate_member(&heartbeat.member_id, instance_id)
            .and_then(|()| self.validate_generation(heartbeat.generation));
        let code = match outcome {
            Err(error) => error,
            Ok(()) => {
                self.heard_of(&heartbeat.member_id, step);
                match self.state {
                    State::PreparingRebalance { .. } => ErrorCode::REBALANCE_IN_PROGRESS,
                    _ => ErrorCode::NONE,
                }
            }
        };
        step.answer(ticket, Answer::Heartbeat(code));
    }
}
