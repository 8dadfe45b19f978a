"""Multiple choice by lm-evaluation-harness's Hugging Face backend, timed.

Prints one JSON object: rows, seconds without loading, accuracy, and the peak of memory.
"""

import argparse
import json
import time

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from train import peak_bytes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with open(options.data) as lines:
        rows = [json.loads(line) for line in lines][: options.rows]
    requests = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row["messages"][:-1], tokenize=False, add_generation_prompt=True
        )
        for choice in row["choices"]:
            arguments = (prompt, choice)
            requests.append(Instance("loglikelihood", {}, arguments, len(requests)))
    model = HFLM(
        pretrained=options.model,
        device="cpu",
        dtype="bfloat16",
        batch_size=options.batch,
        max_length=2048,
    )
    started = time.perf_counter()
    found = model.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - started
    hits, first = 0, 0
    for row in rows:
        scores = [score for score, _ in found[first : first + len(row["choices"])]]
        first += len(scores)
        hits += row["choices"][scores.index(max(scores))] == row["answer"]
    print(json.dumps({
        "rows": len(rows),
        "seconds": seconds,
        "acc": hits / len(rows),
        "peak_memory_bytes": peak_bytes(),
    }))


if __name__ == "__main__":
    main()
