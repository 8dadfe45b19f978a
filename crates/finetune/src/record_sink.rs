//! Gradients to a record on disk, written and hashed while the next step computes.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use checkpoint::{
    CheckpointError, DataSource, Dtype, LoraSettings as RecordedLora, Manifest, ModelSource,
    RecordWriter, StepReport,
};
use evidence::{HIDDEN, SENSITIVITY};

use crate::{Collected, FinetuneError, GradientSink, Gradients, Method, Result, TrainSettings};

/// Writes gradients as a record on disk.
#[derive(Debug)]
pub struct RecordSink {
    /// Steps that wait to be written, one at most; `None` once no more come.
    steps: Option<SyncSender<(StepReport, Arc<Gradients>)>>,
    /// Ends early with the error if the disk refuses.
    writing: Option<JoinHandle<Result<RecordWriter, CheckpointError>>>,
}

impl RecordSink {
    /// Begins a record at `target`.
    ///
    /// # Errors
    ///
    /// If `target` exists or its folder cannot be made.
    pub fn create(target: &Path, dtype: Dtype) -> Result<Self> {
        let mut writer = RecordWriter::create(target, dtype)?;
        let (steps, waiting) = sync_channel::<(StepReport, Arc<Gradients>)>(1);
        let write = move || {
            for (report, gradients) in waiting {
                writer.step(report, &gradients)?;
            }
            Ok(writer)
        };
        Ok(Self { steps: Some(steps), writing: Some(std::thread::spawn(write)) })
    }

    /// Completes the record; before this nothing stands under its name.
    ///
    /// # Errors
    ///
    /// If the settings are not LoRA or the disk refuses.
    pub fn finish(
        mut self,
        num_layers: usize,
        train: &TrainSettings,
        sources: (ModelSource, DataSource),
        found: &Collected,
    ) -> Result<Manifest> {
        let Method::Lora(lora) = &train.method else {
            return Err(FinetuneError::Settings("gradients are collected from LoRA".into()));
        };
        let lora = RecordedLora {
            rank: lora.rank,
            alpha: lora.alpha,
            targets: lora.targets.iter().map(|module| module.short_name().into()).collect(),
        };
        let writer = self.written()?;
        writer.add(HIDDEN, &found.hidden)?;
        writer.add(SENSITIVITY, &found.sensitivity)?;
        Ok(writer.finish(num_layers, lora, train.seed, sources, Some(&found.activations))?)
    }

    /// Waits until all steps are written.
    fn written(&mut self) -> Result<RecordWriter> {
        self.steps = None;
        let over = || FinetuneError::Settings("the record was ended by an error before".into());
        let writing = self.writing.take().ok_or_else(over)?;
        Ok(writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

impl GradientSink for RecordSink {
    fn step(&mut self, report: StepReport, gradients: &Arc<Gradients>) -> Result<()> {
        let step = (report, Arc::clone(gradients));
        match self.steps.as_ref().map(|steps| steps.send(step)) {
            Some(Ok(())) => Ok(()),
            // The thread has ended, so there is an error to tell.
            _ => self.written().map(|_| ()),
        }
    }
}

impl Drop for RecordSink {
    /// An unfinished record is removed by the thread, which must be waited for.
    fn drop(&mut self) {
        self.steps = None;
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use checkpoint::{Activations, Module, Record, StepGradients};
    use evidence::{Hidden, HiddenMeans, LayerSensitivity, Sensitivity, WeightSensitivity};
    use ndarray::Array2;

    use super::*;
    use crate::train::tests::{lora, settings};

    fn gradients(step: usize) -> Arc<Gradients> {
        let matrix = |rows, columns| Array2::from_elem((rows, columns), step as f32 + 0.5);
        Arc::new(vec![(
            (0, Module::QProj.into()),
            StepGradients { a: matrix(2, 5), b: matrix(3, 2) },
        )])
    }

    #[test]
    fn a_record_is_complete_or_absent() {
        let folder = testkit::temporary_folder();
        let report = StepReport { loss: 1.0, grad_norm: 1.0, learning_rate: 0.1, tokens: 1 };
        for finishes in [false, true] {
            let target = folder.path().join("record");
            let mut sink = RecordSink::create(&target, Dtype::F32).unwrap();
            for step in 0..5 {
                sink.step(report, &gradients(step)).unwrap();
            }
            if !finishes {
                drop(sink);
                assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
                continue;
            }
            let name = String::new;
            let sources = (
                ModelSource { name: name(), config_sha256: name() },
                DataSource { path: name(), sha256: name(), rows: 1 },
            );
            let square = vec![vec![1.0; 2]; 2];
            let hidden = Hidden::new(HiddenMeans {
                rows: 1,
                tokens: 1,
                cosines: square.clone(),
                last_cosines: square,
                cka: vec![0.5],
                relative_step: vec![0.5],
            });
            let activations = Activations::new(1, vec![0.5]);
            let weight = |module| (module, WeightSensitivity::default());
            let modules = Module::SPLIT.map(weight).into();
            let layer = LayerSensitivity { state_gradient: 0.5, modules };
            let found = Collected {
                activations,
                hidden: hidden.clone(),
                sensitivity: Sensitivity::new(1, 1, vec![layer]),
                steps: vec![],
            };
            sink.finish(1, &settings(lora()), sources, &found).unwrap();
            let record = Record::open(&target).unwrap();
            record.verify().unwrap();
            assert_eq!(Hidden::read(&target).unwrap(), Some(hidden));
            assert_eq!(Sensitivity::read(&target).unwrap(), Some(found.sensitivity));
            let pairs: BTreeSet<_> = record.pairs().collect();
            assert_eq!((record.num_steps(), pairs.len()), (5, 1));
            assert_eq!(record.gradients(4, 0, &Module::QProj.into()).unwrap().b[(2, 1)], 4.5);
        }
    }

    #[test]
    fn a_disk_that_refuses_is_told() {
        let folder = testkit::temporary_folder();
        let target = folder.path().join("record");
        let mut sink = RecordSink::create(&target, Dtype::F32).unwrap();
        fs_err::remove_dir_all(folder.path().join(".record.partial")).unwrap();
        let report = StepReport { loss: 1.0, grad_norm: 1.0, learning_rate: 0.1, tokens: 1 };
        let found = (0..9).find_map(|step| sink.step(report, &gradients(step)).err());
        let found = found.expect("it is refused").to_string();
        assert!(found.contains("step-00001.safetensors"), "{found}");
    }
}
