//! The gradients of one step, a few rows at a time.

use checkpoint::StepGradients;
use dataset::Example;

use super::report::Gradients;
use crate::bridge::matrix;
use crate::decoder::Keep;
use crate::distil::{DistilTerms, Lesson, Scales};
use crate::loss::{CrossEntropy, Objective, PassSums};
use crate::observer::Observer;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::{Model, Result};

/// How a step's rows go through the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passes<'a> {
    /// Rows of a forward pass.
    pub(crate) batch_rows: usize,
    /// What is kept for the backward pass.
    pub(crate) keep: Keep,
    /// What a teacher teaches meanwhile.
    pub(crate) lesson: Option<Lesson<'a>>,
}

/// What a step's rows gave, besides gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gathered {
    /// The mean token loss.
    pub(crate) loss: f64,
    /// What the teacher adds.
    pub(crate) distil: Option<DistilTerms>,
    /// Tokens that went through the model.
    pub(crate) tokens: usize,
}

/// Adds the gradient of the mean token loss over all examples, and of what a teacher adds, to what trains, a few
/// rows at a time.
pub(crate) fn backward(
    model: &Model,
    examples: &[&Example],
    passes: Passes<'_>,
    observer: &mut dyn Observer,
) -> Result<Gathered> {
    backward_part(model, examples, Scales::of(examples), passes, observer)
}

/// As [`backward`], of some of a step's rows: what is added are the parts of the means over all of them, which `scales`
/// are of.
pub(crate) fn backward_part(
    model: &Model,
    examples: &[&Example],
    scales: Scales,
    passes: Passes<'_>,
    observer: &mut dyn Observer,
) -> Result<Gathered> {
    let scale = scales.labelled;
    let (mut loss, mut tokens, mut all) = (0.0, 0, PassSums::default());
    for rows in examples.chunks(passes.batch_rows) {
        // Rows of like length side by side: attention pads them to one another.
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
        let batch = Packed::examples_rounded(&rows, model.device)?;
        let mut pass = |objective: &Objective<'_>| {
            model.loss_and_gradients(&batch, objective, passes.keep, observer)
        };
        let sums = match &passes.lesson {
            Some(lesson) => lesson.learn(&batch, scales, &mut pass)?,
            None => pass(&Objective { tokens: &CrossEntropy { scale }, states: None })?,
        };
        loss += sums.tokens.negative_log_likelihood * scale;
        tokens += batch.num_tokens();
        all += sums;
    }
    let distil = passes.lesson.map(|lesson| lesson.terms(all, scales));
    Ok(Gathered { loss, distil, tokens })
}

/// Every adapter's gradients as they are now, in layer order.
pub(crate) fn adapter_gradients(model: &Model) -> Result<Gradients> {
    let gradient = |x: &Parameter| matrix(x.gradient.as_ref().unwrap_or(&x.value));
    let mut found = Vec::new();
    for (number, layer) in model.layers.iter().enumerate() {
        for (&module, linear) in &layer.linears {
            if let Some(lora) = &linear.lora {
                let (a, b) = (gradient(&lora.a)?, gradient(&lora.b)?);
                found.push(((number, module.into()), StepGradients { a, b }));
            }
        }
    }
    Ok(found)
}
