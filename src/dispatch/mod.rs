//! Dispatch: takes requests to the cores that own their partitions, and the answers back.
//!
//!     connection's core ── appends ──►  owner core      in order, admitted one by one
//!                       ── calls ────►                  each a task of its own
//!                       ◄── oneshot ──
//!
//! Lives on: every core, one instance. A share of the same core takes no hop.
//! Talks to: `partition`, the mailboxes of the other cores.
//!
//! Invariants
//!   D1  Appends of one connection reach a partition in the order of its requests.
//!   D2  A call never waits behind an append: reads go on while the disk is behind.
//!   D3  An owner that is gone gives an error for its share; it never leaves a request hanging.

mod fetch;
mod lanes;
mod produce;

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::Shared as Broadcast;

use crate::base::ids::{CoreId, PartitionId};
use crate::io::Io;
use crate::io::mailbox::oneshot;
use crate::metadata::Image;
use crate::partition::{Owner, Shared, Watches};

pub use fetch::FetchPlan;
pub use lanes::{Lanes, LanesEnd, lanes};
pub use produce::ProduceTicket;

use lanes::Call;

/// See the module's documentation.
pub struct Dispatch<I: Io> {
    owner: Rc<Owner<I>>,
    lanes: Rc<[Lanes<I>]>,
    watches: Rc<Watches>,
    /// Dropped when the core stops ...
    waiting: Rc<RefCell<Option<oneshot::Sender<()>>>>,
    /// ... which this resolves on.
    stopping: Broadcast<oneshot::Receiver<()>>,
}

impl<I: Io> Clone for Dispatch<I> {
    fn clone(&self) -> Self {
        Dispatch {
            owner: self.owner.clone(),
            lanes: self.lanes.clone(),
            watches: self.watches.clone(),
            waiting: self.waiting.clone(),
            stopping: self.stopping.clone(),
        }
    }
}

/// The core that was asked has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerGone;

impl<I: Io> Dispatch<I> {
    /// `lanes` leads to every core, by index; `inbox` is this core's own end of them.
    pub fn start(owner: Rc<Owner<I>>, lanes: Vec<Lanes<I>>, inbox: LanesEnd<I>) -> Dispatch<I> {
        assert_eq!(lanes.len(), usize::from(owner.shared().shards()), "lanes to every core");
        inbox.serve(&owner);
        let (waiting, stopping) = oneshot::channel();
        let waiting = Rc::new(RefCell::new(Some(waiting)));
        let (watches, stopping) = (Rc::default(), stopping.shared());
        Dispatch { owner, lanes: lanes.into(), watches, waiting, stopping }
    }

    /// The core stops: a fetch that waits answers with what is there.
    pub fn end_waits(&self) {
        self.waiting.borrow_mut().take();
    }

    /// The partitions of this core.
    pub fn local(&self) -> &Rc<Owner<I>> {
        &self.owner
    }

    pub fn shared(&self) -> &Arc<Shared> {
        self.owner.shared()
    }

    pub fn image(&self) -> Arc<Image> {
        self.owner.image()
    }

    pub fn owner_of(&self, id: PartitionId) -> CoreId {
        self.shared().owner_of(id)
    }

    /// All cores, in order.
    pub fn cores(&self) -> impl Iterator<Item = CoreId> + use<I> {
        (0..self.shared().shards()).map(CoreId)
    }

    /// The core that owns all of `partitions`, if it is one.
    fn only_owner(&self, mut partitions: impl Iterator<Item = PartitionId>) -> Option<CoreId> {
        let first = self.owner_of(partitions.next()?);
        partitions.all(|id| self.owner_of(id) == first).then_some(first)
    }

    fn is_local(&self, core: CoreId) -> bool {
        core == self.owner.core()
    }

    /// Runs `work` on `core` and returns its answer. For everything but the hot path.
    pub async fn call<R, F>(
        &self,
        core: CoreId,
        work: impl FnOnce(Rc<Owner<I>>) -> F + Send + 'static,
    ) -> Result<R, OwnerGone>
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
    {
        if self.is_local(core) {
            return Ok(work(self.owner.clone()).await);
        }
        let (reply, answer) = oneshot::channel();
        let call: Call<I> = Box::new(move |owner: Rc<Owner<I>>| {
            let io = owner.io().clone();
            io.spawn("call", async move {
                // The caller may have gone with its connection; the work is done all the same.
                drop(reply.send(work(owner).await));
            });
        });
        let lane = self.lanes.get(core.index()).ok_or(OwnerGone)?;
        lane.calls.send(call).await.map_err(|_| OwnerGone)?;
        answer.await.map_err(|_| OwnerGone)
    }

    /// Runs the same work on every core at once and collects the answers in the
    /// order of the cores; a core that is gone is left out.
    pub async fn call_all<R, F>(
        &self,
        work: impl Fn(Rc<Owner<I>>) -> F + Clone + Send + 'static,
    ) -> Vec<R>
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
    {
        let answers = self.cores().map(|core| self.call(core, work.clone()));
        let answers = futures_util::future::join_all(answers).await;
        answers.into_iter().flatten().collect()
    }
}
