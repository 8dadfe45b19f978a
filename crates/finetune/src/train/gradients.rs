//! The gradients of one step, a few rows at a time.

use checkpoint::StepGradients;
use dataset::Example;

use super::report::Gradients;
use crate::bridge::matrix;
use crate::decoder::Keep;
use crate::observer::Observer;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::{Model, Result};

/// Adds the gradient of the mean token loss over all examples to what trains, a few rows at a time;
/// returns that loss and how many tokens went through the model.
pub(crate) fn backward(
    model: &Model,
    examples: &[&Example],
    (batch_rows, keep): (usize, Keep),
    observer: &mut dyn Observer,
) -> Result<(f64, usize)> {
    let labels: usize = examples
        .iter()
        .map(|example| example.labelled.iter().filter(|&&labelled| labelled).count())
        .sum();
    let scale = 1.0 / labels as f64;
    let (mut loss, mut tokens) = (0.0, 0);
    for rows in examples.chunks(batch_rows) {
        // Rows of like length side by side: attention pads them to one another.
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
        let batch = Packed::examples_rounded(&rows, model.device)?;
        loss += model.loss_and_gradients(&batch, (scale, keep), observer)? * scale;
        tokens += batch.num_tokens();
    }
    Ok((loss, tokens))
}

/// Every adapter's gradients as they are now, in layer order.
pub(crate) fn adapter_gradients(model: &Model) -> Result<Gradients> {
    let gradient = |x: &Parameter| matrix(x.gradient.as_ref().unwrap_or(&x.value));
    let mut found = Vec::new();
    for (number, layer) in model.layers.iter().enumerate() {
        for (&module, linear) in &layer.linears {
            if let Some(lora) = &linear.lora {
                let (a, b) = (gradient(&lora.a)?, gradient(&lora.b)?);
                found.push(((number, module), StepGradients { a, b }));
            }
        }
    }
    Ok(found)
}
