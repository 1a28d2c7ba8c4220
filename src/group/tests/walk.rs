//! Random walks: clients that do what they like, a disk that takes its time and sometimes fails,
//! a clock that jumps. After each step every invariant is checked, and against what was answered:
//!
//!   W1  Every ticket is answered at most once, and after a while without writes open, exactly
//!       once (G1).
//!   W2  Generations that a group answers never go back while its records say that it lives (G2).
//!   W3  Of a generation one member is told all members, and that it leads.
//!   W4  What was answered as committed is in the log, and what is seen is what the log has, before
//!       and after a restart (G7, G9).
//!   W5  An assignment that was told is the one that the log has for its generation (G7).
//!   W6  The walks together come through every kind of answer that the invariants are about.

use super::super::records::{GroupValue, Key, OffsetValue, decode_key, decode_value};
use super::*;

const SEEDS: u64 = 2_000;
const STEPS: usize = 120;

/// A small generator of its own, so that a seed means the same on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("below a length")
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Walk {
    dice: Dice,
    world: World,
    /// Ids that members were told, and their instance ids.
    known: Vec<(String, Option<String>)>,
    generation: i32,
    /// The leader of each generation that was told its members.
    leaders: BTreeMap<i32, String>,
    asked: BTreeMap<Ticket, Option<(String, i64)>>,
    offset: i64,
    seen: Seen,
}

/// What was answered, for W6.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    assignments: u32,
    commits: u32,
    skipped_assignments: u32,
    fenced: u32,
    deletions: u32,
    restarts_in_generation: u32,
}

impl Seen {
    fn counts(self) -> [u32; 6] {
        [
            self.assignments,
            self.commits,
            self.skipped_assignments,
            self.fenced,
            self.deletions,
            self.restarts_in_generation,
        ]
    }

    fn add(&mut self, other: Seen) {
        self.assignments += other.assignments;
        self.commits += other.commits;
        self.skipped_assignments += other.skipped_assignments;
        self.fenced += other.fenced;
        self.deletions += other.deletions;
        self.restarts_in_generation += other.restarts_in_generation;
    }
}

impl Walk {
    fn new(seed: u64) -> Walk {
        let mut dice = Dice(seed);
        let mut world = if dice.chance(50) { World::hasty() } else { World::new() };
        world.is_prompt = false;
        Walk {
            dice,
            world,
            known: vec![("nobody".to_owned(), None)],
            generation: 0,
            leaders: BTreeMap::new(),
            asked: BTreeMap::new(),
            offset: 0,
            seen: Seen::default(),
        }
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..30 => self.join(),
            30..50 => self.sync(),
            50..58 => self.heartbeat(),
            58..63 => self.leave(),
            63..73 => self.commit(),
            73..74 => self.ask(Request::DeleteGroup, None),
            74..76 => {
                let partitions = vec![("t".to_owned(), vec![0, 1])];
                self.ask(Request::DeleteOffsets(partitions), None);
            }
            76..92 => self.settle_one(),
            92..99 => {
                let millis = [1, 500, 3_000, 9_000, 61_000, 400_000][self.dice.index(6)];
                self.world.advance(millis);
            }
            _ => self.restart(),
        }
        self.collect();
    }

    fn ask(&mut self, request: Request, commit: Option<(String, i64)>) {
        let ticket = Ticket(self.world.last_ticket + 1);
        self.asked.insert(ticket, commit);
        assert_eq!(self.world.ask(request), ticket);
    }

    fn somebody(&mut self) -> (String, Option<String>) {
        let index = self.dice.index(self.known.len());
        self.known[index].clone()
    }

    fn some_generation(&mut self) -> i32 {
        if self.dice.chance(85) { self.generation } else { self.generation - 1 }
    }

    fn join(&mut self) {
        let names = ["range", "sticky"];
        let first = self.dice.index(2);
        let protocols =
            [names[first], names[1 - first]].map(|name| (name.to_owned(), subscription("t")));
        let (member_id, instance_id) = if self.dice.chance(55) {
            self.somebody()
        } else {
            let instance = ["x", "y"][self.dice.index(2)];
            (String::new(), self.dice.chance(60).then(|| instance.to_owned()))
        };
        let random = u128::from(self.dice.next());
        let require_member_id = self.dice.chance(30);
        let may_skip_assignment = self.dice.chance(50);
        let protocols = protocols[..1 + self.dice.index(2)].to_vec();
        let join = Join { member_id, instance_id, random, protocols, ..join("c") };
        self.ask(Request::Join(Join { require_member_id, may_skip_assignment, ..join }), None);
    }

    fn sync(&mut self) {
        let generation = self.some_generation();
        let leader = self.leaders.get(&generation).filter(|_| self.dice.chance(60)).cloned();
        let (member_id, instance_id) = match leader {
            Some(leader) => (leader, None),
            None => self.somebody(),
        };
        let share = |(id, _): &(String, Option<String>)| (id.clone(), Bytes::from(id.clone()));
        let assignments = self.known.iter().map(share).collect();
        let (protocol_type, protocol_name) = (None, None);
        let sync =
            Sync { generation, member_id, instance_id, protocol_type, protocol_name, assignments };
        self.ask(Request::Sync(sync), None);
    }

    fn heartbeat(&mut self) {
        let generation = self.some_generation();
        let (member_id, instance_id) = self.somebody();
        self.ask(Request::Heartbeat(Heartbeat { generation, member_id, instance_id }), None);
    }

    fn leave(&mut self) {
        let (member_id, instance_id) = self.somebody();
        self.ask(Request::Leave(vec![Leaver { member_id, instance_id }]), None);
    }

    fn commit(&mut self) {
        self.offset += 1;
        let offset = self.offset;
        let (generation, (member_id, instance_id)) = if self.dice.chance(50) {
            (-1, (String::new(), None))
        } else {
            (self.some_generation(), self.somebody())
        };
        let topic = ["t", "u"][self.dice.index(2)].to_owned();
        let metadata = String::new();
        let partition = CommitPartition { partition: 0, offset, leader_epoch: -1, metadata };
        let offsets = vec![(topic.clone(), vec![partition])];
        let commit = Commit { generation, member_id, instance_id, retention_ms: -1, offsets };
        self.ask(Request::Commit(commit), Some((topic, offset)));
    }

    /// The oldest write is durable, or lost.
    fn settle_one(&mut self) {
        if self.world.open.is_empty() {
            return;
        }
        let (write, records) = self.world.open.remove(0);
        let error =
            if self.dice.chance(8) { ErrorCode::REQUEST_TIMED_OUT } else { ErrorCode::NONE };
        if error.is_none() {
            let buries = records.iter().any(|r| r.value.is_none() && is_group(r));
            if buries {
                self.generation = 0;
                self.leaders.clear();
            }
            self.world.log.extend(records);
        }
        self.world.handle(Input::Written { write, error });
    }

    fn restart(&mut self) {
        // What waits is answered by a closed connection.
        self.collect();
        self.asked.clear();
        self.world.answers.clear();
        self.world.restart();
        let logged = last_value(&self.world.log, |value| value.generation);
        self.generation = logged.unwrap_or(0);
        self.leaders.clear();
        self.seen.restarts_in_generation += u32::from(self.world.state() == "Stable");
        self.check_offsets();
    }

    fn collect(&mut self) {
        for (ticket, answer) in std::mem::take(&mut self.world.answers) {
            let commit = self.asked.remove(&ticket).expect("W1: only what was asked is answered");
            match answer {
                Answer::Join(answer) => self.told_join(answer),
                Answer::Sync(answer) if answer.error.is_none() => self.told_sync(&answer),
                Answer::DeleteGroup(ErrorCode::NONE) => self.seen.deletions += 1,
                Answer::Commit(topics) if topics[0].1[0].1.is_none() => {
                    let (topic, offset) = commit.expect("a commit");
                    self.seen.commits += 1;
                    let is_logged =
                        logged_offsets(&self.world.log, &topic).any(|o| o == Some(offset));
                    assert!(is_logged, "W4: {offset} of {topic} was promised");
                }
                _ => {}
            }
        }
        self.check_offsets();
    }

    fn told_join(&mut self, answer: JoinAnswer) {
        self.seen.fenced += u32::from(answer.error == ErrorCode::FENCED_INSTANCE_ID);
        self.seen.skipped_assignments += u32::from(answer.skip_assignment);
        let is_id = answer.error.is_none() || answer.error == ErrorCode::MEMBER_ID_REQUIRED;
        if is_id && !self.known.iter().any(|(id, _)| *id == answer.member_id) {
            let own = &answer.member_id;
            let instance = own.split('-').next().filter(|name| *name != "c").map(str::to_owned);
            self.known.push((own.clone(), instance));
        }
        if answer.error.is_error() {
            return;
        }
        assert!(answer.generation >= self.generation, "W2: {answer:?}");
        self.generation = answer.generation;
        if !answer.members.is_empty() {
            assert_eq!(answer.leader, answer.member_id, "W3");
            let ids = answer.members.iter().map(|member| &member.member_id);
            assert!(ids.clone().any(|id| *id == answer.leader), "W3");
            let previous = self.leaders.insert(answer.generation, answer.leader.clone());
            let is_same = previous.is_none_or(|previous| {
                previous == answer.leader || previous.starts_with(['x', 'y'])
            });
            assert!(is_same, "W3: two leaders of {}", answer.generation);
        }
    }

    fn told_sync(&mut self, answer: &SyncAnswer) {
        self.seen.assignments += 1;
        let assignments = last_value(&self.world.log, |value| {
            let of = value.members.iter().map(|member| member.assignment.to_vec());
            of.collect::<Vec<_>>()
        });
        let assignments = assignments.expect("W5: an assignment is told before its record");
        assert!(assignments.contains(&answer.assignment.to_vec()), "W5");
    }

    fn check_offsets(&self) {
        for topic in ["t", "u"] {
            let seen = self.world.groups.offset("g", topic, 0).map(|committed| committed.offset);
            let logged = logged_offsets(&self.world.log, topic).last().flatten();
            assert_eq!(seen, logged, "W4: {topic}");
        }
    }

    /// Without new requests and with a disk that works, everybody is answered.
    fn rest(&mut self) {
        for _ in 0..20 {
            self.world.settle(ErrorCode::NONE);
            self.world.advance(100_000);
        }
        self.world.answers.keys().for_each(|ticket| {
            self.asked.remove(ticket).expect("W1: only what was asked is answered");
        });
        assert!(self.asked.is_empty(), "W1: {:?} wait forever", self.asked.keys());
    }
}

fn is_group(record: &Record) -> bool {
    matches!(decode_key(&record.key), Ok(Key::Group(_)))
}

fn last_value<T>(log: &[Record], read: impl Fn(&GroupValue<'_>) -> T) -> Option<T> {
    let record = log.iter().rev().find(|record| is_group(record))?;
    let value = record.value.as_ref()?;
    Some(read(&decode_value(value).expect("our own record")))
}

/// What was written of partition 0, in order; `None` is a tombstone.
fn logged_offsets<'a>(log: &'a [Record], of: &'a str) -> impl Iterator<Item = Option<i64>> + 'a {
    log.iter().filter_map(move |record| match decode_key(&record.key) {
        Ok(Key::Offset(key)) if key.topic == of && key.partition == 0 => {
            let value = record.value.as_deref().map(decode_value::<OffsetValue<'_>>);
            Some(value.map(|value| value.expect("our own record").offset))
        }
        _ => None,
    })
}

#[test]
fn whatever_happens_the_invariants_hold() {
    let mut total = Seen::default();
    for seed in 0..SEEDS {
        let walk = std::panic::catch_unwind(|| {
            let mut walk = Walk::new(seed);
            for _ in 0..STEPS {
                walk.step();
            }
            walk.rest();
            walk.seen
        });
        match walk {
            Ok(seen) => total.add(seen),
            Err(panic) => {
                eprintln!("the walk of seed {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    let least = total.counts().into_iter().min();
    assert!(least >= Some(20), "W6: {total:?}");
}
