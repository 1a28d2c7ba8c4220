//! DescribeLogDirs (KIP-113): the data directories, the size of every partition in them, and what
//! their file systems have left (KIP-827).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::base::ids::{CoreId, PartitionId};
use crate::connection::Closed;
use crate::io::Io;
use crate::metadata::Image;
use crate::wire::api::describe_log_dirs::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic, Request as Asked,
    Response,
};
use crate::wire::error::ErrorCode;

/// What Kafka says of the bytes of a volume that it knows nothing of.
const UNKNOWN_BYTES: i64 = -1;

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let dispatch = &handlers.dispatch;
    // A core that is a broker of its own answers for itself.
    let alone = handlers.identity.cores.map(|_| dispatch.local().core());
    let found = match alone {
        Some(_) => vec![dispatch.local().sizes()],
        None => dispatch.call_all(|owner| async move { owner.sizes() }).await,
    };
    let sizes: BTreeMap<PartitionId, u64> = found.into_iter().flatten().collect();
    let image = handlers.image();
    let wanted: Option<BTreeSet<(&str, i32)>> = asked.topics.as_ref().map(|topics| {
        let named = topics.iter();
        named.flat_map(|topic| topic.partitions.iter().map(|index| (topic.topic, *index))).collect()
    });
    let is_wanted = |name: &str, index: u32| {
        wanted.as_ref().is_none_or(|wanted| wanted.contains(&(name, index.cast_signed())))
    };
    let directories = dispatch.shared().directories();
    let names: Vec<_> = directories.iter().map(|(path, _)| path.display().to_string()).collect();
    let mut results = Vec::new();
    for (number, (path, failure)) in directories.iter().enumerate() {
        let is_in = |core: CoreId| {
            directories.of(core) == number && alone.is_none_or(|alone| alone == core)
        };
        if alone.is_some_and(|alone| directories.of(alone) != number) {
            continue;
        }
        let topics = topics_of(&image, &sizes, |name: &str, id: PartitionId| {
            is_in(dispatch.owner_of(id)) && is_wanted(name, id.index)
        });
        let failed = failure.is_some();
        let error = if failed { ErrorCode::KAFKA_STORAGE_ERROR } else { ErrorCode::NONE };
        let (total_bytes, usable_bytes) =
            if failed { (UNKNOWN_BYTES, UNKNOWN_BYTES) } else { volume(handlers.io(), path) };
        results.push(DescribeLogDirsResult {
            error_code: error.0,
            log_dir: names.get(number).map_or("", String::as_str),
            topics,
            total_bytes,
            usable_bytes,
        });
    }
    Ok(request.answer(&Response { results, ..Response::default() }))
}

/// Total and free bytes of the file system that holds `path`.
fn volume(io: &impl Io, path: &Path) -> (i64, i64) {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    match io.space(path) {
        Ok(space) if space.total > 0 => (bytes(space.total), bytes(space.free)),
        _ => (UNKNOWN_BYTES, UNKNOWN_BYTES),
    }
}

fn topics_of<'a>(
    image: &'a Image,
    sizes: &BTreeMap<PartitionId, u64>,
    is_meant: impl Fn(&str, PartitionId) -> bool,
) -> Vec<DescribeLogDirsTopic<'a>> {
    let topics = image.topics().filter_map(|topic| {
        let ids = (0..topic.partitions).map(|index| PartitionId { topic: topic.number, index });
        let partitions: Vec<_> = ids
            .filter(|id| is_meant(&topic.name, *id))
            .map(|id| DescribeLogDirsPartition {
                partition_index: id.index.cast_signed(),
                partition_size: i64::try_from(sizes.get(&id).copied().unwrap_or(0))
                    .unwrap_or(i64::MAX),
                offset_lag: 0,
                is_future_key: false,
            })
            .collect();
        let is_empty = partitions.is_empty();
        (!is_empty).then_some(DescribeLogDirsTopic { name: &topic.name, partitions })
    });
    topics.collect()
}
