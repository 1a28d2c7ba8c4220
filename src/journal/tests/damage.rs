//! What crashes and decay leave behind, made by hand on the files of a real journal.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use super::super::layout::{DIRECTORY_ENTRY_BYTES, GroupHeader};
use super::*;
use crate::journal::inspect::{Met, walk};
use crate::journal::mend::Survey;

/// A flush so late that no group knows of it.
const LATE: Flush = Flush::Within(Duration::from_secs(3600));

/// A small generator, so that a failure can be run again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

/// The journal's file `number`, writable behind the journal's back.
fn file_of(settings: &Settings, number: u64) -> File {
    let path = files::path(&settings.directory, number);
    OpenOptions::new().read(true).write(true).open(path).expect("a journal file")
}

/// The sound groups with their file and place, in the order of their sequence.
fn groups(settings: &Settings) -> Vec<(u64, u64, GroupHeader)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&settings.directory)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let Some(number) = files::number(name) else { continue };
        walk(&path, &mut |met| {
            if let Met::Group { position, header } = met {
                all.push((number, position, header));
            }
        })
        .expect("readable");
    }
    all.sort_by_key(|(_, _, header)| header.sequence);
    all
}

/// Appends `from..to` with a body each of `bytes`, one group after the other being sealed while
/// the one before is in flight, and closes.
fn fill(settings: &Settings, from: u32, to: u32, bytes: usize) -> Vec<u32> {
    filled(settings, from..to, bytes, true)
}

/// As `fill`, but the journal ends as in a crash after the last group is durable.
fn fill_and_die(settings: &Settings, from: u32, to: u32, bytes: usize) -> Vec<u32> {
    filled(settings, from..to, bytes, false)
}

fn filled(settings: &Settings, indices: Range<u32>, bytes: usize, closes: bool) -> Vec<u32> {
    with_journal(settings.clone(), move |_, journal, replayed| {
        let indices = indices.clone();
        async move {
            let journal = journal.expect("opened");
            let mut last = Position(0);
            for index in indices {
                let body = vec![index.to_le_bytes()[0]; bytes];
                journal.room(body.len()).await.expect("room");
                last = journal.append(entry(index), &body, |_| {}).expect("accepted").position;
            }
            if closes {
                journal.close().await;
            } else {
                journal.wait_durable(last).await.expect("durable");
            }
            replayed.into_iter().map(|(index, _)| index).collect()
        }
    })
}

fn reopen(settings: &Settings) -> Result<Vec<(u32, Vec<u8>)>, String> {
    with_journal(settings.clone(), |_, journal, replayed| async move {
        match journal {
            Ok(journal) => {
                journal.close().await;
                Ok(replayed)
            }
            Err(error) => Err(error.to_string()),
        }
    })
}

#[test]
fn damage_to_the_last_but_one_group_is_never_taken_for_a_torn_tail() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    fill_and_die(&settings, 0, 8, 200 << 10);
    let groups = groups(&settings);
    assert_eq!(groups.len(), 8, "every entry has a group of its own");
    let (number, position, _) = groups[6];
    file_of(&settings, number).write_all_at(&[0xee], position + 5000).expect("writable");
    let message = reopen(&settings).expect_err("acknowledged records are damaged");
    assert!(message.contains(&format!("at byte {position}")), "{message}");
    assert!(message.contains("entry 0"), "{message}");
}

#[test]
fn after_a_clean_end_damage_to_the_last_records_is_no_torn_tail_either() {
    for flush in [Flush::EveryGroup, LATE] {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let settings = Settings { flush, ..settings(directory.path()) };
        fill(&settings, 0, 8, 200 << 10);
        let groups = groups(&settings);
        let entries: Vec<u32> = groups.iter().map(|(.., header)| header.entries).collect();
        assert_eq!(entries, [1, 1, 1, 1, 1, 1, 1, 1, 0]);
        let file = file_of(&settings, 0);
        // Of the closing group itself nothing is lost.
        let mut closing = [0];
        let (_, position, _) = groups[8];
        file.read_exact_at(&mut closing, position + 20).expect("readable");
        file.write_all_at(&[closing[0] ^ 4], position + 20).expect("writable");
        assert_eq!(reopen(&settings).expect("nothing is lost").len(), 8);
        file.write_all_at(&closing, position + 20).expect("writable");
        let (_, position, _) = groups[7];
        file.write_all_at(&[0xee], position + 5000).expect("writable");
        let message = reopen(&settings).expect_err("acknowledged records are damaged");
        assert!(message.contains(&format!("at byte {position}")), "{message}");
    }
}

#[test]
fn a_journal_that_is_only_opened_and_closed_does_not_grow() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    fill_and_die(&settings, 0, 1, 100);
    for _ in 0..3 {
        reopen(&settings).expect("sound");
    }
    assert_eq!(groups(&settings).len(), 1);
}

#[test]
fn the_first_group_of_a_file_is_named_when_it_is_damaged() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    fill(&settings, 0, 40, 200 << 10);
    let groups = groups(&settings);
    assert!(groups.iter().any(|(number, ..)| *number == 1), "the journal rolled");
    file_of(&settings, 1).write_all_at(&[0xee; 64], 0).expect("writable");
    let message = reopen(&settings).expect_err("acknowledged records are damaged");
    assert!(message.contains("journal-000000000001 is damaged at byte 0"), "{message}");
}

/// Its magic, or the address that it says of itself: nothing that looks like a group is there.
#[test]
fn the_last_group_of_a_file_is_named_when_it_is_gone() {
    for at in [0, 30] {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let settings = settings(directory.path());
        fill(&settings, 0, 40, 200 << 10);
        let groups = groups(&settings);
        let (_, position, _) = groups.iter().rfind(|(number, ..)| *number == 0).expect("groups");
        file_of(&settings, 0).write_all_at(&[0xee], position + at).expect("writable");
        let message = reopen(&settings).expect_err("acknowledged records are damaged");
        let place = format!("journal-000000000000 is damaged at byte {position}");
        assert!(message.contains(&place), "{message}");
    }
}

#[test]
fn without_flushes_a_lost_group_ends_the_log_and_nothing_behind_it_comes_back() {
    for seed in 0..20 {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let mut settings = settings(directory.path());
        settings.flush = LATE;
        let mut dice = Dice(seed);
        let count = 30 + u32::try_from(dice.below(20)).expect("small");
        fill_and_die(&settings, 0, count, 150 << 10);
        let mut expected: Vec<u32> = (0..count).collect();
        for round in 1..4_u32 {
            let groups = groups(&settings);
            // What the last session wrote may be lost, and is not flushed in any group's eyes.
            let newest = groups[groups.len() - 1].2.sequence;
            let newest: Vec<_> =
                groups.iter().filter(|group| group.2.sequence + 1000 > newest).collect();
            let lost = newest[usize::try_from(dice.below(newest.len() as u64)).expect("small")];
            let zeros = vec![0; BLOCK * (1 + usize::try_from(dice.below(3)).expect("small"))];
            file_of(&settings, lost.0).write_all_at(&zeros, lost.1).expect("writable");
            let keep = expected.len()
                - newest.iter().filter(|group| group.2.sequence >= lost.2.sequence).count();
            expected.truncate(keep);
            // Other sizes, so that old groups are overwritten in the middle.
            let bytes = 4000 + usize::try_from(dice.below(230_000)).expect("small");
            let (from, to) = (round * 1000, round * 1000 + 5);
            let found = fill_and_die(&settings, from, to, bytes.max(140_000));
            assert_eq!(found, expected, "seed {seed} round {round}");
            expected.extend(from..to);
            let found: Vec<u32> =
                reopen(&settings).expect("sound").into_iter().map(|found| found.0).collect();
            assert_eq!(found, expected, "seed {seed} round {round}, opened again");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_damage_or_after_a_crash_the_loss_of_the_last_group_alone() {
    for closes in [false, true] {
        flip_bits(closes);
    }
}

fn flip_bits(closes: bool) {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    filled(&settings, 0..40, 131_000, closes);
    let groups = groups(&settings);
    let last = groups[groups.len() - 1];
    assert_eq!(last.2.entries == 0, closes);
    let sound = reopen(&settings).expect("sound");
    assert_eq!(sound.len(), 40);
    let mut dice = Dice(1);
    for round in 0..80 {
        let (number, start, header) =
            &groups[usize::try_from(dice.below(groups.len() as u64)).expect("small")];
        let place = start + dice.below(u64::from(header.length));
        let file = file_of(&settings, *number);
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).expect("readable");
        file.write_all_at(&[byte[0] ^ (1 << dice.below(8))], place).expect("writable");
        match reopen(&settings) {
            Err(message) => assert!(message.contains("journal-"), "{message}"),
            Ok(found) => {
                let torn = header.sequence == last.2.sequence;
                let directory_bytes = u64::from(header.entries) * DIRECTORY_ENTRY_BYTES as u64;
                let padding = place - start >= u64::from(header.directory_at) + directory_bytes;
                let dropped = if padding { 0 } else { header.entries as usize };
                let what = format!("round {round}: byte {place} of file {number}");
                assert!(torn || padding, "{what} went unnoticed");
                assert!(found[..] == sound[..40 - dropped], "{what} changed what is there");
            }
        }
        file.write_all_at(&byte, place).expect("writable");
    }
}

#[test]
fn another_file_size_in_the_settings_changes_nothing_for_a_journal_that_is_there() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let mut settings = settings(directory.path());
    fill(&settings, 0, 40, 150 << 10);
    settings.file_bytes = 8 << 20;
    assert_eq!(fill(&settings, 40, 45, 150 << 10).len(), 40);
    settings.file_bytes = 2 << 20;
    assert_eq!(reopen(&settings).expect("sound").len(), 45);
}

#[test]
fn a_kind_that_only_a_newer_program_knows_refuses_to_open() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    fill(&settings, 0, 3, 200 << 10);
    let (_, position, header) = groups(&settings)[2];
    let file = file_of(&settings, 0);
    let mut group = vec![0; header.length as usize];
    file.read_exact_at(&mut group, position).expect("readable");
    let at = header.directory_at as usize;
    let mut entries = group[at..at + DIRECTORY_ENTRY_BYTES].to_vec();
    entries[0] = 200;
    header.seal(&mut group, &entries);
    file.write_all_at(&group, position).expect("writable");
    let message = reopen(&settings).expect_err("not dropped");
    assert!(message.contains("kind 200") && message.contains("newer Corelog"), "{message}");
}

#[test]
fn a_clients_bytes_that_look_like_a_group_are_no_group() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    fill_and_die(&settings, 0, 3, 200 << 10);
    let (_, position, header) = groups(&settings)[2];
    let file = file_of(&settings, 0);
    let mut block = vec![0; 64];
    file.read_exact_at(&mut block, position).expect("readable");
    file.write_all_at(&[0xee; 128], position).expect("the last group is torn");
    block[8..16].fill(7);
    for (place, version) in [(1_u64, 1_u8), (2, 99), (3, 1)] {
        // A newer format, a foreign journal, and a length far beyond the file.
        block[4] = version;
        if place == 3 {
            block[32..36].fill(0xf0);
        }
        let at = position + place * BLOCK as u64;
        file.write_all_at(&block, at).expect("writable");
    }
    assert!(u64::from(header.length) > 4 * BLOCK as u64);
    assert_eq!(reopen(&settings).expect("a torn tail is no damage").len(), 2);
}

#[test]
fn a_file_of_another_journal_is_foreign_and_a_missing_one_is_missed() {
    let [one, two] = [(), ()].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let (one, two) = (settings(one.path()), settings(two.path()));
    fill(&one, 0, 60, 150 << 10);
    fill(&two, 0, 60, 150 << 10);
    let [first, second] = [0, 1].map(|number| files::path(&one.directory, number));
    std::fs::copy(files::path(&two.directory, 1), &second).expect("copied");
    let message = reopen(&one).expect_err("foreign");
    assert!(message.contains("belongs to another journal"), "{message}");
    std::fs::remove_file(&second).expect("removed");
    let message = reopen(&one).expect_err("a hole");
    assert!(message.contains("journal-000000000001 is missing"), "{message}");
    assert!(first.exists(), "nothing was changed");
}

const BLOCK: usize = crate::io::BLOCK_BYTES;

#[test]
fn a_missing_file_is_named_whichever_it_was() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    fill(&settings, 0, 60, 200 << 10);
    let last = groups(&settings).last().expect("groups").0;
    assert!(last >= 2, "first, middle and last are three");
    let aside = directory.path().join("aside");
    for number in 0..=last {
        let path = files::path(&settings.directory, number);
        std::fs::rename(&path, &aside).expect("moved");
        let message = reopen(&settings).expect_err("records are missing");
        assert!(message.starts_with(&format!("{} is missing", path.display())), "{message}");
        std::fs::rename(&aside, &path).expect("moved back");
    }
    let count = reopen(&settings).expect("whole").len();
    assert_eq!(count, 60);
    let all = directory.path().join("all");
    std::fs::create_dir(&all).expect("a folder");
    let names: Vec<PathBuf> = (0..=last).map(|n| files::path(&settings.directory, n)).collect();
    for path in &names {
        std::fs::rename(path, all.join(path.file_name().expect("a name"))).expect("moved");
    }
    let message = reopen(&settings).expect_err("everything is missing");
    assert!(message.starts_with(&format!("{} is missing", names[0].display())), "{message}");
    for path in &names {
        std::fs::rename(all.join(path.file_name().expect("a name")), path).expect("moved back");
    }
    // A journal of an older program says nothing of its files, and neither does a damaged range.
    let range = settings.directory.join("journal.range");
    std::fs::remove_file(&range).expect("there");
    assert_eq!(reopen(&settings).expect("whole").len(), 60);
    std::fs::write(&range, [7; 100]).expect("writable");
    assert_eq!(reopen(&settings).expect("whole").len(), 60);
    std::fs::remove_file(&names[0]).expect("there");
    reopen(&settings).expect_err("it was written anew");
}

/// What its files' range names first, once that is `number`.
async fn await_named_from(io: &RingIo, settings: &Settings, number: u64) {
    for _ in 0..5000 {
        let said = range::of(&settings.directory).expect("readable");
        if said.first_needed() == number {
            return;
        }
        io.sleep(Duration::from_millis(1)).await;
    }
    panic!("what is released is still named");
}

#[test]
fn what_is_wrong_with_a_released_file_costs_nothing() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let settings = settings(directory.path());
    fill(&settings, 0, 70, 200 << 10);
    let paths = [1, 2, 3].map(|number| files::path(&settings.directory, number));
    let again = settings.clone();
    with_journal(settings.clone(), move |io, journal, _| {
        let settings = again.clone();
        async move {
            let journal = journal.expect("opened");
            journal.release(12 << 20);
            await_named_from(&io, &settings, 3).await;
            journal.close().await;
        }
    });
    let [one, two, needed] = paths.clone().map(|path| std::fs::read(path).expect("a file"));
    let groups = groups(&settings);
    let kept = groups.iter().filter(|(number, _, header)| *number == 3 && header.entries > 0);
    let kept = kept.count();
    let last = groups.iter().rfind(|(number, ..)| *number == 2).expect("groups").1;
    let found = |what: &str| {
        let found = reopen(&settings).unwrap_or_else(|error| panic!("{what}: {error}"));
        let numbers: Vec<usize> = found.iter().map(|(index, _)| *index as usize).collect();
        assert!(kept > 0 && numbers.iter().copied().eq(70 - kept..70), "{what}: {numbers:?}");
        assert!(!Survey::of(&settings.directory).expect("sound").expect("a journal").is_damaged());
    };
    found("sound");
    // Its first group, its version, one in the middle, the very last one.
    for at in [0, 5, 5 * 208_896 + 5000, usize::try_from(last).expect("small") + 70] {
        for (path, bytes) in [(&paths[0], &one), (&paths[1], &two)] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x20;
            std::fs::write(path, bytes).expect("writable");
            found(&format!("byte {at} of {}", path.display()));
        }
    }
    std::fs::write(&paths[0], []).expect("writable");
    found("the first is empty");
    std::fs::remove_file(&paths[1]).expect("there");
    found("the second is missing");
    std::fs::remove_file(&paths[0]).expect("there");
    found("both are missing");
    std::fs::write(&paths[0], one).expect("writable");
    std::fs::write(&paths[1], two).expect("writable");
    // The one behind them is needed.
    let mut bytes = needed.clone();
    bytes[70] ^= 0x20;
    std::fs::write(&paths[2], bytes).expect("writable");
    let message = reopen(&settings).expect_err("needed");
    assert!(message.contains("journal-000000000003 is damaged at byte 0"), "{message}");
    std::fs::remove_file(&paths[2]).expect("there");
    let message = reopen(&settings).expect_err("needed");
    assert!(message.contains("journal-000000000003 is missing"), "{message}");
    std::fs::write(&paths[2], needed).expect("writable");
    // What is left is used again as ever.
    assert_eq!(fill(&settings, 70, 100, 200 << 10).len(), kept);
    assert_eq!(reopen(&settings).expect("sound").len(), kept + 30);
}

/// A journal of files of 16 blocks, with two entries in each group: in a file five groups of one
/// block each, but for the one at `large`, which has 12.
fn small_files(settings: &Settings, large: u32) {
    with_journal(settings.clone(), move |_, journal, _| async move {
        // What is durable is there without an end.
        let journal = journal.expect("opened");
        for group in 0..17 {
            let bytes = if group % 5 == large { 11 * BLOCK + 2000 } else { 1000 };
            let mut last = Position(0);
            for (index, bytes) in [(2 * group, bytes), (2 * group + 1, 100)] {
                journal.room(bytes).await.expect("room");
                let body = vec![index.to_le_bytes()[0]; bytes];
                last = journal.append(entry(index), &body, |_| {}).expect("accepted").position;
            }
            journal.wait_durable(last).await.expect("durable");
        }
    });
}

/// What is wrong after the changes of `corelog repair` to a damaged journal, whose start replays
/// `expected` then.
fn wrong_when_mended(settings: &Settings, expected: &[u32]) -> Option<String> {
    let survey = || Survey::of(&settings.directory).expect("readable").expect("a journal");
    let damaged = survey();
    assert!(damaged.is_damaged());
    let patches = match damaged.plan(&[]) {
        Ok(patches) => patches,
        Err(why) => return Some(why),
    };
    patches.iter().for_each(|patch| patch.apply().expect("writable"));
    if survey().is_damaged() {
        return Some(format!("still damaged: {:?}", survey().breaks));
    }
    match reopen(settings) {
        Err(error) => Some(format!("the start is refused: {error}")),
        Ok(found) if found.iter().map(|(index, _)| index).eq(expected) => None,
        Ok(found) => Some(format!("{} entries of {}", found.len(), expected.len())),
    }
}

/// Of the lost groups that a filler left behind it, one had its number and others said that they
/// had been durable: the next repair found damage again, or the start did.
#[test]
fn groups_that_are_lost_around_the_end_of_a_file_are_mended_at_once() {
    let mut wrong = Vec::new();
    for (large, positions) in [(0, [0, 12, 13, 14, 15]), (4, [0, 1, 2, 3, 4])] {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let base = settings(directory.path());
        let (file_bytes, bytes_max) = (16 * BLOCK as u64, 256 * BLOCK as u64);
        let settings = Settings { file_bytes, bytes_max, group_bytes_max: 12 * BLOCK, ..base };
        small_files(&settings, large);
        let groups = groups(&settings);
        let places = groups.iter().map(|(number, position, _)| (*number, position / BLOCK as u64));
        assert!(places.eq((0..17).map(|group| (group / 5, positions[group as usize % 5]))));
        let paths = [0, 1, 2, 3].map(|number| files::path(&settings.directory, number));
        let sound = paths.clone().map(|path| std::fs::read(path).expect("a file"));
        // Of the last three of a file, all five of the next one, and the first of the third.
        for lost in 1..1_u32 << 9 {
            let mut bytes = sound.clone();
            let mut expected = Vec::new();
            for (group, (number, position, header)) in (0_u32..).zip(&groups) {
                let is_lost = (2..11).contains(&group) && lost >> (group - 2) & 1 == 1;
                // The last entry, the header's checksum, the version where others tell it.
                let other = if *position > 0 { 4 } else { 44 };
                let inside = [header.directory_at - 50, 44, other][lost as usize % 3];
                let left = if is_lost { usize::from(inside > 44) } else { 2 };
                expected.extend((2 * group..).take(left));
                if is_lost {
                    let at = usize::try_from(position + u64::from(inside)).expect("small");
                    bytes[usize::try_from(*number).expect("small")][at] ^= 0x20;
                }
            }
            for (path, bytes) in paths.iter().zip(bytes) {
                std::fs::write(path, bytes).expect("writable");
            }
            let what = wrong_when_mended(&settings, &expected);
            wrong.extend(what.map(|what| format!("{large}, {lost:09b}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{} cases, as {:#?}", wrong.len(), &wrong[..wrong.len().min(12)]);
}
