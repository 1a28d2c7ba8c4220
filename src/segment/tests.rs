//! Segments in the simulator against a list of batches: appended in any portions, read from any
//! offset, after crashes, failures and damage.

use bytes::{Bytes, BytesMut};

use super::*;
use crate::io::sim::{Crash, Fault, Node, SimIo, World};
use crate::wire::records::{self, BatchBuilder, BatchHeader, Codec, NewRecord};

mod seals;

const SEEDS: u64 = 300;
const ARENA_BYTES: usize = 32 << 20;
const ID: SegmentId = SegmentId {
    partition: PartitionId { topic: TopicNumber(7), index: 3 },
    base: 100,
    home: Home::NEW,
};

fn store(io: &SimIo) -> Store<SimIo> {
    Store::new(io.clone(), Arena::new(ARENA_BYTES), PathBuf::from("/data/segments"))
}

/// A batch of some records of some size, at `base`.
fn batch(world: &World, base: Offset) -> (Bytes, Offset, i64) {
    let count = 1 + world.below(5);
    let timestamp = i64::try_from(world.below(1000)).expect("small");
    let bytes = usize::try_from(world.below(1 << world.below(19))).expect("small");
    let value = vec![b'v'; bytes / usize::try_from(count).expect("small")];
    let mut builder = BatchBuilder::new();
    for _ in 0..count {
        builder.push(&NewRecord { timestamp, value: Some(&value), ..NewRecord::default() });
    }
    let built = builder.build(Codec::None).expect("nothing to compress");
    let mut stamped = BytesMut::from(&built[..]);
    records::stamp(&mut stamped, base, 1);
    (stamped.freeze(), base + i64::try_from(count).expect("small"), timestamp)
}

/// What was recorded, and the batches that it holds.
struct Model {
    id: SegmentId,
    segment: Segment,
    batches: Vec<Bytes>,
}

impl Model {
    fn new() -> Model {
        let segment = Segment {
            base: ID.base,
            next: ID.base,
            bytes: 0,
            max_timestamp: -1,
            begun: 0,
            home: Home::NEW,
        };
        Model { id: ID, segment, batches: Vec::new() }
    }

    /// A reader of whole batches from `from` on sees exactly what was recorded.
    async fn check(&self, store: &Store<SimIo>, world: &World) {
        if self.batches.is_empty() {
            return;
        }
        for _ in 0..4 {
            let span = u64::try_from(self.segment.next - self.segment.base).expect("ascending");
            let mut from =
                self.segment.base + i64::try_from(world.below(span.max(1))).expect("small");
            let most = usize::try_from(world.below(1 << 18)).expect("small");
            let first = from;
            let mut wanted =
                self.batches.iter().filter(|batch| header(batch).next_offset() > first);
            while from < self.segment.next {
                let span = store.read(self.id, &self.segment, from, most).await.expect("readable");
                assert!(!span.batches.is_empty(), "the reader gets on");
                for (_, found) in records::batches(&span.batches) {
                    assert_eq!(Some(found), wanted.next().map(|batch| &batch[..]));
                }
                from = span.next;
            }
            assert_eq!(wanted.next(), None);
        }
        let timestamp = i64::try_from(world.below(1000)).expect("small");
        let found = store.look_from(self.id, &self.segment, timestamp).await.expect("readable");
        let first = self.batches.iter().map(header).find(|h| h.max_timestamp >= timestamp);
        match (found, first) {
            (Some(found), Some(first)) => assert!(found <= first.base_offset),
            (found, first) => assert_eq!(found, first.map(|first| first.base_offset)),
        }
    }
}

fn header(batch: &Bytes) -> BatchHeader {
    BatchHeader::read(batch).expect("whole")
}

/// Appends a portion; what is recorded changes only if all of it succeeds.
async fn grow(store: &Store<SimIo>, world: &World, model: &mut Model) -> std::io::Result<()> {
    let mut segment = model.segment;
    let mut portion = Vec::new();
    for _ in 0..1 + world.below(6) {
        let (bytes, next, timestamp) = batch(world, segment.next);
        segment.next = next;
        segment.max_timestamp = segment.max_timestamp.max(timestamp);
        portion.push(bytes);
    }
    segment.bytes = store.append(ID, model.segment.bytes, &portion).await?;
    store.sync(ID).await?;
    let added: u64 = portion.iter().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(segment.bytes, model.segment.bytes + added);
    model.segment = segment;
    model.batches.extend(portion);
    Ok(())
}

fn prepare(node: &Node) -> SimIo {
    let io = node.core(0);
    io.create_directory(Path::new("/data")).expect("creatable");
    io
}

#[test]
fn what_was_recorded_is_read_again_whatever_happens() {
    let mut failures = 0;
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let node = world.node();
        let mut model = Model::new();
        for _ in 0..1 + world.below(4) {
            let io = prepare(&node);
            let fault = [Fault::Write, Fault::Sync, Fault::Allocate, Fault::Name];
            let is_sound = world.below(2) == 0;
            if !is_sound {
                let kind = fault[usize::try_from(world.below(4)).expect("small")];
                node.disk().fail(kind, u32::try_from(world.below(12)).expect("small"));
            }
            let ran = world.block_on(async {
                let store = store(&io);
                for _ in 0..world.below(8) {
                    failures += u32::from(grow(&store, &world, &mut model).await.is_err());
                }
                if world.below(3) == 0 {
                    drop(store.close(ID, model.segment.bytes).await);
                }
                if is_sound {
                    model.check(&store, &world).await;
                }
                model
            });
            model = ran;
            node.crash(if world.below(2) == 0 { Crash::Power } else { Crash::Kill });
            node.restart();
            let io = prepare(&node);
            world.block_on(async {
                model.check(&store(&io), &world).await;
            });
        }
    }
    assert!(failures > 20, "only {failures} appends failed");
}

/// A read of a mebibyte from the middle of a block took a buffer of two.
#[test]
fn a_read_takes_no_larger_buffer_than_it_was_meant_to() {
    let world = World::new(1);
    let node = world.node();
    let io = prepare(&node);
    let mut model = Model::new();
    world.block_on(async {
        let store = store(&io);
        while model.segment.bytes < 3 << 20 {
            grow(&store, &world, &mut model).await.expect("a sound disk");
        }
        for most in [1 << 16, 1 << 18, 1 << 20] {
            let mut from = model.segment.base;
            while from < model.segment.next {
                // Nothing that was read before is held.
                store.spans.borrow_mut().clear();
                let before = io.arena().taken();
                let span = store.read_file(ID, &model.segment, from, most).await;
                let span = span.expect("readable");
                let taken = io.arena().taken() - before;
                assert!(taken <= most.max(span.batches.len().next_power_of_two() * 2), "{taken}");
                if span.batches.len() > 8192 && span.batches.len() < most - 4096 {
                    assert!(taken <= most, "{taken} for {}", span.batches.len());
                }
                from = span.next;
            }
        }
        model.check(&store, &world).await;
    });
}

/// By a second name on the same file system, by a copy on another one; the power fails afterwards.
#[test]
fn another_store_takes_over_what_is_recorded() {
    for seed in 0..20 {
        for (place, is_copy) in [("/data/more/segments", false), ("/other/more/segments", true)] {
            let world = World::new(seed);
            let node = world.node();
            let io = prepare(&node);
            let place = PathBuf::from(place);
            io.create_directory(place.parent().expect("a parent")).expect("creatable");
            let second =
                |io: &SimIo| Store::new(io.clone(), Arena::new(ARENA_BYTES), place.clone());
            let mut model = Model::new();
            let (used, id) = (|| node.disk().used(), ID);
            world.block_on(async {
                let first = store(&io);
                while model.segment.bytes == 0 || world.below(4) > 0 {
                    grow(&first, &world, &mut model).await.expect("a sound disk");
                }
                // Left over from an append that was never recorded.
                let left = batch(&world, model.segment.next).0;
                first.append(id, model.segment.bytes, &[left]).await.expect("a sound disk");
                first.close(id, model.segment.bytes).await.expect("a sound disk");
                let before = used();
                let copied = second(&io).adopt(&first, id.partition, &model.segment).await;
                let copied = copied.expect("a sound disk");
                assert_eq!((copied > 0, used() > before), (is_copy, is_copy));
                assert!(copied == 0 || copied == model.segment.bytes);
                let missing = Segment { base: 7, ..model.segment };
                let nothing = second(&io).adopt(&first, id.partition, &missing).await;
                assert_eq!(nothing.expect("it stays missing"), 0);
                first.remove(id).await.expect("removed");
            });
            node.crash(Crash::Power);
            node.restart();
            let io = prepare(&node);
            world.block_on(async {
                model.check(&second(&io), &world).await;
                grow(&second(&io), &world, &mut model).await.expect("it goes on there");
                model.check(&second(&io), &world).await;
            });
        }
    }
}

#[test]
fn damage_is_named_and_nothing_damaged_is_given() {
    let world = World::new(1);
    let node = world.node();
    let io = prepare(&node);
    world.block_on(async {
        let store = store(&io);
        let mut model = Model::new();
        while model.batches.len() < 20 {
            grow(&store, &world, &mut model).await.expect("a sound disk");
        }
        let place = model.batches[..10].iter().map(|batch| batch.len() as u64).sum::<u64>();
        node.disk().flip_bit(&store.path(ID), place + 30, 0);
        let bad = header(&model.batches[10]);
        let error = store.read(ID, &model.segment, bad.base_offset, 1).await.expect_err("damaged");
        assert!(error.to_string().contains("00000000000000000100.log"), "{error}");
        let before = header(&model.batches[9]);
        let span = store.read(ID, &model.segment, before.base_offset, 1 << 20).await;
        assert_eq!(span.expect("sound").next, bad.base_offset, "what is sound is given");
        let after = header(&model.batches[11]);
        let span = store.read(ID, &model.segment, after.base_offset, 1).await.expect("sound");
        assert_eq!(span.batches, model.batches[11]);
    });
}

#[test]
fn marks_that_are_missing_or_damaged_are_made_anew() {
    let world = World::new(2);
    let node = world.node();
    let io = prepare(&node);
    world.block_on(async {
        let first = store(&io);
        let mut model = Model::new();
        while model.segment.bytes < 1 << 20 {
            grow(&first, &world, &mut model).await.expect("a sound disk");
        }
        first.close(ID, model.segment.bytes).await.expect("a sound disk");
        let path = first.marks_path(ID);
        model.check(&store(&io), &world).await;
        for byte in [0, 5, 9, 13, 20, 30] {
            node.disk().flip_bit(&path, byte, 3);
            model.check(&store(&io), &world).await;
            node.disk().flip_bit(&path, byte, 3);
        }
        io.remove(&path).await.expect("there");
        model.check(&store(&io), &world).await;
        first.remove(ID).await.expect("removable");
        first.remove_topic(ID.partition.topic).await.expect("removable");
        assert_eq!(first.topics(), []);
    });
}

/// Simulator, seed 2631: a reader opened the file while a drain made it longer, its handle was
/// kept, and no later drain went on.
#[test]
fn a_file_that_grew_after_it_was_opened_takes_more() {
    let world = World::new(3);
    let node = world.node();
    let io = prepare(&node);
    world.block_on(async {
        let (early, late) = (store(&io), store(&io));
        let mut model = Model::new();
        grow(&early, &world, &mut model).await.expect("a sound disk");
        grow(&late, &world, &mut model).await.expect("a sound disk");
        grow(&early, &world, &mut model).await.expect("its handle is of the shorter file");
        model.check(&store(&io), &world).await;
    });
}

/// Puts some batches of a partition into a pack.
async fn put(writer: &mut PackWriter<'_, SimIo>, world: &World, index: u32, model: &mut Model) {
    let partition = PartitionId { topic: TopicNumber(7), index };
    writer.begin(partition, model.segment.next);
    for _ in 0..1 + world.below(6) {
        let (bytes, next, timestamp) = batch(world, model.segment.next);
        writer.put(&bytes, next, timestamp).await.expect("a sound disk");
        model.segment.next = next;
        model.batches.push(bytes);
    }
}

/// Partitions' batches in packs, which then become one.
async fn pack(store: &Store<SimIo>, world: &World) -> (Pack, Vec<Model>) {
    let partitions = 1 + u32::try_from(world.below(20)).expect("small");
    let mut models: Vec<Model> = (0..partitions).map(|_| Model::new()).collect();
    let mut runs = Vec::new();
    for is_synced in [true, false, true] {
        let mut writer = store.begin_pack().await.expect("a sound disk");
        for (model, index) in models.iter_mut().zip(0..) {
            put(&mut writer, world, index, model).await;
        }
        let ended = if is_synced { writer.finish().await } else { writer.finish_run().await };
        runs.push(ended.expect("a sound disk"));
    }
    let mut writer = store.begin_pack().await.expect("a sound disk");
    let mut from = Unpacking::default();
    for index in 0..models.len() {
        writer.begin(runs[0].pieces[index].partition, ID.base);
        for run in &runs {
            let segment = run.segment(&run.pieces[index], 0);
            let copied = writer.copy(&mut from, &segment).await.expect("a sound disk");
            assert_eq!(copied, None);
        }
    }
    let pack = writer.finish().await.expect("a sound disk");
    for run in runs {
        store.pack_done(run.number);
        store.remove_pack(run.number).await.expect("removable");
    }
    for (model, piece) in models.iter_mut().zip(&pack.pieces) {
        model.segment = pack.segment(piece, 0);
        model.id = model.segment.id(piece.partition);
        let bytes: usize = model.batches.iter().map(Bytes::len).sum();
        assert_eq!(model.segment.bytes, bytes as u64);
    }
    (pack, models)
}

#[test]
fn partitions_that_share_a_pack_are_read_from_it_as_from_files_of_their_own() {
    for seed in 0..SEEDS / 10 {
        let world = World::new(seed);
        let node = world.node();
        let io = prepare(&node);
        let (pack, models) = world.block_on(async { pack(&store(&io), &world).await });
        node.crash(Crash::Power);
        node.restart();
        let io = prepare(&node);
        world.block_on(async {
            let store = store(&io);
            assert_eq!(store.packs(), [pack.number]);
            assert_eq!(store.pieces(pack.number).await.expect("readable"), pack.pieces);
            for model in &models {
                model.check(&store, &world).await;
            }
            let model = &models[0];
            let path = store.pack_path(pack.number);
            node.disk().flip_bit(&path, pack.pieces[0].position + 40, 1);
            let error = store.read_file(model.id, &model.segment, ID.base, 1).await;
            let error = error.expect_err("damaged").to_string();
            assert!(error.contains("0000000004.pack"), "{error}");
            let next = store.begin_pack().await.expect("a sound disk");
            assert!(next.number() > pack.number, "a number is used once");
        });
    }
}

/// What reads of each offset give, from a store that has read nothing yet: the batch, or nothing.
async fn read_each(io: &SimIo, model: &Model) -> Vec<Option<Bytes>> {
    let store = store(io);
    let mut found = Vec::new();
    for batch in &model.batches {
        let offset = header(batch).next_offset() - 1;
        let span = store.read(model.id, &model.segment, offset, 1).await;
        found.push(span.ok().map(|span| span.batches));
    }
    found
}

/// A batch's offset and length are under no checksum: a read that goes by them must not pass over
/// what it looks for, nor give something else.
#[test]
fn whichever_byte_of_a_header_flips_no_other_batch_is_missed() {
    for seed in 0..4 {
        let world = World::new(seed);
        let node = world.node();
        let io = prepare(&node);
        world.block_on(async {
            let first = store(&io);
            let mut model = Model::new();
            while model.batches.len() < 12 || model.segment.bytes < 200 << 10 {
                grow(&first, &world, &mut model).await.expect("a sound disk");
            }
            if seed % 2 == 0 {
                first.close(ID, model.segment.bytes).await.expect("a sound disk");
            }
            let path = first.path(ID);
            let mut place = 0;
            for (index, batch) in model.batches.iter().enumerate().take(8) {
                for at in (0..61).filter(|at| !(12..16).contains(at)) {
                    let bit = u8::try_from(world.below(8)).expect("small");
                    node.disk().flip_bit(&path, place + at, bit);
                    let found = read_each(&io, &model).await;
                    for (other, (found, batch)) in found.iter().zip(&model.batches).enumerate() {
                        let wanted = Some(batch).filter(|_| other != index);
                        let what =
                            format!("seed {seed}: {other} with bit {bit} of {at} in {index}");
                        assert_eq!(found.as_ref(), wanted, "{what}");
                    }
                    node.disk().flip_bit(&path, place + at, bit);
                }
                place += batch.len() as u64;
            }
        });
    }
}

#[test]
fn a_damaged_piece_is_left_out_of_a_merge_or_copied_as_it_is() {
    let world = World::new(5);
    let node = world.node();
    let io = prepare(&node);
    world.block_on(async {
        let store = store(&io);
        let mut writer = store.begin_pack().await.expect("a sound disk");
        let mut models: Vec<Model> = (0..3).map(|_| Model::new()).collect();
        for (model, index) in models.iter_mut().zip(0..) {
            put(&mut writer, &world, index, model).await;
        }
        let old = writer.finish().await.expect("a sound disk");
        let path = store.pack_path(old.number);
        node.disk().flip_bit(&path, old.pieces[1].position + 40, 2);
        let segments: Vec<Segment> = old.pieces.iter().map(|piece| old.segment(piece, 0)).collect();
        let mut from = Unpacking::default();
        let mut writer = store.begin_pack().await.expect("a sound disk");
        for (piece, segment) in old.pieces.iter().zip(&segments) {
            writer.begin(piece.partition, piece.base);
            let damage = writer.copy(&mut from, segment).await.expect("readable");
            assert_eq!(damage.is_some(), piece.partition.index == 1, "{damage:?}");
        }
        let (one, last) =
            (old.pieces[1], Piece { partition: old.pieces[0].partition, ..old.pieces[2] });
        writer.begin(one.partition, one.base);
        writer.copy_as_it_is(&store, &mut from, &segments[1]).await.expect("readable");
        let gone = Segment { home: Home::Pack { number: 99, position: 7 }, ..segments[2] };
        writer.begin(last.partition, last.base);
        let damage = writer.copy(&mut from, &gone).await.expect("told").expect("it is missing");
        assert_eq!((damage.flaw, damage.from), (Flaw::Missing, last.base));
        writer.begin(last.partition, last.base);
        writer.copy_as_it_is(&store, &mut from, &gone).await.expect("zeros");
        let new = writer.finish().await.expect("a sound disk");
        let indices: Vec<u32> = new.pieces.iter().map(|piece| piece.partition.index).collect();
        assert_eq!(indices, [0, 2, 1, 0]);
        for (piece, is_sound) in new.pieces.iter().zip([true, true, false, false]) {
            let segment = new.segment(piece, 0);
            let id = segment.id(piece.partition);
            let read = store.read(id, &segment, piece.base, 1 << 20).await;
            assert_eq!(read.is_ok(), is_sound, "{piece:?}");
        }
        let new_bytes = node.disk().read(&store.pack_path(new.number)).expect("there");
        let old_bytes = node.disk().read(&path).expect("there");
        let of = |bytes: &[u8], piece: &Piece| {
            let from = usize::try_from(piece.position).expect("small");
            bytes[from..from + usize::try_from(piece.bytes).expect("small")].to_vec()
        };
        assert_eq!(of(&new_bytes, &new.pieces[2]), of(&old_bytes, &old.pieces[1]));
    });
}

/// Every other batch of 64 KiB was read twice in pieces of 128 KiB.
#[test]
fn a_batch_that_a_read_cuts_off_is_not_read_again() {
    for seed in 0..20 {
        let world = World::new(seed);
        let node = world.node();
        let io = prepare(&node);
        let mut model = Model::new();
        let most: u64 = 1 << (16 + seed % 3);
        world.block_on(async {
            let writing = store(&io);
            while model.segment.bytes < 40 * most {
                grow(&writing, &world, &mut model).await.expect("a sound disk");
            }
            let largest = model.batches.iter().map(Bytes::len).max().expect("not empty") as u64;
            let reading = store(&io);
            let (before, mut from) = (node.disk().operations(), model.segment.base);
            let mut wanted = model.batches.iter();
            while from < model.segment.next {
                let bytes_max = usize::try_from(most).expect("small");
                let span = reading.read(ID, &model.segment, from, bytes_max).await;
                let span = span.expect("readable");
                for (_, found) in records::batches(&span.batches) {
                    assert_eq!(Some(found), wanted.next().map(|batch| &batch[..]));
                }
                from = span.next;
            }
            // One more opens it; a batch that is larger than what is read at once costs no more.
            let reads = node.disk().operations() - before;
            let least = model.segment.bytes.div_ceil(most) + 1;
            assert!(reads <= least, "seed {seed}: {reads} for {least}, batches of {largest}");
        });
    }
}

/// M1 of `seam`: the memory in which batches are joined is that of recent records, of which small
/// groups once left no piece large enough. Each read of a backlog failed then, for ever.
#[test]
fn whoever_reads_a_backlog_gets_on_without_memory_to_join_what_was_cut_off() {
    for seed in 0..20 {
        let world = World::new(seed);
        let io = prepare(&world.node());
        let mut model = Model::new();
        world.block_on(async {
            let writing = store(&io);
            while model.segment.bytes < 4 << 20 {
                grow(&writing, &world, &mut model).await.expect("a sound disk");
            }
            let arena = Arena::new(ARENA_BYTES);
            let _others: Vec<_> = std::iter::from_fn(|| arena.take(4096)).collect();
            let reading = Store::new(io.clone(), arena, PathBuf::from("/data/segments"));
            model.check(&reading, &world).await;
        });
    }
}

/// N3: whoever comes while a block is read takes it from that read, at whatever offset they begin.
#[test]
fn readers_of_one_block_at_the_same_time_cost_one_read() {
    for seed in 0..20 {
        let world = World::new(seed);
        let node = world.node();
        let io = prepare(&node);
        let mut model = Model::new();
        let operations = |readers: &[Offset], model: &Model| {
            let store = store(&io);
            let before = node.disk().operations();
            let spans = world.block_on(futures_util::future::join_all(
                readers.iter().map(|from| store.read(model.id, &model.segment, *from, 1 << 20)),
            ));
            for (from, span) in readers.iter().zip(spans) {
                let span = span.expect("readable");
                let held = model.batches.iter().find(|batch| header(batch).next_offset() > *from);
                let first = records::batches(&span.batches).next().expect("not empty").1;
                assert_eq!(Some(first), held.map(|batch| &batch[..]));
            }
            node.disk().operations() - before
        };
        world.block_on(async {
            let store = store(&io);
            while model.batches.len() < 8 {
                grow(&store, &world, &mut model).await.expect("no failure");
            }
        });
        let first = header(&model.batches[0]).next_offset();
        let readers: Vec<Offset> =
            (0..10).map(|n| model.segment.base + n % 2 * (first - model.segment.base)).collect();
        let alone = operations(&readers[..1], &model);
        assert!(alone > 0);
        assert_eq!(operations(&readers, &model), alone, "seed {seed}");
    }
}
