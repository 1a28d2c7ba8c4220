//! Blocks that the disk gives no more: `corelog repair` reads around them, and they cost what was
//! in them. A library that is loaded before the others plays the disk (`unreadable.c`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::damage::{FOREVER, SMALL, all_but, places, stop};
use crate::damaged_packs::readable;
use crate::frames::Peer;
use crate::segments::{await_that, create, segment_files, write};
use crate::world::{Broker, binary, fresh};

/// Repairs with a block of a file that cannot be read: the exit code and the words.
fn repair(
    broker: &Broker,
    (file, block): (&Path, u64),
    arguments: &[&str],
) -> (Option<i32>, String) {
    let library = broker.data().with_file_name("unreadable.so");
    if !library.exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/broker/unreadable.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(compiler.status().expect("a compiler").success());
    }
    let file = file.canonicalize().expect("there");
    let output = Command::new(binary())
        .args(["repair", "--data-dir"])
        .arg(broker.data())
        .args(arguments)
        .env("LD_PRELOAD", library)
        .env("BAD_FILE", file)
        .env("BAD_BLOCK", block.to_string())
        .output()
        .expect("a program");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// One unreadable block made the repair of everything else impossible.
#[test]
fn blocks_that_cannot_be_read_cost_what_was_in_them() {
    let mut broker = Broker::start(SMALL);
    let topic = fresh("worn");
    let mut peer = Peer::connect(broker.address());
    create(&mut peer, &topic, &[FOREVER, ("segment.bytes", "8388608")]);
    write(&mut peer, &topic, 0..120);
    await_that("much is in segments", || segment_files(&broker).len() > 4);
    broker.restart();
    stop(&mut broker);
    let journal = |number: u64| broker.data().join(format!("core-0/journal-{number:012}"));
    // It is in no segment yet, and another one comes behind it.
    let files = (0..200).map(journal).filter(|file| file.exists());
    let held = files.flat_map(|file| {
        let batches = places(&file).batches.into_iter();
        batches
            .map(move |((_, offset), (_, position))| (file.clone(), position / 4096 + 20, offset))
    });
    let in_journal =
        held.into_iter().find(|(_, _, offset)| *offset == 118).expect("in the journal");
    let in_segment: (PathBuf, u64, i64) = (segment_files(&broker)[1].clone(), 300, -1);
    for (file, block, offset) in [in_segment, in_journal] {
        let place = (&*file, block);
        let (code, said) = repair(&broker, place, &["--dry-run"]);
        assert!(code == Some(1) && said.contains("is damaged at 1 places"), "{said}");
        assert!(said.contains(&format!("{} is damaged", file.display())), "{said}");
        let stem = file.file_stem().expect("a name").to_str().expect("digits");
        let lost = if offset < 0 { stem.parse::<i64>().expect("an offset") + 1 } else { offset };
        let words =
            format!("lost: topic {topic} partition 0, offsets {lost} to before {}", lost + 1);
        assert!(said.contains(&words), "no `{words}` in {said}");
        assert!(offset >= 0 || said.contains("it cannot be read"), "{said}");
        let (code, said) = repair(&broker, place, &[]);
        assert!(code == Some(0) && said.contains(&words), "{said}");
    }
    broker.launch();
    let mut peer = Peer::connect(broker.address());
    assert_eq!(readable(&mut peer, &topic, 0, 120), (all_but(&[], 120), vec![]));
    write(&mut peer, &topic, 120..121);
}
