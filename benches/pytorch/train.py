"""LoRA fine-tuning with transformers and PEFT, timed: what `cargo xtask bench finetune` compares with.

Prints one JSON object: seconds and tokens of each step after the first, and the peak of memory: the process's, or with
--device cuda what PyTorch took of the GPU's.
"""

import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def encode(tokenizer, row, max_tokens):
    """Token ids of the chat and its labels: the last reply and its end-of-turn token."""
    messages = row["messages"]
    if messages[-1]["role"] != "assistant":
        messages = messages + [{"role": "assistant", "content": row["answer"]}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    chat = chat.rstrip("\n")  # Nothing after the end of the turn is learnt.
    ids = tokenizer(chat, add_special_tokens=False).input_ids
    known = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    labels = [-100] * known + ids[known:]
    return ids[:max_tokens], labels[:max_tokens]


def batches(rows, size):
    """Rows padded on the right to the longest of their batch."""
    for first in range(0, len(rows) - size + 1, size):
        chosen = rows[first : first + size]
        width = max(len(ids) for ids, _ in chosen)
        ids = torch.zeros(size, width, dtype=torch.long)
        labels = torch.full((size, width), -100)
        mask = torch.zeros(size, width, dtype=torch.long)
        for row, (tokens, targets) in enumerate(chosen):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.tensor(targets)
            mask[row, : len(tokens)] = 1
        yield ids, labels, mask


def peak_bytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--load-in-4bit", action="store_true", help="NF4, by bitsandbytes and accelerate")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with open(options.train) as lines:
        rows = [encode(tokenizer, json.loads(line), options.max_length) for line in lines]
    dtype, quantised = getattr(torch, options.dtype), {}
    if options.load_in_4bit:
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
        quantised = {"quantization_config": nf4, "device_map": options.device}
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=dtype, attn_implementation="sdpa", **quantised
    )
    config = LoraConfig(
        r=options.rank, lora_alpha=32, target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    model = get_peft_model(model if options.load_in_4bit else model.to(options.device), config)
    model.config.use_cache = False
    if options.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    seconds, tokens, losses = [], [], []
    for step, (ids, labels, mask) in enumerate(batches(rows, options.batch)):
        if step == options.steps:
            break
        started = time.perf_counter()
        ids, labels, mask = (tensor.to(options.device) for tensor in (ids, labels, mask))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
        tokens.append(int(mask.sum()))
    print(json.dumps({
        "rows_per_step": options.batch,
        "step_seconds": seconds[1:],
        "step_tokens": tokens[1:],
        "losses": losses,
        "peak_memory_bytes": peak_bytes() if options.device == "cpu" else torch.cuda.max_memory_allocated(),
    }))


if __name__ == "__main__":
    main()
