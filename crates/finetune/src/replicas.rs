//! One training by several processes: each takes a share of every step's rows, and the gradients are summed.

use std::cell::Cell;
use std::rc::Rc;

use collective::{Backend, CollectiveError, Group, Nccl, Sum};
use dataset::Example;
use tch::{Device, Kind, Tensor, no_grad_guard};

use crate::bridge::values;
use crate::distil::Scales;
use crate::observer::Observer;
use crate::optimizer::Slot;
use crate::train::{Gathered, Passes, backward_part};
use crate::{DistilTerms, FinetuneError, Model, Result, stop};

/// The processes that train the same model on the same rows, and what they tell each other.
#[derive(Debug)]
pub(crate) struct Replicas {
    group: Rc<Group>,
    /// What sums gradients that are on GPUs, where it can.
    nccl: Option<Nccl>,
    /// Gradients that travel together, in the order in which the backward pass is done with them: layer by layer from the
    /// top, then all else.
    parcels: Vec<Vec<Tensor>>,
    /// Whether any process was asked to stop before the last step.
    stops: Cell<bool>,
    /// Whether the process that writes finds it time to save, and whether all know it does.
    wishes_to_save: Cell<bool>,
    saves: Cell<bool>,
}

impl Replicas {
    /// # Errors
    ///
    /// If a process is gone, or NCCL is asked for and cannot be used.
    pub(crate) fn new(
        group: Rc<Group>,
        slots: &[Slot],
        num_layers: usize,
        device: Device,
    ) -> Result<Self> {
        let nccl = nccl_of(&group, device)?;
        let mut parcels: Vec<Vec<Tensor>> = (0..=num_layers).map(|_| Vec::new()).collect();
        for slot in slots {
            let place = layer_of(&slot.name).map_or(num_layers, |layer| num_layers - 1 - layer);
            parcels[place].push(slot.gradient.shallow_clone());
        }
        let [stops, wishes_to_save, saves] = [false; 3].map(Cell::new);
        Ok(Self { group, nccl, parcels, stops, wishes_to_save, saves })
    }

    /// The processes.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Whether this process writes what the training leaves.
    pub(crate) fn writes(&self) -> bool {
        self.group.rank() == 0
    }

    /// Whether any process was asked to stop before the last step: all stop after the same one.
    pub(crate) fn stops(&self) -> bool {
        self.stops.get()
    }

    /// Says before a step whether it is time to save; each process has a clock of its own, and the writing one's counts.
    pub(crate) fn wish_to_save(&self, due: bool) {
        self.wishes_to_save.set(due && self.writes());
    }

    /// Whether all save after the last step.
    pub(crate) fn saves(&self) -> bool {
        self.saves.get()
    }

    /// Checks that all processes train alike and are at the same step; `recipe` is the digest of how they train.
    ///
    /// # Errors
    ///
    /// [`FinetuneError::Settings`] if they do not, in those of them that are not the mean of all.
    pub(crate) fn require_alike(&self, recipe: &str, step: usize) -> Result<()> {
        // So many digits that sums of a few thousand are exact.
        let digits = u64::from_str_radix(recipe.get(..10).unwrap_or("0"), 16).unwrap_or(0);
        let own = [digits as f64, step as f64];
        let sums = self.group.sum(own.to_vec())?;
        let is_alike = |at: usize| sums[at] == own[at] * self.group.size() as f64;
        let what = match (is_alike(0), is_alike(1)) {
            (true, true) => return Ok(()),
            (false, _) => {
                "the processes do not train alike: give all of them the same model, rows, settings and type"
            }
            _ => {
                "the processes found the training at different steps: let all see the same folder, or remove what was saved"
            }
        };
        Err(FinetuneError::Settings(what.into()))
    }

    /// As [`backward`](crate::train::backward), of all rows, of which this process takes every so-manieth by length; the
    /// gradients of a layer are on their way while those of the layers below are computed.
    pub(crate) fn backward(
        &self,
        model: &Model,
        examples: &[&Example],
        passes: Passes<'_>,
    ) -> Result<Gathered> {
        let mut rows = examples.to_vec();
        rows.sort_by_key(|row| std::cmp::Reverse(row.tokens.len()));
        let rows = rows.into_iter().skip(self.group.rank()).step_by(self.group.size());
        let rows: Vec<&Example> = rows.collect();
        let count = rows.len().div_ceil(passes.batch_rows.max(1));
        let sums = self.parcels.iter().map(|_| None).collect();
        let seen = vec![0; self.parcels.len()];
        let mut exchange = Exchange { of: self, passes: count, seen, sums };
        let scales = Scales::of(examples);
        let part = backward_part(model, &rows, scales, passes, &mut exchange)?;
        exchange.finish(part)
    }
}

/// What sums gradients between GPUs, if all processes have one and may use it.
fn nccl_of(group: &Group, device: Device) -> Result<Option<Nccl>> {
    let backend = group.backend();
    if backend == Backend::Nccl && device == Device::Cpu {
        return Err(CollectiveError::NoNccl("it sums between GPUs alone".into()).into());
    }
    let wants = device != Device::Cpu && backend != Backend::Gloo;
    if group.sum(vec![f32::from(u8::from(wants))])?[0] < group.size() as f32 {
        // Not all processes want it.
        return match backend {
            Backend::Nccl => Err(CollectiveError::NoNcclElsewhere.into()),
            Backend::Auto | Backend::Gloo => Ok(None),
        };
    }
    match Nccl::meet(group, device, Nccl::LIBRARY) {
        Ok(nccl) => Ok(Some(nccl)),
        Err(CollectiveError::NoNccl(why)) if backend == Backend::Auto => {
            tracing::warn!(
                "gradients are summed through the computer's memory, by Gloo: NCCL cannot be used ({why})"
            );
            Ok(None)
        }
        Err(CollectiveError::NoNcclElsewhere) if backend == Backend::Auto => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The layer that a trained tensor is in.
fn layer_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("model.").unwrap_or(name).strip_prefix("layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// The sums of one step.
struct Exchange<'a> {
    of: &'a Replicas,
    /// Passes that this process makes.
    passes: usize,
    /// How many of these were behind each parcel's layer.
    seen: Vec<usize>,
    sums: Vec<Option<Parcel>>,
}

/// Gradients on their way.
enum Parcel {
    /// By Gloo.
    Host(Sum<f32>),
    /// By NCCL, in place.
    Device(Tensor),
}

impl Observer for Exchange<'_> {
    fn gathered(&mut self, layer: usize) -> Result<()> {
        let Some(place) = (self.seen.len() - 1).checked_sub(layer + 1) else { return Ok(()) };
        self.seen[place] += 1;
        if self.seen[place] == self.passes {
            self.start(place)?;
        }
        Ok(())
    }
}

impl Exchange<'_> {
    fn start(&mut self, place: usize) -> Result<()> {
        let gradients = &self.of.parcels[place];
        if gradients.is_empty() || self.sums[place].is_some() {
            return Ok(());
        }
        let _guard = no_grad_guard();
        let flat = gradients.iter().map(|x| x.f_view(-1)).collect::<Result<Vec<_>, _>>()?;
        let flat = Tensor::f_cat(&flat, 0)?;
        self.sums[place] = Some(match &self.of.nccl {
            Some(nccl) => {
                let flat = flat.f_to_kind(Kind::Float)?;
                nccl.start_sum(&flat)?;
                Parcel::Device(flat)
            }
            None => Parcel::Host(self.of.group.start_sum(values(&flat)?)?),
        });
        Ok(())
    }

    /// Waits for all sums, and puts them in the gradients' place.
    fn finish(mut self, part: Gathered) -> Result<Gathered> {
        // What no layer announced: all of it, where there were more processes than rows.
        (0..self.sums.len()).try_for_each(|place| self.start(place))?;
        let Gathered { loss, distil, tokens } = part;
        let [stops, saves] =
            [stop::is_asked(), self.of.wishes_to_save.get()].map(|flag| f64::from(u8::from(flag)));
        let mut own = vec![loss, tokens as f64, stops, saves];
        if let Some(DistilTerms { divergence, hidden, objective, .. }) = distil {
            own.extend([divergence, hidden, objective]);
        }
        // All processes have begun all sums once this is back.
        let figures = self.of.group.sum(own)?;
        if let Some(nccl) = &self.of.nccl {
            nccl.wait()?;
        }
        let _guard = no_grad_guard();
        for (gradients, sum) in self.of.parcels.iter().zip(self.sums) {
            let Some(sum) = sum else { continue };
            let flat = match sum {
                Parcel::Host(sum) => Tensor::f_from_slice(&sum.wait()?)?,
                Parcel::Device(flat) => flat,
            };
            let mut first = 0;
            for gradient in gradients {
                let count = gradient.numel() as i64;
                let own = flat.f_narrow(0, first, count)?.f_view_as(gradient)?;
                gradient.shallow_clone().f_copy_(&own)?;
                first += count;
            }
        }
        self.of.stops.set(figures[2] > 0.0);
        self.of.saves.set(figures[3] > 0.0);
        // All of them are parts of means over all rows.
        let distil = match (distil, figures.get(4..)) {
            (Some(terms), Some(&[divergence, hidden, objective])) => {
                Some(DistilTerms { divergence, hidden, objective, ..terms })
            }
            _ => None,
        };
        Ok(Gathered { loss: figures[0], distil, tokens: figures[1] as usize })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::decoder::Keep;
    use crate::observer::Nobody;
    use crate::optimizer::AdamW;
    use crate::train::Method;
    use crate::train::tests::{constants, golden_batch, golden_model, lora};

    /// A model whose adapters' gradients are gathered, and these.
    fn model() -> (Model, AdamW) {
        let mut model = golden_model("tiny_qwen2");
        let Method::Lora(adapters) = lora() else { panic!("adapters") };
        model.add_lora(&adapters, 0).unwrap();
        let adamw = AdamW::new(model.trained(), constants()).unwrap();
        (model, adamw)
    }

    /// What NCCL's part would sum, with a library that stands in for it: the loss and every gradient of both members are those
    /// of one process.
    #[test]
    fn sums_in_place_are_those_of_one_process() {
        let folder = testkit::temporary_folder();
        let library = testkit::nccl_stand_in(folder.path()).display().to_string();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let batch = || golden_batch("tiny_qwen2", 1);
        let gradients = |adamw: &AdamW| -> Vec<Vec<f32>> {
            adamw.slots.iter().map(|slot| values(&slot.gradient).unwrap()).collect()
        };
        let passes = || Passes { batch_rows: 1, keep: Keep::Activations, lesson: None };
        let member = move |rank: usize, library: &str| {
            let (model, adamw) = model();
            let group = Rc::new(Group::meet("127.0.0.1", port, rank, 2).unwrap());
            let nccl = Nccl::meet(&group, Device::Cpu, library).unwrap();
            let layers = model.config().num_layers;
            let mut replicas = Replicas::new(group, &adamw.slots, layers, Device::Cpu).unwrap();
            replicas.nccl = Some(nccl);
            let batch = batch();
            let rows: Vec<&Example> = batch.iter().collect();
            let gathered = replicas.backward(&model, &rows, passes()).unwrap();
            (gathered.loss, gradients(&adamw))
        };
        let members = [0, 1].map(|rank| {
            let library = library.clone();
            thread::spawn(move || member(rank, &library))
        });
        let found = members.map(|member| member.join().unwrap());
        let (model, adamw) = model();
        let batch = batch();
        let rows: Vec<&Example> = batch.iter().collect();
        let expected = crate::train::backward(&model, &rows, passes(), &mut Nobody).unwrap();
        for (loss, own) in found {
            assert!((loss / expected.loss - 1.0).abs() < 1e-6, "{loss} {}", expected.loss);
            for (own, expected) in own.iter().zip(gradients(&adamw)) {
                assert!(testkit::relative_deviation(own, &expected) < 1e-5);
            }
        }
        assert!(gradients(&adamw).iter().flatten().any(|&value| value != 0.0));
    }
}
