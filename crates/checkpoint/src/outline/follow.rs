//! A configuration for fewer layers.

use serde_json::{Map, Value};

use super::written_out::write_out;
use super::{COUNTS, is_of_another_part};

/// Keys that count layers from the front: those before have something, or lack it.
const FROM_THE_FRONT: [&str; 5] = [
    "max_window_layers",
    "first_k_dense_replace",
    "num_dense_layers",
    "n_dense_layers",
    "moe_layer_start_index",
];
/// Lists of layers' numbers whose names do not say that they are.
const NUMBERS: [&str; 3] = ["mlp_only_layers", "moe_layers", "cross_attention_layers"];
/// Words in the keys of lists that are not of layers, however long they are.
const NOT_OF_LAYERS: [&str; 7] =
    ["token", "architectures", "vision", "visual", "audio", "image", "label"];
/// Endings of keys that give a period or a place in it.
const PERIODS: [&str; 6] = ["_period", "_interval", "_freq", "_frequency", "_step", "_every"];
/// Keys that give a period of layers' kinds, where these are not listed.
const OF_KINDS: [&str; 5] = [
    "full_attention_interval",
    "sliding_window_pattern",
    "layer_group_size",
    "mamba_step",
    "mb_per_layer",
];
/// Keys that say which layers take up the keys and values of which.
const SHARED: [&str; 1] = ["kv_reuse_group"];
/// Fewer layers than this are as many as a list of something else may have entries.
const FEW_LAYERS: usize = 8;

/// Changes an object that counts layers to one of the layers `retained`, out of `num_layers`; says what cannot be.
pub(super) fn follow(
    section: &mut Map<String, Value>,
    retained: &[usize],
    num_layers: usize,
    predicting: usize,
) -> Result<(), String> {
    write_out(section, num_layers);
    require_expressible(section, retained, num_layers)?;
    for key in COUNTS {
        if let Some(count) = section.get_mut(key)
            && count.as_u64() == Some(num_layers as u64)
        {
            *count = retained.len().into();
        }
    }
    for key in FROM_THE_FRONT {
        if let Some(first) = section.get(key).and_then(Value::as_u64) {
            let kept = retained.iter().filter(|&&layer| (layer as u64) < first).count();
            section.insert(key.into(), kept.into());
        }
    }
    // The last with experts; -1 is the last of all.
    if let Some(last) = section.get("moe_layer_end_index").and_then(Value::as_u64) {
        let kept = retained.iter().filter(|&&layer| layer as u64 <= last).count();
        if kept == 0 {
            section.insert("moe_layer_start_index".into(), retained.len().into());
        }
        section.insert("moe_layer_end_index".into(), kept.saturating_sub(1).into());
    }
    for (key, value) in section {
        match value {
            Value::Array(numbers) if lists_numbers(key, numbers, num_layers) => {
                *numbers = renumbered(numbers, retained).map(Value::from).collect();
            }
            // Those behind the last, if any, keep their entries.
            Value::Array(entries)
                if [num_layers, num_layers + predicting].contains(&entries.len())
                    && is_per_layer(key, num_layers) =>
            {
                let behind = entries.split_off(num_layers);
                *entries = retained.iter().map(|&layer| entries[layer].clone()).collect();
                entries.extend(behind);
            }
            // Such as Step-3's, numbers with commas between them.
            Value::String(text) if numbers_in_text(key, text, num_layers).is_some() => {
                let numbers = numbers_in_text(key, text, num_layers).unwrap_or_default();
                let new = renumbered(&numbers, retained).map(|number| number.to_string());
                *text = new.collect::<Vec<_>>().join(",");
            }
            // Such as Nemotron-H's, a letter a layer.
            Value::String(letters)
                if key.ends_with("_pattern") && letters.chars().count() == num_layers =>
            {
                let all: Vec<char> = letters.chars().collect();
                *letters = retained.iter().map(|&layer| all[layer]).collect();
            }
            _ => {}
        }
    }
    Ok(())
}

/// The layers' numbers that a text lists with commas between them.
fn numbers_in_text(key: &str, text: &str, num_layers: usize) -> Option<Vec<Value>> {
    let is_list = key.ends_with("_enum") || (key.contains("layers") && text.contains(','));
    let number = |part: &str| part.trim().parse::<u64>().ok().map(Value::from);
    let numbers: Vec<Value> = text.split(',').map(number).collect::<Option<_>>()?;
    (is_list && lists_numbers(key, &numbers, num_layers)).then_some(numbers)
}

/// The new numbers of the layers in a list that stay.
fn renumbered<'a>(numbers: &'a [Value], retained: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    let new = |old: u64| retained.iter().position(|&layer| layer as u64 == old);
    numbers.iter().filter_map(Value::as_u64).filter_map(new)
}

/// Whether a list has the numbers of some layers.
fn lists_numbers(key: &str, entries: &[Value], num_layers: usize) -> bool {
    let numbers: Option<Vec<u64>> = entries.iter().map(Value::as_u64).collect();
    let Some(numbers) = numbers else { return false };
    let are_layers = numbers.is_sorted_by(|x, y| x < y)
        && numbers.last().is_none_or(|&last| last < num_layers as u64);
    let may_be = key.contains("layer")
        || ["_idx", "_idxs", "_indices"].iter().any(|ending| key.ends_with(ending));
    are_layers && !is_other(key) && (NUMBERS.contains(&key) || (may_be && num_layers > 2))
}

/// Whether a list that has as many entries as there are layers has one for each.
fn is_per_layer(key: &str, num_layers: usize) -> bool {
    let says_so = key.contains("layer")
        || key.contains("block")
        || key.ends_with("_types")
        || key.ends_with("_pattern");
    !is_other(key) && (says_so || num_layers >= FEW_LAYERS)
}

fn is_other(key: &str) -> bool {
    NOT_OF_LAYERS.iter().any(|word| key.contains(word))
}

/// Refuses what depends on a layer's number and no key can say, where a plan would change it.
fn require_expressible(
    section: &Map<String, Value>,
    retained: &[usize],
    num_layers: usize,
) -> Result<(), String> {
    let family = section.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let moves = |period: usize| {
        let moved = |(new, &old): (usize, &usize)| new % period != old % period;
        retained.iter().enumerate().any(moved)
    };
    let by_number = family == "diffllama"
        || section.get("scale_attn_by_inverse_layer_idx") == Some(&Value::Bool(true));
    if by_number && moves(usize::MAX) {
        return Err(format!(
            "attention depends on the layer's number (`model_type` {family}), so renumbering a layer changes it; only the \
             last layers can be pruned"
        ));
    }
    let shared = section.get("num_kv_shared_layers").and_then(Value::as_u64).unwrap_or(0);
    if shared > 0 && retained.len() < num_layers {
        return Err(format!(
            "its last {shared} layers use the keys and values of others (`num_kv_shared_layers`); such a model cannot be pruned"
        ));
    }
    let fewer = retained.len() < num_layers;
    let is_given =
        |value: &Value| value.as_array().is_none_or(|list| !list.is_empty()) && !value.is_null();
    let shares = |key: &&str| section.get(*key).is_some_and(is_given);
    if let Some(key) = SHARED.into_iter().find(shares).filter(|_| fewer) {
        return Err(format!(
            "some layers reuse the keys and values of other layers (`{key}`); such a model cannot be pruned"
        ));
    }
    let is_number = |key: &String| key.parse::<usize>().is_ok_and(|layer| layer < num_layers);
    let by_number = |value: &Value| {
        value.as_object().is_some_and(|map| map.len() == num_layers && map.keys().all(is_number))
    };
    let keyed = section.iter().find(|(key, value)| !is_other(key) && by_number(value));
    if let Some((key, _)) = keyed.filter(|_| fewer) {
        return Err(format!(
            "`{key}` has an entry for each layer number, which is not supported; such a model cannot be pruned yet"
        ));
    }
    let none_stays = |key: &str, value: &Value| {
        let numbers = numbers_in_text(key, value.as_str()?, num_layers)?;
        renumbered(&numbers, retained).next().is_none().then_some(())
    };
    if let Some(key) = section.iter().find_map(|(key, value)| none_stays(key, value).map(|()| key))
    {
        return Err(format!("none of the layers in `{key}` would stay; keep one of them"));
    }
    if let Some((object, list)) = nested_list(section) {
        return Err(format!(
            "`{object}.{list}` lists layers where that is not understood; such a model cannot be pruned yet"
        ));
    }
    let has_kinds = section.get("layer_types").is_some_and(Value::is_array);
    for (key, value) in section {
        let period = value.as_u64().and_then(|period| usize::try_from(period).ok()).unwrap_or(0);
        let is_of_kinds = OF_KINDS.contains(&key.as_str()) || key.ends_with("_every_n_layers");
        let is_of_layers = key.contains("layer") || key.contains("attn") || key.contains("moe");
        let is_period = (is_of_layers && PERIODS.iter().any(|ending| key.ends_with(ending)))
            || (is_of_kinds && !has_kinds);
        // What is written out as a list is read from there.
        let is_listed = key == "no_rope_layer_interval" && section.contains_key("no_rope_layers");
        if is_period && !is_listed && period > 1 && moves(period) {
            return Err(format!(
                "`{key}` is {period}: what a layer is depends on its number, and this plan renumbers layers; prune whole \
                 periods of {period}"
            ));
        }
    }
    Ok(())
}

/// A list of layers in an object of its own that does not count them.
fn nested_list(section: &Map<String, Value>) -> Option<(&str, &str)> {
    section.iter().filter(|(key, _)| !is_of_another_part(key)).find_map(|(key, value)| {
        let inner = value.as_object()?;
        let counts = COUNTS.iter().any(|count| inner.contains_key(*count));
        let lists = |(name, value): &(&String, &Value)| {
            value.is_array() && (name.contains("layer") || *name == "sparse_attention_freq")
        };
        let found = inner.iter().find(lists).filter(|_| !counts);
        found.map(|(name, _)| (key.as_str(), name.as_str()))
    })
}

/// Refuses to prune layers that an image's features are added to by their number.
pub(super) fn require_seen_layers(
    raw: &Map<String, Value>,
    retained: &[usize],
) -> Result<(), String> {
    let vision = raw.get("vision_config");
    let seen = vision.and_then(|vision| vision.get("deepstack_visual_indexes")?.as_array());
    let seen = seen.map_or(0, Vec::len);
    let stay = (0..seen).all(|layer| retained.get(layer) == Some(&layer));
    if stay {
        return Ok(());
    }
    Err(format!(
        "the first {seen} layers receive an image's features (`deepstack_visual_indexes`); keep them: `--keep first:{seen}`"
    ))
}
