//! KIP-345: static members restart without a rebalance.

use super::*;

/// A stable group of two static members, `x` leading.
fn pair(world: &mut World) -> (String, String) {
    let x = world.ask(Request::Join(static_join("x", 1)));
    let x = world.joined(x).member_id;
    let y = world.ask(Request::Join(static_join("y", 2)));
    let rejoin = Join { member_id: x.clone(), ..static_join("x", 3) };
    world.ask(Request::Join(rejoin));
    let y = world.joined(y).member_id;
    let leads = world.sync(&x, 2, &[(&x, "for x"), (&y, "for y")]);
    let follows = world.sync(&y, 2, &[]);
    assert_eq!(world.synced(leads).assignment, "for x");
    assert_eq!(world.synced(follows).assignment, "for y");
    (x, y)
}

#[test]
fn a_static_member_comes_back_into_its_generation() {
    let mut world = World::hasty();
    let (x, y) = pair(&mut world);
    let returns = world.ask(Request::Join(static_join("y", 4)));
    let returned = world.joined(returns);
    assert_eq!((returned.error, returned.generation), (ErrorCode::NONE, 2));
    assert_ne!(returned.member_id, y);
    assert_eq!((returned.leader, returned.skip_assignment), (x, false));
    let syncs = world.sync(&returned.member_id, 2, &[]);
    assert_eq!(world.synced(syncs).assignment, "for y");
    let old = Heartbeat { generation: 2, member_id: y, instance_id: Some("y".to_owned()) };
    let beats = world.ask(Request::Heartbeat(old));
    let answer = world.answers.remove(&beats);
    assert_eq!(answer, Some(Answer::Heartbeat(ErrorCode::FENCED_INSTANCE_ID)));
}

#[test]
fn a_static_leader_comes_back_and_is_told_not_to_assign() {
    let mut world = World::hasty();
    let (x, _) = pair(&mut world);
    let returns = world.ask(Request::Join(static_join("x", 4)));
    let returned = world.joined(returns);
    assert_eq!(returned.leader, returned.member_id);
    assert!(returned.skip_assignment && returned.members.len() == 2);
    let older = Join { may_skip_assignment: false, ..static_join("x", 5) };
    let returns = world.ask(Request::Join(older));
    let again = world.joined(returns);
    assert_eq!(again.leader, returned.member_id, "an old client must not take itself for it");
    assert!(!again.skip_assignment && again.members.is_empty());
    assert_ne!(again.member_id, x);
}

#[test]
fn a_rejoin_is_told_when_it_is_durable_and_undone_when_it_is_lost() {
    let mut world = World::hasty();
    let (_, y) = pair(&mut world);
    world.is_prompt = false;
    let returns = world.ask(Request::Join(static_join("y", 4)));
    assert!(world.is_waiting(returns));
    world.settle(ErrorCode::KAFKA_STORAGE_ERROR);
    assert_eq!(world.joined(returns).error, ErrorCode::NOT_COORDINATOR);
    assert_eq!(world.beat(&y, 2), ErrorCode::NONE, "the old one is still it");
}

#[test]
fn a_second_instance_fences_the_first_one_that_waits() {
    let mut world = World::hasty();
    let (_, y) = pair(&mut world);
    let changed = vec![("range".to_owned(), subscription("u"))];
    let rejoin = Join { member_id: y, protocols: changed, ..static_join("y", 4) };
    let waits = world.ask(Request::Join(rejoin));
    assert!(world.is_waiting(waits));
    world.ask(Request::Join(static_join("y", 5)));
    assert_eq!(world.joined(waits).error, ErrorCode::FENCED_INSTANCE_ID);
}

#[test]
fn a_silent_static_member_keeps_its_place_for_its_session() {
    let mut world = World::hasty();
    let (x, y) = pair(&mut world);
    let rejoin = Join { member_id: x.clone(), ..static_join("x", 4) };
    let calls = world.ask(Request::Join(rejoin));
    assert!(world.is_waiting(calls), "the other one is awaited");
    world.advance(10_000);
    let joined = world.joined(calls);
    assert_eq!((joined.generation, joined.members.len()), (3, 1));
    assert_eq!(world.beat(&y, 3), ErrorCode::UNKNOWN_MEMBER_ID);
}

#[test]
fn an_administrator_removes_a_static_member_by_its_name() {
    let mut world = World::hasty();
    let (_, y) = pair(&mut world);
    let codes = world.leave(&[("", Some("x")), ("else", Some("y")), (&y, Some("z"))]);
    let [removed, fenced, unknown] = codes.as_slice() else { panic!("three answers") };
    assert_eq!(*removed, ErrorCode::NONE);
    assert_eq!(*fenced, ErrorCode::FENCED_INSTANCE_ID);
    assert_eq!(*unknown, ErrorCode::UNKNOWN_MEMBER_ID);
}
