//! `gradpruner doctor`.

use finetune::{
    ComputeType, DeviceChoice, available_memory_bytes, num_threads, product_rate, usable_gpus,
};
use pipeline::bytes_text;
use serde_json::json;

use crate::printer::Outcome;

/// Say what this machine offers, and why a GPU is not used.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  gradpruner doctor")]
pub(crate) struct DoctorArgs {}

/// A weight as in a model of about a billion parameters.
const WEIGHT: (usize, usize) = (2048, 8192);

pub(crate) fn run(_: DoctorArgs) -> anyhow::Result<Outcome> {
    let (gpus, memory, threads) = (usable_gpus(), available_memory_bytes(), num_threads());
    let device = if gpus.is_ok() { DeviceChoice::Cuda(0) } else { DeviceChoice::Cpu };
    let rate = |compute| product_rate(WEIGHT, device, compute);
    let (bf16, f32) = (rate(ComputeType::BF16)?, rate(ComputeType::F32)?);
    let faster = match bf16 / f32 {
        ratio if ratio < 1.0 => "; --dtype f32 is the faster here".to_owned(),
        ratio => format!("; --dtype bf16 is {ratio:.1} times as fast"),
    };
    let text = format!(
        "gradpruner  {}\nGPU         {}\nCPU         {threads} threads\nmemory      {}\nproducts    \
         on {device}: {:.0} GFLOP/s in bf16, {:.0} in f32{faster}",
        env!("CARGO_PKG_VERSION"),
        match &gpus {
            Ok(count) => format!("{count} usable, as cuda:0 and so on"),
            Err(reason) => format!("not used: {reason}"),
        },
        memory.map_or("unknown".into(), |free| format!("{} free", bytes_text(free))),
        bf16 / 1e9,
        f32 / 1e9,
    );
    let (count, reason) = (gpus.as_ref().ok(), gpus.as_ref().err());
    Outcome::new(
        text,
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "gpus": count,
            "no_gpu": reason,
            "threads": threads,
            "available_memory_bytes": memory,
            "device": device.to_string(),
            "product_rate": {"bf16": bf16, "f32": f32},
        }),
    )
}
