//! How `corelog consume` writes a record: by a pattern of kcat's letters, or as JSON.
//!
//!     %t topic   %p partition   %o offset   %T timestamp   %h headers
//!     %k key     %K its bytes, -1 for null  %s value       %S its bytes, -1 for null
//!     %% percent \n \t \r \0 \\ and \xHH bytes

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::client::failure::Failure;
use crate::wire::records::Record;

/// A pattern, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Timestamp,
    Headers,
    Key,
    KeyBytes,
    Value,
    ValueBytes,
}

/// Where a record comes from.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub topic: &'a str,
    pub partition: i32,
}

impl Format {
    /// Reads a pattern.
    pub fn parse(pattern: &str) -> Result<Format, Failure> {
        let mut parts = Vec::new();
        let mut text = Vec::new();
        let mut left = pattern.chars();
        while let Some(letter) = left.next() {
            let part = match letter {
                '%' => directive(left.next())?,
                '\\' => Part::Text(vec![escape(&mut left)?]),
                other => Part::Text(other.to_string().into_bytes()),
            };
            match part {
                Part::Text(more) => text.extend(more),
                part => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(part);
                }
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Format { parts })
    }

    /// The value on a line, behind the key if a delimiter is given.
    pub fn line(key_delimiter: Option<&str>) -> Format {
        let mut parts = Vec::new();
        if let Some(delimiter) = key_delimiter {
            parts.push(Part::Key);
            parts.push(Part::Text(delimiter.as_bytes().to_vec()));
        }
        parts.push(Part::Value);
        parts.push(Part::Text(b"\n".to_vec()));
        Format { parts }
    }

    /// Writes a record.
    pub fn write(
        &self,
        out: &mut dyn Write,
        origin: Origin<'_>,
        record: &Record<'_>,
    ) -> io::Result<()> {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.write_all(text)?,
                Part::Topic => write!(out, "{}", origin.topic)?,
                Part::Partition => write!(out, "{}", origin.partition)?,
                Part::Offset => write!(out, "{}", record.offset)?,
                Part::Timestamp => write!(out, "{}", record.timestamp)?,
                Part::Headers => write_headers(out, record)?,
                Part::Key => out.write_all(record.key.unwrap_or_default())?,
                Part::KeyBytes => write_length(out, record.key)?,
                Part::Value => out.write_all(record.value.unwrap_or_default())?,
                Part::ValueBytes => write_length(out, record.value)?,
            }
        }
        Ok(())
    }
}

fn directive(letter: Option<char>) -> Result<Part, Failure> {
    Ok(match letter {
        Some('%') => Part::Text(b"%".to_vec()),
        Some('t') => Part::Topic,
        Some('p') => Part::Partition,
        Some('o') => Part::Offset,
        Some('T') => Part::Timestamp,
        Some('h') => Part::Headers,
        Some('k') => Part::Key,
        Some('K') => Part::KeyBytes,
        Some('s') => Part::Value,
        Some('S') => Part::ValueBytes,
        other => {
            let letter = other.map_or(String::new(), |letter| letter.to_string());
            return Err(Failure::Usage(format!(
                "--format has `%{letter}`: give one of %t %p %o %T %h %k %K %s %S %%"
            )));
        }
    })
}

fn escape(left: &mut std::str::Chars<'_>) -> Result<u8, Failure> {
    let letter = left.next();
    let known = match letter {
        Some('n') => Some(b'\n'),
        Some('t') => Some(b'\t'),
        Some('r') => Some(b'\r'),
        Some('0') => Some(0),
        Some('\\') => Some(b'\\'),
        Some('x') => {
            let digits: String = left.take(2).collect();
            if digits.len() == 2 { u8::from_str_radix(&digits, 16).ok() } else { None }
        }
        _ => None,
    };
    known.ok_or_else(|| {
        let letter = letter.map_or(String::new(), |letter| letter.to_string());
        let escapes = "give one of \\n \\t \\r \\0 \\xHH \\\\";
        Failure::Usage(format!("--format has `\\{letter}`: {escapes}"))
    })
}

fn write_length(out: &mut dyn Write, bytes: Option<&[u8]>) -> io::Result<()> {
    match bytes {
        None => write!(out, "-1"),
        Some(bytes) => write!(out, "{}", bytes.len()),
    }
}

fn write_headers(out: &mut dyn Write, record: &Record<'_>) -> io::Result<()> {
    for (index, header) in record.headers().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        write!(out, "{comma}{}=", String::from_utf8_lossy(header.key))?;
        out.write_all(header.value.unwrap_or(b"NULL"))?;
    }
    Ok(())
}

/// A record as one JSON object. Bytes that are no text stand in hexadecimal under `..._hex`.
pub fn json_record(origin: Origin<'_>, record: &Record<'_>) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("topic".into(), json!(origin.topic));
    object.insert("partition".into(), json!(origin.partition));
    object.insert("offset".into(), json!(record.offset));
    object.insert("timestamp".into(), json!(record.timestamp));
    insert_bytes(&mut object, "key", record.key);
    insert_bytes(&mut object, "value", record.value);
    let headers = record.headers().map(|header| {
        let mut object = serde_json::Map::new();
        insert_bytes(&mut object, "key", Some(header.key));
        insert_bytes(&mut object, "value", header.value);
        Value::Object(object)
    });
    object.insert("headers".into(), Value::Array(headers.collect()));
    Value::Object(object)
}

fn insert_bytes(object: &mut serde_json::Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    let bytes = bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes));
    match bytes {
        None => object.insert(name.into(), Value::Null),
        Some(Ok(text)) => object.insert(name.into(), json!(text)),
        Some(Err(bytes)) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            object.insert(format!("{name}_hex"), json!(hex))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::records::{
        BatchBuilder, BatchHeader, Codec, HEADER_BYTES, NewRecord, Records,
    };

    const ORIGIN: Origin<'_> = Origin { topic: "orders", partition: 3 };

    fn written(pattern: &str, record: NewRecord<'_>) -> String {
        with_record(record, |record| {
            let mut out = Vec::new();
            let format = Format::parse(pattern).expect("valid");
            format.write(&mut out, ORIGIN, record).expect("memory");
            String::from_utf8_lossy(&out).into_owned()
        })
    }

    fn with_record<T>(record: NewRecord<'_>, act: impl FnOnce(&Record<'_>) -> T) -> T {
        let mut builder = BatchBuilder::new();
        builder.push(&record);
        let batch = builder.build(Codec::None).expect("buildable");
        let header = BatchHeader::read(&batch).expect("whole");
        let mut records = Records::new(&header, &batch[HEADER_BYTES..]);
        act(&records.next().expect("one").expect("sound"))
    }

    #[test]
    fn every_letter_stands_for_its_part() {
        let record = NewRecord {
            timestamp: 77,
            key: Some(b"k1"),
            value: Some(b"v"),
            headers: &[("a", Some(b"1")), ("b", None)],
        };
        let all = written("%t/%p@%o %T [%h] %k(%K)=%s(%S)%%\\n\\t\\x41\\\\", record);
        assert_eq!(all, "orders/3@0 77 [a=1,b=NULL] k1(2)=v(1)%\n\tA\\");
        let null = NewRecord { key: None, value: None, ..record };
        assert_eq!(written("%k%K%s%S", null), "-1-1");
    }

    #[test]
    fn unknown_letters_are_refused_with_the_known_ones() {
        for wrong in ["%q", "%", "\\q", "\\", "\\x4", "\\xzz"] {
            assert!(matches!(Format::parse(wrong), Err(Failure::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn json_keeps_bytes_that_are_no_text() {
        let record = NewRecord {
            timestamp: 1,
            key: Some(&[0xff, 0x00]),
            value: Some("ü".as_bytes()),
            headers: &[],
        };
        let value = with_record(record, |record| json_record(ORIGIN, record));
        assert_eq!(
            value,
            json!({
                "topic": "orders", "partition": 3, "offset": 0, "timestamp": 1,
                "key_hex": "ff00", "value": "ü", "headers": [],
            })
        );
    }
}
