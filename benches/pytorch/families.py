"""Small random models of the families that the engine trains, with what transformers computes of them.

    python benches/pytorch/families.py crates/testkit/fixtures/families

For each: the model, the logits of a row, the loss of its next tokens with the gradient of every weight, and the greedy reply
to its beginning, all in float32.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

from decoders import stirred

SMALL = dict(hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, vocab_size=80,
             max_position_embeddings=64, num_hidden_layers=3, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LONG = [1.0 + 0.3 * pair for pair in range(3)], [2.0 + 0.9 * pair for pair in range(3)]

FAMILIES = {
    "gemma2": ("gemma2", dict(SMALL, head_dim=8, query_pre_attn_scalar=12, sliding_window=5, attn_logit_softcapping=2.0,
                              final_logit_softcapping=3.0)),
    "gemma3": ("gemma3_text", dict(SMALL, head_dim=8, query_pre_attn_scalar=12, sliding_window=5, num_hidden_layers=4,
                                   sliding_window_pattern=3)),
    "phi3": ("phi3", dict(SMALL, sliding_window=6)),
    "phi4_mini": ("phi3", dict(SMALL, tie_word_embeddings=True, original_max_position_embeddings=16,
                               rope_parameters={"rope_type": "longrope", "short_factor": LONG[0], "long_factor": LONG[1],
                                                "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                                                "original_max_position_embeddings": 16})),
    "olmo2": ("olmo2", dict(SMALL)),
    "smollm3": ("smollm3", dict(SMALL, num_hidden_layers=4, no_rope_layer_interval=2)),
    "granite": ("granite", dict(SMALL, embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2,
                                logits_scaling=2.0, tie_word_embeddings=True)),
    "qwen2_yarn": ("qwen2", dict(SMALL, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0,
                                                         "original_max_position_embeddings": 16})),
}
# Every so long a text, to see both sides of what depends on it.
LENGTHS = {"phi4_mini": 24}


def made(name):
    family, keys = FAMILIES[name]
    torch.manual_seed(sum(map(ord, name)))
    config = transformers.AutoConfig.for_model(family, **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    return stirred(model, 0.2, 0.1)


def main(folder):
    for name in FAMILIES:
        model = made(name)
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(target)
        config = json.loads((target / "config.json").read_text())
        config.pop("architectures", None)
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (target / "generation_config.json").unlink(missing_ok=True)
        ids = torch.randint(3, 80, (1, LENGTHS.get(name, 14)), generator=torch.Generator().manual_seed(11))
        out = model(input_ids=ids, labels=ids, use_cache=False)
        out.loss.backward()
        with torch.no_grad():
            reply = model.generate(ids[:, :6], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        save_file({"input_ids": ids, "logits": out.logits.detach().float()[0].contiguous(),
                   "loss": out.loss.detach().reshape(1), "reply": reply[0, 6:].contiguous()},
                  target / "logits.safetensors")
        gradients = {key: value.grad.contiguous() for key, value in model.named_parameters() if value.grad is not None}
        save_file(gradients, target / "gradients.safetensors")
        print(f"{name:12} loss {out.loss.item():.4f}, {sum(value.numel() for value in gradients.values())} gradients")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
