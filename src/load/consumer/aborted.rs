//! Which batches of an answer belong to aborted transactions. Pure.
//!
//! The broker names the aborted transactions that overlap the answer, by producer and first offset;
//! each ends with its marker. So an answer is judged by itself (KIP-98, as Kafka's consumer does).

use std::collections::BTreeSet;

use crate::wire::api::fetch::AbortedTransaction;
use crate::wire::records::{BatchHeader, HEADER_BYTES, Records};

/// The type in a control record's key that ends a transaction by aborting it.
const ABORT: [u8; 2] = [0, 0];

/// See the module's documentation.
pub struct Aborted {
    /// By first offset, the last one first.
    ahead: Vec<(i64, i64)>,
    /// Producers whose records are aborted where we are.
    active: BTreeSet<i64>,
}

impl Aborted {
    pub fn new(named: Option<&[AbortedTransaction]>) -> Aborted {
        let named = named.unwrap_or_default().iter();
        let mut ahead: Vec<_> = named.map(|t| (t.first_offset, t.producer_id)).collect();
        ahead.sort_unstable_by(|one, two| two.cmp(one));
        Aborted { ahead, active: BTreeSet::new() }
    }

    /// Whether the next batch of the answer is aborted.
    pub fn hides(&mut self, header: &BatchHeader, batch: &[u8]) -> bool {
        while let Some((_, producer)) =
            self.ahead.pop_if(|(first, _)| *first < header.next_offset())
        {
            self.active.insert(producer);
        }
        if header.is_control() {
            if is_abort(header, batch) {
                self.active.remove(&header.producer_id);
            }
            return false;
        }
        header.is_transactional() && self.active.contains(&header.producer_id)
    }
}

/// Whether a control batch aborts: its record's key is a version and a type, both of 16 bits.
fn is_abort(header: &BatchHeader, batch: &[u8]) -> bool {
    let records = batch.get(HEADER_BYTES..).unwrap_or_default();
    let first = Records::new(header, records).next();
    let key = first.and_then(Result::ok).and_then(|record| record.key);
    key.and_then(|key| key.get(2..4)) == Some(&ABORT)
}
