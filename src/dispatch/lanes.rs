//! The two mailboxes into each core: appends, which keep their order, and calls, which do not wait
//! behind them.

use std::rc::Rc;

use crate::base::few::Few;
use crate::base::limits;
use crate::io::Io;
use crate::io::mailbox::{Receiver, Sender, mailbox};
use crate::partition::{Acks, Owner, ProducePart, ProduceReply};

/// Work for another core.
pub(super) type Call<I> = Box<dyn FnOnce(Rc<Owner<I>>) + Send>;

/// A produce request's share of one core.
pub(super) struct Append {
    pub parts: Few<ProducePart>,
    pub acks: Acks,
    pub reply: ProduceReply,
}

/// The way into one core, for all others.
pub struct Lanes<I: Io> {
    pub(super) appends: Sender<Append>,
    pub(super) calls: Sender<Call<I>>,
}

impl<I: Io> Clone for Lanes<I> {
    fn clone(&self) -> Self {
        Lanes { appends: self.appends.clone(), calls: self.calls.clone() }
    }
}

/// The owner's end of its lanes.
pub struct LanesEnd<I: Io> {
    appends: Receiver<Append>,
    calls: Receiver<Call<I>>,
}

/// The lanes of one core.
pub fn lanes<I: Io>() -> (Lanes<I>, LanesEnd<I>) {
    let (appends_in, appends) = mailbox(limits::LANE_MESSAGES_MAX);
    let (calls_in, calls) = mailbox(limits::LANE_MESSAGES_MAX);
    (Lanes { appends: appends_in, calls: calls_in }, LanesEnd { appends, calls })
}

impl<I: Io> LanesEnd<I> {
    /// Starts the two tasks that take messages out.
    pub(super) fn serve(self, owner: &Rc<Owner<I>>) {
        let LanesEnd { mut appends, mut calls } = self;
        let append_owner = owner.clone();
        owner.io().spawn("appends lane", async move {
            while let Some(Append { parts, acks, reply }) = appends.recv().await {
                append_owner.produce_from_afar(parts, acks, reply).await;
            }
        });
        let call_owner = owner.clone();
        owner.io().spawn("calls lane", async move {
            let mut taken = 0_u32;
            while let Some(call) = calls.recv().await {
                call(call_owner.clone());
                taken += 1;
                if taken.is_multiple_of(limits::MESSAGES_PER_TURN) {
                    call_owner.io().cede().await;
                }
            }
        });
    }
}
