//! The gradients of one step, a few rows at a time.

use checkpoint::StepGradients;
use dataset::Example;

use super::report::Gradients;
use crate::bridge::matrix;
use crate::decoder::Keep;
use crate::loss::CrossEntropy;
use crate::observer::Observer;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::{Model, Result};

/// How a step's rows go through the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passes {
    /// Rows of a forward pass.
    pub(crate) batch_rows: usize,
    /// What is kept for the backward pass.
    pub(crate) keep: Keep,
}

/// What a step's rows gave, besides gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gathered {
    /// The mean token loss.
    pub(crate) loss: f64,
    /// Tokens that went through the model.
    pub(crate) tokens: usize,
}

/// Adds the gradient of the mean token loss over all examples to what trains, a few rows at a time.
pub(crate) fn backward(
    model: &Model,
    examples: &[&Example],
    passes: Passes,
    observer: &mut dyn Observer,
) -> Result<Gathered> {
    let labels: usize = examples.iter().map(|example| example.learned()).sum();
    let scale = 1.0 / labels as f64;
    let mut gathered = Gathered { loss: 0.0, tokens: 0 };
    for rows in examples.chunks(passes.batch_rows) {
        // Rows of like length side by side: attention pads them to one another.
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
        let batch = Packed::examples_rounded(&rows, model.device)?;
        let loss = CrossEntropy { scale };
        let sums = model.loss_and_gradients(&batch, &loss, passes.keep, observer)?;
        gathered.loss += sums.negative_log_likelihood * scale;
        gathered.tokens += batch.num_tokens();
    }
    Ok(gathered)
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
