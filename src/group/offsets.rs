//! Committed offsets: who may commit, what is kept, and what is dropped.

use std::collections::BTreeMap;

use super::message::{Answer, Commit, CommitPartition, PartitionCodes, Ticket, WriteId};
use super::records::{self, NAME_BYTES_MAX, Record};
use super::state::{Group, State, Step};
use super::write::Pending;
use crate::base::time::UnixMillis;
use crate::wire::error::ErrorCode;

/// An offset that a consumer has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    /// -1 when unknown.
    pub leader_epoch: i32,
    pub metadata: Box<str>,
    pub committed_at: UnixMillis,
    /// Only what old clients committed with a time of its own.
    pub expires_at: Option<UnixMillis>,
}

/// An offset to take, or to drop.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub topic: String,
    pub partition: i32,
    pub to: Option<Committed>,
}

/// The durable offsets of a group, and which write each came with.
#[derive(Clone, Debug, Default)]
pub(super) struct Offsets {
    topics: BTreeMap<String, BTreeMap<i32, (WriteId, Committed)>>,
    count: usize,
}

impl Offsets {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.topics.get(topic)?.get(&partition).map(|(_, committed)| committed)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, i32, &Committed)> {
        self.topics.iter().flat_map(|(topic, partitions)| {
            let partitions = partitions.iter();
            partitions.map(move |(index, (_, committed))| (topic.as_str(), *index, committed))
        })
    }

    /// Changes of one write. What a later write has changed already stays as it is.
    pub fn apply(&mut self, changes: Vec<Change>, write: WriteId) {
        for change in changes {
            let current = self.topics.get(&change.topic).and_then(|of| of.get(&change.partition));
            if current.is_some_and(|(later, _)| *later > write) {
                continue;
            }
            match change.to {
                Some(committed) => self.insert(change.topic, change.partition, (write, committed)),
                None => self.remove(&change.topic, change.partition),
            }
        }
    }

    fn insert(&mut self, topic: String, partition: i32, entry: (WriteId, Committed)) {
        if self.topics.entry(topic).or_default().insert(partition, entry).is_none() {
            self.count += 1;
        }
    }

    fn remove(&mut self, topic: &str, partition: i32) {
        let Some(partitions) = self.topics.get_mut(topic) else { return };
        if partitions.remove(&partition).is_some() {
            self.count -= 1;
        }
        if partitions.is_empty() {
            self.topics.remove(topic);
        }
    }

    pub fn clear(&mut self) {
        *self = Offsets::default();
    }

    pub fn check(&self) {
        assert_eq!(self.topics.values().map(BTreeMap::len).sum::<usize>(), self.count);
        assert!(self.topics.values().all(|partitions| !partitions.is_empty()));
    }
}

impl Group {
    pub(super) fn commit(&mut self, ticket: Ticket, commit: &Commit, step: &mut Step<'_>) {
        if let Err(error) = self.validate_commit(commit) {
            step.answer(ticket, Answer::Commit(commit.codes(error)));
            return;
        }
        self.heard_of(&commit.member_id, step);
        let mut changes = Vec::new();
        let mut answers: Vec<PartitionCodes> = Vec::with_capacity(commit.offsets.len());
        for (topic, partitions) in &commit.offsets {
            let mut codes = Vec::with_capacity(partitions.len());
            for partition in partitions {
                let code = self.validate_offset(topic, partition, changes.len(), step);
                if code.is_none() {
                    let expires_at = expiry_of(commit.retention_ms, step.now.wall);
                    changes.push(change(topic, partition, expires_at, step));
                }
                codes.push((partition.partition, code));
            }
            answers.push((topic.clone(), codes));
        }
        self.write_changes(changes, Some((ticket, Answer::Commit(answers))), step);
    }

    fn validate_commit(&self, commit: &Commit) -> Result<(), ErrorCode> {
        let is_empty = self.state == State::Empty;
        if commit.generation < 0 && is_empty {
            return Ok(()); // a consumer that assigns by itself, or an administrator
        }
        let names_a_member =
            commit.generation >= 0 || !commit.member_id.is_empty() || commit.instance_id.is_some();
        if names_a_member {
            self.validate_member(&commit.member_id, commit.instance_id.as_ref())?;
            self.validate_generation(commit.generation)?;
        } else if !is_empty {
            return Err(ErrorCode::UNKNOWN_MEMBER_ID);
        }
        if self.state == State::CompletingRebalance {
            return Err(ErrorCode::REBALANCE_IN_PROGRESS);
        }
        Ok(())
    }

    fn validate_offset(
        &self,
        topic: &str,
        partition: &CommitPartition,
        taken: usize,
        step: &Step<'_>,
    ) -> ErrorCode {
        let metadata_max = step.settings.offset_metadata_bytes_max.min(NAME_BYTES_MAX);
        let is_known = self.offsets.get(topic, partition.partition).is_some();
        if topic.len() > NAME_BYTES_MAX || partition.partition < 0 {
            ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
        } else if partition.metadata.len() > metadata_max {
            ErrorCode::OFFSET_METADATA_TOO_LARGE
        } else if !is_known && self.offsets.count + taken >= step.settings.offsets_per_group_max {
            ErrorCode::POLICY_VIOLATION
        } else {
            ErrorCode::NONE
        }
    }

    /// Drops the offsets of partitions that nobody is subscribed to (KIP-496).
    pub(super) fn delete_offsets(
        &mut self,
        ticket: Ticket,
        partitions: Vec<(String, Vec<i32>)>,
        step: &mut Step<'_>,
    ) {
        if self.state != State::Empty && !self.uses_consumer_protocol() {
            let error = ErrorCode::NON_EMPTY_GROUP;
            step.answer(ticket, Answer::DeleteOffsets { error, partitions: Vec::new() });
            return;
        }
        let mut changes = Vec::new();
        let mut answers: Vec<PartitionCodes> = Vec::with_capacity(partitions.len());
        for (topic, indexes) in partitions {
            let is_subscribed = self.is_subscribed(&topic);
            let code =
                if is_subscribed { ErrorCode::GROUP_SUBSCRIBED_TO_TOPIC } else { ErrorCode::NONE };
            for partition in indexes.iter().filter(|_| !is_subscribed) {
                if self.has_offset(&topic, *partition) {
                    changes.push(Change { topic: topic.clone(), partition: *partition, to: None });
                }
            }
            answers.push((topic, indexes.into_iter().map(|index| (index, code)).collect()));
        }
        let answer = Answer::DeleteOffsets { error: ErrorCode::NONE, partitions: answers };
        self.write_changes(changes, Some((ticket, answer)), step);
    }

    /// Without knowing the topics, every one may be subscribed to.
    fn is_subscribed(&self, topic: &str) -> bool {
        if self.state == State::Empty {
            return false;
        }
        self.subscribed.as_ref().is_none_or(|topics| topics.contains(topic))
    }

    /// Durable, or on its way.
    fn has_offset(&self, topic: &str, partition: i32) -> bool {
        let is_it = |change: &Change| change.topic == topic && change.partition == partition;
        self.offsets.get(topic, partition).is_some() || self.coming_changes().any(is_it)
    }

    fn coming_changes(&self) -> impl Iterator<Item = &Change> {
        self.writes.values().flat_map(|pending| match pending {
            Pending::Offsets { changes, .. } => changes.as_slice(),
            _ => &[],
        })
    }

    /// Asks for the write of `changes`; the answer waits for it, or goes if there is none.
    pub(super) fn write_changes(
        &mut self,
        changes: Vec<Change>,
        answer: Option<(Ticket, Answer)>,
        step: &mut Step<'_>,
    ) {
        if changes.is_empty() {
            if let Some((ticket, answer)) = answer {
                step.answer(ticket, answer);
            }
            return;
        }
        let records = changes.iter().map(|change| records::offset_record(&self.id, change));
        let write = step.write(&self.id, records.collect());
        self.writes.insert(write, Pending::Offsets { changes, answer });
    }

    pub(super) fn delete(&mut self, ticket: Ticket, step: &mut Step<'_>) {
        if self.state == State::Empty {
            self.bury(Some(ticket), step);
        } else {
            step.answer(ticket, Answer::DeleteGroup(ErrorCode::NON_EMPTY_GROUP));
        }
    }

    /// Writes tombstones for all that the log has of the group, or may have in a moment.
    pub(super) fn bury(&mut self, ticket: Option<Ticket>, step: &mut Step<'_>) {
        let coming = self.coming_changes().map(|change| (change.topic.as_str(), change.partition));
        let durable = self.offsets.iter().map(|(topic, partition, _)| (topic, partition));
        let mut partitions: Vec<(&str, i32)> = durable.chain(coming).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let mut tombstones: Vec<Record> = partitions
            .into_iter()
            .map(|(topic, partition)| records::offset_tombstone(&self.id, topic, partition))
            .collect();
        tombstones.push(records::group_tombstone(&self.id));
        self.pending_joins.clear();
        self.enter(State::Dead, step);
        let write = step.write(&self.id, tombstones);
        self.writes.insert(write, Pending::Deletion { ticket });
    }
}

/// When offsets expire whose client has said how long to keep them; -1 says nothing.
fn expiry_of(retention_ms: i64, now: UnixMillis) -> Option<UnixMillis> {
    let is_said = retention_ms != -1;
    is_said.then(|| UnixMillis(now.0.saturating_add(retention_ms).max(0)))
}

fn change(
    topic: &str,
    partition: &CommitPartition,
    expires_at: Option<UnixMillis>,
    step: &Step<'_>,
) -> Change {
    let committed = Committed {
        offset: partition.offset,
        leader_epoch: partition.leader_epoch,
        metadata: partition.metadata.as_str().into(),
        committed_at: step.now.wall,
        expires_at,
    };
    Change { topic: topic.to_owned(), partition: partition.partition, to: Some(committed) }
}
