"""Writes crates/testkit/fixtures/nf4.safetensors: rows as bitsandbytes quantises them to NF4 and back.

    python nf4.py OUT    (torch, safetensors, bitsandbytes 0.50)
"""

import sys

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file

torch.manual_seed(0)
values = torch.randn(8, 128)
values[3] = 0  # A block without a scale.
values[4, :64] = 3.0
values[5] *= 1e-3
codes, state = quantize_4bit(values, quant_type="nf4", blocksize=64)
back = dequantize_4bit(codes, state)
save_file({"values": values, "codes": codes.flatten(), "scales": state.absmax, "back": back}, sys.argv[1])
