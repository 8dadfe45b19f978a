"""Gradient records for gradpruner, taken from the trainer you have.

    from gradpruner import GradientRecorder
    trainer = Trainer(..., callbacks=[GradientRecorder("record", steps=40)])

or, in a loop of your own:

    recorder = Recorder(model, "record", steps=40)
    ...
    loss.backward()
    recorder.step(optimizer=optimizer)     # before optimizer.step()
    ...
    recorder.finish()

The record is what `gradpruner score`, `plan` and `prune` read.
"""

from .recorder import Recorder, RecordError

__all__ = ["GradientRecorder", "RecordError", "Recorder"]


def __getattr__(name):
    # transformers is wanted by the callback alone.
    if name == "GradientRecorder":
        from .callback import GradientRecorder

        return GradientRecorder
    raise AttributeError(f"module 'gradpruner' has no attribute {name!r}")
