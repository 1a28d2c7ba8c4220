//! The consumers' own protocol inside JoinGroup and SyncGroup: what members subscribe to, and how
//! the leader divides it ("range", as Kafka's RangeAssignor does, so that other clients may be
//! members of the same group). Pure.
//!
//!     subscription: | version i16 | topics: array of string | user data: bytes |
//!     assignment:   | version i16 | array of (topic: string, array of partition i32) | user data |

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use crate::wire::primitive::{Context, Reader, Wire};

/// The name that all members of a group must offer.
pub const PROTOCOL: &str = "range";
/// The kind of group.
pub const PROTOCOL_TYPE: &str = "consumer";
const ORDINARY: Context = Context { version: 0, flexible: false };
/// User data is null.
const NULL: i32 = -1;

/// Partitions by topic.
pub type Share = BTreeMap<String, Vec<i32>>;

/// What a member that reads these topics says.
pub fn subscription(topics: &[String]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_i16(0);
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    topics.encode(&mut out, ORDINARY);
    out.put_i32(NULL);
    out
}

/// The topics of a subscription of any version; none where it is something else.
pub fn subscribed(metadata: &[u8]) -> Vec<&str> {
    let mut reader = Reader::new(metadata);
    let topics = reader.i16().and_then(|_| Vec::decode(&mut reader, ORDINARY));
    topics.unwrap_or_default()
}

/// Divides the partitions of each topic among the members that subscribe to it: in the order of
/// their ids, the first ones get one more where it does not come out even.
pub fn range(
    members: &BTreeMap<&str, Vec<&str>>,
    counts: &BTreeMap<&str, i32>,
) -> BTreeMap<String, Share> {
    let mut shares: BTreeMap<String, Share> =
        members.keys().map(|id| ((*id).to_string(), Share::new())).collect();
    for (topic, count) in counts {
        let readers = members.iter().filter(|(_, topics)| topics.contains(topic));
        let readers: Vec<&str> = readers.map(|(id, _)| *id).collect();
        let divisor = i32::try_from(readers.len()).unwrap_or(i32::MAX).max(1);
        let (each, extra) = (count / divisor, count % divisor);
        let mut next = 0;
        for (id, index) in readers.iter().zip(0..) {
            let end = next + each + i32::from(index < extra);
            if let Some(share) = shares.get_mut(*id).filter(|_| end > next) {
                share.insert((*topic).to_string(), (next..end).collect());
            }
            next = end;
        }
    }
    shares
}

/// What the leader says about one member.
pub fn assignment(share: &Share) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_i16(0);
    out.put_i32(i32::try_from(share.len()).unwrap_or(i32::MAX));
    for (topic, partitions) in share {
        topic.as_str().encode(&mut out, ORDINARY);
        partitions.encode(&mut out, ORDINARY);
    }
    out.put_i32(NULL);
    out
}

/// The partitions of an assignment of any version; `None` where it is something else. No bytes at
/// all assign nothing.
pub fn assigned(bytes: &[u8]) -> Option<Vec<(&str, Vec<i32>)>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let mut reader = Reader::new(bytes);
    reader.i16().ok()?;
    let mut share = Vec::new();
    for _ in 0..reader.count(ORDINARY).ok()?? {
        let topic = reader.string(ORDINARY).ok()??;
        share.push((topic, Vec::decode(&mut reader, ORDINARY).ok()?));
    }
    Some(share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_said_is_understood_and_rubbish_is_not() {
        let topics = ["a".to_string(), "bc".to_string()];
        assert_eq!(&subscription(&topics)[..], b"\0\0\0\0\0\x02\0\x01a\0\x02bc\xff\xff\xff\xff");
        assert_eq!(subscribed(&subscription(&topics)), ["a", "bc"]);
        assert!(subscribed(b"\0\0\x7f\xff\xff\xff").is_empty());
        let share = Share::from([("a".to_string(), vec![0, 2])]);
        assert_eq!(assigned(&assignment(&share)), Some(vec![("a", vec![0, 2])]));
        assert_eq!(assigned(b""), Some(vec![]));
        assert_eq!(assigned(b"\0\0\0\0\0\x01\0\x05a"), None);
    }

    #[test]
    fn the_range_is_that_of_kafka() {
        // The example of RangeAssignor's documentation.
        let both = vec!["t0", "t1"];
        let members = BTreeMap::from([("C0", both.clone()), ("C1", both)]);
        let shares = range(&members, &BTreeMap::from([("t0", 3), ("t1", 3)]));
        assert_eq!(shares["C0"]["t0"], [0, 1]);
        assert_eq!(shares["C0"]["t1"], [0, 1]);
        assert_eq!(shares["C1"]["t1"], [2]);
    }

    proptest! {
        /// Each partition goes to one member that reads its topic, and none has two more than
        /// another that reads the same.
        #[test]
        fn every_partition_has_one_reader(
            subscriptions in prop::collection::vec(prop::collection::vec(0_usize..3, 0..4), 1..9),
            counts in prop::collection::vec(0_i32..20, 3),
        ) {
            let names = ["t0", "t1", "t2"];
            let topics = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"];
            let named = |topics: &Vec<usize>| topics.iter().map(|topic| names[*topic]).collect();
            let members: BTreeMap<&str, Vec<&str>> =
                topics.iter().copied().zip(subscriptions.iter().map(named)).collect();
            let counts: BTreeMap<&str, i32> = names.into_iter().zip(counts).collect();
            let shares = range(&members, &counts);
            prop_assert_eq!(shares.len(), members.len());
            for (topic, count) in counts {
                let readers = members.iter().filter(|(_, topics)| topics.contains(&topic));
                let sizes: Vec<usize> =
                    readers.map(|(id, _)| shares[*id].get(topic).map_or(0, Vec::len)).collect();
                let all = shares.values().filter_map(|share| share.get(topic)).flatten();
                let mut all: Vec<i32> = all.copied().collect();
                all.sort_unstable();
                let wanted: Vec<i32> = (0..if sizes.is_empty() { 0 } else { count }).collect();
                prop_assert_eq!(all, wanted);
                let (least, most) = (sizes.iter().min(), sizes.iter().max());
                prop_assert!(least.zip(most).is_none_or(|(least, most)| most - least <= 1));
            }
        }
    }
}
