//! Fetch in place: a request read in one bounded walk, and a response written as pieces, headers of
//! our own and record bytes by reference.
//!
//!     | length | header | ... partition header | records | partition tail | ... |
//!       '---- in the buffer ----------------'   counted   '-- in the buffer --

use bytes::{BufMut, Bytes};

use super::api::ApiKey;
use super::api::fetch::ReplicaState;
use super::error::ErrorCode;
use super::pieces::Pieces;
use super::primitive::{Context, DecodeError, Reader, Uuid, Wire, put_bytes_length, put_count};
use super::produce::{TopicRef, read_count, read_topic};
use super::respond::Responding;
use crate::base::few::Few;

/// The request's own fields, those that the broker goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchAsked {
    pub max_wait_ms: i32,
    pub min_bytes: i32,
    pub max_bytes: i32,
    /// 0 and -1 in versions without sessions.
    pub session_id: i32,
    pub session_epoch: i32,
}

/// What is asked of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionAsked {
    pub index: i32,
    pub leader_epoch: i32,
    pub offset: i64,
    pub bytes_max: i32,
}

/// What the walk meets, in the order of the request.
pub trait FetchSink<'a> {
    fn topic(&mut self, topic: TopicRef<'a>);

    fn partition(&mut self, asked: PartitionAsked);

    /// A partition that the session is to forget.
    fn forgotten(&mut self, topic: TopicRef<'a>, index: i32);
}

/// Reads `body` of `version`, telling `sink` of each topic and partition.
pub fn read<'a>(
    body: &'a [u8],
    version: i16,
    sink: &mut impl FetchSink<'a>,
) -> Result<FetchAsked, DecodeError> {
    let context = ApiKey::Fetch.context(version);
    let reader = &mut Reader::new(body);
    let at = |field| move |error: DecodeError| error.within(field);
    if version <= 14 {
        reader.i32().map_err(at("replica_id"))?;
    }
    let max_wait_ms = reader.i32().map_err(at("max_wait_ms"))?;
    let min_bytes = reader.i32().map_err(at("min_bytes"))?;
    let mut asked = FetchAsked {
        max_wait_ms,
        min_bytes,
        max_bytes: i32::MAX,
        session_id: 0,
        session_epoch: -1,
    };
    if version >= 3 {
        asked.max_bytes = reader.i32().map_err(at("max_bytes"))?;
    }
    if version >= 4 {
        reader.array::<1>().map_err(at("isolation_level"))?;
    }
    if version >= 7 {
        asked.session_id = reader.i32().map_err(at("session_id"))?;
        asked.session_epoch = reader.i32().map_err(at("session_epoch"))?;
    }
    for _ in 0..read_count(reader, context).map_err(at("topics"))? {
        sink.topic(read_topic(reader, context).map_err(at("topics"))?);
        for _ in 0..read_count(reader, context).map_err(at("partitions"))? {
            sink.partition(read_partition(reader, context)?);
        }
        reader.skip_tags(context).map_err(at("topic tags"))?;
    }
    if version >= 7 {
        read_forgotten(reader, context, sink)?;
    }
    if version >= 11 {
        <&str>::decode(reader, context).map_err(at("rack_id"))?;
    }
    let known = reader.tags(context, |tag, value| match tag {
        0 if version >= 12 => value.string(context).map(|_cluster_id| ()),
        1 if version >= 15 => ReplicaState::decode(value, context).map(|_| ()),
        _ => Ok(()),
    });
    known.map_err(at("tags"))?;
    reader.end()?;
    Ok(asked)
}

fn read_partition(
    reader: &mut Reader<'_>,
    context: Context,
) -> Result<PartitionAsked, DecodeError> {
    let at = |field| move |error: DecodeError| error.within(field);
    let index = reader.i32().map_err(at("partition"))?;
    let mut leader_epoch = -1;
    if context.version >= 9 {
        leader_epoch = reader.i32().map_err(at("current_leader_epoch"))?;
    }
    let offset = reader.i64().map_err(at("fetch_offset"))?;
    if context.version >= 12 {
        reader.i32().map_err(at("last_fetched_epoch"))?;
    }
    if context.version >= 5 {
        reader.i64().map_err(at("log_start_offset"))?;
    }
    let bytes_max = reader.i32().map_err(at("partition_max_bytes"))?;
    let known = reader.tags(context, |tag, value| match tag {
        0 if context.version >= 17 => Uuid::decode(value, context).map(|_directory| ()),
        1 if context.version >= 18 => value.i64().map(|_high_watermark| ()),
        _ => Ok(()),
    });
    known.map_err(at("partition tags"))?;
    Ok(PartitionAsked { index, leader_epoch, offset, bytes_max })
}

fn read_forgotten<'a>(
    reader: &mut Reader<'a>,
    context: Context,
    sink: &mut impl FetchSink<'a>,
) -> Result<(), DecodeError> {
    let at = |field| move |error: DecodeError| error.within(field);
    for _ in 0..read_count(reader, context).map_err(at("forgotten_topics_data"))? {
        let topic = read_topic(reader, context).map_err(at("forgotten_topics_data"))?;
        for _ in 0..read_count(reader, context).map_err(at("partitions"))? {
            sink.forgotten(topic, reader.i32().map_err(at("partitions"))?);
        }
        reader.skip_tags(context).map_err(at("forgotten topic tags"))?;
    }
    Ok(())
}

/// One partition of the answer.
#[derive(Clone, Copy, Debug)]
pub struct FetchedHead {
    pub index: i32,
    pub error: ErrorCode,
    pub high_watermark: i64,
    pub last_stable: i64,
    pub log_start: i64,
}

/// Builds a Fetch response without copying records.
pub struct FetchWriter<'a>(Responding<'a>);

impl FetchWriter<'_> {
    /// Begins a response with this error of its own and this session.
    pub fn new(
        out: &mut Pieces,
        ids: (i16, i32),
        error: ErrorCode,
        session: i32,
    ) -> FetchWriter<'_> {
        let responding = Responding::begin(out, ApiKey::Fetch, ids);
        let head = responding.out.head();
        head.put_i32(0); // throttle time
        if responding.context.version >= 7 {
            head.put_i16(error.0);
            head.put_i32(session);
        }
        FetchWriter(responding)
    }

    /// Begins the list of `count` topics.
    pub fn topics(&mut self, count: usize) {
        self.0.topics(count);
    }

    /// Begins a topic of `count` partitions.
    pub fn topic(&mut self, name: &str, id: Uuid, count: usize) {
        self.0.topic(name, id, count);
    }

    /// One partition of the topic begun last.
    pub fn partition(&mut self, head: FetchedHead, records: Few<Bytes>) {
        let context = self.0.context;
        let out = self.0.out.head();
        out.put_i32(head.index);
        out.put_i16(head.error.0);
        out.put_i64(head.high_watermark);
        out.put_i64(head.last_stable);
        if context.version >= 5 {
            out.put_i64(head.log_start);
        }
        put_count(out, None, context); // aborted transactions
        if context.version >= 11 {
            out.put_i32(-1); // preferred read replica
        }
        let length = records.iter().map(Bytes::len).sum();
        put_bytes_length(out, Some(length), context);
        records.into_iter().for_each(|piece| self.0.out.put(piece));
        self.0.end_structure();
    }

    /// Ends the topic begun last.
    pub fn end_topic(&mut self) {
        self.0.end_structure();
    }

    /// Ends the response.
    pub fn finish(self) {
        self.0.finish();
    }
}
