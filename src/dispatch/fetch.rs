//! Fetch across cores: one look at every owner, and one wait over all of them.

use std::sync::Arc;

use crate::base::ids::CoreId;
use crate::base::time::Instant;
use crate::io::Io;
use crate::partition::{FetchPart, FetchWait, FetchWatch, FetchedPart};

use super::Dispatch;

/// A fetch request in the broker's terms.
#[derive(Clone, Debug)]
pub struct FetchPlan {
    /// In the order in which they are served.
    pub parts: Vec<FetchPart>,
    /// Of the whole answer; the first batch found is given even if it is larger.
    pub bytes_max: usize,
    /// The answer waits for this many bytes ...
    pub bytes_min: usize,
    /// ... but no longer than this.
    pub deadline: Instant,
}

impl<I: Io> Dispatch<I> {
    /// Reads what there is, waiting as the plan says. The answers are in the order of the parts.
    pub async fn fetch(&self, plan: FetchPlan) -> Vec<FetchedPart> {
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

    async fn fetch_now(&self, plan: &FetchPlan) -> Vec<FetchedPart> {
        let shares = self.split(&plan.parts);
        if let [(core, _, _)] = shares.as_slice()
            && self.is_local(*core)
        {
            return self.owner.read_all(&plan.parts, plan.bytes_max).await;
        }
        let share_bytes_max = plan.bytes_max / shares.len().max(1);
        let asked = shares.into_iter().map(|(core, slots, parts)| async move {
            let count = parts.len();
            let found =
                self.call(core, move |owner| async move {
                    owner.read_all(&parts, share_bytes_max).await
                })
                .await;
            (slots, found.unwrap_or_else(|_| vec![FetchedPart::owner_gone(); count]))
        });
        let found = futures_util::future::join_all(asked).await;
        merge(plan, found)
    }

    async fn watch(&self, plan: &FetchPlan) -> FetchWait {
        let (watch, wait) = FetchWatch::new(plan.bytes_min.try_into().unwrap_or(u64::MAX));
        let asked = self.split(&plan.parts).into_iter().map(|(core, _, parts)| {
            let watch: Arc<FetchWatch> = watch.clone();
            self.call(core, move |owner| async move { owner.watch_all(&parts, &watch) })
        });
        for outcome in futures_util::future::join_all(asked).await {
            if outcome.is_err() {
                watch.fire();
            }
        }
        wait
    }

    fn split(&self, parts: &[FetchPart]) -> Vec<(CoreId, Vec<usize>, Vec<FetchPart>)> {
        let mut shares: Vec<(CoreId, Vec<usize>, Vec<FetchPart>)> = Vec::new();
        for (slot, part) in parts.iter().enumerate() {
            let core = self.owner_of(part.partition);
            match shares.iter_mut().find(|(owner, ..)| *owner == core) {
                Some((_, slots, parts)) => {
                    slots.push(slot);
                    parts.push(*part);
                }
                None => shares.push((core, vec![slot], vec![*part])),
            }
        }
        shares
    }
}

/// Puts the shares back into the order of the request and cuts what exceeds its limit: each owner
/// gives its first batch whatever its size, the whole answer only one such.
fn merge(plan: &FetchPlan, found: Vec<(Vec<usize>, Vec<FetchedPart>)>) -> Vec<FetchedPart> {
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
            }
            bytes += part.bytes();
            part
        })
        .collect()
}
