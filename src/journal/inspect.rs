//! Reading a journal file without a running node: for `corelog inspect`.
//!
//! Plain blocking reads, one group in memory at a time; what is damaged is told and passed over.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::layout::{Entry, Flaw, GroupHeader, HEADER_BYTES};
use crate::io::BLOCK_BYTES;

/// One thing met on the way through the file.
#[derive(Debug)]
pub enum Met<'a> {
    /// A sound group; its entries follow.
    Group { position: u64, header: GroupHeader },
    /// An entry of the group, with its verified body.
    Entry { entry: Entry, position: u64, body: &'a [u8] },
    /// Something that begins like a group and is none.
    Damage { position: u64, flaw: Flaw },
    /// Blocks between two groups that hold none.
    Gap { position: u64, bytes: u64 },
}

/// Walks through the file and tells `visit` of everything it meets.
pub fn walk(path: &Path, visit: &mut dyn FnMut(Met<'_>)) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    walk_in(&mut file, length, visit)
}

/// The same of `length` bytes that are read from elsewhere.
pub fn walk_in(
    file: &mut (impl Read + Seek),
    length: u64,
    visit: &mut dyn FnMut(Met<'_>),
) -> io::Result<()> {
    let mut position = 0;
    let mut gap = 0;
    let mut group = Vec::new();
    while position + BLOCK_BYTES as u64 <= length {
        group.resize(HEADER_BYTES, 0);
        read_at(file, position, &mut group)?;
        let header = match GroupHeader::read(&group) {
            Ok(header) if position + u64::from(header.length) <= length && header.length > 0 => {
                header
            }
            Ok(_) => {
                visit(Met::Damage { position, flaw: Flaw::Lengths });
                position += BLOCK_BYTES as u64;
                continue;
            }
            Err(Flaw::NoGroup) => {
                gap += BLOCK_BYTES as u64;
                position += BLOCK_BYTES as u64;
                continue;
            }
            Err(flaw) => {
                visit(Met::Damage { position, flaw });
                position += BLOCK_BYTES as u64;
                continue;
            }
        };
        tell_gap(&mut gap, position, visit);
        group.resize(header.length as usize, 0);
        read_at(file, position, &mut group)?;
        if let Err(flaw) = header.check(&group) {
            visit(Met::Damage { position, flaw });
            position += BLOCK_BYTES as u64;
            continue;
        }
        visit(Met::Group { position, header });
        for found in header.entries(&group) {
            match found {
                Ok((entry, place, body)) => {
                    visit(Met::Entry { entry, position: position + u64::from(place), body });
                }
                Err(flaw) => visit(Met::Damage { position, flaw }),
            }
        }
        position += u64::from(header.length);
    }
    tell_gap(&mut gap, position, visit);
    Ok(())
}

fn tell_gap(gap: &mut u64, position: u64, visit: &mut dyn FnMut(Met<'_>)) {
    if *gap > 0 {
        visit(Met::Gap { position: position - *gap, bytes: *gap });
        *gap = 0;
    }
}

fn read_at(file: &mut (impl Read + Seek), position: u64, into: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(position))?;
    file.read_exact(into)
}
