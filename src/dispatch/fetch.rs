//! Fetch across cores: one look at every owner, and one wait over all of them.

use std::rc::Rc;
use std::sync::Arc;

use crate::base::few::Few;
use crate::base::ids::CoreId;
use crate::base::time::Instant;
use crate::io::Io;
use crate::partition::{FetchPart, FetchWait, FetchWatch, FetchedPart, Owner};

use super::Dispatch;

/// A fetch request in the broker's terms.
#[derive(Clone, Debug)]
pub struct FetchPlan {
    /// In the order in which they are served.
    pub parts: Few<FetchPart>,
    /// Of the whole answer; the first batch found is given even if it is larger.
    pub bytes_max: usize,
    /// The answer waits for this many bytes ...
    pub bytes_min: usize,
    /// ... but no longer than this.
    pub deadline: Instant,
}

impl<I: Io> Dispatch<I> {
    /// Reads what there is, waiting as the plan says. The answers are in the order of the parts.
    pub async fn fetch(&self, plan: FetchPlan) -> Few<FetchedPart> {
        let found = self.fetch_now(&plan).await;
        if self.is_enough(&plan, &found) {
            return found;
        }
        let wait = self.watch(&plan).await;
        let timer = std::pin::pin!(self.owner.io().sleep_until(plan.deadline));
        let fired = std::pin::pin!(wait.fired());
        let either = futures_util::future::select(fired, timer);
        futures_util::future::select(either, self.stopping.clone()).await;
        self.fetch_now(&plan).await
    }

    fn is_enough(&self, plan: &FetchPlan, found: &[FetchedPart]) -> bool {
        let bytes: usize = found.iter().map(FetchedPart::bytes).sum();
        bytes >= plan.bytes_min
            || plan.deadline <= self.owner.io().now()
            || found.iter().any(FetchedPart::is_error)
            || plan.parts.is_empty()
    }

    async fn fetch_now(&self, plan: &FetchPlan) -> Few<FetchedPart> {
        match self.only_owner(plan.parts.iter().map(|part| part.partition)) {
            Some(core) if self.is_local(core) => {
                return self.owner.answer_all(&plan.parts, plan.bytes_max).await;
            }
            Some(core) => return self.read_on(core, plan.parts.clone(), plan.bytes_max).await,
            None => {}
        }
        let shares = self.split(&plan.parts);
        let share_bytes_max = plan.bytes_max / shares.len().max(1);
        let asked = shares.into_iter().map(|(core, slots, parts)| async move {
            (slots, self.read_on(core, parts, share_bytes_max).await)
        });
        let found = futures_util::future::join_all(asked).await;
        merge(plan, found)
    }

    async fn read_on(
        &self,
        core: CoreId,
        parts: Few<FetchPart>,
        bytes_max: usize,
    ) -> Few<FetchedPart> {
        let count = parts.len();
        let work =
            move |owner: Rc<Owner<I>>| async move { owner.answer_all(&parts, bytes_max).await };
        let found = self.call(core, work).await;
        found.unwrap_or_else(|_| Few::from_elem(FetchedPart::owner_gone(), count))
    }

    async fn watch(&self, plan: &FetchPlan) -> FetchWait {
        let (watch, wait) = self.watches.begin(plan.bytes_min.try_into().unwrap_or(u64::MAX));
        match self.only_owner(plan.parts.iter().map(|part| part.partition)) {
            Some(core) if self.is_local(core) => self.owner.watch_all(&plan.parts, &watch),
            Some(core) => self.watch_on(core, plan.parts.clone(), &watch).await,
            None => {
                let shares = self.split(&plan.parts).into_iter();
                let asked = shares.map(|(core, _, parts)| self.watch_on(core, parts, &watch));
                futures_util::future::join_all(asked).await;
            }
        }
        wait
    }

    async fn watch_on(&self, core: CoreId, parts: Few<FetchPart>, watch: &Arc<FetchWatch>) {
        let seen = watch.clone();
        let work = move |owner: Rc<Owner<I>>| async move { owner.watch_all(&parts, &seen) };
        if self.call(core, work).await.is_err() {
            watch.fire();
        }
    }

    fn split(&self, parts: &[FetchPart]) -> Vec<(CoreId, Vec<usize>, Few<FetchPart>)> {
        let mut shares: Vec<(CoreId, Vec<usize>, Few<FetchPart>)> = Vec::new();
        for (slot, part) in parts.iter().enumerate() {
            let core = self.owner_of(part.partition);
            match shares.iter_mut().find(|(owner, ..)| *owner == core) {
                Some((_, slots, parts)) => {
                    slots.push(slot);
                    parts.push(*part);
                }
                None => shares.push((core, vec![slot], Few::from_elem(*part, 1))),
            }
        }
        shares
    }
}

/// Puts the shares back into the order of the request and cuts what exceeds its limit: each owner
/// gives its first batch whatever its size, the whole answer only one such.
fn merge(plan: &FetchPlan, found: Vec<(Vec<usize>, Few<FetchedPart>)>) -> Few<FetchedPart> {
    let mut merged: Vec<Option<FetchedPart>> = vec![None; plan.parts.len()];
    for (slots, parts) in found {
        for (slot, part) in slots.into_iter().zip(parts) {
            if let Some(place) = merged.get_mut(slot) {
                *place = Some(part);
            }
        }
    }
    let mut bytes = 0;
    let answers = merged.into_iter().map(|part| part.unwrap_or_else(FetchedPart::owner_gone));
    answers
        .zip(&plan.parts)
        .map(|(mut part, asked)| {
            let bytes_max = plan.bytes_max.saturating_sub(bytes).min(asked.bytes_max);
            if bytes > 0 && part.bytes() > bytes_max {
                part.records.clear();
                part.held = None;
            }
            bytes += part.bytes();
            part
        })
        .collect()
}
