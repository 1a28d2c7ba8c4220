//! Transactions against a broker with a coordinator, in virtual time: codes, lost connections,
//! other producers of the same id, and a coordinator that breaks its word.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::load::keys::{Random, below};
use crate::load::member::To;
use crate::load::transaction::{Size, Transactions};
use crate::wire::api::{add_partitions_to_txn, end_txn, find_coordinator, init_producer_id};
use crate::wire::records::{BatchBuilder, Codec, NewRecord, ProducerStamp};

const PARTITIONS: usize = 3;
const NODE: i32 = 1;
const PRODUCER_ID: i64 = 7;
/// Where the attributes stand in a batch.
const ATTRIBUTES_AT: usize = 21;
const CONTROL: i16 = 0x30;

/// How often something goes wrong, and how the coordinator betrays.
#[derive(Clone, Copy, Default)]
struct Faults {
    is_troubled: bool,
    commits_what_is_aborted: bool,
    aborts_what_is_committed: bool,
    /// When another producer takes the id.
    taken_at: Option<u64>,
}

/// A partition leader and coordinator in one.
struct World {
    broker: Broker,
    faults: Faults,
    random: Random,
    epoch: i16,
    /// The partitions of the transaction that is open.
    added: BTreeSet<usize>,
    /// The last one that ended, so that its end may be asked for twice.
    last_end: Option<bool>,
    /// By partition: producer and first offset.
    aborted: Vec<Vec<fetch::AbortedTransaction>>,
    /// Where the open transaction's records begin, by partition.
    began: Vec<Option<i64>>,
    answers: Vec<(u64, Bytes)>,
    told: Option<(u64, Bytes)>,
}

impl World {
    fn new(seed: u64, faults: Faults) -> World {
        World {
            broker: Broker::new(PARTITIONS),
            faults,
            random: Random::new(seed),
            epoch: 0,
            added: BTreeSet::new(),
            last_end: None,
            aborted: vec![Vec::new(); PARTITIONS],
            began: vec![None; PARTITIONS],
            answers: Vec::new(),
            told: None,
        }
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.faults.is_troubled && below(self.random.bits(), count) == 0
    }

    /// Takes a Produce request; false when the connection breaks instead of an answer.
    fn produce(&mut self, frame: &[u8], now: u64) -> bool {
        let breaks = self.one_in(40);
        if breaks && self.one_in(2) {
            return false;
        }
        for place in 0..PARTITIONS {
            self.broker.refusals[place] = match () {
                () if self.epoch_is_old() => ErrorCode::INVALID_PRODUCER_EPOCH,
                () if self.one_in(60) => ErrorCode::MESSAGE_TOO_LARGE,
                () if self.one_in(30) => ErrorCode::NOT_LEADER_OR_FOLLOWER,
                () => ErrorCode::NONE,
            };
        }
        let ends = self.broker.ends.clone();
        let answer = self.broker.produce(frame, ErrorCode::NONE);
        for (place, end) in ends.iter().enumerate() {
            if self.broker.ends[place] > *end {
                assert!(self.added.contains(&place), "partition {place} is not added");
                self.began[place].get_or_insert(*end);
            }
        }
        let at = now + MILLI;
        self.answers.push((self.answers.last().map_or(at, |(last, _)| at.max(*last)), answer));
        !breaks
    }

    /// Another producer has the id: whoever had it before is fenced.
    fn epoch_is_old(&self) -> bool {
        self.faults.taken_at == Some(0)
    }

    /// Takes a request to the coordinator; false when the connection breaks instead.
    fn tell(&mut self, frame: &Bytes, now: u64) -> bool {
        let breaks = self.one_in(20);
        if breaks && self.one_in(2) {
            return false;
        }
        let mut reader = Reader::new(&frame[4..]);
        let start = RequestStart::decode(&mut reader).expect("a start");
        let api = ApiKey::from_i16(start.key).expect("known");
        RequestHeader::decode(start, api, &mut reader).expect("a header");
        let (version, body) = (start.version, reader.rest());
        let code = match () {
            () if self.one_in(3) => ErrorCode::CONCURRENT_TRANSACTIONS,
            () if self.one_in(20) => ErrorCode::COORDINATOR_LOAD_IN_PROGRESS,
            () if self.one_in(20) => ErrorCode::NOT_COORDINATOR,
            () if self.one_in(40) => ErrorCode::INVALID_TXN_STATE,
            () => ErrorCode::NONE,
        };
        let mut out = BytesMut::new();
        put_response_header(&mut out, api, version, start.correlation);
        let context = api.context(version);
        match api {
            ApiKey::FindCoordinator => {
                let answer = find_coordinator::Response { node_id: NODE, ..Default::default() };
                answer.encode(&mut out, context);
            }
            ApiKey::AddPartitionsToTxn => {
                let asked = decode_body(body, api, version).expect("a request");
                self.add(&asked, code).encode(&mut out, context);
            }
            ApiKey::EndTxn => {
                let asked = decode_body(body, api, version).expect("a request");
                let code = if code.is_error() { code } else { self.end(&asked) };
                let answer = end_txn::Response { error_code: code.0, ..Default::default() };
                answer.encode(&mut out, context);
            }
            _ => {
                let asked = decode_body(body, api, version).expect("a request");
                self.renew(&asked, code).encode(&mut out, context);
            }
        }
        self.told = Some((now + MILLI, out.freeze()));
        !breaks
    }

    fn add<'a>(
        &mut self,
        asked: &add_partitions_to_txn::Request<'a>,
        code: ErrorCode,
    ) -> add_partitions_to_txn::Response<'a> {
        let is_old = asked.producer_epoch != self.epoch;
        let code = if is_old { ErrorCode::PRODUCER_FENCED } else { code };
        let topics = asked.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|index| {
                if code.is_none() {
                    self.added.insert(usize::try_from(*index).expect("a partition"));
                    self.last_end = None;
                }
                add_partitions_to_txn::AddPartitionsToTxnPartitionResult {
                    partition_index: *index,
                    partition_error_code: code.0,
                }
            });
            let partitions = partitions.collect();
            add_partitions_to_txn::AddPartitionsToTxnTopicResult { name: topic.name, partitions }
        });
        add_partitions_to_txn::Response { topics: topics.collect(), ..Default::default() }
    }

    fn end(&mut self, asked: &end_txn::Request<'_>) -> ErrorCode {
        if asked.producer_epoch != self.epoch {
            return ErrorCode::PRODUCER_FENCED;
        }
        match self.last_end {
            Some(end) if end == asked.committed => return ErrorCode::NONE,
            Some(_) => return ErrorCode::INVALID_TXN_STATE,
            None => {}
        }
        self.last_end = Some(asked.committed);
        let Faults { commits_what_is_aborted, aborts_what_is_committed, .. } = self.faults;
        self.mark(match asked.committed {
            true => !aborts_what_is_committed,
            false => commits_what_is_aborted,
        });
        ErrorCode::NONE
    }

    /// Writes the markers of the open transaction.
    fn mark(&mut self, is_commit: bool) {
        for place in std::mem::take(&mut self.added) {
            let key = [0, 0, 0, u8::from(is_commit)];
            let stamped = ProducerStamp { id: PRODUCER_ID, epoch: self.epoch, sequence: -1 };
            let mut builder = BatchBuilder::new().producer(stamped);
            builder.push(&NewRecord { key: Some(&key), ..NewRecord::default() });
            let mut marker = builder.build(Codec::None).expect("small").to_vec();
            marker[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&CONTROL.to_be_bytes());
            let sum = crc(&marker);
            marker[17..21].copy_from_slice(&sum.to_be_bytes());
            stamp(&mut marker, self.broker.ends[place], 0);
            self.broker.ends[place] += 1;
            self.broker.logs[place].push(marker.into());
            if let Some(first_offset) = self.began[place].take()
                && !is_commit
            {
                let producer_id = PRODUCER_ID;
                let aborted = fetch::AbortedTransaction { producer_id, first_offset };
                self.aborted[place].push(aborted);
            }
        }
    }

    fn renew(
        &mut self,
        asked: &init_producer_id::Request<'_>,
        code: ErrorCode,
    ) -> init_producer_id::Response {
        let is_taken = self.faults.taken_at == Some(0) || asked.producer_epoch != self.epoch;
        // An answer that was lost is given again.
        let is_repeated = asked.producer_epoch == self.epoch - 1 && self.last_end == Some(false);
        let code = match code {
            _ if is_taken && !is_repeated => ErrorCode::PRODUCER_FENCED,
            ErrorCode::INVALID_TXN_STATE => ErrorCode::NONE,
            code => code,
        };
        if code.is_none() && !is_repeated {
            self.mark(false);
            self.epoch += 1;
            self.last_end = Some(false);
        }
        init_producer_id::Response {
            error_code: code.0,
            producer_id: PRODUCER_ID,
            producer_epoch: self.epoch,
            ..Default::default()
        }
    }

    /// Everything as a read_committed consumer gets it in its first answer.
    fn fetch(&self) -> Bytes {
        let logs: Vec<Vec<u8>> = self.broker.logs.iter().map(|log| log.concat()).collect();
        let part = |(at, log): (usize, &Vec<u8>)| {
            // Nothing of a transaction that is still open is given out.
            let stable = self.began[at].unwrap_or(self.broker.ends[at]);
            let whole = crate::wire::records::batches(log);
            let before = whole.take_while(|(header, _)| header.base_offset < stable);
            let bytes = before.map(|(_, batch)| batch.len()).sum::<usize>();
            (at, stable, bytes)
        };
        let parts: Vec<_> = logs.iter().enumerate().map(part).collect();
        let data = parts.iter().map(|(at, stable, bytes)| fetch::PartitionData {
            partition_index: i32::try_from(*at).expect("few"),
            high_watermark: self.broker.ends[*at],
            last_stable_offset: *stable,
            aborted_transactions: Some(self.aborted[*at].clone()),
            records: Some(&logs[*at][..*bytes]),
            ..Default::default()
        });
        let partitions = data.collect();
        let topic = fetch::FetchableTopicResponse { topic: "t", partitions, ..Default::default() };
        let answer = fetch::Response { responses: vec![topic], ..Default::default() };
        framed(ApiKey::Fetch, 1, &answer)
    }
}

fn transactional(size: Size, abort_share: f64) -> Arc<Shape> {
    let mut shape = owned_shape(2000.0, PARTITIONS, 5);
    shape.plan.isolation = Isolation::ReadCommitted;
    shape.plan.transactions = Some(Transactions { size, abort_share, id: "id".to_string() });
    shape.target.coordinators = vec![NODE];
    shape.target.versions.extend([
        (ApiKey::FindCoordinator, 3),
        (ApiKey::InitProducerId, 4),
        (ApiKey::AddPartitionsToTxn, 3),
        (ApiKey::EndTxn, 3),
    ]);
    Arc::new(shape)
}

/// Runs the producer for 3 s of virtual time, and reads everything afterwards.
fn run(shape: &Arc<Shape>, seed: u64, faults: Faults) -> (Interval, Verdict) {
    let mut world = World::new(seed, faults);
    let mut mind = Producer::new(0, shape.clone(), 0, 0, 3 * SECOND);
    let (mut recorder, mut ledger) = (Recorder::new(0, 0..3 * SECOND), Ledger::new(1));
    let mut now = 0;
    while !mind.is_done(now) {
        assert!(now < 100 * SECOND, "the producer comes to its end");
        if world.faults.taken_at.is_some_and(|at| at > 0 && now >= at) {
            world.mark(false);
            world.faults.taken_at = Some(0);
            world.epoch += 1;
        }
        mind.fill(now, &mut recorder);
        while let Some(frame) = taken(&mut mind, 0, now) {
            if !world.produce(&frame, now) {
                world.answers.clear();
                mind.lost(0, now, &mut recorder);
                break;
            }
        }
        if let Some((to, frame)) = mind.coordinator_request(now, &mut ledger) {
            assert!(matches!(to, To::Anyone | To::Node(NODE)));
            if !world.tell(&frame, now) {
                world.told = None;
                mind.coordinator_lost(now);
            }
        }
        let answers = world.answers.first().map(|(at, _)| *at);
        let told = world.told.as_ref().map(|(at, _)| *at);
        let wakes = [answers, told, mind.next_wake(now, |_| true), mind.coordinator_wake(now)];
        let wake = wakes.into_iter().flatten().min().unwrap_or(now + 50 * MILLI);
        now = wake.clamp(now + 1, now + 50 * MILLI);
        while world.answers.first().is_some_and(|(at, _)| *at <= now) {
            let (_, frame) = world.answers.remove(0);
            mind.answer(0, &frame, now, &mut recorder, &mut ledger).expect("understood");
        }
        if let Some((_, frame)) = world.told.take_if(|(at, _)| *at <= now) {
            let taken = mind.coordinator_answer(&frame, now, &mut recorder, &mut ledger);
            taken.expect("understood");
        }
        mind.expire(now, &mut recorder);
    }
    let mut reader = Consumer::new(0, 0, shape.clone());
    reader.assign(&[(0, 0), (1, 0), (2, 0)]);
    assert!(!reader.request(0, 10).is_empty());
    let answer = reader.answer(0, &world.fetch(), 9 * SECOND, &mut recorder, &mut ledger);
    assert!(!answer.expect("understood").is_wrong);
    (recorder.cut(now), ledger.verdict())
}

#[test]
fn what_is_committed_is_read_and_what_is_aborted_is_not() {
    let shape = transactional(Size::Records(100), 0.4);
    let (measured, verdict) = run(&shape, 1, Faults::default());
    let tally = &measured.transactions;
    assert_eq!(tally.committed + tally.aborted, 60, "of a hundred records each");
    assert!((10..40).contains(&tally.aborted), "{tally:?}");
    assert_eq!(verdict.acknowledged, 100 * tally.committed);
    assert_eq!((verdict.received, verdict.is_clean()), (verdict.acknowledged, true), "{verdict:?}");
    assert_eq!((measured.failed, &measured.errors), (0, &BTreeMap::new()));
}

#[test]
fn a_transaction_of_a_time_ends_with_it_and_the_last_one_with_the_run() {
    let shape = transactional(Size::Time(Duration::from_millis(400)), 0.0);
    let (measured, verdict) = run(&shape, 1, Faults::default());
    assert_eq!((measured.transactions.committed, measured.transactions.aborted), (8, 0));
    assert_eq!((verdict.received, verdict.is_clean()), (6000, true), "{verdict:?}");
}

#[test]
fn a_coordinator_that_breaks_its_word_is_found_out() {
    let shape = transactional(Size::Records(100), 0.4);
    let faults = Faults { commits_what_is_aborted: true, ..Faults::default() };
    let (measured, verdict) = run(&shape, 1, faults);
    assert_eq!(verdict.aborted, 100 * measured.transactions.aborted);
    assert_eq!((verdict.lost, verdict.is_clean()), (0, false), "{verdict:?}");
    let faults = Faults { aborts_what_is_committed: true, ..Faults::default() };
    let (measured, verdict) = run(&shape, 1, faults);
    assert_eq!(verdict.lost, 100 * measured.transactions.committed);
    assert_eq!((verdict.aborted, verdict.received, verdict.is_clean()), (0, 0, false));
}

#[test]
fn a_fenced_producer_says_so_in_a_sentence_and_ends() {
    let shape = transactional(Size::Records(100), 0.0);
    let faults = Faults { taken_at: Some(SECOND), ..Faults::default() };
    let (measured, verdict) = run(&shape, 1, faults);
    let notes: Vec<&String> = measured.notes.iter().collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with("producer 0 was fenced: "), "{notes:?}");
    assert!((19..=20).contains(&measured.transactions.committed), "{measured:?}");
    assert!(verdict.is_clean(), "{verdict:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn codes_and_broken_connections_lose_nothing_and_show_nothing_aborted(
        seed in any::<u64>(),
        records in 50_u64..400,
        abort_share in 0.0..1.0_f64,
    ) {
        let shape = transactional(Size::Records(records), abort_share);
        let faults = Faults { is_troubled: true, ..Faults::default() };
        let (measured, verdict) = run(&shape, seed, faults);
        prop_assert!(verdict.is_clean(), "{verdict:?}");
        prop_assert!(measured.notes.is_empty(), "{:?}", measured.notes);
        let tally = &measured.transactions;
        prop_assert!(tally.committed + tally.aborted > 0, "{tally:?}");
    }
}
