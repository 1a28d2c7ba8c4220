//! Fetch: sessions, long polls, and record bytes by reference.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::sessions::{SessionKey, SessionPart};
use super::{Handlers, Request, counted_name, topic_of, unknown_topic};
use crate::base::few::Few;
use crate::connection::Closed;
use crate::dispatch::FetchPlan;
use crate::io::Io;
use crate::metadata::Image;
use crate::partition::{FetchPart, FetchedPart, Held};
use crate::wire::error::ErrorCode;
use crate::wire::fetch::{self, FetchAsked, FetchSink, FetchWriter, FetchedHead, PartitionAsked};
use crate::wire::pieces::Pieces;
use crate::wire::primitive::Uuid;
use crate::wire::produce::TopicRef;

/// The session epoch that opens a session with a full request.
const INITIAL_EPOCH: i32 = 0;
/// The session epoch of a request without a session, which also closes the one named.
const FINAL_EPOCH: i32 = -1;

/// Answers the request into `out`; what is given back counts its records until they are written.
pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
    out: &RefCell<Pieces>,
) -> Result<Few<Held>, Closed> {
    let version = request.version();
    let image = handlers.image();
    let mut named = Named::new(&image);
    let asked = fetch::read(request.body, version, &mut named).map_err(|error| {
        Closed(format!("a Fetch request (version {version}) is malformed: {error}"))
    })?;
    let scope = match open_scope(handlers, &asked, named) {
        Ok(scope) => scope,
        Err(error) => {
            let ids = (version, request.header.correlation);
            let out = &mut out.borrow_mut();
            let mut writer = FetchWriter::new(out, ids, error, 0);
            writer.topics(0);
            writer.finish();
            return Ok(Few::new());
        }
    };
    let found = read(handlers, &image, &asked, &scope).await;
    Ok(write(handlers, request, (&scope, found), &mut out.borrow_mut()))
}

/// The partitions that a request names.
struct Named<'a> {
    image: &'a Image,
    /// Of the topic that the walk is in.
    topic: (Arc<str>, Uuid),
    parts: Few<(SessionKey, SessionPart)>,
    forgotten: Vec<SessionKey>,
}

impl<'a> Named<'a> {
    fn new(image: &'a Image) -> Named<'a> {
        let topic = (Arc::default(), Uuid::ZERO);
        Named { image, topic, parts: Few::new(), forgotten: Vec::new() }
    }
}

impl<'r> FetchSink<'r> for Named<'_> {
    fn topic(&mut self, topic: TopicRef<'r>) {
        let (name, id) = topic.name_and_id();
        self.topic = (counted_name(name, self.image.topic(name)), id);
    }

    fn partition(&mut self, asked: PartitionAsked) {
        let (name, id) = self.topic.clone();
        let key = SessionKey { name, id, partition: asked.index };
        let part = SessionPart {
            offset: asked.offset,
            bytes_max: asked.bytes_max,
            leader_epoch: asked.leader_epoch,
            told: None,
        };
        self.parts.push((key, part));
    }

    fn forgotten(&mut self, topic: TopicRef<'r>, index: i32) {
        let (name, id) = topic.name_and_id();
        let name = counted_name(name, self.image.topic(name));
        self.forgotten.push(SessionKey { name, id, partition: index });
    }
}

/// What a request covers.
struct Scope {
    /// 0 without a session.
    session: i32,
    /// Only what changed is answered.
    is_incremental: bool,
    parts: Few<(SessionKey, SessionPart)>,
}

fn open_scope<I: Io>(
    handlers: &Handlers<I>,
    asked: &FetchAsked,
    named: Named<'_>,
) -> Result<Scope, ErrorCode> {
    let mut sessions = handlers.sessions.borrow_mut();
    let now = handlers.io().now();
    let Named { parts, forgotten, .. } = named;
    if matches!(asked.session_epoch, INITIAL_EPOCH | FINAL_EPOCH) {
        if asked.session_id != 0 {
            sessions.close(asked.session_id);
        }
        let session = if asked.session_epoch == INITIAL_EPOCH {
            sessions.open(parts.iter().cloned().collect(), handlers.io().random(), now)
        } else {
            0
        };
        return Ok(Scope { session, is_incremental: false, parts });
    }
    let session = sessions.resume(asked.session_id, asked.session_epoch, now)?;
    for key in &forgotten {
        session.forget(key);
    }
    let may_be_held = parts.iter().all(|(key, _)| key.may_be_held());
    for (key, part) in parts {
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
    asked: &FetchAsked,
    scope: &Scope,
) -> Few<FetchedPart> {
    let mut parts = Few::with_capacity(scope.parts.len());
    let mut refusals: Few<Option<ErrorCode>> = Few::with_capacity(scope.parts.len());
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
    (scope, found): (&Scope, Few<FetchedPart>),
    out: &mut Pieces,
) -> Few<Held> {
    let mut sessions = handlers.sessions.borrow_mut();
    let mut answers: Few<(&SessionKey, FetchedPart)> = Few::with_capacity(found.len());
    for ((key, _), part) in scope.parts.iter().zip(found) {
        let told = (part.high_watermark, part.log_start);
        let is_news = scope.session == 0 || sessions.tell(scope.session, key, told);
        let is_wanted =
            !scope.is_incremental || is_news || part.is_error() || !part.records.is_empty();
        if is_wanted {
            answers.push((key, part));
        }
    }
    let ids = (request.version(), request.header.correlation);
    let mut writer = FetchWriter::new(out, ids, ErrorCode::NONE, scope.session);
    // Neighbours of one topic share its header; a session's turn may split a topic in two.
    let is_same = |(one, _): &(&SessionKey, FetchedPart), (two, _): &(&SessionKey, FetchedPart)| {
        one.name == two.name && one.id == two.id
    };
    let mut held = Few::new();
    writer.topics(answers.chunk_by(is_same).count());
    for topic in answers.chunk_by_mut(is_same) {
        let Some((key, _)) = topic.first() else { continue };
        writer.topic(&key.name, key.id, topic.len());
        for (key, part) in topic {
            let head = FetchedHead {
                index: key.partition,
                error: part.error,
                high_watermark: part.high_watermark,
                last_stable: part.high_watermark,
                log_start: part.log_start,
            };
            writer.partition(head, std::mem::take(&mut part.records));
            held.extend(part.held.take());
        }
        writer.end_topic();
    }
    writer.finish();
    held
}
