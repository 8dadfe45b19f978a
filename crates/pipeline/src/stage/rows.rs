//! Rows as tokens, encoded once for all stages that read them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use checkpoint::{ModelConfig, sha256_file};
use dataset::{Encoded, Encoder};

use super::StageContext;
use crate::{HeldOut, PipelineError, Result};

/// How many sets of rows are kept: those to train on and those held out, of two seeds.
const KEPT: usize = 4;

/// The last rows that were made tokens, and what made them. A file is read once: what becomes of it afterwards is not
/// seen.
#[derive(Debug, Default)]
pub struct EncodedRows {
    encoder: RefCell<Option<(Digests, Rc<Encoder>)>>,
    /// The oldest first.
    rows: RefCell<Vec<(Recipe, Arc<Encoded>)>>,
}

/// The files that a tokenizer and its chat templates are read from, and what is in them: a pruned model has the same
/// elsewhere.
type Digests = Vec<(PathBuf, String)>;

/// Which of a data set's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Training,
    HeldOut,
}

/// What rows as tokens depend on.
#[derive(Debug, PartialEq)]
struct Recipe {
    data: PathBuf,
    ignored: Vec<String>,
    held_out: Option<(HeldOut, u64)>,
    part: Part,
    max_tokens: usize,
    encoder: Digests,
}

impl EncodedRows {
    fn encoder(&self, model: &Path) -> Result<(Digests, Rc<Encoder>)> {
        let digests = digests(model)?;
        let mut kept = self.encoder.borrow_mut();
        if let Some((of, encoder)) = &*kept
            && *of == digests
        {
            return Ok((digests, Rc::clone(encoder)));
        }
        let encoder = Rc::new(read_encoder(model)?);
        *kept = Some((digests.clone(), Rc::clone(&encoder)));
        Ok((digests, encoder))
    }

    fn find(&self, recipe: &Recipe) -> Option<Arc<Encoded>> {
        let rows = self.rows.borrow();
        rows.iter().find(|(of, _)| of == recipe).map(|(_, found)| Arc::clone(found))
    }

    fn keep(&self, recipe: Recipe, encoded: &Arc<Encoded>) {
        let mut rows = self.rows.borrow_mut();
        if rows.len() == KEPT {
            rows.remove(0);
        }
        rows.push((recipe, Arc::clone(encoded)));
    }
}

impl StageContext<'_> {
    /// The model's tokenizer and chat template.
    pub(super) fn encoder(&self) -> Result<Rc<Encoder>> {
        Ok(self.encoded.encoder(self.model)?.1)
    }

    /// The rows to train on, as tokens.
    pub(super) fn training_examples(&self, max_tokens: usize) -> Result<Arc<Encoded>> {
        self.examples(Part::Training, max_tokens)
    }

    /// The rows held out, as tokens; `None` if none are.
    pub(super) fn held_out_examples(&self, max_tokens: usize) -> Result<Option<Arc<Encoded>>> {
        self.held_out.map(|_| self.examples(Part::HeldOut, max_tokens)).transpose()
    }

    fn examples(&self, part: Part, max_tokens: usize) -> Result<Arc<Encoded>> {
        let (digests, encoder) = self.encoded.encoder(self.model)?;
        let recipe = Recipe {
            data: self.data.to_owned(),
            ignored: self.ignored.to_owned(),
            held_out: self.held_out.map(|share| (share, self.seed)),
            part,
            max_tokens,
            encoder: digests,
        };
        if let Some(found) = self.encoded.find(&recipe) {
            return Ok(found);
        }
        let (training, held_out) = self.rows()?;
        let rows = if part == Part::Training { training } else { held_out };
        let made = Arc::new(encoder.examples(&rows, max_tokens)?);
        self.encoded.keep(recipe, &made);
        Ok(made)
    }
}

fn digests(model: &Path) -> Result<Digests> {
    let files = Encoder::files(model)?;
    let digest = |file: PathBuf| {
        let digest = sha256_file(&file)?;
        let name = file.strip_prefix(model).map(Path::to_owned).unwrap_or(file);
        Ok((name, digest))
    };
    files.into_iter().map(digest).collect()
}

/// Reads a model folder's tokenizer and chat template.
///
/// # Errors
///
/// If either cannot be used, or the tokenizer has ids that the model's embedding does not have. An
/// embedding with more is padded, and fine.
pub fn read_encoder(model: &Path) -> Result<Encoder> {
    let embedding = ModelConfig::read(model)?.vocab_size;
    let encoder = Encoder::read(model)?;
    let tokens = encoder.largest_id() as usize + 1;
    if tokens > embedding {
        let path = model.join("tokenizer.json");
        return Err(PipelineError::Tokenizer { path, tokens, embedding });
    }
    Ok(encoder)
}

#[cfg(test)]
mod tests {
    use ::finetune::{ComputeChoice, DeviceChoice};

    use super::*;
    use crate::ComputeSettings;

    /// What is kept is what was read, by whatever the rows depend on; a pruned model elsewhere takes part.
    #[test]
    fn rows_are_encoded_once() {
        let folder = testkit::temporary_folder();
        let [model, elsewhere] = ["model", "pruned"].map(|name| folder.path().join(name));
        testkit::tiny_checkpoint(&model);
        testkit::copy_folder(&model, &elsewhere);
        let data = folder.path().join("rows.jsonl");
        fs_err::write(&data, testkit::tiny_rows(0..20)).unwrap();
        let compute = ComputeSettings {
            device: DeviceChoice::Cpu,
            dtype: ComputeChoice::Auto,
            memory: None,
            offload: false,
            in_4bit: false,
            embedding_in_8bit: false,
        };
        let encoded = EncodedRows::default();
        let context = StageContext {
            model: &model,
            data: &data,
            ignored: &[],
            held_out: Some(HeldOut::Rows(5)),
            compute: &compute,
            seed: 1,
            encoded: &encoded,
        };
        let first = context.training_examples(64).unwrap();
        let held_out = context.held_out_examples(64).unwrap().unwrap();
        assert_eq!((first.counts.rows, held_out.counts.rows), (15, 5));
        let same = StageContext { model: &elsewhere, ..context };
        assert!(Arc::ptr_eq(&first, &same.training_examples(64).unwrap()));
        assert!(Rc::ptr_eq(&context.encoder().unwrap(), &same.encoder().unwrap()));
        for other in [
            StageContext { seed: 2, ..context },
            StageContext { held_out: Some(HeldOut::Rows(4)), ..context },
            StageContext { held_out: None, ..context },
        ] {
            assert_ne!(first, other.training_examples(64).unwrap());
        }
        assert!(!Arc::ptr_eq(&first, &context.training_examples(63).unwrap()));
        // The oldest has gone by now, and is made again.
        let again = context.training_examples(64).unwrap();
        assert!(again == first && !Arc::ptr_eq(&again, &first));
        let none = StageContext { held_out: None, ..context };
        assert!(none.held_out_examples(64).unwrap().is_none());
    }
}
