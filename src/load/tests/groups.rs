//! Members of one group against a coordinator in memory: they come and go, connections break, and
//! the coordinator moves, in virtual time.

use proptest::prelude::*;

use super::*;
use crate::load::assign::assigned;
use crate::load::keys::{Random, below};
use crate::load::member::{Member, To};
use crate::wire::api::{
    find_coordinator, heartbeat, join_group, leave_group, offset_commit, offset_fetch, sync_group,
};

const PARTITIONS: usize = 5;
const NODE: i32 = 1;

/// The group as its coordinator has it.
#[derive(Default)]
struct Coordinator {
    generation: i32,
    last_id: u32,
    /// Members, whether they have joined the next generation, and what was assigned to them.
    members: BTreeMap<String, (bool, Vec<u8>)>,
    is_rebalancing: bool,
    is_divided: bool,
    committed: BTreeMap<i32, i64>,
}

/// A request that was received; JoinGroup and SyncGroup may be answered later.
struct Asked {
    api: ApiKey,
    correlation: i32,
    body: Vec<u8>,
}

impl Asked {
    fn read(frame: &Bytes) -> Asked {
        let mut reader = Reader::new(&frame[4..]);
        let start = RequestStart::decode(&mut reader).expect("a start");
        let api = ApiKey::from_i16(start.key).expect("known");
        RequestHeader::decode(start, api, &mut reader).expect("a header");
        Asked { api, correlation: start.correlation, body: reader.rest().to_vec() }
    }

    fn body<'a, T: Wire<'a>>(&'a self) -> T {
        decode_body(&self.body, self.api, versions()[&self.api]).expect("a request")
    }

    fn frame<'a>(&self, answer: &impl Wire<'a>) -> Bytes {
        let (mut out, version) = (BytesMut::new(), versions()[&self.api]);
        put_response_header(&mut out, self.api, version, self.correlation);
        answer.encode(&mut out, self.api.context(version));
        out.freeze()
    }
}

fn versions() -> BTreeMap<ApiKey, i16> {
    [
        (ApiKey::FindCoordinator, 4),
        (ApiKey::JoinGroup, 9),
        (ApiKey::SyncGroup, 5),
        (ApiKey::Heartbeat, 4),
        (ApiKey::LeaveGroup, 5),
        (ApiKey::OffsetCommit, 9),
        (ApiKey::OffsetFetch, 9),
    ]
    .into()
}

impl Coordinator {
    fn rebalance(&mut self) {
        if !self.is_rebalancing {
            self.is_rebalancing = true;
            self.members.values_mut().for_each(|(has_joined, _)| *has_joined = false);
        }
    }

    /// The answer, unless the request waits for other members.
    fn serve(&mut self, asked: &Asked, is_first: bool) -> Option<Bytes> {
        match asked.api {
            ApiKey::FindCoordinator => {
                let found = find_coordinator::Coordinator { node_id: NODE, ..Default::default() };
                let coordinators = vec![found];
                Some(
                    asked.frame(&find_coordinator::Response { coordinators, ..Default::default() }),
                )
            }
            ApiKey::JoinGroup => self.join(asked, is_first),
            ApiKey::SyncGroup => self.sync(asked),
            ApiKey::Heartbeat => {
                let request: heartbeat::Request<'_> = asked.body();
                let error_code = self.judge(request.member_id, request.generation_id).0;
                Some(asked.frame(&heartbeat::Response { error_code, ..Default::default() }))
            }
            ApiKey::LeaveGroup => {
                let request: leave_group::Request<'_> = asked.body();
                self.members.remove(request.members[0].member_id);
                self.rebalance();
                Some(asked.frame(&leave_group::Response::default()))
            }
            ApiKey::OffsetCommit => Some(self.commit(asked)),
            _ => Some(self.offsets(asked)),
        }
    }

    fn judge(&self, member: &str, generation: i32) -> ErrorCode {
        match self.members.get(member) {
            None => ErrorCode::UNKNOWN_MEMBER_ID,
            Some(_) if generation != self.generation => ErrorCode::ILLEGAL_GENERATION,
            Some(_) if self.is_rebalancing => ErrorCode::REBALANCE_IN_PROGRESS,
            Some(_) => ErrorCode::NONE,
        }
    }

    fn join(&mut self, asked: &Asked, is_first: bool) -> Option<Bytes> {
        let request: join_group::Request<'_> = asked.body();
        if request.member_id.is_empty() {
            self.last_id += 1;
            let id = format!("m{}", self.last_id);
            self.rebalance();
            self.members.insert(id.clone(), (false, Vec::new()));
            let error_code = ErrorCode::MEMBER_ID_REQUIRED.0;
            let answer = join_group::Response { error_code, member_id: &id, ..Default::default() };
            return Some(asked.frame(&answer));
        }
        if !self.members.contains_key(request.member_id) {
            let error_code = ErrorCode::UNKNOWN_MEMBER_ID.0;
            return Some(asked.frame(&join_group::Response { error_code, ..Default::default() }));
        }
        if is_first {
            self.rebalance();
            self.members.get_mut(request.member_id)?.0 = true;
        }
        // Otherwise the members had all joined, and the next rebalance has begun since.
        if self.is_rebalancing && self.members.get(request.member_id)?.0 {
            if !self.members.values().all(|(has_joined, _)| *has_joined) {
                return None;
            }
            (self.is_rebalancing, self.is_divided) = (false, false);
            self.generation += 1;
        }
        let metadata = request.protocols[0].metadata;
        let leader = self.members.keys().next()?.clone();
        let member = |id| join_group::JoinGroupResponseMember {
            member_id: id,
            metadata,
            ..Default::default()
        };
        let all = self.members.keys().map(|id| member(id.as_str()));
        let answer = join_group::Response {
            generation_id: self.generation,
            leader: &leader,
            member_id: request.member_id,
            members: if leader == request.member_id { all.collect() } else { Vec::new() },
            ..Default::default()
        };
        Some(asked.frame(&answer))
    }

    fn sync(&mut self, asked: &Asked) -> Option<Bytes> {
        let request: sync_group::Request<'_> = asked.body();
        let code = self.judge(request.member_id, request.generation_id);
        if code.is_none() && !request.assignments.is_empty() {
            self.is_divided = true;
            for said in &request.assignments {
                self.members.get_mut(said.member_id)?.1 = said.assignment.to_vec();
            }
        }
        if code.is_none() && !self.is_divided {
            return None;
        }
        let assignment = self.members.get(request.member_id).map_or(&[][..], |(_, said)| said);
        let error_code = code.0;
        Some(asked.frame(&sync_group::Response { error_code, assignment, ..Default::default() }))
    }

    fn commit(&mut self, asked: &Asked) -> Bytes {
        let request: offset_commit::Request<'_> = asked.body();
        let mut code = self.judge(request.member_id, request.generation_id_or_member_epoch);
        if code == ErrorCode::REBALANCE_IN_PROGRESS {
            code = ErrorCode::NONE;
        }
        let mut partitions = Vec::new();
        for p in &request.topics[0].partitions {
            if code.is_none() {
                let old = self.committed.insert(p.partition_index, p.committed_offset);
                assert!(old.is_none_or(|old| old <= p.committed_offset), "no step back");
            }
            partitions.push(offset_commit::OffsetCommitResponsePartition {
                partition_index: p.partition_index,
                error_code: code.0,
            });
        }
        let topic = offset_commit::OffsetCommitResponseTopic {
            name: "t",
            partitions,
            ..Default::default()
        };
        asked.frame(&offset_commit::Response { topics: vec![topic], ..Default::default() })
    }

    fn offsets(&self, asked: &Asked) -> Bytes {
        let request: offset_fetch::Request<'_> = asked.body();
        let wanted = request.groups[0].topics.iter().flatten().flat_map(|t| &t.partition_indexes);
        let partition = |index: &i32| offset_fetch::OffsetFetchResponsePartitions {
            partition_index: *index,
            committed_offset: self.committed.get(index).copied().unwrap_or(-1),
            ..Default::default()
        };
        let partitions = wanted.map(partition).collect();
        let topic =
            offset_fetch::OffsetFetchResponseTopics { name: "t", partitions, ..Default::default() };
        let topics = vec![topic];
        let group = offset_fetch::OffsetFetchResponseGroup { topics, ..Default::default() };
        asked.frame(&offset_fetch::Response { groups: vec![group], ..Default::default() })
    }
}

/// A member, its consumer, and its request at the coordinator.
struct Client {
    member: Member,
    consumer: Consumer,
    asked: Option<(Asked, bool)>,
}

impl Client {
    fn new(shape: &Arc<Shape>) -> Client {
        Client {
            member: Member::new("g".to_string(), shape.clone()),
            consumer: Consumer::new(0, 0, shape.clone()),
            asked: None,
        }
    }

    /// Sends what is due and takes the answer, if there is one already.
    fn step(&mut self, group: &mut Coordinator, now: u64, recorder: &mut Recorder) {
        if self.asked.is_none()
            && let Some((to, frame)) = self.member.request(now, &self.consumer)
        {
            let asked = Asked::read(&frame);
            assert_eq!(to == To::Anyone, asked.api == ApiKey::FindCoordinator);
            self.asked = Some((asked, true));
        }
        let Some((asked, is_first)) = self.asked.take() else { return };
        match group.serve(&asked, is_first) {
            None => self.asked = Some((asked, false)),
            Some(answer) => {
                let taken = self.member.answer(&answer, now, &mut self.consumer, recorder);
                taken.expect("understood");
            }
        }
    }

    /// Reads ahead: positions move on.
    fn read(&mut self) {
        let moved: Vec<(usize, i64)> =
            self.consumer.positions().iter().map(|(place, at)| (*place, at + 1)).collect();
        if self.member.is_settled() {
            self.consumer.assign(&moved);
        }
    }
}

fn grouped() -> Arc<Shape> {
    let mut shape = shape(1.0, PARTITIONS, 1);
    let changed = Arc::get_mut(&mut shape).expect("the only one");
    changed.target.versions = versions();
    changed.plan.is_grouped = true;
    changed.plan.commit_interval = Duration::from_millis(700);
    shape
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// No partition ever has two readers, reading goes on where it was committed, and in the end
    /// all partitions are read by those who are left.
    #[test]
    fn members_come_and_go_and_no_partition_has_two_readers(seed: u64) {
        let (shape, mut random) = (grouped(), Random::new(seed));
        let (mut group, mut recorder) = (Coordinator::default(), Recorder::new(0, 0..SECOND));
        let mut clients = vec![Client::new(&shape)];
        let mut now = 0;
        for step in 0..3000 {
            now += below(random.bits(), 60 * MILLI);
            let at = usize::try_from(below(random.bits(), clients.len() as u64)).expect("small");
            let is_small = clients.len() < 4;
            let client = &mut clients[at];
            match below(random.bits(), 60) {
                0 if step < 2000 => client.member.leave(&mut client.consumer),
                1 if step < 2000 => {
                    client.asked = None;
                    client.member.lost(now);
                }
                2 | 3 if step < 2000 && is_small => clients.push(Client::new(&shape)),
                4..10 => client.read(),
                _ => client.step(&mut group, now, &mut recorder),
            }
            clients.retain(|client| !client.member.is_gone());
            if clients.is_empty() {
                clients.push(Client::new(&shape));
            }
            let held = clients.iter().flat_map(|client| client.consumer.positions());
            let mut held: Vec<usize> = held.map(|(place, _)| place).collect();
            let count = held.len();
            held.sort_unstable();
            held.dedup();
            prop_assert_eq!(held.len(), count, "two readers of one partition at step {}", step);
        }
        let all: usize = clients.iter().map(|client| client.consumer.positions().len()).sum();
        prop_assert!(clients.iter().all(|client| client.member.is_settled()), "all have settled");
        prop_assert_eq!(all, PARTITIONS);
        for (place, at) in clients.iter().flat_map(|client| client.consumer.positions()) {
            let committed = group.committed.get(&i32::try_from(place).expect("small"));
            prop_assert!(committed.is_none_or(|committed| *committed <= at), "no step back");
        }
    }
}

#[test]
fn a_member_that_leaves_commits_what_it_read_and_an_expelled_one_joins_again() {
    let shape = grouped();
    let (mut group, mut recorder) = (Coordinator::default(), Recorder::new(0, 0..SECOND));
    let mut client = Client::new(&shape);
    let mut run = |client: &mut Client, group: &mut Coordinator, from: u64| {
        (0..10).for_each(|at| client.step(group, from + at * MILLI, &mut recorder));
    };
    run(&mut client, &mut group, 0);
    assert!(client.member.is_settled());
    assert_eq!(client.consumer.positions().len(), PARTITIONS);
    assert_eq!(assigned(&group.members["m1"].1).map(|share| share[0].1.len()), Some(PARTITIONS));
    // Its session ran out behind its back.
    group.members.clear();
    run(&mut client, &mut group, 2 * SECOND);
    run(&mut client, &mut group, 3 * SECOND);
    assert!(client.member.is_settled() && group.members.contains_key("m2"));
    client.read();
    client.member.leave(&mut client.consumer);
    assert!(client.consumer.positions().is_empty());
    run(&mut client, &mut group, 4 * SECOND);
    assert!(client.member.is_gone() && group.members.is_empty());
    assert_eq!(group.committed.values().copied().collect::<Vec<_>>(), [1; PARTITIONS]);
    assert_eq!(recorder.cut(0).errors, BTreeMap::from([("UNKNOWN_MEMBER_ID".to_string(), 1)]));
}
