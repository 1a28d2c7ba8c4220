//! A file's bytes as two images: what a read gives, and what is left after a power loss.
//!
//! ```text
//!     | page 0 | hole (zeros) | page 2 |      4096 bytes a page, of 8 sectors that are never torn
//! ```
//!
//! Invariants
//!   D1  A write that is durable is in `durable`, and nothing older can take its place.
//!   D2  A write that is not durable is in `unsynced` until a sync covers it: a power loss keeps
//!       any of its sectors or none.
//!   D3  Without a crash, reads give the last completed write.

use std::collections::BTreeMap;
use std::ffi::OsString;

use bytes::{Bytes, BytesMut};

use super::chance::Chance;
use crate::io::BLOCK_BYTES;

pub const PAGE_BYTES: u64 = BLOCK_BYTES as u64;
pub const SECTOR_BYTES: usize = 512;
const PAGE_SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;
static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Sparse bytes.
#[derive(Clone, Default)]
struct Image {
    length: u64,
    pages: BTreeMap<u64, Bytes>,
}

impl Image {
    fn page(&self, page: u64) -> &[u8] {
        self.pages.get(&page).map_or(&ZEROS, |bytes| bytes)
    }

    fn put(&mut self, page: u64, data: Bytes) {
        self.pages.insert(page, data);
        self.length = self.length.max((page + 1) * PAGE_BYTES);
    }

    /// Puts those sectors of `data` for which `keep` says so; it is asked once for each.
    fn put_sectors(&mut self, page: u64, data: &Bytes, mut keep: impl FnMut(u64) -> bool) {
        let mut merged = BytesMut::from(self.page(page));
        let mut kept = false;
        for sector in 0..PAGE_SECTORS {
            if keep(sector) {
                let start = sector as usize * SECTOR_BYTES; // within a page
                merged[start..start + SECTOR_BYTES]
                    .copy_from_slice(&data[start..start + SECTOR_BYTES]);
                kept = true;
            }
        }
        if kept {
            self.put(page, merged.freeze());
        }
    }

    fn truncate(&mut self, length: u64) {
        self.length = length;
        drop(self.pages.split_off(&length.div_ceil(PAGE_BYTES)));
        let within = (length % PAGE_BYTES) as usize; // below a page
        if within > 0 {
            let mut last = BytesMut::from(self.page(length / PAGE_BYTES));
            last[within..].fill(0);
            self.pages.insert(length / PAGE_BYTES, last.freeze());
        }
    }
}

/// One page of a write that is not durable.
struct Version {
    write: u64,
    /// The page's place in its write, and that write's pages.
    place: u64,
    pages: u64,
    data: Bytes,
    /// A failed sync gave up on it: later ones do not cover it.
    given_up: bool,
}

/// What a crash leaves of one write.
#[derive(Clone, Copy)]
pub enum Fate {
    Kept,
    Lost,
    /// The sectors before this one.
    Head(u64),
    /// The sectors from this one.
    Tail(u64),
    /// Each sector by a coin.
    Scattered,
}

impl Fate {
    /// A fate for a write of so many pages.
    pub fn draw(chance: &Chance, pages: u64) -> Fate {
        let cut = || 1 + chance.below(pages * PAGE_SECTORS - 1);
        match chance.below(8) {
            0..=2 => Fate::Kept,
            3 | 4 => Fate::Lost,
            5 => Fate::Head(cut()),
            6 => Fate::Tail(cut()),
            _ => Fate::Scattered,
        }
    }

    fn keeps(self, chance: &Chance, sector: u64) -> bool {
        match self {
            Fate::Kept => true,
            Fate::Lost => false,
            Fate::Head(end) => sector < end,
            Fate::Tail(start) => sector >= start,
            Fate::Scattered => chance.coin(),
        }
    }
}

/// A file's content, whatever its name.
#[derive(Default)]
pub struct Inode {
    /// The file system that it is on, by its top folder.
    pub file_system: OsString,
    visible: Image,
    durable: Image,
    unsynced: BTreeMap<u64, Vec<Version>>,
    writes: u64,
}

impl Inode {
    pub fn length(&self) -> u64 {
        self.visible.length
    }

    /// The number of the last write; a sync that starts here covers all up to it.
    pub fn last_write(&self) -> u64 {
        self.writes
    }

    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Fills `into` from `offset`; what is beyond the end reads as zeros.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let within = (at % PAGE_BYTES) as usize; // below a page
            let length = (BLOCK_BYTES - within).min(into.len() - done);
            let page = &self.visible.page(at / PAGE_BYTES)[within..within + length];
            into[done..done + length].copy_from_slice(page);
            done += length;
        }
    }

    /// Completes a write of whole pages.
    pub fn write(&mut self, offset: u64, data: &Bytes, flushed: bool) {
        self.writes += 1;
        let pages = data.len() as u64 / PAGE_BYTES;
        for place in 0..pages {
            let page = offset / PAGE_BYTES + place;
            let bytes = page_of(data, place);
            self.visible.put(page, bytes.clone());
            if flushed {
                self.unsynced.remove(&page);
                self.durable.put(page, bytes);
            } else {
                let version =
                    Version { write: self.writes, place, pages, data: bytes, given_up: false };
                self.unsynced.entry(page).or_default().push(version);
            }
        }
    }

    /// Completes a write that was cut short: by an error, or by its process's end.
    pub fn write_torn(&mut self, offset: u64, data: &Bytes, fate: Fate, chance: &Chance) {
        let pages = data.len() as u64 / PAGE_BYTES;
        self.writes += 1;
        for place in 0..pages {
            let page = offset / PAGE_BYTES + place;
            let keep = |sector| fate.keeps(chance, place * PAGE_SECTORS + sector);
            self.visible.put_sectors(page, &page_of(data, place), keep);
            let Some(merged) = self.visible.pages.get(&page).cloned() else { continue };
            let version =
                Version { write: self.writes, place, pages, data: merged, given_up: false };
            self.unsynced.entry(page).or_default().push(version);
        }
    }

    /// Completes a sync: writes up to number `through` are durable.
    pub fn sync(&mut self, through: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|page, versions| {
            let covered = |version: &Version| version.write <= through && !version.given_up;
            if let Some(last) = versions.iter().rposition(covered) {
                durable.put(*page, versions[last].data.clone());
                versions.drain(..=last);
            }
            !versions.is_empty()
        });
    }

    /// Fails a sync: what it should have covered is given up, as kernels do.
    pub fn fail_sync(&mut self, through: u64) {
        for version in self.unsynced.values_mut().flatten() {
            version.given_up |= version.write <= through;
        }
    }

    /// Grows the file by durable zeros.
    pub fn grow(&mut self, length: u64) {
        self.visible.length = self.visible.length.max(length);
        self.durable.length = self.durable.length.max(length);
    }

    /// Power loss: keeps of each write that is not durable what its fate says.
    pub fn lose_power(&mut self, chance: &Chance) {
        let mut fates: BTreeMap<u64, Fate> = BTreeMap::new();
        for (page, versions) in std::mem::take(&mut self.unsynced) {
            for version in versions {
                let draw = || Fate::draw(chance, version.pages);
                let fate = *fates.entry(version.write).or_insert_with(draw);
                let first = version.place * PAGE_SECTORS;
                let keep = |sector| fate.keeps(chance, first + sector);
                self.durable.put_sectors(page, &version.data, keep);
            }
        }
        self.visible = self.durable.clone();
    }

    /// Flips one bit on the device.
    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.damage(offset, |byte| byte ^ (1 << (bit % 8)));
    }

    /// Sets one byte on the device.
    pub fn set_byte(&mut self, offset: u64, value: u8) {
        self.damage(offset, |_| value);
    }

    fn damage(&mut self, offset: u64, change: impl Fn(u8) -> u8) {
        assert!(offset < self.length(), "byte {offset} is within {} bytes", self.length());
        let page = offset / PAGE_BYTES;
        let within = (offset % PAGE_BYTES) as usize; // below a page
        for image in [&mut self.visible, &mut self.durable] {
            let mut bytes = BytesMut::from(image.page(page));
            bytes[within] = change(bytes[within]);
            image.pages.insert(page, bytes.freeze());
        }
    }

    /// Cuts the file, or grows it by zeros, on the device.
    pub fn truncate(&mut self, length: u64) {
        self.visible.truncate(length);
        self.durable.truncate(length);
        self.unsynced.retain(|page, _| *page < length.div_ceil(PAGE_BYTES));
    }
}

fn page_of(data: &Bytes, place: u64) -> Bytes {
    let start = place as usize * BLOCK_BYTES; // within `data`
    data.slice(start..start + BLOCK_BYTES)
}
