//! Every decoder against its corpus: the files of `tests/fuzz/corpus`, and thousands of seeded
//! changes to each, must hold the target's property within the target's memory.
//!
//! `ci/fuzz TARGET SECONDS` grows a corpus. An input that fails is written to a file, which the
//! message names: put it into the corpus, beside a test of its own next to the decoder.

#[path = "fuzz/src/lib.rs"]
mod fuzz;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz::{TARGETS, Target};

/// The system's allocator, with the bytes in use counted for each thread.
struct Counting;

thread_local! {
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize, sign: isize) {
    let bytes = isize::try_from(bytes).unwrap_or(isize::MAX) * sign;
    // A thread that ends has no counters any more, and nobody asks for them.
    let _ = IN_USE.try_with(|in_use| {
        in_use.set(in_use.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(in_use.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A step of splitmix64.
struct Dice(u64);

impl Dice {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.bits()).expect("64-bit") % bound.max(1)
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Bytes that lengths, counts and varints break at, in both orders.
const EXTREMES: &[&[u8]] = &[
    &[0],
    &[1],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xff; 2],
    &[0x7f, 0xff],
    &[0x80, 0],
    &[0; 4],
    &[0xff; 4],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0, 0, 0, 0x80],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xfe, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x80, 0x80],
    &[0xff; 8],
    &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0x80, 0, 0, 0, 0, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
];

/// A changed copy of `input`; `other` lends pieces.
fn changed(dice: &mut Dice, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(*dice.pick(&[1, 0xff])),
            3 => {
                let extreme = *dice.pick(EXTREMES);
                let end = (at + extreme.len()).min(bytes.len());
                bytes.splice(at..end, extreme.iter().copied());
            }
            4 => {
                let from = dice.below(other.len() + 1);
                let to = (from + dice.below(64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let end = (at + dice.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

/// Why an input fails, if it does.
fn failure(target: &Target, input: &[u8]) -> Option<String> {
    let before = IN_USE.get();
    PEAK.set(before);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        return Some(text.unwrap_or_else(|| "it panics".into()));
    }
    let used = usize::try_from(PEAK.get() - before).unwrap_or(0);
    let bound = target.bytes_base + target.bytes_per_byte * input.len();
    (used > bound).then(|| format!("{used} bytes of memory for {} bytes of input", input.len()))
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
    let entries = std::fs::read_dir(&folder).expect("every target has a corpus");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("readable"))).collect()
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{name} has no corpus");
    for (path, input) in &inputs {
        if let Some(why) = failure(target, input) {
            panic!("{}: {why}", path.display());
        }
    }
    let mut dice = Dice(1);
    for round in 0..target.changes {
        let (path, input) = &inputs[round % inputs.len()];
        let (_, other) = dice.pick(&inputs);
        let bytes = changed(&mut dice, input, other);
        if let Some(why) = failure(target, &bytes) {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{round}"));
            std::fs::write(&file, &bytes).expect("writable");
            panic!("{}, a change of {}: {why}", file.display(), path.display());
        }
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_replayed() {
            let names = TARGETS.iter().map(|target| target.name);
            assert!(names.eq([$(stringify!($name)),*]));
        }
    };
}

replays! {
    requests
    responses
    batches
    records
    journal_file
    journal_recovery
    metadata
    groups
    config
    frames
}

#[test]
fn a_decoder_that_allocates_by_a_number_or_panics_is_caught() {
    fn greedy(data: &[u8]) {
        drop(Vec::<u8>::with_capacity(usize::from(data[0]) << 20));
    }
    let target =
        Target { name: "greedy", run: greedy, bytes_base: 1 << 20, bytes_per_byte: 64, changes: 0 };
    assert_eq!(failure(&target, &[0]), None);
    assert!(failure(&target, &[9]).is_some_and(|why| why.contains("9437184 bytes")));
    assert!(failure(&target, &[]).is_some_and(|why| why.contains("out of bounds")));
}
