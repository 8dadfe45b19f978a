"""Names of LoRA's matrices, as gradpruner's records spell them."""

import re

# What wraps a module without changing what it is: DDP, FSDP, torch.compile, gradient checkpointing.
_WRAPPERS = ("module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")
# Parts of a model that are not the decoder which speaks.
_OTHER_PARTS = ("vision", "visual", "image", "video", "audio", "speech", "encoder", "talker", "code2wav", "token2wav",
                "draft", "mtp")
_MATRIX = re.compile(r"^(?P<container>.+?)\.(?P<layer>\d+)\.(?P<module>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>.+))?\.weight$")


def unwrapped(name):
    """A parameter's name without what wrappers add to it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class Matrix:
    """Where a LoRA matrix stands: which layer, which linear weight, A or B."""

    def __init__(self, container, layer, module, side, adapter):
        self.container, self.layer, self.module, self.side, self.adapter = container, layer, module, side, adapter

    @classmethod
    def parse(cls, name):
        """Takes a parameter's name apart; None for what is no LoRA matrix of a decoder layer."""
        found = _MATRIX.match(unwrapped(name))
        if found is None:
            return None
        container = found["container"]
        if any(part in container.lower() for part in _OTHER_PARTS):
            return None
        return cls(container, int(found["layer"]), found["module"], found["side"], found["adapter"] or "default")

    @property
    def stored(self):
        """Its name in a record."""
        return f"layers.{self.layer}.{self.module}.lora_{self.side}"
