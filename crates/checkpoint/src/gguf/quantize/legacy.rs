//! The formats with one scale for 32 values: each value is rounded, and nothing is searched for.

use half::f16;

/// `d` as f16, then 32 signed bytes `round(x / d)`, with `d` the largest magnitude by 127.
pub(super) fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    // Half away from zero, as `roundf`; within a byte, since no magnitude is larger than the largest.
    out.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
}

pub(super) fn q4_0(block: &[f32], out: &mut Vec<u8>) {
    let levels = signed::<8>(block, out);
    nibbles(&levels, out);
}

pub(super) fn q4_1(block: &[f32], out: &mut Vec<u8>) {
    let levels = offset::<15>(block, out);
    nibbles(&levels, out);
}

pub(super) fn q5_0(block: &[f32], out: &mut Vec<u8>) {
    let levels = signed::<16>(block, out);
    fifths(&levels, out);
    nibbles(&levels, out);
}

pub(super) fn q5_1(block: &[f32], out: &mut Vec<u8>) {
    let levels = offset::<31>(block, out);
    fifths(&levels, out);
    nibbles(&levels, out);
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Writes `d` and returns `⌊x / d + HALF + ½⌋`, at most `2·HALF − 1`, with `d` such that the value of largest magnitude, of
/// equals the first, is `−HALF`.
fn signed<const HALF: u8>(block: &[f32], out: &mut Vec<u8>) -> Vec<u8> {
    let farther = |most: f32, &x: &f32| if most.abs() < x.abs() { x } else { most };
    let half = f32::from(HALF);
    let scale = block.iter().fold(0.0_f32, farther) / -half;
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    block.iter().map(|x| ((x * inverse + (half + 0.5)) as u8).min(2 * HALF - 1)).collect()
}

/// Writes `d` and the least value `m`, and returns `⌊(x − m) / d + ½⌋`, with `d` such that the largest value is `MOST`.
fn offset<const MOST: u8>(block: &[f32], out: &mut Vec<u8>) -> Vec<u8> {
    let least = block.iter().fold(f32::MAX, |least, &x| if x < least { x } else { least });
    let largest = block.iter().fold(f32::MIN, |largest, &x| if x > largest { x } else { largest });
    let scale = (largest - least) / f32::from(MOST);
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(f16::from_f32(least).to_le_bytes());
    block.iter().map(|x| (((x - least) * inverse + 0.5) as u8).min(MOST)).collect()
}

/// The lower four bits: of the first 16 values in the lower halves of the bytes, of the others in the upper.
fn nibbles(levels: &[u8], out: &mut Vec<u8>) {
    let (low, high) = levels.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| (low & 15) | (high << 4)));
}

/// The fifth bits, the first value's lowest.
fn fifths(levels: &[u8], out: &mut Vec<u8>) {
    let bits = levels.iter().rev().fold(0_u32, |bits, level| (bits << 1) | u32::from(level >> 4));
    out.extend(bits.to_le_bytes());
}
