//! Compression codecs, for the places that look inside a batch: the command line, timestamp
//! lookups, compaction, topics with a codec of their own. Output is bounded by the caller, so a
//! small batch cannot grow without limit; `Packer` and `Unpacker` work step by step.

use std::borrow::Cow;
use std::fmt;
use std::io::{Read, Write};

/// How a batch's records are compressed (attribute bits 0 to 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

/// Why records cannot be (de)compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// The bytes are not of the codec.
    Malformed(String),
    /// The output would exceed the caller's bound.
    TooLarge { limit: usize },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodecError::Malformed(why) => write!(f, "compressed records are malformed: {why}"),
            CodecError::TooLarge { limit } => {
                write!(f, "compressed records hold more than {limit} bytes")
            }
        }
    }
}

impl std::error::Error for CodecError {}

/// The header that the Java snappy library puts before its chunks.
const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;
const XERIAL_CHUNK_BYTES: usize = 32 << 10;

impl Codec {
    pub fn from_bits(bits: i16) -> Option<Codec> {
        [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd]
            .into_iter()
            .find(|codec| *codec as i16 == bits)
    }

    pub fn from_name(name: &str) -> Option<Codec> {
        [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd]
            .into_iter()
            .find(|codec| codec.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

/// The records inside, at most `limit` bytes of them.
pub fn decompress(codec: Codec, bytes: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, CodecError> {
    if codec == Codec::None {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut unpacker = Unpacker::new(codec, bytes, limit)?;
    while unpacker.step()? {}
    Ok(Cow::Owned(unpacker.finish()))
}

/// The compressed form of `bytes`.
pub(super) fn compress(codec: Codec, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut packer = Packer::new(codec, None)?;
    packer.push(bytes)?;
    packer.finish()
}

/// Bytes that a step takes or gives. A multiple of a snappy chunk, so that these are full.
pub const STEP_BYTES: usize = 64 << 10;
const ZSTD_LEVEL: i32 = 3;

/// Compresses piece by piece.
pub struct Packer(Packing);

enum Packing {
    Plain(Vec<u8>),
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Snappy(Vec<u8>),
    Lz4(Box<lz4_flex::frame::FrameEncoder<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Packer {
    /// `level` is the codec's own, where it has levels.
    pub fn new(codec: Codec, level: Option<i32>) -> Result<Packer, CodecError> {
        Ok(Packer(match codec {
            Codec::None => Packing::Plain(Vec::new()),
            Codec::Gzip => {
                let level = level.and_then(|level| u32::try_from(level).ok());
                let level = level.map_or_else(flate2::Compression::default, |level| {
                    flate2::Compression::new(level.min(9))
                });
                Packing::Gzip(flate2::write::GzEncoder::new(Vec::new(), level))
            }
            Codec::Snappy => Packing::Snappy(snappy_header()),
            Codec::Lz4 => Packing::Lz4(Box::new(lz4_flex::frame::FrameEncoder::new(Vec::new()))),
            Codec::Zstd => {
                let level = level.unwrap_or(ZSTD_LEVEL);
                let encoder = zstd::stream::write::Encoder::new(Vec::new(), level);
                Packing::Zstd(encoder.map_err(malformed)?)
            }
        }))
    }

    pub fn push(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        match &mut self.0 {
            Packing::Plain(out) => out.write_all(bytes).map_err(malformed),
            Packing::Gzip(out) => out.write_all(bytes).map_err(malformed),
            Packing::Snappy(out) => snap(bytes, out),
            Packing::Lz4(out) => out.write_all(bytes).map_err(malformed),
            Packing::Zstd(out) => out.write_all(bytes).map_err(malformed),
        }
    }

    pub fn finish(self) -> Result<Vec<u8>, CodecError> {
        match self.0 {
            Packing::Plain(out) | Packing::Snappy(out) => Ok(out),
            Packing::Gzip(out) => out.finish().map_err(malformed),
            Packing::Lz4(out) => out.finish().map_err(malformed),
            Packing::Zstd(out) => out.finish().map_err(malformed),
        }
    }
}

/// Decompresses piece by piece.
pub struct Unpacker<'a> {
    from: Unpacking<'a>,
    out: Vec<u8>,
    limit: usize,
}

enum Unpacking<'a> {
    Stream(Box<dyn Read + 'a>),
    /// The chunks that are left, or one block.
    Snappy {
        left: &'a [u8],
        is_chunked: bool,
    },
}

impl<'a> Unpacker<'a> {
    /// Gives at most `limit` bytes.
    pub fn new(codec: Codec, bytes: &'a [u8], limit: usize) -> Result<Unpacker<'a>, CodecError> {
        let from = match codec {
            Codec::None => Unpacking::Stream(Box::new(bytes)),
            Codec::Gzip => Unpacking::Stream(Box::new(flate2::read::MultiGzDecoder::new(bytes))),
            Codec::Lz4 => Unpacking::Stream(Box::new(lz4_flex::frame::FrameDecoder::new(bytes))),
            Codec::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(bytes);
                Unpacking::Stream(Box::new(decoder.map_err(malformed)?))
            }
            Codec::Snappy => match bytes.starts_with(XERIAL_MAGIC) {
                true => {
                    let short = || CodecError::Malformed("a snappy header is cut off".into());
                    let left = bytes.get(XERIAL_HEADER_BYTES..).ok_or_else(short)?;
                    Unpacking::Snappy { left, is_chunked: true }
                }
                false => Unpacking::Snappy { left: bytes, is_chunked: false },
            },
        };
        Ok(Unpacker { from, out: Vec::new(), limit })
    }

    /// One step; false when that was the last.
    pub fn step(&mut self) -> Result<bool, CodecError> {
        match &mut self.from {
            Unpacking::Stream(reader) => {
                let before = self.out.len();
                let step = reader.by_ref().take(STEP_BYTES as u64).read_to_end(&mut self.out);
                step.map_err(malformed)?;
                if self.out.len() > self.limit {
                    return Err(CodecError::TooLarge { limit: self.limit });
                }
                Ok(self.out.len() > before)
            }
            Unpacking::Snappy { left, is_chunked: true } => {
                let short = || CodecError::Malformed("a snappy chunk is cut off".into());
                let Some((length, rest)) = left.split_first_chunk::<4>() else {
                    return if left.is_empty() { Ok(false) } else { Err(short()) };
                };
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                let (chunk, rest) = rest.split_at_checked(length).ok_or_else(short)?;
                unsnap_block(chunk, self.limit, &mut self.out)?;
                *left = rest;
                Ok(true)
            }
            Unpacking::Snappy { left, is_chunked: false } => {
                unsnap_block(left, self.limit, &mut self.out)?;
                Ok(false)
            }
        }
    }

    /// What was given.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

fn unsnap_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let length = snap::raw::decompress_len(block).map_err(malformed)?;
    if length > limit.saturating_sub(out.len()) {
        return Err(CodecError::TooLarge { limit });
    }
    // A block cannot hold more than about 22 times its size, whatever its length field says.
    if length > block.len().saturating_mul(64) {
        return Err(CodecError::Malformed("a snappy block's length is not possible".into()));
    }
    out.extend(snap::raw::Decoder::new().decompress_vec(block).map_err(malformed)?);
    Ok(())
}

fn snappy_header() -> Vec<u8> {
    [&XERIAL_MAGIC[..], &1_u32.to_be_bytes(), &1_u32.to_be_bytes()].concat()
}

fn snap(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    for chunk in bytes.chunks(XERIAL_CHUNK_BYTES) {
        let block = snap::raw::Encoder::new().compress_vec(chunk).map_err(malformed)?;
        let length = u32::try_from(block.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&block);
    }
    Ok(())
}

fn malformed(error: impl fmt::Display) -> CodecError {
    CodecError::Malformed(error.to_string())
}
