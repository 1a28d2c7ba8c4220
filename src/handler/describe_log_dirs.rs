//! DescribeLogDirs (KIP-113): the data directory and the size of every partition in it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;

use super::{Handlers, Request};
use crate::base::ids::PartitionId;
use crate::connection::Closed;
use crate::io::Io;
use crate::wire::api::describe_log_dirs::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic, Request as Asked,
    Response,
};

pub async fn handle<I: Io>(
    handlers: &Rc<Handlers<I>>,
    request: &Request<'_>,
) -> Result<Vec<Bytes>, Closed> {
    let asked: Asked<'_> = request.decode()?;
    let dispatch = &handlers.dispatch;
    // A core that is a broker of its own answers for itself.
    let is_alone = handlers.identity.cores.is_some();
    let found = if is_alone {
        vec![(dispatch.local().sizes(), dispatch.local().journal().usage())]
    } else {
        dispatch.call_all(|owner| async move { (owner.sizes(), owner.journal().usage()) }).await
    };
    let used: u64 = found.iter().map(|(_, (used, _))| used).sum();
    let limit: u64 = found.iter().map(|(_, (_, limit))| limit).sum();
    let sizes: BTreeMap<PartitionId, u64> =
        found.into_iter().flat_map(|(sizes, _)| sizes).collect();
    let image = handlers.image();
    let wanted: Option<BTreeSet<(&str, i32)>> = asked.topics.as_ref().map(|topics| {
        let named = topics.iter();
        named.flat_map(|topic| topic.partitions.iter().map(|index| (topic.topic, *index))).collect()
    });
    let is_wanted = |name: &str, index: u32| {
        wanted.as_ref().is_none_or(|wanted| wanted.contains(&(name, index.cast_signed())))
    };
    let topics = image.topics().filter_map(|topic| {
        let is_here = |index: u32| {
            let id = PartitionId { topic: topic.number, index };
            !is_alone || dispatch.owner_of(id) == dispatch.local().core()
        };
        let indexes =
            (0..topic.partitions).filter(|index| is_wanted(&topic.name, *index) && is_here(*index));
        let partitions: Vec<_> = indexes
            .map(|index| {
                let id = PartitionId { topic: topic.number, index };
                let size = sizes.get(&id).copied().unwrap_or(0);
                DescribeLogDirsPartition {
                    partition_index: index.cast_signed(),
                    partition_size: i64::try_from(size).unwrap_or(i64::MAX),
                    offset_lag: 0,
                    is_future_key: false,
                }
            })
            .collect();
        let is_empty = partitions.is_empty();
        (!is_empty).then_some(DescribeLogDirsTopic { name: &topic.name, partitions })
    });
    let directory = handlers.dispatch.shared().config().text("log.dirs").to_string();
    let result = DescribeLogDirsResult {
        error_code: 0,
        log_dir: &directory,
        topics: topics.collect(),
        total_bytes: i64::try_from(limit).unwrap_or(i64::MAX),
        usable_bytes: i64::try_from(limit.saturating_sub(used)).unwrap_or(i64::MAX),
    };
    Ok(request.answer(&Response { results: vec![result], ..Response::default() }))
}
