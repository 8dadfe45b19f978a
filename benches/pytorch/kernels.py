"""The authors' way, for one layer of an 8 B-shaped model: dense products, argsort, the whole weight
in memory. What `cargo xtask bench kernels` compares with; prints one JSON object of seconds.
"""

import argparse
import json
import time

import torch

STEPS, RANK, DENSITY = 40, 8, 0.2


def peak_bytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def timed(run):
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def median(run, repeats=5):
    return sorted(timed(run)[0] for _ in range(repeats))[repeats // 2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()

    def width(full):
        return max(1, round(full * options.scale / 128)) * 128

    hidden, kv, ffn = width(4096), width(1024), width(14336)
    shapes = {
        "q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden),
        "gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn),
    }
    torch.manual_seed(0)
    side = width(4096)
    left, right = torch.randn(side, side), torch.randn(side, side)
    left @ right
    product = 2 * side**3 / median(lambda: left @ right)

    norms = igia = argsort = kthvalue = merge = 0.0
    of_gate = {}
    for name, (out, columns) in shapes.items():
        record = [(torch.randn(out, RANK), torch.randn(RANK, columns)) for _ in range(STEPS)]
        seconds, _ = timed(lambda: sum(torch.norm(b @ a).item() for b, a in record))
        norms += seconds

        def dense():
            total = torch.zeros(out, columns)
            for b, a in record:
                total += (b @ a) ** 2
            return total

        of_igia, importance = timed(dense)
        igia += of_igia
        count = int(DENSITY * out * columns)

        def mask():
            kept = torch.zeros(out * columns, dtype=torch.bool)
            kept[torch.argsort(importance.flatten(), descending=True)[:count]] = True
            return kept.view(out, columns)

        of_argsort, kept = timed(mask)
        argsort += of_argsort
        flat = importance.flatten()
        of_kthvalue, _ = timed(lambda: torch.kthvalue(flat, flat.numel() - count + 1))
        kthvalue += of_kthvalue
        receiver = torch.randn(out, columns).bfloat16()
        donor = torch.randn(out, columns).bfloat16()

        def merged():
            given = donor * kept
            return receiver + torch.where(receiver * given > 0, given, torch.zeros_like(given))

        of_merge, _ = timed(merged)
        merge += of_merge
        if name == "gate":
            of_gate = {
                "igia": of_igia, "argsort": of_argsort, "kthvalue": of_kthvalue, "merge": of_merge,
            }
    print(json.dumps({
        "product_flops": product,
        "layer": {
            "norms": norms, "igia": igia, "argsort": argsort, "kthvalue": kthvalue, "merge": merge,
        },
        "gate": of_gate,
        "peak_memory_bytes": peak_bytes(),
    }))


if __name__ == "__main__":
    main()
