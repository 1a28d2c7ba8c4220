//! Journal files as a disk may hold them: read by `corelog inspect`, and recovered from.

use std::io::Cursor;
use std::path::Path;

use corelog::base::buffer::Arena;
use corelog::base::ids::{PartitionId, TopicNumber};
use corelog::io::sim::{SimIo, World};
use corelog::io::{BLOCK_BYTES, Durability, File, Io, OpenHow};
use corelog::journal::inspect::{Met, walk_in};
use corelog::journal::{Entry, EntryKind, Flush, Journal, Settings};
use corelog::partition::recover;
use corelog::wire::records;

const DIRECTORY: &str = "/journal";
const ARENA_BYTES: usize = 64 << 20;
const BLOCKS_MAX: usize = 64;
const MAGIC: &[u8] = b"1GLC";
const HEADER_BYTES: usize = 64;
const CRC_AT: usize = 44;

/// Makes the checksum of every group right, for no mutation gets beyond one by chance.
fn correct_crcs(image: &mut [u8]) {
    for at in (0..image.len()).step_by(BLOCK_BYTES) {
        let group = &mut image[at..];
        if !group.starts_with(MAGIC) || group.len() < HEADER_BYTES {
            continue;
        }
        let number = |at: usize| {
            let bytes = group[at..at + 4].try_into().expect("four bytes");
            usize::try_from(u32::from_le_bytes(bytes)).expect("a small machine word")
        };
        let (start, entries) = (number(36), number(40));
        let directory = entries.checked_mul(32).and_then(|bytes| start.checked_add(bytes));
        let Some(directory) = directory.and_then(|end| group.get(start..end)) else { continue };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&group[..CRC_AT]);
        crc.update(&[0; 4]);
        crc.update(&group[CRC_AT + 4..HEADER_BYTES]);
        crc.update(directory);
        let crc = crc.finalize();
        group[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The rest of `data` as blocks: `length u16 | bytes`, each filled up with zeros to a block.
fn blocks(data: &[u8], fix: bool) -> Vec<u8> {
    let mut image = Vec::new();
    let mut left = data;
    while let Some((length, rest)) = left.split_first_chunk() {
        if image.len() >= BLOCKS_MAX * BLOCK_BYTES {
            break;
        }
        let length = usize::from(u16::from_be_bytes(*length)) % (BLOCK_BYTES + 1);
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        image.extend_from_slice(bytes);
        image.resize(image.len().next_multiple_of(BLOCK_BYTES), 0);
        left = rest;
    }
    if fix {
        correct_crcs(&mut image);
    }
    image
}

/// A flag, then one file's blocks.
pub fn file(data: &[u8]) {
    let Some((flag, data)) = data.split_first() else { return };
    let image = blocks(data, flag & 1 == 1);
    let length = image.len() as u64;
    let mut told = 0;
    walk_in(&mut Cursor::new(&image), length, &mut |met| match met {
        Met::Group { position, header } => {
            assert!(position + u64::from(header.length) <= length);
        }
        Met::Entry { entry, position, body } => {
            let at = usize::try_from(position).expect("within the image");
            assert_eq!(image.get(at..at + body.len()), Some(body));
            if entry.kind == EntryKind::Batches {
                assert_eq!(records::batches(body).map(|(_, b)| b.len()).sum::<usize>(), body.len());
            }
        }
        Met::Damage { position, flaw } => {
            assert!(position <= length && !flaw.to_string().is_empty());
        }
        Met::Gap { position, bytes } => {
            assert!(told <= position && position + bytes <= length);
            told = position + bytes;
        }
    })
    .expect("memory is readable");
}

/// Flags (checksums made right, the journal goes on), the blocks of the first of two files, then
/// the blocks of both.
pub fn recovery(data: &[u8]) {
    let Some(([flag, split], data)) = data.split_first_chunk() else { return };
    let image = blocks(data, flag & 1 == 1);
    let split = (usize::from(*split) * BLOCK_BYTES).min(image.len());
    let (first, second) = image.split_at(split);
    let world = World::new(1);
    let node = world.node();
    let io = node.core(0);
    world.block_on(async {
        io.create_directory(Path::new(DIRECTORY)).expect("a directory");
        put(&io, "journal-000000000000", first).await;
        if !second.is_empty() {
            put(&io, "journal-000000000001", second).await;
        }
        let before = replayed(&io).await;
        // The owner makes the same of it: partitions and metadata.
        let owner = recover(io.clone(), Arena::new(ARENA_BYTES), settings()).await;
        assert_eq!(
            owner.as_ref().map(|_| ()).map_err(ToString::to_string),
            before.as_ref().map(|_| ()).map_err(Clone::clone)
        );
        let (Ok(owner), Ok(before)) = (owner, before) else { return };
        owner.journal.close().await;
        if flag & 2 == 2 {
            goes_on(&io, before).await;
        }
    });
}

/// What recovery accepts it accepts again, and what is appended comes back behind it.
async fn goes_on(io: &SimIo, before: Vec<(Entry, Vec<u8>)>) {
    let opened = Journal::open(io.clone(), Arena::new(ARENA_BYTES), settings(), &mut |_| {}).await;
    let journal = opened.expect("it was opened before");
    let partition = PartitionId { topic: TopicNumber(1), index: 1 };
    let entry = Entry { kind: EntryKind::LogStart, partition, base_offset: 1, epoch: 1 };
    let mut expected = before;
    if journal.room(5).await.is_ok() {
        let appended = journal.append(entry, b"after", |_| {}).expect("there is room");
        journal.wait_durable(appended.position).await.expect("the disk is sound");
        expected.push((entry, b"after".to_vec()));
    }
    journal.close().await;
    assert_eq!(replayed(io).await, Ok(expected));
}

async fn replayed(io: &SimIo) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    let mut found = Vec::new();
    let mut keep = |replayed: corelog::journal::Replayed<'_>| {
        found.push((replayed.entry, replayed.body.to_vec()));
    };
    let journal = Journal::open(io.clone(), Arena::new(ARENA_BYTES), settings(), &mut keep).await;
    match journal {
        Ok(journal) => journal.close().await,
        Err(error) => return Err(error.to_string()),
    }
    Ok(found)
}

fn settings() -> Settings {
    Settings {
        directory: DIRECTORY.into(),
        file_bytes: 64 << 10,
        bytes_max: 256 << 10,
        kept_bytes: 0,
        group_bytes_max: 16 << 10,
        pending_bytes_max: 64 << 10,
        tail_bytes_max: 64 << 10,
        flush: Flush::EveryGroup,
    }
}

async fn put(io: &SimIo, name: &str, content: &[u8]) {
    let path = Path::new(DIRECTORY).join(name);
    let file = io.open(&path, OpenHow::CreateNew).await.expect("a new file");
    if content.is_empty() {
        return;
    }
    let mut buffer = io.arena().take(content.len()).expect("memory");
    buffer.copy_from_slice(content);
    file.write_at(0, buffer.freeze(), Durability::Flushed).await.expect("written");
}
