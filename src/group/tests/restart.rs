//! A restart finds what was durable, and members go on without noticing.

use bytes::BytesMut;

use super::super::records;
use super::*;
use crate::wire::primitive::{Context, Wire};

#[test]
fn a_generation_goes_on_after_a_restart() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(3);
    let before = world.groups.describe("g").expect("it is stable");
    world.restart();
    assert_eq!(world.groups.describe("g"), Some(before));
    world.advance(9_000);
    for id in &ids[..2] {
        assert_eq!(world.beat(id, generation), ErrorCode::NONE);
    }
    let syncs = world.sync(&ids[1], generation, &[]);
    assert_eq!(world.synced(syncs).assignment, ids[1]);
    world.advance(1_000);
    assert_eq!(world.beat(&ids[2], generation), ErrorCode::UNKNOWN_MEMBER_ID);
    assert_eq!(world.beat(&ids[0], generation), ErrorCode::REBALANCE_IN_PROGRESS);
}

#[test]
fn a_generation_that_was_not_durable_is_joined_anew() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(1);
    let newcomer = world.ask(Request::Join(join("b")));
    world.ask(Request::Join(join_as(&ids[0])));
    assert_eq!(world.joined(newcomer).generation, generation + 1);
    world.restart();
    assert_eq!(world.beat(&ids[0], generation + 1), ErrorCode::ILLEGAL_GENERATION);
    let rejoins = world.ask(Request::Join(join_as(&ids[0])));
    assert_eq!(world.joined(rejoins).generation, generation + 1);
}

#[test]
fn an_empty_group_keeps_its_generation_and_a_static_member_its_id() {
    let mut world = World::hasty();
    let (ids, generation) = world.stable(1);
    world.leave(&[(&ids[0], None)]);
    world.restart();
    assert_eq!(world.state(), "Empty");
    let joins = world.ask(Request::Join(static_join("x", 1)));
    let joined = world.joined(joins);
    assert_eq!(joined.generation, generation + 2);
    let syncs = world.sync(&joined.member_id, joined.generation, &[]);
    assert!(world.synced(syncs).error.is_none());
    let returns = world.ask(Request::Join(static_join("x", 2)));
    let returned = world.joined(returns).member_id;
    world.restart();
    assert_eq!(world.beat(&returned, joined.generation), ErrorCode::NONE);
    assert_eq!(world.beat(&joined.member_id, joined.generation), ErrorCode::UNKNOWN_MEMBER_ID);
}

/// Found by fuzzing: the instance of the first led to a member that had another one.
#[test]
fn of_a_member_that_a_damaged_record_holds_twice_the_later_one_counts() {
    let member = |member_id, instance| records::MemberValue {
        member_id,
        group_instance_id: instance,
        ..records::MemberValue::default()
    };
    let value = records::GroupValue {
        members: vec![
            member("m", Some("one")),
            member("m", Some("two")),
            member("n", Some("two")),
            member("n", None),
        ],
        ..records::GroupValue::default()
    };
    let mut bytes = BytesMut::from(&[0, 3][..]);
    value.encode(&mut bytes, Context { version: 3, flexible: false });
    let mut world = World::new();
    let key = records::group_tombstone("g").key;
    assert_eq!(world.groups.replay(&key, Some(&bytes)), Ok(()));
    world.groups.loaded(world.now);
    world.groups.check();
    let described = world.groups.describe("g").expect("it is there");
    assert_eq!(described.members.len(), 1);
}
