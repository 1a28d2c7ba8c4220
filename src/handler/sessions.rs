//! Fetch sessions (KIP-227): the partitions that a client reads, kept so that it need not name
//! them in every request.
//!
//! Lives on: every core; a client that comes back on another core begins a new session, as after a
//! restart.
//!
//! Invariants
//!   S1  Sessions of a core are at most `limits::FETCH_SESSIONS_MAX`; the one unused for longest
//!       makes place.
//!   S2  Their partitions are at most `limits::FETCH_SESSION_PARTITIONS_MAX` together, under names
//!       that topics may have; a client that wants more is served without a session.
//!   S3  An epoch is used once; after the largest `i32` comes 1.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::few::Few;
use crate::base::limits;
use crate::base::time::Instant;
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

/// A partition as the client names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey {
    /// Shared by the partitions of a topic: a request names them by the hundred thousand.
    pub name: Arc<str>,
    pub id: Uuid,
    pub partition: i32,
}

/// What the client last said of a partition, and what it was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPart {
    pub offset: i64,
    pub bytes_max: i32,
    pub leader_epoch: i32,
    /// High watermark and log start of the last answer; `None` before the first.
    pub told: Option<(i64, i64)>,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    epoch: i32,
    used: Instant,
    parts: BTreeMap<SessionKey, SessionPart>,
    /// The key after which the next answer begins, so that every partition gets its turn.
    turn: Option<SessionKey>,
    /// Its partitions, as they are counted in `Sessions::held`.
    counted: usize,
}

/// The sessions of one core.
#[derive(Debug, Default)]
pub struct Sessions {
    open: BTreeMap<i32, Session>,
    /// Partitions of all sessions.
    held: usize,
}

impl Sessions {
    pub fn new() -> Sessions {
        Sessions::default()
    }

    /// Opens a session over `parts` and returns its id; 0 if there is no room for so many.
    pub fn open(
        &mut self,
        parts: BTreeMap<SessionKey, SessionPart>,
        random: u64,
        now: Instant,
    ) -> i32 {
        if parts.is_empty() || !parts.keys().all(SessionKey::may_be_held) {
            return 0;
        }
        if self.open.len() >= limits::FETCH_SESSIONS_MAX {
            self.close_oldest_but(0);
        }
        let mut id = i32::try_from(random & 0x7fff_ffff).unwrap_or(1).max(1);
        while self.open.contains_key(&id) {
            id = if id == i32::MAX { 1 } else { id + 1 };
        }
        let session = Session { epoch: 1, used: now, parts, turn: None, counted: 0 };
        self.open.insert(id, session);
        if self.count(id) { id } else { 0 }
    }

    pub fn close(&mut self, id: i32) {
        if let Some(session) = self.open.remove(&id) {
            self.held -= session.counted;
        }
    }

    /// Counts the partitions of a session again. Older sessions make place for it; if that is not
    /// enough it is closed, and the answer is false.
    pub fn count(&mut self, id: i32) -> bool {
        let Some(session) = self.open.get_mut(&id) else { return false };
        self.held = self.held - session.counted + session.parts.len();
        session.counted = session.parts.len();
        while self.held > limits::FETCH_SESSION_PARTITIONS_MAX && self.close_oldest_but(id) {}
        let fits = self.held <= limits::FETCH_SESSION_PARTITIONS_MAX;
        if !fits {
            self.close(id);
        }
        fits
    }

    /// Closes the session unused for longest; false if there is none but `kept`.
    fn close_oldest_but(&mut self, kept: i32) -> bool {
        let others = self.open.iter().filter(|(id, _)| **id != kept);
        let oldest = others.min_by_key(|(_, session)| session.used).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.close(id);
        }
        oldest.is_some()
    }

    /// The session `id`, if `epoch` is the one that it expects.
    pub fn resume(&mut self, id: i32, epoch: i32, now: Instant) -> Result<&mut Session, ErrorCode> {
        let session = self.open.get_mut(&id).ok_or(ErrorCode::FETCH_SESSION_ID_NOT_FOUND)?;
        if session.epoch != epoch {
            return Err(ErrorCode::INVALID_FETCH_SESSION_EPOCH);
        }
        session.epoch = if epoch == i32::MAX { 1 } else { epoch + 1 };
        session.used = now;
        Ok(session)
    }

    /// Notes what an answer told of a partition; false if nothing changed since the last one.
    pub fn tell(&mut self, id: i32, key: &SessionKey, told: (i64, i64)) -> bool {
        let part = self.open.get_mut(&id).and_then(|session| session.parts.get_mut(key));
        part.is_none_or(|part| part.told.replace(told) != Some(told))
    }
}

impl SessionKey {
    pub fn may_be_held(&self) -> bool {
        self.name.len() <= limits::TOPIC_NAME_BYTES_MAX
    }
}

impl Session {
    pub fn set(&mut self, key: SessionKey, part: SessionPart) {
        let told = self.parts.get(&key).and_then(|known| known.told);
        self.parts.insert(key, SessionPart { told, ..part });
    }

    pub fn forget(&mut self, key: &SessionKey) {
        self.parts.remove(key);
    }

    /// All partitions, beginning behind the one that came first the last time.
    pub fn in_turn(&mut self) -> Few<(SessionKey, SessionPart)> {
        let all = || self.parts.iter().map(|(key, part)| (key.clone(), *part));
        let first = self.turn.take();
        let mut parts: Few<_> = all().collect();
        if let Some(first) = first {
            let at = parts.partition_point(|(key, _)| *key <= first);
            parts.rotate_left(at);
        }
        self.turn = parts.first().map(|(key, _)| key.clone());
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(partition: i32) -> SessionKey {
        SessionKey { name: "t".into(), id: Uuid::ZERO, partition }
    }

    const PART: SessionPart = SessionPart { offset: 0, bytes_max: 1, leader_epoch: -1, told: None };

    fn parts(count: i32) -> BTreeMap<SessionKey, SessionPart> {
        (0..count).map(|partition| (key(partition), PART)).collect()
    }

    #[test]
    fn sessions_hold_no_more_partitions_than_their_bound() {
        let most = i32::try_from(limits::FETCH_SESSION_PARTITIONS_MAX).expect("fits");
        let mut sessions = Sessions::new();
        let small = sessions.open(parts(10), 1, Instant(1));
        let large = sessions.open(parts(most - 5), 2, Instant(2));
        assert!(large != 0 && !sessions.open.contains_key(&small), "the older made place");
        assert_eq!(sessions.open(parts(most + 1), 3, Instant(3)), 0, "too many for a session");
        assert_eq!((sessions.held, sessions.open.len()), (0, 0));

        let id = sessions.open(parts(most), 4, Instant(4));
        sessions.resume(id, 1, Instant(5)).expect("open").set(key(most), PART);
        assert!(!sessions.count(id), "it has grown out of its bound");
        assert_eq!((sessions.held, sessions.open.len()), (0, 0));
        let long = SessionKey { name: "x".repeat(250).into(), ..key(0) };
        assert_eq!(sessions.open(BTreeMap::from([(long, PART)]), 5, Instant(6)), 0);
    }

    #[test]
    fn epochs_count_up_and_wrong_ones_are_refused() {
        let mut sessions = Sessions::new();
        let id = sessions.open(parts(1), 0, Instant::ZERO);
        assert!(sessions.resume(id, 1, Instant::ZERO).is_ok());
        let error = sessions.resume(id, 1, Instant::ZERO).err();
        assert_eq!(error, Some(ErrorCode::INVALID_FETCH_SESSION_EPOCH));
        assert!(sessions.resume(id, 2, Instant::ZERO).is_ok());
        sessions.close(id);
        let error = sessions.resume(id, 3, Instant::ZERO).err();
        assert_eq!(error, Some(ErrorCode::FETCH_SESSION_ID_NOT_FOUND));
    }

    #[test]
    fn every_partition_comes_first_in_its_turn() {
        let mut sessions = Sessions::new();
        let id = sessions.open(parts(3), 7, Instant::ZERO);
        let mut firsts = Vec::new();
        for epoch in 1..=4 {
            let session = sessions.resume(id, epoch, Instant::ZERO).expect("open");
            firsts.push(session.in_turn()[0].0.partition);
        }
        assert_eq!(firsts, [0, 1, 2, 0]);
    }

    #[test]
    fn the_session_unused_for_longest_makes_place() {
        let mut sessions = Sessions::new();
        let first = sessions.open(parts(1), 7, Instant(0));
        for number in 1..=limits::FETCH_SESSIONS_MAX as u64 {
            sessions.open(parts(1), 100 + number, Instant(number));
        }
        assert_eq!(sessions.open.len(), limits::FETCH_SESSIONS_MAX);
        assert!(!sessions.open.contains_key(&first));
    }
}
