//! Runs foretold against what plain loops count.

use ::finetune::{ComputeChoice, ComputeType, Decay, DeviceChoice, DistilSettings};
use checkpoint::{ModelConfig, Module};
use selection::{Density, Keep, Refine, Repair, Share};

use super::run::{Foretold, Known};
use super::stages::Estimator;
use super::{Sample, StageEstimate};
use crate::{
    CollectSettings, ComputeSettings, EvaluationSettings, FinetuneMethod, HeldOut,
    LinearMapSettings, LoraTargets, RunSettings, Stage, TrainingSettings,
};

/// Tokens of every row, all to learn from.
const TOKENS: usize = 10;

pub(crate) fn training_settings() -> TrainingSettings {
    TrainingSettings {
        epochs: 1.0,
        max_steps: None,
        batch_rows: 8,
        accumulate: 1,
        max_tokens: 1 << 20,
        learning_rate: 1e-4,
        warmup: 0.0,
        decay: Decay::Linear,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        lora_rank: 4,
        lora_alpha: 8.0,
        rslora: false,
        dora: false,
        lora_targets: LoraTargets::all(),
        lora_layers: None,
        remat: false,
        save_every: None,
        update_share: None,
        validation: None,
        distil: None,
        teacher: None,
    }
}

/// Two of six layers go, the training begins anew.
pub(crate) fn run_settings() -> RunSettings {
    RunSettings {
        model: "model".into(),
        train: "train.jsonl".into(),
        eval: None,
        ignore_fields: Vec::new(),
        prune: Share::Layers(2),
        keep: Keep::Guard,
        max_drop: None,
        criterion: "igia".parse().unwrap(),
        refine: Refine::None,
        choose: HeldOut::Rows(12),
        hold_out: false,
        repair_always: false,
        repair: Repair::LinearMap,
        merge: 0,
        density: Density::Share(0.2),
        finetune: FinetuneMethod::Lora,
        restart: true,
        with_dense: false,
        save_merged: false,
        tensorboard: false,
        seed: 0,
        shard_bytes: 1 << 30,
        compute: ComputeSettings {
            device: DeviceChoice::Cpu,
            dtype: ComputeChoice::Fixed(ComputeType::F32),
            memory: None,
            offload: false,
            in_4bit: false,
            embedding_in_8bit: false,
        },
        collect: CollectSettings { steps: 5, auto: false, training: training_settings() },
        linear_map: LinearMapSettings { tokens: Some(100), ridge: 1e-3 },
        training: training_settings(),
        evaluation: EvaluationSettings {
            batch_tokens: 100,
            max_tokens: 100,
            max_rows: None,
            generate_rows: 0,
            max_new_tokens: 1,
        },
    }
}

fn tiny() -> ModelConfig {
    ModelConfig::read(&testkit::fixture("tiny_llama/model")).unwrap()
}

/// 160 rows: 20 steps of 8.
fn rows() -> Sample {
    Sample::assumed(160, TOKENS)
}

fn stages(settings: &RunSettings, train: &Sample) -> Vec<StageEstimate> {
    let config = tiny();
    let rounding = settings.compute.rounding();
    let of = Estimator { compute: ComputeType::F32, rounding, rate: 1.0, limit: None };
    let known = Known { settings, config: &config, train, eval: None };
    Foretold::new(known, of).unwrap().stages().unwrap()
}

fn stage(settings: &RunSettings, train: &Sample, wanted: Stage) -> StageEstimate {
    stages(settings, train).into_iter().find(|found| found.stage == wanted).unwrap()
}

/// Operations of a row's forward pass through so many layers and the head.
fn forward(layers: usize) -> f64 {
    let config = tiny();
    let mut sum = 0.0;
    for _ in 0..layers {
        for module in Module::SPLIT {
            let (out, inner) = config.linear_shape(module);
            sum += (2 * out * inner * TOKENS) as f64;
        }
        sum += (4 * config.num_heads * config.head_dim * TOKENS * TOKENS) as f64;
    }
    sum + (2 * config.vocab_size * config.hidden_size * TOKENS) as f64
}

fn check(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-12, "{found} instead of {expected}");
}

#[test]
fn a_teacher_takes_its_forward_pass_and_its_memory() {
    let (config, rows, plain) = (tiny(), rows(), run_settings());
    let mut taught = plain.clone();
    taught.training.distil =
        Some(DistilSettings { weight: 0.5, temperature: 2.0, top_k: 64, hidden: 0.0 });
    let finetune = |settings: &RunSettings| stage(settings, &rows, Stage::Finetune);
    let (alone, with) = (finetune(&plain), finetune(&taught));
    assert_eq!((alone.steps, with.steps), (20, 20));
    check(with.flops - alone.flops, 160.0 * forward(config.num_layers));
    // Its weights are the student's, its adapters its own; of a batch it says 64 tokens and logarithms a label.
    assert_eq!(with.memory.mapped, config.parameters() * config.dtype.unwrap().size() as u64);
    let adapters = tiny_adapters(config.num_layers);
    assert_eq!(with.memory.trained - alone.memory.trained, 8 * adapters);
    assert_eq!(with.memory.kept - alone.memory.kept, (8 * TOKENS * 64 * 12) as u64);
    // The dense model is tuned to be it, with nobody to teach it.
    let dense = |settings: &RunSettings| stage(settings, &rows, Stage::DenseFinetune);
    assert_eq!(dense(&taught), dense(&RunSettings { with_dense: true, ..plain.clone() }));
    assert!(stages(&plain, &rows).iter().all(|found| found.stage != Stage::DenseFinetune));
    // Its head is left out where only states are asked for, which it then keeps, one before each cut.
    let mut by_states = taught.clone();
    by_states.training.distil =
        Some(DistilSettings { weight: 0.0, hidden: 1.0, ..taught.training.distil.unwrap() });
    let by_states = finetune(&by_states);
    let head = (2 * config.vocab_size * config.hidden_size * TOKENS * 160) as f64;
    check(with.flops - by_states.flops, head);
    let states = (2 * 8 * TOKENS * config.hidden_size * 4) as u64;
    assert_eq!(by_states.memory.kept - alone.memory.kept, states);
}

/// Numbers of rank-4 adapters on every weight of so many layers.
fn tiny_adapters(layers: usize) -> u64 {
    let config = tiny();
    let mut sum = 0;
    for _ in 0..layers {
        for module in Module::SPLIT {
            let (out, inner) = config.linear_shape(module);
            sum += 4 * (out + inner) as u64;
        }
    }
    sum
}

#[test]
fn layers_beside_cuts_train_whole() {
    let config = tiny();
    let settings = RunSettings { finetune: FinetuneMethod::LoraAndCuts, ..run_settings() };
    let settings = RunSettings { prune: Share::Layers(1), with_dense: true, ..settings };
    let found = stage(&settings, &rows(), Stage::Finetune);
    let mut whole = 0;
    for (name, shape) in config.tensors() {
        // Of one cut two layers.
        if name.starts_with("model.layers.0.") || name.starts_with("model.layers.1.") {
            whole += shape.iter().product::<usize>() as u64;
        }
    }
    let adapters = tiny_adapters(config.num_layers - 1 - 2);
    assert_eq!(found.memory.trained, 16 * (whole + adapters) + 4 * adapters);
    let dense = stage(&settings, &rows(), Stage::DenseFinetune);
    assert_eq!(dense.memory.trained, 20 * tiny_adapters(config.num_layers));
}

#[test]
fn every_amount_is_fitted_trained_and_looked_at() {
    let (rows, one) = (rows(), run_settings());
    let search = RunSettings { max_drop: Some("1%".parse().unwrap()), ..one.clone() };
    // One or two layers.
    let fit = |settings: &RunSettings| stage(settings, &rows, Stage::Fit).flops;
    check(fit(&search), 2.0 * fit(&one));
    let found = stage(&search, &rows, Stage::Amount);
    assert_eq!(found.steps, 20);
    let dense = stage(&search, &rows, Stage::DenseFinetune);
    check(found.flops, dense.flops + 3.0 * 12.0 * forward(tiny().num_layers));
}

#[test]
fn a_race_fits_trains_and_looks_at_every_candidate() {
    let (rows, one) = (rows(), run_settings());
    let layers = tiny().num_layers - 2;
    let cases = [("best:igia+bi+last", 0, 3), ("race:igia+bi+last+cka", 16, 6), ("auto", 28, 11)];
    for (text, in_vain, trials) in cases {
        let race = RunSettings { criterion: text.parse().unwrap(), ..one.clone() };
        let candidates = race.criterion.criteria().len() as f64;
        let fit = |settings: &RunSettings| stage(settings, &rows, Stage::Fit);
        check(fit(&race).flops, candidates * fit(&one).flops);
        check(fit(&race).tokens, candidates * 100.0);
        let (raced, tuned) =
            (stage(&race, &rows, Stage::Race), stage(&race, &rows, Stage::Finetune));
        // Of 20 steps a round is four.
        assert_eq!(raced.steps, in_vain);
        let trained = in_vain as f64 / 20.0 * tuned.flops;
        check(raced.flops, trained + f64::from(trials) * 12.0 * forward(layers));
        assert_eq!(tuned, stage(&one, &rows, Stage::Finetune));
    }
}

#[test]
fn a_training_by_choices_is_looked_at() {
    let (rows, settings) = (rows(), run_settings());
    let asked = Sample { has_choices: true, ..rows.clone() };
    let finetune = |rows: &Sample| stage(&settings, rows, Stage::Finetune);
    let more = finetune(&asked).flops - finetune(&rows).flops;
    check(more, 128.0 * forward(tiny().num_layers - 2));
    let short = RunSettings {
        training: TrainingSettings { max_steps: Some(15), ..settings.training.clone() },
        ..settings.clone()
    };
    assert_eq!(stage(&short, &asked, Stage::Finetune), stage(&short, &rows, Stage::Finetune));
}

#[test]
fn layers_that_are_retrained_take_their_steps() {
    let (rows, maps) = (rows(), run_settings());
    let retrained = RunSettings { repair: Repair::Reconstruct, ..maps.clone() };
    let flops = |settings: &RunSettings| stage(settings, &rows, Stage::Fit).flops;
    // 300 steps a run of layers on 100 tokens, ten rows of ten, forward and two products back.
    let of_layer = (forward(2) - forward(1)) * 10.0;
    check(flops(&retrained) - flops(&maps), 2.0 * 300.0 * 3.0 * of_layer);
}

#[test]
fn a_full_disk_is_refused() {
    let folder = testkit::temporary_folder();
    super::require_disk(folder.path(), 0).unwrap();
    let refused = super::require_disk(folder.path(), u64::MAX).unwrap_err().to_string();
    assert!(refused.starts_with("the disk is too full: "), "{refused}");
    assert!(refused.ends_with(" are free; make room, or choose another folder"), "{refused}");
}
