//! The metadata's one writer: decides changes one after the other, journals them, publishes the
//! image that they make.
//!
//! Lives on: core 0.
//!
//! Invariants
//!   C1  An image is published only after the commands that made it are durable.
//!   C2  Changes are decided against the newest image, one at a time.

use std::rc::Rc;

use super::Owner;
use crate::base::ids::{CoreId, Offset, PartitionId};
use crate::base::line::{Line, Place};
use crate::io::Io;
use crate::journal::{Entry, EntryKind, NO_PARTITION};
use crate::metadata::{self, Command, Image};
use crate::wire::error::ErrorCode;

/// Taken by whoever changes the metadata.
#[derive(Default)]
pub struct Controller {
    turn: Rc<Line>,
}

impl Controller {
    /// Waits until nobody changes the metadata; nobody does while the place is kept.
    pub(super) async fn turn(&self) -> Place {
        self.turn.turn().await
    }
}

impl<I: Io> Owner<I> {
    /// Asks `decide` for the commands of a change, given the newest image, and makes them last.
    /// `decide` also gives what is returned to the caller.
    pub async fn change_metadata<R>(
        self: &Rc<Self>,
        decide: impl FnOnce(&Image) -> (Vec<Command>, R),
    ) -> Result<R, ErrorCode> {
        assert_eq!(self.core(), CoreId::FIRST, "core 0 writes the metadata");
        let _turn = self.controller().turn().await;
        let mut image = Image::clone(&self.image());
        let (commands, outcome) = decide(&image);
        if commands.is_empty() {
            return Ok(outcome);
        }
        let body = metadata::encode(&commands).map_err(|error| {
            tracing::error!("{error}");
            ErrorCode::UNKNOWN_SERVER_ERROR
        })?;
        let entry = Entry {
            kind: EntryKind::Metadata,
            partition: NO_PARTITION,
            base_offset: 0,
            epoch: image.leader_epoch(),
        };
        self.journal_entry(entry, &body).await?;
        for command in &commands {
            image.apply(command);
        }
        self.shared().publish(image);
        Ok(outcome)
    }

    /// Journals a partition's new log start.
    pub(super) async fn journal_log_start(
        &self,
        id: PartitionId,
        log_start: Offset,
    ) -> Result<(), ErrorCode> {
        let entry = Entry {
            kind: EntryKind::LogStart,
            partition: id,
            base_offset: log_start,
            epoch: self.leader_epoch(),
        };
        self.journal_entry(entry, &[]).await
    }

    /// Appends an entry and waits until it is durable.
    async fn journal_entry(&self, entry: Entry, body: &[u8]) -> Result<(), ErrorCode> {
        let refused = |refusal: crate::journal::Refusal| {
            tracing::warn!("a {} entry is refused: {refusal}", entry.kind.name());
            ErrorCode::KAFKA_STORAGE_ERROR
        };
        self.check_online()?;
        self.journal().room_to_decide(body.len()).await.map_err(refused)?;
        let appended = self.journal().append(entry, body, |_| {}).map_err(refused)?;
        if self.settling.notice(appended.position).await {
            Ok(())
        } else {
            Err(ErrorCode::KAFKA_STORAGE_ERROR)
        }
    }
}
