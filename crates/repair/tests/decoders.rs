//! Decoders of families that the engine does not train, pruned as transformers loads them (`benches/pytorch/decoders.py`).

use std::path::Path;

use checkpoint::{
    Checkpoint, DataSource, Dtype, LoraSettings, ModelSource, RecordWriter, StepGradients,
    StepReport,
};
use gradpruner_repair::{PruneSettings, apply};
use ndarray::Array2;
use selection::{Merge, Plan, Repair};
use serde_json::Value;

fn settings(plan: Plan, folder: &Path) -> PruneSettings {
    PruneSettings {
        model: folder.join("model"),
        plan,
        record: None,
        fitted: None,
        target: folder.join("pruned"),
        shard_bytes: u64::MAX,
        verify: true,
    }
}

#[test]
fn layers_go_and_all_else_follows() {
    let mut families = 0;
    for entry in fs_err::read_dir(testkit::fixture("decoders")).unwrap() {
        let path = entry.unwrap().path();
        let folder = testkit::temporary_folder();
        let file = path.file_stem().unwrap().to_str().unwrap();
        let family = testkit::made_up_decoder(file, &folder.path().join("model"));
        let source = Checkpoint::open(&folder.path().join("model")).unwrap();
        let name = source.outline().family().to_owned();
        let pruned: Vec<usize> = serde_json::from_value(family["pruned"].clone()).unwrap();
        let num_layers = source.num_layers();
        let plan = Plan::new(num_layers, pruned.clone(), vec![], 0.2);
        let report = apply(&settings(plan, folder.path()), &mut |_, _| {}).unwrap();
        assert_eq!(report.after.num_layers, num_layers - pruned.len(), "{name}");
        assert!(report.after.parameters < report.before.parameters);
        assert!(report.after.flops_per_token < report.before.flops_per_token);
        let found = Checkpoint::open(&folder.path().join("pruned")).unwrap();
        assert_eq!(Value::Object(found.outline().raw().clone()), family["pruned_config"], "{name}");
        let expected = family["pruned_tensors"].as_object().unwrap();
        assert_eq!(found.weights().iter().count(), expected.len(), "{name}");
        for (new, old) in expected {
            let (new, old) =
                (found.tensor(new).unwrap(), source.tensor(old.as_str().unwrap()).unwrap());
            assert!(
                new.bytes() == old.bytes() && new.shape() == old.shape(),
                "{name}: {}",
                new.name()
            );
        }
        families += 1;
    }
    assert!(families >= 30, "{families}");
}

const RANK: usize = 2;
const STEPS: usize = 3;

/// What `A` and `B` of a weight are at a step.
fn gradients(seed: usize, step: usize, (out, inner): (usize, usize)) -> StepGradients {
    let matrix = |side: usize, shape: (usize, usize)| {
        let seed = 1000 * seed + 10 * step + side;
        Array2::from_shape_fn(shape, |(row, column)| testkit::made_up(seed, row * shape.1 + column))
    };
    StepGradients { a: matrix(1, (RANK, inner)), b: matrix(2, (out, RANK)) }
}

/// Writes a record of all linear weights of a model but its routers'.
fn write_record(model: &Checkpoint, folder: &Path) {
    let mut writer = RecordWriter::create(folder, Dtype::F32).expect("a record");
    for step in 0..STEPS {
        let pairs: Vec<_> = model
            .linears()
            .enumerate()
            .filter(|(_, (_, module, _))| module.as_str() != "mlp.gate")
            .map(|(seed, (layer, module, linear))| {
                ((layer, module), gradients(seed, step, linear.shape))
            })
            .collect();
        let report = StepReport { loss: 1.0, grad_norm: 1.0, learning_rate: 1e-4, tokens: 1 };
        writer.step(report, &pairs).expect("a record");
    }
    let lora = LoraSettings { rank: RANK, alpha: 4.0, targets: vec!["all-linear".into()] };
    let model_source = ModelSource { name: "m".into(), config_sha256: "0".into() };
    let data = DataSource { path: "d".into(), sha256: "0".into(), rows: 1 };
    writer.finish(model.num_layers(), lora, 0, (model_source, data), None).expect("a record");
}

/// A layer merged into the one before it, fused, stored transposed or an expert, against plain loops in f64.
#[test]
fn weights_are_merged_as_they_are_stored() {
    for (name, donor, receiver) in
        [("phi3", 3, 2), ("gpt2", 3, 2), ("mixtral", 3, 2), ("gpt_neox", 4, 1)]
    {
        let folder = testkit::temporary_folder();
        testkit::made_up_decoder(name, &folder.path().join("model"));
        let source = Checkpoint::open(&folder.path().join("model")).unwrap();
        write_record(&source, &folder.path().join("record"));
        let pruned: Vec<usize> = (receiver + 1..=donor).collect();
        let merges = vec![Merge { into: receiver, from: vec![donor] }];
        let plan = Plan::new(source.num_layers(), pruned, merges, 0.3)
            .with_repair(Repair::SameSign)
            .unwrap();
        let record = Some(folder.path().join("record"));
        apply(&PruneSettings { record, ..settings(plan, folder.path()) }, &mut |_, _| {}).unwrap();
        let found = Checkpoint::open(&folder.path().join("pruned")).unwrap();
        let mut merged = 0;
        for (seed, (layer, module, linear)) in source.linears().enumerate() {
            if layer != donor {
                continue;
            }
            let mine = source.linear(receiver, &module).unwrap().view.to_f32().unwrap();
            let written = found.linear(receiver, &module).unwrap().view.to_f32().unwrap();
            if module.as_str() == "mlp.gate" {
                assert_eq!(written, mine, "{name}: a router has no gradients and stays");
                continue;
            }
            let (out, inner) = linear.shape;
            let mut importance = vec![0.0; out * inner];
            for step in 0..STEPS {
                let StepGradients { a, b } = gradients(seed, step, linear.shape);
                for o in 0..out {
                    for i in 0..inner {
                        let gradient: f64 =
                            (0..RANK).map(|k| f64::from(b[[o, k]]) * f64::from(a[[k, i]])).sum();
                        let at = if linear.is_transposed { i * out + o } else { o * inner + i };
                        importance[at] += gradient * gradient;
                    }
                }
            }
            let mut order: Vec<usize> = (0..out * inner).collect();
            order.sort_by(|&i, &j| importance[j].total_cmp(&importance[i]).then(i.cmp(&j)));
            let theirs = linear.view.to_f32().unwrap();
            let mut expected = mine;
            for &at in &order[..(0.3 * (out * inner) as f64) as usize] {
                if expected[at] * theirs[at] > 0.0 {
                    expected[at] += theirs[at];
                }
            }
            let apart = written.iter().zip(&expected).filter(|(x, y)| x != y).count();
            // Two elements of nearly one importance may change places.
            assert!(apart <= 2, "{name} {module}: {apart} elements differ");
            merged += 1;
        }
        assert!(merged >= 4, "{name}");
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let check = |name: &str, plan: Plan, reason: &str| {
        let folder = testkit::temporary_folder();
        testkit::made_up_decoder(name, &folder.path().join("model"));
        let error = apply(&settings(plan, folder.path()), &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!folder.path().join("pruned").exists());
    };
    // Layers 0 and 1 of the first have no experts, and layer 3 has.
    let merges = vec![Merge { into: 1, from: vec![3] }];
    let plan = Plan::new(6, vec![2, 3], merges, 0.2).with_repair(Repair::Laco).unwrap();
    check("deepseek_v3", plan, "layer 3 has no weight like `model.layers.1.mlp.");
}
