//! Eight numbers at once: what a quantiser does to the parts of a block it does to eight of them side by side.
//!
//! The sums of each part run in ggml's order, so the bytes are ggml's; the compiler makes vectors of the eight.

use std::array::from_fn;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// A number for each of eight parts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Lanes(pub(super) [f32; 8]);

/// Eight parts of `SIZE` consecutive values each, as the first value of all, the second of all and so on.
pub(super) fn columns<const SIZE: usize>(values: &[f32]) -> [Lanes; SIZE] {
    from_fn(|at| Lanes(from_fn(|part| values[part * SIZE + at])))
}

impl Lanes {
    /// The same number for each part.
    pub(super) fn all(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    pub(super) fn map(self, of: impl Fn(f32) -> f32) -> Self {
        Self(from_fn(|part| of(self.0[part])))
    }

    #[inline(always)]
    fn with(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        Self(from_fn(|part| of(self.0[part], other.0[part])))
    }

    pub(super) fn min(self, other: Self) -> Self {
        self.with(other, |x, y| if y < x { y } else { x })
    }

    pub(super) fn max(self, other: Self) -> Self {
        self.with(other, |x, y| if y > x { y } else { x })
    }

    /// `other` where it is `better`.
    pub(super) fn replace(&mut self, better: [bool; 8], other: Self) {
        *self = Self(from_fn(|part| if better[part] { other.0[part] } else { self.0[part] }));
    }
}

impl Add for Lanes {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |x, y| x + y)
    }
}

impl AddAssign for Lanes {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Lanes {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |x, y| x - y)
    }
}

impl Mul for Lanes {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(other, |x, y| x * y)
    }
}

impl Div for Lanes {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.with(other, |x, y| x / y)
    }
}
