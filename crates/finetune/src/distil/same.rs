//! Weights that teacher and student have in common, held once.

use std::sync::Arc;

use super::Teacher;
use crate::weight::Weight;
use crate::{Model, Result};

/// Lets the student read the teacher's frozen weights wherever they are equal to its own.
pub(super) fn share_weights(teacher: &Teacher, student: &mut Model) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let mut shared = share(&teacher.model.embedding, &mut student.embedding)?;
    if let (Some(from), Some(to)) = (&teacher.model.head, &mut student.head) {
        shared |= share(from, to)?;
    }
    let layers = teacher.origin.iter().flatten().map(|&layer| &teacher.model.layers[layer]);
    for (from, to) in layers.zip(&mut student.layers) {
        for (module, to) in &mut to.linears {
            if let Some(from) = from.linears.get(module) {
                shared |= share(&from.weight, &mut to.weight)?;
            }
        }
    }
    if shared {
        // Mapped weights must not outlive their mappings.
        let files = student.files.iter().chain(teacher.model.files.iter());
        student.files = files.map(Arc::clone).collect();
    }
    Ok(())
}

fn share(from: &Weight, to: &mut Weight) -> Result<bool> {
    let (Weight::Whole(from), Weight::Whole(to)) = (from, &mut *to) else {
        if from.is_rounded_alike(to)? {
            *to = from.share();
        }
        return Ok(false);
    };
    let (theirs, own) = (&from.value, &to.value);
    let alike = !from.trains()
        && !to.trains()
        && (theirs.f_kind()?, theirs.device()) == (own.f_kind()?, own.device())
        && theirs.size() == own.size()
        && theirs.f_equal(own)?;
    if alike {
        to.value = theirs.shallow_clone();
    }
    Ok(alike)
}
