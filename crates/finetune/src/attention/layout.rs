//! How a pack's rows are cut into groups and blocks whose scores fit the memory given to them.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::pack::Packed;

/// Bytes of the scores of one block in two-byte numbers; what the caches hold is fastest.
const SCORE_BYTES: i64 = 2 << 20;
/// Widths are multiples of this: libtorch compiles its products anew for every size it meets, which
/// takes longer than the padding.
const WIDTH_STEP: i64 = 16;
/// The most tokens a group is padded to, over those it has.
const MOST_PADDING: f64 = 1.25;

#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) groups: Vec<Group>,
}

/// Rows that follow one another in the pack, padded to the longest of them.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) rows: i64,
    pub(crate) width: i64,
    /// The group's first token in the pack, and how many it has there.
    pub(crate) first: i64,
    pub(crate) tokens: i64,
    /// Where each token stands among `rows · width`, `[tokens]`; `None` if nothing is padded.
    pub(crate) places: Option<Tensor>,
    pub(crate) blocks: Vec<Block>,
}

/// Queries of every row of a group, and the keys that any of them sees.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) query: i64,
    pub(crate) queries: i64,
    pub(crate) key: i64,
    pub(crate) keys: i64,
    /// 0 where a query sees a key and −∞ where not, f32 `[queries, keys − from]`, for the block's
    /// keys from the one named on; those before it are seen by all.
    pub(crate) hidden: Option<(i64, Tensor)>,
}

impl Layout {
    pub(crate) fn new(batch: &Packed, window: Option<usize>, heads: usize) -> Result<Self> {
        let device = batch.tokens.device();
        let heads = heads as i64;
        let (mut groups, mut first, mut next) = (Vec::new(), 0, 0);
        while let Some(row) = batch.rows.get(next) {
            let (mut count, mut tokens, mut width) = (1, row.length, row.length);
            while let Some(more) = batch.rows.get(next + count) {
                let wider = width.max(more.length);
                let padded = wider * (count as i64 + 1);
                let fits = padded as f64 <= MOST_PADDING * (tokens + more.length) as f64
                    && padded * wider * heads * 2 <= SCORE_BYTES;
                if !fits || row.branches() || more.branches() {
                    break;
                }
                (count, tokens, width) = (count + 1, tokens + more.length, wider);
            }
            width = (width + WIDTH_STEP - 1) / WIDTH_STEP * WIDTH_STEP;
            let rows = &batch.rows[next..next + count];
            let lengths: Vec<i64> = rows.iter().map(|row| row.length).collect();
            let branching = match row.branches() {
                true => batch.mask(row, first, window)?.map(|seen| widened(&seen, width)),
                false => None,
            };
            let branching = branching.transpose()?;
            let seen = Seen { window, branching: branching.as_ref() };
            groups.push(Group {
                rows: count as i64,
                width,
                first,
                tokens,
                places: places(&lengths, width, device)?,
                blocks: blocks(count as i64 * heads, width, seen, device)?,
            });
            first += tokens;
            next += count;
        }
        Ok(Self { groups })
    }
}

fn places(lengths: &[i64], width: i64, device: Device) -> Result<Option<Tensor>> {
    if lengths.iter().all(|&length| length == width) {
        return Ok(None);
    }
    let places: Vec<i64> = lengths
        .iter()
        .enumerate()
        .flat_map(|(row, &length)| (0..length).map(move |at| row as i64 * width + at))
        .collect();
    Ok(Some(Tensor::f_from_slice(&places)?.f_to_device(device)?))
}

/// Which keys a row's queries see.
#[derive(Clone, Copy)]
struct Seen<'a> {
    /// So many of the last ones; `None` for all before.
    window: Option<usize>,
    /// Of a row that branches, which, `[width, width]`.
    branching: Option<&'a Tensor>,
}

fn blocks(rows: i64, width: i64, seen: Seen<'_>, device: Device) -> Result<Vec<Block>> {
    let Seen { window, branching } = seen;
    let most = (SCORE_BYTES / (rows * width * 2)).clamp(1, width);
    let window = window.map_or(width, |window| (window as i64).min(width));
    let mut blocks = Vec::new();
    for query in (0..width).step_by(most as usize) {
        let queries = most.min(width - query);
        let end = query + queries;
        if let Some(seen) = branching {
            let seen = seen.f_narrow(0, query, queries)?.f_narrow(1, 0, end)?;
            let hidden = Some((0, hide(&seen)?));
            blocks.push(Block { query, queries, key: 0, keys: end, hidden });
            continue;
        }
        let key = (query - window + 1).max(0);
        // All queries of the block see the keys from `last − window + 1` to `query`.
        let from = if end - window > key { key } else { query };
        let at = (Kind::Int64, device);
        let distance = Tensor::f_arange_start(query, end, at)?
            .f_unsqueeze(1)?
            .f_sub(&Tensor::f_arange_start(from, end, at)?)?;
        let seen = distance.f_ge(0)?.f_logical_and(&distance.f_lt(window)?)?;
        let hidden = Some((from - key, hide(&seen)?));
        blocks.push(Block { query, queries, key, keys: end - key, hidden });
    }
    Ok(blocks)
}

/// `seen` of a row, `[length, length]`, with padding to `[width, width]`: nothing sees it, and it
/// sees the first token, since it must see something.
fn widened(seen: &Tensor, width: i64) -> Result<Tensor> {
    let (length, _) = seen.size2()?;
    let wide = Tensor::f_zeros([width, width], (Kind::Bool, seen.device()))?;
    wide.f_narrow(0, 0, length)?.f_narrow(1, 0, length)?.f_copy_(seen)?;
    let _ = wide.f_narrow(0, length, width - length)?.f_narrow(1, 0, 1)?.f_fill_(1)?;
    Ok(wide)
}

/// 0 where `seen`, −∞ elsewhere.
fn hide(seen: &Tensor) -> Result<Tensor> {
    let mut hidden = Tensor::f_zeros(seen.size(), (Kind::Float, seen.device()))?;
    Ok(hidden.f_masked_fill_(&seen.f_logical_not()?, f64::NEG_INFINITY)?)
}
