//! A producer's mind: records into batches, batches into requests, answers into acknowledgements.
//!
//!     schedule ─► open batch per partition ─► request per leader ─► in flight ─► acknowledged
//!                        │ full, or linger over         ▲               │
//!                        └──────────────────────────────┘◄── again ─────┘ error, lost connection
//!
//! Pure: a connection per leader ("lane") carries out what `take` returns. Times are nanoseconds.
//!
//! Invariants
//!   P1  A request holds at most one batch of each partition; at most `in_flight` requests of a
//!       lane wait for their answers.
//!   P2  While batches wait to be repeated, nothing new is sent on their lane, and they are sent in
//!       the order they were closed in.
//!   P3  Memory is bounded: beyond `unsent_max` and `held_max` no record is taken up; those that
//!       are due keep their intended times.
//!   P4  A partition belongs to one lane. When its leader changes, or the numbering of its batches
//!       begins anew, it is adrift, on no lane, until none of its batches is in flight.
//!   P5  An idempotent producer's sequence numbers in a partition have no hole: when a batch is
//!       given up, those behind it are numbered from 0 with the next epoch (KIP-360). Those that
//!       may have been stored already are given up with it, for they would be stored twice.
//!   P6  Of an idempotent producer's batches in a partition one is in flight until the broker has
//!       taken the first: Kafka takes any number from a producer that it does not know, and would
//!       refuse the batch before for good. One that is refused as out of order while none before
//!       it waits is given up.
//!   P7  A transactional producer takes up no record while its transaction comes to its end.

mod batch;
mod mooring;
mod places;
mod transacting;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use batch::Batch;
use batch::{Draft, Scribe};
use bytes::BytesMut;
use mooring::number;
use places::{Places, Slot};

use super::keys::{KEY_BYTES, KeyShape, Keys, Random, written};
use super::ledger::{Ledger, Stream};
use super::options::{Mode, Plan, Rate};
use super::pace::Pacer;
use super::payload::Pool;
use super::recorder::{Count, Recorder};
use super::request::{Codes, frame};
use super::route::{NOBODY, Route, doubts_the_leader};
use super::target::Target;
use super::transaction::Transaction;
use crate::client::partitioner;
use crate::wire::api::{ApiKey, produce};
use crate::wire::error::ErrorCode;
use crate::wire::header::{decode_body, read_response_header};
use crate::wire::primitive::Reader;
use crate::wire::records::ProducerStamp;

/// Requests are about this long at most, unless a batch alone is longer (Kafka's producer: 1 MiB).
const REQUEST_BYTES: usize = 1 << 20;
/// Batches that are not acknowledged, of all producers together.
const HELD_BYTES: usize = 512 << 20;
const HELD_BYTES_MIN: usize = 1 << 20;
/// Memory of finished batches that is kept for new ones, by pieces.
const FREE_MAX: usize = 256;
/// Keys are drawn so many at a time, so that the memory of their places is waited for once.
const AHEAD: usize = 32;
/// Pauses before batches are repeated.
const AGAIN_FIRST_NANOS: u64 = 20_000_000;
const AGAIN_MAX_NANOS: u64 = 1_000_000_000;
/// A batch is given up after so long, as Kafka's producer does (delivery.timeout.ms).
const DELIVERY_NANOS_MAX: u64 = 120_000_000_000;
const NANOS_PER_MILLI: i64 = 1_000_000;

/// What all producers of a run share.
#[derive(Debug)]
pub struct Shape {
    pub plan: Plan,
    pub target: Target,
    pub rate: Rate,
    pub pool: Pool,
    pub keys: Keys,
    /// Marks the records of this run.
    pub run: u32,
}

impl Shape {
    /// The id of a group: a name that was given, or one of this run alone.
    pub fn group_id(&self, group: u32) -> String {
        match &self.plan.group {
            Some(name) if self.plan.groups == 1 => name.clone(),
            Some(name) => format!("{name}-{group}"),
            None => format!("corelog-load-{:08x}-{group}", self.run),
        }
    }
}

/// See the module's documentation.
pub struct Producer {
    id: u32,
    shape: Arc<Shape>,
    pacer: Pacer,
    random: Random,
    /// Nanoseconds since 1970 at the clock's zero.
    epoch: i64,
    /// No record is meant for this time or later.
    until: u64,
    places: Places,
    lanes: Vec<Lane>,
    /// The next records' keys.
    ahead: Vec<Drawn>,
    route: Arc<Route>,
    /// An answer let doubt the route.
    is_in_doubt: bool,
    /// Batches to be repeated, by their order, of partitions that are adrift.
    adrift: BTreeMap<u64, Batch>,
    /// Where records without key go until their batch is closed.
    sticky: usize,
    /// Bytes in batches that were not sent yet, and in all that are not acknowledged.
    unsent: usize,
    held: usize,
    unsent_max: usize,
    held_max: usize,
    order: u64,
    requests: u64,
    /// Batches that have not come to their end, the open ones included.
    batches: usize,
    transaction: Option<Transaction>,
    /// Memory for the records of batches.
    free: Vec<Vec<Draft>>,
}

/// A key's number and where it goes.
#[derive(Clone, Copy)]
struct Drawn {
    key: u64,
    place: usize,
}

/// A leader's part of the producer.
#[derive(Default)]
struct Lane {
    /// Partitions with a closed batch.
    full: VecDeque<usize>,
    /// Open batches by age: partition, the batch's order, when its linger is over.
    lingering: VecDeque<(usize, u64, u64)>,
    again: BTreeMap<u64, Batch>,
    again_at: u64,
    again_pause: u64,
    in_flight: VecDeque<Request>,
    correlation: i32,
}

struct Request {
    correlation: i32,
    sent: u64,
    batches: Vec<Batch>,
}

/// The answer is not one to what was asked: the connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strange;

impl Producer {
    pub fn new(id: u32, shape: Arc<Shape>, epoch: i64, start: u64, until: u64) -> Producer {
        let Shape { plan, target, rate, .. } = &*shape;
        let route = target.route.clone();
        let lanes = route.brokers().len();
        let batch = plan.batch_bytes.max(plan.sizes.max);
        // In a closed loop what waits to be sent is only what keeps the connection busy.
        let unsent_max = match (rate, plan.keys) {
            (Rate::PerSecond(_), _) => usize::MAX,
            (Rate::Max, KeyShape::None) => 2 * batch * lanes.max(1),
            (Rate::Max, _) => (2 * batch).max(REQUEST_BYTES),
        };
        let producers = usize::try_from(plan.producers).unwrap_or(1).max(1);
        let pipeline = batch * (plan.in_flight + 2) * lanes.max(1);
        let held_max = (HELD_BYTES / producers).max(HELD_BYTES_MIN).max(pipeline);
        let seed = u64::from(shape.run) << 32 | u64::from(id);
        Producer {
            id,
            pacer: Pacer::new(*rate, id, plan.producers, start),
            random: Random::new(seed),
            epoch,
            until,
            places: Places::new(
                (0..target.places.len())
                    .map(|place| Slot::new(route.leader(place), !plan.idempotent)),
            ),
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            ahead: Vec::new(),
            route,
            is_in_doubt: false,
            adrift: BTreeMap::new(),
            sticky: usize::try_from(id).unwrap_or(0) % target.places.len().max(1),
            unsent: 0,
            held: 0,
            unsent_max,
            held_max,
            order: 0,
            requests: 0,
            batches: 0,
            transaction: Transaction::of(id, &shape),
            free: Vec::new(),
            shape,
        }
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Whether the lane's broker leads a partition.
    pub fn is_used(&self, lane: usize) -> bool {
        self.route.leads(lane)
    }

    /// Takes up no record that is meant for `until` or later.
    pub fn stop_at(&mut self, until: u64) {
        self.until = self.until.min(until);
    }

    /// Whether every record of the schedule has come to its end.
    pub fn is_done(&self, now: u64) -> bool {
        self.is_fenced() || (self.is_past_the_end(now) && self.batches == 0 && self.is_settled())
    }

    /// Whether no record is meant for now or later.
    fn is_past_the_end(&self, now: u64) -> bool {
        self.pacer.next().unwrap_or(now) >= self.until
    }

    /// Takes up the records that are due.
    pub fn fill(&mut self, now: u64, recorder: &mut Recorder) {
        self.close_transaction(now);
        let (mut meant, mut records) = (now, 0);
        while self.has_room() {
            let Some(intended) = self.pacer.due(now).filter(|at| *at < self.until) else { break };
            if intended != meant {
                recorder.taken_up(meant, now, records);
                (meant, records) = (intended, 0);
            }
            records += 1;
            self.push(intended, now);
            self.pacer.advance();
            self.close_transaction(now);
        }
        recorder.taken_up(meant, now, records);
    }

    /// Whether another record may be taken up (P3, P7).
    fn has_room(&self) -> bool {
        self.unsent < self.unsent_max && self.held < self.held_max && self.takes_records()
    }

    fn push(&mut self, intended: u64, now: u64) {
        let Drawn { key, place } = self.draw();
        let length = self.shape.plan.sizes.draw(&mut self.random);
        let filler = self.shape.pool.draw(&mut self.random);
        let draft = Draft { intended, key, filler, length: u32::try_from(length).unwrap_or(0) };
        let (batch_bytes, payload) =
            (self.shape.plan.batch_bytes, self.scribe().payload_of(length));
        let full = |batch: &Batch| batch.records_bytes() + payload > batch_bytes;
        if self.places.opened(place).is_some_and(full) {
            self.close(place);
        }
        let is_keyed = self.shape.plan.keys != KeyShape::None;
        let place = if is_keyed { place } else { self.sticky };
        let scribe = Scribe { shape: &self.shape, producer: self.id, epoch: self.epoch };
        let bytes = match self.places.opened_mut(place) {
            Some(batch) => {
                scribe.add(batch, draft);
                batch.records_bytes()
            }
            None => {
                let batch = scribe.begin(place, draft, self.free.pop().unwrap_or_default());
                let bytes = batch.records_bytes();
                self.open(batch, now);
                bytes
            }
        };
        let Some(slot) = self.places.get_mut(place) else { return };
        if let Some(transaction) = &mut self.transaction {
            transaction.took(place, slot.next_sequence, now);
        }
        slot.next_sequence += 1;
        self.unsent += payload;
        self.held += payload;
        if bytes >= batch_bytes {
            self.close(place);
        }
    }

    fn scribe(&self) -> Scribe<'_> {
        Scribe { shape: &self.shape, producer: self.id, epoch: self.epoch }
    }

    /// The next record's key and place.
    fn draw(&mut self) -> Drawn {
        if self.ahead.is_empty() && self.shape.plan.keys != KeyShape::None {
            for _ in 0..AHEAD {
                let key = self.shape.keys.draw(self.random.bits()).unwrap_or(0);
                let bytes: [u8; KEY_BYTES] = written(key);
                let place = partitioner::of_key(&bytes, self.places.len());
                self.ahead.push(Drawn { key, place });
            }
            self.places.touch(self.ahead.iter().map(|drawn| drawn.place));
        }
        self.ahead.pop().unwrap_or(Drawn { key: 0, place: self.sticky })
    }

    /// Opens a batch of a partition that has none open.
    fn open(&mut self, mut batch: Batch, now: u64) {
        let linger = u64::try_from(self.shape.plan.linger.as_nanos()).unwrap_or(u64::MAX);
        self.order += 1;
        self.batches += 1;
        batch.order = self.order;
        batch.ready = now.saturating_add(linger);
        let Some(slot) = self.places.get(batch.place()) else { return };
        batch.first_sequence = slot.next_sequence;
        if let Some(lane) = self.lanes.get_mut(slot.lane) {
            lane.lingering.push_back((batch.place(), batch.order, batch.ready));
        }
        self.places.open(batch);
    }

    /// Closes the partition's open batch and lines it up.
    fn close(&mut self, place: usize) {
        let Some(is_first) = self.places.close(place) else { return };
        self.leave(place);
        let Some(slot) = self.places.get(place) else { return };
        if is_first && let Some(lane) = self.lanes.get_mut(slot.lane) {
            lane.full.push_back(place);
        }
    }

    /// The open batch of a partition takes no more records: those without key go elsewhere.
    fn leave(&mut self, place: usize) {
        if place == self.sticky {
            self.sticky = (self.sticky + 1) % self.places.len().max(1);
        }
    }

    fn identity(&self) -> Option<(i64, i16)> {
        if let Some(transaction) = &self.transaction {
            return Some(transaction.identity());
        }
        self.shape.target.identities.get(usize::try_from(self.id).ok()?).copied()
    }

    /// Makes the next request of a lane; false while there is nothing to send or no room in flight.
    pub fn take(&mut self, lane_at: usize, now: u64) -> bool {
        let in_flight_max = self.shape.plan.in_flight;
        if !self.may_send() {
            return false;
        }
        let Some(lane) = self.lanes.get_mut(lane_at) else { return false };
        if lane.in_flight.len() >= in_flight_max {
            return false;
        }
        self.requests += 1;
        let mut batches = if lane.again.is_empty() {
            self.fresh(lane_at, now)
        } else if lane.in_flight.is_empty() && now >= lane.again_at {
            self.repeated(lane_at)
        } else {
            Vec::new()
        };
        let Some(lane) = self.lanes.get_mut(lane_at).filter(|_| !batches.is_empty()) else {
            return false;
        };
        for batch in &mut batches {
            let Some(slot) = self.places.get_mut(batch.place()) else { continue };
            slot.in_flight += 1;
            batch.epoch = slot.epoch;
            batch.sequence = number(batch.first_sequence, slot.base);
        }
        sort(&mut batches, &self.shape.target);
        lane.correlation = lane.correlation.wrapping_add(1);
        lane.in_flight.push_back(Request { correlation: lane.correlation, sent: now, batches });
        true
    }

    /// Writes the frame of the request that `take` made last behind what `out` holds.
    pub fn write(&self, lane_at: usize, out: &mut BytesMut) {
        let lane = self.lanes.get(lane_at);
        let Some(request) = lane.and_then(|lane| lane.in_flight.back()) else { return };
        let (scribe, identity) = (self.scribe(), self.identity());
        let id = self.transaction.as_ref().map(Transaction::id);
        frame(&self.shape, request.correlation, id, &request.batches, out, |batch, memory| {
            let stamp = identity.map(|(id, epoch)| ProducerStamp {
                id,
                epoch: epoch.wrapping_add(batch.epoch),
                sequence: batch.sequence,
            });
            // Our own records are always compressible; the bounds are those of the options.
            scribe.write(batch, stamp, memory, self.shape.plan.codec).unwrap_or_default()
        });
    }

    /// Batches that are full or have waited long enough.
    fn fresh(&mut self, lane_at: usize, now: u64) -> Vec<Batch> {
        let (mut batches, mut bytes) = (Vec::new(), 0);
        let request = self.requests;
        let Some(lane) = self.lanes.get_mut(lane_at) else { return batches };
        while bytes < REQUEST_BYTES {
            let Some(&place) = lane.full.front() else { break };
            let Some(slot) = self.places.get_mut(place) else { break };
            if slot.request == request || slot.must_wait() {
                break;
            }
            slot.request = request;
            lane.full.pop_front();
            let Some(batch) = self.places.take_closed(place) else { continue };
            if self.places.closed(place).is_some() {
                lane.full.push_back(place);
            }
            bytes += batch.bytes();
            self.unsent = self.unsent.saturating_sub(batch.payload());
            batches.push(batch);
        }
        while bytes < REQUEST_BYTES {
            let Some(&(place, order, ready)) = lane.lingering.front() else { break };
            if self.places.opened(place).is_none_or(|open| open.order != order) {
                // It was closed because it was full.
                lane.lingering.pop_front();
                continue;
            }
            let Some(slot) = self.places.get_mut(place) else { break };
            let waits = slot.request == request || slot.must_wait();
            if ready > now || waits || slot.has_closed() {
                break;
            }
            slot.request = request;
            lane.lingering.pop_front();
            let Some(batch) = self.places.take_open(place) else { continue };
            if place == self.sticky {
                self.sticky = (self.sticky + 1) % self.places.len().max(1);
            }
            bytes += batch.bytes();
            self.unsent = self.unsent.saturating_sub(batch.payload());
            batches.push(batch);
        }
        batches
    }

    /// Batches to be repeated, in the order they were closed in, one of each partition.
    fn repeated(&mut self, lane_at: usize) -> Vec<Batch> {
        let Some(lane) = self.lanes.get_mut(lane_at) else { return Vec::new() };
        let (mut orders, mut bytes) = (Vec::new(), 0);
        for (order, batch) in &lane.again {
            let Some(slot) = self.places.get_mut(batch.place()) else { continue };
            if slot.request == self.requests || bytes >= REQUEST_BYTES {
                break;
            }
            slot.request = self.requests;
            bytes += batch.bytes();
            orders.push(*order);
        }
        orders.iter().filter_map(|order| lane.again.remove(order)).collect()
    }

    /// The request that was taken last is in the socket's buffer: with acks=0 that is all there
    /// is to wait for.
    pub fn sent(&mut self, lane_at: usize, now: u64, recorder: &mut Recorder) {
        if self.shape.plan.acks != 0 {
            return;
        }
        let Some(lane) = self.lanes.get_mut(lane_at) else { return };
        let Some(request) = lane.in_flight.pop_back() else { return };
        recorder.answered(now, request.sent);
        for batch in request.batches {
            let place = batch.place();
            self.landed(place);
            self.finish(batch, now, recorder);
            self.moor(place, now);
        }
    }

    /// An answer has come: `frame` is what follows its length.
    pub fn answer(
        &mut self,
        lane_at: usize,
        frame: &[u8],
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) -> Result<(), Strange> {
        let version = self.shape.target.produce_version;
        let mut reader = Reader::new(frame);
        let correlation = read_response_header(&mut reader, ApiKey::Produce, version);
        let lane = self.lanes.get_mut(lane_at).ok_or(Strange)?;
        if lane.in_flight.front().map(|request| request.correlation) != correlation.ok() {
            return Err(Strange);
        }
        let answer: produce::Response<'_> =
            decode_body(reader.rest(), ApiKey::Produce, version).map_err(|_| Strange)?;
        let request = lane.in_flight.pop_front().ok_or(Strange)?;
        recorder.answered(now, request.sent);
        let shape = self.shape.clone();
        let mut codes = Codes::new(&answer, &shape.target);
        for batch in &request.batches {
            self.landed(batch.place());
        }
        for batch in request.batches {
            let place = batch.place();
            let code = codes.of(place);
            self.settle(lane_at, batch, code, now, recorder, ledger);
            self.moor(place, now);
        }
        Ok(())
    }

    fn settle(
        &mut self,
        lane_at: usize,
        mut batch: Batch,
        code: Option<ErrorCode>,
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) {
        let code = code.unwrap_or(ErrorCode::UNKNOWN_SERVER_ERROR);
        if matches!(code, ErrorCode::NONE | ErrorCode::DUPLICATE_SEQUENCE_NUMBER) {
            if let Some(lane) = self.lanes.get_mut(lane_at) {
                lane.again_pause = 0;
            }
            if let Some(slot) = self.places.get_mut(batch.place()) {
                slot.is_known |= slot.epoch == batch.epoch;
            }
            // Records of transactions are acknowledged with their transaction.
            if self.shape.plan.mode == Mode::Verify && self.transaction.is_none() {
                let stream = Stream { producer: self.id, place: batch.place };
                ledger.acknowledge(stream, batch.first_sequence, batch.count());
            }
            self.finish(batch, now, recorder);
            return;
        }
        recorder.error(&code.to_string());
        self.is_in_doubt |= doubts_the_leader(code);
        batch.is_uncertain |= matches!(
            code,
            ErrorCode::REQUEST_TIMED_OUT | ErrorCode::NOT_ENOUGH_REPLICAS_AFTER_APPEND
        );
        // Behind one that waits to be repeated or was given up, it is out of order for now only.
        let is_early = code == ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER
            && self.shape.plan.idempotent
            && (self.has_older(&batch) || self.is_outdated(&batch));
        let again = code.is_retriable() || is_early;
        if again { self.repeat(batch, now, recorder) } else { self.give_up(batch, recorder) }
    }

    /// Whether a batch of the same partition that comes before this one waits for its end, so that
    /// the broker may take this one after it.
    fn has_older(&self, batch: &Batch) -> bool {
        let is_older = |other: &Batch| other.place == batch.place && other.order < batch.order;
        let on_lanes = self.lanes.iter().any(|lane| {
            let mut in_flight = lane.in_flight.iter().flat_map(|request| &request.batches);
            in_flight.any(is_older) || lane.again.values().any(is_older)
        });
        on_lanes || self.adrift.values().any(is_older)
    }

    /// The lane's connection is gone; whether its requests were served is not known.
    pub fn lost(&mut self, lane_at: usize, now: u64, recorder: &mut Recorder) {
        let Some(lane) = self.lanes.get_mut(lane_at) else { return };
        let requests = std::mem::take(&mut lane.in_flight);
        self.is_in_doubt = true;
        let mut places = Vec::new();
        for mut batch in requests.into_iter().flat_map(|request| request.batches) {
            places.push(batch.place());
            self.landed(batch.place());
            batch.is_uncertain = true;
            if self.shape.plan.acks == 0 {
                self.fail(batch, recorder);
            } else {
                self.repeat(batch, now, recorder);
            }
        }
        for place in places {
            self.moor(place, now);
        }
    }

    /// Gives up everything that is not acknowledged.
    pub fn abandon(&mut self, recorder: &mut Recorder) {
        self.drop_unsent(recorder);
        let in_flight = self.lanes.iter_mut().flat_map(|lane| lane.in_flight.drain(..));
        let batches: Vec<Batch> = in_flight.flat_map(|request| request.batches).collect();
        for batch in batches {
            self.fail(batch, recorder);
        }
        self.held = 0;
    }

    /// Gives up everything that is not in flight.
    fn drop_unsent(&mut self, recorder: &mut Recorder) {
        if self.places.opened(self.sticky).is_some() {
            self.leave(self.sticky);
        }
        let mut batches = self.places.drain();
        let unsent = batches.iter().map(Batch::payload).sum();
        self.unsent = self.unsent.saturating_sub(unsent);
        for lane in &mut self.lanes {
            lane.full.clear();
            lane.lingering.clear();
            batches.extend(std::mem::take(&mut lane.again).into_values());
        }
        batches.extend(std::mem::take(&mut self.adrift).into_values());
        for batch in batches {
            self.fail(batch, recorder);
        }
    }

    fn repeat(&mut self, batch: Batch, now: u64, recorder: &mut Recorder) {
        if batch.is_old(now) {
            recorder.error("DELIVERY_TIMEOUT");
            return self.give_up(batch, recorder);
        }
        if self.is_doomed() || (batch.is_uncertain && self.is_outdated(&batch)) {
            return self.fail(batch, recorder);
        }
        let lane = self.places.get(batch.place()).map_or(NOBODY, |slot| slot.lane);
        let Some(lane) = self.lanes.get_mut(lane) else {
            self.adrift.insert(batch.order, batch);
            return;
        };
        if lane.again.is_empty() {
            lane.again_pause = (lane.again_pause * 2).clamp(AGAIN_FIRST_NANOS, AGAIN_MAX_NANOS);
            lane.again_at = now.saturating_add(lane.again_pause);
        }
        lane.again.insert(batch.order, batch);
    }

    fn fail(&mut self, batch: Batch, recorder: &mut Recorder) {
        recorder.failed(batch.count());
        self.release(batch);
    }

    fn finish(&mut self, batch: Batch, now: u64, recorder: &mut Recorder) {
        let bytes = u64::try_from(batch.payload()).unwrap_or(0);
        let count = Count { requests: 0, records: batch.count(), bytes };
        recorder.acknowledged(now, batch.times(), count);
        self.release(batch);
    }

    /// The batch has come to its end: its memory serves again.
    fn release(&mut self, batch: Batch) {
        self.held = self.held.saturating_sub(batch.payload());
        self.batches = self.batches.saturating_sub(1);
        let mut memory = batch.more;
        if memory.capacity() > 0 && self.free.len() < FREE_MAX {
            memory.clear();
            self.free.push(memory);
        }
    }

    /// Since when the lane waits for an answer.
    pub fn waits_since(&self, lane_at: usize) -> Option<u64> {
        self.lanes.get(lane_at)?.in_flight.front().map(|request| request.sent)
    }

    /// When there is something to do without an answer having come; lanes without connection have
    /// nothing to do.
    pub fn next_wake(&self, now: u64, is_connected: impl Fn(usize) -> bool) -> Option<u64> {
        let due = self.pacer.next().filter(|at| *at < self.until && self.has_room());
        let in_flight_max = self.shape.plan.in_flight;
        let may_send = self.may_send();
        let lanes = self.lanes.iter().enumerate().filter_map(|(at, lane)| {
            if !may_send || !is_connected(at) {
                return None;
            }
            if !lane.again.is_empty() {
                return lane.in_flight.is_empty().then_some(lane.again_at);
            }
            let has_room = lane.in_flight.len() < in_flight_max;
            let may_go = |place: usize| self.places.get(place).is_some_and(|s| !s.must_wait());
            let full = lane.full.front().filter(|place| may_go(**place)).map(|_| now);
            let front = lane.lingering.front().filter(|(place, ..)| may_go(*place));
            full.or(front.map(|(_, _, ready)| *ready)).filter(|_| has_room)
        });
        lanes.chain(due).chain(self.transaction_full_at()).min()
    }
}

/// Puts batches of one topic together.
fn sort(batches: &mut [Batch], target: &Target) {
    if target.topics.len() > 1 {
        let topic_of = |batch: &Batch| target.places.get(batch.place()).map_or(0, |p| p.topic);
        batches.sort_by_key(topic_of);
    }
}
