//! The group coordinator of one core: carries requests to the group mind, its records to
//! `__consumer_offsets`, and its answers back.
//!
//! Lives on: every core, for the groups whose offsets partition the core owns.
//! Talks to: `group` (the mind), the owner's own append and read.
//!
//! Invariants
//!   G1  Records of one coordinator are appended in the order in which the mind wrote them.
//!   G2  The mind hears that a write is done only when it is durable.
//!   G3  Nothing is asked of the mind before everything that is on disk was replayed to it.
//!   G4  The mind holds the groups of the offsets topic that is there, and of this core: those of a
//!       deleted one go before anything else is asked, and nothing of theirs is written elsewhere.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;

use super::append::{ProduceAnswer, ProduceAnswers, ProducePart};
use super::{FetchPart, Owner};
use crate::base::few::Few;
use crate::base::ids::{PartitionId, TopicNumber};
use crate::base::limits;
use crate::base::time::Instant;
use crate::group::{self, Answer, Effect, Groups, Input, Now, Request, Ticket, WriteId};
use crate::io::Io;
use crate::io::mailbox::oneshot;
use crate::io::reply::Awaited;
use crate::metadata::{Image, OFFSETS_TOPIC};
use crate::wire::error::ErrorCode;
use crate::wire::records::{
    self, BatchBuilder, Codec, CodecError, HEADER_BYTES, NewRecord, Records, decompress,
    record_bytes,
};

/// Bytes of the offsets topic that are read at a time.
const LOAD_BYTES: usize = 1 << 20;

/// See the module's documentation.
pub struct Coordinator {
    groups: RefCell<Groups>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<Answer>>>,
    /// The topic that keeps the groups, if it is there.
    topic: Cell<Option<TopicNumber>>,
    writes: RefCell<VecDeque<Write>>,
    /// The task that appends, when it has nothing to do.
    writer: RefCell<Option<Waker>>,
    /// The task that keeps the time, and the deadline that it sleeps towards.
    timer: RefCell<Option<Waker>>,
    armed: Cell<Instant>,
}

struct Write {
    id: WriteId,
    /// Where the group was kept when it asked for this.
    partition: Option<PartitionId>,
    records: Vec<group::Record>,
}

impl Coordinator {
    pub(super) fn new(settings: group::Settings) -> Coordinator {
        Coordinator {
            groups: RefCell::new(Groups::new(settings)),
            waiting: RefCell::new(HashMap::new()),
            topic: Cell::new(None),
            writes: RefCell::new(VecDeque::new()),
            writer: RefCell::new(None),
            timer: RefCell::new(None),
            armed: Cell::new(Instant::NEVER),
        }
    }
}

impl<I: Io> Owner<I> {
    /// Replays what is on disk and starts the coordinator's tasks. Called once, before the core
    /// takes requests.
    pub async fn start_coordinator(self: &Rc<Self>) -> Result<(), ErrorCode> {
        let image = self.image();
        if let Some(topic) = image.topic(OFFSETS_TOPIC) {
            self.coordinator.topic.set(Some(topic.number));
            for index in 0..topic.partitions {
                let id = PartitionId { topic: topic.number, index };
                if self.shared().owner_of(id) == self.core() {
                    self.load(id).await?;
                }
            }
        }
        self.coordinator.groups.borrow_mut().loaded(self.group_now());
        self.io().spawn("group writer", write_records(self.clone()));
        self.io().spawn("group timer", keep_time(self.clone()));
        Ok(())
    }

    /// Asks the mind; returns its answer when there is one.
    pub async fn group_request(self: &Rc<Self>, group_id: String, request: Request) -> Answer {
        let image = self.follow_offsets_topic();
        let partition = partition_of(&image, &group_id);
        if partition.is_none_or(|id| self.shared().owner_of(id) != self.core()) {
            return request.refused(ErrorCode::NOT_COORDINATOR);
        }
        let (reply, answer) = oneshot::channel();
        let ticket = self.ticket();
        self.coordinator.waiting.borrow_mut().insert(ticket, reply);
        self.hand_in(&image, Input::Request { ticket: Ticket(ticket), group_id, request });
        answer.await.unwrap_or_else(|_| unreachable!("the mind answers every ticket"))
    }

    /// Looks at the groups, which are never seen in between two states.
    pub fn with_groups<R>(&self, look: impl FnOnce(&Groups) -> R) -> R {
        self.follow_offsets_topic();
        look(&self.coordinator.groups.borrow())
    }

    /// Drops the offsets that were committed for deleted topics.
    pub fn forget_group_topics(&self, topics: Vec<String>) {
        self.group_input(Input::TopicsDeleted { topics });
    }

    /// The partition of the offsets topic that keeps `group_id`, if the topic is there.
    pub fn offsets_partition(&self, group_id: &str) -> Option<PartitionId> {
        partition_of(&self.image(), group_id)
    }

    /// Lets go of the groups when the topic that kept them is gone (G4). The image that says so.
    pub(super) fn follow_offsets_topic(&self) -> Arc<Image> {
        let image = self.image();
        let number = image.topic(OFFSETS_TOPIC).map(|topic| topic.number);
        if self.coordinator.topic.replace(number) != number {
            self.coordinator.writes.borrow_mut().clear();
            self.hand_in(&image, Input::Unloaded);
        }
        image
    }

    fn group_now(&self) -> Now {
        Now { monotonic: self.io().now(), wall: self.io().wall() }
    }

    fn group_input(&self, input: Input) {
        let image = self.follow_offsets_topic();
        self.hand_in(&image, input);
    }

    fn hand_in(&self, image: &Image, input: Input) {
        let coordinator = &self.coordinator;
        let mut effects = Vec::new();
        let next = {
            let mut groups = coordinator.groups.borrow_mut();
            groups.handle(self.group_now(), input, &mut effects);
            groups.next_timeout()
        };
        for effect in effects {
            match effect {
                Effect::Answer { ticket: Ticket(ticket), answer } => {
                    if let Some(reply) = coordinator.waiting.borrow_mut().remove(&ticket) {
                        // The connection may be gone.
                        drop(reply.send(answer));
                    }
                }
                Effect::Write { write, group_id, records } => {
                    let partition = partition_of(image, &group_id);
                    let write = Write { id: write, partition, records };
                    coordinator.writes.borrow_mut().push_back(write);
                    wake(&coordinator.writer);
                }
            }
        }
        if next.is_some_and(|(deadline, _)| deadline < coordinator.armed.get()) {
            wake(&coordinator.timer);
        }
    }

    /// Appends records; the answer comes when they are durable.
    async fn append_records(
        self: &Rc<Self>,
        write: &Write,
    ) -> Result<Awaited<ProduceAnswers>, ErrorCode> {
        let partition = write.partition.ok_or(ErrorCode::COORDINATOR_NOT_AVAILABLE)?;
        let image = self.image();
        let topic = image.topic_by_number(partition.topic);
        let topic = topic.ok_or(ErrorCode::COORDINATOR_NOT_AVAILABLE)?;
        let bytes_max = self.topic_config(topic).max_message_bytes;
        let batches = batches_of(&write.records, self.io().wall().0, bytes_max);
        let batches = batches.map_err(|_| ErrorCode::INVALID_COMMIT_OFFSET_SIZE)?;
        let (reply, answer) = self.produce_replies().pair();
        let parts = batches.into_iter().map(|records| ProducePart { partition, records });
        let parts = Few::from_iter(parts);
        self.produce(parts, super::Acks::Committed, reply).await;
        Ok(answer)
    }

    async fn load(self: &Rc<Self>, id: PartitionId) -> Result<(), ErrorCode> {
        let Some(log) = self.log(id) else { return Ok(()) };
        let (mut offset, end) = {
            let log = log.borrow();
            (log.log_start(), log.high_watermark())
        };
        while offset < end {
            let part = FetchPart { partition: id, offset, bytes_max: LOAD_BYTES, leader_epoch: -1 };
            let found = self.read(&part, LOAD_BYTES, true).await;
            if found.is_error() || found.records.is_empty() {
                tracing::error!("groups cannot be loaded from {id} at offset {offset}");
                return Err(ErrorCode::KAFKA_STORAGE_ERROR);
            }
            for piece in &found.records {
                for (header, batch) in records::batches(piece) {
                    self.replay_batch(id, &header, batch);
                    offset = header.next_offset();
                }
            }
        }
        Ok(())
    }

    fn replay_batch(&self, id: PartitionId, header: &records::BatchHeader, batch: &[u8]) {
        let codec = header.codec().unwrap_or(Codec::None);
        let inside = match decompress(codec, &batch[HEADER_BYTES..], limits::LOOKUP_BYTES_MAX) {
            Ok(inside) => inside,
            Err(error) => {
                tracing::warn!("offset {} of {id} is passed over: {error}", header.base_offset);
                return;
            }
        };
        let mut groups = self.coordinator.groups.borrow_mut();
        for record in Records::new(header, &inside).flatten() {
            let outcome = match record.key {
                Some(key) => groups.replay(key, record.value),
                None => continue,
            };
            if let Err(error) = outcome {
                // Anybody may produce to the topic; what is no group record is none.
                tracing::warn!("offset {} of {id} is passed over: {error}", record.offset);
            }
        }
    }
}

/// The partition of the offsets topic that keeps `group_id`.
fn partition_of(image: &Image, group_id: &str) -> Option<PartitionId> {
    let topic = image.topic(OFFSETS_TOPIC)?;
    let count = i32::try_from(topic.partitions).unwrap_or(i32::MAX);
    topic.partition(group::offsets_partition(group_id, count))
}

/// What a write's records go to the log in: one batch, that all of them be there or none. But each
/// tombstone says for itself what is gone, and a group may have more of them than a batch may have
/// bytes: those alone go in as many batches as they need.
fn batches_of(
    records: &[group::Record],
    timestamp: i64,
    bytes_max: usize,
) -> Result<Vec<Bytes>, CodecError> {
    let may_split = records.iter().all(|record| record.value.is_none());
    let mut batches = Vec::new();
    let mut batch = BatchBuilder::new();
    for record in records {
        let value = record.value.as_deref();
        let place = i64::from(batch.count());
        let bytes = record_bytes(0, place, Some(record.key.len()), value.map(<[u8]>::len));
        let is_full = place > 0 && HEADER_BYTES + batch.bytes() + bytes > bytes_max;
        if may_split && is_full {
            batches.push(std::mem::take(&mut batch).build(Codec::None)?);
        }
        batch.push(&NewRecord { timestamp, key: Some(&record.key), value, headers: &[] });
    }
    batches.push(batch.build(Codec::None)?);
    Ok(batches)
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow_mut().take() {
        waker.wake();
    }
}

async fn write_records<I: Io>(owner: Rc<Owner<I>>) {
    loop {
        let write = poll_fn(|context| match owner.coordinator.writes.borrow_mut().pop_front() {
            Some(write) => Poll::Ready(write),
            None => {
                *owner.coordinator.writer.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
        let id = write.id;
        match owner.append_records(&write).await {
            Err(error) => owner.group_input(Input::Written { write: id, error }),
            // Later writes are appended while this one is on its way to the disk.
            Ok(answer) => {
                let told = owner.clone();
                owner.io().spawn("group write", async move {
                    let error = outcome_of(&answer.await.unwrap_or_default());
                    told.group_input(Input::Written { write: id, error });
                });
            }
        }
    }
}

/// The first failure of a write's batches, if there is one.
fn outcome_of(answers: &[ProduceAnswer]) -> ErrorCode {
    let failed = answers.iter().find(|answer| answer.error.is_error());
    match failed.or(answers.first()).map(|answer| answer.error) {
        Some(ErrorCode::NONE) => ErrorCode::NONE,
        Some(ErrorCode::MESSAGE_TOO_LARGE) => ErrorCode::INVALID_COMMIT_OFFSET_SIZE,
        _ => ErrorCode::COORDINATOR_NOT_AVAILABLE,
    }
}

async fn keep_time<I: Io>(owner: Rc<Owner<I>>) {
    let coordinator = &owner.coordinator;
    loop {
        let next = coordinator.groups.borrow().next_timeout();
        let deadline = next.map_or(Instant::NEVER, |(deadline, _)| deadline);
        if deadline <= owner.io().now() {
            owner.group_input(Input::Timeout);
            // Many groups may be due one after the other.
            owner.io().cede().await;
            continue;
        }
        coordinator.armed.set(deadline);
        let mut registered = false;
        let earlier = poll_fn(|context| {
            if registered && coordinator.timer.borrow().is_none() {
                return Poll::Ready(());
            }
            registered = true;
            *coordinator.timer.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        });
        if deadline == Instant::NEVER {
            earlier.await;
        } else {
            let sleep = std::pin::pin!(owner.io().sleep_until(deadline));
            futures_util::future::select(std::pin::pin!(earlier), sleep).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32, value: Option<&'static [u8]>) -> group::Record {
        let key = Bytes::from(format!("key {number}"));
        group::Record { key, value: value.map(Bytes::from_static) }
    }

    /// The keys of the records in each batch.
    fn keys_in(batches: &[Bytes]) -> Vec<Vec<Vec<u8>>> {
        let keys = |batch: &Bytes| {
            records::validate(batch).expect("sound");
            let header = records::BatchHeader::read(batch).expect("whole");
            let inside = Records::new(&header, &batch[HEADER_BYTES..]).flatten();
            inside.map(|record| record.key.expect("a key").to_vec()).collect()
        };
        batches.iter().map(keys).collect()
    }

    /// A group with more tombstones than a batch may have bytes once kept its offsets for ever.
    #[test]
    fn tombstones_go_in_batches_that_the_topic_takes() {
        let tombstones: Vec<group::Record> = (0..1000).map(|number| record(number, None)).collect();
        let all: Vec<Vec<u8>> = tombstones.iter().map(|record| record.key.to_vec()).collect();
        for bytes_max in [1, 100, 500, 5000, 1 << 20] {
            let batches = batches_of(&tombstones, 7, bytes_max).expect("small");
            let keys = keys_in(&batches);
            let is_sound = |(batch, keys): (&Bytes, &Vec<_>)| {
                batch.len() <= bytes_max || (bytes_max == 1 && keys.len() == 1)
            };
            assert!(batches.iter().zip(&keys).all(is_sound), "{bytes_max}");
            assert_eq!(keys.concat(), all);
        }
    }

    #[test]
    fn what_belongs_together_is_one_batch() {
        let mut mixed: Vec<group::Record> = (0..100).map(|number| record(number, None)).collect();
        mixed.push(record(100, Some(b"an offset")));
        assert_eq!(batches_of(&mixed, 7, 100).expect("small").len(), 1);
    }
}
