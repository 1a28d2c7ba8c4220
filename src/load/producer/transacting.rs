//! What a transaction asks of its producer: to close it, to give it up, to number anew. Pure.

use bytes::Bytes;

use super::{Producer, Strange};
use crate::load::ledger::Ledger;
use crate::load::member::To;
use crate::load::recorder::Recorder;
use crate::load::transaction::Transaction;

impl Producer {
    pub fn is_transactional(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether its transactional id is another's.
    pub(super) fn is_fenced(&self) -> bool {
        self.transaction.as_ref().is_some_and(Transaction::is_fenced)
    }

    /// Whether no transaction waits for its end.
    pub(super) fn is_settled(&self) -> bool {
        self.transaction.as_ref().is_none_or(Transaction::is_idle)
    }

    pub(super) fn takes_records(&self) -> bool {
        self.transaction.as_ref().is_none_or(Transaction::takes_records)
    }

    pub(super) fn may_send(&self) -> bool {
        self.transaction.as_ref().is_none_or(Transaction::may_send)
    }

    pub(super) fn is_doomed(&self) -> bool {
        self.transaction.as_ref().is_some_and(Transaction::is_doomed)
    }

    pub(super) fn transaction_full_at(&self) -> Option<u64> {
        self.transaction.as_ref()?.full_at()
    }

    /// Closes the transaction if it is long enough or nothing follows: its batches do not linger.
    pub(super) fn close_transaction(&mut self, now: u64) {
        let is_past_the_end = self.is_past_the_end(now);
        let Some(transaction) = &mut self.transaction else { return };
        if !is_past_the_end && !transaction.is_full(now) {
            return;
        }
        for place in transaction.close() {
            self.close(place);
        }
    }

    /// Gives up the whole transaction; what is in flight is awaited.
    pub(super) fn doom(&mut self, recorder: &mut Recorder) {
        if let Some(transaction) = &mut self.transaction {
            transaction.doom();
            self.drop_unsent(recorder);
        }
    }

    /// Whether there is something to tell the coordinator.
    pub fn has_coordinator_request(&self, now: u64) -> bool {
        let transaction = self.transaction.as_ref();
        transaction.is_some_and(|transaction| transaction.has_request(now, self.batches))
    }

    /// What the coordinator is to be told, if it is time for that.
    pub fn coordinator_request(&mut self, now: u64, ledger: &mut Ledger) -> Option<(To, Bytes)> {
        let batches = self.batches;
        self.transaction.as_mut()?.request(now, batches, ledger)
    }

    /// The coordinator's answer to it: `frame` is what follows its length.
    pub fn coordinator_answer(
        &mut self,
        frame: &[u8],
        now: u64,
        recorder: &mut Recorder,
        ledger: &mut Ledger,
    ) -> Result<(), Strange> {
        let Some(transaction) = &mut self.transaction else { return Err(Strange) };
        let before = transaction.identity();
        transaction.answer(frame, now, recorder, ledger)?;
        let is_renewed = transaction.identity() != before;
        if transaction.is_doomed() {
            self.drop_unsent(recorder);
        }
        if is_renewed {
            for slot in self.places.iter_mut() {
                slot.base = slot.next_sequence;
                slot.is_known = false;
            }
        }
        Ok(())
    }

    /// The connection to the coordinator is gone, or was not made.
    pub fn coordinator_lost(&mut self, now: u64) {
        if let Some(transaction) = &mut self.transaction {
            transaction.lost(now);
        }
        self.unreached();
    }

    /// When there may be something to tell the coordinator, unless an answer comes before.
    pub fn coordinator_wake(&self, now: u64) -> Option<u64> {
        self.transaction.as_ref()?.next_wake(now)
    }
}
