//! What tells a model from another.

use checkpoint::{Dtype, sha256_bytes};
use tch::Kind;

use super::Model;
use crate::Result;
use crate::bridge::bytes;

/// Values of a weight that tell it from another: any training in full and any merge changes some of them.
const LOOKED_AT: i64 = 4096;

impl Model {
    /// Of every weight its first values, and of what trains the first so many.
    pub(crate) fn identity(&self, of_trained: i64) -> Result<String> {
        let mut all = Vec::new();
        let weights = self.named_weights().into_iter().map(|named| (named, LOOKED_AT));
        let trained = self.trained().into_iter().map(|named| (named, of_trained));
        for ((name, parameter), most) in weights.chain(trained) {
            let flat = parameter.value.f_reshape(-1)?;
            let flat = flat.f_narrow(0, 0, most.min(flat.numel() as i64))?;
            // A type that every device has the weights in.
            let digest = sha256_bytes(&bytes(&flat, Dtype::BF16)?);
            all.push(format!("{name} {:?} {digest}\n", parameter.value.size()));
        }
        for (name, weight) in self.rounded_weights() {
            let (rows, columns) = weight.factor().size()?;
            let few = (LOOKED_AT / columns.max(1)).clamp(1, rows.max(1));
            let digest =
                sha256_bytes(&bytes(&weight.factor().rows(0, few, Kind::Float)?, Dtype::BF16)?);
            all.push(format!("{name} {rows} {columns} {digest}\n"));
        }
        Ok(sha256_bytes(all.concat().as_bytes()))
    }

    /// As it is before it is trained.
    pub(crate) fn identity_of_weights(&self) -> Result<String> {
        self.identity(LOOKED_AT)
    }
}
