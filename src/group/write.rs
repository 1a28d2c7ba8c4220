//! What open writes are for, and what happens when they are durable or lost.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::message::{Answer, Ticket, WriteId};
use super::offsets::Change;
use super::state::{Group, State, Step};
use super::statics::StaticRejoin;
use crate::wire::error::ErrorCode;

#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// Offsets to take or drop, and who is to be told.
    Offsets { changes: Vec<Change>, answer: Option<(Ticket, Answer)> },
    /// The assignment of a generation; its members wait for it.
    Assignment { generation: i32, assignments: BTreeMap<String, Bytes> },
    /// A static member under a new id; it waits for it.
    StaticRejoin(Box<StaticRejoin>),
    /// The record that nobody is left. Should it be lost, the members are found silent at restart.
    Emptied,
    /// The group's tombstones; whoever asked for them waits.
    Deletion { ticket: Option<Ticket> },
}

impl Group {
    pub(super) fn written(&mut self, write: WriteId, error: ErrorCode, step: &mut Step<'_>) {
        let Some(pending) = self.writes.remove(&write) else { return };
        match pending {
            Pending::Offsets { changes, answer } => {
                if error.is_none() {
                    self.offsets.apply(changes, write);
                }
                if let Some((ticket, answer)) = answer {
                    step.answer(ticket, answer.unless_lost(error));
                }
            }
            Pending::Assignment { generation, assignments } => {
                self.assigned(generation, assignments, told(error), step);
            }
            Pending::StaticRejoin(rejoin) => self.static_rejoined(*rejoin, told(error), step),
            Pending::Emptied => {}
            Pending::Deletion { ticket } => self.deleted(ticket, error, step),
        }
    }

    /// Sends everybody who waits to find the coordinator again; the group is forgotten.
    pub(super) fn unload(mut self, step: &mut Step<'_>) {
        let error = ErrorCode::NOT_COORDINATOR;
        let member_ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in member_ids {
            self.release(&member_id, error, step);
        }
        for pending in self.writes.into_values() {
            match pending {
                Pending::Offsets { answer: Some((ticket, answer)), .. } => {
                    step.answer(ticket, answer.unless_lost(error));
                }
                Pending::Deletion { ticket: Some(ticket) } => {
                    step.answer(ticket, Answer::DeleteGroup(error));
                }
                // Their members were released, or nobody waits.
                Pending::Offsets { .. }
                | Pending::Deletion { .. }
                | Pending::Assignment { .. }
                | Pending::StaticRejoin(_)
                | Pending::Emptied => {}
            }
        }
    }

    fn deleted(&mut self, ticket: Option<Ticket>, error: ErrorCode, step: &mut Step<'_>) {
        if error.is_none() {
            self.recorded = false;
            self.offsets.clear();
        } else {
            self.state = State::Empty;
        }
        if let Some(ticket) = ticket {
            step.answer(ticket, Answer::DeleteGroup(told(error)));
        }
    }
}

impl Answer {
    /// The same answer, with what was promised taken back if the write failed.
    fn unless_lost(self, error: ErrorCode) -> Answer {
        let error = match error {
            ErrorCode::NONE => return self,
            ErrorCode::MESSAGE_TOO_LARGE | ErrorCode::RECORD_LIST_TOO_LARGE => {
                ErrorCode::INVALID_COMMIT_OFFSET_SIZE
            }
            other => told(other),
        };
        match self {
            Answer::Commit(mut topics) => {
                let codes = topics.iter_mut().flat_map(|(_, partitions)| partitions);
                for (_, code) in codes.filter(|(_, code)| code.is_none()) {
                    *code = error;
                }
                Answer::Commit(topics)
            }
            Answer::DeleteOffsets { .. } => Answer::DeleteOffsets { error, partitions: Vec::new() },
            other => other,
        }
    }
}

/// What a client is told of a failed write: codes of the log in terms of coordinators.
fn told(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION
        | ErrorCode::NOT_ENOUGH_REPLICAS
        | ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND
        | ErrorCode::REQUEST_TIMED_OUT => ErrorCode::COORDINATOR_NOT_AVAILABLE,
        ErrorCode::NOT_LEADER_OR_FOLLOWER | ErrorCode::KAFKA_STORAGE_ERROR => {
            ErrorCode::NOT_COORDINATOR
        }
        ErrorCode::MESSAGE_TOO_LARGE
        | ErrorCode::RECORD_LIST_TOO_LARGE
        | ErrorCode::INVALID_FETCH_SIZE => ErrorCode::UNKNOWN_SERVER_ERROR,
        other => other,
    }
}
