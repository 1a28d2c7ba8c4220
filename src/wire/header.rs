//! Request and response headers: what every frame begins with after its length.
//!
//!     request:  | api key i16 | version i16 | correlation i32 | client id string | tags if v2 |
//!     response: | correlation i32 | tags if v1 |

use bytes::{BufMut, BytesMut};

use super::api::ApiKey;
use super::primitive::{Context, DecodeError, Reader, Wire, put_unsigned_varint};

/// A request's first bytes, which have the same form in every version of every API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestStart {
    pub key: i16,
    pub version: i16,
    pub correlation: i32,
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader<'a> {
    pub api: ApiKey,
    pub version: i16,
    pub correlation: i32,
    pub client_id: Option<&'a str>,
}

/// Client ids are written as ordinary strings in every header version.
const ORDINARY: Context = Context { version: 0, flexible: false };

impl RequestStart {
    pub fn decode(reader: &mut Reader<'_>) -> Result<RequestStart, DecodeError> {
        let at = |field| move |error: DecodeError| error.within(field);
        Ok(RequestStart {
            key: reader.i16().map_err(at("request_api_key"))?,
            version: reader.i16().map_err(at("request_api_version"))?,
            correlation: reader.i32().map_err(at("correlation_id"))?,
        })
    }
}

impl<'a> RequestHeader<'a> {
    /// What follows `start`, whose key and version are known to be served.
    pub fn decode(
        start: RequestStart,
        api: ApiKey,
        reader: &mut Reader<'a>,
    ) -> Result<RequestHeader<'a>, DecodeError> {
        let client_id =
            reader.string(ORDINARY).map_err(|error: DecodeError| error.within("client_id"))?;
        let context = api.context(start.version);
        reader.skip_tags(context).map_err(|error: DecodeError| error.within("header tags"))?;
        let RequestStart { version, correlation, .. } = start;
        Ok(RequestHeader { api, version, correlation, client_id })
    }

    /// Writes the header, for a client.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_i16(self.api as i16);
        out.put_i16(self.version);
        out.put_i32(self.correlation);
        Wire::encode(&self.client_id, out, ORDINARY);
        if self.api.is_flexible(self.version) {
            put_unsigned_varint(out, 0);
        }
    }
}

/// Writes a response's header.
pub fn put_response_header(out: &mut BytesMut, api: ApiKey, version: i16, correlation: i32) {
    out.put_i32(correlation);
    if api.response_header_is_flexible(version) {
        put_unsigned_varint(out, 0);
    }
}

/// Reads a response's header, for a client; returns the correlation id.
pub fn read_response_header(
    reader: &mut Reader<'_>,
    api: ApiKey,
    version: i16,
) -> Result<i32, DecodeError> {
    let correlation = reader.i32().map_err(|error| error.within("correlation_id"))?;
    if api.response_header_is_flexible(version) {
        reader.skip_tags(api.context(version)).map_err(|error| error.within("header tags"))?;
    }
    Ok(correlation)
}

/// Decodes a whole message body; bytes after its end are an error.
pub fn decode_body<'a, T: Wire<'a>>(
    body: &'a [u8],
    api: ApiKey,
    version: i16,
) -> Result<T, DecodeError> {
    let mut reader = Reader::new(body);
    let message = decode(&mut reader, api, version)?;
    reader.end()?;
    Ok(message)
}

/// As `decode_body`, whatever follows the message.
pub fn decode_start<'a, T: Wire<'a>>(
    body: &'a [u8],
    api: ApiKey,
    version: i16,
) -> Result<T, DecodeError> {
    decode(&mut Reader::new(body), api, version)
}

fn decode<'a, T: Wire<'a>>(
    reader: &mut Reader<'a>,
    api: ApiKey,
    version: i16,
) -> Result<T, DecodeError> {
    T::decode(reader, api.context(version)).map_err(|error| error.within("message"))
}
