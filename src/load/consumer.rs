//! A consumer's mind: positions into fetch requests, answers into received records.
//!
//! Pure: a connection per leader ("lane") sends what `request` returns and brings the answer. One
//! request of a lane is in flight at a time, in an incremental fetch session (KIP-227).
//!
//! Invariants
//!   C1  A position moves forward only, past whole batches that were received; except to the first
//!       offset there is when the broker has no longer what was asked for.
//!   C2  Within a session a partition is named only when its position changed.
//!   C3  When the partitions of a lane change, its session is left for a new one, and an answer
//!       that is still under way is dropped: its positions may be another consumer's now.
//!   C4  Where only committed records are wanted, those of aborted transactions are passed over,
//!       and a lane has nothing more only if its partitions are read to their high watermarks:
//!       records of a transaction whose end is not written yet are still to come.

mod aborted;
mod recover;

use std::collections::BTreeMap;
use std::sync::Arc;

use aborted::Aborted;
use bytes::Bytes;

use super::ledger::{Ledger, Stream};
use super::options::{Isolation, Mode};
use super::payload::Stamp;
use super::producer::{Shape, Strange};
use super::recorder::{Count, Recorder};
use super::request::framed;
use super::route::{Route, doubts_the_leader};
use crate::wire::api::{ApiKey, fetch};
use crate::wire::error::ErrorCode;
use crate::wire::header::{decode_body, read_response_header};
use crate::wire::primitive::Reader;
use crate::wire::records::{BatchHeader, HEADER_BYTES, Record, Records, batches, crc, decompress};

const ANSWER_BYTES_MAX: i32 = 50 << 20;
/// Decompressed records of one batch.
const BATCH_BYTES_MAX: usize = 512 << 20;

/// See the module's documentation.
pub struct Consumer {
    id: u32,
    group: u32,
    shape: Arc<Shape>,
    /// Nanoseconds since 1970 at the clock's zero.
    epoch: i64,
    lanes: Vec<Lane>,
    /// Partitions that have no leader.
    stray: Vec<Part>,
    route: Arc<Route>,
    /// An answer let doubt the route.
    is_in_doubt: bool,
    /// Lane and index within it, by topic and partition.
    held: BTreeMap<(usize, i32), (usize, usize)>,
    topics: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Lane {
    parts: Vec<Part>,
    session: i32,
    /// 0 makes a session, -1 goes without.
    session_epoch: i32,
    /// Partitions whose position changed since the last request.
    moved: Vec<usize>,
    /// The next request begins a new session.
    is_stale: bool,
    /// How many of its partitions are lost.
    lost: usize,
    /// The last request asked where partitions begin.
    is_asking_offsets: bool,
    correlation: i32,
}

#[derive(Debug)]
struct Part {
    place: usize,
    position: i64,
    high_watermark: i64,
    is_moved: bool,
    /// The broker has nothing at its position and did not tell where the partition begins.
    is_lost: bool,
}

/// What an answer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// No record.
    pub is_empty: bool,
    /// An error, so that the next request should wait a little.
    pub is_wrong: bool,
}

impl Consumer {
    /// A consumer of a group that reads all; it is given places by `assign`.
    pub fn new(id: u32, group: u32, shape: Arc<Shape>) -> Consumer {
        let target = &shape.target;
        let topics = target.topics.iter().cloned().zip(0..).collect();
        let route = target.route.clone();
        let mut consumer = Consumer {
            id,
            group,
            epoch: 0,
            lanes: Vec::new(),
            stray: Vec::new(),
            route,
            is_in_doubt: false,
            held: BTreeMap::new(),
            topics,
            shape,
        };
        consumer.lay_out(Vec::new());
        consumer
    }

    /// The run begins: at the clock's zero it was so many nanoseconds after 1970.
    pub fn begin(&mut self, epoch: i64) {
        self.epoch = epoch;
    }

    /// Gives it these places instead of those it has, to be read from these positions on.
    pub fn assign(&mut self, places: &[(usize, i64)]) {
        let end = |place: usize| self.shape.target.places.get(place).map_or(0, |place| place.end);
        let part = |(place, position): &(usize, i64)| Part {
            place: *place,
            position: *position,
            high_watermark: end(*place).max(*position),
            is_moved: false,
            is_lost: false,
        };
        let parts = places.iter().map(part).collect();
        self.lay_out(parts);
    }

    /// Its places and positions.
    pub fn positions(&self) -> Vec<(usize, i64)> {
        let parts = self.lanes.iter().flat_map(|lane| &lane.parts).chain(&self.stray);
        parts.map(|part| (part.place, part.position)).collect()
    }

    /// Takes over newer metadata: partitions go to the lanes of their new leaders.
    pub fn follow(&mut self, route: Arc<Route>) {
        let old = std::mem::replace(&mut self.route, route);
        let has_changed = |part: &Part| {
            let leader = self.route.leader(part.place);
            leader != old.leader(part.place)
        };
        let mut parts = self.lanes.iter().flat_map(|lane| &lane.parts).chain(&self.stray);
        if parts.any(has_changed) || self.lanes.len() < self.route.brokers().len() {
            let mut parts = std::mem::take(&mut self.stray);
            parts.extend(self.lanes.iter_mut().flat_map(|lane| std::mem::take(&mut lane.parts)));
            self.lay_out(parts);
        }
    }

    /// Distributes the partitions to the lanes of their leaders.
    fn lay_out(&mut self, parts: Vec<Part>) {
        let count = self.route.brokers().len().max(self.lanes.len());
        self.lanes.resize_with(count, Lane::default);
        self.held.clear();
        self.stray.clear();
        for lane in &mut self.lanes {
            lane.is_stale = true;
            lane.parts.clear();
            lane.moved.clear();
            lane.lost = 0;
        }
        for mut part in parts {
            let leader = self.route.leader(part.place);
            let Some(place) = self.shape.target.places.get(part.place) else { continue };
            let Some(lane) = self.lanes.get_mut(leader) else {
                self.stray.push(part);
                continue;
            };
            part.is_moved = false;
            lane.lost += usize::from(part.is_lost);
            self.held.insert((place.topic, place.partition), (leader, lane.parts.len()));
            lane.parts.push(part);
        }
    }

    /// Whether the route is in doubt since the last call.
    pub fn doubts(&mut self) -> bool {
        std::mem::take(&mut self.is_in_doubt)
    }

    /// A lane's broker cannot be reached.
    pub fn unreached(&mut self) {
        self.is_in_doubt = true;
    }

    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Whether there is anything to ask the lane for.
    pub fn is_used(&self, lane_at: usize) -> bool {
        self.lanes.get(lane_at).is_some_and(|lane| !lane.parts.is_empty())
    }

    /// The next request of a lane, as a frame; the broker may hold an empty answer back for
    /// `wait_ms`.
    pub fn request(&mut self, lane_at: usize, wait_ms: i32) -> Bytes {
        let target = &self.shape.target;
        let version = target.fetch_version;
        let Some(lane) = self.lanes.get_mut(lane_at) else { return Bytes::new() };
        lane.is_asking_offsets = lane.lost > 0;
        if lane.is_asking_offsets {
            return self.offsets_request(lane_at);
        }
        if std::mem::take(&mut lane.is_stale) {
            (lane.session, lane.session_epoch) = (0, 0);
        }
        if version < 7 {
            lane.session_epoch = -1;
        }
        let named: Vec<usize> = match lane.session_epoch {
            0 | -1 => (0..lane.parts.len()).collect(),
            _ => std::mem::take(&mut lane.moved),
        };
        lane.moved.clear();
        let mut topics: BTreeMap<usize, Vec<fetch::FetchPartition>> = BTreeMap::new();
        for at in named {
            let Some(part) = lane.parts.get_mut(at) else { continue };
            let Some(place) = target.places.get(part.place) else { continue };
            part.is_moved = false;
            topics.entry(place.topic).or_default().push(fetch::FetchPartition {
                partition: place.partition,
                fetch_offset: part.position,
                partition_max_bytes: self.shape.plan.fetch_bytes,
                ..Default::default()
            });
        }
        let topic = |(topic, partitions)| fetch::FetchTopic {
            topic: target.topics.get(topic).map_or("", String::as_str),
            partitions,
            ..Default::default()
        };
        let request = fetch::Request {
            max_wait_ms: wait_ms,
            min_bytes: 1,
            isolation_level: self.shape.plan.isolation.level(),
            max_bytes: ANSWER_BYTES_MAX.max(self.shape.plan.fetch_bytes),
            session_id: lane.session,
            session_epoch: lane.session_epoch,
            topics: topics.into_iter().map(topic).collect(),
            ..Default::default()
        };
        lane.correlation = lane.correlation.wrapping_add(1);
        framed(ApiKey::Fetch, version, lane.correlation, &request)
    }

    /// The answer to the last request: `frame` is what follows its length.
    pub fn answer(
        &mut self,
        lane_at: usize,
        frame: &[u8],
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) -> Result<Outcome, Strange> {
        if self.lanes.get(lane_at).is_some_and(|lane| lane.is_asking_offsets) {
            return self.located(lane_at, frame, recorder);
        }
        let version = self.shape.target.fetch_version;
        let mut reader = Reader::new(frame);
        let correlation = read_response_header(&mut reader, ApiKey::Fetch, version);
        let lane = self.lanes.get_mut(lane_at).ok_or(Strange)?;
        if correlation != Ok(lane.correlation) {
            return Err(Strange);
        }
        let answer: fetch::Response<'_> =
            decode_body(reader.rest(), ApiKey::Fetch, version).map_err(|_| Strange)?;
        if lane.is_stale {
            return Ok(Outcome { is_empty: false, is_wrong: false });
        }
        let code = ErrorCode(answer.error_code);
        if code.is_error() {
            recorder.error(&code.to_string());
            lane.is_stale = true;
            return Ok(Outcome { is_empty: false, is_wrong: true });
        }
        lane.next_session(answer.session_id);
        let mut count = Count { requests: 1, ..Count::default() };
        let mut is_wrong = false;
        for topic in &answer.responses {
            let Some(topic_at) = self.topics.get(topic.topic).copied() else { continue };
            for data in &topic.partitions {
                let at = self.held.get(&(topic_at, data.partition_index)).copied();
                let Some((_, at)) = at.filter(|(lane, _)| *lane == lane_at) else { continue };
                let (more, wrong) = self.part(lane_at, at, data, now, recorder, ledger);
                count.add(more);
                is_wrong |= wrong;
            }
        }
        recorder.received(count);
        recorder.lag(self.id, self.lag());
        let is_empty = count.records == 0 && !self.awaits_decisions(lane_at);
        Ok(Outcome { is_empty, is_wrong })
    }

    /// Whether transactions whose end is not written yet keep records of the lane back (C4).
    fn awaits_decisions(&self, lane_at: usize) -> bool {
        let parts = self.lanes.get(lane_at).map_or(&[][..], |lane| &lane.parts);
        self.shape.plan.isolation == Isolation::ReadCommitted
            && parts.iter().any(|part| part.position < part.high_watermark)
    }

    /// One partition's part of an answer.
    fn part(
        &mut self,
        lane_at: usize,
        at: usize,
        data: &fetch::PartitionData<'_>,
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) -> (Count, bool) {
        let mut count = Count::default();
        let Some(lane) = self.lanes.get(lane_at) else { return (count, false) };
        let Some(part) = lane.parts.get(at) else { return (count, false) };
        let (place, mut position) = (part.place, part.position);
        let code = ErrorCode(data.error_code);
        if code.is_error() {
            recorder.error(&code.to_string());
            self.is_in_doubt |= doubts_the_leader(code);
        }
        // Kafka's brokers do not tell the start here; then they are asked for it.
        let is_gone = code == ErrorCode::OFFSET_OUT_OF_RANGE;
        if is_gone && data.log_start_offset >= 0 {
            position = data.log_start_offset;
        }
        let from = position;
        let mut aborted = Aborted::new(data.aborted_transactions.as_deref());
        for (header, batch) in batches(data.records.unwrap_or_default()) {
            let is_hidden = aborted.hides(&header, batch);
            if header.next_offset() <= position {
                continue;
            }
            if is_hidden {
                position = header.next_offset();
                continue;
            }
            count.add(self.batch(place, from, &header, batch, now, recorder, ledger));
            position = header.next_offset();
        }
        let Some(lane) = self.lanes.get_mut(lane_at) else { return (count, false) };
        let Some(part) = lane.parts.get_mut(at) else { return (count, false) };
        if code.is_none() {
            part.high_watermark = data.high_watermark;
        }
        if is_gone && data.log_start_offset < 0 && !part.is_lost {
            part.is_lost = true;
            lane.lost += 1;
        }
        // A partition with an error is named again: the broker may have dropped it.
        if (part.position != position || code.is_error()) && !part.is_moved {
            part.is_moved = true;
            lane.moved.push(at);
        }
        part.position = position;
        (count, code.is_error())
    }

    /// One batch; records below `from` were asked for by nobody.
    #[expect(clippy::too_many_arguments, reason = "the batch, its place, and two books to keep")]
    fn batch(
        &self,
        place: usize,
        from: i64,
        header: &BatchHeader,
        batch: &[u8],
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) -> Count {
        let mode = self.shape.plan.mode;
        let bytes = u64::try_from(batch.len()).unwrap_or(0);
        let records = header.next_offset().saturating_sub(header.base_offset.max(from));
        let mut count = Count { requests: 0, records: records.cast_unsigned(), bytes };
        if header.is_control() {
            return Count { records: 0, ..count };
        }
        if !matches!(mode, Mode::E2e | Mode::Verify) {
            return count;
        }
        if mode == Mode::Verify && header.crc != crc(batch) {
            ledger.corrupt(count.records);
            return count;
        }
        count.records = 0;
        let inside = header
            .codec()
            .and_then(|codec| decompress(codec, batch.get(HEADER_BYTES..)?, BATCH_BYTES_MAX).ok());
        let Some(inside) = inside else {
            recorder.error("UNREADABLE_BATCH");
            ledger.corrupt(records.cast_unsigned());
            return count;
        };
        for record in Records::new(header, &inside) {
            match record {
                Ok(record) if record.offset < from => {}
                Ok(record) => {
                    count.records += 1;
                    self.record(place, &record, now, recorder, ledger);
                }
                Err(_) => {
                    recorder.error("UNREADABLE_RECORD");
                    ledger.corrupt(1);
                }
            }
        }
        count
    }

    fn record(
        &self,
        place: usize,
        record: &Record<'_>,
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) {
        let value = record.value.unwrap_or_default();
        let stamp = Stamp::read(value);
        let Some(stamp) = stamp.filter(|stamp| stamp.run == self.shape.run) else {
            // Either another run's record or one of ours that came out wrong: a sound checksum
            // tells that it is another's.
            if self.shape.plan.mode == Mode::Verify && !Stamp::is_sound(value) {
                ledger.corrupt(1);
            } else {
                ledger.foreign();
            }
            return;
        };
        let intended = stamp.intended.saturating_sub(self.epoch);
        recorder.delivered(now, u64::try_from(intended).unwrap_or(0));
        if self.shape.plan.mode == Mode::Verify {
            let is_here = usize::try_from(stamp.place) == Ok(place);
            if !is_here || !Stamp::is_sound(value) {
                return ledger.corrupt(1);
            }
            let stream = Stream { producer: stamp.producer, place: stamp.place };
            ledger.receive(self.group, stream, stamp.sequence);
        }
    }

    /// The lane's connection is gone, and the session with it.
    pub fn lost(&mut self, lane_at: usize) {
        self.is_in_doubt = true;
        if let Some(lane) = self.lanes.get_mut(lane_at) {
            lane.is_stale = true;
        }
    }

    /// Whether everything is read that was there before the run.
    pub fn has_reached_the_end(&self) -> bool {
        let end = |part: &Part| self.shape.target.places.get(part.place).map_or(0, |p| p.end);
        let mut parts = self.lanes.iter().flat_map(|lane| &lane.parts).chain(&self.stray);
        parts.all(|part| part.position >= end(part))
    }

    /// Whether a partition has no leader to read it from.
    pub fn has_strays(&self) -> bool {
        !self.stray.is_empty()
    }

    fn lag(&self) -> u64 {
        let parts = self.lanes.iter().flat_map(|lane| &lane.parts).chain(&self.stray);
        parts.map(|part| u64::try_from(part.high_watermark - part.position).unwrap_or(0)).sum()
    }
}

impl Lane {
    /// The broker gave a session, or none.
    fn next_session(&mut self, session: i32) {
        if session == 0 {
            (self.session, self.session_epoch) = (0, 0);
            return;
        }
        self.session = session;
        // The epoch after the largest one is 1.
        self.session_epoch = self.session_epoch.checked_add(1).unwrap_or(1);
    }
}
