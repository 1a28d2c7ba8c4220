//! Fetch: sessions, long polls, and record bytes by reference.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::sessions::{SessionKey, SessionPart};
use super::{Handlers, Request, topic_of, unknown_topic};
use crate::connection::Closed;
use crate::dispatch::FetchPlan;
use crate::io::Io;
use crate::metadata::Image;
use crate::partition::{FetchPart, FetchedPart};
use crate::wire::api::fetch::Request as Asked;
use crate::wire::error::ErrorCode;
use crate::wire::fetch::{FetchWriter, FetchedHead};

/// The session epoch that opens a session with a full request.
const INITIAL_EPOCH: i32 = 0;
/// The session epoch of a request without a session, which also closes the one named.
const FINAL_EPOCH: i32 = -1;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let scope = match open_scope(handlers, request.version(), &asked) {
        Ok(scope) => scope,
        Err(error) => {
            let (version, correlation) = (request.version(), request.header.correlation);
            let mut writer = FetchWriter::new(version, correlation, error, 0);
            writer.topics(0);
            return Ok(writer.finish());
        }
    };
    let image = handlers.image();
    let found = read(handlers, &image, &asked, &scope).await;
    Ok(write(handlers, request, &scope, found))
}

/// What a request covers.
struct Scope {
    /// 0 without a session.
    session: i32,
    /// Only what changed is answered.
    is_incremental: bool,
    parts: Vec<(SessionKey, SessionPart)>,
}

fn open_scope<I: Io>(
    handlers: &Handlers<I>,
    version: i16,
    asked: &Asked<'_>,
) -> Result<Scope, ErrorCode> {
    let mut sessions = handlers.sessions.borrow_mut();
    let now = handlers.io().now();
    let epoch = if version >= 7 { asked.session_epoch } else { FINAL_EPOCH };
    if matches!(epoch, INITIAL_EPOCH | FINAL_EPOCH) {
        if asked.session_id != 0 {
            sessions.close(asked.session_id);
        }
        let parts = named_parts(asked);
        let session = if epoch == INITIAL_EPOCH {
            sessions.open(parts.iter().cloned().collect(), handlers.io().random(), now)
        } else {
            0
        };
        return Ok(Scope { session, is_incremental: false, parts });
    }
    let session = sessions.resume(asked.session_id, epoch, now)?;
    for topic in &asked.forgotten_topics_data {
        let name: Rc<str> = topic.topic.into();
        for partition in &topic.partitions {
            session.forget(&SessionKey {
                name: name.clone(),
                id: topic.topic_id,
                partition: *partition,
            });
        }
    }
    let named = named_parts(asked);
    let may_be_held = named.iter().all(|(key, _)| key.may_be_held());
    for (key, part) in named {
        session.set(key, part);
    }
    let parts = session.in_turn();
    if !may_be_held || !sessions.count(asked.session_id) {
        // The client goes on with a full request, which is served without a session.
        sessions.close(asked.session_id);
        return Err(ErrorCode::FETCH_SESSION_ID_NOT_FOUND);
    }
    Ok(Scope { session: asked.session_id, is_incremental: true, parts })
}

fn named_parts(asked: &Asked<'_>) -> Vec<(SessionKey, SessionPart)> {
    let mut parts = Vec::new();
    for topic in &asked.topics {
        let name: Rc<str> = topic.topic.into();
        for partition in &topic.partitions {
            let key = SessionKey {
                name: name.clone(),
                id: topic.topic_id,
                partition: partition.partition,
            };
            let part = SessionPart {
                offset: partition.fetch_offset,
                bytes_max: partition.partition_max_bytes,
                leader_epoch: partition.current_leader_epoch,
                told: None,
            };
            parts.push((key, part));
        }
    }
    parts
}

/// The partition that a key names, or why there is none.
fn find(image: &Image, key: &SessionKey) -> Result<crate::base::ids::PartitionId, ErrorCode> {
    let topic = topic_of(image, &key.name, key.id);
    let topic = topic.ok_or_else(|| unknown_topic(&key.name, key.id))?;
    topic.partition(key.partition).ok_or(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION)
}

/// The answer of every part of the scope, in order.
async fn read<I: Io>(
    handlers: &Handlers<I>,
    image: &Image,
    asked: &Asked<'_>,
    scope: &Scope,
) -> Vec<FetchedPart> {
    let mut parts = Vec::with_capacity(scope.parts.len());
    let mut refusals: Vec<Option<ErrorCode>> = Vec::with_capacity(scope.parts.len());
    for (key, part) in &scope.parts {
        match find(image, key) {
            Ok(partition) => {
                parts.push(FetchPart {
                    partition,
                    offset: part.offset,
                    bytes_max: usize::try_from(part.bytes_max).unwrap_or(0),
                    leader_epoch: part.leader_epoch,
                });
                refusals.push(None);
            }
            Err(error) => refusals.push(Some(error)),
        }
    }
    let is_refused = refusals.iter().any(Option::is_some);
    let wait = u64::try_from(asked.max_wait_ms).unwrap_or(0);
    let wait = if is_refused { Duration::ZERO } else { Duration::from_millis(wait) };
    let config = handlers.dispatch.shared().config();
    // A client that is gone is noticed when it is answered, so no wait outlives an idle connection.
    let idle = u64::try_from(config.int("connections.max.idle.ms")).unwrap_or(u64::MAX);
    let wait = wait.min(Duration::from_millis(idle));
    let bytes_max = usize::try_from(asked.max_bytes).unwrap_or(0);
    let plan = FetchPlan {
        parts,
        bytes_max: bytes_max.min(config.size("fetch.max.bytes")),
        bytes_min: usize::try_from(asked.min_bytes).unwrap_or(0),
        deadline: handlers.io().now() + wait,
    };
    let mut found = handlers.dispatch.fetch(plan).await.into_iter();
    let answers = refusals.into_iter().map(|refusal| match refusal {
        Some(error) => FetchedPart { error, ..FetchedPart::owner_gone() },
        None => found.next().unwrap_or_else(FetchedPart::owner_gone),
    });
    answers.collect()
}

fn write<I: Io>(
    handlers: &Handlers<I>,
    request: &Request<'_>,
    scope: &Scope,
    found: Vec<FetchedPart>,
) -> Vec<Bytes> {
    let mut sessions = handlers.sessions.borrow_mut();
    let mut answers: Vec<(&SessionKey, FetchedPart)> = Vec::with_capacity(found.len());
    for ((key, _), part) in scope.parts.iter().zip(found) {
        let told = (part.high_watermark, part.log_start);
        let is_news = scope.session == 0 || sessions.tell(scope.session, key, told);
        let is_wanted =
            !scope.is_incremental || is_news || part.is_error() || !part.records.is_empty();
        if is_wanted {
            answers.push((key, part));
        }
    }
    let (version, correlation) = (request.version(), request.header.correlation);
    let mut writer = FetchWriter::new(version, correlation, ErrorCode::NONE, scope.session);
    // Neighbours of one topic share its header; a session's turn may split a topic in two.
    let same = |one: &SessionKey, two: &SessionKey| one.name == two.name && one.id == two.id;
    let topics = answers.chunk_by(|(one, _), (two, _)| same(one, two)).count();
    writer.topics(topics);
    let mut left = answers.into_iter().peekable();
    while let Some((key, first)) = left.next() {
        let mut group = vec![(key.partition, first)];
        while let Some((next, part)) = left.next_if(|(next, _)| same(next, key)) {
            group.push((next.partition, part));
        }
        writer.topic(&key.name, key.id, group.len());
        for (index, part) in group {
            let head = FetchedHead {
                index,
                error: part.error,
                high_watermark: part.high_watermark,
                last_stable: part.high_watermark,
                log_start: part.log_start,
            };
            writer.partition(head, part.records);
        }
        writer.end_topic();
    }
    writer.finish()
}
