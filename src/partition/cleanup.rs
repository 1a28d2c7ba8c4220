//! Retention and removal: what a topic keeps no longer, and the files of what is gone.
//!
//! Lives on: every core, one task.
//!
//! Invariants
//!   N1  A record is deleted only when the log start beyond it is durable, its file when that is
//!       flushed.
//!   N2  Whole pieces go, oldest first: segments, and entries of the journal. A partition keeps at
//!       least `retention.bytes`, and everything with a record younger than `retention.ms`.
//!   N3  A topic's folder is removed only when no image knows the topic any more.
//!   N4  Which segments are dead is looked up, and forgotten, in the turn in which their files go:
//!       between two turns a drain, a compaction or a merge may put live records in their places.
//!   N5  A producer that says nothing is forgotten (`remember`), at the next look at its partition.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::{Log, Owner};
use crate::base::ids::{Offset, PartitionId, TopicNumber};
use crate::config::TopicConfig;
use crate::io::Io;

/// Partitions that are looked at before others have a turn.
const SLICE: usize = 256;
/// Dead segments that are removed before others have a turn.
const REMOVED_PER_TURN: usize = 8;

/// Looks at every partition each `log.retention.check.interval.ms`, and removes deleted topics.
pub async fn run<I: Io>(owner: Rc<Owner<I>>) {
    owner.doom_unknown_topics();
    let config = owner.shared.config();
    let millis = u64::try_from(config.int("log.retention.check.interval.ms")).unwrap_or(u64::MAX);
    let interval = Duration::from_millis(millis);
    let mut due = owner.io.now() + interval;
    while !owner.stopping.get() && !owner.journal.is_closed() && !owner.is_offline() {
        owner.remove_doomed().await;
        if owner.io.now() >= due {
            owner.clean_all().await;
            due = owner.io.now() + interval;
        }
        let sleep = std::pin::pin!(owner.io.sleep_until(due));
        futures_util::future::select(std::pin::pin!(owner.more_doomed()), sleep).await;
    }
}

impl<I: Io> Owner<I> {
    /// Returns when there is something to remove, or the core ends.
    async fn more_doomed(&self) {
        poll_fn(|context| {
            if !self.doomed.borrow().is_empty() || self.journal.is_closed() {
                return Poll::Ready(());
            }
            *self.cleaner.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Has a deleted topic's files removed.
    pub(super) fn doom(&self, topic: TopicNumber) {
        self.doomed.borrow_mut().push(topic);
        if let Some(waker) = self.cleaner.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Folders that a crash has left of deleted topics.
    fn doom_unknown_topics(&self) {
        let image = self.image();
        for topic in self.store.topics() {
            if image.topic_by_number(topic).is_none() {
                self.doom(topic);
            }
        }
    }

    async fn remove_doomed(&self) {
        let doomed = std::mem::take(&mut *self.doomed.borrow_mut());
        for topic in doomed {
            let _turn = self.storage_turn.turn().await;
            if self.image().topic_by_number(topic).is_some() {
                continue;
            }
            if let Err(error) = self.store.remove_topic(topic).await {
                tracing::warn!(
                    "the files of deleted topic number {} are not all removed: {error}; the next \
                     start tries again",
                    topic.0
                );
            }
            self.tend.wake();
        }
    }

    async fn clean_all(&self) {
        let ids: Vec<PartitionId> = self.logs.borrow().keys().copied().collect();
        for slice in ids.chunks(SLICE) {
            for id in slice {
                self.clean(*id).await;
            }
            let mut logs: Vec<Log> = slice.iter().filter_map(|id| self.log(*id)).collect();
            logs.retain(|log| log.borrow().has_dead_segments());
            if !logs.is_empty() && self.journal.wait_flushed(self.journal.durable()).await.is_err()
            {
                return; // told in the log
            }
            for log in logs {
                self.remove_dead(&log).await;
            }
            self.io.cede().await;
        }
        self.tend.wake();
    }

    /// Deletes what one partition keeps no longer.
    async fn clean(&self, id: PartitionId) {
        let image = self.image();
        let Some(topic) = image.topic_by_number(id.topic) else { return };
        let Some(log) = self.log(id) else { return };
        self.forget_silent(&log);
        let config = self.topic_config(topic);
        if let Some(start) = expired(&log, &config, self.io.wall().0) {
            // What fails is told in the log; the next round tries again.
            let _ = self.raise_log_start(&log, start).await;
        }
    }

    /// Forgets the partition's producers that said nothing for too long.
    pub(super) fn forget_silent(&self, log: &Log) {
        let producers = &mut log.borrow_mut().producers;
        self.remembering.expire(producers, self.io.now(), self.io.wall().0);
    }

    async fn remove_dead(&self, log: &Log) {
        let partition = log.borrow().id();
        loop {
            let _turn = self.storage_turn.turn().await;
            let mut dead = log.borrow().dead_segments();
            dead.truncate(REMOVED_PER_TURN);
            if dead.is_empty() || self.is_ending() {
                return;
            }
            let count = dead.len();
            let mut gone = Vec::new();
            for segment in dead {
                let id = segment.id(partition);
                if let Err(error) = self.store.remove(id).await {
                    tracing::warn!("{} is not removed: {error}", self.store.path(id).display());
                    break;
                }
                gone.push(segment);
            }
            let has_names = gone.iter().any(|segment| segment.pack().is_none());
            if has_names && let Err(error) = self.store.sync_names(partition).await {
                tracing::warn!("{partition}'s removed files may come back: {error}");
                return;
            }
            log.borrow_mut().forget_segments(&gone);
            if gone.len() < count {
                return;
            }
        }
    }
}

/// The log start that retention asks for, if that is a new one.
fn expired(log: &Log, config: &TopicConfig, now: i64) -> Option<Offset> {
    if !config.is_deleted {
        return None;
    }
    let log = log.borrow();
    let mut left = log.bytes();
    let mut start = None;
    for (next, bytes, max_timestamp) in log.pieces(config.segment_ms) {
        let too_old = config.retention_ms >= 0
            && max_timestamp >= 0
            && now.saturating_sub(max_timestamp) > config.retention_ms;
        let too_much = u64::try_from(config.retention_bytes).is_ok_and(|kept| left - bytes >= kept);
        if !too_old && !too_much {
            break;
        }
        left -= bytes;
        start = Some(next);
    }
    start.filter(|start| *start > log.log_start())
}
