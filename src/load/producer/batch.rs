//! A batch of records that are not written: each is held as the few words that its bytes are made
//! of. They are made when a request is written, and made again, the same ones, when it is repeated,
//! so that what waits and what is in flight takes little memory, and what is sent is in a cache.
//!
//! Pure.
//!
//! Invariants
//!   B1  A batch has at least one record, and `records_bytes` is what its records take while they
//!       are not compressed.

use bytes::BytesMut;

use super::{DELIVERY_NANOS_MAX, NANOS_PER_MILLI};
use crate::load::keys::{KEY_BYTES, KeyShape, written};
use crate::load::options::Mode;
use crate::load::payload::{STAMP_BYTES, Stamp};
use crate::load::producer::Shape;
use crate::wire::records::{
    BatchBuilder, Codec, CodecError, HEADER_BYTES, ProducerStamp, record_bytes,
};

/// What a record's bytes are made of.
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    pub intended: u64,
    /// Its key's number, where records have keys.
    pub key: u64,
    /// Where in the pool its filler begins.
    pub filler: u32,
    /// Of its value.
    pub length: u32,
}

/// See the module's documentation.
pub struct Batch {
    pub place: u32,
    pub(super) first: Draft,
    /// The records behind the first one.
    pub(super) more: Vec<Draft>,
    pub(super) first_sequence: u64,
    pub(super) order: u64,
    /// When its linger is over.
    pub(super) ready: u64,
    /// Of the records, uncompressed.
    records_bytes: u32,
    /// Of values and keys.
    payload: u32,
    /// The number it was sent with, if it is numbered, and the slot's epoch that this is of.
    pub(super) sequence: i32,
    pub(super) epoch: i16,
    /// It was sent before, and may have been stored.
    pub(super) is_uncertain: bool,
    /// The next closed batch of its place, in the stock.
    pub(super) next: u32,
}

impl Batch {
    pub(super) fn place(&self) -> usize {
        usize::try_from(self.place).unwrap_or(usize::MAX)
    }

    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.more.len()).unwrap_or(0) + 1
    }

    /// Bytes of values and keys.
    pub(super) fn payload(&self) -> usize {
        usize::try_from(self.payload).unwrap_or(0)
    }

    /// Bytes of its records, uncompressed.
    pub(super) fn records_bytes(&self) -> usize {
        usize::try_from(self.records_bytes).unwrap_or(0)
    }

    /// Its bytes, uncompressed.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.records_bytes()
    }

    /// The intended times of its records.
    pub(super) fn times(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.first.intended).chain(self.more.iter().map(|draft| draft.intended))
    }

    pub(super) fn is_old(&self, now: u64) -> bool {
        now.saturating_sub(self.first.intended) > DELIVERY_NANOS_MAX
    }
}

/// Knows how records become bytes.
pub(super) struct Scribe<'s> {
    pub shape: &'s Shape,
    pub producer: u32,
    /// Nanoseconds since 1970 at the clock's zero.
    pub epoch: i64,
}

impl Scribe<'_> {
    /// A batch of one record, with memory for more.
    pub fn begin(&self, place: usize, first: Draft, more: Vec<Draft>) -> Batch {
        let mut batch = Batch {
            place: u32::try_from(place).unwrap_or(u32::MAX),
            first,
            more,
            first_sequence: 0,
            order: 0,
            ready: 0,
            records_bytes: 0,
            payload: 0,
            sequence: 0,
            epoch: 0,
            is_uncertain: false,
            next: 0,
        };
        self.count_in(&mut batch, 0, first);
        batch
    }

    pub fn add(&self, batch: &mut Batch, draft: Draft) {
        batch.more.push(draft);
        self.count_in(batch, i64::try_from(batch.more.len()).unwrap_or(0), draft);
    }

    fn count_in(&self, batch: &mut Batch, index: i64, draft: Draft) {
        let time = self.timestamp(draft) - self.timestamp(batch.first);
        let (key, length) = (self.has_keys().then_some(KEY_BYTES), length_of(draft));
        let bytes = record_bytes(time, index, key, Some(length));
        let narrow = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        batch.records_bytes = batch.records_bytes.saturating_add(narrow(bytes));
        batch.payload = batch.payload.saturating_add(narrow(self.payload_of(length)));
    }

    /// Bytes of a record's value and key.
    pub fn payload_of(&self, length: usize) -> usize {
        if self.has_keys() { KEY_BYTES + length } else { length }
    }

    fn has_keys(&self) -> bool {
        self.shape.plan.keys != KeyShape::None
    }

    /// Milliseconds since 1970.
    fn timestamp(&self, draft: Draft) -> i64 {
        self.epoch.saturating_add_unsigned(draft.intended) / NANOS_PER_MILLI
    }

    /// Writes the batch behind what `memory` holds.
    pub fn write(
        &self,
        batch: &Batch,
        stamp: Option<ProducerStamp>,
        memory: BytesMut,
        codec: Codec,
    ) -> Result<BytesMut, CodecError> {
        let mut builder = BatchBuilder::behind(memory);
        if let Some(stamp) = stamp {
            builder = builder.producer(stamp);
        }
        if self.shape.plan.transactions.is_some() {
            builder = builder.transactional();
        }
        let drafts = std::iter::once(&batch.first).chain(&batch.more);
        for (sequence, draft) in (batch.first_sequence..).zip(drafts) {
            self.push(&mut builder, batch.place, sequence, *draft);
        }
        builder.finish(codec)
    }

    fn push(&self, builder: &mut BatchBuilder, place: u32, sequence: u64, draft: Draft) {
        let Shape { pool, run, plan, .. } = self.shape;
        let timestamp = self.timestamp(draft);
        let key = self.has_keys().then(|| written(draft.key));
        let key = key.as_ref().map(<[u8; KEY_BYTES]>::as_slice);
        let length = length_of(draft);
        let Some(rest) = length.checked_sub(STAMP_BYTES) else {
            return builder.push_pieces(timestamp, key, [pool.cut(draft.filler, length), &[]]);
        };
        let filler = pool.cut(draft.filler, rest);
        let intended = self.epoch.saturating_add_unsigned(draft.intended);
        let stamp = Stamp { intended, run: *run, producer: self.producer, place, sequence };
        let stamp = stamp.write(filler, plan.mode == Mode::Verify);
        builder.push_pieces(timestamp, key, [&stamp, filler]);
    }
}

fn length_of(draft: Draft) -> usize {
    usize::try_from(draft.length).unwrap_or(0)
}
