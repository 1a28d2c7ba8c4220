//! Partitions whose records at the consumer's position are gone: where they begin now is asked for
//! before anything else is fetched on their lane. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Consumer, Outcome};
use crate::client::cluster::{EARLIEST, REQUEST_TIME_MS};
use crate::load::producer::Strange;
use crate::load::recorder::Recorder;
use crate::load::request::framed;
use crate::load::route::doubts_the_leader;
use crate::wire::api::{ApiKey, list_offsets};
use crate::wire::error::ErrorCode;
use crate::wire::header::{decode_body, read_response_header};
use crate::wire::primitive::Reader;

impl Consumer {
    /// Asks where the lane's lost partitions begin.
    pub(super) fn offsets_request(&mut self, lane_at: usize) -> Bytes {
        let target = &self.shape.target;
        let Some(lane) = self.lanes.get_mut(lane_at) else { return Bytes::new() };
        let mut topics: BTreeMap<&str, Vec<list_offsets::ListOffsetsPartition>> = BTreeMap::new();
        for part in lane.parts.iter().filter(|part| part.is_lost) {
            let Some(place) = target.places.get(part.place) else { continue };
            let name = target.topics.get(place.topic).map_or("", String::as_str);
            topics.entry(name).or_default().push(list_offsets::ListOffsetsPartition {
                partition_index: place.partition,
                timestamp: EARLIEST,
                ..Default::default()
            });
        }
        let topic = |(name, partitions)| list_offsets::ListOffsetsTopic { name, partitions };
        let request = list_offsets::Request {
            replica_id: -1,
            isolation_level: self.shape.plan.isolation.level(),
            topics: topics.into_iter().map(topic).collect(),
            timeout_ms: REQUEST_TIME_MS,
        };
        lane.correlation = lane.correlation.wrapping_add(1);
        let version = target.version(ApiKey::ListOffsets);
        framed(ApiKey::ListOffsets, version, lane.correlation, &request)
    }

    /// The answer to it: partitions go on at their beginning.
    pub(super) fn located(
        &mut self,
        lane_at: usize,
        frame: &[u8],
        recorder: &mut Recorder,
    ) -> Result<Outcome, Strange> {
        let version = self.shape.target.version(ApiKey::ListOffsets);
        let mut reader = Reader::new(frame);
        let correlation = read_response_header(&mut reader, ApiKey::ListOffsets, version);
        let lane = self.lanes.get_mut(lane_at).ok_or(Strange)?;
        if correlation != Ok(lane.correlation) {
            return Err(Strange);
        }
        let answer: list_offsets::Response<'_> =
            decode_body(reader.rest(), ApiKey::ListOffsets, version).map_err(|_| Strange)?;
        let mut is_wrong = false;
        for topic in &answer.topics {
            let Some(topic_at) = self.topics.get(topic.name).copied() else { continue };
            for told in &topic.partitions {
                let code = ErrorCode(told.error_code);
                if code.is_error() {
                    recorder.error(&code.to_string());
                    self.is_in_doubt |= doubts_the_leader(code);
                    is_wrong = true;
                    continue;
                }
                let at = self.held.get(&(topic_at, told.partition_index)).copied();
                let Some((_, at)) = at.filter(|(lane, _)| *lane == lane_at) else { continue };
                let Some(part) = lane.parts.get_mut(at).filter(|part| part.is_lost) else {
                    continue;
                };
                (part.position, part.is_lost) = (told.offset, false);
                lane.lost = lane.lost.saturating_sub(1);
                if !part.is_moved {
                    part.is_moved = true;
                    lane.moved.push(at);
                }
            }
        }
        Ok(Outcome { is_empty: false, is_wrong })
    }
}
