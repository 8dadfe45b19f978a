//! Why gradients cannot be scored.

/// Why gradients cannot be scored. Which file and weight they are of, the caller adds.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum ScoreError {
    #[error("the gradient of B has rank {of_b}, that of A has rank {of_a}")]
    Rank { of_b: usize, of_a: usize },
    #[error(
        "a gradient is not finite ({found}); the loss overflowed there, lower the learning rate or \
         compute in f32"
    )]
    NotFinite { found: f64 },
    #[error(
        "the gradients are too large for their squares to be summed in single precision \
         ({found:.1e}); were they clipped?"
    )]
    TooLarge { found: f64 },
    #[error(
        "the gradients are too small for their squares to be told apart in single precision \
         ({found:.1e} on average); collect with a higher learning rate"
    )]
    TooSmall { found: f64 },
}
