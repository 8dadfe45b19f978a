//! How far a student's next token is from a teacher's: the likeliest tokens one by one, all others as one.

use tch::{Kind, Tensor};

use super::DistilSettings;
use crate::Result;
use crate::bridge::number;
use crate::loss::{Chunk, ChunkLoss, TokenLoss, cross_entropy};

/// A teacher's likeliest next tokens at `m` labelled positions, at some temperature.
#[derive(Debug)]
pub(super) struct Likeliest {
    /// Which, `[m, k]`.
    tokens: Tensor,
    /// `log p` of these, `[m, k]`, f32.
    log_probabilities: Tensor,
    /// `log p` of all others together, `[m, 1]`, f32; `None` if there are no others.
    others: Option<Tensor>,
}

impl Likeliest {
    /// The `k` likeliest of logits `[m, vocabulary]`, f32.
    pub(super) fn of(logits: &Tensor, k: usize, temperature: f64) -> Result<Self> {
        let (_, vocabulary) = logits.size2()?;
        let all = tempered(logits, temperature)?;
        let k = (k as i64).min(vocabulary);
        let (log_probabilities, tokens) = all.f_topk(k, -1, true, true)?;
        let others = match k < vocabulary {
            true => Some(log_sum(&without(&all, &tokens)?)?),
            false => None,
        };
        Ok(Self { tokens, log_probabilities, others })
    }

    /// Those of several chunks, one after the other.
    pub(super) fn join(parts: &[Self]) -> Result<Self> {
        let join = |of: &dyn Fn(&Self) -> &Tensor| {
            let tensors: Vec<&Tensor> = parts.iter().map(of).collect();
            Tensor::f_cat(&tensors, 0)
        };
        let others: Option<Vec<&Tensor>> = parts.iter().map(|part| part.others.as_ref()).collect();
        let others = match others {
            Some(others) => Some(Tensor::f_cat(&others, 0)?),
            None => None,
        };
        Ok(Self {
            tokens: join(&|part| &part.tokens)?,
            log_probabilities: join(&|part| &part.log_probabilities)?,
            others,
        })
    }

    /// Those of some positions in a row.
    fn narrow(&self, first: i64, count: i64) -> Result<Self> {
        let narrow = |x: &Tensor| x.f_narrow(0, first, count);
        let others = match &self.others {
            Some(others) => Some(narrow(others)?),
            None => None,
        };
        Ok(Self {
            tokens: narrow(&self.tokens)?,
            log_probabilities: narrow(&self.log_probabilities)?,
            others,
        })
    }

    /// The sum over positions of the forward divergence of a student's logits, and its gradient by logits over `T`.
    ///
    /// With `p` the teacher's and `q = softmax(z/T)` the student's probabilities, `R` the tokens beyond the `k`:
    ///
    /// ```text
    /// KL_k = Σ_{i in k} p_i·log(p_i/q_i) + p_R·log(p_R/q_R),   p_R = Σ_{i in R} p_i,  q_R = Σ_{i in R} q_i
    /// ∇(z/T)_i = q_i − p_i  for i in k,   q_i − p_R·q_i/q_R  for i in R
    /// ```
    ///
    /// All in logarithms, so that no small probability is a difference of large ones.
    fn divergence(&self, logits: &Tensor, temperature: f64) -> Result<(f64, Tensor)> {
        let log_q = tempered(logits, temperature)?;
        let Self { tokens, log_probabilities: log_p, others } = self;
        let p = log_p.f_exp()?;
        let sum = |x: &Tensor| -> Result<f64> { number(&x.f_sum(Kind::Double)?) };
        let of_likeliest = log_q.f_gather(-1, tokens, false)?;
        let mut divergence = sum(&log_p.f_sub(&of_likeliest)?.f_mul(&p)?)?;
        let mut gradient = log_q.f_exp()?;
        if let Some(log_p_rest) = others {
            let mut rest = without(&log_q, tokens)?;
            let apart = log_p_rest.f_sub(&log_sum(&rest)?)?;
            divergence += sum(&apart.f_mul(&log_p_rest.f_exp()?)?)?;
            let rest = rest.f_add_(&apart)?.f_exp_()?;
            let _ = gradient.f_sub_(&rest)?;
        }
        let _ = gradient.f_scatter_add_(-1, tokens, &p.f_neg()?)?;
        Ok((divergence, gradient))
    }
}

/// `log softmax(z / T)`.
fn tempered(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    Ok(logits.f_div_scalar(temperature)?.f_log_softmax(-1, Kind::Float)?)
}

/// The same log-probabilities with some tokens ruled out.
fn without(log_probabilities: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    Ok(log_probabilities.f_scatter_value(-1, tokens, f64::NEG_INFINITY)?)
}

/// `log Σ exp` of each row, `[m, 1]`.
fn log_sum(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.f_logsumexp([-1_i64].as_slice(), true)?)
}

/// `(1 − λ)·CE + λ·T²·KL_k` at each labelled token.
pub(super) struct Distilled<'a> {
    /// What the teacher says there; `None` if `λ` is 0.
    pub(super) likeliest: Option<&'a Likeliest>,
    pub(super) settings: &'a DistilSettings,
    /// What sums are multiplied by.
    pub(super) scale: f64,
}

impl TokenLoss for Distilled<'_> {
    fn of(&self, logits: Tensor, chunk: &Chunk) -> Result<ChunkLoss> {
        let DistilSettings { weight, temperature, .. } = *self.settings;
        let taught = match self.likeliest {
            Some(likeliest) => {
                let (count, _) = chunk.targets.size2()?;
                let likeliest = likeliest.narrow(chunk.first, count)?;
                Some(likeliest.divergence(&logits, temperature)?)
            }
            None => None,
        };
        let log_likelihoods = logits.f_log_softmax(-1, Kind::Float)?;
        drop(logits);
        let mut loss = cross_entropy(log_likelihoods, chunk, (1.0 - weight) * self.scale)?;
        if let Some((divergence, mut by_tempered)) = taught {
            loss.sums.divergence = divergence;
            // `T²`, over the `T` that logits are divided by.
            let by_logits = by_tempered.f_mul_scalar_(weight * temperature * self.scale)?;
            let _ = loss.of_logits.f_add_(&by_logits)?;
        }
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::bridge::values;
    use crate::loss::tests::{logits, softmax};

    const TARGETS: [i64; 4] = [2, 8, 0, 5];

    fn chunk(first: i64, targets: &[i64]) -> Chunk {
        Chunk { first, targets: Tensor::from_slice(targets).unsqueeze(-1) }
    }

    fn settings(top_k: usize) -> DistilSettings {
        DistilSettings { weight: 0.3, temperature: 2.5, top_k, hidden: 0.0 }
    }

    /// The divergence by plain loops over probabilities in f64.
    fn expected(teacher: &[Vec<f64>], student: &[Vec<f64>], k: usize, temperature: f64) -> f64 {
        let mut sum = 0.0;
        for (teacher, student) in teacher.iter().zip(student) {
            let (p, q) = (softmax(teacher, temperature), softmax(student, temperature));
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|&i, &j| p[j].total_cmp(&p[i]));
            let (likeliest, rest) = order.split_at(k.min(p.len()));
            sum += likeliest.iter().map(|&i| p[i] * (p[i] / q[i]).ln()).sum::<f64>();
            let bucket = |of: &[f64]| rest.iter().map(|&i| of[i]).sum::<f64>();
            if !rest.is_empty() {
                sum += bucket(&p) * (bucket(&p) / bucket(&q)).ln();
            }
        }
        sum
    }

    /// Loss by plain loops, gradient by libtorch's automatic one and by the slope of the plain loops; with a tail,
    /// with a tail of one token, and without.
    #[test]
    fn divergence_is_what_plain_loops_give() {
        let (of_teacher, teacher) = logits(5, 4, 9);
        let (of_student, student) = logits(6, 4, 9);
        for k in [1, 3, 8, 9, 64] {
            let settings = settings(k);
            let DistilSettings { weight, temperature, .. } = settings;
            let likeliest = Likeliest::of(&teacher, k, temperature).unwrap();
            let loss = Distilled { likeliest: Some(&likeliest), settings: &settings, scale: 0.5 };
            let found = loss.of(student.copy(), &chunk(0, &TARGETS)).unwrap();
            let divergence = expected(&of_teacher, &of_student, k, temperature);
            assert!((found.sums.divergence / divergence - 1.0).abs() < 1e-5, "{k}");

            // The same objective of probabilities alone, in f64, with a graph.
            let wide = student.to_kind(Kind::Double).set_requires_grad(true);
            let q = (&wide / temperature).softmax(-1, Kind::Double);
            let p = (&teacher.to_kind(Kind::Double) / temperature).softmax(-1, Kind::Double);
            let (_, tokens) = p.topk(9.min(k as i64), -1, true, true);
            let (p_k, q_k) = (p.gather(-1, &tokens, false), q.gather(-1, &tokens, false));
            let mut kl = (&p_k * (&p_k / &q_k).log()).sum(Kind::Double);
            if k < 9 {
                let rest = |of: &Tensor, of_k: &Tensor| {
                    let dims = [-1_i64].as_slice();
                    of.sum_dim_intlist(dims, false, Kind::Double)
                        - of_k.sum_dim_intlist(dims, false, Kind::Double)
                };
                let (p_rest, q_rest) = (rest(&p, &p_k), rest(&q, &q_k));
                kl += (&p_rest * (&p_rest / &q_rest).log()).sum(Kind::Double);
            }
            let targets = Tensor::from_slice(&TARGETS).unsqueeze(-1);
            let nll = -wide.log_softmax(-1, Kind::Double).gather(-1, &targets, false);
            let nll = nll.sum(Kind::Double);
            let objective = (&nll * (1.0 - weight) + &kl * (weight * temperature.powi(2))) * 0.5;
            objective.backward();
            let nll = nll.double_value(&[]);
            assert!((found.sums.negative_log_likelihood / nll - 1.0).abs() < 1e-5, "{k}");
            let automatic = values(&wide.grad()).unwrap();
            let of_logits = values(&found.of_logits).unwrap();
            let apart = testkit::relative_deviation(&of_logits, &automatic);
            assert!(apart < 1e-5, "{k}: {apart}");

            // The slope of the divergence's part along one logit.
            let slope = |row: usize, token: usize| {
                let at = |shift: f64| {
                    let mut shifted = of_student.clone();
                    shifted[row][token] += shift;
                    expected(&of_teacher, &shifted, k, temperature)
                };
                (at(1e-5) - at(-1e-5)) / 2e-5
            };
            let (_, gradient) = likeliest.divergence(&student, temperature).unwrap();
            let gradient = values(&gradient).unwrap();
            for (row, token) in [(0, 0), (1, 7), (3, 4)] {
                let found = f64::from(gradient[row * 9 + token]) / temperature;
                let slope = slope(row, token);
                assert!((found - slope).abs() < 1e-5 * slope.abs() + 1e-6, "{k}: {found}, {slope}");
            }
        }
    }

    /// Chunk by chunk as all at once.
    #[test]
    fn chunks_take_their_own_positions() {
        let ((_, teacher), (_, student)) = (logits(5, 4, 9), logits(6, 4, 9));
        let settings = settings(3);
        let parts = [teacher.narrow(0, 0, 3), teacher.narrow(0, 3, 1)];
        let parts = parts.map(|part| Likeliest::of(&part, 3, settings.temperature).unwrap());
        let likeliest = Likeliest::join(&parts).unwrap();
        let loss = Distilled { likeliest: Some(&likeliest), settings: &settings, scale: 1.0 };
        let whole = loss.of(student.copy(), &chunk(0, &TARGETS)).unwrap();
        let (mut gradient, mut divergence) = (Vec::new(), 0.0);
        for (first, count) in [(0, 1), (1, 3)] {
            let own = student.narrow(0, first, count).copy();
            let targets = &TARGETS[first as usize..][..count as usize];
            let part = loss.of(own, &chunk(first, targets)).unwrap();
            divergence += part.sums.divergence;
            gradient.extend(values(&part.of_logits).unwrap());
        }
        assert!((divergence / whole.sums.divergence - 1.0).abs() < 1e-6);
        let whole = values(&whole.of_logits).unwrap();
        assert!(testkit::relative_deviation(&gradient, &whole) < 1e-6);
    }

    /// A student that is sure of what the teacher rules out has a finite loss and gradient.
    #[test]
    fn far_apart_is_finite() {
        let at = (Kind::Float, Device::Cpu);
        let (teacher, student) = (Tensor::zeros([1, 5], at), Tensor::zeros([1, 5], at));
        let _ = teacher.narrow(1, 0, 1).fill_(400.0);
        let _ = student.narrow(1, 4, 1).fill_(400.0);
        let likeliest = Likeliest::of(&teacher, 1, 1.0).unwrap();
        let (divergence, gradient) = likeliest.divergence(&student, 1.0).unwrap();
        assert!((divergence - 400.0).abs() < 1e-3, "{divergence}");
        assert_eq!(values(&gradient).unwrap(), [-1.0, 0.0, 0.0, 0.0, 1.0]);
    }
}
