//! Fetch across cores: one look at every owner, and one wait over all of them.

use std::rc::Rc;
use std::sync::Arc;

use crate::base::few::Few;
use crate::base::ids::CoreId;
use crate::base::time::Instant;
use crate::io::Io;
use crate::partition::{CoreSet, FetchPart, FetchWatch, FetchedPart, Owner};

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

/// The share of one owner in a plan.
struct Share {
    core: CoreId,
    /// For each part, its place in the plan.
    slots: Few<usize>,
    parts: Few<FetchPart>,
}

impl<I: Io> Dispatch<I> {
    /// Reads what there is, waiting as the plan says. The answers are in the order of the parts.
    ///
    /// Each owner is asked once, and registers the wait itself if it has not enough; once enough
    /// has come, only those are asked again who have something new.
    pub async fn fetch(&self, plan: FetchPlan) -> Few<FetchedPart> {
        let count = plan.parts.len();
        let mut found = Few::from_elem(FetchedPart::owner_gone(), count);
        if plan.parts.is_empty() || plan.deadline <= self.owner.io().now() {
            self.look(&plan, None, CoreSet::ALL, &mut found).await;
            return cut(&plan, found);
        }
        let (watch, wait) = self.watches.begin(plan.bytes_min.try_into().unwrap_or(u64::MAX));
        self.look(&plan, Some(&watch), CoreSet::ALL, &mut found).await;
        let is_met = watch.is_met_by(found.iter().map(FetchedPart::bytes).sum());
        // Whose wait ends is used again if nobody else knows of it.
        drop(watch);
        if is_met || found.iter().any(FetchedPart::is_error) {
            return cut(&plan, found);
        }
        let timer = std::pin::pin!(self.owner.io().sleep_until(plan.deadline));
        let fired = std::pin::pin!(wait.fired());
        let either = futures_util::future::select(fired, timer);
        futures_util::future::select(either, self.stopping.clone()).await;
        self.look(&plan, None, wait.news(), &mut found).await;
        cut(&plan, found)
    }

    /// Puts into `found` what the owners among `cores` have.
    async fn look(
        &self,
        plan: &FetchPlan,
        watch: Option<&Arc<FetchWatch>>,
        cores: CoreSet,
        found: &mut Few<FetchedPart>,
    ) {
        if let Some(core) = self.only_owner(plan.parts.iter().map(|part| part.partition)) {
            if !cores.holds(core) {
                return;
            }
            *found = if self.is_local(core) {
                answer(&self.owner, &plan.parts, plan.bytes_max, watch).await
            } else {
                self.look_on(core, plan.parts.clone(), plan.bytes_max, watch).await
            };
            return;
        }
        let shares = self.split(&plan.parts);
        let share_bytes_max = plan.bytes_max / shares.len().max(1);
        let asked = shares.into_iter().filter(|share| cores.holds(share.core));
        let asked = asked.map(|Share { core, slots, parts }| async move {
            (slots, self.look_on(core, parts, share_bytes_max, watch).await)
        });
        for (slots, parts) in futures_util::future::join_all(asked).await {
            for (slot, part) in slots.into_iter().zip(parts) {
                if let Some(place) = found.get_mut(slot) {
                    *place = part;
                }
            }
        }
    }

    async fn look_on(
        &self,
        core: CoreId,
        parts: Few<FetchPart>,
        bytes_max: usize,
        watch: Option<&Arc<FetchWatch>>,
    ) -> Few<FetchedPart> {
        let count = parts.len();
        let watch = watch.cloned();
        let work = move |owner: Rc<Owner<I>>| async move {
            answer(&owner, &parts, bytes_max, watch.as_ref()).await
        };
        let found = self.call(core, work).await;
        found.unwrap_or_else(|_| Few::from_elem(FetchedPart::owner_gone(), count))
    }

    fn split(&self, parts: &[FetchPart]) -> Few<Share> {
        let mut shares: Few<Share> = Few::new();
        for (slot, part) in parts.iter().enumerate() {
            let core = self.owner_of(part.partition);
            match shares.iter_mut().find(|share| share.core == core) {
                Some(share) => {
                    share.slots.push(slot);
                    share.parts.push(*part);
                }
                None => {
                    let (slots, parts) = (Few::from_elem(slot, 1), Few::from_elem(*part, 1));
                    shares.push(Share { core, slots, parts });
                }
            }
        }
        shares
    }
}

async fn answer<I: Io>(
    owner: &Rc<Owner<I>>,
    parts: &[FetchPart],
    bytes_max: usize,
    watch: Option<&Arc<FetchWatch>>,
) -> Few<FetchedPart> {
    match watch {
        Some(watch) => owner.answer_or_watch(parts, bytes_max, watch).await,
        None => owner.answer_all(parts, bytes_max).await,
    }
}

/// Cuts what exceeds the limit: each owner gives its first batch whatever its size, the whole
/// answer only one such.
fn cut(plan: &FetchPlan, mut found: Few<FetchedPart>) -> Few<FetchedPart> {
    let mut bytes = 0;
    for (part, asked) in found.iter_mut().zip(&plan.parts) {
        let bytes_max = plan.bytes_max.saturating_sub(bytes).min(asked.bytes_max);
        if bytes > 0 && part.bytes() > bytes_max {
            part.records.clear();
            part.held = None;
        }
        bytes += part.bytes();
    }
    found
}
