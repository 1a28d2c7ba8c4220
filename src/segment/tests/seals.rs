//! Sparse segments, as compaction leaves them: whichever bytes change, no batch is given with
//! another offset than it was written with.

use std::collections::BTreeSet;

use super::*;

const SPARSE: SegmentId = SegmentId { home: Home::File { generation: 1 }, ..ID };

/// A closed segment of some batches with gaps between them, and where each begins.
async fn sparse(store: &Store<SimIo>, world: &World, least: (usize, u64)) -> (Model, Vec<u64>) {
    let mut model = Model::new();
    (model.id, model.segment.home) = (SPARSE, SPARSE.home);
    let mut places = Vec::new();
    while model.batches.len() < least.0 || model.segment.bytes < least.1 {
        let mut portion = Vec::new();
        let mut end = model.segment.bytes;
        for _ in 0..1 + world.below(6) {
            let gap = i64::try_from(world.below(1 << world.below(12))).expect("small");
            let (bytes, next, timestamp) = batch(world, model.segment.next + gap);
            model.segment.next = next;
            model.segment.max_timestamp = model.segment.max_timestamp.max(timestamp);
            places.push(end);
            end += bytes.len() as u64;
            portion.push(bytes);
        }
        let recorded = model.segment.bytes;
        model.segment.bytes = store.append(SPARSE, recorded, &portion).await.expect("a sound disk");
        model.batches.extend(portion);
    }
    model.segment.next += 7;
    store.close(SPARSE, model.segment.bytes).await.expect("a sound disk");
    store.sync(SPARSE).await.expect("a sound disk");
    (model, places)
}

/// The flaws that a look at the whole file tells of: the offsets that are lost, and the wrong ones.
async fn look(io: &SimIo, model: &Model) -> (Vec<Damage>, Vec<Misplaced>) {
    let store = store(io);
    let reader = store.reader(model.id).await.expect("there");
    let seals = store.seals(model.id, &model.segment).await.expect("readable");
    let mut check = store.check(&model.segment, reader.bytes()).with_seals(seals);
    let (mut damage, mut misplaced, mut told) = (Vec::new(), Vec::new(), 0);
    let mut note = |seen: Seen<'_>| match seen {
        Seen::Damage(found) => {
            assert_eq!(found.position, told, "H2");
            told += found.bytes;
            damage.push(found);
        }
        Seen::Misplaced(found) => misplaced.push(found),
        Seen::Batch { position, batch, header } => {
            assert_eq!(position, told, "H2");
            told += batch.len() as u64;
            let wanted = model.batches.iter().map(super::header);
            assert!(wanted.into_iter().any(|wanted| wanted.base_offset == header.base_offset));
        }
    };
    while let Some((position, wanted)) = check.wants() {
        let window = reader.window(position, wanted, model.segment.bytes).await.expect("readable");
        check.take(&window, &mut note);
    }
    check.finish(&mut note);
    assert_eq!(told, model.segment.bytes, "H2");
    (damage, misplaced)
}

fn assert_given(found: &[Option<Bytes>], model: &Model, lost: Option<usize>, what: &str) {
    for (index, (found, batch)) in found.iter().zip(&model.batches).enumerate() {
        let wanted = Some(batch).filter(|_| lost != Some(index));
        assert_eq!(found.as_ref(), wanted, "{what}: {index}");
    }
}

/// Any bit of the fields that no checksum covers, but for the leader epoch, which is not the
/// segment's to know, and some of each other byte of a header.
#[test]
fn a_flipped_bit_costs_its_batch_and_one_of_an_offset_nothing() {
    for seed in 0..3 {
        let world = World::new(seed);
        let node = world.node();
        let io = prepare(&node);
        world.block_on(async {
            let (model, places) = sparse(&store(&io), &world, (10, 200 << 10)).await;
            let path = store(&io).path(SPARSE);
            for index in 0..6 {
                let index = index * model.batches.len() / 6;
                let (place, due) = (places[index], header(&model.batches[index]).base_offset);
                for bit in 0..8_u8 * 8 {
                    let what = format!("seed {seed}: bit {bit} of the offset of {index}");
                    let at = place + u64::from(bit / 8);
                    node.disk().flip_bit(&path, at, bit % 8);
                    let (damage, misplaced) = look(&io, &model).await;
                    assert!(damage.is_empty() && misplaced.len() == 1, "{what}: {misplaced:?}");
                    assert_eq!((misplaced[0].position, misplaced[0].due), (place, due), "{what}");
                    let store = store(&io);
                    let span = store.read(SPARSE, &model.segment, due, 1).await.expect("mended");
                    assert_eq!(
                        (&span.batches, &span.misplaced),
                        (&model.batches[index], &misplaced)
                    );
                    if bit % 8 == u8::try_from(world.below(8)).expect("small") {
                        assert_given(&read_each(&io, &model).await, &model, None, &what);
                    }
                    node.disk().flip_bit(&path, at, bit % 8);
                }
                for at in (8..61).filter(|at| !(12..16).contains(at)) {
                    let bit = u8::try_from(world.below(8)).expect("small");
                    let what = format!("seed {seed}: bit {bit} of byte {at} of {index}");
                    node.disk().flip_bit(&path, place + at, bit);
                    let (damage, misplaced) = look(&io, &model).await;
                    assert!(misplaced.is_empty() && damage.len() == 1, "{what}: {damage:?}");
                    assert_eq!(damage[0].position, place, "{what}");
                    assert_given(&read_each(&io, &model).await, &model, Some(index), &what);
                    node.disk().flip_bit(&path, place + at, bit);
                }
            }
            assert_eq!(look(&io, &model).await, (vec![], vec![]));
        });
    }
}

/// Several places at once: what is given is what was written, whatever else is not given. (Where a
/// length is damaged as well, an offset between the same two marks may go unnoticed.)
#[test]
fn several_flipped_bits_never_make_another_batch() {
    let (mut given, mut refused) = (0, 0);
    for seed in 0..60 {
        let world = World::new(seed);
        let node = world.node();
        let io = prepare(&node);
        world.block_on(async {
            let (model, places) = sparse(&store(&io), &world, (10, 100 << 10)).await;
            let path = store(&io).path(SPARSE);
            let mut flipped = BTreeSet::new();
            for _ in 0..2 + world.below(4) {
                let index = usize::try_from(world.below(places.len() as u64)).expect("small");
                let inside = model.batches[index].len() as u64;
                let at = if world.below(2) == 0 { world.below(8) } else { world.below(inside) };
                if !(8..16).contains(&at) && flipped.insert(places[index] + at) {
                    let bit = u8::try_from(world.below(8)).expect("small");
                    node.disk().flip_bit(&path, places[index] + at, bit);
                }
            }
            look(&io, &model).await;
            for (found, batch) in read_each(&io, &model).await.into_iter().zip(&model.batches) {
                assert!(found.is_none() || found.as_ref() == Some(batch), "seed {seed}");
                *(if found.is_some() { &mut given } else { &mut refused }) += 1;
            }
        });
    }
    assert!(given > 400 && refused > 60, "{given} given, {refused} refused");
}

#[test]
fn two_wrong_offsets_between_two_marks_cost_that_stretch_alone() {
    let world = World::new(4);
    let node = world.node();
    let io = prepare(&node);
    world.block_on(async {
        let (model, places) = sparse(&store(&io), &world, (60, 300 << 10)).await;
        let path = store(&io).path(SPARSE);
        node.disk().flip_bit(&path, places[1] + 7, 0);
        node.disk().flip_bit(&path, places[3] + 7, 2);
        let (damage, misplaced) = look(&io, &model).await;
        assert!(misplaced.is_empty() && damage.len() == 1, "{damage:?}");
        let Damage { position, bytes, flaw, .. } = damage[0];
        assert_eq!((position, flaw), (0, Flaw::Offsets));
        assert!(bytes < model.segment.bytes / 2);
        let found = read_each(&io, &model).await;
        for ((found, place), batch) in found.iter().zip(&places).zip(&model.batches) {
            assert_eq!(found.as_ref(), Some(batch).filter(|_| *place >= bytes), "at {place}");
        }
        let error = store(&io).read(SPARSE, &model.segment, ID.base, 1).await;
        assert!(error.expect_err("refused").to_string().contains("wrong offsets"));
    });
}

#[test]
fn seals_are_durable_before_anything_names_their_segment_and_never_made_of_the_file() {
    let world = World::new(5);
    let node = world.node();
    let (mut model, mut places) = (Model::new(), Vec::new());
    let io = prepare(&node);
    world.block_on(async {
        (model, places) = sparse(&store(&io), &world, (20, 100 << 10)).await;
    });
    node.crash(Crash::Power);
    node.restart();
    let io = prepare(&node);
    world.block_on(async {
        let path = store(&io).path(SPARSE);
        node.disk().flip_bit(&path, places[9] + 7, 1);
        assert_eq!(look(&io, &model).await.1.len(), 1);
        // Another file system takes the damage over, and what notices it.
        let other = PathBuf::from("/other/segments");
        io.create_directory(other.parent().expect("a parent")).expect("creatable");
        let second = Store::new(io.clone(), Arena::new(ARENA_BYTES), other);
        let copied = second.adopt(&store(&io), SPARSE.partition, &model.segment).await;
        assert_eq!(copied.expect("a sound disk"), model.segment.bytes);
        let due = header(&model.batches[9]).base_offset;
        let span = second.read(SPARSE, &model.segment, due, 1).await.expect("mended");
        assert_eq!((&span.batches, span.misplaced.len()), (&model.batches[9], 1));
        // Without its marks it is read as well as may be, and they stay what they are.
        let marks = store(&io).marks_path(SPARSE);
        let good = node.disk().read(&marks).expect("there");
        for byte in [None, Some(4), Some(9), Some(30), Some(50)] {
            match byte {
                None => io.remove(&marks).await.expect("there"),
                Some(byte) => node.disk().flip_bit(&marks, byte, 1),
            }
            let lost = store(&io);
            let span = lost.read(SPARSE, &model.segment, due, 1).await.expect("readable");
            assert!(span.misplaced.is_empty() && lost.unsealed.borrow().len() == 1, "{byte:?}");
            match byte {
                None => store(&io).write_marks(SPARSE, &good).await.expect("a sound disk"),
                Some(byte) => node.disk().flip_bit(&marks, byte, 1),
            }
            assert_eq!(look(&io, &model).await.1.len(), 1, "{byte:?}");
        }
    });
}

/// A checkpoint is lost whose files a repair looks for, after a crash in the middle of a
/// compaction.
#[test]
fn a_file_that_compaction_has_not_finished_is_not_taken_for_the_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path();
    let home = |generation| SegmentId { home: Home::File { generation }, ..ID };
    let write = |id: SegmentId, bytes: u64, sealed: Option<u64>| {
        let path = file_path(directory, id);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("makeable");
        std::fs::write(&path, vec![0; usize::try_from(bytes).expect("small")]).expect("writable");
        if let Some(covered) = sealed {
            let mut marks = Marks::sealed();
            marks.pass(None, covered);
            std::fs::write(marks_path(&path), marks.encode()).expect("writable");
        }
    };
    write(home(0), 900, None);
    assert_eq!(on_disk(directory, ID.partition), [home(0)]);
    write(home(1), 500, Some(500));
    assert_eq!(on_disk(directory, ID.partition), [home(1)]);
    write(home(2), 300, None);
    assert_eq!(on_disk(directory, ID.partition), [home(1)], "it has no marks yet");
    write(home(3), 200, Some(400));
    assert_eq!(on_disk(directory, ID.partition), [home(1)], "they are another file's");
}
