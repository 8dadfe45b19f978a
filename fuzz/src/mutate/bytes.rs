//! Bytes flipped, cut, doubled and overwritten.

use crate::dice::Dice;

const SIZES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];

pub(super) fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    // Headers, which are what readers believe, come first.
    let reach = if dice.percent(50) { bytes.len().min(256) } else { bytes.len() };
    let at = dice.below(reach);
    let end = (at + dice.size(10_000)).min(bytes.len());
    match dice.below(7) {
        0 => {
            let bit = 1 << dice.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bit;
            }
        }
        1 => {
            let value = dice.number() as u8;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        2 => {
            bytes.drain(at..end);
        }
        3 => {
            let part = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            bytes.splice(to..to, part);
        }
        4 => bytes.truncate(at),
        5 => {
            let size = dice.pick(&SIZES).copied().unwrap_or(0).to_le_bytes();
            let width = [1, 2, 4, 8][dice.below(4)];
            for (byte, new) in bytes.iter_mut().skip(at).zip(&size[..width]) {
                *byte = *new;
            }
        }
        _ => {
            let count = dice.size(1000);
            let filler = [0, 0xff, b'[', b'{', b'"', b'\n', b' ', 0x80][dice.below(8)];
            bytes.splice(at..at, std::iter::repeat_n(filler, count));
        }
    }
}
