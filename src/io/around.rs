//! Reading a file around what its device cannot read, block by block: for the commands that look at
//! the files of a stopped node.
//!
//!     | block | block | unreadable | block |      reads as      | block | block | zeros | block |
//!
//! Plain blocking reads. Zeros are no group and no batch, and no checksum vouches for them, so that
//! whoever checks what it reads finds damage there.
//!
//! Invariants
//!   A1  Only the blocks that cannot be read alone are given as zeros, and each of them is told.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// See the module's documentation.
pub struct Around<F = File> {
    file: F,
    bytes: u64,
    at: u64,
    /// Where blocks begin that could not be read.
    unread: BTreeSet<u64>,
}

impl Around {
    pub fn open(path: &Path) -> io::Result<Around> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Around::new(file, bytes))
    }
}

impl<F: FileExt> Around<F> {
    /// A file of so many bytes.
    pub fn new(file: F, bytes: u64) -> Around<F> {
        Around { file, bytes, at: 0, unread: BTreeSet::new() }
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.bytes
    }

    pub fn read_exact_at(&mut self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.at = at;
        self.read_exact(into)
    }

    /// Whether something between two places could not be read, of what was asked for.
    pub fn is_unread(&self, from: u64, to: u64) -> bool {
        self.unread.range(from / BLOCK * BLOCK..to).next().is_some()
    }
}

impl<F: FileExt> Read for Around<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let block = self.at / BLOCK * BLOCK;
        let read = match self.file.read_at(into, self.at) {
            Err(error) if is_of_the_device(&error) => {
                let left = usize::try_from(block + BLOCK - self.at).unwrap_or(BLOCK_BYTES);
                let length = left.min(into.len());
                let one = into.get_mut(..length).unwrap_or_default();
                match self.file.read_at(one, self.at) {
                    Err(error) if is_of_the_device(&error) => {
                        one.fill(0);
                        self.unread.insert(block);
                        length
                    }
                    outcome => outcome?,
                }
            }
            outcome => outcome?,
        };
        self.at += read as u64;
        Ok(read)
    }
}

impl<F: FileExt> Seek for Around<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(distance) => self.bytes.checked_add_signed(distance),
            SeekFrom::Current(distance) => self.at.checked_add_signed(distance),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Whether a read failed for what is stored there.
fn is_of_the_device(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADMSG | libc::ENODATA | libc::EILSEQ))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Bytes of which some blocks cannot be read.
    pub struct Bad {
        pub bytes: Vec<u8>,
        pub blocks: Vec<u64>,
    }

    impl FileExt for Bad {
        fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
            let end = at + into.len() as u64;
            if self.blocks.iter().any(|block| block * BLOCK < end && (block + 1) * BLOCK > at) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let rest = self.bytes.get(usize::try_from(at).expect("small")..).unwrap_or_default();
            let length = rest.len().min(into.len());
            into[..length].copy_from_slice(&rest[..length]);
            Ok(length)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn blocks_that_cannot_be_read_are_zeros_and_everything_else_is_there() {
        let bytes = vec![7; 5 * BLOCK_BYTES + 100];
        let mut wanted = bytes.clone();
        wanted[BLOCK_BYTES..3 * BLOCK_BYTES].fill(0);
        let length = bytes.len();
        let mut around = Around::new(Bad { bytes, blocks: vec![1, 2] }, length as u64);
        let mut read = Vec::new();
        around.read_to_end(&mut read).expect("read around");
        assert!(read == wanted);
        assert!(!around.is_unread(0, BLOCK) && !around.is_unread(3 * BLOCK, 9 * BLOCK));
        assert!(around.is_unread(0, BLOCK + 1) && around.is_unread(3 * BLOCK - 1, 3 * BLOCK));
        let mut some = [9; 20];
        around.read_exact_at(&mut some, 3 * BLOCK - 10).expect("read around");
        assert_eq!(some, *[[0; 10], [7; 10]].as_flattened());
        let beyond = around.read_exact_at(&mut some, length as u64 - 5);
        assert_eq!(beyond.expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
    }
}
