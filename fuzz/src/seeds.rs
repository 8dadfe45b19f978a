//! Valid files, as small as they can be.

mod four_bits;

use std::collections::BTreeMap;

use checkpoint::{Module, tensor_name};
use serde_json::{Map, Value, json};

pub(crate) use self::four_bits::four_bits;
use crate::form::Form;
use crate::target::Seed;

/// Texts that mean something to one reader or another.
pub(crate) const WORDS: &[&str] = &[
    "format",
    "version",
    "__metadata__",
    "dtype",
    "shape",
    "data_offsets",
    "F32",
    "BF16",
    "F64",
    "F8_E4M3",
    "I64",
    "quantization_config",
    "rope_scaling",
    "llama3",
    "yarn",
    "lora_A",
    "lora_B",
    "model.layers.18446744073709551616.self_attn.q_proj.weight",
    "layers.4294967296.mlp.up_proj.lora_A",
    "step-00001.safetensors",
    "../model.safetensors",
    "messages",
    "role",
    "content",
    "chosen",
    "image",
    "answer",
];

fn changed(file: &'static str, form: Form) -> Seed {
    Seed { file, form, is_changed: true }
}

fn fixed(file: &'static str, form: Form) -> Seed {
    Seed { file, form, is_changed: false }
}

fn config(class: &str) -> Value {
    let model_type = class.trim_end_matches("ForCausalLM").to_lowercase();
    json!({
        "architectures": [class], "model_type": model_type, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": null, "vocab_size": 16, "tie_word_embeddings": false, "bos_token_id": 1,
        "eos_token_id": [2, 3], "attention_bias": false, "mlp_bias": false, "torch_dtype": "float32",
        "sliding_window": null, "use_sliding_window": false,
    })
}

/// Each family; Llama 3.1 with its rope, Qwen with windows in every layer.
pub(crate) fn configs() -> Vec<Seed> {
    let mut scaled = config("LlamaForCausalLM");
    scaled["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let mut window = config("Qwen2ForCausalLM");
    window["layer_types"] = json!(["full_attention", "sliding_attention"]);
    window["sliding_window"] = 16.into();
    window["use_sliding_window"] = true.into();
    window["max_window_layers"] = 1.into();
    let plain = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"].map(config);
    plain
        .into_iter()
        .chain([scaled, window])
        .map(|tree| changed("config.json", Form::Json(tree)))
        .chain([changed("generation_config.json", Form::Json(json!({"eos_token_id": [2, 3]})))])
        .collect()
}

/// Tensors of a type's name and shape, one after the other.
fn tensors(dtype: &str, shapes: &[(String, Vec<usize>)]) -> Form {
    let width = if dtype == "F32" { 4 } else { 2 };
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, shape) in shapes {
        let start = end;
        end += shape.iter().product::<usize>() * width;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    // Numbers of ordinary size in either type.
    let data = (0..end).map(|at| if at % 2 == 1 { 0x3f } else { (at * 31 % 251) as u8 });
    Form::Safetensors { header: Value::Object(header), data: data.collect() }
}

fn model() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![16, 8])];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![8]),
            ("post_attention_layernorm", vec![8]),
            ("self_attn.q_proj", vec![8, 8]),
            ("self_attn.k_proj", vec![4, 8]),
            ("self_attn.v_proj", vec![4, 8]),
            ("self_attn.o_proj", vec![8, 8]),
            ("mlp.gate_proj", vec![16, 8]),
            ("mlp.up_proj", vec![16, 8]),
            ("mlp.down_proj", vec![8, 16]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![8]));
    shapes.push(("lm_head.weight".to_owned(), vec![16, 8]));
    shapes
}

pub(crate) fn checkpoint() -> Vec<Seed> {
    vec![
        fixed("config.json", Form::Json(config("LlamaForCausalLM"))),
        changed("model.safetensors", tensors("BF16", &model())),
        changed("model.safetensors", tensors("F32", &model())),
    ]
}

pub(crate) fn index() -> Vec<Seed> {
    let shapes = model();
    let (first, second) = shapes.split_at(9);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let place = |shapes: &[(String, Vec<usize>)], file: &str| {
        shapes.iter().map(|(name, _)| (name.clone(), file.to_owned())).collect::<Vec<_>>()
    };
    let map: BTreeMap<String, String> =
        place(first, names[0]).into_iter().chain(place(second, names[1])).collect();
    let index = json!({"metadata": {"total_size": 4000}, "weight_map": map});
    vec![
        fixed("config.json", Form::Json(config("LlamaForCausalLM"))),
        changed("model.safetensors.index.json", Form::Json(index)),
        fixed(names[0], tensors("BF16", first)),
        fixed(names[1], tensors("BF16", second)),
    ]
}

fn step(dtype: &str, prefix: &str, suffix: &str) -> Form {
    let mut shapes = Vec::new();
    for layer in 0..2 {
        for (module, [out, width]) in [("self_attn.q_proj", [4, 6]), ("mlp.down_proj", [6, 3])] {
            let name = format!("{prefix}layers.{layer}.{module}");
            shapes.push((format!("{name}.lora_A{suffix}"), vec![2, width]));
            shapes.push((format!("{name}.lora_B{suffix}"), vec![out, 2]));
        }
    }
    tensors(dtype, &shapes)
}

fn manifest_tree() -> Value {
    let step = |step: usize| {
        json!({"step": step, "file": format!("step-{step:05}.safetensors"), "loss": 1.5,
               "grad_norm": 0.5, "learning_rate": 1e-4, "tokens": 70})
    };
    json!({"format": "gradpruner-gradients", "version": 1, "num_layers": 2,
           "lora": {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "down_proj"]}, "seed": 1,
           "model": {"name": "tiny", "config_sha256": "00"},
           "data": {"path": "train.jsonl", "sha256": "00", "rows": 3}, "steps": [step(1), step(2)]})
}

fn activations() -> Value {
    json!({"format": "gradpruner-activations", "version": 1, "tokens": 70,
           "block_influence": [0.25, 0.5]})
}

pub(crate) fn record() -> Vec<Seed> {
    let peft = step("F32", "base_model.model.model.", ".default.weight");
    vec![
        changed("step-00001.safetensors", step("F32", "", "")),
        changed("step-00001.safetensors", step("BF16", "", "")),
        changed("step-00001.safetensors", peft),
        fixed("step-00002.safetensors", step("F32", "", "")),
        fixed("activations.json", Form::Json(activations())),
    ]
}

pub(crate) fn manifest() -> Vec<Seed> {
    vec![
        changed("manifest.json", Form::Json(manifest_tree())),
        changed("activations.json", Form::Json(activations())),
        changed("hidden.json", Form::Json(hidden())),
        changed("sensitivity.json", Form::Json(sensitivity())),
        fixed("step-00001.safetensors", step("F32", "", "")),
        fixed("step-00002.safetensors", step("F32", "", "")),
    ]
}

fn hidden() -> Value {
    let square = vec![vec![0.5; 3]; 3];
    json!({"format": "gradpruner-hidden", "version": 1, "rows": 3, "tokens": 70, "cosines": square,
           "last_cosines": square, "cka": [0.25, 0.5], "relative_step": [0.5, 0.1]})
}

fn sensitivity() -> Value {
    let weight = json!({"gradient_squared": 1e-6, "weight_times_gradient": 0.25});
    let names = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| format!("self_attn.{name}"));
    let names =
        names.into_iter().chain(["gate_proj", "up_proj", "down_proj"].map(|x| format!("mlp.{x}")));
    let modules: Map<String, Value> = names.map(|name| (name, weight.clone())).collect();
    let layer = json!({"state_gradient": 1e-3, "modules": modules});
    json!({"format": "gradpruner-sensitivity", "version": 1, "rows": 8, "batches": 2,
           "layers": [layer, layer]})
}

pub(crate) fn scores() -> Vec<Seed> {
    let layer = |layer: usize| {
        json!({"layer": layer, "score": layer as f64 + 0.5,
               "modules": {"self_attn.q_proj": 0.25, "mlp.down_proj": 1e-3}})
    };
    let layers: Vec<Value> = (0..6).map(layer).collect();
    let tree =
        json!({"format": "gradpruner-scores", "version": 1, "criterion": "igia", "layers": layers});
    vec![changed("scores.json", Form::Json(tree))]
}

pub(crate) fn plan() -> Vec<Seed> {
    let tree = json!({"format": "gradpruner-plan", "version": 1, "num_layers": 8, "pruned": [1, 3, 4],
        "merges": [{"into": 0, "from": [1]}, {"into": 2, "from": [3, 4]}], "density": 0.2,
        "rule": "same-sign"});
    let mut repaired = tree.clone();
    repaired["version"] = 2.into();
    repaired["merges"] = json!([]);
    repaired["repair"] = "linear-map".into();
    let mut weighted = tree.clone();
    weighted["version"] = 2.into();
    weighted["repair"] = "weighted".into();
    weighted["step"] = 0.5.into();
    weighted["density"] = "auto:0.9".into();
    let plans = [tree, repaired, weighted];
    plans.into_iter().map(|tree| changed("plan.json", Form::Json(tree))).collect()
}

pub(crate) fn maps() -> Vec<Seed> {
    let run = |receiver: usize, first: usize, last: usize| {
        json!({"receiver": receiver, "first": first, "last": last, "error_before": 0.9,
               "error_after": 0.1})
    };
    let tree = json!({"format": "gradpruner-linear-maps", "version": 1, "num_layers": 8,
        "hidden_size": 4, "pruned": [1, 3, 4], "ridge": 1e-3, "tokens": 90,
        "model": {"name": "tiny", "config_sha256": "00"},
        "data": {"path": "train.jsonl", "sha256": "00", "rows": 3},
        "runs": [run(0, 1, 1), run(2, 3, 4)]});
    let shapes = [0, 2].map(|receiver| (format!("layers.{receiver}.map"), vec![4, 4]));
    vec![
        changed("maps.json", Form::Json(tree)),
        changed("maps.safetensors", tensors("F32", &shapes)),
    ]
}

pub(crate) fn scales() -> Vec<Seed> {
    let cut = |first: usize, last: usize| json!({"first": first, "last": last, "factor": 1.5});
    let tree = json!({"format": "gradpruner-scales", "version": 1, "num_layers": 8, "hidden_size": 4,
        "pruned": [1, 3, 4], "tokens": 90, "model": {"name": "tiny", "config_sha256": "00"},
        "data": {"path": "train.jsonl", "sha256": "00", "rows": 3}, "cuts": [cut(1, 1), cut(3, 4)]});
    vec![changed("scales.json", Form::Json(tree))]
}

pub(crate) fn reconstructed() -> Vec<Seed> {
    let run =
        json!({"receiver": 0, "first": 1, "last": 2, "error_before": 0.9, "error_after": 0.1});
    let tree = json!({"format": "gradpruner-reconstructed", "version": 1, "num_layers": 4,
        "hidden_size": 4, "pruned": [1, 2], "steps": 300, "rate": 1e-4, "tokens": 90,
        "model": {"name": "tiny", "config_sha256": "00"},
        "data": {"path": "train.jsonl", "sha256": "00", "rows": 3}, "runs": [run]});
    let shapes = Module::SPLIT.map(|module| (tensor_name(0, module), vec![4, 4]));
    vec![
        changed("reconstructed.json", Form::Json(tree)),
        changed("reconstructed.safetensors", tensors("F32", &shapes)),
    ]
}

pub(crate) fn adapter() -> Vec<Seed> {
    let tree = json!({"base_model_name_or_path": "tiny", "peft_type": "LORA", "task_type": "CAUSAL_LM",
        "r": 2, "lora_alpha": 4.0, "lora_dropout": 0.0, "target_modules": ["q_proj", "down_proj"],
        "layers_to_transform": [0, 1], "layers_pattern": null, "bias": "none", "use_rslora": false,
        "use_dora": false, "fan_in_fan_out": false, "inference_mode": true, "rank_pattern": {},
        "alpha_pattern": {}, "modules_to_save": null, "init_lora_weights": true});
    let weights = step("F32", "base_model.model.model.", ".weight");
    vec![
        changed("adapter_config.json", Form::Json(tree)),
        changed("adapter_model.safetensors", weights),
    ]
}

/// GGUF files of Llama with `SentencePiece`'s tokenizer and of Qwen with bytes, in many packings.
pub(crate) fn gguf() -> Vec<Seed> {
    let metadata = |architecture: &str| {
        let key = |name: &str| format!("{architecture}.{name}");
        json!({
            "general.architecture": architecture, "general.alignment": 32,
            key("embedding_length"): 256, key("feed_forward_length"): 32, key("block_count"): 1,
            key("attention.head_count"): 2, key("attention.head_count_kv"): 1,
            key("attention.key_length"): 4, key("context_length"): 64,
            key("attention.layer_norm_rms_epsilon"): 1e-5, key("rope.freq_base"): 10000.0,
        })
    };
    let tokens = ["<unk>", "<s>", "</s>", "<0x41>", "a", "b", "ab", "▁"];
    let mut llama = metadata("llama");
    let mut qwen = metadata("qwen2");
    for tree in [&mut llama, &mut qwen] {
        tree["tokenizer.ggml.tokens"] = json!(tokens);
        tree["tokenizer.ggml.token_type"] = json!([2, 3, 3, 6, 1, 1, 1, 4]);
        tree["tokenizer.ggml.bos_token_id"] = 1.into();
        tree["tokenizer.ggml.eos_token_id"] = 2.into();
        tree["tokenizer.ggml.add_bos_token"] = true.into();
        tree["tokenizer.chat_template"] = "{{ messages[0].content }}".into();
    }
    llama["tokenizer.ggml.model"] = "llama".into();
    llama["tokenizer.ggml.scores"] = json!([0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -3.0]);
    qwen["tokenizer.ggml.model"] = "gpt2".into();
    qwen["tokenizer.ggml.pre"] = "qwen2".into();
    qwen["tokenizer.ggml.merges"] = json!(["a b"]);
    vec![
        changed("model.gguf", Form::Gguf(gguf_tree(llama, false))),
        changed("model.gguf", Form::Gguf(gguf_tree(qwen, true))),
    ]
}

fn gguf_tree(metadata: Value, has_bias: bool) -> Value {
    // ggml's number of a type, and the bytes of 256 values.
    let packings = [
        (12, 144),
        (13, 176),
        (14, 210),
        (10, 84),
        (11, 110),
        (8, 272),
        (2, 144),
        (3, 160),
        (6, 176),
        (7, 192),
        (1, 512),
        (30, 512),
    ];
    let mut tensors = Map::new();
    let mut end = 0_usize;
    let mut add = |name: &str, shape: &[usize], packing: usize| {
        let count: usize = shape.iter().product();
        let wide = shape.last().is_some_and(|size| size.is_multiple_of(256));
        let (kind, bytes) = match packings.get(packing) {
            Some(&(kind, bytes)) if wide => (kind, count / 256 * bytes),
            _ => (0, count * 4),
        };
        tensors.insert(name.to_owned(), json!({"shape": shape, "type": kind, "offset": end}));
        end = (end + bytes).next_multiple_of(32);
    };
    add("token_embd.weight", &[8, 256], 0);
    add("output.weight", &[8, 256], 2);
    add("output_norm.weight", &[256], 99);
    for (at, (name, shape)) in [
        ("attn_norm", vec![256]),
        ("ffn_norm", vec![256]),
        ("attn_q", vec![8, 256]),
        ("attn_k", vec![4, 256]),
        ("attn_v", vec![4, 256]),
        ("attn_output", vec![256, 8]),
        ("ffn_gate", vec![32, 256]),
        ("ffn_up", vec![32, 256]),
        ("ffn_down", vec![256, 32]),
    ]
    .into_iter()
    .enumerate()
    {
        let packing = at + if has_bias { 3 } else { 0 };
        add(&format!("blk.0.{name}.weight"), &shape, packing);
        if has_bias && ["attn_q", "attn_k", "attn_v"].contains(&name) {
            add(&format!("blk.0.{name}.bias"), &shape[..1], 99);
        }
    }
    json!({"metadata": metadata, "tensors": tensors, "data": end})
}

/// Byte-level BPE, and small ones of the other kinds with many steps around them.
pub(crate) fn tokenizer() -> Vec<Seed> {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let added = json!([{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}]);
    let around = |model: Value, normalizer: Value, words: Value, decoder: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": words, "post_processor": null,
            "decoder": decoder, "model": model})
    };
    let bpe = around(
        json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "s": 4, "Ġ": 5, "<0x41>": 6}, "merges": [["a", "b"]]}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁"}]}),
        json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": false},
            byte_level]}),
        json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}, byte_level]}),
    );
    let unigram = around(
        json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
            "vocab": [["<unk>", 0.0], ["▁", -1.0], ["a", -2.0], ["ab", -2.5]]}),
        json!({"type": "Lowercase"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
    );
    let pieces = around(
        json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"<unk>": 0, "a": 1, "##b": 2}}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true}),
        json!({"type": "BertPreTokenizer"}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
    );
    let mut words = around(
        json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1}}),
        json!({"type": "StripAccents"}),
        json!({"type": "Whitespace"}),
        json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
    );
    words["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<unk>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}}});
    words["truncation"] =
        json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 2});
    words["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": 4,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    [bpe, unigram, pieces, words]
        .into_iter()
        .map(|tree| changed("tokenizer.json", Form::Json(tree)))
        .collect()
}

pub(crate) fn template() -> Vec<Seed> {
    let chat = "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
        {{ '<|im_start|>system\\nhelpful<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + \
        message['content'] | trim + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
        {{ '<|im_start|>assistant\\n' }}{% endif %}";
    let tools = "{%- if tools %}{{- 'tools: ' }}{%- for tool in tools %}{{- tool | tojson(indent=2) }}{%- endfor %}\
        {%- endif %}{%- set ns = namespace(last=messages|length - 1, found=false) %}{%- for message in messages[::-1] %}\
        {%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.found == false and message.role == 'user' %}\
        {%- set ns.found = true %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{%- macro show(text, n) %}\
        {{- text.split('a')[-1].lstrip('\\n') ~ n }}{%- endmacro %}{%- for message in messages %}\
        {% generation %}{{ show(message.content, loop.index) }}{% endgeneration %}{%- endfor %}\
        {{ '%s %5d' | format('a', 5) }}{{ strftime_now('%d %b %Y') }}";
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template":
        [{"name": "default", "template": chat}, {"name": "tool_use", "template": tools}]});
    // A token a character, so that every reply has some.
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"<unk>": 0, "a": 1}, "merges": []}});
    vec![
        fixed("tokenizer.json", Form::Json(tokenizer)),
        changed("chat_template.jinja", Form::Text(chat.to_owned())),
        changed("chat_template.jinja", Form::Text(tools.to_owned())),
        changed("tokenizer_config.json", Form::Json(config)),
    ]
}

/// Every dialect and every kind of file.
pub(crate) fn rows() -> Vec<Seed> {
    let call = json!({"type": "function", "function": {"name": "look", "arguments": {"at": 1}}});
    let rows = [
        json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "weight": 1, "reasoning_content": "r"}], "id": 7}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "content": "1", "tool_call_id": "x"}, {"role": "assistant", "content": "a"}],
            "tools": [{"name": "look"}]}),
        json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}),
        json!({"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]}),
        json!({"prompt": "q", "completion": "b", "choices": ["a", "b"], "answer": 1}),
        json!({"text": "plain"}),
    ];
    let table = "prompt,completion,id\r\n\"q, \"\"x\"\"\",a,1\r\nq2,\"a\nb\",2\r\n";
    let bytes = |bytes: &[u8]| Form::Bytes(bytes.to_vec());
    let one_each = rows.iter().map(|row| changed("rows.jsonl", Form::Lines(vec![row.clone(); 2])));
    let packed = Form::Packed { inner: Box::new(Form::Lines(rows.to_vec())) };
    let mut seeds = vec![
        changed("rows.json", Form::Json(Value::Array(rows.to_vec()))),
        changed("rows.csv", Form::Text(table.to_owned())),
        changed("rows.tsv", Form::Text(table.replace(',', "\t"))),
        changed("rows.jsonl.gz", packed),
        changed("rows.jsonl.zst", bytes(include_bytes!("../seeds/rows.jsonl.zst"))),
        changed("rows.parquet", bytes(include_bytes!("../seeds/rows.parquet"))),
        changed("pairs.parquet", bytes(include_bytes!("../seeds/pairs.parquet"))),
    ];
    seeds.extend(one_each);
    seeds
}
