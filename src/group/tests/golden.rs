//! The records of `__consumer_offsets` against bytes that Kafka 4.1.1's own classes wrote.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::records::{self, GroupValue, Key, OffsetValue, decode_key, decode_value};
use super::World;
use crate::group::offsets_partition;
use crate::wire::primitive::Uuid;

const OFFSET_KEY: &str = "0001000167000374c3b600000007";
const LEGACY_KEY: &str = "000000016700017400000007";
const GROUP_KEY: &str = "0002000567726f7570";
const OFFSETS: [&str; 5] = [
    "00000000011f71fb04cb00016d0000018bcfe56800",
    "00010000011f71fb04cb00016d0000018bcfe568000000018bcfe6eab8",
    "00020000011f71fb04cb00016d0000018bcfe56800",
    "00030000011f71fb04cb0000000500016d0000018bcfe56800",
    "00040000011f71fb04cb00000005026d0000018bcfe568000100100102030405060708090a0b0c0d0e0f \
         10",
];
const GROUPS: [&str; 5] = [
    "00000008636f6e73756d657200000003000572616e67650003612d31000000020003612d31000163000a \
         2f3132372e302e302e310000afc8000000090001000000010001740000000209080003622d3200000000 \
         000027100000000000000000",
    "00010008636f6e73756d657200000003000572616e67650003612d31000000020003612d31000163000a \
         2f3132372e302e302e310000ea600000afc8000000090001000000010001740000000209080003622d32 \
         00000000000493e0000027100000000000000000",
    "00020008636f6e73756d657200000003000572616e67650003612d310000018bcfe56800000000020003 \
         612d31000163000a2f3132372e302e302e310000ea600000afc800000009000100000001000174000000 \
         0209080003622d3200000000000493e0000027100000000000000000",
    "00030008636f6e73756d657200000003000572616e67650003612d310000018bcfe56800000000020003 \
         612d31000161000163000a2f3132372e302e302e310000ea600000afc800000009000100000001000174 \
         0000000209080003622d32ffff00000000000493e0000027100000000000000000",
    "000409636f6e73756d6572000000030672616e676504612d310000018bcfe568000304612d3102610263 \
         0b2f3132372e302e302e310000ea600000afc80a0001000000010001740309080004622d320001010004 \
         93e00000271001010000",
];
const EMPTY_GROUP: &str = "00030008636f6e73756d657200000004ffffffff0000018bcfe5680100000000";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("hexadecimal digits are ASCII");
        u8::from_str_radix(pair, 16).expect("two hexadecimal digits")
    };
    digits.chunks(2).map(byte).collect()
}

#[test]
fn keys_are_kafkas() {
    let key = Key::Offset(records::OffsetKey { group: "g", topic: "tö", partition: 7 });
    assert_eq!(decode_key(&bytes(OFFSET_KEY)), Ok(key));
    let legacy = Key::Offset(records::OffsetKey { group: "g", topic: "t", partition: 7 });
    assert_eq!(decode_key(&bytes(LEGACY_KEY)), Ok(legacy));
    assert_eq!(decode_key(&bytes(GROUP_KEY)), Ok(Key::Group(records::GroupKey { group: "group" })));
    assert_eq!(decode_key(b"\0\x03whatever"), Ok(Key::Other));
    let written = records::offset_tombstone("g", "tö", 7);
    assert_eq!((written.key, written.value), (Bytes::from(bytes(OFFSET_KEY)), None));
    assert_eq!(records::group_tombstone("group").key, bytes(GROUP_KEY));
}

#[test]
fn offsets_are_read_in_every_version() {
    for (version, golden) in OFFSETS.iter().enumerate() {
        let golden = bytes(golden);
        let value: OffsetValue<'_> = decode_value(&golden).expect("Kafka wrote it");
        let committed = value.committed();
        assert_eq!((committed.offset, &*committed.metadata), (1_234_567_890_123, "m"));
        assert_eq!(committed.committed_at.0, 1_700_000_000_000);
        assert_eq!(committed.leader_epoch, if version >= 3 { 5 } else { -1 });
        assert_eq!(committed.expires_at.is_some(), version == 1);
        assert_eq!(value.topic_id == Uuid::ZERO, version < 4);
    }
}

#[test]
fn groups_are_read_in_every_version() {
    for (version, golden) in GROUPS.iter().enumerate() {
        let golden = bytes(golden);
        let value: GroupValue<'_> = decode_value(&golden).expect("Kafka wrote it");
        assert_eq!((value.protocol_type, value.generation), ("consumer", 3));
        assert_eq!((value.protocol, value.leader), (Some("range"), Some("a-1")));
        assert_eq!(
            value.current_state_timestamp,
            if version >= 2 { 1_700_000_000_000 } else { -1 }
        );
        let [first, second] = value.members.as_slice() else { panic!("two members") };
        assert_eq!(first.group_instance_id, if version >= 3 { Some("a") } else { None });
        assert_eq!((first.client_id, first.client_host), ("c", "/127.0.0.1"));
        assert_eq!(first.rebalance_timeout, if version >= 1 { 60_000 } else { -1 });
        assert_eq!((first.session_timeout, first.assignment), (45_000, &[9, 8][..]));
        assert_eq!((second.member_id, second.subscription), ("b-2", &[][..]));
    }
}

#[test]
fn groups_and_offsets_are_written_as_kafka_writes_them() {
    let mut world = World::new();
    for golden in [GROUPS[3], EMPTY_GROUP] {
        world.groups.replay(&bytes(GROUP_KEY), Some(&bytes(golden))).expect("Kafka wrote it");
        let written = world.groups.replayed("group").record(None);
        assert_eq!(written.key, bytes(GROUP_KEY));
        assert_eq!(written.value, Some(Bytes::from(bytes(golden))));
    }
    // One without a time of its own, and one with it.
    for golden in [OFFSETS[3], OFFSETS[1]] {
        let golden = bytes(golden);
        let value: OffsetValue<'_> = decode_value(&golden).expect("Kafka wrote it");
        let to = Some(value.committed());
        let change = super::super::offsets::Change { topic: "tö".to_owned(), partition: 7, to };
        let written = records::offset_record("g", &change);
        assert_eq!((written.key, written.value), (bytes(OFFSET_KEY).into(), Some(golden.into())));
    }
}

#[test]
fn a_group_lives_in_the_partition_that_kafka_would_choose() {
    let negative = "a-rather-long-group-name-whose-hash-is-negative";
    for (group, partition) in
        [("g", 3), ("console-consumer-12345", 6), ("grüße-𝄞", 22), (negative, 2)]
    {
        assert_eq!(offsets_partition(group, 50), partition);
    }
    // The one string whose hash has no absolute value.
    assert_eq!(offsets_partition("polygenelubricants", 50), 0);
}

#[test]
fn a_record_cut_short_is_an_error_and_changes_nothing() {
    let mut world = World::new();
    for golden in GROUPS.iter().chain(&OFFSETS) {
        let golden = bytes(golden);
        let key = if golden.len() > 50 { GROUP_KEY } else { OFFSET_KEY };
        for length in 0..golden.len() {
            let error = world.groups.replay(&bytes(key), golden.get(..length));
            assert!(error.is_err_and(|error| error.to_string().contains("cannot be read")));
        }
    }
    assert_eq!(world.groups.list().count(), 0);
    let newer = world.groups.replay(&bytes(GROUP_KEY), Some(b"\0\x09"));
    assert!(newer.is_err_and(|error| error.to_string().contains("version 9")));
}

proptest! {
    #[test]
    fn rubbish_never_panics(
        golden in 0..GROUPS.len() * 2,
        key_byte in any::<u8>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut value = bytes(GROUPS.iter().chain(&OFFSETS).nth(golden).expect("ten goldens"));
        for (place, byte) in flips {
            let place = place.index(value.len());
            value[place] = byte;
        }
        let mut world = World::new();
        for key in [OFFSET_KEY, GROUP_KEY] {
            let _ = world.groups.replay(&bytes(key), Some(&value));
            let _ = world.groups.replay(&[&[0, key_byte], &value[..]].concat(), Some(&value));
        }
        world.groups.loaded(world.now);
        world.groups.check();
        world.advance(3_600_000);
    }
}
