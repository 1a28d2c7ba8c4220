//! A group member's mind: it joins its group, is assigned partitions, tells that it lives, commits
//! positions, and leaves.
//!
//!     Out ─ Join ─► Dividing ─ Sync ─► Resuming ─ OffsetFetch ─► Settled ─ Heartbeat, OffsetCommit
//!      ▲                                                            │ rebalance, or the end
//!      └───────────────── OffsetCommit ─ Yielding ◄─────────────────┘ ─► Parting ─ Leave ─► Gone
//!
//! Pure: `request` says what to send to whom, one request at a time, `answer` takes what came.
//! FindCoordinator comes first wherever the coordinator is not known.
//!
//! Invariants
//!   G1  Partitions are read only while settled: before another member may have them, they are
//!       given back and their positions committed.
//!   G2  No code of a broker ends a member: it joins again, after a pause where that may help.
//!   G3  A commit names positions up to which everything was read, of partitions that are its own
//!       in its generation.

mod answers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::assign::{PROTOCOL, PROTOCOL_TYPE, Share, assignment, subscription};
use super::consumer::Consumer;
use super::producer::Shape;
use super::request::framed;
use crate::wire::api::{
    ApiKey, find_coordinator, heartbeat, join_group, leave_group, offset_commit, offset_fetch,
    sync_group,
};
use crate::wire::primitive::Wire;

const SESSION_MS: i32 = 10_000;
const REBALANCE_MS: i32 = 30_000;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Pauses before something is tried again.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Attempts at the commit before partitions are given back.
const YIELD_ATTEMPTS_MAX: u32 = 5;

/// Whom a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Anyone,
    /// The broker with this id.
    Node(i32),
}

/// Where a member stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Out,
    /// With what it assigns to the others, if it leads.
    Dividing(BTreeMap<String, Share>),
    /// With the places that it was assigned.
    Resuming(Vec<usize>),
    Settled,
    /// With positions to be committed, and how often that was tried.
    Yielding {
        positions: Vec<(usize, i64)>,
        attempts: u32,
    },
    Parting,
    Gone,
}

/// See the module's documentation.
pub struct Member {
    group: String,
    shape: Arc<Shape>,
    stage: Stage,
    /// Empty until the coordinator gave one.
    id: String,
    generation: i32,
    coordinator: Option<i32>,
    /// The API of the request that waits for its answer.
    asked: Option<ApiKey>,
    correlation: i32,
    /// The next request, the next heartbeat and the next commit are not due before.
    at: u64,
    heartbeat_at: u64,
    commit_at: u64,
    pause: Duration,
    /// The last committed positions.
    committed: BTreeMap<usize, i64>,
    /// Positions of the commit that waits for its answer.
    committing: Vec<(usize, i64)>,
    is_leaving: bool,
}

impl Member {
    pub fn new(group: String, shape: Arc<Shape>) -> Member {
        Member {
            group,
            shape,
            stage: Stage::Out,
            id: String::new(),
            generation: -1,
            coordinator: None,
            asked: None,
            correlation: 0,
            at: 0,
            heartbeat_at: 0,
            commit_at: 0,
            pause: Duration::ZERO,
            committed: BTreeMap::new(),
            committing: Vec::new(),
            is_leaving: false,
        }
    }

    /// Whether it has its partitions.
    pub fn is_settled(&self) -> bool {
        self.stage == Stage::Settled
    }

    /// Whether the answer that is awaited depends on the other members.
    pub fn waits_for_others(&self) -> bool {
        matches!(self.asked, Some(ApiKey::JoinGroup | ApiKey::SyncGroup))
    }

    pub fn is_gone(&self) -> bool {
        self.stage == Stage::Gone
    }

    /// Gives everything back, commits it, and leaves the group.
    pub fn leave(&mut self, consumer: &mut Consumer) {
        self.is_leaving = true;
        match &self.stage {
            Stage::Settled => self.give_back(consumer),
            Stage::Yielding { .. } | Stage::Parting | Stage::Gone => {}
            _ => self.part(),
        }
    }

    /// The next request, as a frame, if it is time for one.
    pub fn request(&mut self, now: u64, consumer: &Consumer) -> Option<(To, Bytes)> {
        if self.asked.is_some() || now < self.at {
            return None;
        }
        let Some(node) = self.coordinator else {
            let frame = match self.stage {
                Stage::Gone => return None,
                _ => self.find(),
            };
            return Some((To::Anyone, frame));
        };
        let frame = match &self.stage {
            Stage::Out => self.join(),
            Stage::Dividing(_) => self.sync(),
            Stage::Resuming(_) => self.fetch_offsets(),
            Stage::Settled => self.upkeep(now, consumer)?,
            Stage::Yielding { positions, .. } => {
                let positions = positions.clone();
                self.commit(positions)
            }
            Stage::Parting => self.say_goodbye(),
            Stage::Gone => return None,
        };
        Some((To::Node(node), frame))
    }

    /// When `request` has something, unless an answer comes before.
    pub fn next_wake(&self) -> Option<u64> {
        match self.stage {
            _ if self.asked.is_some() => None,
            Stage::Gone => None,
            Stage::Settled if self.coordinator.is_some() => {
                Some(self.heartbeat_at.min(self.commit_at).max(self.at))
            }
            _ => Some(self.at),
        }
    }

    /// The connection is gone, or was not made: the coordinator may be another broker now.
    pub fn lost(&mut self, now: u64) {
        self.asked = None;
        self.coordinator = None;
        self.rest(now);
    }

    /// A commit or a heartbeat, whichever is due.
    fn upkeep(&mut self, now: u64, consumer: &Consumer) -> Option<Bytes> {
        if now >= self.commit_at {
            self.commit_at = later(now, self.shape.plan.commit_interval);
            let moved = self.uncommitted(consumer.positions());
            if !moved.is_empty() {
                return Some(self.commit(moved));
            }
        }
        if now < self.heartbeat_at {
            return None;
        }
        self.heartbeat_at = later(now, HEARTBEAT);
        let request = heartbeat::Request {
            group_id: &self.group,
            generation_id: self.generation,
            member_id: &self.id,
            ..Default::default()
        };
        let frame = self.framed(ApiKey::Heartbeat, &request);
        Some(self.ask(ApiKey::Heartbeat, frame))
    }

    /// Those that are not committed yet.
    fn uncommitted(&self, mut positions: Vec<(usize, i64)>) -> Vec<(usize, i64)> {
        positions.retain(|(place, position)| self.committed.get(place) != Some(position));
        positions
    }

    /// Takes all partitions from the consumer; their positions are committed if need be.
    fn give_back(&mut self, consumer: &mut Consumer) {
        let positions = self.uncommitted(consumer.positions());
        consumer.assign(&[]);
        self.stage = Stage::Yielding { positions, attempts: 0 };
        self.yielded();
    }

    /// Goes on once there is nothing left to be committed.
    fn yielded(&mut self) {
        let Stage::Yielding { positions, .. } = &self.stage else { return };
        if positions.is_empty() {
            self.stage = Stage::Out;
            if self.is_leaving {
                self.part();
            }
        }
    }

    fn part(&mut self) {
        // Who was never let in has nobody to say goodbye to.
        self.stage = if self.id.is_empty() { Stage::Gone } else { Stage::Parting };
    }

    /// The coordinator does not count it as a member: the partitions may be another's already.
    fn expelled(&mut self, consumer: &mut Consumer) {
        consumer.assign(&[]);
        self.stage = Stage::Out;
        if self.is_leaving {
            self.stage = Stage::Gone;
        }
    }

    fn rest(&mut self, now: u64) {
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        self.at = later(now, self.pause);
    }

    fn find(&mut self) -> Bytes {
        let request = find_coordinator::Request {
            key: &self.group,
            coordinator_keys: vec![&self.group],
            ..Default::default()
        };
        let frame = self.framed(ApiKey::FindCoordinator, &request);
        self.ask(ApiKey::FindCoordinator, frame)
    }

    fn join(&mut self) -> Bytes {
        let metadata = subscription(&self.shape.target.topics);
        let protocol = join_group::JoinGroupRequestProtocol { name: PROTOCOL, metadata: &metadata };
        let request = join_group::Request {
            group_id: &self.group,
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            member_id: &self.id,
            protocol_type: PROTOCOL_TYPE,
            protocols: vec![protocol],
            ..Default::default()
        };
        let frame = self.framed(ApiKey::JoinGroup, &request);
        self.ask(ApiKey::JoinGroup, frame)
    }

    fn sync(&mut self) -> Bytes {
        let Stage::Dividing(shares) = &self.stage else { return Bytes::new() };
        let said: Vec<(&str, BytesMut)> =
            shares.iter().map(|(id, share)| (id.as_str(), assignment(share))).collect();
        let request = sync_group::Request {
            group_id: &self.group,
            generation_id: self.generation,
            member_id: &self.id,
            protocol_type: Some(PROTOCOL_TYPE),
            protocol_name: Some(PROTOCOL),
            assignments: said
                .iter()
                .map(|(member_id, assignment)| sync_group::SyncGroupRequestAssignment {
                    member_id,
                    assignment,
                })
                .collect(),
            ..Default::default()
        };
        let frame = self.framed(ApiKey::SyncGroup, &request);
        self.ask(ApiKey::SyncGroup, frame)
    }

    fn fetch_offsets(&mut self) -> Bytes {
        let Stage::Resuming(places) = &self.stage else { return Bytes::new() };
        let version = self.shape.target.version(ApiKey::OffsetFetch);
        let topics = self.by_topic(places.iter().map(|place| (*place, 0)));
        let indexes = |partitions: &Vec<(i32, i64)>| partitions.iter().map(|(p, _)| *p).collect();
        let mut request = offset_fetch::Request { require_stable: true, ..Default::default() };
        if version >= 8 {
            let topics = topics.iter().map(|(name, partitions)| {
                let partition_indexes = indexes(partitions);
                offset_fetch::OffsetFetchRequestTopics {
                    name,
                    partition_indexes,
                    ..Default::default()
                }
            });
            let topics = Some(topics.collect());
            let group_id = self.group.as_str();
            request.groups = vec![offset_fetch::OffsetFetchRequestGroup {
                group_id,
                topics,
                ..Default::default()
            }];
        } else {
            request.group_id = &self.group;
            let topics =
                topics.iter().map(|(name, partitions)| offset_fetch::OffsetFetchRequestTopic {
                    name,
                    partition_indexes: indexes(partitions),
                });
            request.topics = Some(topics.collect());
        }
        let frame = self.framed(ApiKey::OffsetFetch, &request);
        self.ask(ApiKey::OffsetFetch, frame)
    }

    fn commit(&mut self, positions: Vec<(usize, i64)>) -> Bytes {
        let topics = self.by_topic(positions.iter().copied());
        let partition = |(partition_index, committed_offset): &(i32, i64)| {
            offset_commit::OffsetCommitRequestPartition {
                partition_index: *partition_index,
                committed_offset: *committed_offset,
                ..Default::default()
            }
        };
        let request = offset_commit::Request {
            group_id: &self.group,
            generation_id_or_member_epoch: self.generation,
            member_id: &self.id,
            topics: topics
                .iter()
                .map(|(name, partitions)| offset_commit::OffsetCommitRequestTopic {
                    name,
                    partitions: partitions.iter().map(partition).collect(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let frame = self.framed(ApiKey::OffsetCommit, &request);
        self.committing = positions;
        self.ask(ApiKey::OffsetCommit, frame)
    }

    fn say_goodbye(&mut self) -> Bytes {
        let leaver = leave_group::MemberIdentity { member_id: &self.id, ..Default::default() };
        let request = leave_group::Request {
            group_id: &self.group,
            member_id: &self.id,
            members: vec![leaver],
        };
        let frame = self.framed(ApiKey::LeaveGroup, &request);
        self.ask(ApiKey::LeaveGroup, frame)
    }

    /// Partitions and offsets by topic.
    fn by_topic(
        &self,
        places: impl Iterator<Item = (usize, i64)>,
    ) -> BTreeMap<&str, Vec<(i32, i64)>> {
        let target = &self.shape.target;
        let mut topics: BTreeMap<&str, Vec<(i32, i64)>> = BTreeMap::new();
        for (place, offset) in places {
            let Some(place) = target.places.get(place) else { continue };
            let topic = target.topics.get(place.topic).map_or("", String::as_str);
            topics.entry(topic).or_default().push((place.partition, offset));
        }
        topics
    }

    /// The frame of the next request.
    fn framed<'q>(&self, api: ApiKey, request: &impl Wire<'q>) -> Bytes {
        framed(api, self.shape.target.version(api), self.correlation.wrapping_add(1), request)
    }

    /// Notes that this request is on its way.
    fn ask(&mut self, api: ApiKey, frame: Bytes) -> Bytes {
        self.correlation = self.correlation.wrapping_add(1);
        self.asked = Some(api);
        frame
    }
}

pub fn later(now: u64, by: Duration) -> u64 {
    now.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX))
}
