//! Handlers: one file per API, from a decoded request to the bytes of its answer.
//!
//! Invariants
//!   H1  An answer is of the request's API and version, and carries its correlation id.
//!   H2  A request that cannot be decoded ends its connection; one that can is answered, with the
//!       protocol's own code where it is refused.
//!   H3  What a request names again and again is told of once, where that takes more bytes than to
//!       name it: an answer is no multiple of what is there.

mod api_versions;
mod cluster;
mod configs;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_groups;
mod describe_log_dirs;
mod describe_topics;
pub mod fetch;
mod find_coordinator;
mod groups;
mod heartbeat;
mod identity;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_groups;
mod list_offsets;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod operations;
pub mod produce;
mod sessions;
mod sync_group;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};

use crate::base::ids::PartitionId;
use crate::base::limits;
use crate::connection::Closed;
use crate::dispatch::Dispatch;
use crate::io::Io;
use crate::metadata::{Image, Topic};
use crate::wire::api::ApiKey;
use crate::wire::error::ErrorCode;
use crate::wire::header::{RequestHeader, decode_body, decode_start, put_response_header};
use crate::wire::primitive::{Uuid, Wire};

pub use api_versions::unsupported_api_versions;
pub use identity::{Broker, Identity, port_offset};

/// What the handlers of one core work with.
pub struct Handlers<I: Io> {
    pub dispatch: Dispatch<I>,
    pub identity: Identity,
    sessions: RefCell<sessions::Sessions>,
    /// Producer ids that this core may give out: the next one and the end of its block.
    producer_ids: Cell<(i64, i64)>,
}

impl<I: Io> Handlers<I> {
    pub fn new(dispatch: Dispatch<I>, identity: Identity) -> Rc<Handlers<I>> {
        Rc::new(Handlers {
            dispatch,
            identity,
            sessions: RefCell::new(sessions::Sessions::new()),
            producer_ids: Cell::new((0, 0)),
        })
    }

    fn image(&self) -> Arc<Image> {
        self.dispatch.image()
    }

    /// Who keeps a partition, and whether anything of it is served.
    fn replica_of(&self, topic: &Topic, index: u32) -> Replica {
        let partition = PartitionId { topic: topic.number, index };
        Replica {
            broker: self.identity.broker_of(self.dispatch.owner_of(partition)).id,
            is_offline: self.dispatch.shared().is_offline(partition),
        }
    }

    fn io(&self) -> &I {
        self.dispatch.local().io()
    }
}

/// A partition's only replica.
struct Replica {
    broker: i32,
    /// The data directory that it is in has failed.
    is_offline: bool,
}

impl Replica {
    /// What Kafka says of a partition without a leader.
    fn error(&self) -> ErrorCode {
        if self.is_offline { ErrorCode::LEADER_NOT_AVAILABLE } else { ErrorCode::NONE }
    }

    fn leader(&self) -> i32 {
        if self.is_offline { NO_LEADER } else { self.broker }
    }

    fn offline(&self) -> Vec<i32> {
        Vec::from_iter(self.is_offline.then_some(self.broker))
    }
}

/// Kafka's number of no broker.
const NO_LEADER: i32 = -1;

/// One request, borrowed from its frame.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub header: RequestHeader<'a>,
    pub frame: &'a Bytes,
    pub body: &'a [u8],
    /// Where the body begins in the frame.
    pub body_at: usize,
    pub peer: SocketAddr,
}

impl<'a> Request<'a> {
    /// The body as a message.
    fn decode<T: Wire<'a>>(&self) -> Result<T, Closed> {
        let RequestHeader { api, version, .. } = self.header;
        let decoded = match api {
            // librdkafka leaves bytes behind the request for all topics; Kafka reads none of them.
            ApiKey::Metadata => decode_start(self.body, api, version),
            _ => decode_body(self.body, api, version),
        };
        decoded.map_err(|error| {
            Closed(format!("a {} request (version {version}) is malformed: {error}", api.name()))
        })
    }

    fn version(&self) -> i16 {
        self.header.version
    }

    /// The frame of an answer.
    fn answer<'b>(&self, message: &impl Wire<'b>) -> Vec<Bytes> {
        let RequestHeader { api, version, correlation, .. } = self.header;
        frame(api, version, correlation, message)
    }
}

fn frame<'b>(api: ApiKey, version: i16, correlation: i32, message: &impl Wire<'b>) -> Vec<Bytes> {
    let mut out = BytesMut::with_capacity(256);
    out.put_i32(0);
    put_response_header(&mut out, api, version, correlation);
    message.encode(&mut out, api.context(version));
    let length = i32::try_from(out.len() - 4).unwrap_or(i32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    vec![out.freeze()]
}

/// Finds a topic by its id, or by its name where there is no id.
fn topic_of<'a>(image: &'a Image, name: &str, id: Uuid) -> Option<&'a Arc<Topic>> {
    if id.is_zero() { image.topic(name) } else { image.topic_by_id(&id.0) }
}

/// A name that a request has given: that of the topic found, if there is one.
fn counted_name(name: &str, found: Option<&Arc<Topic>>) -> Arc<str> {
    match found {
        _ if name.is_empty() => Arc::default(),
        Some(topic) => topic.name.clone(),
        None => name.into(),
    }
}

/// What a topic that is not found is answered with: `name` is empty where the version has ids.
fn unknown_topic(name: &str, id: Uuid) -> ErrorCode {
    let is_named = id.is_zero() && !name.is_empty();
    if is_named { ErrorCode::UNKNOWN_TOPIC_OR_PARTITION } else { ErrorCode::UNKNOWN_TOPIC_ID }
}

/// Leaves each name once (H3).
fn keep_first_mentions(names: &mut Vec<&str>) {
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
}

/// Makes all of `lookups`, some at a time: a request names more than there is memory for at once.
async fn in_turns<F: Future>(lookups: impl Iterator<Item = F>) -> Vec<F::Output> {
    stream::iter(lookups).buffered(limits::LOOKUPS_MAX).collect().await
}

/// Answers any request but Produce, which is admitted in `produce`, and Fetch.
pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    match request.header.api {
        ApiKey::ApiVersions => api_versions::handle(request),
        ApiKey::Metadata => metadata::handle(handlers, request).await,
        ApiKey::DescribeCluster => cluster::handle(handlers, request),
        ApiKey::DescribeTopicPartitions => describe_topics::handle(handlers, request),
        ApiKey::CreateTopics => create_topics::handle(handlers, request).await,
        ApiKey::DeleteTopics => delete_topics::handle(handlers, request).await,
        ApiKey::CreatePartitions => create_partitions::handle(handlers, request).await,
        ApiKey::ListOffsets => list_offsets::handle(handlers, request).await,
        ApiKey::OffsetForLeaderEpoch => offset_for_leader_epoch::handle(handlers, request).await,
        ApiKey::DeleteRecords => delete_records::handle(handlers, request).await,
        ApiKey::InitProducerId => init_producer_id::handle(handlers, request).await,
        ApiKey::DescribeConfigs => configs::describe(handlers, request),
        ApiKey::AlterConfigs => configs::alter(handlers, request).await,
        ApiKey::IncrementalAlterConfigs => configs::alter_incrementally(handlers, request).await,
        ApiKey::DescribeLogDirs => describe_log_dirs::handle(handlers, request).await,
        ApiKey::FindCoordinator => find_coordinator::handle(handlers, request).await,
        ApiKey::JoinGroup => join_group::handle(handlers, request).await,
        ApiKey::SyncGroup => sync_group::handle(handlers, request).await,
        ApiKey::Heartbeat => heartbeat::handle(handlers, request).await,
        ApiKey::LeaveGroup => leave_group::handle(handlers, request).await,
        ApiKey::OffsetCommit => offset_commit::handle(handlers, request).await,
        ApiKey::OffsetFetch => offset_fetch::handle(handlers, request).await,
        ApiKey::OffsetDelete => offset_delete::handle(handlers, request).await,
        ApiKey::DescribeGroups => describe_groups::handle(handlers, request).await,
        ApiKey::ListGroups => list_groups::handle(handlers, request).await,
        ApiKey::DeleteGroups => delete_groups::handle(handlers, request).await,
        ApiKey::Produce | ApiKey::Fetch => unreachable!("the connection knows their own ways"),
        ApiKey::AddPartitionsToTxn | ApiKey::EndTxn => unreachable!("the connection refuses them"),
    }
}
