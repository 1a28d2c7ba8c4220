//! A transactional producer's mind: what is in its transaction, what its coordinator is to be told,
//! and what came of it.
//!
//!     Empty ─ record ─► Open ─ long enough, or the end ─► Closing ─ all answered ─► Ending
//!       ▲                 └─────── a batch given up: doomed ─┘                         │ EndTxn
//!       ├──────────────────────────────────────────────────────────────────────────────┤
//!       └── InitProducerId ── Renewing ◄─ doomed, or the coordinator refused ──────────┘
//!                                                    any stage ─ a newer epoch is out ─► Fenced
//!
//! Pure: `request` says what to send to whom, one request at a time, `answer` takes what came.
//! Partitions are added by AddPartitionsToTxn, and the epoch stays from one transaction to the
//! next: the protocol that every broker with transactions speaks (KIP-98).
//!
//! Invariants
//!   T1  A batch is sent only when the coordinator has added its partition to the transaction.
//!   T2  A transaction is committed only if every record of it was acknowledged.
//!   T3  A transaction of which a batch was given up is doomed: it is aborted, and the numbering
//!       begins anew with the next epoch (KIP-360).
//!   T4  The ledger hears that records are acknowledged when the coordinator has committed them,
//!       and that they are forbidden when they are to be aborted, as from then on nobody can
//!       commit them. Whether a commit without an answer took place is not known: then it hears
//!       neither.
//!   T5  A producer ends only where its coordinator gives it no epoch any more: the transactional
//!       id is another's then. Kafka's clients end in the same cases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::keys::Random;
use super::ledger::{Ledger, Stream};
use super::member::{To, later};
use super::options::{Isolation, Mode, Plan};
use super::producer::{Shape, Strange};
use super::recorder::Recorder;
use super::request::framed;
use crate::client::cluster::KEY_TYPE_TRANSACTION;
use crate::wire::api::{
    ApiKey, add_partitions_to_txn, end_txn, find_coordinator, init_producer_id,
};
use crate::wire::error::ErrorCode;
use crate::wire::header::{decode_body, read_response_header};
use crate::wire::primitive::{Reader, Wire};

/// Pauses before something is tried again.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The same, while the markers of the last transaction are being written (Kafka's clients: 20 ms).
const WAIT_FIRST: Duration = Duration::from_millis(2);
const WAIT_MAX: Duration = Duration::from_millis(20);
/// The coordinator aborts a transaction that takes so long: Kafka's default, and its upper bound.
const TIMEOUT_MIN: Duration = Duration::from_secs(60);
const TIMEOUT_MAX: Duration = Duration::from_secs(900);

/// How long a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Records(u64),
    Time(Duration),
}

/// What the options say about transactions.
#[derive(Clone, Debug, PartialEq)]
pub struct Transactions {
    pub size: Size,
    /// The part of them that is aborted.
    pub abort_share: f64,
    /// The start of the transactional ids.
    pub id: String,
}

impl Transactions {
    pub fn id_of(&self, producer: u32) -> String {
        format!("{}-{producer}", self.id)
    }

    pub fn text(&self) -> String {
        let size = match self.size {
            Size::Records(records) => format!("{records} records"),
            Size::Time(time) => format!("{time:?}"),
        };
        format!("transactions of {size}, {:.0} % aborted", self.abort_share * 100.0)
    }

    /// After how long the coordinator may abort one by itself.
    pub fn timeout_ms(&self) -> i32 {
        let Size::Time(time) = self.size else { return TIMEOUT_MIN.as_millis() as i32 };
        let timeout = time.saturating_mul(2).clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
    }
}

/// Where a transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Empty,
    Open,
    /// It takes no more records; those that it has come to their end.
    Closing,
    /// Its end is decided.
    Ending {
        is_commit: bool,
    },
    /// The coordinator is asked for another epoch.
    Renewing,
    Fenced,
}

/// A partition's part of the transaction.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Sequence numbers of its records, as the ledger counts them.
    first: u64,
    next: u64,
    is_added: bool,
}

/// The conversation with the coordinator.
#[derive(Debug, Default)]
struct Talk {
    coordinator: Option<i32>,
    /// The API of the request that waits for its answer.
    asked: Option<ApiKey>,
    correlation: i32,
    /// Nothing is sent before.
    at: u64,
    pause: Duration,
}

/// See the module's documentation.
pub struct Transaction {
    producer: u32,
    id: String,
    shape: Arc<Shape>,
    size: Size,
    abort_share: f64,
    random: Random,
    /// Producer id and epoch.
    identity: (i64, i16),
    stage: Stage,
    is_doomed: bool,
    parts: BTreeMap<usize, Part>,
    records: u64,
    /// When its time is over.
    due: u64,
    /// When its end was decided.
    ending_at: u64,
    talk: Talk,
}

/// What a coordinator's code means.
enum Judgement {
    Done,
    Again,
    Refused(ErrorCode),
}

impl Transaction {
    /// The producer's, if the run has transactions.
    pub fn of(producer: u32, shape: &Arc<Shape>) -> Option<Transaction> {
        let plan = shape.plan.transactions.as_ref()?;
        let index = usize::try_from(producer).ok()?;
        let coordinator = shape.target.coordinators.get(index).copied();
        Some(Transaction {
            producer,
            id: plan.id_of(producer),
            size: plan.size,
            abort_share: plan.abort_share,
            random: Random::new(u64::from(shape.run) << 32 | u64::from(!producer)),
            identity: shape.target.identities.get(index).copied().unwrap_or((-1, -1)),
            stage: Stage::Empty,
            is_doomed: false,
            parts: BTreeMap::new(),
            records: 0,
            due: u64::MAX,
            ending_at: 0,
            talk: Talk { coordinator, ..Talk::default() },
            shape: shape.clone(),
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn identity(&self) -> (i64, i16) {
        self.identity
    }

    pub fn takes_records(&self) -> bool {
        matches!(self.stage, Stage::Empty | Stage::Open)
    }

    pub fn is_doomed(&self) -> bool {
        self.is_doomed
    }

    pub fn is_fenced(&self) -> bool {
        self.stage == Stage::Fenced
    }

    /// Whether there is none, nor anything left to be told about one.
    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Empty | Stage::Fenced)
    }

    /// Whether batches may be sent (T1).
    pub fn may_send(&self) -> bool {
        let is_under_way = matches!(self.stage, Stage::Open | Stage::Closing);
        is_under_way && self.parts.values().all(|part| part.is_added)
    }

    /// A record is in it from here on.
    pub fn took(&mut self, place: usize, sequence: u64, now: u64) {
        if self.stage == Stage::Empty {
            self.stage = Stage::Open;
            self.due = match self.size {
                Size::Time(time) => later(now, time),
                Size::Records(_) => u64::MAX,
            };
        }
        self.records += 1;
        let part = Part { first: sequence, next: sequence, is_added: false };
        self.parts.entry(place).or_insert(part).next = sequence + 1;
    }

    /// Whether it is long enough.
    pub fn is_full(&self, now: u64) -> bool {
        let is_long = matches!(self.size, Size::Records(most) if self.records >= most);
        self.stage == Stage::Open && (is_long || now >= self.due)
    }

    /// When it is long enough, as far as that is a matter of time.
    pub fn full_at(&self) -> Option<u64> {
        (self.stage == Stage::Open).then_some(self.due)
    }

    /// It takes no more records. Returns the places that it has records of.
    pub fn close(&mut self) -> Vec<usize> {
        if self.stage != Stage::Open {
            return Vec::new();
        }
        self.stage = Stage::Closing;
        self.parts.keys().copied().collect()
    }

    /// A batch of it was given up (T3).
    pub fn doom(&mut self) {
        if matches!(self.stage, Stage::Open | Stage::Closing) {
            self.stage = Stage::Closing;
            self.is_doomed = true;
        }
    }

    /// The next request to the coordinator, as a frame, if it is time for one; `batches` of the
    /// transaction are not answered yet.
    pub fn request(
        &mut self,
        now: u64,
        batches: usize,
        ledger: &mut Ledger,
    ) -> Option<(To, Bytes)> {
        if self.stage == Stage::Closing && batches == 0 {
            self.decide(now, ledger);
        }
        if !self.has_request(now, batches) {
            return None;
        }
        let Some(node) = self.talk.coordinator else { return Some((To::Anyone, self.find())) };
        let frame = match self.stage {
            Stage::Ending { is_commit } => self.end(is_commit),
            Stage::Renewing => self.renew(),
            _ => self.add(),
        };
        Some((To::Node(node), frame))
    }

    /// Whether there is one.
    pub fn has_request(&self, now: u64, batches: usize) -> bool {
        let is_called_for = match self.stage {
            Stage::Closing if batches == 0 => true,
            Stage::Open | Stage::Closing => self.parts.values().any(|part| !part.is_added),
            Stage::Ending { .. } | Stage::Renewing => true,
            Stage::Empty | Stage::Fenced => false,
        };
        is_called_for && self.talk.asked.is_none() && now >= self.talk.at
    }

    /// When `request` may have something, unless an answer comes before.
    pub fn next_wake(&self, now: u64) -> Option<u64> {
        Some(self.talk.at).filter(|at| self.talk.asked.is_none() && *at > now)
    }

    /// The connection is gone, or was not made: the coordinator may be another broker now.
    pub fn lost(&mut self, now: u64) {
        self.talk.asked = None;
        self.talk.coordinator = None;
        self.talk.rest(now, PAUSE_FIRST, PAUSE_MAX);
    }

    /// The answer to the last request: `frame` is what follows its length.
    pub fn answer(
        &mut self,
        frame: &[u8],
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) -> Result<(), Strange> {
        let api = self.talk.asked.take().ok_or(Strange)?;
        let mut reader = Reader::new(frame);
        let version = self.shape.target.version(api);
        let correlation = read_response_header(&mut reader, api, version);
        if correlation != Ok(self.talk.correlation) {
            return Err(Strange);
        }
        match api {
            ApiKey::FindCoordinator => self.found(&body(&reader, api, version)?, now, recorder),
            ApiKey::AddPartitionsToTxn => self.added(&body(&reader, api, version)?, now, recorder),
            ApiKey::EndTxn => {
                let answer: end_txn::Response = body(&reader, api, version)?;
                self.ended(ErrorCode(answer.error_code), now, recorder, ledger);
            }
            _ => self.renewed(&body(&reader, api, version)?, now, recorder),
        }
        Ok(())
    }

    /// Decides how it ends, once all its batches have come to their end.
    fn decide(&mut self, now: u64, ledger: &mut Ledger) {
        // 53 random bits are a fraction that never reaches 1.
        let chance = (self.random.bits() >> 11) as f64 / (1_u64 << 53) as f64;
        let is_commit = !self.is_doomed && chance >= self.abort_share;
        self.stage = Stage::Ending { is_commit };
        self.ending_at = now;
        let Plan { mode, isolation, .. } = &self.shape.plan;
        if !is_commit && *mode == Mode::Verify && *isolation == Isolation::ReadCommitted {
            for (stream, part) in self.streams() {
                ledger.forbid(stream, part.first..part.next);
            }
        }
        if self.is_doomed && self.parts.values().all(|part| !part.is_added) {
            // The coordinator may know of none; another epoch ends one in any case.
            self.stage = Stage::Renewing;
        }
    }

    fn streams(&self) -> impl Iterator<Item = (Stream, Part)> {
        self.parts.iter().map(|(place, part)| {
            let place = u32::try_from(*place).unwrap_or(u32::MAX);
            (Stream { producer: self.producer, place }, *part)
        })
    }

    /// Nothing is left of it.
    fn clear(&mut self) {
        self.parts.clear();
        self.records = 0;
        self.due = u64::MAX;
        self.is_doomed = false;
    }

    fn find(&mut self) -> Bytes {
        let id = self.id.clone();
        let request = find_coordinator::Request {
            key: &id,
            key_type: KEY_TYPE_TRANSACTION,
            coordinator_keys: vec![&id],
        };
        self.ask(ApiKey::FindCoordinator, &request)
    }

    fn add(&mut self) -> Bytes {
        let (id, shape) = (self.id.clone(), self.shape.clone());
        let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for (place, _) in self.parts.iter().filter(|(_, part)| !part.is_added) {
            let Some(place) = shape.target.places.get(*place) else { continue };
            let name = shape.target.topics.get(place.topic).map_or("", String::as_str);
            topics.entry(name).or_default().push(place.partition);
        }
        let topic = |(name, partitions)| add_partitions_to_txn::AddPartitionsToTxnTopic {
            name,
            partitions,
        };
        let request = add_partitions_to_txn::Request {
            transactional_id: &id,
            producer_id: self.identity.0,
            producer_epoch: self.identity.1,
            topics: topics.into_iter().map(topic).collect(),
            ..Default::default()
        };
        self.ask(ApiKey::AddPartitionsToTxn, &request)
    }

    fn end(&mut self, committed: bool) -> Bytes {
        let id = self.id.clone();
        let (producer_id, producer_epoch) = self.identity;
        let request =
            end_txn::Request { transactional_id: &id, producer_id, producer_epoch, committed };
        self.ask(ApiKey::EndTxn, &request)
    }

    fn renew(&mut self) -> Bytes {
        let (id, shape) = (self.id.clone(), self.shape.clone());
        let timeout = shape.plan.transactions.as_ref().map_or(0, Transactions::timeout_ms);
        let request = init_producer_id::Request {
            transactional_id: Some(&id),
            transaction_timeout_ms: timeout,
            producer_id: self.identity.0,
            producer_epoch: self.identity.1,
            ..Default::default()
        };
        self.ask(ApiKey::InitProducerId, &request)
    }

    fn ask<'q>(&mut self, api: ApiKey, request: &impl Wire<'q>) -> Bytes {
        self.talk.asked = Some(api);
        self.talk.correlation = self.talk.correlation.wrapping_add(1);
        framed(api, self.shape.target.version(api), self.talk.correlation, request)
    }

    fn found(
        &mut self,
        answer: &find_coordinator::Response<'_>,
        now: u64,
        recorder: &mut Recorder,
    ) {
        let (node, code) = match answer.coordinators.first() {
            Some(found) => (found.node_id, found.error_code),
            None => (answer.node_id, answer.error_code),
        };
        match self.talk.judge(ErrorCode(code), now, recorder) {
            Judgement::Done => self.talk.coordinator = Some(node),
            Judgement::Again => {}
            Judgement::Refused(_) => self.talk.rest(now, PAUSE_FIRST, PAUSE_MAX),
        }
    }

    fn added(
        &mut self,
        answer: &add_partitions_to_txn::Response<'_>,
        now: u64,
        recorder: &mut Recorder,
    ) {
        let target = &self.shape.target;
        let codes = answer.topics.iter().flat_map(|topic| {
            let code = |p: &add_partitions_to_txn::AddPartitionsToTxnPartitionResult| {
                ((topic.name, p.partition_index), ErrorCode(p.partition_error_code))
            };
            topic.partitions.iter().map(code)
        });
        let codes: BTreeMap<(&str, i32), ErrorCode> = codes.collect();
        // It is all or nothing: one partition's code may be the reason of all others'.
        let rank = |code: ErrorCode| match code {
            ErrorCode::NONE => 0,
            ErrorCode::OPERATION_NOT_ATTEMPTED => 1,
            code if code.is_retriable() => 2,
            _ => 3,
        };
        let mut worst = ErrorCode::NONE;
        for (place, part) in self.parts.iter_mut().filter(|(_, part)| !part.is_added) {
            let Some(place) = target.places.get(*place) else { continue };
            let name = target.topics.get(place.topic).map_or("", String::as_str);
            // Those that came after the request are asked for by the next one.
            let Some(code) = codes.get(&(name, place.partition)).copied() else { continue };
            part.is_added = code.is_none();
            worst = if rank(code) > rank(worst) { code } else { worst };
        }
        if let Judgement::Refused(code) = self.talk.judge(worst, now, recorder) {
            self.doom();
            self.refused(code, recorder);
        }
    }

    fn ended(&mut self, code: ErrorCode, now: u64, recorder: &mut Recorder, ledger: &mut Ledger) {
        let Stage::Ending { is_commit } = self.stage else { return };
        let refusal = match self.talk.judge(code, now, recorder) {
            Judgement::Done => None,
            Judgement::Again => return,
            Judgement::Refused(code) => Some(code),
        };
        if refusal.is_some() {
            recorder.transactions().unresolved += u64::from(is_commit);
        } else {
            recorder.transaction_ended(is_commit, now.saturating_sub(self.ending_at));
            if is_commit && self.shape.plan.mode == Mode::Verify {
                for (stream, part) in self.streams() {
                    ledger.acknowledge(stream, part.first, part.next - part.first);
                }
            }
        }
        let needs_epoch = refusal.is_some() || self.is_doomed;
        self.clear();
        self.stage = if needs_epoch { Stage::Renewing } else { Stage::Empty };
        if let Some(code) = refusal {
            self.refused(code, recorder);
        }
    }

    /// Ends the producer if the refusal says that a newer epoch than its own is out.
    fn refused(&mut self, code: ErrorCode, recorder: &mut Recorder) {
        if matches!(code, ErrorCode::PRODUCER_FENCED | ErrorCode::INVALID_PRODUCER_EPOCH) {
            let (producer, id) = (self.producer, &self.id);
            recorder.note(format!(
                "producer {producer} was fenced: another one uses its transactional id `{id}`, or \
                 its transaction took too long; give each generator its own --transactional-id"
            ));
            self.stage = Stage::Fenced;
        }
    }

    fn renewed(&mut self, answer: &init_producer_id::Response, now: u64, recorder: &mut Recorder) {
        let code = match self.talk.judge(ErrorCode(answer.error_code), now, recorder) {
            Judgement::Done => {
                self.identity = (answer.producer_id, answer.producer_epoch);
                self.clear();
                self.stage = Stage::Empty;
                return;
            }
            Judgement::Again => return,
            Judgement::Refused(code) => code,
        };
        self.clear();
        self.refused(code, recorder);
        if self.stage != Stage::Fenced {
            let (producer, id) = (self.producer, &self.id);
            recorder.note(format!(
                "producer {producer} ended: there is no new epoch for transactional id `{id}`: \
                 {code}; look at the broker's rights and log"
            ));
            self.stage = Stage::Fenced;
        }
    }
}

impl Talk {
    fn judge(&mut self, code: ErrorCode, now: u64, recorder: &mut Recorder) -> Judgement {
        match code {
            ErrorCode::NONE => {
                (self.pause, self.at) = (Duration::ZERO, 0);
                return Judgement::Done;
            }
            // Not an error: the markers of the last transaction are being written.
            ErrorCode::CONCURRENT_TRANSACTIONS => {
                recorder.transactions().waits += 1;
                self.rest(now, WAIT_FIRST, WAIT_MAX);
                return Judgement::Again;
            }
            ErrorCode::NOT_COORDINATOR | ErrorCode::COORDINATOR_NOT_AVAILABLE => {
                self.coordinator = None;
            }
            _ => {}
        }
        recorder.error(&code.to_string());
        if !code.is_retriable() {
            return Judgement::Refused(code);
        }
        self.rest(now, PAUSE_FIRST, PAUSE_MAX);
        Judgement::Again
    }

    fn rest(&mut self, now: u64, first: Duration, most: Duration) {
        self.pause = (self.pause * 2).clamp(first, most);
        self.at = later(now, self.pause);
    }
}

/// What stands behind a frame's header.
fn body<'a, T: Wire<'a>>(reader: &Reader<'a>, api: ApiKey, version: i16) -> Result<T, Strange> {
    decode_body(reader.rest(), api, version).map_err(|_| Strange)
}
