"""Writes crates/testkit/fixtures/dora/: a DoRA adapter on tiny_qwen2 before and after three steps of PEFT.

    python benches/pytorch/dora.py

Needs torch, transformers and peft; computed in float64, saved in float32.
"""
import json
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FIXTURES = pathlib.Path(__file__).parents[2] / "crates/testkit/fixtures"
OUT = FIXTURES / "dora"
NAME, LAYERS = "tiny_qwen2", [1, 3]
TARGETS = ["k_proj", "o_proj", "gate_proj", "down_proj"]
# So large that norms and directions move far apart from where they began.
RATE = 0.02


def main():
    torch.manual_seed(5)
    shutil.rmtree(OUT, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / NAME / "model", dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, layers_to_transform=LAYERS, use_dora=True,
                        task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.save_pretrained(OUT / "start")
    model = model.double()
    batches = load_file(FIXTURES / NAME / "batches.safetensors")
    batch = lambda step: {key: batches[f"step{step}.{key}"] for key in ["input_ids", "labels", "attention_mask"]}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    losses = []
    for step in [1, 2, 3]:
        optimizer.zero_grad()
        loss = model(**batch(step)).loss
        losses.append(loss.detach())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
    optimizer.zero_grad()
    inputs = batch(1)
    found = model(**inputs)
    found.loss.backward()
    losses.append(found.loss.detach())
    out = {"losses": torch.stack(losses).float()}
    for name, weight in trained.items():
        name = name.removeprefix("base_model.model.model.").replace(".default.weight", "")
        out[name.replace("magnitude_vector", "magnitude")] = weight.grad.float().contiguous()
    # One row without padding, to see what a forward pass alone gives.
    length = int(inputs["attention_mask"][0].sum())
    out["logits"] = found.logits[0, :length].detach().float().contiguous()
    out["tokens"] = inputs["input_ids"][0, :length].contiguous()
    model.float().save_pretrained(OUT / "end")
    save_file(out, OUT / "expected.safetensors")
    for readme in OUT.glob("*/README.md"):
        readme.unlink()
    for path in OUT.glob("*/adapter_config.json"):
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = NAME
        path.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
