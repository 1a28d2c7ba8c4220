//! What the group handlers share: the way to a group's coordinator, and groups without a topic to
//! keep them yet.

use std::rc::Rc;

use super::Handlers;
use crate::base::ids::{CoreId, PartitionId};
use crate::config::TOPIC;
use crate::group::{Answer, Request};
use crate::io::Io;
use crate::metadata::OFFSETS_TOPIC;
use crate::partition::NewTopic;
use crate::wire::error::ErrorCode;

impl<I: Io> Handlers<I> {
    /// Where `group_id` is kept; makes the offsets topic if this is the first group of all. A group
    /// on a failed data directory has no coordinator.
    pub(super) async fn coordinator_of(
        self: &Rc<Self>,
        group_id: &str,
    ) -> Result<PartitionId, ErrorCode> {
        let id = self.offsets_partition_of(group_id).await?;
        let is_offline = self.dispatch.shared().is_offline(id);
        if is_offline { Err(ErrorCode::COORDINATOR_NOT_AVAILABLE) } else { Ok(id) }
    }

    async fn offsets_partition_of(
        self: &Rc<Self>,
        group_id: &str,
    ) -> Result<PartitionId, ErrorCode> {
        if let Some(id) = self.dispatch.local().offsets_partition(group_id) {
            return Ok(id);
        }
        let wanted = self.offsets_topic();
        let created = self.dispatch.call(CoreId::FIRST, move |owner| async move {
            // Another request may be faster: then the topic is there, which is as good.
            owner.create_topics(vec![wanted], false).await
        });
        created.await.map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)?;
        let id = self.dispatch.local().offsets_partition(group_id);
        id.ok_or(ErrorCode::COORDINATOR_NOT_AVAILABLE)
    }

    /// The topic that keeps the groups, whoever asks for it first.
    pub(super) fn offsets_topic(&self) -> NewTopic {
        let count = self.dispatch.shared().config().int("offsets.topic.num.partitions");
        NewTopic {
            name: OFFSETS_TOPIC.to_string(),
            partitions: i32::try_from(count).unwrap_or(1),
            replication_factor: 1,
            configs: offsets_topic_configs(),
        }
    }

    /// Asks the coordinator of `group_id`.
    pub(super) async fn ask_group(
        self: &Rc<Self>,
        group_id: &str,
        request: Request,
    ) -> Result<Answer, ErrorCode> {
        let core = self.dispatch.owner_of(self.coordinator_of(group_id).await?);
        let group_id = group_id.to_string();
        self.dispatch
            .call(core, move |owner| async move { owner.group_request(group_id, request).await })
            .await
            .map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)
    }
}

fn offsets_topic_configs() -> Vec<(String, String)> {
    let wanted = [("cleanup.policy", "compact"), ("segment.bytes", "104857600")];
    debug_assert!(wanted.iter().all(|(name, _)| TOPIC.iter().any(|row| row.name == *name)));
    wanted.map(|(name, value)| (name.to_string(), value.to_string())).to_vec()
}

/// The error of an answer of the wrong kind, which the mind never gives.
pub(super) fn unexpected(answer: &Answer) -> ErrorCode {
    tracing::error!("the group coordinator gave an unexpected answer: {answer:?}");
    ErrorCode::UNKNOWN_SERVER_ERROR
}
