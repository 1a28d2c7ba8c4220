//! The wire's primitive types: fixed integers, varints, strings, bytes, arrays, and how each is
//! written in ordinary and in flexible versions (KIP-482).
//!
//!     ordinary:  string = int16 length, bytes = int32 length, array = int32 count; -1 is null
//!     flexible:  all three = unsigned varint of length + 1; 0 is null
//!
//! Invariants
//!   P1  Nothing is read beyond the frame, and nothing is allocated by a count alone: a vector
//!       grows with what was really decoded.
//!   P2  Decoding borrows from the frame; it copies no string and no bytes.

use std::fmt;

use bytes::{BufMut, BytesMut};

/// Elements a vector makes room for before the first of them is decoded.
const FIRST_CAPACITY_MAX: usize = 32;

/// A 128-bit id, as KIP-516 gives to topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Stands for "none".
    pub const ZERO: Uuid = Uuid([0; 16]);

    pub fn is_zero(self) -> bool {
        self == Uuid::ZERO
    }
}

impl fmt::Display for Uuid {
    /// Kafka's form: URL-safe base64 without padding.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let value = u128::from_be_bytes(self.0);
        for digit in 0..22_u32 {
            // 22 digits hold 132 bits: the last one carries four zero bits of padding.
            let shift = 122_i32 - 6 * digit.cast_signed();
            let six = if shift >= 0 { value >> shift } else { value << -shift } & 63;
            let digit = DIGITS[usize::try_from(six).unwrap_or(0)];
            write!(f, "{}", char::from(digit))?;
        }
        Ok(())
    }
}

/// Why bytes are not the message they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The field, innermost first.
    pub field: &'static str,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The frame ends inside the field.
    Truncated,
    /// A length or count is negative or beyond what remains.
    Length,
    /// A null where the version allows none.
    Null,
    /// A string is not UTF-8.
    Utf8,
    /// A varint is longer than its type.
    Varint,
    /// The message ends before the frame does.
    Trailing,
}

impl Reason {
    pub(crate) fn at(self, field: &'static str) -> DecodeError {
        DecodeError { field, reason: self }
    }
}

impl DecodeError {
    /// Names the field, unless an inner one is named already.
    pub(crate) fn within(self, field: &'static str) -> DecodeError {
        if self.field.is_empty() { DecodeError { field, ..self } } else { self }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            Reason::Truncated => "the frame ends inside it",
            Reason::Length => "its length is negative or beyond the end of the frame",
            Reason::Null => "it is null, which this version does not allow",
            Reason::Utf8 => "it is not UTF-8",
            Reason::Varint => "its varint is too long",
            Reason::Trailing => "bytes follow the end of the message",
        };
        write!(f, "field `{}`: {what}", self.field)
    }
}

impl std::error::Error for DecodeError {}

type Result<T> = std::result::Result<T, DecodeError>;

/// The version that a message is read or written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub version: i16,
    pub flexible: bool,
}

/// A place in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { left: bytes }
    }

    /// Bytes that remain.
    pub fn remaining(&self) -> usize {
        self.left.len()
    }

    /// What remains.
    pub fn rest(&self) -> &'a [u8] {
        self.left
    }

    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(length).ok_or(Reason::Truncated.at(""))?;
        self.left = left;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, left) = self.left.split_first_chunk().ok_or(Reason::Truncated.at(""))?;
        self.left = left;
        Ok(*taken)
    }

    pub fn i16(&mut self) -> Result<i16> {
        self.array().map(i16::from_be_bytes)
    }

    pub fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// An unsigned varint of at most 32 bits.
    pub fn unsigned_varint(&mut self) -> Result<u32> {
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                return Err(Reason::Varint.at(""));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Reason::Varint.at(""))
    }

    /// A length in ordinary or flexible form, bounded by what remains; `None` is null.
    fn length(&mut self, ordinary: Ordinary, context: Context) -> Result<Option<usize>> {
        let length = if context.flexible {
            i64::from(self.unsigned_varint()?) - 1
        } else {
            match ordinary {
                Ordinary::Int16 => i64::from(self.i16()?),
                Ordinary::Int32 => i64::from(self.i32()?),
            }
        };
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| Reason::Length.at(""))?;
        if length > self.remaining() {
            return Err(Reason::Length.at(""));
        }
        Ok(Some(length))
    }

    /// Skips the tagged fields of a flexible structure.
    pub fn skip_tags(&mut self, context: Context) -> Result<()> {
        self.tags(context, |_, _| Ok(()))
    }

    /// Gives `look` each tagged field of a flexible structure, by its number.
    pub fn tags(
        &mut self,
        context: Context,
        mut look: impl FnMut(u32, &mut Reader<'a>) -> Result<()>,
    ) -> Result<()> {
        if context.flexible {
            for _ in 0..self.unsigned_varint()? {
                let tag = self.unsigned_varint()?;
                let length = self.unsigned_varint()?;
                let length = usize::try_from(length).map_err(|_| Reason::Length.at(""))?;
                look(tag, &mut Reader::new(self.take(length)?))?;
            }
        }
        Ok(())
    }

    /// An array's element count, bounded by what remains; `None` is null.
    pub fn count(&mut self, context: Context) -> Result<Option<usize>> {
        self.length(Ordinary::Int32, context)
    }

    pub fn string(&mut self, context: Context) -> Result<Option<&'a str>> {
        let Some(length) = self.length(Ordinary::Int16, context)? else { return Ok(None) };
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| Reason::Utf8.at(""))?;
        Ok(Some(text))
    }

    pub fn bytes(&mut self, context: Context) -> Result<Option<&'a [u8]>> {
        let Some(length) = self.length(Ordinary::Int32, context)? else { return Ok(None) };
        self.take(length).map(Some)
    }

    /// Fails unless everything was read.
    pub fn end(&self) -> Result<()> {
        if self.left.is_empty() { Ok(()) } else { Err(Reason::Trailing.at("message")) }
    }
}

/// The width of a length in versions that are not flexible.
#[derive(Clone, Copy)]
enum Ordinary {
    Int16,
    Int32,
}

/// Writes an unsigned varint.
pub fn put_unsigned_varint(out: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.put_u8(u8::try_from(value).unwrap_or(0));
}

fn put_length(out: &mut BytesMut, length: Option<usize>, ordinary: Ordinary, context: Context) {
    // Lengths of our own making are far below 2 GiB; the cast is checked by the assertion.
    let length = length.map(|length| i32::try_from(length).unwrap_or(i32::MAX));
    debug_assert_ne!(length, Some(i32::MAX), "a field is below 2 GiB");
    if context.flexible {
        put_unsigned_varint(out, length.map_or(0, |length| length.cast_unsigned() + 1));
        return;
    }
    let length = length.unwrap_or(-1);
    match ordinary {
        Ordinary::Int16 => out.put_i16(i16::try_from(length).unwrap_or(i16::MAX)),
        Ordinary::Int32 => out.put_i32(length),
    }
}

/// Writes an array's element count.
pub fn put_count(out: &mut BytesMut, count: Option<usize>, context: Context) {
    put_length(out, count, Ordinary::Int32, context);
}

/// Writes the length prefix of bytes that follow by other means.
pub fn put_bytes_length(out: &mut BytesMut, length: Option<usize>, context: Context) {
    put_length(out, length, Ordinary::Int32, context);
}

/// A type that has a form on the wire.
pub trait Wire<'a>: Sized {
    fn decode(reader: &mut Reader<'a>, context: Context) -> Result<Self>;

    fn encode(&self, out: &mut BytesMut, context: Context);

    /// The form of a value that may be null. The default is that of structures: one byte, -1 for
    /// null.
    fn decode_option(reader: &mut Reader<'a>, context: Context) -> Result<Option<Self>> {
        match reader.array()? {
            [0xff] => Ok(None),
            _ => Self::decode(reader, context).map(Some),
        }
    }

    fn encode_option(value: Option<&Self>, out: &mut BytesMut, context: Context) {
        match value {
            None => out.put_i8(-1),
            Some(value) => {
                out.put_i8(1);
                value.encode(out, context);
            }
        }
    }
}

macro_rules! integer {
    ($($type:ty)*) => {$(
        impl<'a> Wire<'a> for $type {
            fn decode(reader: &mut Reader<'a>, _: Context) -> Result<Self> {
                reader.array().map(<$type>::from_be_bytes)
            }

            fn encode(&self, out: &mut BytesMut, _: Context) {
                out.put_slice(&self.to_be_bytes());
            }
        }
    )*};
}

integer!(i8 i16 u16 i32 u32 i64 f64);

impl<'a> Wire<'a> for bool {
    fn decode(reader: &mut Reader<'a>, _: Context) -> Result<Self> {
        Ok(reader.array::<1>()? != [0])
    }

    fn encode(&self, out: &mut BytesMut, _: Context) {
        out.put_u8(u8::from(*self));
    }
}

impl<'a> Wire<'a> for Uuid {
    fn decode(reader: &mut Reader<'a>, _: Context) -> Result<Self> {
        reader.array().map(Uuid)
    }

    fn encode(&self, out: &mut BytesMut, _: Context) {
        out.put_slice(&self.0);
    }
}

impl<'a> Wire<'a> for &'a str {
    fn decode(reader: &mut Reader<'a>, context: Context) -> Result<Self> {
        reader.string(context)?.ok_or(Reason::Null.at(""))
    }

    fn encode(&self, out: &mut BytesMut, context: Context) {
        // An ordinary string holds 32,767 bytes; a longer one (only ever an error's message) is
        // cut at a character.
        let longest = if context.flexible { self.len() } else { i16::MAX as usize };
        let text = &self[..self.floor_char_boundary(longest.min(self.len()))];
        put_length(out, Some(text.len()), Ordinary::Int16, context);
        out.put_slice(text.as_bytes());
    }

    fn decode_option(reader: &mut Reader<'a>, context: Context) -> Result<Option<Self>> {
        reader.string(context)
    }

    fn encode_option(value: Option<&Self>, out: &mut BytesMut, context: Context) {
        match value {
            None => put_length(out, None, Ordinary::Int16, context),
            Some(value) => value.encode(out, context),
        }
    }
}

impl<'a> Wire<'a> for &'a [u8] {
    fn decode(reader: &mut Reader<'a>, context: Context) -> Result<Self> {
        reader.bytes(context)?.ok_or(Reason::Null.at(""))
    }

    fn encode(&self, out: &mut BytesMut, context: Context) {
        put_length(out, Some(self.len()), Ordinary::Int32, context);
        out.put_slice(self);
    }

    fn decode_option(reader: &mut Reader<'a>, context: Context) -> Result<Option<Self>> {
        reader.bytes(context)
    }

    fn encode_option(value: Option<&Self>, out: &mut BytesMut, context: Context) {
        match value {
            None => put_length(out, None, Ordinary::Int32, context),
            Some(value) => value.encode(out, context),
        }
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Vec<T> {
    fn decode(reader: &mut Reader<'a>, context: Context) -> Result<Self> {
        Self::decode_option(reader, context)?.ok_or(Reason::Null.at(""))
    }

    fn encode(&self, out: &mut BytesMut, context: Context) {
        put_count(out, Some(self.len()), context);
        for element in self {
            element.encode(out, context);
        }
    }

    fn decode_option(reader: &mut Reader<'a>, context: Context) -> Result<Option<Self>> {
        let Some(count) = reader.count(context)? else { return Ok(None) };
        let mut elements = Vec::with_capacity(count.min(FIRST_CAPACITY_MAX));
        for _ in 0..count {
            elements.push(T::decode(reader, context)?);
        }
        Ok(Some(elements))
    }

    fn encode_option(value: Option<&Self>, out: &mut BytesMut, context: Context) {
        match value {
            None => put_count(out, None, context),
            Some(value) => value.encode(out, context),
        }
    }
}

impl<'a, T: Wire<'a>> Wire<'a> for Option<T> {
    fn decode(reader: &mut Reader<'a>, context: Context) -> Result<Self> {
        T::decode_option(reader, context)
    }

    fn encode(&self, out: &mut BytesMut, context: Context) {
        T::encode_option(self.as_ref(), out, context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_prints_as_kafka_prints_it() {
        assert_eq!(Uuid::ZERO.to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
        let mut one = [0; 16];
        one[15] = 1;
        assert_eq!(Uuid(one).to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(Uuid([0xff; 16]).to_string(), "_____________________w");
    }

    #[test]
    fn a_count_beyond_the_frame_is_refused_before_anything_is_allocated() {
        let context = Context { version: 0, flexible: false };
        let bytes = i32::MAX.to_be_bytes();
        let decoded = Vec::<i32>::decode(&mut Reader::new(&bytes), context);
        assert_eq!(decoded, Err(Reason::Length.at("")));
        let decoded = Vec::<i32>::decode(&mut Reader::new(&(-2_i32).to_be_bytes()), context);
        assert_eq!(decoded, Err(Reason::Length.at("")));
    }

    #[test]
    fn varints_have_five_bytes_at_most() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u32::MAX] {
            let mut out = BytesMut::new();
            put_unsigned_varint(&mut out, value);
            assert_eq!(Reader::new(&out).unsigned_varint(), Ok(value));
        }
        let long = [0xff, 0xff, 0xff, 0xff, 0x1f];
        assert_eq!(Reader::new(&long).unsigned_varint(), Err(Reason::Varint.at("")));
        assert_eq!(Reader::new(&[0x80]).unsigned_varint(), Err(Reason::Truncated.at("")));
    }
}
