//! One group: its state, its members, and the table of what may be done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::member::{Member, NEW_MEMBER_JOIN_TIME, Waiting};
use super::message::{
    Answer, Effect, JoinAnswer, Now, Request, Settings, SyncAnswer, Ticket, Timer, WriteId,
};
use super::offsets::Offsets;
use super::records::Record;
use super::write::Pending;
use crate::base::time::{Instant, UnixMillis};
use crate::wire::error::ErrorCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Empty,
    /// Members are called in; joins are held back.
    PreparingRebalance {
        deadline: Instant,
        initial: Option<InitialDelay>,
    },
    /// Members are told who is there; the leader's assignment is awaited, then its record.
    CompletingRebalance,
    Stable,
    /// It is being deleted, or deleted.
    Dead,
}

/// The wait of a group that was empty for more members to come (KIP-134).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InitialDelay {
    /// How much longer it may be prolonged.
    pub remaining: Duration,
    /// Somebody came since the delay began, so it is worth to wait again.
    pub newcomer: bool,
}

/// The members of a generation that have not asked for their assignment.
#[derive(Clone, Debug)]
pub(super) struct Unsynced {
    pub deadline: Instant,
    pub members: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Group {
    pub id: String,
    pub state: State,
    /// When the state was entered; unknown for groups from old records.
    pub state_since: Option<UnixMillis>,
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    pub leader: Option<String>,
    pub members: BTreeMap<String, Member>,
    /// Member ids by instance id (KIP-345).
    pub statics: BTreeMap<String, String>,
    /// Member ids that were handed out and when they lapse (KIP-394).
    pub pending_joins: BTreeMap<String, Instant>,
    pub unsynced: Option<Unsynced>,
    /// The topics of the generation; unknown when a member's metadata does not say.
    pub subscribed: Option<BTreeSet<String>>,
    pub offsets: Offsets,
    pub writes: BTreeMap<WriteId, Pending>,
    /// The log may hold a record of the group itself.
    pub recorded: bool,
}

/// What one step of a group has at hand.
pub(super) struct Step<'a> {
    pub now: Now,
    pub settings: &'a Settings,
    pub writes: &'a mut OpenWrites,
    pub effects: &'a mut Vec<Effect>,
}

/// The writes of all groups that have not been reported.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenWrites {
    pub last: WriteId,
    pub open: BTreeMap<WriteId, String>,
}

impl Step<'_> {
    pub fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.effects.push(Effect::Answer { ticket, answer });
    }

    pub fn write(&mut self, group_id: &str, records: Vec<Record>) -> WriteId {
        let write = WriteId(self.writes.last.0 + 1);
        self.writes.last = write;
        self.writes.open.insert(write, group_id.to_owned());
        self.effects.push(Effect::Write { write, group_id: group_id.to_owned(), records });
        write
    }
}

impl Group {
    pub fn new(id: &str) -> Group {
        Group {
            id: id.to_owned(),
            state: State::Empty,
            state_since: None,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending_joins: BTreeMap::new(),
            unsynced: None,
            subscribed: None,
            offsets: Offsets::default(),
            writes: BTreeMap::new(),
            recorded: false,
        }
    }

    pub fn handle(&mut self, ticket: Ticket, request: Request, step: &mut Step<'_>) {
        if self.state == State::Dead {
            // What is being deleted may be there again a moment later.
            step.answer(ticket, request.refused(self.refusal_when_dead(&request)));
            return;
        }
        match request {
            Request::Join(join) => self.join(ticket, join, step),
            Request::Sync(sync) => self.sync(ticket, sync, step),
            Request::Heartbeat(heartbeat) => self.heartbeat(ticket, &heartbeat, step),
            Request::Leave(leavers) => self.leave(ticket, leavers, step),
            Request::Commit(commit) => self.commit(ticket, &commit, step),
            Request::DeleteGroup => self.delete(ticket, step),
            Request::DeleteOffsets(partitions) => self.delete_offsets(ticket, partitions, step),
        }
    }

    fn refusal_when_dead(&self, request: &Request) -> ErrorCode {
        match request {
            Request::DeleteGroup | Request::DeleteOffsets(_) => ErrorCode::GROUP_ID_NOT_FOUND,
            _ => ErrorCode::COORDINATOR_NOT_AVAILABLE,
        }
    }

    /// The earliest deadline and what it is for.
    pub fn next_timeout(&self) -> Option<(Instant, Timer)> {
        let session = self.members.values().filter_map(Member::deadline).min();
        let pending = self.pending_joins.values().min().copied();
        let join = match self.state {
            State::PreparingRebalance { deadline, .. } => Some(deadline),
            _ => None,
        };
        let sync = self.unsynced.as_ref().map(|unsynced| unsynced.deadline);
        let timers = [
            (session, Timer::Session),
            (pending, Timer::PendingJoin),
            (join, Timer::Join),
            (sync, Timer::Sync),
        ];
        timers.into_iter().filter_map(|(at, timer)| Some((at?, timer))).min()
    }

    /// Nothing would be lost by forgetting it.
    pub fn is_void(&self) -> bool {
        matches!(self.state, State::Empty | State::Dead)
            && !self.recorded
            && self.members.is_empty()
            && self.pending_joins.is_empty()
            && self.offsets.is_empty()
            && self.writes.is_empty()
    }

    pub fn enter(&mut self, state: State, step: &Step<'_>) {
        self.state = state;
        self.state_since = Some(step.now.wall);
    }

    /// Refuses who is no member, or whose place a newer instance has taken.
    pub fn validate_member(
        &self,
        member_id: &str,
        instance_id: Option<&String>,
    ) -> Result<(), ErrorCode> {
        if let Some(instance_id) = instance_id {
            match self.statics.get(instance_id) {
                None => return Err(ErrorCode::UNKNOWN_MEMBER_ID),
                Some(current) if current != member_id => return Err(ErrorCode::FENCED_INSTANCE_ID),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(ErrorCode::UNKNOWN_MEMBER_ID)
        }
    }

    pub fn validate_generation(&self, generation: i32) -> Result<(), ErrorCode> {
        if generation == self.generation { Ok(()) } else { Err(ErrorCode::ILLEGAL_GENERATION) }
    }

    pub fn heard_of(&mut self, member_id: &str, step: &Step<'_>) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.heard(step.now.monotonic);
        }
    }

    /// Takes a member out; what it waits for is answered with `error`.
    pub fn remove_member(&mut self, member_id: &str, error: ErrorCode, step: &mut Step<'_>) {
        self.release(member_id, error, step);
        let Some(member) = self.members.remove(member_id) else { return };
        if let Some(instance_id) = member.instance_id {
            self.statics.remove(&instance_id);
        }
        if let Some(unsynced) = &mut self.unsynced {
            unsynced.members.remove(member_id);
        }
        if self.leader.as_deref() == Some(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// Answers what a member waits for, if anything, with `error`.
    pub fn release(&mut self, member_id: &str, error: ErrorCode, step: &mut Step<'_>) {
        let Some(member) = self.members.get_mut(member_id) else { return };
        match std::mem::replace(&mut member.waiting, Waiting::Nothing) {
            Waiting::Nothing => return,
            Waiting::Join(ticket) => step.answer(ticket, JoinAnswer::refused(member_id, error)),
            Waiting::Sync(ticket) => step.answer(ticket, SyncAnswer::refused(error)),
        }
        member.heard(step.now.monotonic);
    }

    /// Lets a member wait; a request of its that waited before is sent to try again.
    pub fn hold(&mut self, member_id: &str, waiting: Waiting, step: &mut Step<'_>) {
        self.release(member_id, ErrorCode::REBALANCE_IN_PROGRESS, step);
        if let Some(member) = self.members.get_mut(member_id) {
            member.waiting = waiting;
            if member.is_new {
                member.silent_until = step.now.monotonic + NEW_MEMBER_JOIN_TIME;
            }
        }
    }

    pub fn is_leader(&self, member_id: &str) -> bool {
        self.leader.as_deref() == Some(member_id)
    }

    /// The longest that a member may take to join again.
    pub fn rebalance_timeout(&self) -> Duration {
        let timeouts = self.members.values().map(|member| member.rebalance_timeout);
        timeouts.max().unwrap_or(Duration::ZERO)
    }

    pub fn uses_consumer_protocol(&self) -> bool {
        self.protocol_type.as_deref() == Some("consumer")
    }

    /// A record of the group as it is, with the assignments given or those that members have.
    pub fn record(&self, assignments: Option<&BTreeMap<String, Bytes>>) -> Record {
        super::records::group_record(self, assignments)
    }

    /// Panics unless the group's invariants hold.
    pub fn check(&self) {
        let is_running = matches!(self.state, State::CompletingRebalance | State::Stable);
        if is_running {
            assert!(!self.members.is_empty(), "G3: {} runs without members", self.id);
            assert!(self.protocol.is_some() && self.leader.is_some(), "G3: {}", self.id);
        } else {
            assert!(self.unsynced.is_none(), "only a running generation is synced");
        }
        if let Some(leader) = &self.leader {
            assert!(self.members.contains_key(leader), "G3: {leader} leads and is no member");
        }
        for (instance_id, member_id) in &self.statics {
            let of_member = self.members.get(member_id).and_then(|m| m.instance_id.as_ref());
            assert_eq!(of_member, Some(instance_id), "G4");
        }
        let with_instance = self.members.values().filter(|member| member.instance_id.is_some());
        assert_eq!(with_instance.count(), self.statics.len(), "G4");
        if matches!(self.state, State::Empty | State::Dead) {
            assert!(self.members.is_empty(), "G5: {} has members", self.id);
        }
        for member in self.members.values() {
            self.check_waiting(member);
        }
        self.offsets.check();
    }

    fn check_waiting(&self, member: &Member) {
        let is_right = match (member.waiting, self.state) {
            (Waiting::Nothing, _) => true,
            (Waiting::Join(_), State::PreparingRebalance { .. }) => true,
            (Waiting::Join(_), State::Stable) => member.instance_id.is_some(),
            (Waiting::Join(_), _) => false,
            (Waiting::Sync(_), state) => state == State::CompletingRebalance,
        };
        assert!(is_right, "G6: {:?} in {:?}", member.waiting, self.state);
    }
}
