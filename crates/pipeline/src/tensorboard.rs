//! A stage's steps as an event file that `TensorBoard` shows.
//!
//! Records are framed as `TFRecord` (length, checksum, bytes, checksum), each an `Event` message of
//! tensorflow/core/util/event.proto, of which four fields are written.

use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::log::{LogLine, LoggedLook, LoggedStep};
use crate::{Result, Stage};

/// One event file.
pub(crate) struct EventFile {
    file: fs_err::File,
}

impl EventFile {
    /// Begins a file for a stage, in a folder of its own below `folder`.
    pub(crate) fn create(folder: &Path, stage: Stage) -> Result<Self> {
        let name = serde_json::to_value(stage).unwrap_or_default();
        let folder = folder.join(name.as_str().unwrap_or("steps"));
        fs_err::create_dir_all(&folder)?;
        let now = wall_time();
        let path = folder.join(format!("events.out.tfevents.{now:.6}.gradpruner"));
        let mut file = fs_err::File::create(path)?;
        let mut event = Vec::new();
        double(&mut event, 1, now);
        bytes(&mut event, 3, b"brain.Event:2");
        file.write_all(&framed(&event))?;
        Ok(Self { file })
    }

    /// Adds a step's loss, gradient norm, learning rate and speed, or what a look at rows held out found.
    pub(crate) fn add(&mut self, line: &LogLine) -> Result<()> {
        let (step, scalars) = match line {
            LogLine::Step(LoggedStep { metrics, .. }) => {
                let scalars = vec![
                    ("loss", metrics.report.loss),
                    ("grad_norm", metrics.report.grad_norm),
                    ("learning_rate", metrics.report.learning_rate),
                    ("tokens_per_second", metrics.tokens_per_second()),
                ];
                (metrics.step, scalars)
            }
            LogLine::Look(LoggedLook { step, eval_loss, eval_accuracy, .. }) => {
                let accuracy = eval_accuracy.map(|accuracy| ("eval_accuracy", accuracy));
                (*step, [("eval_loss", *eval_loss)].into_iter().chain(accuracy).collect())
            }
        };
        self.file.write_all(&framed(&event(wall_time(), step as u64, &scalars)))?;
        Ok(())
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`.
fn event(wall_time: f64, step: u64, scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, number) in scalars {
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        value.push(2 << 3 | 5);
        value.extend((*number as f32).to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    let mut event = Vec::new();
    double(&mut event, 1, wall_time);
    event.push(2 << 3);
    varint(&mut event, step);
    bytes(&mut event, 5, &summary);
    event
}

fn double(out: &mut Vec<u8>, field: u8, number: f64) {
    out.push(field << 3 | 1);
    out.extend(number.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, content.len() as u64);
    out.extend(content);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn framed(record: &[u8]) -> Vec<u8> {
    let length = (record.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_checksum(&length).to_le_bytes());
    out.extend(record);
    out.extend(masked_checksum(record).to_le_bytes());
    out
}

/// CRC-32C, rotated and shifted as `TFRecord` wants it.
fn masked_checksum(content: &[u8]) -> u32 {
    crc32c::crc32c(content).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that tensorboard 2.21's `RecordWriter` leaves for the same event.
    #[test]
    fn bytes_of_an_event() {
        let found = framed(&event(1.5, 300, &[("loss", 0.25)]));
        let hex: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000803e\
                        9908deed";
        assert_eq!(hex, expected);
    }
}
