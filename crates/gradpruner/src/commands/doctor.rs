//! `gradpruner doctor`.

use finetune::{
    ComputeType, DeviceChoice, ProductRates, WeightSize, available_memory_bytes, num_threads,
    product_rate, product_rates, usable_gpus,
};
use serde_json::json;

use crate::printer::{Outcome, Printer};
use crate::texts::{gigaflops, threads_text};
use crate::units::bytes_text;

/// Report what this machine offers, and why a GPU is not used.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner doctor")]
pub(crate) struct DoctorArgs {}

/// A weight as in a model of about a billion parameters, `[out, in]`.
const WEIGHT: WeightSize = WeightSize { out: 8192, inner: 2048 };

pub(crate) fn run(_: DoctorArgs, printer: &mut Printer) -> anyhow::Result<Outcome> {
    // Each line is out before the next one is looked for.
    let mut line = |name: &str, text: &str| printer.stream(&format!("{name:14}{text}\n"));
    line("gradpruner", env!("CARGO_PKG_VERSION"));
    let gpus = usable_gpus();
    match &gpus {
        Ok(count) => line("GPU", &format!("{count} usable, as cuda:0 and so on")),
        Err(reason) => line("GPU", &format!("not used: {reason}")),
    }
    let (memory, threads) = (available_memory_bytes(), num_threads());
    line("CPU", &threads_text(threads));
    let free = memory.map_or("unknown".into(), |free| format!("{} free", bytes_text(free)));
    line("memory", &free);
    let device = if gpus.is_ok() { DeviceChoice::Cuda(0) } else { DeviceChoice::Cpu };
    let mut rate = |compute: ComputeType| -> anyhow::Result<f64> {
        let rate = product_rate(WEIGHT, device, compute)?;
        line("products", &format!("{} GFLOP/s in {compute} on {device}", gigaflops(rate)));
        Ok(rate)
    };
    let rates = ProductRates { bf16: rate(ComputeType::BF16)?, f32: rate(ComputeType::F32)? };
    let chosen = product_rates(device)?;
    let (faster, slower) = match chosen.faster() {
        ComputeType::BF16 => (ComputeType::BF16, ComputeType::F32),
        ComputeType::F32 => (ComputeType::F32, ComputeType::BF16),
    };
    let ratio = chosen.of(faster) / chosen.of(slower);
    let (count, reason) = (gpus.as_ref().ok(), gpus.as_ref().err());
    Outcome::new(
        format!("{:14}{faster}, {ratio:.1} times as fast as {slower} here", "--dtype auto"),
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "gpus": count,
            "no_gpu": reason,
            "threads": threads,
            "available_memory_bytes": memory,
            "device": device.to_string(),
            "product_rate": rates,
            "dtype": faster.to_string(),
        }),
    )
}
