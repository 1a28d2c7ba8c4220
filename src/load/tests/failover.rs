//! Leaders that move, connections that break and batches that are refused, in virtual time.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::load::keys::{Random, below};
use crate::wire::api::list_offsets;

/// Two brokers with one log per partition behind them.
struct World {
    broker: Broker,
    /// The lane of each partition's leader.
    leaders: Vec<usize>,
    random: Random,
    /// Answers that are under way, by lane, and when they arrive.
    answers: [Vec<(u64, Bytes)>; 2],
    /// The next move of a leader, and the arrival of the metadata that was asked for.
    moves_at: u64,
    told_at: Option<u64>,
    version: Route,
}

const PARTITIONS: usize = 3;

impl World {
    fn new(seed: u64, shape: &Shape) -> World {
        World {
            broker: Broker::new(PARTITIONS),
            leaders: vec![0; PARTITIONS],
            random: Random::new(seed),
            answers: [Vec::new(), Vec::new()],
            moves_at: 100 * MILLI,
            told_at: None,
            version: (*shape.target.route).clone(),
        }
    }

    fn one_in(&mut self, count: u64) -> bool {
        below(self.random.bits(), count) == 0
    }

    /// The metadata as it is: broker 1 is lane 0, broker 2 is lane 1; sometimes there is no leader.
    fn metadata(&mut self) -> Arc<Route> {
        let told: Vec<i32> = self.leaders.iter().map(|lane| [1, 2][*lane]).collect();
        let told: Vec<i32> = told.iter().map(|id| if self.one_in(5) { -1 } else { *id }).collect();
        self.version = self.version.next(&told, &brokers());
        Arc::new(self.version.clone())
    }

    /// Takes a request and, mostly, answers it; false when the connection breaks instead.
    fn serve(&mut self, lane: usize, frame: &[u8], now: u64) -> bool {
        for place in 0..PARTITIONS {
            let leader = self.leaders[place];
            self.broker.refusals[place] = match leader {
                leader if leader != lane => ErrorCode::NOT_LEADER_OR_FOLLOWER,
                _ if self.one_in(40) => ErrorCode::MESSAGE_TOO_LARGE,
                _ if self.one_in(40) => ErrorCode::REQUEST_TIMED_OUT,
                _ => ErrorCode::NONE,
            };
        }
        // Some connections break before a request is served, some after.
        let breaks = self.one_in(25);
        if breaks && self.one_in(2) {
            return false;
        }
        let answer = self.broker.produce(frame, ErrorCode::NONE);
        let at = now + MILLI + below(self.random.bits(), 20 * MILLI);
        let at = self.answers[lane].last().map_or(at, |(last, _)| at.max(*last));
        self.answers[lane].push((at, answer));
        !breaks
    }

    fn elapse(&mut self, mind: &mut Producer, now: u64) {
        if now >= self.moves_at && now < 3 * SECOND {
            let place = usize::try_from(below(self.random.bits(), 3)).expect("small");
            self.leaders[place] = 1 - self.leaders[place];
            self.moves_at = now + below(self.random.bits(), 200 * MILLI);
        }
        if mind.doubts() && self.told_at.is_none() {
            self.told_at = Some(now + below(self.random.bits(), 50 * MILLI));
        }
        if self.told_at.is_some_and(|at| at <= now) {
            self.told_at = None;
            mind.follow(self.metadata(), now);
            // A partition without leader is asked for again.
            mind.unreached();
        }
    }
}

/// Runs a producer against the world until all its records came to their end.
fn drive(world: &mut World, shape: &Arc<Shape>) -> (Interval, Ledger) {
    let mut mind = Producer::new(0, shape.clone(), 0, 0, 3 * SECOND);
    let (mut recorder, mut ledger) = (Recorder::new(0, 0..3 * SECOND), Ledger::new(1));
    let mut now = 0;
    while !mind.is_done(now) {
        assert!(now < 100 * SECOND, "the producer comes to its end");
        world.elapse(&mut mind, now);
        mind.fill(now, &mut recorder);
        for lane in 0..mind.lanes() {
            while let Some(frame) = taken(&mut mind, lane, now) {
                if !world.serve(lane, &frame, now) {
                    world.answers[lane].clear();
                    mind.lost(lane, now, &mut recorder);
                }
            }
        }
        let next = world.answers.iter().filter_map(|answers| answers.first().map(|(at, _)| *at));
        let wake = next.chain(mind.next_wake(now, |_| true)).chain(world.told_at).min();
        now = wake.unwrap_or(now + 10 * MILLI).clamp(now + 1, now + 10 * MILLI);
        for lane in 0..2 {
            while world.answers[lane].first().is_some_and(|(at, _)| *at <= now) {
                let (_, frame) = world.answers[lane].remove(0);
                let taken = mind.answer(lane, &frame, now, &mut recorder, &mut ledger);
                taken.expect("understood");
            }
        }
    }
    (recorder.cut(now), ledger)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever moves, breaks and is refused: what was acknowledged is there once and in order, and
    /// every record was acknowledged or given up.
    #[test]
    fn moving_leaders_lose_repeat_and_reorder_nothing(seed: u64, in_flight in 1_usize..6) {
        let shape = shape(1500.0, PARTITIONS, in_flight);
        let mut world = World::new(seed, &shape);
        let (measured, mut ledger) = drive(&mut world, &shape);
        prop_assert_eq!(measured.acknowledged.records + measured.failed, 4500);
        // Only what the broker refused for good is given up.
        let refused = measured.errors.get("MESSAGE_TOO_LARGE").copied().unwrap_or(0);
        prop_assert_eq!(measured.failed > 0, refused > 0);
        prop_assert_eq!(measured.errors.get("INVALID_PRODUCER_EPOCH"), None);
        let verdict = read_all(&shape, &world.broker, &mut ledger);
        prop_assert!(verdict.is_clean(), "{:?}", verdict);
        prop_assert!(measured.errors.contains_key("NOT_LEADER_OR_FOLLOWER"));
    }
}

#[test]
fn a_move_costs_the_time_of_the_metadata_and_no_record() {
    let shape = shape(1000.0, 1, 5);
    let mut mind = Producer::new(0, shape.clone(), 0, 0, SECOND);
    let (mut recorder, mut ledger) = (Recorder::new(0, 0..SECOND), Ledger::new(1));
    let mut broker = Broker::new(1);
    let mut now = 5 * MILLI;
    mind.fill(now, &mut recorder);
    let first = taken(&mut mind, 0, now).expect("something is due");
    broker.refusals[0] = ErrorCode::NOT_LEADER_OR_FOLLOWER;
    let refusal = broker.produce(&first, ErrorCode::NONE);
    mind.answer(0, &refusal, now, &mut recorder, &mut ledger).expect("understood");
    assert!(mind.doubts() && !mind.doubts(), "told once");
    now += 10 * MILLI;
    let route = shape.target.route.next(&[2], &brokers());
    mind.follow(Arc::new(route), now);
    mind.fill(now, &mut recorder);
    assert!(!mind.take(0, now), "nothing goes to the old leader");
    broker.refusals[0] = ErrorCode::NONE;
    for _ in 0..2 {
        let frame = taken(&mut mind, 1, now).expect("the refused batch, then the one behind it");
        let answer = broker.produce(&frame, ErrorCode::NONE);
        mind.answer(1, &answer, now, &mut recorder, &mut ledger).expect("understood");
    }
    assert!(!mind.take(1, now));
    assert_eq!(broker.ends[0], 16, "records 0 to 15 ms");
}

#[test]
fn a_consumer_goes_on_at_the_new_leader_where_it_was() {
    let shape = shape(500.0, 2, 5);
    let mut broker = Broker::new(2);
    let (_, mut ledger) =
        super::drive(&shape, &mut broker, |_, now| (now + MILLI, ErrorCode::NONE));
    let mut mind = Consumer::new(0, 0, shape.clone());
    mind.assign(&[(0, 0), (1, 0)]);
    let mut recorder = Recorder::new(0, 0..3 * SECOND);
    let _ = mind.request(0, 10);
    // The leader of both moves while the first answer is under way.
    mind.follow(Arc::new(shape.target.route.next(&[2, -1], &brokers())));
    let late = mind.answer(0, &broker.fetch(), SECOND, &mut recorder, &mut ledger);
    assert!(late.is_ok() && ledger.verdict().received == 0, "what comes too late is not taken");
    assert!(!mind.is_used(0) && mind.is_used(1) && mind.has_strays());
    assert_eq!(mind.positions(), [(0, 0), (1, 0)]);
    let _ = mind.request(1, 10);
    let taken = mind.answer(1, &broker.fetch(), SECOND, &mut recorder, &mut ledger);
    assert!(!taken.expect("understood").is_empty);
    assert_eq!(mind.positions(), [(0, broker.ends[0]), (1, 0)]);
}

#[test]
fn a_consumer_whose_records_are_gone_asks_where_the_partition_begins() {
    let shape = shape(500.0, 1, 5);
    let mut mind = Consumer::new(0, 0, shape.clone());
    mind.assign(&[(0, 7)]);
    let (mut recorder, mut ledger) = (Recorder::new(0, 0..SECOND), Ledger::new(1));
    let _ = mind.request(0, 10);
    let gone = fetch::PartitionData {
        error_code: ErrorCode::OFFSET_OUT_OF_RANGE.0,
        log_start_offset: -1,
        ..Default::default()
    };
    let topic =
        fetch::FetchableTopicResponse { topic: "t", partitions: vec![gone], ..Default::default() };
    let answer = fetch::Response { responses: vec![topic], ..Default::default() };
    let answer = framed(ApiKey::Fetch, 1, &answer);
    let outcome = mind.answer(0, &answer, 0, &mut recorder, &mut ledger).expect("understood");
    assert!(outcome.is_wrong);
    let asked = mind.request(0, 10);
    assert_eq!(&asked[4..6], &(ApiKey::ListOffsets as i16).to_be_bytes());
    let told = |code: ErrorCode, offset| {
        let told = list_offsets::ListOffsetsPartitionResponse {
            error_code: code.0,
            offset,
            ..Default::default()
        };
        let topic = list_offsets::ListOffsetsTopicResponse { name: "t", partitions: vec![told] };
        list_offsets::Response { topics: vec![topic], ..Default::default() }
    };
    let frame = |correlation: i32, answer: &list_offsets::Response<'_>| {
        let (mut out, version) = (BytesMut::new(), 5);
        put_response_header(&mut out, ApiKey::ListOffsets, version, correlation);
        answer.encode(&mut out, ApiKey::ListOffsets.context(version));
        out.freeze()
    };
    let refused = frame(2, &told(ErrorCode::NOT_LEADER_OR_FOLLOWER, -1));
    let outcome = mind.answer(0, &refused, 0, &mut recorder, &mut ledger).expect("understood");
    assert!(outcome.is_wrong && mind.doubts());
    let _ = mind.request(0, 10);
    let found = frame(3, &told(ErrorCode::NONE, 40));
    let outcome = mind.answer(0, &found, 0, &mut recorder, &mut ledger).expect("understood");
    assert!(!outcome.is_wrong);
    assert_eq!(mind.positions(), [(0, 40)]);
    assert_eq!(&mind.request(0, 10)[4..6], &(ApiKey::Fetch as i16).to_be_bytes());
}
