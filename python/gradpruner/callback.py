"""The recorder as a callback of Hugging Face's Trainer, and of those that are made of it (TRL, axolotl)."""

import logging

from transformers import TrainerCallback

from .recorder import Recorder

_log = logging.getLogger("gradpruner")


class GradientRecorder(TrainerCallback):
    """Records the first steps' LoRA gradients of a training.

    record: the folder to make.
    steps: how many optimizer steps to record.
    stop: end the training then; otherwise it continues unaffected.
    data: the file that is trained on, to be named in the record.
    """

    def __init__(self, record, steps=40, stop=False, data=None):
        self.record, self.steps, self.stop, self.data = record, steps, stop, data
        self._recorder = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._recorder = Recorder(model, self.record, self.steps, self.data)
        self._recorder.divides_by_all_ranks = getattr(args, "average_tokens_across_devices", True)
        self._restore = None
        if getattr(args, "deepspeed", None):
            self._step_before_deepspeed(model)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if self._recorder is None or self._recorder.is_complete or self._restore is not None:
            return
        self._recorder.step(optimizer=optimizer)

    def on_step_end(self, args, state, control, **kwargs):
        if self._recorder is not None and self._recorder.is_complete and self.stop:
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if self._restore is not None:
            self._restore()
        if self._recorder is None or self._recorder.is_complete:
            return
        if not self._recorder.has_steps:
            # As where it went on from its last step. What trains on, or saves, must not fail by it.
            _log.warning("the training ended before a step was recorded; there is no record")
            self._recorder.abandon()
            return
        _log.warning("the training ended before %d steps; the record has fewer", self.steps)
        self._recorder.finish()

    def _step_before_deepspeed(self, model):
        # DeepSpeed's engine takes the optimizer's step within the backward pass, before any callback is called.
        from deepspeed.runtime.engine import DeepSpeedEngine

        step, recorder = DeepSpeedEngine.step, self._recorder

        def recorded(engine, *arguments, **keywords):
            is_ours = engine.module is model and engine.is_gradient_accumulation_boundary()
            if is_ours and not recorder.is_complete:
                rates = engine.get_lr()
                recorder.step(learning_rate=rates[0] if rates else None)
            return step(engine, *arguments, **keywords)

        def restore():
            DeepSpeedEngine.step = step
            self._restore = None

        DeepSpeedEngine.step, self._restore = recorded, restore
