//! Members come, agree, are lost and leave.

use super::*;

#[test]
fn two_members_share_a_group() {
    let mut world = World::new();
    let first = world.ask(Request::Join(join("a")));
    world.advance(1000);
    let second = world.ask(Request::Join(Join { random: 8, ..join("b") }));
    assert_eq!(world.state(), "PreparingRebalance");
    world.advance(5_000);
    let (first, second) = (world.joined(first), world.joined(second));
    assert_eq!((first.error, first.generation), (ErrorCode::NONE, 1));
    assert!(first.member_id.starts_with("a-") && first.member_id.len() == 2 + 36);
    assert_eq!((&first.leader, &second.leader), (&first.member_id, &first.member_id));
    assert_eq!((first.members.len(), second.members.len()), (2, 0));
    assert_eq!(first.members[0].metadata, subscription("t"));
    assert_eq!(first.protocol_type.as_deref(), Some("consumer"));
    assert_eq!(second.protocol_name.as_deref(), Some("range"));

    let waits = world.sync(&second.member_id, 1, &[]);
    assert!(world.is_waiting(waits));
    assert_eq!(world.state(), "CompletingRebalance");
    let shares = [(first.member_id.as_str(), "0"), (second.member_id.as_str(), "1")];
    let leads = world.sync(&first.member_id, 1, &shares);
    assert_eq!(world.synced(leads).assignment, "0");
    assert_eq!(world.synced(waits).assignment, "1");
    assert_eq!(world.beat(&first.member_id, 1), ErrorCode::NONE);
    assert_eq!(world.beat(&first.member_id, 0), ErrorCode::ILLEGAL_GENERATION);
    assert_eq!(world.beat("nobody", 1), ErrorCode::UNKNOWN_MEMBER_ID);
    let described = world.groups.describe("g").expect("it is there");
    assert_eq!((described.state, described.protocol.as_str()), ("Stable", "range"));
    assert_eq!(described.members[1].assignment, "1");
    assert_eq!(described.members[1].client_id, "b");
}

#[test]
fn kip_134_a_new_group_waits_while_members_keep_coming() {
    let mut world = World::new();
    let first = world.ask(Request::Join(join("a")));
    for number in 0..3 {
        world.advance(2_900);
        world.ask(Request::Join(Join { random: number, ..join("b") }));
    }
    assert!(world.is_waiting(first));
    world.advance(3_000);
    assert!(world.is_waiting(first), "the last one came within the last delay");
    world.advance(3_000);
    assert_eq!(world.joined(first).members.len(), 4);
}

#[test]
fn kip_134_the_wait_ends_with_the_rebalance_timeout() {
    let mut world = World::new();
    let first = world.ask(Request::Join(Join { rebalance_timeout_ms: 7_000, ..join("a") }));
    for number in 0..4 {
        world.advance(1_600);
        let later = Join { rebalance_timeout_ms: 7_000, random: number, ..join("b") };
        world.ask(Request::Join(later));
    }
    world.advance(601);
    assert_eq!(world.joined(first).members.len(), 5);
}

#[test]
fn kip_394_a_member_is_told_its_id_first() {
    let mut world = World::hasty();
    let asks = world.ask(Request::Join(Join { require_member_id: true, ..join("a") }));
    let told = world.joined(asks);
    assert_eq!((told.error, told.generation), (ErrorCode::MEMBER_ID_REQUIRED, -1));
    let again = world.ask(Request::Join(join_as(&told.member_id)));
    assert_eq!(world.joined(again).member_id, told.member_id);
}

#[test]
fn kip_394_an_id_that_is_not_used_lapses_and_is_not_waited_for() {
    let mut world = World::hasty();
    let (ids, _) = world.stable(1);
    let asks = world.ask(Request::Join(Join { require_member_id: true, ..join("b") }));
    let told = world.joined(asks);
    let rejoins = world.ask(Request::Join(join_as(&ids[0])));
    assert!(world.is_waiting(rejoins), "the id may come back");
    world.advance(9_999);
    assert!(world.is_waiting(rejoins));
    world.advance(1);
    assert_eq!(world.joined(rejoins).generation, 2);
    let too_late = world.ask(Request::Join(join_as(&told.member_id)));
    assert_eq!(world.joined(too_late).error, ErrorCode::UNKNOWN_MEMBER_ID);
}

#[test]
fn an_id_that_is_given_back_is_not_waited_for() {
    let mut world = World::hasty();
    let (ids, _) = world.stable(1);
    let asks = world.ask(Request::Join(Join { require_member_id: true, ..join("b") }));
    let told = world.joined(asks);
    let rejoins = world.ask(Request::Join(join_as(&ids[0])));
    assert_eq!(world.leave(&[(&told.member_id, None)]), [ErrorCode::NONE]);
    assert_eq!(world.joined(rejoins).generation, 2);
}

#[test]
fn a_silent_member_is_lost_and_the_others_are_called_in() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(2);
    world.advance(6_000);
    assert_eq!(world.beat(&ids[0], generation), ErrorCode::NONE);
    world.advance(4_000);
    assert_eq!(world.beat(&ids[0], generation), ErrorCode::REBALANCE_IN_PROGRESS);
    assert_eq!(world.beat(&ids[1], generation), ErrorCode::UNKNOWN_MEMBER_ID);
    let rejoins = world.ask(Request::Join(join_as(&ids[0])));
    let answer = world.joined(rejoins);
    assert_eq!((answer.generation, answer.members.len()), (generation + 1, 1));
}

#[test]
fn who_does_not_rejoin_in_time_is_dropped() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(2);
    let newcomer = world.ask(Request::Join(join("late")));
    let rejoins = world.ask(Request::Join(join_as(&ids[1])));
    for _ in 0..11 {
        world.advance(5_000);
        assert_eq!(world.beat(&ids[0], generation), ErrorCode::REBALANCE_IN_PROGRESS);
    }
    assert!(world.is_waiting(newcomer));
    world.advance(5_000);
    let (newcomer, rejoined) = (world.joined(newcomer), world.joined(rejoins));
    assert_eq!(newcomer.generation, generation + 1);
    assert_ne!(rejoined.leader, ids[0], "the leader was silent");
    assert_eq!(newcomer.members.len() + rejoined.members.len(), 2);
    assert_eq!(world.beat(&ids[0], generation), ErrorCode::UNKNOWN_MEMBER_ID);
}

#[test]
fn who_does_not_sync_is_dropped() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(2);
    let newcomer = world.ask(Request::Join(join("late")));
    for id in &ids {
        world.ask(Request::Join(join_as(id)));
    }
    let newcomer = world.joined(newcomer);
    let generation = generation + 1;
    let leads = world.sync(&ids[0], generation, &[]);
    let syncs = world.sync(&newcomer.member_id, generation, &[]);
    assert!(world.synced(leads).error.is_none() && world.synced(syncs).error.is_none());
    for _ in 0..12 {
        world.advance(5_000);
        for id in [&ids[0], &ids[1], &newcomer.member_id] {
            world.beat(id, generation);
        }
    }
    assert_eq!(world.beat(&ids[1], generation), ErrorCode::UNKNOWN_MEMBER_ID);
    assert_eq!(world.beat(&ids[0], generation), ErrorCode::REBALANCE_IN_PROGRESS);
}

#[test]
fn a_leader_that_rejoins_and_a_member_that_changes_call_for_a_rebalance() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(2);
    let same = world.ask(Request::Join(join_as(&ids[1])));
    assert_eq!(world.joined(same).generation, generation, "nothing has changed");
    let protocols = vec![("range".to_owned(), subscription("other"))];
    let changed = world.ask(Request::Join(Join { protocols, ..join_as(&ids[1]) }));
    assert!(world.is_waiting(changed));
    let leads = world.ask(Request::Join(join_as(&ids[0])));
    assert_eq!(world.joined(leads).generation, generation + 1);
    assert!(world.joined(changed).members.is_empty());
    // The answer was lost: it is asked for again.
    let again = world.ask(Request::Join(join_as(&ids[0])));
    let again = world.joined(again);
    assert_eq!((again.generation, again.members.len()), (generation + 1, 2));
}

#[test]
fn a_rebalance_sends_those_who_wait_for_the_assignment_back() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(2);
    for id in &ids {
        world.ask(Request::Join(join_as(id)));
    }
    let waits = world.sync(&ids[1], generation + 1, &[]);
    let late = world.ask(Request::Join(join("late")));
    assert_eq!(world.synced(waits).error, ErrorCode::REBALANCE_IN_PROGRESS);
    assert!(world.is_waiting(late));
}

#[test]
fn an_assignment_is_told_when_it_is_durable() {
    let mut world = World::hasty();
    let joins = world.ask(Request::Join(join("a")));
    let joined = world.joined(joins);
    world.is_prompt = false;
    let syncs = world.sync(&joined.member_id, 1, &[(&joined.member_id, "mine")]);
    assert!(world.is_waiting(syncs));
    assert_eq!(world.open.len(), 1);
    world.settle(ErrorCode::NONE);
    assert_eq!(world.synced(syncs).assignment, "mine");
    assert_eq!(world.state(), "Stable");
}

#[test]
fn an_assignment_that_is_lost_begins_a_rebalance() {
    let mut world = World::hasty();
    let joins = world.ask(Request::Join(join("a")));
    let joined = world.joined(joins);
    world.is_prompt = false;
    let syncs = world.sync(&joined.member_id, 1, &[(&joined.member_id, "mine")]);
    world.settle(ErrorCode::REQUEST_TIMED_OUT);
    assert_eq!(world.synced(syncs).error, ErrorCode::COORDINATOR_NOT_AVAILABLE);
    assert_eq!(world.state(), "PreparingRebalance");
}

#[test]
fn the_protocol_is_what_all_speak_and_most_prefer() {
    let mut world = World::new();
    let protocols = |names: &[&str]| {
        names.iter().map(|name| ((*name).to_owned(), Bytes::new())).collect::<Vec<_>>()
    };
    let with = |names, random| Join { protocols: protocols(names), random, ..join("a") };
    let first = world.ask(Request::Join(with(&["range", "sticky", "own"], 1)));
    world.ask(Request::Join(with(&["sticky", "range"], 2)));
    world.ask(Request::Join(with(&["sticky", "range"], 3)));
    let odd = world.ask(Request::Join(with(&["own"], 4)));
    assert_eq!(world.joined(odd).error, ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
    let other = Join { protocol_type: "connect".to_owned(), ..with(&["range"], 5) };
    let other = world.ask(Request::Join(other));
    assert_eq!(world.joined(other).error, ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
    world.advance(6_000);
    let first = world.joined(first);
    assert_eq!(first.protocol_name.as_deref(), Some("sticky"));
    // KIP-559: a sync that names another protocol is of another mind.
    let syncs = world.ask(Request::Sync(Sync {
        generation: 1,
        member_id: first.member_id,
        instance_id: None,
        protocol_type: Some("consumer".to_owned()),
        protocol_name: Some("range".to_owned()),
        assignments: Vec::new(),
    }));
    assert_eq!(world.synced(syncs).error, ErrorCode::INCONSISTENT_GROUP_PROTOCOL);
}

#[test]
fn the_last_one_to_leave_empties_the_group_and_a_new_one_finds_its_generation() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(2);
    let codes = world.leave(&[(&ids[0], None), ("nobody", None)]);
    assert_eq!(codes, [ErrorCode::NONE, ErrorCode::UNKNOWN_MEMBER_ID]);
    assert_eq!(world.state(), "PreparingRebalance");
    assert_eq!(world.leave(&[(&ids[1], None)]), [ErrorCode::NONE]);
    assert_eq!(world.state(), "Empty");
    let joins = world.ask(Request::Join(join("a")));
    assert_eq!(world.joined(joins).generation, generation + 2);
}

#[test]
fn who_leaves_while_waiting_is_answered() {
    let mut world = World::hasty();
    let (ids, _) = world.stable(2);
    let rejoins = world.ask(Request::Join(join_as(&ids[0])));
    assert!(world.is_waiting(rejoins));
    assert_eq!(world.leave(&[(&ids[0], None)]), [ErrorCode::NONE]);
    assert_eq!(world.joined(rejoins).error, ErrorCode::UNKNOWN_MEMBER_ID);
}

#[test]
fn bounds_are_kept() {
    let bounds = Settings {
        initial_rebalance_delay: Duration::ZERO,
        members_max: 1,
        groups_max: 1,
        member_bytes_max: 1000,
        ..Settings::default()
    };
    let mut world = World::with(bounds);
    for (session_timeout_ms, code) in [
        (5_999, ErrorCode::INVALID_SESSION_TIMEOUT),
        (-1, ErrorCode::INVALID_SESSION_TIMEOUT),
        (1_800_001, ErrorCode::INVALID_SESSION_TIMEOUT),
    ] {
        let ticket = world.ask(Request::Join(Join { session_timeout_ms, ..join("a") }));
        assert_eq!(world.joined(ticket).error, code);
    }
    let protocols = vec![("range".to_owned(), Bytes::from(vec![0; 1000]))];
    let large = world.ask(Request::Join(Join { protocols, ..join("a") }));
    assert_eq!(world.joined(large).error, ErrorCode::INVALID_REQUEST);
    assert_eq!(world.groups.list().count(), 0, "refusals leave nothing behind");
    let (ids, _) = world.stable(1);
    let second = world.ask(Request::Join(join("b")));
    assert_eq!(world.joined(second).error, ErrorCode::GROUP_MAX_SIZE_REACHED);
    let same = world.ask(Request::Join(join_as(&ids[0])));
    assert_eq!(world.joined(same).generation, 2);
    let elsewhere = world.ask_of("another", Request::Join(join("a")));
    assert_eq!(world.joined(elsewhere).error, ErrorCode::COORDINATOR_NOT_AVAILABLE);
    let nameless = world.ask_of("", Request::Join(join("a")));
    assert_eq!(world.joined(nameless).error, ErrorCode::INVALID_GROUP_ID);
}

#[test]
fn what_is_not_there_is_refused_as_kafka_refuses_it() {
    let mut world = World::new();
    let known = world.ask(Request::Join(join_as("somebody")));
    assert_eq!(world.joined(known).error, ErrorCode::UNKNOWN_MEMBER_ID);
    assert_eq!(world.beat("somebody", 1), ErrorCode::UNKNOWN_MEMBER_ID);
    let syncs = world.sync("somebody", 1, &[]);
    assert_eq!(world.synced(syncs).error, ErrorCode::UNKNOWN_MEMBER_ID);
    assert_eq!(world.leave(&[("somebody", None)]), [ErrorCode::UNKNOWN_MEMBER_ID]);
    let deletes = world.ask(Request::DeleteGroup);
    let answer = world.answers.remove(&deletes);
    assert_eq!(answer, Some(Answer::DeleteGroup(ErrorCode::GROUP_ID_NOT_FOUND)));
}
