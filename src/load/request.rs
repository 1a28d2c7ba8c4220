//! Frames of requests: Produce from batches, with the codes of its answer, and any other. Pure.

use bytes::{BufMut, Bytes, BytesMut};

use super::producer::{Batch, Shape};
use super::target::Target;
use crate::client::cluster::REQUEST_TIME_MS;
use crate::wire::api::{ApiKey, produce};
use crate::wire::error::ErrorCode;
use crate::wire::header::RequestHeader;
use crate::wire::primitive::{Context, Wire, put_bytes_length, put_count, put_unsigned_varint};

const CLIENT_ID: &str = "corelog-load";

/// An answer's codes, found by topic and partition; most often they come in the order of the
/// request.
pub struct Codes<'a> {
    target: &'a Target,
    codes: Vec<(&'a str, i32, ErrorCode)>,
    next: usize,
}

impl<'a> Codes<'a> {
    pub fn new(answer: &'a produce::Response<'a>, target: &'a Target) -> Codes<'a> {
        let codes = answer.responses.iter().flat_map(|topic| {
            let code = |p: &produce::PartitionProduceResponse<'_>| (p.index, p.error_code);
            let name = topic.name;
            topic.partition_responses.iter().map(code).map(move |(p, c)| (name, p, ErrorCode(c)))
        });
        Codes { target, codes: codes.collect(), next: 0 }
    }

    pub fn of(&mut self, place: usize) -> Option<ErrorCode> {
        let place = self.target.places.get(place)?;
        let name = self.target.topics.get(place.topic)?.as_str();
        let count = self.codes.len();
        for at in (self.next..count).chain(0..self.next) {
            let (topic, partition, code) = self.codes.get(at).copied()?;
            if partition == place.partition && topic == name {
                self.next = (at + 1) % count;
                return Some(code);
            }
        }
        None
    }
}

/// The frame of a request.
pub fn framed<'q>(api: ApiKey, version: i16, correlation: i32, request: &impl Wire<'q>) -> Bytes {
    let mut frame = BytesMut::zeroed(4);
    RequestHeader { api, version, correlation, client_id: Some(CLIENT_ID) }.encode(&mut frame);
    request.encode(&mut frame, api.context(version));
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame.freeze()
}

/// The frame of a Produce request in pieces, so that batches are not copied.
pub fn frame(
    shape: &Shape,
    correlation: i32,
    transactional_id: Option<&str>,
    mut batches: Vec<Batch>,
) -> (Vec<Batch>, Vec<Bytes>) {
    let version = shape.target.produce_version;
    let context = ApiKey::Produce.context(version);
    let topic_of = |batch: &Batch| shape.target.places.get(batch.place).map_or(0, |p| p.topic);
    if shape.target.topics.len() > 1 {
        batches.sort_by_key(topic_of);
    }
    let mut open = BytesMut::with_capacity(256);
    RequestHeader { api: ApiKey::Produce, version, correlation, client_id: Some(CLIENT_ID) }
        .encode(&mut open);
    transactional_id.encode(&mut open, context);
    open.put_i16(shape.plan.acks);
    open.put_i32(REQUEST_TIME_MS);
    // The first piece is the frame's length.
    let mut pieces = vec![Bytes::new()];
    let topics = batches.chunk_by(|one, two| topic_of(one) == topic_of(two));
    put_count(&mut open, Some(topics.clone().count()), context);
    for group in topics {
        let topic = group.first().map_or(0, topic_of);
        let name = shape.target.topics.get(topic).map_or("", String::as_str);
        name.encode(&mut open, context);
        put_count(&mut open, Some(group.len()), context);
        for batch in group {
            let partition = shape.target.places.get(batch.place).map_or(0, |p| p.partition);
            open.put_i32(partition);
            put_bytes_length(&mut open, Some(batch.bytes.len()), context);
            pieces.push(open.split().freeze());
            pieces.push(batch.bytes.clone());
            end_structure(&mut open, context);
        }
        end_structure(&mut open, context);
    }
    end_structure(&mut open, context);
    pieces.push(open.freeze());
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    if let Some(first) = pieces.first_mut() {
        *first = Bytes::copy_from_slice(&length.to_be_bytes());
    }
    (batches, pieces)
}

fn end_structure(out: &mut BytesMut, context: Context) {
    if context.flexible {
        put_unsigned_varint(out, 0);
    }
}
