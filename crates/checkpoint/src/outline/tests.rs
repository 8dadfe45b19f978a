use serde_json::json;

use super::*;

fn outline(config: Value, names: &[&str]) -> Result<Outline> {
    let Value::Object(raw) = config else { panic!("an object") };
    Outline::new(raw, Path::new("config.json"), names.iter().copied())
}

/// A decoder of so many layers whose tensors are named so.
fn decoder(config: Value, container: &str, num_layers: usize) -> Outline {
    let names: Vec<String> =
        (0..num_layers).map(|layer| format!("{container}.{layer}.mlp.w.weight")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    outline(config, &names).unwrap()
}

fn llama(more: Value, num_layers: usize) -> Outline {
    let mut config = json!({"model_type": "qwen2", "num_hidden_layers": num_layers});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    decoder(config, "model.layers", num_layers)
}

#[test]
fn the_decoders_layers_are_found() {
    let config = json!({
        "model_type": "some_vl",
        "text_config": {"model_type": "some", "num_hidden_layers": 2},
        "vision_config": {"num_hidden_layers": 2},
    });
    let names = [
        "model.language_model.layers.0.a.weight",
        "model.language_model.layers.1.mlp.experts.0.w.weight",
        "model.visual.blocks.0.a.weight",
        "model.visual.blocks.1.a.weight",
        "lm_head.weight",
    ];
    let found = outline(config, &names).unwrap();
    assert_eq!((found.num_layers(), found.container()), (2, "model.language_model.layers"));
    assert_eq!(found.family(), "some");
    let tensor = found.layer_tensor(names[1]).unwrap();
    assert_eq!((tensor.layer, tensor.rest), (1, "mlp.experts.0.w.weight"));
    let renamed = |name| found.name_among(name, &[1]);
    let moved = "model.language_model.layers.0.mlp.experts.0.w.weight";
    assert_eq!(renamed(names[1]).as_deref(), Some(moved));
    assert_eq!(renamed(names[0]), None);
    assert_eq!(renamed(names[2]).as_deref(), Some(names[2]));
    let pruned = found.with_layers(&[1]).unwrap();
    assert_eq!(pruned["text_config"]["num_hidden_layers"], 1);
    assert_eq!(pruned["vision_config"]["num_hidden_layers"], 2);
}

#[test]
fn layers_that_are_not_clear_are_refused() {
    let two = ["h.0.w", "h.1.w"];
    for (config, names, reason) in [
        (json!({"hidden_size": 8}), &two[..], "nothing in it counts a decoder's layers"),
        (
            json!({"n_layer": 3}),
            &two,
            "it counts 3 layers, and no group of numbered tensors has as many (`h` 2)",
        ),
        (json!({"n_layer": 2}), &["h.0.w", "h.2.w"], "has as many"),
        (
            json!({"n_layer": 2}),
            &["a.0.w", "a.1.w", "b.0.w", "b.1.w"],
            "`a` and `b` both have as many",
        ),
    ] {
        let error = outline(config, names).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// Layers behind the last that predict further tokens keep their place behind it.
#[test]
fn predicting_layers_follow() {
    let config =
        json!({"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "first_k_dense_replace": 2});
    let found = decoder(config, "model.layers", 4);
    assert_eq!(found.num_layers(), 3);
    let name = |layer| found.name_among(&format!("model.layers.{layer}.w"), &[0, 2]);
    assert_eq!((name(1), name(3).as_deref()), (None, Some("model.layers.2.w")));
    let pruned = found.with_layers(&[0, 2]).unwrap();
    assert_eq!(
        (&pruned["num_hidden_layers"], &pruned["first_k_dense_replace"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(pruned["num_nextn_predict_layers"], 1);
}

#[test]
fn lists_follow() {
    let config = json!({
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"],
        "mlp_only_layers": [1, 3], "max_window_layers": 2, "eos_token_id": [1, 2, 3, 4],
        "sliding_window": 8, "layers_block_type": ["a", "b", "c", "d"],
    });
    let pruned = llama(config, 4).with_layers(&[0, 3]).unwrap();
    assert_eq!(pruned["num_hidden_layers"], 2);
    assert_eq!(pruned["layer_types"], json!(["full_attention", "sliding_attention"]));
    assert_eq!(
        (&pruned["max_window_layers"], &pruned["mlp_only_layers"]),
        (&json!(1), &json!([1]))
    );
    assert_eq!(
        (&pruned["eos_token_id"], &pruned["layers_block_type"]),
        (&json!([1, 2, 3, 4]), &json!(["a", "d"]))
    );
    let widths =
        json!({"ffn_widths": [8, 7, 6, 5, 4, 3, 2, 1], "hybrid_override_pattern": "M-M*M-M*"});
    let pruned = llama(widths, 8).with_layers(&[1, 3, 7]).unwrap();
    assert_eq!(pruned["ffn_widths"], json!([7, 5, 1]));
    assert_eq!(pruned["hybrid_override_pattern"], "-**");
    // Step-3's and Hymba's spellings of numbers.
    let numbers = json!({"moe_layers_enum": "3,4,5,6,7", "global_attn_idx": [0, 3, 7]});
    let pruned = llama(numbers, 8).with_layers(&[0, 1, 4, 7]).unwrap();
    assert_eq!(pruned["moe_layers_enum"], "2,3");
    assert_eq!(pruned["global_attn_idx"], json!([0, 3]));
}

/// Entries of layers that predict further tokens stay behind the others'; a range of experts may become empty.
#[test]
fn ends_follow() {
    let config = json!({
        "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "layer_types": ["a", "b", "c", "d"],
        "moe_layer_start_index": 1, "moe_layer_end_index": 1,
    });
    let found = decoder(config, "model.layers", 4);
    assert_eq!(found.with_layers(&[0, 2]).unwrap()["layer_types"], json!(["a", "c", "d"]));
    let pruned = found.with_layers(&[2]).unwrap();
    assert_eq!(
        (&pruned["moe_layer_start_index"], &pruned["moe_layer_end_index"]),
        (&json!(1), &json!(0))
    );
    let recurrent = json!({"model_type": "recurrent_gemma", "num_hidden_layers": 5, "block_types": ["r", "r", "a"]});
    let found = decoder(recurrent, "model.layers", 5).with_layers(&[0, 2, 4]).unwrap();
    assert_eq!(found["block_types"], json!(["r", "a", "r"]));
}

/// What transformers computes where the key is missing, for the layers that stay.
#[test]
fn what_code_works_out_is_written_out() {
    let check = |config: Value, num_layers, retained: &[usize], key: &str, expected: Value| {
        let found = decoder(config, "model.layers", num_layers).with_layers(retained).unwrap();
        assert_eq!(found[key], expected, "{key}");
        found
    };
    let config =
        |family: &str, layers: usize| json!({"model_type": family, "num_hidden_layers": layers});
    let (full, window) = ("full_attention", "sliding_attention");
    check(config("gemma2", 4), 4, &[0, 1, 3], "layer_types", json!([window, full, full]));
    let found = check(
        config("gemma3_text", 7),
        7,
        &[0, 5, 6],
        "layer_types",
        json!([window, full, window]),
    );
    assert!(!found.contains_key("sliding_window_pattern"));
    let mut gemma = config("gemma3_text", 4);
    gemma["sliding_window_pattern"] = json!(2);
    check(gemma, 4, &[1, 2], "layer_types", json!([full, window]));
    check(config("cohere2", 4), 4, &[2, 3], "layer_types", json!([window, full]));
    let mut exaone = config("exaone4", 4);
    exaone["sliding_window_pattern"] = json!("LG");
    check(exaone, 4, &[0, 1, 3], "layer_types", json!([window, full, full]));
    let found = check(config("smollm3", 5), 5, &[2, 3, 4], "no_rope_layers", json!([1, 0, 1]));
    assert_eq!(found["num_hidden_layers"], 3);
    check(config("qwen3_next", 4), 4, &[0, 3], "layer_types", json!(["linear_attention", full]));
    let mut llama4 = config("llama4_text", 4);
    llama4["interleave_moe_layer_step"] = json!(2);
    llama4["no_rope_layers"] = json!([]);
    let found = check(llama4, 4, &[1, 2, 3], "moe_layers", json!([0, 2]));
    assert_eq!(found["no_rope_layers"], json!([1, 1, 0]));
    let mut sparse = config("qwen3_moe", 4);
    sparse["decoder_sparse_step"] = json!(2);
    let found = check(sparse, 4, &[1, 2, 3], "mlp_only_layers", json!([1]));
    assert_eq!(found["decoder_sparse_step"], 1);
    let neo = json!({"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global", "local"], 2]]});
    let kinds = json!([[["local"], 1], [["global"], 1]]);
    check(neo, 4, &[1, 2], "attention_types", kinds);
}

/// Those with a fixture (`benches/pytorch/decoders.py`), and those of the engine's first families.
#[test]
fn families_tried_are_those_with_a_test() {
    let mut families: Vec<String> = ["llama", "mistral", "qwen2", "qwen3"].map(String::from).into();
    for entry in fs_err::read_dir(testkit::fixture("decoders")).unwrap() {
        let text = fs_err::read_to_string(entry.unwrap().path()).unwrap();
        let config = &serde_json::from_str::<Value>(&text).unwrap()["config"];
        let inner = config["text_config"]["model_type"].as_str();
        families.extend(inner.or(config["model_type"].as_str()).map(String::from));
    }
    families.sort();
    families.dedup();
    assert_eq!(families, tried::TRIED);
    assert!(!decoder(json!({"num_hidden_layers": 2}), "model.layers", 2).is_tried());
}

#[test]
fn what_no_key_can_say_is_refused() {
    let refused = |config: Value, num_layers, retained: &[usize]| {
        let found = decoder(config, "model.layers", num_layers).with_layers(retained);
        found.err().map(|error| error.to_string())
    };
    let jamba = json!({"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 2});
    assert_eq!(refused(jamba.clone(), 8, &[0, 1, 2, 3]), None);
    let reason = refused(jamba, 8, &[0, 2, 3, 4]).unwrap();
    assert!(
        reason.contains("`attn_layer_period` is 4: what a layer is depends on its number"),
        "{reason}"
    );
    let gpt2 = json!({"model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": true});
    assert_eq!(refused(gpt2.clone(), 4, &[0, 1]), None);
    assert!(refused(gpt2, 4, &[0, 2]).unwrap().contains("only the last layers can be pruned"));
    let hybrid = json!({"model_type": "new", "num_hidden_layers": 4, "full_attention_interval": 2});
    assert_eq!(refused(hybrid.clone(), 4, &[0, 1]), None);
    assert!(refused(hybrid, 4, &[0, 2, 3]).unwrap().contains("`full_attention_interval` is 2"));
    let nested = json!({"num_hidden_layers": 4, "linear_attn_config": {"kda_layers": [1, 2]}});
    assert!(refused(nested, 4, &[0, 1]).unwrap().contains("`linear_attn_config.kda_layers`"));
    let shared = json!({"num_hidden_layers": 4, "num_kv_shared_layers": 2});
    assert!(refused(shared, 4, &[0, 1, 2]).unwrap().contains("num_kv_shared_layers"));
    let reused = json!({"num_hidden_layers": 4, "kv_reuse_group": [[1, 2]]});
    assert!(refused(reused, 4, &[0, 1, 2]).unwrap().contains("kv_reuse_group"));
    let steps = json!({"num_hidden_layers": 4, "mamba_step": 2});
    assert!(refused(steps, 4, &[0, 2, 3]).unwrap().contains("`mamba_step` is 2"));
    let by_number = json!({"num_hidden_layers": 3, "conv_dim": {"0": 8, "1": 8, "2": 4}});
    assert!(
        refused(by_number, 3, &[0, 2])
            .unwrap()
            .contains("`conv_dim` has an entry for each layer number")
    );
    let labels = json!({"num_hidden_layers": 3, "id2label": {"0": "a", "1": "b", "2": "c"}});
    assert_eq!(refused(labels, 3, &[0, 2]), None);
    let seen = json!({
        "text_config": {"num_hidden_layers": 4},
        "vision_config": {"deepstack_visual_indexes": [5, 11]},
    });
    assert_eq!(refused(seen.clone(), 4, &[0, 1, 3]), None);
    assert!(refused(seen, 4, &[0, 2, 3]).unwrap().contains("`--keep first:2`"));
}
