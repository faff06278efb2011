//! TensorBoard's event file: TFRecord frames of `Event` messages, scalars only.
//!
//! A frame is `u64 length | u32 masked crc32c of the length | data | u32 masked crc32c of the data`, little endian
//! (tensorflow/core/lib/io/record_writer.h); the messages are those of tensorflow/core/util/event.proto and
//! tensorflow/core/framework/summary.proto, cut down to what is written here.

use super::metrics::{Record, TIMES};
use prost::Message;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// TensorBoard takes every file with this in its name.
const PREFIX: &str = "events.out.tfevents.";
/// Where other writers put the host: these files are copied from machine to machine.
const SUFFIX: &str = "rabtriever";

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.SessionStatus.START`: a reader drops what it holds of the event's step and later ones.
const START: i32 = 1;

/// Writes one event file.
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// Starts the only event file of `dir`. `again`: a TensorBoard that is open on the old file shall forget what it read.
    pub fn create(dir: &Path, now: f64, again: bool) -> io::Result<Self> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                fs::remove_file(entry.path())?;
            }
        }
        let file = File::create(dir.join(format!("{PREFIX}{:010}.{SUFFIX}", now as u64)))?;
        let mut writer = Self { file };
        let version =
            Event { wall_time: now, file_version: Some("brain.Event:2".into()), ..Event::default() };
        writer.event(&version)?;
        if again {
            let session_log = Some(SessionLog { status: START });
            writer.event(&Event { wall_time: now, session_log, ..Event::default() })?;
        }
        Ok(writer)
    }

    /// One event: the record's numbers under tags such as `train/loss`.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let shown = |name: &str| name == "tokens_per_second" || !TIMES.contains(&name);
        let value = record.values.iter().filter(|(name, _)| shown(name)).map(|(name, value)| Value {
            tag: format!("{}/{name}", record.split.name()),
            simple_value: Some(*value as f32),
        });
        self.event(&Event {
            wall_time: record.values.get("time").copied().unwrap_or_else(super::now),
            step: record.step as i64,
            summary: Some(Summary { value: value.collect() }),
            ..Event::default()
        })
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        // One write, so that a reader never waits inside a frame for long.
        self.file.write_all(&frame(&event.encode_to_vec()))
    }
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(data.len() + 16);
    frame.extend(length);
    frame.extend(masked_crc(&length).to_le_bytes());
    frame.extend(data);
    frame.extend(masked_crc(data).to_le_bytes());
    frame
}

/// A checksum of data that holds checksums is weak; TFRecord rotates and shifts it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::super::Split;
    use super::*;
    use crate::fit::Metrics;

    /// CRC-32C, bit by bit (RFC 3720, reflected polynomial 0x82f63b78).
    fn crc(data: &[u8]) -> u32 {
        !data.iter().fold(!0u32, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
        })
    }

    fn checked(data: &[u8], stored: &[u8]) {
        // The reader's way round: from the masked checksum back to the plain one.
        let rotated = u32::from_le_bytes(stored.try_into().unwrap()).wrapping_sub(0xa282_ead8);
        assert_eq!(rotated.rotate_left(15), crc(data));
    }

    fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            checked(&bytes[..8], &bytes[8..12]);
            let data = &bytes[12..12 + length];
            checked(data, &bytes[12 + length..16 + length]);
            frames.push(data.to_vec());
            bytes = &bytes[16 + length..];
        }
        frames
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        value
    }

    /// Fields of a message by number, undecoded; a varint as its eight bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let size = match key & 7 {
                0 => {
                    fields.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, bytes[..size].to_vec()));
            bytes = &bytes[size..];
        }
        fields
    }

    fn field(message: &[u8], number: u64) -> Option<Vec<u8>> {
        fields(message).into_iter().find(|(n, _)| *n == number).map(|(_, data)| data)
    }

    fn only_file(dir: &Path) -> Vec<Vec<u8>> {
        let files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        frames(&fs::read(&files[0]).unwrap())
    }

    /// TensorBoard says nothing of a file that it cannot read: it shows no run. Read back here by a reader that shares no line
    /// with the writer, from the bits of the checksum to the tags.
    #[test]
    fn an_event_file_reads_back() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        let dir = tempfile::tempdir().unwrap();
        let values =
            [("loss", 0.5), ("seconds", 4.0), ("time", 1_700_000_000.25), ("tokens_per_second", 8.0)];
        let values: Metrics = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let mut writer = EventWriter::create(dir.path(), 1_700_000_000.0, false).unwrap();
        writer.write(&Record { step: 300, split: Split::Train, values }).unwrap();
        let dev = Metrics::from([("MRR@10".to_owned(), 0.25)]);
        writer.write(&Record { step: 300, split: Split::Dev, values: dev }).unwrap();

        let events = only_file(dir.path());
        assert_eq!(events.len(), 3);
        assert_eq!(field(&events[0], 3).unwrap(), b"brain.Event:2");
        assert_eq!(field(&events[1], 1).unwrap(), 1_700_000_000.25f64.to_le_bytes());
        let read = |event: &[u8]| -> Vec<(u64, String, f32)> {
            let step = u64::from_le_bytes(field(event, 2).unwrap().try_into().unwrap());
            let summary = field(event, 5).unwrap();
            let value = |(number, value): (u64, Vec<u8>)| {
                assert_eq!(number, 1);
                let number = f32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap());
                (step, String::from_utf8(field(&value, 1).unwrap()).unwrap(), number)
            };
            fields(&summary).into_iter().map(value).collect()
        };
        let train = [(300, "train/loss".to_owned(), 0.5), (300, "train/tokens_per_second".to_owned(), 8.0)];
        assert_eq!(read(&events[1]), train);
        assert_eq!(read(&events[2]), [(300, "dev/MRR@10".to_owned(), 0.25)]);
    }

    /// A TensorBoard that watched the killed run would show its lost steps and the new ones on one line.
    #[test]
    fn a_second_file_replaces_the_first_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        EventWriter::create(dir.path(), 1_700_000_000.0, false).unwrap();
        EventWriter::create(dir.path(), 1_700_000_060.0, true).unwrap();
        let events = only_file(dir.path());
        let log = field(&events[1], 7).unwrap();
        assert_eq!(field(&log, 1).unwrap(), 1u64.to_le_bytes());
        assert_eq!(field(&events[1], 2), None, "from step 0 on");
    }
}
