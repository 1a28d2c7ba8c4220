//! All groups of one coordinator: which group an input is for, which one to wake when.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::describe::{Described, Listed};
use super::message::{Effect, Input, Now, Request, Settings, Ticket, Timer, WriteId};
use super::offsets::Committed;
use super::records::NAME_BYTES_MAX;
use super::state::{Group, OpenWrites, State, Step};
use crate::base::time::Instant;
use crate::wire::error::ErrorCode;

/// Groups that one `Timeout` looks at for expired offsets; the next one goes on with the rest.
const EXPIRY_GROUPS: usize = 1000;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Groups {
    settings: Settings,
    groups: BTreeMap<String, Slot>,
    wakes: BTreeSet<(Instant, String)>,
    writes: OpenWrites,
    expiry: Expiry,
}

#[derive(Clone, Debug)]
struct Slot {
    group: Group,
    /// As it stands in `wakes`. Never later than the group's next timeout; it may be earlier,
    /// for heartbeats do not move it.
    wake: Instant,
}

/// The round that looks for expired offsets.
#[derive(Clone, Debug)]
struct Expiry {
    next: Instant,
    /// The last group that the round under way has seen.
    after: Option<String>,
}

impl Groups {
    pub fn new(settings: Settings) -> Groups {
        Groups {
            settings,
            groups: BTreeMap::new(),
            wakes: BTreeSet::new(),
            writes: OpenWrites::default(),
            expiry: Expiry { next: Instant::ZERO, after: None },
        }
    }

    /// The only way in. Total: whatever comes is answered, never refused.
    pub fn handle(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Request { ticket, group_id, request } => {
                self.request(now, (ticket, group_id), request, effects);
            }
            Input::Written { write, error } => self.written(now, write, error, effects),
            Input::TopicsDeleted { topics } => {
                let ids: Vec<String> = self.groups.keys().cloned().collect();
                for id in ids {
                    self.within(now, &id, effects, |group, step| {
                        group.forget_topics(&topics, step)
                    });
                }
            }
            Input::Unloaded => self.unload(now, effects),
            Input::Timeout => self.timeout(now, effects),
        }
    }

    /// When to hand in `Input::Timeout`, and why; perhaps earlier than anything happens.
    pub fn next_timeout(&self) -> Option<(Instant, Timer)> {
        if self.groups.is_empty() {
            return None;
        }
        let expiry = (self.expiry.next, Timer::Expiry);
        let Some((at, id)) = self.wakes.first() else { return Some(expiry) };
        let timer = self.groups.get(id).and_then(|slot| slot.group.next_timeout());
        let timer = timer.map_or(Timer::Session, |(_, timer)| timer);
        Some(expiry.min((*at, timer)))
    }

    /// The durable offset of a partition.
    pub fn offset(&self, group_id: &str, topic: &str, partition: i32) -> Option<&Committed> {
        self.groups.get(group_id)?.group.offsets.get(topic, partition)
    }

    /// All durable offsets of a group, by topic and partition.
    pub fn offsets(&self, group_id: &str) -> impl Iterator<Item = (&str, i32, &Committed)> {
        self.groups.get(group_id).into_iter().flat_map(|slot| slot.group.offsets.iter())
    }

    /// A group and its members; `None` if there is none.
    pub fn describe(&self, group_id: &str) -> Option<Described> {
        let group = &self.groups.get(group_id)?.group;
        (group.state != State::Dead).then(|| group.describe())
    }

    pub fn list(&self) -> impl Iterator<Item = Listed> {
        let groups = self.groups.values().map(|slot| &slot.group);
        groups.filter(|group| group.state != State::Dead).map(Group::list)
    }

    fn request(
        &mut self,
        now: Now,
        (ticket, group_id): (Ticket, String),
        request: Request,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(error) = self.find_or_create(&group_id, &request) {
            effects.push(Effect::Answer { ticket, answer: request.refused(error) });
            return;
        }
        let keeps_deadlines = matches!(request, Request::Heartbeat(_));
        if keeps_deadlines {
            if let Some(slot) = self.groups.get_mut(&group_id) {
                let (settings, writes) = (&self.settings, &mut self.writes);
                slot.group.handle(ticket, request, &mut Step { now, settings, writes, effects });
            }
        } else {
            self.within(now, &group_id, effects, |group, step| group.handle(ticket, request, step));
        }
    }

    /// Makes sure that the group is there, or says why it is not and cannot be.
    fn find_or_create(&mut self, group_id: &str, request: &Request) -> Result<(), ErrorCode> {
        let is_membership = matches!(
            request,
            Request::Join(_) | Request::Sync(_) | Request::Heartbeat(_) | Request::Leave(_)
        );
        if (is_membership && group_id.is_empty()) || group_id.len() > NAME_BYTES_MAX {
            return Err(ErrorCode::INVALID_GROUP_ID);
        }
        if self.groups.contains_key(group_id) {
            return Ok(());
        }
        match request {
            Request::Join(join) if join.member_id.is_empty() => {}
            Request::Commit(commit) if commit.generation < 0 => {}
            Request::Commit(_) => return Err(ErrorCode::ILLEGAL_GENERATION),
            Request::DeleteGroup | Request::DeleteOffsets(_) => {
                return Err(ErrorCode::GROUP_ID_NOT_FOUND);
            }
            _ => return Err(ErrorCode::UNKNOWN_MEMBER_ID),
        }
        if self.groups.len() >= self.settings.groups_max {
            return Err(ErrorCode::COORDINATOR_NOT_AVAILABLE);
        }
        self.insert(group_id);
        Ok(())
    }

    fn insert(&mut self, group_id: &str) {
        let slot = Slot { group: Group::new(group_id), wake: Instant::NEVER };
        self.groups.insert(group_id.to_owned(), slot);
    }

    /// The group that a record is of.
    pub(super) fn replayed(&mut self, group_id: &str) -> &mut Group {
        let group = || Slot { group: Group::new(group_id), wake: Instant::NEVER };
        &mut self.groups.entry(group_id.to_owned()).or_insert_with(group).group
    }

    pub(super) fn start(&mut self, now: Now) {
        self.expiry.next = now.monotonic + self.settings.expiry_interval;
        let ids: Vec<String> = self.groups.keys().cloned().collect();
        for id in ids {
            self.within(now, &id, &mut Vec::new(), |group, step| {
                for member in group.members.values_mut() {
                    member.heard(step.now.monotonic);
                }
            });
        }
    }

    fn written(&mut self, now: Now, write: WriteId, error: ErrorCode, effects: &mut Vec<Effect>) {
        if let Some(group_id) = self.writes.open.remove(&write) {
            self.within(now, &group_id, effects, |group, step| group.written(write, error, step));
        }
    }

    /// Lets go of all groups. Their open writes, should they be reported, are nobody's.
    fn unload(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.writes.open.clear();
        self.wakes.clear();
        self.expiry.after = None;
        for slot in std::mem::take(&mut self.groups).into_values() {
            let (settings, writes) = (&self.settings, &mut self.writes);
            slot.group.unload(&mut Step { now, settings, writes, effects });
        }
    }

    fn timeout(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let due = self.wakes.iter().take_while(|(at, _)| *at <= now.monotonic);
        let due: Vec<String> = due.map(|(_, id)| id.clone()).collect();
        for id in due {
            self.within(now, &id, effects, Group::timeout);
        }
        if self.expiry.next <= now.monotonic {
            self.expire_some(now, effects);
        }
    }

    fn expire_some(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let from = match self.expiry.after.take() {
            Some(after) => Bound::Excluded(after),
            None => Bound::Unbounded,
        };
        let rest = self.groups.range::<String, _>((from, Bound::Unbounded));
        let ids: Vec<String> = rest.take(EXPIRY_GROUPS).map(|(id, _)| id.clone()).collect();
        if ids.len() < EXPIRY_GROUPS {
            self.expiry.next = now.monotonic + self.settings.expiry_interval;
        } else {
            self.expiry.after = ids.last().cloned();
        }
        for id in ids {
            self.within(now, &id, effects, Group::expire_offsets);
        }
    }

    /// One step of one group; afterwards it is awaited at its new deadline, or forgotten.
    fn within(
        &mut self,
        now: Now,
        group_id: &str,
        effects: &mut Vec<Effect>,
        act: impl FnOnce(&mut Group, &mut Step<'_>),
    ) {
        let Some(slot) = self.groups.get_mut(group_id) else { return };
        let (settings, writes) = (&self.settings, &mut self.writes);
        act(&mut slot.group, &mut Step { now, settings, writes, effects });
        let is_void = slot.group.is_void();
        let deadline = slot.group.next_timeout().map_or(Instant::NEVER, |(at, _)| at);
        let wake = if is_void { Instant::NEVER } else { deadline };
        if wake != slot.wake {
            self.wakes.remove(&(slot.wake, group_id.to_owned()));
            if wake != Instant::NEVER {
                self.wakes.insert((wake, group_id.to_owned()));
            }
            slot.wake = wake;
        }
        if is_void {
            self.groups.remove(group_id);
        }
    }

    /// Panics unless G1 to G8 hold, as far as one state shows them.
    pub fn check(&self) {
        for (id, slot) in &self.groups {
            assert_eq!(*id, slot.group.id);
            slot.group.check();
            assert!(!slot.group.is_void(), "{id} is kept for nothing");
            let deadline = slot.group.next_timeout().map_or(Instant::NEVER, |(at, _)| at);
            assert!(slot.wake <= deadline, "{id} is woken too late");
            for write in slot.group.writes.keys() {
                assert_eq!(self.writes.open.get(write), Some(id), "G8");
            }
        }
        let awake = self.groups.values().filter(|slot| slot.wake != Instant::NEVER);
        assert_eq!(awake.count(), self.wakes.len());
        let open: usize = self.groups.values().map(|slot| slot.group.writes.len()).sum();
        assert_eq!(open, self.writes.open.len(), "G8");
    }
}

/// The partition of `__consumer_offsets` that keeps a group: Java's hash of its UTF-16 units,
/// without the sign, modulo their number.
pub fn offsets_partition(group_id: &str, partitions: i32) -> i32 {
    let hash = |hash: i32, unit: u16| hash.wrapping_mul(31).wrapping_add(i32::from(unit));
    let hash = group_id.encode_utf16().fold(0, hash);
    hash.checked_abs().unwrap_or(0) % partitions.max(1)
}
