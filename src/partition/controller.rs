//! The metadata's one writer: decides changes one after the other, journals them, publishes the
//! image that they make.
//!
//! Lives on: core 0.
//!
//! Invariants
//!   C1  An image is published only after the commands that made it are durable.
//!   C2  Changes are decided against the newest image, one at a time.

use std::rc::Rc;

use super::{Log, Owner};
use crate::base::ids::{CoreId, Offset};
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
        self.journal_entry(entry, &body, || {}).await?;
        for command in &commands {
            image.apply(command);
        }
        self.shared().publish(image);
        Ok(outcome)
    }

    /// Gives a partition a new log start, and drops what lies before it once that is durable.
    pub(super) async fn raise_log_start(
        &self,
        log: &Log,
        log_start: Offset,
    ) -> Result<(), ErrorCode> {
        let entry = Entry {
            kind: EntryKind::LogStart,
            partition: log.borrow().id(),
            base_offset: log_start,
            epoch: self.leader_epoch(),
        };
        // A checkpoint behind it may be all that a recovery finds of the two.
        self.journal_entry(entry, &[], || log.borrow_mut().start_asked(log_start)).await?;
        log.borrow_mut().trim(log_start);
        Ok(())
    }

    /// Appends an entry, calls `appended`, and waits until the entry is durable.
    async fn journal_entry(
        &self,
        entry: Entry,
        body: &[u8],
        appended: impl FnOnce(),
    ) -> Result<(), ErrorCode> {
        let refused = |refusal: crate::journal::Refusal| {
            tracing::warn!("a {} entry is refused: {refusal}", entry.kind.name());
            ErrorCode::KAFKA_STORAGE_ERROR
        };
        self.check_online()?;
        self.journal().room_to_decide(body.len()).await.map_err(refused)?;
        let place = self.journal().append(entry, body, |_| {}).map_err(refused)?;
        appended();
        if self.settling.notice(place.position).await {
            Ok(())
        } else {
            Err(ErrorCode::KAFKA_STORAGE_ERROR)
        }
    }
}
