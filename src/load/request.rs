//! Frames of requests: Produce from batches, with the codes of its answer, and any other. Pure.

use bytes::{BufMut, Bytes, BytesMut};

use super::producer::{Batch, Shape};
use super::target::{Place, Target};
use crate::client::cluster::REQUEST_TIME_MS;
use crate::wire::api::{ApiKey, produce};
use crate::wire::error::ErrorCode;
use crate::wire::header::RequestHeader;
use crate::wire::primitive::{Context, Wire, put_bytes_length, put_count, put_unsigned_varint};
use crate::wire::records::Codec;

const CLIENT_ID: &str = "corelog-load";
const LENGTH_BYTES: usize = 4;

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

/// Writes the frame of a Produce request behind what `out` holds; `put` writes a batch. Batches of
/// one topic stand together.
pub fn frame(
    shape: &Shape,
    correlation: i32,
    transactional_id: Option<&str>,
    batches: &[Batch],
    out: &mut BytesMut,
    put: impl Fn(&Batch, BytesMut) -> BytesMut,
) {
    let version = shape.target.produce_version;
    let context = ApiKey::Produce.context(version);
    let topic_of = |batch: &Batch| place_of(shape, batch).map_or(0, |place| place.topic);
    let start = out.len();
    out.put_u32(0);
    RequestHeader { api: ApiKey::Produce, version, correlation, client_id: Some(CLIENT_ID) }
        .encode(out);
    transactional_id.encode(out, context);
    out.put_i16(shape.plan.acks);
    out.put_i32(REQUEST_TIME_MS);
    let topics = batches.chunk_by(|one, two| topic_of(one) == topic_of(two));
    put_count(out, Some(topics.clone().count()), context);
    for group in topics {
        let topic = group.first().map_or(0, topic_of);
        let name = shape.target.topics.get(topic).map_or("", String::as_str);
        name.encode(out, context);
        put_count(out, Some(group.len()), context);
        for batch in group {
            out.put_i32(place_of(shape, batch).map_or(0, |place| place.partition));
            if shape.plan.codec == Codec::None {
                put_bytes_length(out, Some(batch.bytes()), context);
                *out = put(batch, std::mem::take(out));
            } else {
                let packed = put(batch, BytesMut::new());
                put_bytes_length(out, Some(packed.len()), context);
                out.put_slice(&packed);
            }
            end_structure(out, context);
        }
        end_structure(out, context);
    }
    end_structure(out, context);
    let length = u32::try_from(out.len().saturating_sub(start + LENGTH_BYTES)).unwrap_or(u32::MAX);
    if let Some(room) = out.get_mut(start..start + LENGTH_BYTES) {
        room.copy_from_slice(&length.to_be_bytes());
    }
}

fn place_of<'s>(shape: &'s Shape, batch: &Batch) -> Option<&'s Place> {
    shape.target.places.get(usize::try_from(batch.place).ok()?)
}

fn end_structure(out: &mut BytesMut, context: Context) {
    if context.flexible {
        put_unsigned_varint(out, 0);
    }
}
