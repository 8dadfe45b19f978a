//! Whether the machine has what is needed, and what to do where it has not.

use std::path::Path;

use checkpoint::{ModelConfig, free_disk_bytes};
use dataset::Example;
use finetune::{Method, TrainSettings, Workload, available_memory_bytes, largest_batch};

use crate::{ComputeSettings, PipelineError, Result};

/// The shortest rows that are advised.
const FEWEST_TOKENS: usize = 128;

/// Makes a training fit the memory there is, on a CPU: computes layers again in the backward pass
/// if it must.
///
/// # Errors
///
/// [`PipelineError::Memory`] if it does not fit even so, with settings that would.
pub(crate) fn fit(
    config: &ModelConfig,
    train: &mut TrainSettings,
    compute: &ComputeSettings,
    examples: &[Example],
) -> Result<()> {
    train.restrict_to(config)?;
    let (device, kind) = (compute.device, compute.resolve()?);
    let Some(limit) = compute.memory.or_else(available_memory_bytes) else { return Ok(()) };
    if !device.is_cpu()? {
        return Ok(());
    }
    let needs = |train: &TrainSettings, examples: &[Example]| {
        let work = Workload { config, train, compute: kind, rounding: compute.rounding() };
        work.memory(largest_batch(examples, train))
    };
    let asked = needs(train, examples);
    if asked.unmapped() <= limit {
        if asked.total() > limit {
            tracing::warn!(
                weights = bytes_text(asked.mapped),
                "memory does not hold all weights beside the rest; they will be read again and \
                 again, which is slow"
            );
        }
        return Ok(());
    }
    if !train.remat {
        train.remat = true;
        if needs(train, examples).unmapped() <= limit {
            tracing::warn!(
                needed = bytes_text(asked.unmapped()),
                free = bytes_text(limit),
                "memory is short: layers are computed again in the backward pass (--remat)"
            );
            return Ok(());
        }
    }
    let what = format!(
        "it needs about {} beside the mapped weights, even with --remat, and {} are free; {}",
        bytes_text(needs(train, examples).unmapped()),
        bytes_text(limit),
        advice(train, examples, &|train, examples| needs(train, examples).unmapped() <= limit)
    );
    Err(PipelineError::Memory(what))
}

/// The mildest change that fits: fewer rows at a time, then shorter rows.
fn advice(
    train: &TrainSettings,
    examples: &[Example],
    fits: &dyn Fn(&TrainSettings, &[Example]) -> bool,
) -> String {
    let mut less = train.clone();
    while less.batch_rows > 1 {
        less.accumulate *= 2;
        less.batch_rows = less.batch_rows.div_ceil(2);
        if fits(&less, examples) {
            let TrainSettings { batch_rows, accumulate, .. } = less;
            return format!("take --batch {batch_rows} --accumulate {accumulate}");
        }
    }
    let mut most = examples.iter().map(|row| row.tokens.len()).max().unwrap_or(0) / 2;
    while most >= FEWEST_TOKENS {
        let cut = |row: &Example| {
            let labelled = row.labelled.iter().take(most).copied().collect();
            Example::whole(row.tokens.iter().take(most).copied().collect(), labelled)
        };
        let shorter: Vec<Example> = examples.iter().map(cut).collect();
        if fits(&less, &shorter) {
            let accumulate = less.accumulate;
            return format!("take --batch 1 --accumulate {accumulate} --max-length {most}");
        }
        most /= 2;
    }
    match train.method {
        Method::Lora(_) => "take a smaller model, or a machine with more memory".into(),
        _ => "fine-tune by LoRA, or take a machine with more memory".into(),
    }
}

/// Refuses what the disk has no room for.
pub(crate) fn require_disk(folder: &Path, needed: u64) -> Result<()> {
    match free_disk_bytes(folder) {
        Some(free) if free < needed => {
            let (needed, free) = (bytes_text(needed), bytes_text(free));
            let folder = folder.display();
            Err(PipelineError::Disk(format!(
                "{folder}: {needed} are needed and {free} are free; make room, or choose another folder"
            )))
        }
        _ => Ok(()),
    }
}

/// Bytes as errors and warnings give them, `1.3 GB`.
fn bytes_text(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use ::finetune::{ComputeChoice, ComputeType, DeviceChoice, Rounding};

    use super::super::tests::training_settings;
    use super::*;
    use crate::{FinetuneMethod, Sample};

    /// Settings, and rows whose activations outweigh the tiny model.
    fn training() -> (ModelConfig, TrainSettings, Vec<Example>) {
        let config = ModelConfig::read(&testkit::fixture("tiny_llama/model")).unwrap();
        let settings = training_settings();
        let rows = Sample::assumed(32, 1 << 17).examples;
        let mut train = settings.parse(FinetuneMethod::Lora, 0).unwrap();
        train.restrict_to(&config).unwrap();
        (config, train, rows)
    }

    #[test]
    fn what_is_short_of_memory_computes_again_or_is_refused() {
        let (config, train, rows) = training();
        let needs = |train: &TrainSettings| {
            let work = Workload {
                config: &config,
                train,
                compute: ComputeType::BF16,
                rounding: Rounding::NONE,
            };
            work.memory(largest_batch(&rows, train)).unmapped()
        };
        let (plain, again) =
            (needs(&train), needs(&TrainSettings { remat: true, ..train.clone() }));
        assert!(again < plain);
        let fitted = |memory: u64| {
            let compute = ComputeSettings {
                device: DeviceChoice::Cpu,
                dtype: ComputeChoice::Fixed(ComputeType::BF16),
                memory: Some(memory),
                offload: false,
                in_4bit: false,
                embedding_in_8bit: false,
            };
            let mut train = train.clone();
            fit(&config, &mut train, &compute, &rows).map(|()| train.remat)
        };
        assert!(!fitted(plain).unwrap());
        assert!(fitted(plain - 1).unwrap());
        assert!(fitted(again).unwrap());
        let refused = fitted(again - 1).unwrap_err().to_string();
        assert!(refused.contains("take --batch 4 --accumulate 2"), "{refused}");
        // The settings it names do fit.
        let less = TrainSettings { batch_rows: 4, accumulate: 2, remat: true, ..train.clone() };
        assert!(needs(&less) < again);
        let refused = fitted(needs(&TrainSettings { batch_rows: 1, ..less }) - 1).unwrap_err();
        assert!(refused.to_string().contains("--batch 1 --accumulate 8 --max-length"), "{refused}");
        let refused = fitted(1).unwrap_err().to_string();
        assert!(refused.contains("a smaller model"), "{refused}");
    }
}
