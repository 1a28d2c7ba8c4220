//! What goes into the groups and what comes out.

use std::time::Duration;

use bytes::Bytes;

use super::records::Record;
use crate::base::time::{Instant, UnixMillis};
use crate::wire::error::ErrorCode;

/// The time of an input: for deadlines, and for what is written down.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub monotonic: Instant,
    pub wall: UnixMillis,
}

/// A request as its caller knows it; opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A write that was asked for; later ones are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// The bounds that the broker's settings put on groups.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `group.min.session.timeout.ms`
    pub session_timeout_min: Duration,
    /// `group.max.session.timeout.ms`
    pub session_timeout_max: Duration,
    /// `group.initial.rebalance.delay.ms` (KIP-134)
    pub initial_rebalance_delay: Duration,
    /// `group.max.size`
    pub members_max: usize,
    /// Groups of one coordinator.
    pub groups_max: usize,
    /// Bytes of what one member says about itself.
    pub member_bytes_max: usize,
    /// `offset.metadata.max.bytes`
    pub offset_metadata_bytes_max: usize,
    /// Partitions that one group may have committed offsets of.
    pub offsets_per_group_max: usize,
    /// `offsets.retention.minutes` (KIP-211)
    pub offsets_retention: Duration,
    /// `offsets.retention.check.interval.ms`
    pub expiry_interval: Duration,
}

impl Default for Settings {
    /// Kafka's defaults, and bounds where Kafka has none.
    fn default() -> Settings {
        Settings {
            session_timeout_min: Duration::from_secs(6),
            session_timeout_max: Duration::from_secs(30 * 60),
            initial_rebalance_delay: Duration::from_secs(3),
            members_max: 10_000,
            groups_max: 100_000,
            member_bytes_max: 1 << 20,
            offset_metadata_bytes_max: 4096,
            offsets_per_group_max: 1_000_000,
            offsets_retention: Duration::from_secs(7 * 24 * 3600),
            expiry_interval: Duration::from_secs(600),
        }
    }
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "an input is passed by value and never kept")]
pub enum Input {
    Request {
        ticket: Ticket,
        group_id: String,
        request: Request,
    },
    /// The outcome of a write; no error says that it is durable.
    Written {
        write: WriteId,
        error: ErrorCode,
    },
    /// These topics are gone; so are the offsets committed in them.
    TopicsDeleted {
        topics: Vec<String>,
    },
    /// The topic that kept the groups is gone, and they with it.
    Unloaded,
    /// What `next_timeout` promised may have come; nothing happens if it has not.
    Timeout,
}

#[derive(Clone, Debug)]
pub enum Request {
    Join(Join),
    Sync(Sync),
    Heartbeat(Heartbeat),
    /// Before version 3 there is one leaver, and its code is the answer's.
    Leave(Vec<Leaver>),
    Commit(Commit),
    DeleteGroup,
    /// Topics and partitions whose offsets are to go (KIP-496).
    DeleteOffsets(Vec<(String, Vec<i32>)>),
}

#[derive(Clone, Debug)]
pub struct Join {
    /// Empty for a member that has no id yet.
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout_ms: i32,
    /// Negative (version 0): the session's.
    pub rebalance_timeout_ms: i32,
    pub protocol_type: String,
    /// Name and metadata, the preferred one first. They are kept: slices of a request's frame
    /// would keep all of it.
    pub protocols: Vec<(String, Bytes)>,
    /// Why the member joins (KIP-800); nothing depends on it.
    pub reason: Option<String>,
    /// From version 4 a new member is first told its id (KIP-394).
    pub require_member_id: bool,
    /// From version 9 a leader can be told that its assignment is not needed (KIP-814).
    pub may_skip_assignment: bool,
    /// Random bits for a member id.
    pub random: u128,
}

#[derive(Clone, Debug)]
pub struct Sync {
    pub generation: i32,
    pub member_id: String,
    pub instance_id: Option<String>,
    /// From version 5 (KIP-559).
    pub protocol_type: Option<String>,
    pub protocol_name: Option<String>,
    /// Member ids and what is assigned to them, from the leader; kept as `Join::protocols` are.
    pub assignments: Vec<(String, Bytes)>,
}

#[derive(Clone, Debug)]
pub struct Heartbeat {
    pub generation: i32,
    pub member_id: String,
    pub instance_id: Option<String>,
}

/// A member that leaves, by its id, its instance id, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaver {
    pub member_id: String,
    pub instance_id: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Commit {
    /// -1 for a consumer that does its own assignment.
    pub generation: i32,
    pub member_id: String,
    pub instance_id: Option<String>,
    /// How long the offsets are to be kept, as versions 2 to 4 may say; -1 leaves it to the node.
    pub retention_ms: i64,
    pub offsets: Vec<(String, Vec<CommitPartition>)>,
}

#[derive(Clone, Debug)]
pub struct CommitPartition {
    pub partition: i32,
    pub offset: i64,
    /// -1 when unknown.
    pub leader_epoch: i32,
    pub metadata: String,
}

/// A topic, and a code for each of its partitions.
pub type PartitionCodes = (String, Vec<(i32, ErrorCode)>);

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Answer {
        ticket: Ticket,
        answer: Answer,
    },
    /// To be appended as one batch to the group's partition of `__consumer_offsets`, and to be
    /// reported with `Input::Written` once durable or failed.
    Write {
        write: WriteId,
        group_id: String,
        records: Vec<Record>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Join(JoinAnswer),
    Sync(SyncAnswer),
    Heartbeat(ErrorCode),
    Leave { error: ErrorCode, members: Vec<(Leaver, ErrorCode)> },
    Commit(Vec<PartitionCodes>),
    DeleteGroup(ErrorCode),
    DeleteOffsets { error: ErrorCode, partitions: Vec<PartitionCodes> },
}

#[derive(Clone, Debug, PartialEq)]
pub struct JoinAnswer {
    pub error: ErrorCode,
    pub generation: i32,
    pub protocol_type: Option<String>,
    /// `None` is written as the empty string before version 7.
    pub protocol_name: Option<String>,
    pub leader: String,
    pub skip_assignment: bool,
    pub member_id: String,
    /// Everybody, for the leader; nobody, for others.
    pub members: Vec<JoinedMember>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct JoinedMember {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub metadata: Bytes,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SyncAnswer {
    pub error: ErrorCode,
    pub protocol_type: Option<String>,
    pub protocol_name: Option<String>,
    pub assignment: Bytes,
}

impl JoinAnswer {
    pub(super) fn refused(member_id: &str, error: ErrorCode) -> Answer {
        Answer::Join(JoinAnswer {
            error,
            generation: -1,
            protocol_type: None,
            protocol_name: None,
            leader: String::new(),
            skip_assignment: false,
            member_id: member_id.to_owned(),
            members: Vec::new(),
        })
    }
}

impl SyncAnswer {
    pub(super) fn refused(error: ErrorCode) -> Answer {
        Answer::Sync(SyncAnswer {
            error,
            protocol_type: None,
            protocol_name: None,
            assignment: Bytes::new(),
        })
    }
}

impl Request {
    /// The answer that says nothing but `error`, for every part of the request.
    pub fn refused(&self, error: ErrorCode) -> Answer {
        match self {
            Request::Join(join) => JoinAnswer::refused(&join.member_id, error),
            Request::Sync(_) => SyncAnswer::refused(error),
            Request::Heartbeat(_) => Answer::Heartbeat(error),
            Request::Leave(leavers) if error == ErrorCode::UNKNOWN_MEMBER_ID => Answer::Leave {
                error: ErrorCode::NONE,
                members: leavers.iter().map(|leaver| (leaver.clone(), error)).collect(),
            },
            Request::Leave(_) => Answer::Leave { error, members: Vec::new() },
            Request::Commit(commit) => Answer::Commit(commit.codes(error)),
            Request::DeleteGroup => Answer::DeleteGroup(error),
            Request::DeleteOffsets(_) => Answer::DeleteOffsets { error, partitions: Vec::new() },
        }
    }
}

impl Commit {
    /// The same code for every partition.
    pub(super) fn codes(&self, error: ErrorCode) -> Vec<PartitionCodes> {
        let code = |partition: &CommitPartition| (partition.partition, error);
        let topics = self.offsets.iter();
        topics.map(|(topic, of)| (topic.clone(), of.iter().map(code).collect())).collect()
    }
}

/// Why time alone changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A member was not heard of for its session timeout, or a new one waited too long to be let
    /// in. Hearing of it moves the deadline, so a timer that comes too early finds nothing.
    Session,
    /// A member id that was handed out has not come back (KIP-394).
    PendingJoin,
    /// The rebalance has waited long enough for members to join; it goes on without the others.
    Join,
    /// Members that joined have not asked for their assignment; they are dropped.
    Sync,
    /// It is time to look for offsets past their retention (KIP-211).
    Expiry,
}
