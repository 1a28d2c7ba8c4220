//! The records of `__consumer_offsets`: a restart replays whatever the topic holds.

use corelog::base::time::{Instant, UnixMillis};
use corelog::group::{Effect, Groups, Input, Now, Settings};
use corelog::wire::error::ErrorCode;

/// The first timeouts are enough: everybody is silent.
const TIMEOUTS: usize = 8;

/// `key length u16 | value length u16, 65535 for a tombstone | key | value`, repeated.
pub fn replay(data: &[u8]) {
    let mut groups = Groups::new(Settings::default());
    let mut left = data;
    while let Some((key, value)) = next_record(&mut left) {
        let _ = groups.replay(key, value);
    }
    let mut now = Now { monotonic: Instant(1_000_000_000), wall: UnixMillis(1_700_000_000_000) };
    groups.loaded(now);
    groups.check();
    look_at(&groups);
    // What the silence of all members writes, a further restart can read.
    let mut later = Groups::new(Settings::default());
    for _ in 0..TIMEOUTS {
        let Some((at, _)) = groups.next_timeout().filter(|(at, _)| *at < Instant::NEVER) else {
            break;
        };
        now.monotonic = now.monotonic.max(at);
        let mut effects = Vec::new();
        groups.handle(now, Input::Timeout, &mut effects);
        groups.check();
        for effect in effects {
            let Effect::Write { write, records, .. } = effect else { continue };
            for record in &records {
                let outcome = later.replay(&record.key, record.value.as_deref());
                assert_eq!(outcome, Ok(()), "a record of our own");
            }
            groups.handle(now, Input::Written { write, error: ErrorCode::NONE }, &mut Vec::new());
            groups.check();
        }
    }
    later.loaded(now);
    later.check();
}

fn next_record<'a>(left: &mut &'a [u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    let ([a, b, c, d], rest) = left.split_first_chunk()?;
    let (key, value) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
    let (key, rest) = rest.split_at(usize::from(key).min(rest.len()));
    let is_tombstone = value == u16::MAX;
    let length = if is_tombstone { 0 } else { usize::from(value).min(rest.len()) };
    let (value, rest) = rest.split_at(length);
    *left = rest;
    Some((key, (!is_tombstone).then_some(value)))
}

fn look_at(groups: &Groups) {
    let ids: Vec<String> = groups.list().map(|listed| listed.group_id.to_string()).collect();
    for id in ids {
        assert!(groups.describe(&id).is_some(), "a listed group is described");
        for (topic, partition, committed) in groups.offsets(&id) {
            assert_eq!(groups.offset(&id, topic, partition), Some(committed));
        }
    }
}
