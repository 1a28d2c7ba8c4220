//! What time alone does to a group: silent members, lapsed ids, ended waits, offsets past their
//! retention (KIP-211).

use super::offsets::{Change, Committed};
use super::state::{Group, State, Step};
use crate::base::time::UnixMillis;
use crate::wire::error::ErrorCode;

impl Group {
    /// Acts on every deadline that has come; a deadline that was moved since is found in the
    /// future and left alone.
    pub(super) fn timeout(&mut self, step: &mut Step<'_>) {
        let now = step.now.monotonic;
        let ids_before = self.pending_joins.len();
        self.pending_joins.retain(|_, lapses| *lapses > now);
        let ids_lapsed = self.pending_joins.len() != ids_before;
        let members_lost = self.lose_silent_members(step) | self.lose_unsynced_members(step);
        if members_lost {
            self.rebalance(step);
        } else if ids_lapsed {
            self.complete_if_all_joined(step);
        }
        if let State::PreparingRebalance { deadline, .. } = self.state
            && deadline <= now
        {
            self.join_time_is_over(step);
        }
    }

    fn lose_silent_members(&mut self, step: &mut Step<'_>) -> bool {
        let now = step.now.monotonic;
        let silent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(member_id, _)| member_id.clone())
            .collect();
        self.lose(silent, step)
    }

    fn lose_unsynced_members(&mut self, step: &mut Step<'_>) -> bool {
        let now = step.now.monotonic;
        match self.unsynced.take_if(|unsynced| unsynced.deadline <= now) {
            Some(unsynced) => self.lose(unsynced.members.into_iter().collect(), step),
            None => false,
        }
    }

    fn lose(&mut self, member_ids: Vec<String>, step: &mut Step<'_>) -> bool {
        for member_id in &member_ids {
            self.remove_member(member_id, ErrorCode::UNKNOWN_MEMBER_ID, step);
        }
        !member_ids.is_empty()
    }

    /// Drops offsets past their retention, and the group if nothing is left of it. Waits for
    /// another time while writes are open, so that each is dropped once.
    pub(super) fn expire_offsets(&mut self, step: &mut Step<'_>) {
        if !self.writes.is_empty() || self.state == State::Dead {
            return;
        }
        let retention = i64::try_from(step.settings.offsets_retention.as_millis());
        let retention = retention.unwrap_or(i64::MAX);
        let changes: Vec<Change> = self
            .offsets
            .iter()
            .filter(|(topic, _, committed)| {
                self.expiry(topic, committed, retention).is_some_and(|at| at <= step.now.wall)
            })
            .map(|(topic, partition, _)| Change { topic: topic.to_owned(), partition, to: None })
            .collect();
        self.write_changes(changes, None, step);
        let is_left = self.state == State::Empty && self.pending_joins.is_empty();
        if is_left && self.recorded && self.offsets.is_empty() {
            self.bury(None, step);
        }
    }

    /// When an offset expires; `None` while it is in use.
    fn expiry(&self, topic: &str, committed: &Committed, retention: i64) -> Option<UnixMillis> {
        let base = if self.protocol_type.is_none() {
            committed.committed_at
        } else if self.state == State::Empty {
            // Kafka takes the first of the two only, and may drop what was committed a moment ago.
            self.state_since.unwrap_or(committed.committed_at).max(committed.committed_at)
        } else if self.state == State::Stable
            && self.subscribed.as_ref().is_some_and(|topics| !topics.contains(topic))
        {
            committed.committed_at
        } else {
            return None;
        };
        Some(committed.expires_at.unwrap_or(UnixMillis(base.0.saturating_add(retention))))
    }

    /// The topics are gone: nobody can use offsets in them.
    pub(super) fn forget_topics(&mut self, topics: &[String], step: &mut Step<'_>) {
        let changes: Vec<Change> = self
            .offsets
            .iter()
            .filter(|(topic, _, _)| topics.iter().any(|gone| gone == topic))
            .map(|(topic, partition, _)| Change { topic: topic.to_owned(), partition, to: None })
            .collect();
        self.write_changes(changes, None, step);
    }
}
