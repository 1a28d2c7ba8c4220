//! The records of `__consumer_offsets`, as Kafka writes and reads them.
//!
//!     key    | version i16 | fields |     0, 1: an offset    2: a group    others: not for us
//!     value  | version i16 | fields |     null: a tombstone
//!
//! Offsets and groups are written in version 3 and read in versions 0 to 4; 4 is flexible. Offsets
//! with a time of their own are written in version 1, the only one that has it, as Kafka does.

use std::collections::BTreeMap;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::offsets::{Change, Committed};
use super::state::Group;
use crate::base::time::UnixMillis;
use crate::wire::message::messages;
use crate::wire::primitive::{Context, DecodeError, Reader, Uuid, Wire};

/// The longest name, id or text in a record: lengths are `int16`, and a member id is longer than
/// the name it is made of.
pub(super) const NAME_BYTES_MAX: usize = 32_000;

const OFFSET_KEY: i16 = 1;
const GROUP_KEY: i16 = 2;
const OFFSET_VALUE: i16 = 3;
const EXPIRING_OFFSET_VALUE: i16 = 1;
const GROUP_VALUE: i16 = 3;
const VALUE_MAX: i16 = 4;

/// A record's key and value; a value of `None` is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Bytes,
    pub value: Option<Bytes>,
}

messages! {
    OffsetKey<'a> {
        group: &'a str = "", 0..;
        topic: &'a str = "", 0..;
        partition: i32 = 0, 0..;
    }

    GroupKey<'a> {
        group: &'a str = "", 0..;
    }

    OffsetValue<'a> {
        offset: i64 = 0, 0..;
        leader_epoch: i32 = -1, 3..;
        metadata: &'a str = "", 0..;
        commit_timestamp: i64 = 0, 0..;
        expire_timestamp: i64 = -1, 1..=1;
        topic_id: Uuid = Uuid::ZERO, 4.., tag 0 in 4..;
    }

    MemberValue<'a> {
        member_id: &'a str = "", 0..;
        group_instance_id: Option<&'a str> = None, 3.., null 3..;
        client_id: &'a str = "", 0..;
        client_host: &'a str = "", 0..;
        rebalance_timeout: i32 = -1, 1..;
        session_timeout: i32 = 0, 0..;
        subscription: &'a [u8] = &[], 0..;
        assignment: &'a [u8] = &[], 0..;
    }

    GroupValue<'a> {
        protocol_type: &'a str = "", 0..;
        generation: i32 = 0, 0..;
        protocol: Option<&'a str> = None, 0.., null 0..;
        leader: Option<&'a str> = None, 0.., null 0..;
        current_state_timestamp: i64 = -1, 2..;
        members: Vec<MemberValue<'a>> = Vec::new(), 0..;
    }
}

/// Why a record is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    /// The value is of a version from a newer broker.
    ValueVersion(i16),
    Fields(DecodeError),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::ValueVersion(version) => {
                write!(f, "its value has version {version}, and {VALUE_MAX} is the newest known")
            }
            RecordError::Fields(error) => error.fmt(f),
        }
    }
}

impl From<DecodeError> for RecordError {
    fn from(error: DecodeError) -> RecordError {
        RecordError::Fields(error)
    }
}

/// What a key names.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Key<'a> {
    Offset(OffsetKey<'a>),
    Group(GroupKey<'a>),
    /// Of another kind of group, or from a newer broker; Kafka passes over them as well.
    Other,
}

pub(super) fn decode_key(bytes: &[u8]) -> Result<Key<'_>, RecordError> {
    let mut reader = Reader::new(bytes);
    let context = Context { version: reader.i16()?, flexible: false };
    let key = match context.version {
        0 | OFFSET_KEY => Key::Offset(OffsetKey::decode(&mut reader, context)?),
        GROUP_KEY => Key::Group(GroupKey::decode(&mut reader, context)?),
        _ => Key::Other,
    };
    Ok(key)
}

pub(super) fn decode_value<'a, T: Wire<'a>>(bytes: &'a [u8]) -> Result<T, RecordError> {
    let mut reader = Reader::new(bytes);
    let version = reader.i16()?;
    if !(0..=VALUE_MAX).contains(&version) {
        return Err(RecordError::ValueVersion(version));
    }
    Ok(T::decode(&mut reader, Context { version, flexible: version >= 4 })?)
}

fn encode<'a>(version: i16, fields: &impl Wire<'a>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(version);
    fields.encode(&mut out, Context { version, flexible: false });
    out.freeze()
}

pub(super) fn offset_record(group: &str, change: &Change) -> Record {
    let tombstone = offset_tombstone(group, &change.topic, change.partition);
    let value = change.to.as_ref().map(|committed| {
        let expires = committed.expires_at;
        encode(
            expires.map_or(OFFSET_VALUE, |_| EXPIRING_OFFSET_VALUE),
            &OffsetValue {
                offset: committed.offset,
                leader_epoch: committed.leader_epoch,
                metadata: &committed.metadata,
                commit_timestamp: committed.committed_at.0,
                expire_timestamp: expires.map_or(-1, |at| at.0),
                ..OffsetValue::default()
            },
        )
    });
    Record { value, ..tombstone }
}

pub(super) fn offset_tombstone(group: &str, topic: &str, partition: i32) -> Record {
    Record { key: encode(OFFSET_KEY, &OffsetKey { group, topic, partition }), value: None }
}

pub(super) fn group_tombstone(group: &str) -> Record {
    Record { key: encode(GROUP_KEY, &GroupKey { group }), value: None }
}

/// The group as it is, with `assignments` instead of those that the members have if given.
pub(super) fn group_record(group: &Group, assignments: Option<&BTreeMap<String, Bytes>>) -> Record {
    let protocol = group.protocol.as_deref().unwrap_or("");
    let members = group.members.iter().map(|(member_id, member)| {
        let given = assignments.map(|assignments| assignments.get(member_id));
        let assignment = given.unwrap_or(Some(&member.assignment));
        MemberValue {
            member_id,
            group_instance_id: member.instance_id.as_deref(),
            client_id: &member.client_id,
            client_host: &member.client_host,
            rebalance_timeout: i32::try_from(member.rebalance_timeout.as_millis())
                .unwrap_or(i32::MAX),
            session_timeout: i32::try_from(member.session_timeout.as_millis()).unwrap_or(i32::MAX),
            subscription: member.metadata(protocol).map_or(&[], Bytes::as_ref),
            assignment: assignment.map_or(&[], Bytes::as_ref),
        }
    });
    let value = GroupValue {
        protocol_type: group.protocol_type.as_deref().unwrap_or(""),
        generation: group.generation,
        protocol: group.protocol.as_deref(),
        leader: group.leader.as_deref(),
        current_state_timestamp: group.state_since.map_or(-1, |since| since.0),
        members: members.collect(),
    };
    Record { value: Some(encode(GROUP_VALUE, &value)), ..group_tombstone(&group.id) }
}

impl OffsetValue<'_> {
    pub(super) fn committed(&self) -> Committed {
        let expires = Some(self.expire_timestamp).filter(|at| *at >= 0);
        Committed {
            offset: self.offset,
            leader_epoch: self.leader_epoch,
            metadata: self.metadata.into(),
            committed_at: UnixMillis(self.commit_timestamp),
            expires_at: expires.map(UnixMillis),
        }
    }
}
