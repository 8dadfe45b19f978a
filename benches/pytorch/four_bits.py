"""Writes crates/testkit/fixtures/bitsandbytes: checkpoints in four bits, and what bitsandbytes widens them to.

    python four_bits.py ../../crates/testkit/fixtures/tiny_llama/model OUT
    (torch, transformers 5.23, accelerate, safetensors, bitsandbytes 0.50)
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

FOLDERS = {
    "nf4": (torch.float32, {"bnb_4bit_quant_type": "nf4"}),
    "nf4_nested": (torch.bfloat16, {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    "fp4": (torch.float16, {"bnb_4bit_quant_type": "fp4"}),
}
# Rows that are whole blocks or whose length no vector divides: of others bitsandbytes 0.50 takes wrong scales on a CPU with AVX-512.
BLOCKS = {
    "b32_nested": (torch.float32, (160, 64), 32, True),
    "b128_odd": (torch.float32, (5, 33), 128, False),
    "b128_nested": (torch.bfloat16, (40, 130), 128, True),
    "b4096": (torch.float16, (6, 1024), 4096, False),
}


def first_layer(source, target):
    """The model's first layer with 16 tokens."""
    tensors = load_file(source / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("model.layers.") or k.startswith("model.layers.0.")}
    for name in ["model.embed_tokens.weight", "lm_head.weight"]:
        kept[name] = kept[name][:16].clone()
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": 1, "vocab_size": 16}
    (target / "config.json").write_text(json.dumps(config))


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def widened(file):
    """Digests of each weight as bitsandbytes widens it: in float32, and in the type it had."""
    tensors, found = load_file(file), {}
    for name in sorted(tensors):
        weight, state_of, _ = name.partition(".quant_state.")
        if not state_of:
            continue
        parts = {k[len(weight) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{weight}.")}
        state = QuantState.from_dict(parts, torch.device("cpu"))
        stored = dequantize_4bit(tensors[weight], state)
        state.dtype = torch.float32
        found[weight] = {"f32": sha256(dequantize_4bit(tensors[weight], state)), "stored": sha256(stored)}
    return found


def main():
    source, out = map(Path, sys.argv[1:])
    expected = {}
    with tempfile.TemporaryDirectory() as plain:
        first_layer(source, Path(plain))
        for name, (dtype, settings) in FOLDERS.items():
            quantisation = BitsAndBytesConfig(load_in_4bit=True, **settings)
            model = AutoModelForCausalLM.from_pretrained(
                plain, quantization_config=quantisation, dtype=dtype, device_map="cpu"
            )
            model.save_pretrained(out / name)
            expected[name] = widened(out / name / "model.safetensors")
    torch.manual_seed(0)
    blocks = {}
    for name, (dtype, shape, size, nested) in BLOCKS.items():
        values = torch.randn(shape, dtype=dtype)
        values[1] = 0
        # One is stored as `bnb_4bit_quant_storage` does it for FSDP.
        storage = torch.bfloat16 if name == "b4096" else torch.uint8
        blocks[name], state = quantize_4bit(
            values, blocksize=size, compress_statistics=nested, quant_type="nf4", quant_storage=storage
        )
        blocks |= {f"{name}.{part}": tensor.clone() for part, tensor in state.as_dict(packed=True).items()}
    save_file(blocks, out / "blocks.safetensors")
    expected["blocks"] = widened(out / "blocks.safetensors")
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


main()
