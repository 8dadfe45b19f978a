//! How far a student's states are from a teacher's where layers were cut.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::Result;
use crate::bridge::number;
use crate::loss::{StateLoss, StateTerm};

/// What the student's state behind a layer is held to.
#[derive(Debug)]
pub(super) struct Target {
    /// The teacher's state where the removed run ends, `[later, hidden]`.
    pub(super) state: Tensor,
    /// `a`: by how much the student's stream is smaller there.
    pub(super) smaller: f64,
}

/// The teacher's states where runs of removed layers end, against the student's there:
///
/// ```text
/// H = mean over tokens but the first, and over cuts, of ‖a·x_S − x_T‖² / ‖x_T‖²
/// ∇x_S = β · 2·a·(a·x_S − x_T) / ‖x_T‖² · (1 / tokens·cuts)
/// ```
///
/// with `a` the product of the scales of all cuts up to this one, 1 where cuts have none.
pub(super) struct Boundaries<'a> {
    /// By the student's layer whose output is held to them.
    pub(super) states: &'a BTreeMap<usize, Target>,
    /// Where the tokens stand that are not the first of a row: those have activations hundreds of times as large.
    pub(super) later: &'a Tensor,
    /// One by the number of tokens and cuts.
    pub(super) scale: f64,
    /// `β`.
    pub(super) weight: f64,
}

impl StateLoss for Boundaries<'_> {
    fn of(&self, layer: usize, output: &Tensor) -> Result<Option<StateTerm>> {
        let Some(Target { state: target, smaller }) = self.states.get(&layer) else {
            return Ok(None);
        };
        let target = target.f_to_kind(Kind::Float)?;
        let state = output.f_index_select(0, self.later)?.f_to_kind(Kind::Float)?;
        let state = state.f_mul_scalar(*smaller)?;
        let squares =
            |x: &Tensor| x.f_square()?.f_sum_dim_intlist([-1_i64].as_slice(), true, Kind::Float);
        let size = squares(&target)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        let apart = state.f_sub(&target)?;
        let loss = number(&squares(&apart)?.f_div(&size)?.f_sum(Kind::Double)?)? * self.scale;
        let factor = 2.0 * smaller * self.weight * self.scale;
        let gradient = apart.f_div(&size)?.f_mul_scalar_(factor)?;
        let mut of_output = output.f_zeros_like()?;
        let gradient = gradient.f_to_kind(output.f_kind()?)?;
        let of_output = of_output.f_index_add_(0, self.later, &gradient)?;
        Ok(Some(StateTerm { loss, of_output }))
    }
}
