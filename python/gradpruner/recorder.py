"""Records the first steps' LoRA gradients of any training loop."""

import hashlib
import json
import logging
import math
import os
import pathlib
import shutil

import torch

from . import gradients
from .hidden import HiddenMeter
from .names import Matrix

_log = logging.getLogger("gradpruner")


class RecordError(RuntimeError):
    """Why a training cannot be recorded."""


class Recorder:
    """Writes a gradient record: one file a step, and what the forward passes say of the layers.

    model: the model that trains, with PEFT LoRA on its linear weights; wrapped or not (DDP, FSDP, DeepSpeed, compiled).
    record: the folder to make; it stands under its name only when it is complete.
    steps: how many optimizer steps to record.
    data: the file that is trained on, to be named in the record.

    In a distributed training every process makes one and calls it; the first process writes.
    """

    def __init__(self, model, record, steps=40, data=None):
        if steps < 1:
            raise RecordError("at least one step must be recorded")
        self.target = pathlib.Path(record)
        self._is_writer = gradients.rank() == 0
        if self._is_writer and self.target.exists():
            raise RecordError(f"{self.target} exists already; remove it or choose another name")
        self.steps = steps
        self._model = model
        self._data = data
        self._parameters = _lora_parameters(model)
        self._layers = _layers_of(model, self._parameters)
        self._entries = []
        self._losses = []
        self._loss_is_part = False
        # Whether the parts of a batch that several processes have are divided by the tokens of all of them.
        self.divides_by_all_ranks = True
        self._tokens = 0
        self._warned_of_loss = False
        self._hooks = [model.register_forward_pre_hook(self._begin, with_kwargs=True),
                       model.register_forward_hook(self._end)]
        self._meter = HiddenMeter(model, self._layers)
        self._folder = self.target.with_name(f".{self.target.name}.partial")
        if self._is_writer:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        self.is_complete = False

    def _begin(self, _model, arguments, keywords):
        if not torch.is_grad_enabled():
            return  # An evaluation meanwhile.
        # The parts of a batch add up to its mean where the trainer divides by the whole batch's tokens.
        self._loss_is_part = keywords.get("num_items_in_batch") is not None
        ids = keywords.get("input_ids", arguments[0] if arguments else None)
        mask = keywords.get("attention_mask")
        if mask is not None and mask.dim() == 2:
            self._tokens += int(mask.sum())
        elif isinstance(ids, torch.Tensor):
            self._tokens += ids.numel()

    def _end(self, _model, _arguments, output):
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if isinstance(loss, torch.Tensor) and torch.is_grad_enabled():
            self._losses.append(loss.detach().float().mean().item())

    def step(self, optimizer=None, loss=None, learning_rate=None, grad_norm=None):
        """Records the gradients there are: after the last backward pass of a step and after clipping, before the
        optimizer's. Returns whether the record has all its steps.

        loss, learning_rate, grad_norm: of this step; else the model's own losses, the optimizer's rate, and the norm of the
        recorded gradients.
        """
        if self.is_complete:
            return True
        if optimizer is not None:
            gradients.unscale(optimizer)
        found, absent = {}, {}
        with gradients.gathered(self._model):
            # Within it FSDP 1 has parameters of other identities; names stay.
            for matrix, parameter in _lora_parameters(self._model):
                gradient = gradients.whole(parameter)
                if gradient is None:
                    absent[matrix.stored] = parameter
                else:
                    found[matrix.stored] = gradient
            # What no row of a step reaches, such as an expert, has no gradient, which is one of zeros.
            for stored, parameter in absent.items():
                found[stored] = torch.zeros(getattr(parameter, "ds_shape", parameter.shape))
        if len(absent) == len(found):
            raise RecordError("no LoRA matrix has a gradient; call step() after backward() and before zero_grad()")
        adds_up = loss is None and self._loss_is_part and self.divides_by_all_ranks
        if loss is None and self._losses:
            loss = sum(self._losses) / (1 if self._loss_is_part else len(self._losses))
        loss = gradients.mean_over_ranks(math.nan if loss is None else float(loss))
        loss *= gradients.world_size() if adds_up else 1
        if math.isnan(loss) and not self._warned_of_loss:
            self._warned_of_loss = True
            _log.warning("the model returns no loss; give step(loss=...) to have losses in the record")
        tokens = round(gradients.mean_over_ranks(float(self._tokens)) * gradients.world_size())
        self._tokens, self._losses = 0, []
        self._meter.is_first_step = False
        if not all(bool(torch.isfinite(gradient).all()) for gradient in found.values()):
            # The loss scaler passes over such a step too.
            _log.warning("a gradient is not finite; this step is not recorded")
            return False
        if grad_norm is None:
            grad_norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in found.values()))
        if learning_rate is None and optimizer is not None:
            learning_rate = optimizer.param_groups[0]["lr"]
        number = len(self._entries) + 1
        entry = {"step": number, "file": f"step-{number:05}.safetensors",
                 "loss": loss if math.isfinite(loss) else 0.0, "grad_norm": float(grad_norm),
                 "learning_rate": float(learning_rate or 0.0), "tokens": tokens}
        if self._is_writer:
            entry["sha256"] = self._write(entry["file"], found)
        self._entries.append(entry)
        if number == self.steps:
            self.finish()
        return self.is_complete

    def _write(self, name, tensors):
        from safetensors.torch import save

        content = save(tensors)
        path = self._folder / name
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    @property
    def has_steps(self):
        """Whether any step is recorded."""
        return bool(self._entries)

    def finish(self):
        """Completes the record; with fewer steps than asked for if the training ended before."""
        if self.is_complete:
            return
        self._let_go()
        if not self._entries:
            self.abandon()
            raise RecordError("no step was recorded")
        self.is_complete = True
        if not self._is_writer:
            return
        for name, content in [("activations.json", self._meter.activations()), ("hidden.json", self._meter.hidden()),
                              ("manifest.json", self._manifest())]:
            if content is not None:
                (self._folder / name).write_text(json.dumps(content, indent=1) + "\n")
        os.rename(self._folder, self.target)

    def abandon(self):
        """Removes what is written of a record that is not complete."""
        self._let_go()
        if self._is_writer and not self.is_complete:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _let_go(self):
        self._meter.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _manifest(self):
        matrices = [matrix for matrix, _ in self._parameters]
        config = _adapter_config(self._model)
        manifest = {"format": "gradpruner-gradients", "version": 1, "num_layers": len(self._layers),
                    "lora": {"rank": int(config.r), "alpha": float(config.lora_alpha),
                             "targets": sorted({matrix.module.rsplit(".", 1)[-1] for matrix in matrices})}}
        name = getattr(config, "base_model_name_or_path", None)
        path = pathlib.Path(name, "config.json") if name else None
        if path is not None and path.is_file():
            manifest["model"] = {"name": str(name), "config_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if self._data is not None:
            content = pathlib.Path(self._data).read_bytes()
            manifest["data"] = {"path": str(self._data), "sha256": hashlib.sha256(content).hexdigest(),
                                "rows": len(content.splitlines())}
        manifest["steps"] = self._entries
        return manifest


def _lora_parameters(model):
    """Every LoRA matrix that trains, with its parameter, in an order that is the same in all processes."""
    found = []
    for name, parameter in model.named_parameters():
        matrix = Matrix.parse(name) if parameter.requires_grad else None
        if matrix is not None:
            found.append((matrix, parameter))
    if not found:
        raise RecordError("the model has no LoRA matrices that train; wrap it with peft.get_peft_model first")
    adapters = {matrix.adapter for matrix, _ in found}
    if len(adapters) > 1:
        raise RecordError(f"several adapters train ({', '.join(sorted(adapters))}); only one can be recorded")
    containers = {matrix.container for matrix, _ in found}
    if len(containers) > 1:
        raise RecordError(f"LoRA is on several groups of layers ({', '.join(sorted(containers))}); only one can be "
                          "recorded")
    return sorted(found, key=lambda pair: (pair[0].layer, pair[0].module, pair[0].side))


def _layers_of(model, parameters):
    """The decoder's layers, among which the LoRA matrices are."""
    from .names import unwrapped

    container = parameters[0][0].container
    for name, module in model.named_modules():
        if unwrapped(name) == container and isinstance(module, torch.nn.ModuleList):
            return list(module)
    raise RecordError(f"`{container}` is no list of layers")


def _adapter_config(model):
    """PEFT's configuration of the adapter that trains."""
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if configs:
            active = getattr(module, "active_adapter", None)
            active = active[0] if isinstance(active, list) else active
            return configs.get(active) or next(iter(configs.values()))
    raise RecordError("the model has no PEFT configuration")
