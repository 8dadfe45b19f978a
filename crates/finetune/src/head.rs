//! The head and the loss, on labelled positions alone and a few of them at a time.

use tch::{Kind, Tensor};

use crate::Result;
use crate::bridge::number;
use crate::norm::Norm;
use crate::pack::Packed;
use crate::parameter::Parameter;
use crate::product::{add_product, linear};

/// Bytes of the f32 logits of one chunk.
pub(crate) const LOGIT_BYTES: i64 = 64 << 20;

/// The final norm and the head's weight, `[vocabulary, hidden]`.
pub(crate) struct Head<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) weight: &'a Parameter,
}

impl Head<'_> {
    /// Logits of given hidden states, `[m, vocabulary]`, f32.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.product(&self.norm.forward(hidden)?)
    }

    /// The sum of the labelled tokens' negative log-likelihoods, and the gradient of `scale` times
    /// it by the last layer's output, `[n, hidden]`; gathers the gradients of what trains here.
    pub(crate) fn loss(
        &self,
        hidden: &Tensor,
        batch: &Packed,
        scale: f64,
    ) -> Result<(f64, Tensor)> {
        let kind = hidden.f_kind()?;
        let predicting = hidden.f_index_select(0, &batch.predict)?;
        let normed = self.norm.forward(&predicting)?;
        let (mut loss, mut gradients) = (0.0, Vec::new());
        for (first, count) in self.chunks(batch)? {
            let targets = batch.targets.f_narrow(0, first, count)?.f_unsqueeze(-1)?;
            let own = normed.f_narrow(0, first, count)?;
            let log_likelihoods = self.product(&own)?.f_log_softmax(-1, Kind::Float)?;
            let of_targets = log_likelihoods.f_gather(-1, &targets, false)?;
            loss -= number(&of_targets.f_sum(Kind::Double)?)?;
            // The gradient of the sum by the logits: the probabilities, less 1 at the target.
            let mut of_logits = log_likelihoods;
            let less_one = Tensor::f_full_like(&of_targets, -1.0)?;
            let _ = of_logits.f_exp_()?.f_scatter_add_(-1, &targets, &less_one)?;
            let of_logits = of_logits.f_mul_scalar_(scale)?.f_to_kind(kind)?;
            self.weight
                .gather(|| Ok(of_logits.f_numpy_t()?.f_mm(&own)?.f_to_kind(Kind::Float)?))?;
            gradients.push(add_product(None, &of_logits, &self.weight.value)?);
        }
        let gradient = self.norm.backward(&predicting, &Tensor::f_cat(&gradients, 0)?)?;
        let mut out = hidden.f_zeros_like()?;
        Ok((loss, out.f_index_add_(0, &batch.predict, &gradient)?))
    }

    /// The log-likelihood of each labelled token, `[m]`, f32.
    pub(crate) fn log_likelihoods(&self, hidden: &Tensor, batch: &Packed) -> Result<Tensor> {
        let normed = self.norm.forward(&hidden.f_index_select(0, &batch.predict)?)?;
        let parts = self
            .chunks(batch)?
            .into_iter()
            .map(|(first, count)| {
                let logits = self.product(&normed.f_narrow(0, first, count)?)?;
                let targets = batch.targets.f_narrow(0, first, count)?.f_unsqueeze(-1)?;
                let normaliser = logits.f_logsumexp([-1_i64].as_slice(), true)?;
                let of_targets = logits.f_gather(-1, &targets, false)?;
                Ok(of_targets.f_sub(&normaliser)?.f_squeeze_dim(-1)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    fn product(&self, normed: &Tensor) -> Result<Tensor> {
        Ok(linear(normed, &self.weight.value, None)?.f_to_kind(Kind::Float)?)
    }

    /// First and count of the labelled positions of each chunk.
    fn chunks(&self, batch: &Packed) -> Result<Vec<(i64, i64)>> {
        let (vocabulary, _) = self.weight.value.size2()?;
        let most = (LOGIT_BYTES / (4 * vocabulary)).max(1);
        let all = batch.num_predicted() as i64;
        Ok((0..all).step_by(most as usize).map(|first| (first, most.min(all - first))).collect())
    }
}
