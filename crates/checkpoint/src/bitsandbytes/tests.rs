use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::tensor::TensorView as Tensor;
use serde_json::json;

use super::*;
use crate::{Checkpoint, Dtype, NF4_BLOCK, Nf4, sha256_bytes, widen as as_f32};

const FOLDERS: [&str; 3] = ["nf4", "nf4_nested", "fp4"];

/// One of the weights.
const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";

fn golden(path: &str) -> PathBuf {
    testkit::fixture("bitsandbytes").join(path)
}

fn made(source: &Path, target: &Path) -> Result<WidenReport> {
    convert(source, target, u64::MAX, &mut |_, _| {})
}

/// The weights of a file, each widened to f32.
fn widened(file: &Path) -> BTreeMap<String, Vec<f32>> {
    let weights = Weights::open_file(file).unwrap();
    let states = states(&weights, file).unwrap();
    let values = |name: &str, state| {
        let mut values = Vec::new();
        let weight = FourBits::open(&weights, name, state).unwrap();
        let mut add = |first: usize, run: &[f32]| {
            assert_eq!(first, values.len());
            values.extend_from_slice(run);
            Ok(())
        };
        weight.for_each_run(&mut add).unwrap();
        values
    };
    states.iter().map(|(&name, state)| (name.to_owned(), values(name, state))).collect()
}

/// Bit for bit what bitsandbytes makes of them, in f32 and in the type of the weights.
#[test]
fn golden_weights() {
    let expected = testkit::json(&golden("expected.json"));
    let digest = |values: &[f32], dtype| sha256_bytes(&narrow(values, dtype));
    for name in FOLDERS {
        let expected = expected[name].as_object().unwrap();
        let found = widened(&golden(name).join("model.safetensors"));
        assert_eq!((found.len(), expected.len()), (7, 7));
        let folder = testkit::temporary_folder();
        let out = folder.path().join("out");
        made(&golden(name), &out).unwrap();
        let written = Weights::open(&out).unwrap();
        for (weight, values) in found {
            assert_eq!(digest(&values, Dtype::F32), expected[&weight]["f32"], "{name} {weight}");
            let stored = sha256_bytes(written.get(&weight).unwrap().bytes());
            assert_eq!(stored, expected[&weight]["stored"], "{name} {weight}");
        }
    }
    let types = [Dtype::BF16, Dtype::F32, Dtype::F32, Dtype::F16];
    let found = widened(&golden("blocks.safetensors"));
    for ((name, values), dtype) in found.iter().zip(types) {
        let expected = &expected["blocks"][name];
        assert_eq!(digest(values, Dtype::F32), expected["f32"], "{name}");
        assert_eq!(digest(values, dtype), expected["stored"], "{name}");
    }
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        ["b128_nested", "b128_odd", "b32_nested", "b4096"]
    );
}

#[test]
fn an_ordinary_folder_comes_out() {
    for (name, shard_bytes, files) in [("nf4_nested", u64::MAX, 1), ("nf4", 40_000, 6)] {
        let folder = testkit::temporary_folder();
        let (source, out) = (golden(name), folder.path().join("out"));
        let mut seen = Vec::new();
        let mut observe = |done, total| seen.push((done, total));
        let report = convert(&source, &out, shard_bytes, &mut observe).unwrap();
        assert_eq!(seen, (0..12).map(|done| (done, 12)).collect::<Vec<_>>());
        assert_eq!((report.widened, report.copied, report.parameters), (7, 5, 39_104));
        let checkpoint = Checkpoint::open(&out).unwrap();
        assert_eq!(checkpoint.config().unwrap().parameters(), report.parameters);
        assert_eq!(checkpoint.weights().size_bytes(), report.size_bytes);
        assert_eq!(checkpoint.weights().files().len(), files);
        let weights = Weights::open(&source).unwrap();
        let states = states(&weights, &source).unwrap();
        for view in checkpoint.weights().iter().filter(|view| !states.contains_key(view.name())) {
            assert_eq!(view.bytes(), weights.get(view.name()).unwrap().bytes());
        }
        let mut config = testkit::json(&source.join("config.json"));
        config.as_object_mut().unwrap().shift_remove("quantization_config");
        assert_eq!(testkit::json(&out.join("config.json")), config);
        let companion = "generation_config.json";
        assert_eq!(testkit::json(&out.join(companion)), testkit::json(&source.join(companion)));
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    }
}

/// Rounded to NF4 anew, every element has the code that it had: of values in f32 with the same scales and so the same values,
/// of values in BF16 with scales that are rounded too.
#[test]
fn codes_are_the_same_again() {
    for (name, tolerance) in [("nf4", 0.0), ("nf4_nested", 0.0), ("nf4_nested", 1.0 / 256.0)] {
        let file = golden(name).join("model.safetensors");
        let weights = Weights::open_file(&file).unwrap();
        for (name, values) in widened(&file) {
            let dtype = if tolerance > 0.0 { Dtype::BF16 } else { Dtype::F32 };
            let mut again = Nf4::default();
            again.extend(&as_f32(&narrow(&values, dtype), dtype)).unwrap();
            assert!(again.codes == weights.get(&name).unwrap().bytes(), "{name}");
            let mut back = vec![0.0; values.len()];
            again.values(0, &mut back);
            let blocks = back.chunks(NF4_BLOCK).zip(values.chunks(NF4_BLOCK));
            for (back, values) in blocks {
                assert!(testkit::relative_deviation(back, values) <= tolerance, "{name}");
            }
        }
    }
}

/// A tensor that a test may break.
struct Stored {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

/// What is said of a golden folder with broken tensors, of which nothing is written.
fn check(name: &str, change: impl FnOnce(&mut Tensors)) -> String {
    let folder = testkit::temporary_folder();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    testkit::copy_folder(&golden(name), &model);
    let file = model.join("model.safetensors");
    let mut tensors: Tensors = Weights::open_file(&file)
        .unwrap()
        .iter()
        .map(|view| {
            let (dtype, shape) = (view.stored_dtype(), view.shape().to_vec());
            (view.name().to_owned(), Stored { dtype, shape, bytes: view.bytes().to_vec() })
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, Stored { dtype, shape, bytes })| {
        (name, Tensor::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs_err::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    let error = made(&model, &out).unwrap_err().to_string();
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    let prefix = format!("{}/", model.display());
    error.strip_prefix(&prefix).unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[test]
fn missing_parts_are_named() {
    let without = |part: &str| {
        check("nf4_nested", |tensors| assert!(tensors.remove(&format!("{WEIGHT}{part}")).is_some()))
    };
    let refused = |what: &str| format!("model.safetensors: `{WEIGHT}` cannot be widened: {what}");
    for part in ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] {
        assert_eq!(without(&format!(".{part}")), refused(&format!("`{part}` is missing")));
    }
    assert_eq!(without(""), refused("only what belongs to it is there"));
    // Of what is left, the first on disk.
    assert_eq!(
        without(".quant_state.bitsandbytes__nf4"),
        refused("it belongs to no weight with a quant state").replace("t` c", "t.nested_absmax` c")
    );
    assert_eq!(
        check("nf4", |tensors| tensors.retain(|name, _| !name.contains("quant_state"))),
        "config.json: it says bitsandbytes with 4 bits, and no tensor is a `….quant_state.bitsandbytes__…`"
    );
    let error = check("nf4", |tensors| drop(tensors.remove("model.norm.weight")));
    assert!(error.contains("tensor `model.norm.weight` is missing"), "{error}");
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let with = |name: &str, part: &str, values: &[f32]| {
        check(name, |tensors| {
            let stored = tensors.get_mut(&format!("{WEIGHT}.{part}")).unwrap();
            stored.dtype = safetensors::Dtype::F32;
            (stored.shape, stored.bytes) = (vec![values.len()], narrow(values, Dtype::F32));
        })
    };
    for (name, part, values, what) in [
        ("nf4", "absmax", vec![1.0; 127], "`absmax` is F32 [127]; 128 of F32 are expected"),
        ("nf4", "absmax", vec![f32::NAN; 128], "`absmax` holds NaN"),
        ("nf4", "quant_map", vec![1.0; 17], "`quant_map` is F32 [17]; 16 of F32 are expected"),
        ("nf4", "quant_map", vec![f32::INFINITY; 16], "`quant_map` holds inf"),
        ("fp4", "absmax", vec![1e5; 128], "its scales are too large for F16"),
        ("nf4_nested", "absmax", vec![1.0; 128], "`absmax` is F32 [128]; 128 of U8 are expected"),
        ("nf4_nested", "nested_absmax", vec![f32::NEG_INFINITY], "`nested_absmax` holds -inf"),
        ("nf4_nested", "nested_absmax", vec![], "`nested_absmax` is F32 [0]; 1 of F32"),
        ("nf4_nested", "nested_quant_map", vec![f32::NAN; 256], "`nested_quant_map` holds NaN"),
        ("nf4_nested", "nested_quant_map", vec![0.0], "256 of F32 are expected"),
        ("nf4_nested", "nested_absmax", vec![f32::MAX], "its scales are too large for BF16"),
    ] {
        let error = with(name, part, &values);
        assert!(error.starts_with(&format!("model.safetensors: `{WEIGHT}` cannot")), "{error}");
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    let state = format!("{WEIGHT}.quant_state.bitsandbytes__nf4");
    let with = |text: &[u8]| {
        check("nf4_nested", |tensors| {
            let stored = tensors.get_mut(&state).unwrap();
            (stored.shape, stored.bytes) = (vec![text.len()], text.to_vec());
        })
    };
    let valid = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 64],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.4});
    for (key, value, what) in [
        ("quant_type", json!("int4"), "it is in `int4`; nf4 and fp4 are understood"),
        ("blocksize", json!(0), "its blocks are of 0; bitsandbytes has [32, 64, 128,"),
        ("blocksize", json!(48), "its blocks are of 48;"),
        ("blocksize", json!(128), "`absmax` is U8 [128]; 64 of U8 are expected"),
        ("dtype", json!("int8"), "it was in `int8`; a float type is expected"),
        ("shape", json!([128, 63]), "its 4096 bytes do not make [128, 63]"),
        ("shape", json!([1_u64 << 32, 1_u64 << 32]), "its 4096 bytes do not make"),
        ("nested_blocksize", json!(0), "its blocks are of 0;"),
        ("nested_blocksize", json!(null), "lacks `nested_blocksize` or `nested_offset`"),
        ("nested_dtype", json!("bfloat16"), "its scales are of `bfloat16`; float32 is understood"),
        ("nested_offset", json!(1e39), "its scales make inf"),
    ] {
        let mut settings = valid.clone();
        settings[key] = value;
        let error = with(settings.to_string().as_bytes());
        assert!(error.starts_with(&format!("model.safetensors: `{WEIGHT}` cannot")), "{error}");
        assert!(error.contains(what), "{error}");
    }
    for text in ["", "{", "[1]", "{}", r#"{"quant_type": 4}"#, "\u{fffd}"] {
        assert_eq!(
            with(text.as_bytes()),
            format!("model.safetensors: `{state}` is not the JSON of a bitsandbytes quant state")
        );
    }
    let mut transposed = valid;
    transposed["shape"] = json!([64, 128]);
    assert_eq!(
        with(transposed.to_string().as_bytes()),
        format!(
            "config.json: `{WEIGHT}` is [64, 128], config.json implies [128, 64]; are both of one model?"
        )
    );
}

#[test]
fn other_quantisers_are_refused() {
    let rename = |from: &str, to: &str| {
        let (from, to) = (format!("{WEIGHT}{from}"), format!("{WEIGHT}{to}"));
        check("nf4", |tensors| {
            let stored = &tensors[&from];
            let copy = Stored {
                dtype: stored.dtype,
                shape: stored.shape.clone(),
                bytes: stored.bytes.clone(),
            };
            tensors.insert(to, copy);
        })
    };
    let state = ".quant_state.bitsandbytes__";
    let error = rename(&format!("{state}nf4"), &format!("{state}fp4"));
    assert!(error.ends_with("two quant states describe it"), "{error}");
    let error = rename("", ".SCB");
    assert!(
        error.contains(&format!("`{WEIGHT}.SCB` cannot be widened: it belongs to no weight")),
        "{error}"
    );
    let error = rename("", ".more.weight");
    assert!(error.contains("it belongs to no weight with a quant state"), "{error}");

    let folder = testkit::temporary_folder();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    testkit::copy_folder(&golden("nf4"), &model);
    let mut config = testkit::json(&model.join("config.json"));
    for (quantisation, what) in [
        (
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
            "bitsandbytes with 8 bits);",
        ),
        (
            json!({"quant_method": "gptq", "bits": 4}),
            "(`quantization_config`, gptq); use the model's",
        ),
        (json!(null), "has no `quantization_config`, so the folder is an ordinary one already"),
    ] {
        config["quantization_config"] = quantisation;
        write_json(&model.join("config.json"), &config).unwrap();
        let error = made(&model, &out).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    testkit::copy_folder(&golden("nf4"), &model);
    let error = Checkpoint::open(&model).unwrap_err().to_string();
    assert!(error.contains("`gradpruner convert DIR --out NEW` makes an ordinary one"), "{error}");
    fs_err::create_dir(&out).unwrap();
    assert!(matches!(made(&model, &out), Err(CheckpointError::Exists { .. })));
}
