//! What training minimises: objects that turn logits, and states between layers, into a loss and its gradient.

use std::ops::AddAssign;

use tch::{Kind, Tensor};

use crate::Result;
use crate::bridge::number;

/// Turns the logits of labelled positions into a loss and its gradient, a chunk of positions at a time.
pub(crate) trait TokenLoss {
    /// The loss of one chunk and its gradient by the logits, `[n, vocabulary]` in f32, which may be overwritten.
    fn of(&self, logits: Tensor, chunk: &Chunk) -> Result<ChunkLoss>;
}

/// Some of a pack's labelled positions, side by side.
pub(crate) struct Chunk {
    /// How many labelled positions of the pack come before.
    pub(crate) first: i64,
    /// The tokens that follow, `[n, 1]`.
    pub(crate) targets: Tensor,
}

/// What a chunk's positions lose.
pub(crate) struct ChunkLoss {
    pub(crate) sums: TokenSums,
    /// The gradient of what is minimised by the logits, `[n, vocabulary]`, f32.
    pub(crate) of_logits: Tensor,
}

/// Sums over labelled tokens.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct TokenSums {
    /// `−Σ log p(target)`.
    pub(crate) negative_log_likelihood: f64,
    /// How far a teacher's probabilities are from the model's; 0 without one.
    pub(crate) divergence: f64,
}

impl AddAssign for TokenSums {
    fn add_assign(&mut self, other: Self) {
        let Self { negative_log_likelihood, divergence } = other;
        self.negative_log_likelihood += negative_log_likelihood;
        self.divergence += divergence;
    }
}

/// Compares states between layers with what they should be.
pub(crate) trait StateLoss {
    /// What a layer's output, `[n, hidden]` with filling, loses; `None` if nothing is asked of it.
    fn of(&self, layer: usize, output: &Tensor) -> Result<Option<StateTerm>>;
}

/// What one layer's output loses.
pub(crate) struct StateTerm {
    /// Its part of the mean, without the weight that it has in what is minimised.
    pub(crate) loss: f64,
    /// The gradient of what is minimised by the output, `[n, hidden]`, in its type.
    pub(crate) of_output: Tensor,
}

/// All that one pass minimises.
pub(crate) struct Objective<'a> {
    /// At the labelled tokens.
    pub(crate) tokens: &'a dyn TokenLoss,
    /// Between layers, if states count.
    pub(crate) states: Option<&'a dyn StateLoss>,
}

/// What one pass lost.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct PassSums {
    pub(crate) tokens: TokenSums,
    /// The sum of the states' terms.
    pub(crate) states: f64,
}

impl AddAssign for PassSums {
    fn add_assign(&mut self, other: Self) {
        let Self { tokens, states } = other;
        self.tokens += tokens;
        self.states += states;
    }
}

/// Cross entropy: `scale` times the negative log-likelihood of each target.
///
/// ```text
/// loss = −scale · Σ log softmax(z)[target],   ∇z = scale · (softmax(z) − onehot(target))
/// ```
pub(crate) struct CrossEntropy {
    pub(crate) scale: f64,
}

impl TokenLoss for CrossEntropy {
    fn of(&self, logits: Tensor, chunk: &Chunk) -> Result<ChunkLoss> {
        let log_likelihoods = logits.f_log_softmax(-1, Kind::Float)?;
        drop(logits);
        cross_entropy(log_likelihoods, chunk, self.scale)
    }
}

/// Cross entropy from log-probabilities `[n, vocabulary]`, which become the gradient.
pub(crate) fn cross_entropy(
    log_likelihoods: Tensor,
    chunk: &Chunk,
    scale: f64,
) -> Result<ChunkLoss> {
    let of_targets = log_likelihoods.f_gather(-1, &chunk.targets, false)?;
    let negative_log_likelihood = -number(&of_targets.f_sum(Kind::Double)?)?;
    let mut of_logits = log_likelihoods;
    let less_one = Tensor::f_full_like(&of_targets, -1.0)?;
    let _ = of_logits.f_exp_()?.f_scatter_add_(-1, &chunk.targets, &less_one)?;
    let of_logits = of_logits.f_mul_scalar_(scale)?;
    Ok(ChunkLoss { sums: TokenSums { negative_log_likelihood, divergence: 0.0 }, of_logits })
}

#[cfg(test)]
pub(crate) mod tests {
    use tch::Device;

    use super::*;
    use crate::bridge::values;

    /// Random logits, row by row in f64, and as a tensor.
    pub(crate) fn logits(seed: i64, rows: usize, vocabulary: usize) -> (Vec<Vec<f64>>, Tensor) {
        tch::manual_seed(seed);
        let size = [rows as i64, vocabulary as i64];
        let tensor = Tensor::randn(size, (Kind::Float, Device::Cpu)) * 3.0;
        let rows = values(&tensor).unwrap();
        let rows = rows.chunks(vocabulary).map(|row| row.iter().map(|&x| f64::from(x)).collect());
        (rows.collect(), tensor)
    }

    /// `softmax(z / T)`.
    pub(crate) fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
        let powers: Vec<f64> = logits.iter().map(|z| (z / temperature).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    }

    #[test]
    fn cross_entropy_is_what_plain_loops_give() {
        let (rows, tensor) = logits(11, 3, 7);
        let targets = [4_usize, 0, 6];
        let of_targets = Tensor::from_slice(&targets.map(|target| target as i64)).unsqueeze(-1);
        let chunk = Chunk { first: 0, targets: of_targets };
        let found = CrossEntropy { scale: 0.25 }.of(tensor, &chunk).unwrap();
        let (mut loss, mut gradient) = (0.0, Vec::new());
        for (row, &target) in rows.iter().zip(&targets) {
            let p = softmax(row, 1.0);
            loss -= p[target].ln();
            let hot = |at: usize| f64::from(u8::from(at == target));
            gradient.extend(p.iter().enumerate().map(|(at, p)| (0.25 * (p - hot(at))) as f32));
        }
        assert!((found.sums.negative_log_likelihood / loss - 1.0).abs() < 1e-6);
        let apart = testkit::relative_deviation(&values(&found.of_logits).unwrap(), &gradient);
        assert!(apart < 1e-6, "{apart}");
    }
}
