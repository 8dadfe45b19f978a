//! A model whose MLPs are in bitsandbytes' four bits.

use serde_json::{Map, Value, json};

use super::{changed, config, model};
use crate::form::Form;
use crate::target::Seed;

/// Elements of a scale, and scales of a nested one.
const BLOCK: usize = 32;

/// With scales as they are, and quantised in their turn.
pub(crate) fn four_bits() -> Vec<Seed> {
    let mut config = config("LlamaForCausalLM");
    config["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    vec![
        changed("config.json", Form::Json(config)),
        changed("model.safetensors", weights(false)),
        changed("model.safetensors", weights(true)),
    ]
}

fn weights(is_nested: bool) -> Form {
    let (mut header, mut data) = (Map::new(), Vec::new());
    // Numbers just below 1, whatever their type.
    let mut add = |name: String, dtype: &str, shape: &[usize], width: usize| {
        let start = data.len();
        data.resize(start + shape.iter().product::<usize>() * width, 0x3f);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    };
    let mut states = Vec::new();
    for (name, shape) in model() {
        let count: usize = shape.iter().product();
        if !name.contains(".mlp.") {
            add(name, "BF16", &shape, 2);
            continue;
        }
        let blocks = count.div_ceil(BLOCK);
        add(format!("{name}.quant_map"), "F32", &[16], 4);
        let mut state =
            json!({"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": shape});
        if is_nested {
            state["nested_blocksize"] = BLOCK.into();
            state["nested_dtype"] = "float32".into();
            state["nested_offset"] = 0.5.into();
            add(format!("{name}.nested_absmax"), "F32", &[blocks.div_ceil(BLOCK)], 4);
            add(format!("{name}.nested_quant_map"), "F32", &[256], 4);
        }
        let (dtype, width) = if is_nested { ("U8", 1) } else { ("F32", 4) };
        add(format!("{name}.absmax"), dtype, &[blocks], width);
        states.push((format!("{name}.quant_state.bitsandbytes__nf4"), state));
        add(name, "U8", &[count / 2, 1], 1);
    }
    for (name, state) in states {
        let (start, text) = (data.len(), state.to_string());
        data.extend(text.as_bytes());
        let entry =
            json!({"dtype": "U8", "shape": [text.len()], "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    }
    Form::Safetensors { header: Value::Object(header), data }
}
