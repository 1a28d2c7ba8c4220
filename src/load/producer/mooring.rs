//! How a producer's partitions change lanes, and how their batches are numbered anew.
//!
//!     on a lane ─ leader changed, batch given up ─► adrift ─ none in flight, a leader ─► on a lane
//!
//! Pure. Invariants P4 and P5 of the module above.

use std::sync::Arc;

use super::{Batch, Lane, Producer};
use crate::load::recorder::Recorder;
use crate::load::route::{NOBODY, Route};

impl Producer {
    /// The lane's broker cannot be reached.
    pub fn unreached(&mut self) {
        self.is_in_doubt = true;
    }

    /// Whether the route is in doubt since the last call.
    pub fn doubts(&mut self) -> bool {
        std::mem::take(&mut self.is_in_doubt)
    }

    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Takes over newer metadata: partitions go to the lanes of their new leaders.
    pub fn follow(&mut self, route: Arc<Route>, now: u64) {
        let lanes = route.brokers().len().max(self.lanes.len());
        self.lanes.resize_with(lanes, Lane::default);
        let old = std::mem::replace(&mut self.route, route);
        for place in 0..self.places.len() {
            if old.leader(place) != self.route.leader(place) {
                self.cast_off(place);
                self.moor(place, now);
            }
        }
    }

    /// Takes the partition off its lane.
    fn cast_off(&mut self, place: usize) {
        let Some(slot) = self.places.get_mut(place) else { return };
        let lane_at = std::mem::replace(&mut slot.lane, NOBODY);
        let Some(lane) = self.lanes.get_mut(lane_at) else { return };
        lane.full.retain(|other| *other != place);
        lane.lingering.retain(|(other, ..)| *other != place);
        let adrift = lane.again.extract_if(.., |_, batch| batch.place() == place);
        self.adrift.extend(adrift);
    }

    /// Gives a partition that is adrift to its leader's lane, if nothing keeps it.
    pub(super) fn moor(&mut self, place: usize, now: u64) {
        let Some(slot) = self.places.get(place) else { return };
        if slot.lane != NOBODY || slot.in_flight > 0 {
            return;
        }
        let leader = self.route.leader(place);
        let Some(lane) = self.lanes.get_mut(leader) else { return };
        let was_empty = lane.again.is_empty();
        lane.again.extend(self.adrift.extract_if(.., |_, batch| batch.place() == place));
        if was_empty {
            lane.again_at = now;
        }
        let again = lane.again.values().find(|batch| batch.place() == place);
        let (open, closed) = (self.places.opened(place), self.places.closed(place));
        if let Some(open) = open {
            lane.lingering.push_back((place, open.order, open.ready));
        }
        if closed.is_some() {
            lane.full.push_back(place);
        }
        let first = again.or(closed).or(open).map(|batch| batch.first_sequence);
        let Some(slot) = self.places.get_mut(place) else { return };
        slot.lane = leader;
        if std::mem::take(&mut slot.is_new_epoch) {
            slot.base = first.unwrap_or(slot.next_sequence);
        }
    }

    /// One batch of the partition is no longer in flight.
    pub(super) fn landed(&mut self, place: usize) {
        if let Some(slot) = self.places.get_mut(place) {
            slot.in_flight = slot.in_flight.saturating_sub(1);
        }
    }

    /// Gives up repeated batches that are too old.
    pub fn expire(&mut self, now: u64, recorder: &mut Recorder) {
        let mut old: Vec<Batch> = Vec::new();
        for again in self.lanes.iter_mut().map(|lane| &mut lane.again).chain([&mut self.adrift]) {
            old.extend(again.extract_if(.., |_, batch| batch.is_old(now)).map(|(_, batch)| batch));
        }
        for batch in old {
            let place = batch.place();
            recorder.error("DELIVERY_TIMEOUT");
            self.give_up(batch, recorder);
            self.moor(place, now);
        }
    }

    /// Gives up a batch in the middle of the run: an idempotent producer goes on with a new epoch,
    /// as the broker takes no number behind a hole.
    pub(super) fn give_up(&mut self, batch: Batch, recorder: &mut Recorder) {
        let place = batch.place();
        self.fail(batch, recorder);
        if self.transaction.is_some() {
            return self.doom(recorder);
        }
        if !self.shape.plan.idempotent {
            return;
        }
        self.cast_off(place);
        if let Some(slot) = self.places.get_mut(place) {
            slot.epoch = slot.epoch.wrapping_add(1);
            slot.is_new_epoch = true;
            slot.is_known = false;
        }
        let is_uncertain = |batch: &Batch| batch.place() == place && batch.is_uncertain;
        let uncertain = self.adrift.extract_if(.., |_, batch| is_uncertain(batch));
        for batch in uncertain.map(|(_, batch)| batch).collect::<Vec<_>>() {
            self.fail(batch, recorder);
        }
    }

    /// Whether the numbering began anew while the batch was in flight.
    pub(super) fn is_outdated(&self, batch: &Batch) -> bool {
        self.places.get(batch.place()).is_some_and(|slot| slot.epoch != batch.epoch)
    }
}

/// A sequence number on the wire: they go on with 0 after the largest one.
pub(super) fn number(sequence: u64, base: u64) -> i32 {
    i32::try_from(sequence.saturating_sub(base) % (1 << 31)).unwrap_or(0)
}
