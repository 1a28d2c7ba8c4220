//! Groups from their records: a restart goes on with the generations it finds.
//!
//! A member of a stable generation needs to do nothing but be heard of within its session timeout.

use std::fmt;

use bytes::Bytes;

use super::coordinator::Groups;
use super::member::{Member, Waiting, millis};
use super::message::{Now, WriteId};
use super::offsets::Change;
use super::records::{self, GroupValue, Key, MemberValue, OffsetValue, RecordError};
use super::state::{Group, State};
use crate::base::time::{Instant, UnixMillis};

/// A record of `__consumer_offsets` that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayError {
    /// The group it is about, if the key could be read.
    group: Option<String>,
    error: RecordError,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "a record of group `{group}` cannot be read: {}", self.error),
            None => write!(f, "the key of a record of __consumer_offsets: {}", self.error),
        }
    }
}

impl std::error::Error for ReplayError {}

impl Groups {
    /// Takes one record, in the order of their offsets, before `loaded`. A record in error changes
    /// nothing.
    pub fn replay(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), ReplayError> {
        let key = records::decode_key(key).map_err(|error| ReplayError { group: None, error })?;
        let of_group = |group: &str, error| ReplayError { group: Some(group.to_owned()), error };
        match key {
            Key::Other => {}
            Key::Offset(key) => {
                let value: Option<OffsetValue<'_>> = value
                    .map(records::decode_value)
                    .transpose()
                    .map_err(|error| of_group(key.group, error))?;
                let to = value.map(|value| value.committed());
                let topic = key.topic.to_owned();
                let change = Change { topic, partition: key.partition, to };
                self.replayed(key.group).offsets.apply(vec![change], WriteId::default());
            }
            Key::Group(key) => {
                let value: Option<GroupValue<'_>> = value
                    .map(records::decode_value)
                    .transpose()
                    .map_err(|error| of_group(key.group, error))?;
                self.replayed(key.group).restore(value.as_ref());
            }
        }
        Ok(())
    }

    /// All records were replayed: silence counts from here.
    pub fn loaded(&mut self, now: Now) {
        self.start(now);
    }
}

impl Group {
    fn restore(&mut self, value: Option<&GroupValue<'_>>) {
        let offsets = std::mem::take(&mut self.offsets);
        *self = Group { offsets, ..Group::new(&self.id) };
        let Some(value) = value else { return };
        self.recorded = true;
        self.generation = value.generation;
        self.protocol_type = Some(value.protocol_type).filter(|t| !t.is_empty()).map(str::to_owned);
        self.state_since =
            Some(value.current_state_timestamp).filter(|at| *at >= 0).map(UnixMillis);
        let protocol = value.protocol.unwrap_or("");
        for of_member in &value.members {
            let member_id = of_member.member_id.to_owned();
            // No broker writes a member or an instance twice: of a damaged pair the later counts.
            let earlier = self.members.remove(&member_id);
            earlier.and_then(|earlier| self.statics.remove(&earlier.instance_id?));
            if let Some(instance_id) = of_member.group_instance_id {
                let earlier = self.statics.insert(instance_id.to_owned(), member_id.clone());
                earlier.and_then(|earlier| self.members.remove(&earlier));
            }
            self.members.insert(member_id, restored(of_member, protocol));
        }
        if self.members.is_empty() {
            return;
        }
        self.state = State::Stable;
        self.protocol = Some(protocol.to_owned());
        let leader = value.leader.filter(|leader| self.members.contains_key(*leader));
        let leader = leader.map(str::to_owned);
        self.leader = leader.or_else(|| self.members.keys().next().cloned());
        self.subscribed = self.subscribed_topics();
    }
}

fn restored(value: &MemberValue<'_>, protocol: &str) -> Member {
    let session_timeout = millis(value.session_timeout);
    let rebalance_timeout = value.rebalance_timeout;
    Member {
        instance_id: value.group_instance_id.map(str::to_owned),
        client_id: value.client_id.to_owned(),
        client_host: value.client_host.to_owned(),
        session_timeout,
        rebalance_timeout: if rebalance_timeout < 0 {
            session_timeout
        } else {
            millis(rebalance_timeout)
        },
        protocols: vec![(protocol.to_owned(), Bytes::copy_from_slice(value.subscription))],
        assignment: Bytes::copy_from_slice(value.assignment),
        waiting: Waiting::Nothing,
        is_new: false,
        silent_until: Instant::NEVER,
    }
}
