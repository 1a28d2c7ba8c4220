//! A member of a group: what it said of itself, what it was given, and what it waits for.

use std::time::Duration;

use bytes::Bytes;

use super::message::{Join, Ticket};
use crate::base::time::Instant;

/// How long a new member may wait to be let in: it sends no heartbeats before, and nobody tells
/// when its connection is gone.
pub(super) const NEW_MEMBER_JOIN_TIME: Duration = Duration::from_secs(300);

/// The request of a member that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Nothing,
    Join(Ticket),
    Sync(Ticket),
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    /// Name and metadata, the preferred one first.
    pub protocols: Vec<(String, Bytes)>,
    pub assignment: Bytes,
    pub waiting: Waiting,
    /// It has never been in a generation.
    pub is_new: bool,
    /// It is lost unless it is heard of before.
    pub silent_until: Instant,
}

impl Member {
    pub fn new(join: Join, ticket: Ticket, now: Instant) -> Member {
        let session_timeout = millis(join.session_timeout_ms);
        Member {
            session_timeout,
            rebalance_timeout: join.rebalance_timeout(),
            instance_id: join.instance_id,
            client_id: join.client_id,
            client_host: join.client_host,
            protocols: join.protocols,
            assignment: Bytes::new(),
            waiting: Waiting::Join(ticket),
            is_new: true,
            silent_until: now + NEW_MEMBER_JOIN_TIME,
        }
    }

    pub fn is_joining(&self) -> bool {
        matches!(self.waiting, Waiting::Join(_))
    }

    /// When it is lost if nothing is heard of it. While it waits for us, it owes us nothing.
    pub fn deadline(&self) -> Option<Instant> {
        match self.waiting {
            Waiting::Nothing => Some(self.silent_until),
            Waiting::Join(_) if self.is_new => Some(self.silent_until),
            Waiting::Join(_) | Waiting::Sync(_) => None,
        }
    }

    pub fn heard(&mut self, now: Instant) {
        self.silent_until = now + self.session_timeout;
    }

    pub fn metadata(&self, protocol: &str) -> Option<&Bytes> {
        self.protocols.iter().find(|(name, _)| name == protocol).map(|(_, metadata)| metadata)
    }
}

impl Join {
    pub(super) fn rebalance_timeout(&self) -> Duration {
        let own = self.rebalance_timeout_ms;
        millis(if own < 0 { self.session_timeout_ms } else { own })
    }

    /// Bytes that the member makes the group keep.
    pub(super) fn bytes(&self) -> usize {
        let strings = self.client_id.len()
            + self.client_host.len()
            + self.instance_id.as_ref().map_or(0, String::len)
            + self.protocol_type.len();
        let protocols = self.protocols.iter().map(|(name, metadata)| name.len() + metadata.len());
        protocols.fold(strings, usize::saturating_add)
    }
}

/// Milliseconds of a setting or request; negative ones are none.
pub(super) fn millis(count: i32) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(0))
}
