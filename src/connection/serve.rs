//! The reader of one connection: frame after frame to its handler.

use std::rc::Rc;

use super::answers::Answer;
use super::frames::{Frame, FrameEnd, Frames};
use super::{Connection, Connections, Waits};
use crate::base::limits;
use crate::handler::{self, Request};
use crate::io::{Io, Stream};
use crate::wire::api::ApiKey;
use crate::wire::header::{RequestHeader, RequestStart};
use crate::wire::primitive::Reader;

/// Why a connection is closed from this side, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed(pub String);

/// Serves until the client closes, or has to be closed.
pub async fn run<I: Io>(connections: &Rc<Connections<I>>, connection: &Rc<Connection<I>>) {
    let mut frames = Frames::new();
    let io = &connections.io;
    let bounds = (&connections.bounds, &connections.budget);
    let peer = connection.stream.peer();
    while !connections.closing.get() && !connection.answers.is_ended() {
        let frame = match frames.next(connection, bounds, || io.now()).await {
            Ok(frame) => frame,
            Err(FrameEnd::Closed) => break,
            Err(FrameEnd::Broken(why)) => {
                tracing::debug!("{peer} is closed: {why}");
                break;
            }
            Err(FrameEnd::Length(why)) => {
                tracing::warn!("{peer} is closed: {why}");
                break;
            }
        };
        if let Err(Closed(why)) = serve(connections, connection, frame).await {
            tracing::warn!("{peer} is closed: {why}");
            break;
        }
    }
    connection.waits.set((Waits::Nothing, io.now()));
    connection.answers.end();
}

async fn serve<I: Io>(
    connections: &Rc<Connections<I>>,
    connection: &Rc<Connection<I>>,
    frame: Frame,
) -> Result<(), Closed> {
    let Frame { bytes, charge } = frame;
    let frame_bytes = bytes.len();
    let reader = &mut Reader::new(&bytes);
    let start = RequestStart::decode(reader).map_err(|error| Closed(error.to_string()))?;
    let answers = &connection.answers;
    if start.key == ApiKey::ApiVersions as i16
        && !ApiKey::ApiVersions.versions().contains(&start.version)
    {
        answers.all_written().await;
        let answer = handler::unsupported_api_versions(start.correlation);
        answers.push(Answer::Ready(answer), frame_bytes, charge);
        return Ok(());
    }
    let api = find_api(start)?;
    if api != ApiKey::Produce && frame_bytes > limits::CONTROL_REQUEST_BYTES_MAX {
        return Err(Closed(format!("a {} request of {frame_bytes} bytes", api.name())));
    }
    let header = RequestHeader::decode(start, api, reader).map_err(|error| {
        Closed(format!("the header of a {} request is malformed: {error}", api.name()))
    })?;
    let body_at = frame_bytes - reader.remaining();
    let peer = connection.stream.peer();
    let request = Request { header, frame: &bytes, body: reader.rest(), body_at, peer };
    if api == ApiKey::Produce {
        answers.room(connections.bounds.inflight_bytes_max).await;
        let pending = handler::produce::admit(&connections.handlers, &request).await?;
        answers.push(Answer::Produce(pending), frame_bytes, charge);
        return Ok(());
    }
    answers.all_written().await;
    if answers.is_ended() {
        return Ok(());
    }
    let answer = match api {
        ApiKey::Fetch => {
            let handled = handler::fetch::handle(&connections.handlers, &request, answers.pieces());
            answers.hold(handled.await?);
            Answer::Written
        }
        _ => Answer::Ready(handler::handle(&connections.handlers, &request).await?),
    };
    answers.push(answer, frame_bytes, charge);
    Ok(())
}

fn find_api(start: RequestStart) -> Result<ApiKey, Closed> {
    let RequestStart { key, version, .. } = start;
    let api = ApiKey::from_i16(key)
        .filter(|api| api.is_served())
        .ok_or_else(|| Closed(format!("API key {key} (version {version}) is not served")))?;
    if api.versions().contains(&version) {
        return Ok(api);
    }
    let (low, high) = api.versions().into_inner();
    Err(Closed(format!("{} version {version} is not served, only {low} to {high}", api.name())))
}
