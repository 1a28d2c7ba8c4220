//! The program of every target; which one it is, its name says.
#![no_main]

use corelog_fuzz::TARGETS;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = TARGETS.iter().find(|target| target.name == env!("CARGO_BIN_NAME"));
    (target.expect("every program is a target").run)(data);
});
