//! What is done to retained weights, a file a repair.

mod drop;
mod laco;
mod linear_map;
mod reconstruct;
mod same_sign;
mod scale;
mod weighted;

use std::path::PathBuf;

use checkpoint::{
    Checkpoint, LayerTensor, LinearView, ModuleName, Outline, Record, TensorView, widen,
};
use selection::{Plan, Repair};

use crate::{RepairError, Result};

/// Opens what a plan's repair reads. The list of repairs.
///
/// # Errors
///
/// If something is missing, or does not fit the model or the plan.
pub(crate) fn open(inputs: &Inputs<'_>) -> Result<Box<dyn Opened>> {
    match inputs.plan.repair() {
        Repair::Drop => drop::open(inputs),
        Repair::Laco => laco::open(inputs),
        Repair::SameSign => same_sign::open(inputs),
        Repair::Reconstruct => reconstruct::open(inputs),
        Repair::Scale => scale::open(inputs),
        Repair::Weighted => weighted::open(inputs),
        Repair::LinearMap => linear_map::open(inputs),
    }
}

/// What a repair may open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) plan: &'a Plan,
    /// The dense model.
    pub(crate) source: &'a Checkpoint,
    /// Folder of the gradient record.
    pub(crate) record: Option<&'a PathBuf>,
    /// Folder of what was fitted.
    pub(crate) fitted: Option<&'a PathBuf>,
}

/// A repair that has opened and checked what it reads.
pub(crate) trait Opened: Sync {
    /// Its changes of a model's weights.
    fn edits<'a>(&'a self, source: &'a Checkpoint, plan: &'a Plan) -> Box<dyn Edits + 'a>;

    /// Refuses what was changed since it was opened.
    fn require_unchanged(&self) -> Result<()>;
}

/// Changes of the linear maps of retained layers, computed part by part.
pub(crate) trait Edits: Send {
    /// Whether a retained tensor changes.
    fn change(&self, place: &Place) -> bool;

    /// Hands on the bytes of a tensor that changes, part by part, each with its offset.
    ///
    /// # Errors
    ///
    /// If what it is changed by cannot be used, or `take` fails.
    fn write(
        &mut self,
        tensor: &TensorView<'_>,
        place: &Place,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()>;
}

/// Which tensor of a linear map this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// In the dense model.
    pub(crate) layer: usize,
    pub(crate) module: ModuleName,
    pub(crate) part: Part,
}

/// A half of a linear map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Weight,
    Bias,
}

impl Place {
    /// `None` for what is of no linear map.
    pub(crate) fn of(outline: &Outline, view: &TensorView<'_>) -> Option<Self> {
        let LayerTensor { layer, rest } = outline.layer_tensor(view.name())?;
        let (name, part) = match rest.strip_suffix(".bias") {
            Some(name) => (name, Part::Bias),
            None => (rest.strip_suffix(".weight")?, Part::Weight),
        };
        // Of a norm, a weight and a bias are vectors; a bias of a norm is never changed.
        let is_linear = part == Part::Bias || view.shape().len() == 2;
        is_linear.then(|| Self { layer, module: name.into(), part })
    }
}

/// The weights of other layers that go into one.
///
/// # Errors
///
/// [`RepairError::Unlike`] if a layer has none of this name and shape, as one with experts beside one without.
pub(crate) fn donors<'a>(
    source: &'a Checkpoint,
    layers: &[usize],
    module: &ModuleName,
    receiver: &TensorView<'_>,
) -> Result<Vec<TensorView<'a>>> {
    let of = |&donor: &usize| {
        let found = source.linear(donor, module).map(|LinearView { view, .. }| view);
        let alike = found.ok().filter(|view| view.shape() == receiver.shape());
        alike.ok_or_else(|| RepairError::Unlike { donor, receiver: receiver.name().to_owned() })
    };
    layers.iter().map(of).collect()
}

/// Elements of a weight that are worked on at a time.
pub(crate) const BLOCK: usize = 1 << 21;

/// Some elements of a weight as f32.
pub(crate) fn read_f32(view: &TensorView<'_>, first: usize, count: usize) -> Result<Vec<f32>> {
    let dtype = view.dtype()?;
    let mut bytes = vec![0; count * dtype.size()];
    view.reader()?.read((first * dtype.size()) as u64, &mut bytes)?;
    Ok(widen(&bytes, dtype))
}

/// What a repair that goes by the gradient record makes of a model's weights.
type EditsByRecord = for<'a> fn(&'a Checkpoint, &'a Record, &'a Plan) -> Box<dyn Edits + 'a>;

/// A repair that goes by the gradient record.
struct ByRecord {
    record: Record,
    edits: EditsByRecord,
}

impl ByRecord {
    fn open(inputs: &Inputs<'_>, edits: EditsByRecord) -> Result<Box<dyn Opened>> {
        Ok(Box::new(Self { record: open_record(inputs)?, edits }))
    }
}

impl Opened for ByRecord {
    fn edits<'a>(&'a self, source: &'a Checkpoint, plan: &'a Plan) -> Box<dyn Edits + 'a> {
        (self.edits)(source, &self.record, plan)
    }

    fn require_unchanged(&self) -> Result<()> {
        Ok(self.record.require_unchanged()?)
    }
}

/// Whether a weight is to be merged by the record: all that the engine's families have, and what else has gradients, as a
/// router's weight has not.
fn is_wanted(record: &Record, Place { layer, module, .. }: &Place) -> bool {
    module.known().is_some() || record.shape(*layer, module).is_some()
}

/// Opens the gradient record.
fn open_record(inputs: &Inputs<'_>) -> Result<Record> {
    let record = Record::open(inputs.record.ok_or(RepairError::NoRecord)?)?;
    let fail = |reason: String| {
        let path = record.folder().to_owned();
        Err(RepairError::OtherModel { path, what: "record", reason })
    };
    let source = inputs.source;
    if record.num_layers() != source.num_layers() {
        return fail(format!(
            "it has {} layers, the model {}",
            record.num_layers(),
            source.num_layers()
        ));
    }
    for (layer, module) in record.pairs() {
        let Ok(LinearView { shape: expected, .. }) = source.linear(layer, &module) else {
            return fail(format!("layer {layer} {module} is in it and not in the model"));
        };
        if let Some(found) = record.shape(layer, &module)
            && found != expected
        {
            return fail(format!(
                "layer {layer} {module} is {found:?} there and {expected:?} in the model"
            ));
        }
    }
    Ok(record)
}
