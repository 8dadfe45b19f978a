//! The head and the loss, on labelled positions alone and a few of them at a time.

use tch::{Kind, Tensor};

use crate::Result;
use crate::loss::{Chunk, TokenLoss, TokenSums};
use crate::norm::Norm;
use crate::pack::Packed;
use crate::product::{add_product, linear};
use crate::weight::Weight;

/// Bytes of the f32 logits of one chunk.
pub(crate) const LOGIT_BYTES: i64 = 64 << 20;

/// The final norm and the head's weight, `[vocabulary, hidden]`.
pub(crate) struct Head<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) weight: &'a Weight,
    /// What logits are multiplied by.
    pub(crate) scale: f64,
    /// `c`, where logits `z` are softened to `c · tanh(z / c)` (Gemma 2).
    pub(crate) cap: Option<f64>,
}

impl Head<'_> {
    /// Logits of given hidden states, `[m, vocabulary]`, f32.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.product(&self.norm.forward(hidden)?)
    }

    /// What the labelled tokens lose, and the gradient of `loss` by the last layer's output,
    /// `[n, hidden]`; gathers the gradients of what trains here.
    pub(crate) fn loss(
        &self,
        hidden: &Tensor,
        batch: &Packed,
        loss: &dyn TokenLoss,
    ) -> Result<(TokenSums, Tensor)> {
        let kind = hidden.f_kind()?;
        let predicting = hidden.f_index_select(0, &batch.predict)?;
        let normed = self.norm.forward(&predicting)?;
        let (mut sums, mut gradients) = (TokenSums::default(), Vec::new());
        for (first, count) in self.chunks(batch)? {
            let targets = batch.targets.f_narrow(0, first, count)?.f_unsqueeze(-1)?;
            let own = normed.f_narrow(0, first, count)?;
            let logits = self.product(&own)?;
            let slope = self.slope(&logits)?;
            let found = loss.of(logits, &Chunk { first, targets })?;
            sums += found.sums;
            let mut of_logits = found.of_logits;
            if let Some(slope) = slope {
                of_logits = of_logits.f_mul(&slope)?;
            }
            if self.scale != 1.0 {
                of_logits = of_logits.f_mul_scalar(self.scale)?;
            }
            let of_logits = of_logits.f_to_kind(kind)?;
            self.weight
                .gather(|| Ok(of_logits.f_numpy_t()?.f_mm(&own)?.f_to_kind(Kind::Float)?))?;
            gradients.push(add_product(None, &of_logits, self.weight.factor())?);
        }
        let gradient = self.norm.backward(&predicting, &Tensor::f_cat(&gradients, 0)?)?;
        let mut out = hidden.f_zeros_like()?;
        Ok((sums, out.f_index_add_(0, &batch.predict, &gradient)?))
    }

    /// The log-likelihood of each labelled token, `[m]`, f32.
    pub(crate) fn log_likelihoods(&self, hidden: &Tensor, batch: &Packed) -> Result<Tensor> {
        let mut first = 0;
        let parts = self.each_chunk(hidden, batch, |logits| {
            let (count, _) = logits.size2()?;
            let targets = batch.targets.f_narrow(0, first, count)?.f_unsqueeze(-1)?;
            first += count;
            let normaliser = logits.f_logsumexp([-1_i64].as_slice(), true)?;
            let of_targets = logits.f_gather(-1, &targets, false)?;
            Ok(of_targets.f_sub(&normaliser)?.f_squeeze_dim(-1)?)
        })?;
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    /// What `of` makes of the labelled positions' logits, `[n, vocabulary]` in f32, a chunk at a time in order.
    pub(crate) fn each_chunk<T>(
        &self,
        hidden: &Tensor,
        batch: &Packed,
        mut of: impl FnMut(Tensor) -> Result<T>,
    ) -> Result<Vec<T>> {
        let normed = self.norm.forward(&hidden.f_index_select(0, &batch.predict)?)?;
        let chunks = self.chunks(batch)?.into_iter();
        chunks.map(|(first, count)| of(self.product(&normed.f_narrow(0, first, count)?)?)).collect()
    }

    fn product(&self, normed: &Tensor) -> Result<Tensor> {
        let mut logits = linear(normed, self.weight.factor(), None)?.f_to_kind(Kind::Float)?;
        if self.scale != 1.0 {
            logits = logits.f_mul_scalar_(self.scale)?;
        }
        if let Some(cap) = self.cap {
            logits = logits.f_div_scalar_(cap)?.f_tanh()?.f_mul_scalar(cap)?;
        }
        Ok(logits)
    }

    /// By how much capped logits grow with what they were before, `1 − (z / c)²`; `None` if they are not capped.
    fn slope(&self, logits: &Tensor) -> Result<Option<Tensor>> {
        let Some(cap) = self.cap else { return Ok(None) };
        let mut soft = logits.f_div_scalar(cap)?;
        Ok(Some(soft.f_square_()?.f_neg_()?.f_add_scalar_(1.0)?))
    }

    /// First and count of the labelled positions of each chunk.
    fn chunks(&self, batch: &Packed) -> Result<Vec<(i64, i64)>> {
        let (vocabulary, _) = self.weight.factor().size()?;
        let most = (LOGIT_BYTES / (4 * vocabulary)).max(1);
        let all = batch.num_predicted() as i64;
        Ok((0..all).step_by(most as usize).map(|first| (first, most.min(all - first))).collect())
    }
}
