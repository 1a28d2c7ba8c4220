//! Damage: bytes that flip, files that are cut short or gone. Each is told with its place and what
//! is lost, what is not damaged stays served, and `corelog repair` does what its dry run has said.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::asks::{Ask, fetched};
use crate::frames::{Batch, Peer, produce, produced};
use crate::full::delete_topic;
use crate::segments::{await_that, create, segment_files, write};
use crate::start::{assert_refused, contents};
use crate::world::{Broker, corelog, fresh};

pub const KAFKA_STORAGE_ERROR: i16 = 56;
pub const FOREVER: (&str, &str) = ("retention.ms", "-1");

/// One core whose journal is drained all the time.
pub const SMALL: &[(&str, &str)] = &[
    ("cores", "0"),
    ("shards", "1"),
    ("journal.bytes.max", "67108864"),
    ("core.memory.bytes", "67108864"),
    ("storage.scrub.interval.ms", "200"),
    ("storage.scrub.bytes.per.second", "1000000000"),
];

pub fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("readable");
    file.write_all_at(&[byte[0] ^ 0x20], at).expect("writable");
    file.sync_all().expect("durable");
}

/// The offsets of partition 0 that can be read, and those at which a read fails.
fn readable(peer: &mut Peer, topic: &str, end: i64) -> (Vec<i64>, Vec<i64>) {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    let mut next = 0;
    while next < end {
        let parts = [(0, next, 1 << 20)];
        let ask = Ask { topic, parts: &parts, wait_ms: 0, bytes_min: 0, bytes_max: 1 << 20 };
        let part = fetched(&peer.ask(&ask.encode())).remove(0);
        match part.error {
            0 => {
                assert!(!part.bases.is_empty(), "there is something at {next}");
                found.extend(part.bases.iter().filter(|base| **base >= next));
                next = (part.bases.last().expect("a batch") + 1).max(next + 1);
            }
            error => {
                assert_eq!(error, KAFKA_STORAGE_ERROR);
                failed.push(next);
                next += 1;
            }
        }
    }
    (found, failed)
}

/// All offsets from 0 to `end` but these.
pub fn all_but(lost: &[i64], end: i64) -> Vec<i64> {
    (0..end).filter(|offset| !lost.contains(offset)).collect()
}

/// `corelog repair`: its exit code and its words.
pub fn repair(broker: &Broker, is_dry: bool) -> (Option<i32>, String) {
    let data = broker.data().display().to_string();
    let dry: &[&str] = if is_dry { &["--dry-run"] } else { &[] };
    corelog(&[&["repair", "--data-dir", &data], dry].concat())
}

/// Repairs a stopped broker's data: the dry run changes nothing and says all of `words`; the real
/// one leaves nothing damaged.
pub fn mend(broker: &Broker, words: &[&str]) {
    let before = contents(&broker.data());
    let (code, said) = repair(broker, true);
    assert_eq!(code, Some(1), "{said}");
    println!("{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(contents(&broker.data()) == before, "a dry run changes nothing");
    let (code, mended) = repair(broker, false);
    assert_eq!(code, Some(0), "{mended}");
    let told = said.lines().filter(|line| line.contains("lost: "));
    told.for_each(|line| assert!(mended.contains(line), "no `{line}` in: {mended}"));
    let (code, said) = repair(broker, true);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("is damaged") && said.starts_with("nothing in"), "{said}");
    let kept = fs::read_dir(broker.data()).expect("readable").flatten();
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("damaged-"));
    assert!(kept.count() >= 1, "what was changed is kept");
}

pub fn stop(broker: &mut Broker) {
    broker.signal("TERM");
    assert!(broker.ended().success(), "{}", broker.log());
}

#[test]
fn damaged_segments_are_told_once_and_cost_their_own_records_alone() {
    let mut broker = Broker::start(SMALL);
    let (topic, other) = (fresh("rotten"), fresh("sound"));
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER, ("segment.bytes", "8388608")]);
    create(&mut peer, &other, &[FOREVER]);
    write(&mut peer, &topic, 0..120);
    write(&mut peer, &other, 0..60);
    // Whichever topic was made first has the lower number.
    let files: Vec<PathBuf> = segment_files(&broker);
    let of_topic = files[0].parent().expect("a folder");
    let files: Vec<&PathBuf> = files.iter().filter(|f| f.parent() == Some(of_topic)).collect();
    assert!(files.len() > 6, "{files:?}");
    let base = |file: &Path| -> i64 {
        let stem = file.file_stem().expect("a name").to_str().expect("digits");
        stem.parse().expect("an offset")
    };
    // Inside a record, a batch's length, cut in the middle, gone.
    let [rotten, lying, cut, gone, active] =
        [0, 1, 2, 3, files.len() - 1].map(|at| files[at].clone());
    let batch_bytes = fs::metadata(&rotten).expect("there").len() / (base(&lying) as u64);
    flip(&rotten, 2 * batch_bytes + 5000);
    flip(&lying, batch_bytes + 9);
    let cut_to = fs::metadata(&cut).expect("there").len() - batch_bytes - 100;
    fs::File::options().write(true).open(&cut).expect("there").set_len(cut_to).expect("cut");
    fs::remove_file(&gone).expect("there");
    let after_gone = base(files[4]);
    let mut lost = vec![base(&rotten) + 2, base(&lying) + 1, base(&gone) - 2, base(&gone) - 1];
    lost.extend(base(&gone)..after_gone);

    let name = format!("topic {topic} partition 0");
    for (file, word) in [
        (&rotten, format!("offsets {} to before {} of {name}", lost[0], lost[0] + 1)),
        (&lying, format!("offsets {} to before {} of {name}", lost[1], lost[1] + 1)),
        (&cut, format!("offsets {} to before {} of {name}", lost[2], lost[3] + 1)),
        (&gone, format!("offsets {} to before {after_gone} of {name}", base(&gone))),
    ] {
        broker.await_log(&word);
        assert!(broker.log().contains(&file.display().to_string()), "{}", broker.log());
    }
    // The segment that grows is gone as well: draining goes on with another one.
    stop(&mut broker);
    fs::remove_file(&active).expect("there");
    let active_base = base(&active);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    write(&mut peer, &topic, 120..180);
    broker.await_log("should have");
    write(&mut peer, &other, 60..61);
    let (found, failed) = readable(&mut peer, &topic, 180);
    assert_eq!(failed[..lost.len()], lost, "no read goes past what is lost in silence");
    let lost = failed;
    assert!(lost.contains(&active_base), "{lost:?}");
    assert_eq!(found, all_but(&lost, 180), "everything else is served");
    assert_eq!(readable(&mut peer, &other, 61).0, all_but(&[], 61));
    let place = format!("{} is damaged at byte", lying.display());
    // By the scrubber, which passes every fifth of a second, in each of the two runs.
    let told = broker.log().matches(&place).count();
    assert!((1..=2).contains(&told), "told once: {}", broker.log());
    broker.assert_alive();

    stop(&mut broker);
    let (code, said) = corelog(&["inspect", rotten.to_str().expect("UTF-8")]);
    assert!(code == Some(1) && said.contains("DAMAGED"), "{said}");
    assert!(said.contains("offsets 1 to 1, records 1, codec none"), "{said}");
    let words = [
        &*format!("lost: {name}, offsets {} to before {}", lost[0], lost[0] + 1),
        &format!("lost: {name}, offsets {} to before {after_gone}", base(&gone)),
        "a record batch's checksum is wrong",
        "the file ends here",
        "the file is missing",
    ];
    mend(&broker, &words);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    let (found, failed) = readable(&mut peer, &topic, 180);
    assert_eq!(failed, Vec::<i64>::new(), "readers go past what was given up");
    let records: Vec<i64> = found.iter().filter(|base| !lost.contains(base)).copied().collect();
    assert_eq!(records, all_but(&lost, 180));
    assert_eq!(readable(&mut peer, &other, 61).0, all_but(&[], 61));
    write(&mut peer, &topic, 180..181);
}

/// Where things lie in a journal file, by `corelog inspect`.
#[derive(Debug, Default)]
pub struct Places {
    /// Of each batch of a topic: its group's place, and its own.
    pub batches: BTreeMap<(u64, i64), (u64, u64)>,
    /// Of each topic's creation.
    pub created: BTreeMap<String, (u64, u64)>,
    /// Group by place, with its bytes.
    groups: BTreeMap<u64, u64>,
}

pub fn places(file: &Path) -> Places {
    let (_, said) = corelog(&["inspect", "--json", file.to_str().expect("UTF-8")]);
    let mut places = Places::default();
    let mut group = 0;
    for line in said.lines().filter(|line| line.starts_with('{')) {
        let value: Value = serde_json::from_str(line).expect("JSON");
        let position = value["position"].as_u64().unwrap_or(0);
        if value["group"].is_u64() {
            group = position;
            places.groups.insert(position, value["bytes"].as_u64().expect("bytes"));
        }
        for content in value["contents"].as_array().into_iter().flatten() {
            if let (Some(topic), Some(first)) =
                (value["topic_number"].as_u64(), content["first"].as_i64())
            {
                places.batches.insert((topic, first), (group, position));
            }
            let words = content.as_str().and_then(|words| words.strip_prefix("topic "));
            if let Some((name, rest)) =
                words.and_then(|words| words.split_once(" is created, number "))
            {
                let number = rest.split(',').next().expect("a number").parse().expect("a number");
                places.created.insert(name.to_string(), (number, group));
            }
        }
    }
    places
}

/// A stopped broker of one core with records 0 to 8 in each of two topics, in groups of their own.
fn two_topics() -> (Broker, String, String) {
    let mut broker = Broker::start(&[("cores", "0"), ("shards", "1")]);
    let (one, two) = (fresh("one"), fresh("two"));
    let mut peer = Peer::connect(broker.address());
    for topic in [&one, &two] {
        create(&mut peer, topic, &[FOREVER]);
    }
    for offset in 0..8 {
        for topic in [&one, &two] {
            let batch = Batch { value_bytes: 5000, ..Batch::default() }.encode();
            assert_eq!(produced(&peer.ask(&produce(topic, &batch)), topic), (0, offset));
        }
    }
    stop(&mut broker);
    (broker, one, two)
}

#[test]
fn a_damaged_journal_refuses_to_start_and_is_mended_at_the_cost_of_what_is_lost() {
    let (mut broker, one, two) = two_topics();
    let journal = broker.data().join("core-0/journal-000000000000");
    let good = contents(&broker.data());
    let found = places(&journal);
    let (number, _) = found.created[&one];
    let (group, body) = found.batches[&(number, 3)];
    let (last_group, _) = found.batches[&(number, 7)];
    let bytes = found.groups[&group];
    assert_eq!(bytes, 8192, "a group of two blocks");
    let directory = body + 5000 + 61;
    let inside = [group, group + 17, group + 33, body + 9, body + 3000, directory + 20];
    for at in inside {
        flip(&journal, at);
        let before = contents(&broker.data());
        let place = format!("{} is damaged at byte {group}", journal.display());
        assert_refused(&mut broker.command(), 1, &[&place, "corelog repair --dry-run"]);
        assert!(contents(&broker.data()) == before, "a refused start changes nothing");
        let lost = format!("lost: topic {one} partition 0, offsets 3 to before 4");
        mend(&broker, &[&place, &lost]);
        broker.launch();
        let mut peer = Peer::connect(broker.address());
        let (found, failed) = readable(&mut peer, &one, 8);
        assert_eq!(failed, Vec::<i64>::new());
        assert_eq!(found, all_but(&[], 8), "an empty batch stands where the lost one was");
        assert_eq!(readable(&mut peer, &two, 8), (all_but(&[], 8), vec![]));
        let record = produce(&one, &Batch::default().encode());
        assert_eq!(produced(&peer.ask(&record), &one), (0, 8), "no offset is given again");
        stop(&mut broker);
        restore(&broker.data(), &good);
    }
    // The last record of a topic: nothing of it comes behind, but its directory names it.
    flip(&journal, last_group + 3000);
    let lost = format!("lost: topic {one} partition 0, offsets 7 to before 8, and perhaps more");
    mend(&broker, &[&lost]);
    broker.launch();
    let record = produce(&one, &Batch::default().encode());
    assert_eq!(produced(&Peer::connect(broker.address()).ask(&record), &one), (0, 8));
    stop(&mut broker);
    restore(&broker.data(), &good);
    // Several groups at once, in one stretch of zeros.
    let (from, _) = found.batches[&(number, 2)];
    let (to, _) = found.batches[&(number, 5)];
    let file = fs::File::options().write(true).open(&journal).expect("a file");
    file.write_all_at(&vec![0; usize::try_from(to - from).expect("small")], from).expect("written");
    let words = [
        &*format!("lost: topic {one} partition 0, offsets 2 to before 5"),
        &format!("lost: topic {two} partition 0, offsets 2 to before 5"),
    ];
    mend(&broker, &words);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &one, 8).1, Vec::<i64>::new());
    assert_eq!(readable(&mut peer, &two, 8).0.last(), Some(&7));
}

fn restore(data: &Path, good: &BTreeMap<PathBuf, Vec<u8>>) {
    for path in contents(data).keys().filter(|path| !good.contains_key(*path)) {
        fs::remove_file(path).expect("there");
    }
    for (path, bytes) in good {
        fs::write(path, bytes).expect("writable");
    }
}

#[test]
fn a_topic_whose_creation_is_lost_keeps_its_records_under_another_name() {
    let (mut broker, one, two) = two_topics();
    let journal = broker.data().join("core-0/journal-000000000000");
    let (number, group) = places(&journal).created[&two];
    flip(&journal, group + 100);
    let called = format!("it is called recovered-{number}");
    mend(&broker, &["it holds metadata", &called]);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &one, 8), (all_but(&[], 8), vec![]));
    assert_eq!(readable(&mut peer, &format!("recovered-{number}"), 8), (all_but(&[], 8), vec![]));
}

/// Its number is given, so that it looked as if it had been deleted: its records were removed.
#[test]
fn a_topic_whose_creation_is_lost_before_other_metadata_keeps_its_records() {
    let (mut broker, one, two) = two_topics();
    let journal = broker.data().join("core-0/journal-000000000000");
    // Of a topic that was deleted nothing comes back.
    broker.launch();
    let gone = fresh("gone");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &gone, &[FOREVER]);
    write(&mut peer, &gone, 0..2);
    assert_eq!(delete_topic(&mut peer, &gone), 0);
    broker.restart();
    stop(&mut broker);
    let found = places(&journal).created;
    let (number, group) = found[&one];
    let (not, _) = found[&gone];
    flip(&journal, group + 100);
    let words =
        ["it holds metadata", "metadata may be lost", &format!("it is called recovered-{number}")];
    let (_, said) = repair(&broker, true);
    assert!(!said.contains(&format!("recovered-{not}")), "{said}");
    mend(&broker, &words);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &format!("recovered-{number}"), 8), (all_but(&[], 8), vec![]));
    assert_eq!(readable(&mut peer, &two, 8), (all_but(&[], 8), vec![]));
}

/// A stopped broker whose journal has several files, with twenty large records.
fn several_files() -> (Broker, String) {
    let mut broker =
        Broker::start(&[("cores", "0"), ("shards", "1"), ("journal.file.bytes", "4194304")]);
    let topic = fresh("holed");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER]);
    write(&mut peer, &topic, 0..20);
    stop(&mut broker);
    (broker, topic)
}

#[test]
fn a_journal_file_that_is_missing_is_told_and_mended() {
    let (mut broker, topic) = several_files();
    let gone = broker.data().join("core-0/journal-000000000002");
    let first = *places(&gone).batches.keys().next().expect("records");
    let count = places(&gone).batches.len();
    fs::remove_file(&gone).expect("there");
    let place = format!("{} is missing", gone.display());
    assert_refused(&mut broker.command(), 1, &[&place, "corelog repair --dry-run"]);
    let to = first.1 + i64::try_from(count).expect("few");
    let lost = format!("lost: topic {topic} partition 0, offsets {} to before {to}", first.1);
    mend(&broker, &["the file is missing", &lost]);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    let (found, failed) = readable(&mut peer, &topic, 20);
    assert_eq!(failed, Vec::<i64>::new());
    assert_eq!(found.iter().filter(|base| **base < first.1 || **base >= to).count(), 20 - count);
    write(&mut peer, &topic, 20..21);
}

/// Nothing before it is there to say that it should be.
#[test]
fn the_first_journal_file_is_missed_and_what_it_held_is_told() {
    let (mut broker, topic) = several_files();
    let gone = broker.data().join("core-0/journal-000000000000");
    let found = places(&gone);
    let number = found.created[&topic].0;
    let to = found.batches.keys().last().expect("records").1 + 1;
    fs::remove_file(&gone).expect("there");
    let place = format!("{} is missing", gone.display());
    assert_refused(&mut broker.command(), 1, &[&place, "corelog repair --dry-run"]);
    let name = format!("recovered-{number}");
    let lost = format!("lost: topic {name} partition 0, offsets 0 to before {to}");
    mend(&broker, &["the file is missing", &lost]);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &name, 20), (all_but(&(1..to).collect::<Vec<_>>(), 20), vec![]));
    write(&mut peer, &name, 20..21);
}

/// Nothing behind it is there to say that it should be; and how much it held nobody knows.
#[test]
fn the_last_journal_files_are_missed() {
    let (mut broker, topic) = several_files();
    let folder = broker.data().join("core-0");
    let journal = |number: u32| folder.join(format!("journal-{number:012}"));
    let count = (0..).take_while(|number| journal(*number).exists()).count();
    let count = u32::try_from(count).expect("few");
    let first = (1..count).find(|number| !places(&journal(*number)).batches.is_empty());
    let first = first.expect("a second file with records");
    let end = places(&journal(first)).batches.keys().next().expect("records").1;
    (first..count).for_each(|number| fs::remove_file(journal(number)).expect("there"));
    let place = format!("{} is missing", journal(first).display());
    assert_refused(&mut broker.command(), 1, &[&place, "corelog repair --dry-run"]);
    mend(&broker, &[&place, "lost: what was written last on this core"]);
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &topic, end), (all_but(&[], end), vec![]));
    write(&mut peer, &topic, end..end + 10);
    stop(&mut broker);
    // And if all of them are gone, this is no new node.
    (0..count).for_each(|number| drop(fs::remove_file(journal(number))));
    let place = format!("{} is missing", journal(0).display());
    assert_refused(&mut broker.command(), 1, &[&place]);
    let (code, said) = repair(&broker, true);
    assert!(code == Some(1) && said.contains(&place), "{said}");
}

/// A record goes bad in the journal of a running node: it is drained all the same.
#[test]
fn a_journal_that_goes_bad_under_a_running_node_is_drained_and_costs_one_record() {
    let mut broker = Broker::start(SMALL);
    let (topic, other) = (fresh("rotten"), fresh("sound"));
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER]);
    create(&mut peer, &other, &[FOREVER]);
    write(&mut peer, &topic, 0..10);
    write(&mut peer, &other, 0..4);
    let journal = broker.data().join("core-0/journal-000000000000");
    let found = places(&journal);
    let (number, _) = found.created[&topic];
    // In one place a record's inside, in the other a whole group's header.
    let (_, body) = found.batches[&(number, 2)];
    let (group, _) = found.batches[&(number, 5)];
    flip(&journal, body + 70_000);
    flip(&journal, group + 40);
    for next in 0..15 {
        write(&mut peer, &other, 4 + 10 * next..4 + 10 * (next + 1));
    }
    broker.await_log("what is sound behind it is moved on");
    let (found, failed) = readable(&mut peer, &topic, 10);
    // The drain may have been so early that it found the record in memory.
    assert!(failed.is_empty() || failed == [2], "{failed:?}: {}", broker.log());
    assert_eq!(found, all_but(&failed, 10));
    assert_eq!(readable(&mut peer, &other, 154), (all_but(&[], 154), vec![]));
    await_that("the damage is told", || {
        let words = format!("offsets 2 to before 3 of topic {topic} partition 0");
        failed.is_empty() || broker.log().contains(&words)
    });
    broker.restart();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &topic, 10), (all_but(&failed, 10), failed));
    write(&mut peer, &topic, 10..11);
}

#[test]
fn a_running_node_is_not_repaired_and_a_sound_one_needs_nothing() {
    let (mut broker, one, _) = two_topics();
    let (code, said) = repair(&broker, true);
    assert!(code == Some(0) && said.contains("is damaged"), "{said}");
    broker.launch();
    let (code, said) = repair(&broker, false);
    assert!(code == Some(1) && said.contains("belongs to a running Corelog"), "{said}");
    assert_eq!(readable(&mut Peer::connect(broker.address()), &one, 8).0, all_but(&[], 8));
}

/// What is drained after a growing segment has lost its end, or its name, goes into another one.
#[test]
fn a_segment_that_is_cut_or_removed_under_a_running_node_takes_no_more() {
    let mut broker = Broker::start(SMALL);
    let topic = fresh("growing");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER]);
    let mut end = 0;
    let mut lost: Vec<i64> = Vec::new();
    for is_cut in [true, false] {
        write(&mut peer, &topic, end..end + 60);
        end += 60;
        let mut before = Vec::new();
        let lengths = |broker: &Broker| -> Vec<u64> {
            segment_files(broker).iter().map(|f| f.metadata().map_or(0, |m| m.len())).collect()
        };
        await_that("nothing is drained any more", || {
            std::thread::sleep(Duration::from_millis(300));
            let found = lengths(&broker);
            std::mem::replace(&mut before, found.clone()) == found && !found.is_empty()
        });
        let active = segment_files(&broker).pop().expect("one");
        let stem = active.file_stem().expect("a name").to_str().expect("digits");
        let base: i64 = stem.parse().expect("an offset");
        let length = *before.last().expect("one");
        let batch_bytes = 1_000_000 + 80;
        let held = i64::try_from((length + 500_000) / 1_000_000).expect("few");
        let file = fs::File::options().write(true).open(&active).expect("there");
        match is_cut {
            true => file.set_len(batch_bytes + 5000).expect("cut"),
            false => fs::remove_file(&active).expect("there"),
        }
        lost.extend(base + i64::from(is_cut)..base + held);
        write(&mut peer, &topic, end..end + 60);
        end += 60;
        broker.await_log(&format!("{} should have", active.display()));
    }
    assert!(lost.len() > 10, "{lost:?}");
    broker.restart();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &topic, end), (all_but(&lost, end), lost));
}

/// The first journal file that is needed, as `journal.range` says.
pub fn first_needed(core: &Path) -> u64 {
    let bytes = fs::read(core.join("journal.range")).expect("readable");
    u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"))
}

#[test]
fn a_damaged_journal_file_that_is_drained_stops_no_start() {
    let mut broker = Broker::start(SMALL);
    let topic = fresh("drained");
    create(&mut Peer::connect(broker.address()), &topic, &[FOREVER]);
    let core = broker.data().join("core-0");
    let journal = |number: u64| core.join(format!("journal-{number:012}"));
    let mut end = 0;
    let released = loop {
        write(&mut Peer::connect(broker.address()), &topic, end..end + 40);
        end += 40;
        stop(&mut broker);
        let first = first_needed(&core);
        let found: Vec<u64> = (0..first).filter(|number| journal(*number).exists()).collect();
        if !found.is_empty() {
            break found;
        }
        assert!(end < 2000, "no file waits to be used again");
        broker.launch();
    };
    for number in &released {
        flip(&journal(*number), 5000);
    }
    let (code, said) = repair(&broker, true);
    assert!(code == Some(0) && said.contains("is damaged"), "nothing is lost: {said}");
    broker.launch();
    let place = format!("{} is damaged at byte 0", journal(released[0]).display());
    broker.await_log(&place);
    broker.await_log("nothing in that file is needed any more");
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &topic, end), (all_but(&[], end), vec![]));
    write(&mut peer, &topic, end..end + 40);
    stop(&mut broker);
}
