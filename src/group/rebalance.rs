//! The rebalance: calling members in, choosing leader and protocol, opening a generation.

use std::collections::{BTreeMap, BTreeSet};

use super::member::Waiting;
use super::message::Answer;
use super::state::{Group, InitialDelay, State, Step, Unsynced};
use super::subscription;
use super::write::Pending;
use crate::wire::error::ErrorCode;

impl Group {
    /// Begins a rebalance, or ends the one under way if everybody is there.
    pub(super) fn rebalance(&mut self, step: &mut Step<'_>) {
        match self.state {
            State::Empty => self.begin_initial(step),
            State::CompletingRebalance | State::Stable => self.begin(step),
            State::PreparingRebalance { .. } => self.complete_if_all_joined(step),
            State::Dead => {}
        }
    }

    /// The first rebalance waits for a while, so that not every newcomer causes one (KIP-134).
    fn begin_initial(&mut self, step: &mut Step<'_>) {
        let delay = step.settings.initial_rebalance_delay;
        let remaining = self.rebalance_timeout().saturating_sub(delay);
        let initial = Some(InitialDelay { remaining, newcomer: false });
        let deadline = step.now.monotonic + delay;
        self.enter(State::PreparingRebalance { deadline, initial }, step);
        if delay.is_zero() {
            self.complete(step);
        }
    }

    fn begin(&mut self, step: &mut Step<'_>) {
        self.unsynced = None;
        if self.state == State::CompletingRebalance {
            self.fail_syncs(ErrorCode::REBALANCE_IN_PROGRESS, step);
        }
        let deadline = step.now.monotonic + self.rebalance_timeout();
        self.enter(State::PreparingRebalance { deadline, initial: None }, step);
        self.complete_if_all_joined(step);
    }

    pub(super) fn complete_if_all_joined(&mut self, step: &mut Step<'_>) {
        let is_patient = matches!(self.state, State::PreparingRebalance { initial: None, .. });
        let all_joined = self.members.values().all(|member| member.is_joining());
        if is_patient && all_joined && self.pending_joins.is_empty() {
            self.complete(step);
        }
    }

    /// The time to join is over.
    pub(super) fn join_time_is_over(&mut self, step: &mut Step<'_>) {
        let State::PreparingRebalance { deadline, initial } = &mut self.state else { return };
        if let Some(initial) = initial
            && initial.newcomer
        {
            let delay = step.settings.initial_rebalance_delay.min(initial.remaining);
            if !delay.is_zero() {
                initial.newcomer = false;
                initial.remaining -= delay;
                *deadline = step.now.monotonic + delay;
                return;
            }
        }
        self.complete(step);
    }

    /// Opens a generation of those who joined, and of static members, who may be restarting.
    fn complete(&mut self, step: &mut Step<'_>) {
        let is_lost = |m: &super::member::Member| !m.is_joining() && m.instance_id.is_none();
        let lost: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| is_lost(member))
            .map(|(member_id, _)| member_id.clone())
            .collect();
        for member_id in lost {
            self.remove_member(&member_id, ErrorCode::UNKNOWN_MEMBER_ID, step);
        }
        if !self.members.is_empty() && !self.elect_leader() {
            // Only silent static members are left: their sessions decide.
            let deadline = step.now.monotonic + self.rebalance_timeout();
            self.state = State::PreparingRebalance { deadline, initial: None };
            return;
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        if self.members.is_empty() {
            self.become_empty(step);
        } else {
            self.open_generation(step);
        }
    }

    /// Keeps the leader if it joined, or takes the first member that did.
    fn elect_leader(&mut self) -> bool {
        let leader = self.leader.as_ref().and_then(|leader| self.members.get(leader));
        if leader.is_some_and(|leader| leader.is_joining()) {
            return true;
        }
        let mut joined = self.members.iter().filter(|(_, member)| member.is_joining());
        match joined.next() {
            Some((member_id, _)) => {
                self.leader = Some(member_id.clone());
                true
            }
            None => false,
        }
    }

    fn become_empty(&mut self, step: &mut Step<'_>) {
        self.leader = None;
        self.protocol = None;
        self.subscribed = self.uses_consumer_protocol().then(BTreeSet::new);
        self.enter(State::Empty, step);
        let records = vec![self.record(None)];
        self.recorded = true;
        let write = step.write(&self.id, records);
        self.writes.insert(write, Pending::Emptied);
    }

    fn open_generation(&mut self, step: &mut Step<'_>) {
        self.protocol = self.select_protocol();
        self.subscribed = self.subscribed_topics();
        self.enter(State::CompletingRebalance, step);
        let member_ids: Vec<String> = self.members.keys().cloned().collect();
        self.unsynced = Some(Unsynced {
            deadline: step.now.monotonic + self.rebalance_timeout(),
            members: member_ids.iter().cloned().collect(),
        });
        for member_id in member_ids {
            let answer = self.joined(&member_id);
            self.answer_join(&member_id, answer, step);
        }
    }

    pub(super) fn answer_join(&mut self, member_id: &str, answer: Answer, step: &mut Step<'_>) {
        let Some(member) = self.members.get_mut(member_id) else { return };
        if let Waiting::Join(ticket) = member.waiting {
            member.waiting = Waiting::Nothing;
            step.answer(ticket, answer);
        }
        member.is_new = false;
        member.heard(step.now.monotonic);
    }

    /// The protocol that all speak and most prefer; the first by name of equally wanted ones.
    pub(super) fn select_protocol(&self) -> Option<String> {
        let (_, first) = self.members.first_key_value()?;
        let is_common = |name: &str| self.members.values().all(|m| m.metadata(name).is_some());
        let names = first.protocols.iter().map(|(name, _)| name.as_str());
        let mut votes: BTreeMap<&str, usize> =
            names.filter(|name| is_common(name)).map(|name| (name, 0)).collect();
        for member in self.members.values() {
            let mut preferred = member.protocols.iter().map(|(name, _)| name.as_str());
            if let Some(name) = preferred.find(|name| votes.contains_key(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().max().copied();
        let winner = votes.into_iter().find(|(_, count)| Some(*count) == most);
        winner.map(|(name, _)| name.to_owned())
    }

    pub(super) fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        let protocol = self.protocol.as_deref().filter(|_| self.uses_consumer_protocol())?;
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            let metadata = member.metadata(protocol)?;
            topics.extend(subscription::topics(metadata)?.into_iter().map(str::to_owned));
        }
        Some(topics)
    }
}
