//! Offsets are committed, refused, dropped and expire.

use super::*;

const DAY: u64 = 24 * 3_600_000;

fn commit(member_id: &str, generation: i32, topic: &str, offset: i64) -> Request {
    Request::Commit(commit_of(member_id, generation, topic, offset))
}

fn commit_of(member_id: &str, generation: i32, topic: &str, offset: i64) -> Commit {
    let partition =
        CommitPartition { partition: 0, offset, leader_epoch: 3, metadata: "m".to_owned() };
    Commit {
        generation,
        member_id: member_id.to_owned(),
        instance_id: None,
        retention_ms: -1,
        offsets: vec![(topic.to_owned(), vec![partition])],
    }
}

fn simple_commit(topic: &str, offset: i64) -> Request {
    commit("", -1, topic, offset)
}

fn code(world: &mut World, ticket: Ticket) -> ErrorCode {
    match world.answers.remove(&ticket) {
        Some(Answer::Commit(topics)) => topics[0].1[0].1,
        other => panic!("a commit is answered, not {other:?}"),
    }
}

fn committed(world: &World, topic: &str) -> Option<i64> {
    world.groups.offset("g", topic, 0).map(|committed| committed.offset)
}

fn delete_offsets(world: &mut World, topic: &str) -> (ErrorCode, Option<ErrorCode>) {
    let ticket = world.ask(Request::DeleteOffsets(vec![(topic.to_owned(), vec![0])]));
    match world.answers.remove(&ticket) {
        Some(Answer::DeleteOffsets { error, partitions }) => {
            (error, partitions.first().map(|(_, codes)| codes[0].1))
        }
        other => panic!("an answer is there, not {other:?}"),
    }
}

#[test]
fn a_member_commits_and_others_do_not() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(1);
    let ticket = world.ask(commit(&ids[0], generation, "t", 42));
    assert_eq!(code(&mut world, ticket), ErrorCode::NONE);
    assert_eq!(committed(&world, "t"), Some(42));
    let kept = world.groups.offset("g", "t", 0).expect("it is committed");
    assert_eq!((kept.leader_epoch, &*kept.metadata), (3, "m"));
    for (request, refusal) in [
        (commit(&ids[0], generation - 1, "t", 1), ErrorCode::ILLEGAL_GENERATION),
        (commit("nobody", generation, "t", 1), ErrorCode::UNKNOWN_MEMBER_ID),
        (simple_commit("t", 1), ErrorCode::UNKNOWN_MEMBER_ID),
    ] {
        let ticket = world.ask(request);
        assert_eq!(code(&mut world, ticket), refusal);
    }
    // While members are called in, they may commit; while the leader assigns, they may not.
    world.ask(Request::Join(join("late")));
    let ticket = world.ask(commit(&ids[0], generation, "t", 43));
    assert_eq!(code(&mut world, ticket), ErrorCode::NONE);
    world.ask(Request::Join(join_as(&ids[0])));
    let ticket = world.ask(commit(&ids[0], generation + 1, "t", 44));
    assert_eq!(code(&mut world, ticket), ErrorCode::REBALANCE_IN_PROGRESS);
    assert_eq!(committed(&world, "t"), Some(43));
    let elsewhere = world.ask_of("none", commit("nobody", 1, "t", 1));
    assert_eq!(code(&mut world, elsewhere), ErrorCode::ILLEGAL_GENERATION);
}

#[test]
fn a_commit_is_told_and_seen_when_it_is_durable() {
    let mut world = World::new();
    world.is_prompt = false;
    let ticket = world.ask(simple_commit("t", 5));
    assert!(world.is_waiting(ticket));
    assert_eq!(committed(&world, "t"), None);
    world.settle(ErrorCode::NONE);
    assert_eq!(code(&mut world, ticket), ErrorCode::NONE);
    assert_eq!(committed(&world, "t"), Some(5));
}

#[test]
fn a_commit_that_is_lost_changes_nothing() {
    let mut world = World::new();
    let ticket = world.ask(simple_commit("t", 5));
    assert_eq!(code(&mut world, ticket), ErrorCode::NONE);
    world.is_prompt = false;
    for (error, refusal) in [
        (ErrorCode::NOT_ENOUGH_REPLICAS, ErrorCode::COORDINATOR_NOT_AVAILABLE),
        (ErrorCode::KAFKA_STORAGE_ERROR, ErrorCode::NOT_COORDINATOR),
        (ErrorCode::MESSAGE_TOO_LARGE, ErrorCode::INVALID_COMMIT_OFFSET_SIZE),
    ] {
        let ticket = world.ask(simple_commit("t", 6));
        world.settle(error);
        assert_eq!(code(&mut world, ticket), refusal);
        assert_eq!(committed(&world, "t"), Some(5));
    }
}

#[test]
fn outcomes_in_another_order_leave_the_later_commit() {
    let mut world = World::new();
    world.is_prompt = false;
    world.ask(simple_commit("t", 5));
    world.ask(simple_commit("t", 6));
    world.open.reverse();
    world.settle(ErrorCode::NONE);
    assert_eq!(committed(&world, "t"), Some(6));
}

#[test]
fn each_partition_has_its_own_code() {
    let mut world = World::with(Settings { offsets_per_group_max: 1, ..Settings::default() });
    let of = |partition, length| CommitPartition {
        partition,
        offset: 1,
        leader_epoch: -1,
        metadata: "x".repeat(length),
    };
    let offsets = vec![("t".to_owned(), vec![of(0, 4096), of(1, 4097), of(-1, 0), of(2, 0)])];
    let (member_id, instance_id) = (String::new(), None);
    let (generation, retention_ms) = (-1, -1);
    let commit = Commit { generation, member_id, instance_id, retention_ms, offsets };
    let request = Request::Commit(commit);
    let ticket = world.ask(request);
    let Some(Answer::Commit(topics)) = world.answers.remove(&ticket) else { panic!("an answer") };
    let codes: Vec<ErrorCode> = topics[0].1.iter().map(|(_, code)| *code).collect();
    let expected = [
        ErrorCode::NONE,
        ErrorCode::OFFSET_METADATA_TOO_LARGE,
        ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode::POLICY_VIOLATION,
    ];
    assert_eq!(codes, expected);
    assert_eq!(world.groups.offsets("g").count(), 1);
}

#[test]
fn kip_496_offsets_of_subscribed_topics_stay() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(1);
    for topic in ["t", "u"] {
        world.ask(commit(&ids[0], generation, topic, 1));
    }
    let stays = Some(ErrorCode::GROUP_SUBSCRIBED_TO_TOPIC);
    assert_eq!(delete_offsets(&mut world, "t"), (ErrorCode::NONE, stays));
    assert_eq!(delete_offsets(&mut world, "u"), (ErrorCode::NONE, Some(ErrorCode::NONE)));
    assert_eq!((committed(&world, "t"), committed(&world, "u")), (Some(1), None));
    world.leave(&[(&ids[0], None)]);
    assert_eq!(delete_offsets(&mut world, "t"), (ErrorCode::NONE, Some(ErrorCode::NONE)));
    assert_eq!(committed(&world, "t"), None);
}

#[test]
fn kip_496_other_protocols_keep_all_offsets_while_in_use() {
    let mut world = World::hasty();
    let joins = world.ask(Request::Join(Join { protocol_type: "connect".to_owned(), ..join("c") }));
    assert!(world.joined(joins).error.is_none());
    assert_eq!(delete_offsets(&mut world, "t"), (ErrorCode::NON_EMPTY_GROUP, None));
}

#[test]
fn a_deleted_group_is_gone_with_its_offsets() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(1);
    world.ask(commit(&ids[0], generation, "t", 1));
    let busy = world.ask(Request::DeleteGroup);
    let answer = world.answers.remove(&busy);
    assert_eq!(answer, Some(Answer::DeleteGroup(ErrorCode::NON_EMPTY_GROUP)));
    world.leave(&[(&ids[0], None)]);
    world.is_prompt = false;
    let on_its_way = world.ask(simple_commit("u", 2));
    let deletes = world.ask(Request::DeleteGroup);
    assert!(world.is_waiting(deletes));
    let joins = world.ask(Request::Join(join("c")));
    assert_eq!(world.joined(joins).error, ErrorCode::COORDINATOR_NOT_AVAILABLE);
    world.settle(ErrorCode::NONE);
    let answer = world.answers.remove(&deletes);
    assert_eq!(answer, Some(Answer::DeleteGroup(ErrorCode::NONE)));
    assert!(!world.is_waiting(on_its_way));
    assert!(world.groups.describe("g").is_none());
    world.restart();
    assert!(world.groups.describe("g").is_none());
    assert_eq!((committed(&world, "t"), committed(&world, "u")), (None, None));
}

#[test]
fn a_deletion_that_is_lost_leaves_the_group() {
    let mut world = World::new();
    world.ask(simple_commit("t", 1));
    world.is_prompt = false;
    let deletes = world.ask(Request::DeleteGroup);
    world.settle(ErrorCode::KAFKA_STORAGE_ERROR);
    let answer = world.answers.remove(&deletes);
    assert_eq!(answer, Some(Answer::DeleteGroup(ErrorCode::NOT_COORDINATOR)));
    assert_eq!((world.state(), committed(&world, "t")), ("Empty", Some(1)));
}

#[test]
fn kip_211_offsets_expire_a_week_after_the_group_was_left() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(1);
    world.ask(commit(&ids[0], generation, "t", 1));
    for _ in 0..10 * DAY / 9_000 {
        world.advance(9_000);
        world.beat(&ids[0], generation);
    }
    assert_eq!(committed(&world, "t"), Some(1), "the group is in use");
    world.leave(&[(&ids[0], None)]);
    world.advance(7 * DAY - 1);
    assert_eq!(committed(&world, "t"), Some(1));
    world.advance(1_800_000);
    assert_eq!(committed(&world, "t"), None);
    assert_eq!(world.state(), "none");
    world.restart();
    assert_eq!(world.groups.list().count(), 0, "tombstones cover all of it");
}

#[test]
fn kip_211_a_running_group_loses_what_it_does_not_subscribe_to() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(1);
    for topic in ["t", "u"] {
        world.ask(commit(&ids[0], generation, topic, 1));
    }
    for _ in 0..8 * DAY / 9_000 {
        world.advance(9_000);
        world.beat(&ids[0], generation);
    }
    assert_eq!((committed(&world, "t"), committed(&world, "u")), (Some(1), None));
}

#[test]
fn offsets_of_a_simple_consumer_expire_one_by_one() {
    let mut world = World::new();
    world.ask(simple_commit("t", 1));
    world.advance(4 * DAY);
    world.ask(simple_commit("u", 1));
    world.advance(4 * DAY);
    assert_eq!((committed(&world, "t"), committed(&world, "u")), (None, Some(1)));
}

/// OffsetCommit of versions 2 to 4 says how long an offset is kept.
#[test]
fn offsets_with_a_retention_of_their_own_expire_by_it() {
    let mut world = World::new();
    let long = i64::try_from(30 * DAY).expect("fits");
    for (topic, retention_ms) in [("short", 1000), ("long", long), ("gone", -9), ("none", -1)] {
        let commit = Commit { retention_ms, ..commit_of("", -1, topic, 1) };
        world.ask(Request::Commit(commit));
    }
    world.restart();
    world.advance(1_800_000);
    assert_eq!((committed(&world, "short"), committed(&world, "gone")), (None, None));
    assert_eq!((committed(&world, "long"), committed(&world, "none")), (Some(1), Some(1)));
    world.advance(8 * DAY);
    assert_eq!((committed(&world, "long"), committed(&world, "none")), (Some(1), None));
    world.advance(22 * DAY);
    assert_eq!(committed(&world, "long"), None);
}

/// Groups once outlived the topic that kept them, and wrote to the next one of its name.
#[test]
fn groups_go_with_the_topic_that_keeps_them_and_nobody_waits_on() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(2);
    world.ask_of("old", simple_commit("t", 1));
    world.is_prompt = false;
    let commits = world.ask(commit(&ids[0], generation, "t", 1));
    let deletes = world.ask_of("old", Request::DeleteGroup);
    let joins = world.ask(Request::Join(join_as(&ids[0])));
    let other = world.ask_of("other", Request::Join(join("c")));
    let other = world.joined(other);
    let sync = Sync { generation: other.generation, ..sync_of(&other.member_id) };
    let syncs = world.ask_of("other", Request::Sync(sync));
    assert!([commits, deletes, joins, syncs].iter().all(|ticket| world.is_waiting(*ticket)));

    world.handle(Input::Unloaded);
    let error = ErrorCode::NOT_COORDINATOR;
    assert_eq!(code(&mut world, commits), error);
    assert_eq!(world.answers.remove(&deletes), Some(Answer::DeleteGroup(error)));
    assert_eq!(world.joined(joins).error, error);
    assert_eq!(world.synced(syncs).error, error);
    assert_eq!(world.groups.list().count(), 0);
    assert_eq!(world.groups.next_timeout(), None);
    // What was on its way is nobody's, also under the same name.
    let news = world.ask(simple_commit("u", 7));
    world.settle(ErrorCode::NONE);
    assert_eq!(code(&mut world, news), ErrorCode::NONE);
    assert_eq!((committed(&world, "t"), committed(&world, "u")), (None, Some(7)));
}

fn sync_of(member_id: &str) -> Sync {
    Sync {
        generation: 0,
        member_id: member_id.to_owned(),
        instance_id: None,
        protocol_type: None,
        protocol_name: None,
        assignments: Vec::new(),
    }
}

#[test]
fn offsets_go_with_their_topic() {
    let mut world = World::new();
    world.ask(simple_commit("t", 1));
    world.ask(simple_commit("u", 1));
    world.handle(Input::TopicsDeleted { topics: vec!["t".to_owned()] });
    assert_eq!((committed(&world, "t"), committed(&world, "u")), (None, Some(1)));
}
