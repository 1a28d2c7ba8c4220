//! OffsetFetch: a group's committed positions; from version 8 of several groups at once.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::connection::Closed;
use crate::group::{Committed, Groups};
use crate::io::Io;
use crate::metadata::Image;
use crate::wire::api::offset_fetch::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics, Request as Asked, Response,
};
use crate::wire::error::ErrorCode;
use crate::wire::primitive::Uuid;

/// The version from which several groups are asked for at once.
const BATCHED_FROM: i16 = 8;
/// The version from which topics are named by id.
const IDS_FROM: i16 = 10;

/// What is asked of one group: topics with their partitions, or everything.
struct Wanted {
    group_id: String,
    topics: Option<Topics>,
}

/// Topics by name and id, with their partitions.
type Topics = Vec<(String, Uuid, Vec<i32>)>;

/// A topic as a request mentions it.
type Mention<'a> = (&'a str, Uuid, &'a [i32]);

/// One partition's position; offset -1 where nothing is committed.
struct Position {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
    error: ErrorCode,
}

/// One group's answer: topics with their positions.
type Found = Result<Vec<(String, Uuid, Vec<Position>)>, ErrorCode>;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let image = handlers.image();
    let version = request.version();
    let mut found: Vec<(String, Found)> = Vec::new();
    for wanted in wanted_of(&asked, version, &image) {
        let group_id = wanted.group_id.clone();
        found.push((group_id, fetch(handlers, wanted).await));
    }
    let response =
        if version >= BATCHED_FROM { batched(&found, version, &image) } else { single(&found) };
    Ok(request.answer(&response))
}

fn wanted_of(asked: &Asked<'_>, version: i16, image: &Image) -> Vec<Wanted> {
    if version < BATCHED_FROM {
        let topics = asked.topics.as_ref().map(|topics| {
            let named = topics.iter();
            each_once(named.map(|t| (t.name, Uuid::ZERO, t.partition_indexes.as_slice())))
        });
        return vec![Wanted { group_id: asked.group_id.to_string(), topics }];
    }
    let mut places = BTreeMap::new();
    let mut groups: Vec<(&str, Option<Vec<Mention<'_>>>)> = Vec::new();
    for group in &asked.groups {
        let place = *places.entry(group.group_id).or_insert(groups.len());
        if place == groups.len() {
            groups.push((group.group_id, Some(Vec::new())));
        }
        let Some((_, mentions)) = groups.get_mut(place) else { continue };
        let named = group.topics.as_ref().map(|topics| {
            topics.iter().map(|topic| {
                let by_id = image.topic_by_id(&topic.topic_id.0).filter(|_| version >= IDS_FROM);
                let name = by_id.map_or(topic.name, |topic| &topic.name);
                (name, topic.topic_id, topic.partition_indexes.as_slice())
            })
        });
        match (mentions.as_mut(), named) {
            (Some(mentions), Some(named)) => mentions.extend(named),
            _ => *mentions = None,
        }
    }
    let wanted = groups.into_iter().map(|(group_id, mentions)| {
        let topics = mentions.map(|mentions| each_once(mentions.into_iter()));
        Wanted { group_id: group_id.to_string(), topics }
    });
    wanted.collect()
}

/// Each topic and partition once (H3): a position may have much metadata.
fn each_once<'a>(mentions: impl Iterator<Item = Mention<'a>>) -> Topics {
    let mut places = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut topics: Topics = Vec::new();
    for (name, id, partitions) in mentions {
        let place = *places.entry((name, id.0)).or_insert(topics.len());
        if place == topics.len() {
            topics.push((name.to_string(), id, Vec::new()));
        }
        let Some((.., kept)) = topics.get_mut(place) else { continue };
        let news = partitions.iter().filter(|partition| seen.insert((place, **partition)));
        kept.extend(news);
    }
    topics
}

async fn fetch<I: Io>(handlers: &Rc<Handlers<I>>, wanted: Wanted) -> Found {
    let core = handlers.dispatch.owner_of(handlers.coordinator_of(&wanted.group_id).await?);
    handlers
        .dispatch
        .call(core, move |owner| async move { owner.with_groups(|groups| look(groups, wanted)) })
        .await
        .map_err(|_| ErrorCode::COORDINATOR_NOT_AVAILABLE)
}

fn look(groups: &Groups, wanted: Wanted) -> Vec<(String, Uuid, Vec<Position>)> {
    let group_id = &wanted.group_id;
    if let Some(topics) = wanted.topics {
        let topics = topics.into_iter().map(|(name, id, partitions)| {
            let unnamed = name.is_empty() && !id.is_zero();
            let positions = partitions.into_iter().map(|partition| {
                let mut position = position(partition, groups.offset(group_id, &name, partition));
                if unnamed {
                    position.error = ErrorCode::UNKNOWN_TOPIC_ID;
                }
                position
            });
            let positions = positions.collect();
            (name, id, positions)
        });
        return topics.collect();
    }
    let mut topics: Vec<(String, Uuid, Vec<Position>)> = Vec::new();
    for (topic, partition, committed) in groups.offsets(group_id) {
        let position = position(partition, Some(committed));
        match topics.last_mut() {
            Some((name, _, positions)) if name == topic => positions.push(position),
            _ => topics.push((topic.to_string(), Uuid::ZERO, vec![position])),
        }
    }
    topics
}

fn position(partition: i32, committed: Option<&Committed>) -> Position {
    Position {
        partition,
        offset: committed.map_or(-1, |committed| committed.offset),
        leader_epoch: committed.map_or(-1, |committed| committed.leader_epoch),
        metadata: committed.map_or(String::new(), |committed| committed.metadata.to_string()),
        error: ErrorCode::NONE,
    }
}

fn single(found: &[(String, Found)]) -> Response<'_> {
    let Some((_, found)) = found.first() else { return Response::default() };
    let topics = found.iter().flatten().map(|(name, _, positions)| OffsetFetchResponseTopic {
        name,
        partitions: positions
            .iter()
            .map(|position| OffsetFetchResponsePartition {
                partition_index: position.partition,
                committed_offset: position.offset,
                committed_leader_epoch: position.leader_epoch,
                metadata: Some(&position.metadata),
                error_code: position.error.0,
            })
            .collect(),
    });
    Response {
        topics: topics.collect(),
        error_code: found.as_ref().err().copied().unwrap_or(ErrorCode::NONE).0,
        ..Response::default()
    }
}

fn batched<'a>(found: &'a [(String, Found)], version: i16, image: &Image) -> Response<'a> {
    let groups = found.iter().map(|(group_id, found)| {
        let topics = found.iter().flatten().map(|(name, id, positions)| {
            let known = image.topic(name).map(|topic| Uuid(topic.id));
            let by_id = version >= IDS_FROM && id.is_zero();
            OffsetFetchResponseTopics {
                name,
                topic_id: if by_id { known.unwrap_or(*id) } else { *id },
                partitions: positions
                    .iter()
                    .map(|position| OffsetFetchResponsePartitions {
                        partition_index: position.partition,
                        committed_offset: position.offset,
                        committed_leader_epoch: position.leader_epoch,
                        metadata: Some(&position.metadata),
                        error_code: position.error.0,
                    })
                    .collect(),
            }
        });
        OffsetFetchResponseGroup {
            group_id,
            topics: topics.collect(),
            error_code: found.as_ref().err().copied().unwrap_or(ErrorCode::NONE).0,
        }
    });
    Response { groups: groups.collect(), ..Response::default() }
}
