//! Compression codecs, for the places that look inside a batch: the command line, timestamp
//! lookups. Output is bounded by the caller, so a small batch cannot grow without limit.

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
    match codec {
        Codec::None => Ok(Cow::Borrowed(bytes)),
        Codec::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(bytes), limit),
        Codec::Snappy => unsnap(bytes, limit),
        Codec::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(bytes), limit),
        Codec::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(malformed)?;
            read_bounded(decoder, limit)
        }
    }
}

/// The compressed form of `bytes`.
pub(super) fn compress(codec: Codec, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    match codec {
        Codec::None => Ok(bytes.to_vec()),
        Codec::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            out.write_all(bytes).and_then(|()| out.finish()).map_err(malformed)
        }
        Codec::Snappy => snap(bytes),
        Codec::Lz4 => {
            let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
            out.write_all(bytes).map_err(malformed)?;
            out.finish().map_err(malformed)
        }
        Codec::Zstd => zstd::stream::encode_all(bytes, 3).map_err(malformed),
    }
}

fn read_bounded<'a>(reader: impl Read, limit: usize) -> Result<Cow<'a, [u8]>, CodecError> {
    let mut out = Vec::new();
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(bound).read_to_end(&mut out).map_err(malformed)?;
    if out.len() > limit {
        return Err(CodecError::TooLarge { limit });
    }
    Ok(Cow::Owned(out))
}

fn unsnap(bytes: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, CodecError> {
    let mut out = Vec::new();
    if !bytes.starts_with(XERIAL_MAGIC) {
        unsnap_block(bytes, limit, &mut out)?;
        return Ok(Cow::Owned(out));
    }
    let short = || CodecError::Malformed("a snappy chunk is cut off".into());
    let mut left = bytes.get(XERIAL_HEADER_BYTES..).ok_or_else(short)?;
    while let Some((length, rest)) = left.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (chunk, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        unsnap_block(chunk, limit, &mut out)?;
        left = rest;
    }
    if left.is_empty() { Ok(Cow::Owned(out)) } else { Err(short()) }
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

fn snap(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    out.extend_from_slice(XERIAL_MAGIC);
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(&1_u32.to_be_bytes());
    for chunk in bytes.chunks(XERIAL_CHUNK_BYTES) {
        let block = snap::raw::Encoder::new().compress_vec(chunk).map_err(malformed)?;
        let length = u32::try_from(block.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&block);
    }
    Ok(out)
}

fn malformed(error: impl fmt::Display) -> CodecError {
    CodecError::Malformed(error.to_string())
}
