//! What `cargo xtask bench kernels` and `bench wide` run: `write FOLDER SCALE` makes a checkpoint, a
//! record and a plan in the shape of an 8 B model, `wide FOLDER SCALE` in the widths of a 70 B one,
//! and `kernels SCALE` times the kernels on the former's largest weight.

use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use checkpoint::{
    CheckpointWriter, DataSource, Dtype, LoraSettings, ModelConfig, ModelSource, Module,
    RecordWriter, StepGradients, StepReport, TensorSpec,
};
use half::bf16;
use igia::{Buffer, ImportanceRows, Panels, StepPair, reference};
use merge::{Donor, keep_top, kept_count, merge_part};
use ndarray::Array2;
use rayon::prelude::*;
use selection::{Merge, Plan};
use serde_json::json;

const STEPS: usize = 40;
const RANK: usize = 8;

/// A model's layers and widths, and which layers are pruned; the first of these are merged.
struct Shape {
    layers: usize,
    hidden: f64,
    ffn: f64,
    pruned: Range<usize>,
    merged: usize,
}

/// An 8 B model.
const MODEL: Shape = Shape { layers: 32, hidden: 4096.0, ffn: 14336.0, pruned: 17..30, merged: 3 };
/// A few layers of a 70 B model.
const WIDE: Shape = Shape { layers: 4, hidden: 8192.0, ffn: 28672.0, pruned: 1..4, merged: 3 };
const DENSITY: f64 = 0.2;
/// Times a kernel is run; the middle one counts.
const RUNS: usize = 5;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["write", folder, scale] => write(&MODEL, Path::new(folder), scale.parse()?),
        ["wide", folder, scale] => write(&WIDE, Path::new(folder), scale.parse()?),
        ["kernels", scale] => kernels(scale.parse()?),
        _ => Err("stages write|wide FOLDER SCALE, or stages kernels SCALE".into()),
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The configuration, widths scaled and rounded to whole heads.
fn config(shape: &Shape, scale: f64) -> serde_json::Value {
    let width = |full: f64| ((full * scale / 128.0).round() as usize).max(1) * 128;
    let (hidden, kv) = (width(shape.hidden), width(1024.0));
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "num_hidden_layers": shape.layers, "hidden_size": hidden, "intermediate_size": width(shape.ffn),
        "num_attention_heads": hidden / 128, "num_key_value_heads": kv / 128, "head_dim": 128,
        "vocab_size": width(128_256.0), "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": false, "hidden_act": "silu",
        "attention_bias": false, "mlp_bias": false,
    })
}

/// The `at`-th of a fixed sequence of random numbers.
fn random(at: u64) -> u64 {
    // SplitMix64.
    let mut x = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Random bf16 values of both signs, four to a number: magnitudes of a weight's.
fn weights(first: u64, count: usize) -> Vec<u64> {
    let value =
        |at: usize| random(first + at as u64) & 0x81ff_81ff_81ff_81ff | 0x3c00_3c00_3c00_3c00;
    (0..count.div_ceil(4)).into_par_iter().map(value).collect()
}

/// Random gradients of both signs, magnitudes over four octaves.
fn gradients(first: u64, rows: usize, columns: usize) -> Array2<f32> {
    let value =
        |at: usize| f32::from_bits(random(first + at as u64) as u32 & 0x81ff_ffff | 0x3a00_0000);
    let values: Vec<f32> = (0..rows * columns).into_par_iter().map(value).collect();
    Array2::from_shape_vec((rows, columns), values).expect("as many as the shape has")
}

fn write(shape: &Shape, folder: &Path, scale: f64) -> Outcome {
    let (model, record) = (folder.join("model"), folder.join("record"));
    fs_err::create_dir_all(&model)?;
    let raw = config(shape, scale);
    fs_err::write(model.join("config.json"), raw.to_string())?;
    let config = ModelConfig::read(&model)?;
    let specs: Vec<_> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| TensorSpec::new(name, Dtype::BF16, &shape))
        .collect();
    let writer = CheckpointWriter::create(&model, specs.clone(), 5_000_000_000)?;
    let part = 1 << 24;
    let mut place = 0;
    for spec in &specs {
        let size = spec.size_bytes();
        for offset in (0..size).step_by(2 * part) {
            let bytes = size - offset;
            let values = weights(place, part.min(bytes / 2));
            place += values.len() as u64;
            let values: &[u8] = bytemuck::cast_slice(&values);
            writer.write_part(&spec.name, offset as u64, &values[..bytes.min(2 * part)])?;
        }
    }
    writer.finish()?;

    let mut writer = RecordWriter::create(&record, Dtype::F32)?;
    for step in 0..STEPS as u64 {
        let pairs: Vec<_> = (0..shape.layers)
            .flat_map(|layer| Module::SPLIT.map(|module| (layer, module)))
            .map(|(layer, module)| {
                let (rows, columns) = config.linear_shape(module);
                let first = (step * 1000 + (layer * 8 + module as usize) as u64) << 24;
                let a = gradients(first, RANK, columns);
                (
                    (layer, module.into()),
                    StepGradients { a, b: gradients(first + (1 << 23), rows, RANK) },
                )
            })
            .collect();
        let report = StepReport { loss: 1.0, grad_norm: 1.0, learning_rate: 1e-4, tokens: 1 };
        writer.step(report, &pairs)?;
    }
    let lora = LoraSettings { rank: RANK, alpha: 32.0, targets: vec!["all".into()] };
    let name = "random".to_owned();
    let model = ModelSource { name: name.clone(), config_sha256: String::new() };
    let data = DataSource { path: name, sha256: String::new(), rows: 0 };
    writer.finish(shape.layers, lora, 0, (model, data), None)?;

    let pruned: Vec<usize> = shape.pruned.clone().collect();
    let from = pruned[..shape.merged].to_vec();
    let merges = vec![Merge { into: shape.pruned.start - 1, from }];
    Plan::new(shape.layers, pruned, merges, DENSITY).write(&folder.join("plan.json"))?;
    Ok(())
}

/// The middle of several runs, in seconds.
fn median(mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

#[expect(clippy::print_stdout, reason = "the figures are its result")]
fn kernels(scale: f64) -> Outcome {
    let folder = std::env::temp_dir();
    let config = ModelConfig::from_json(
        config(&MODEL, scale).as_object().cloned().unwrap_or_default(),
        &folder.join("config.json"),
    )?;
    let (rows, columns) = config.linear_shape(Module::GateProj);
    let pairs: Vec<_> = (0..STEPS as u64)
        .map(|step| {
            (gradients(step << 32, rows, RANK), gradients((step << 32) + 77, RANK, columns))
        })
        .collect();
    let steps: Vec<_> = pairs.iter().map(|(b, a)| StepPair { b: b.view(), a: a.view() }).collect();
    let size = rows * columns;
    let (mut panels, mut importance) = (Panels::default(), Buffer::zeroed(size)?);
    let importance_seconds =
        median(|| ImportanceRows::new(&steps, &mut panels).compute(0, black_box(&mut importance)));
    // Some rows against the plain formula, to the bit.
    let some: Vec<_> = pairs.iter().map(|(b, a)| (b.slice(ndarray::s![..3, ..]), a)).collect();
    let some: Vec<_> = some.iter().map(|(b, a)| StepPair { b: *b, a: a.view() }).collect();
    assert!(reference::importance(&some) == importance[..3 * columns], "not the plain formula's");

    let count = kept_count(DENSITY, size);
    let mut kept = keep_top(&importance, count);
    let top_seconds = median(|| kept = keep_top(black_box(&importance), count));
    let least =
        (0..size).filter(|&at| kept.get(at)).map(|at| importance[at]).fold(f32::MAX, f32::min);
    let larger = importance.iter().filter(|&&value| value > least).count();
    assert!(kept.count() == count && larger < count, "not the largest");

    let stored =
        |first: u64| -> Vec<bf16> { bytemuck::cast_slice(&weights(first, size))[..size].to_vec() };
    let (receiver, weight, mut merged) = (stored(1), stored(2), stored(3));
    let donor = [Donor { weight: &weight, kept: &kept }];
    let merge_seconds =
        median(|| merge_part(0, black_box(&receiver), &donor, black_box(&mut merged)));
    for at in 0..size {
        let (own, theirs) = (receiver[at].to_f32(), weight[at].to_f32());
        let expected = match kept.get(at) && own * theirs > 0.0 {
            true => bf16::from_f32(own + theirs),
            false => receiver[at],
        };
        assert!(merged[at] == expected, "element {at} is not merged as it should be");
    }
    let merged_bytes = 3 * 2 * size + size / 8;

    // The machine's rate of copying: as many bytes, all threads.
    let block = 1 << 20;
    let copy_seconds = median(|| {
        merged.par_chunks_mut(block).zip(receiver.par_chunks(block)).for_each(|(to, from)| {
            to.copy_from_slice(black_box(from));
        });
    });
    let copy_rate = (4 * size) as f64 / copy_seconds;
    let operations = (STEPS * (2 * RANK + 2)) as f64 * size as f64;
    println!(
        "{}",
        json!({
            "weight": [rows, columns], "steps": STEPS, "rank": RANK,
            "importance": {"seconds": importance_seconds, "flops": operations / importance_seconds},
            "top": {"seconds": top_seconds},
            "merge": {"seconds": merge_seconds, "bytes_per_second": merged_bytes as f64 / merge_seconds},
            "copy": {"seconds": copy_seconds, "bytes_per_second": copy_rate},
        })
    );
    Ok(())
}
