"""The recorder as a plugin of axolotl. In its YAML:

    plugins:
      - gradpruner.axolotl.GradientRecorderPlugin
    gradpruner_record: record
    gradpruner_steps: 40
    gradpruner_stop: true
"""

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from .callback import GradientRecorder


class GradpruneArgs(BaseModel):
    """The keys of the YAML."""

    gradpruner_record: str | None = None
    gradpruner_steps: int = 40
    gradpruner_stop: bool = False


class GradientRecorderPlugin(BasePlugin):
    """Adds a GradientRecorder to the training."""

    def get_input_args(self):
        return "gradpruner.axolotl.GradpruneArgs"

    def add_callbacks_pre_trainer(self, cfg, model):
        if cfg.gradpruner_record is None:
            return []
        return [GradientRecorder(cfg.gradpruner_record, cfg.gradpruner_steps, cfg.gradpruner_stop)]
