"""Small random decoders of many families, pruned by gradpruner and loaded again by transformers.

    python benches/pytorch/decoders.py PROGRAM [--only NAME] [--keep FOLDER]

Each is made with transformers, pruned by PROGRAM (a built gradpruner), and loaded again. Its logits must be those of the
whole model whose pruned layers hand their input on, to 1e-5 of the largest. With --keep, of each that passes the configuration
and the tensors' names and shapes are left in FOLDER, before and after, which the crate's tests hold the program to where there
is no Python.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

SMALL = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=96,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=6, num_attention_heads=2, image_size=28,
              patch_size=14)

# A family's name, the keys of its configuration, and the layers to prune.
DECODERS = {
    "gemma2": (dict(SMALL, num_hidden_layers=6, head_dim=8, sliding_window=4), [2, 3, 5]),
    "gemma3_text": (dict(SMALL, num_hidden_layers=7, head_dim=8, sliding_window=4), [1, 5]),
    "phi3": (dict(SMALL, num_hidden_layers=6), [1, 2]),
    "olmo2": (dict(SMALL, num_hidden_layers=6), [3, 4]),
    "olmo3": (dict(SMALL, num_hidden_layers=8, sliding_window=4), [0, 3, 6]),
    "smollm3": (dict(SMALL, num_hidden_layers=8), [1, 3, 4]),
    "granite": (dict(SMALL, num_hidden_layers=6, embedding_multiplier=3.0, residual_multiplier=0.5), [2]),
    "cohere": (dict(SMALL, num_hidden_layers=6, logit_scale=0.5), [1, 4]),
    "cohere2": (dict(SMALL, num_hidden_layers=8, sliding_window=4, logit_scale=0.5), [2, 3]),
    "gpt_neox": (dict(SMALL, num_hidden_layers=6), [0, 5]),
    "gpt2": (dict(n_embd=32, n_layer=6, n_head=4, n_positions=64, vocab_size=96, bos_token_id=1, eos_token_id=2), [2, 4]),
    "gpt_neo": (dict(hidden_size=32, num_layers=6, num_heads=4, attention_types=[[["global", "local"], 3]], window_size=4,
                     vocab_size=96, max_position_embeddings=64, bos_token_id=1, eos_token_id=2), [1, 2]),
    "falcon": (dict(hidden_size=32, num_hidden_layers=6, num_attention_heads=4, vocab_size=96, bos_token_id=1,
                    eos_token_id=2), [3]),
    "starcoder2": (dict(SMALL, num_hidden_layers=6), [2, 3]),
    "stablelm": (dict(SMALL, num_hidden_layers=6), [2, 3]),
    "opt": (dict(hidden_size=32, ffn_dim=48, num_hidden_layers=6, num_attention_heads=4, vocab_size=96,
                 word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2), [1]),
    "bloom": (dict(hidden_size=32, n_layer=6, n_head=4, vocab_size=96, pad_token_id=0, bos_token_id=1, eos_token_id=2),
              [1, 3]),
    "qwen3_moe": (dict(SMALL, **EXPERTS, num_hidden_layers=6, head_dim=8, decoder_sparse_step=2), [2, 3, 4]),
    "mixtral": (dict(SMALL, num_hidden_layers=6, num_local_experts=4, num_experts_per_tok=2), [1, 2]),
    "gpt_oss": (dict(SMALL, num_hidden_layers=6, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
                     sliding_window=4), [1, 2]),
    "deepseek_v3": (dict({**SMALL, "num_key_value_heads": 4}, num_hidden_layers=6, first_k_dense_replace=2, n_routed_experts=4, num_experts_per_tok=2,
                         moe_intermediate_size=16, n_group=2, topk_group=1, q_lora_rank=16, kv_lora_rank=16,
                         qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8), [1, 3]),
    "ernie4_5": (dict(SMALL, num_hidden_layers=6), [2]),
    "exaone4": (dict(SMALL, num_hidden_layers=8, sliding_window=4), [1, 3]),
    "phi": (dict(SMALL, num_hidden_layers=6), [1, 4]),
    "gptj": (dict(n_embd=32, n_layer=6, n_head=4, rotary_dim=4, n_positions=64, vocab_size=96, bos_token_id=1,
                  eos_token_id=2), [2]),
    "mpt": (dict(d_model=32, n_heads=4, n_layers=6, vocab_size=96, max_seq_len=64), [0, 3]),
    "nemotron": (dict(SMALL, num_hidden_layers=6), [2, 3]),
    "glm4": (dict(SMALL, num_hidden_layers=6, head_dim=8), [2, 3]),
    "glm4_moe": (dict(SMALL, num_hidden_layers=6, head_dim=8, first_k_dense_replace=2, n_routed_experts=4,
                      num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1), [1, 3]),
    "granitemoe": (dict(SMALL, num_hidden_layers=6, num_local_experts=4, num_experts_per_tok=2), [2, 3]),
    "qwen2_moe": (dict(SMALL, **EXPERTS, num_hidden_layers=6, shared_expert_intermediate_size=16, decoder_sparse_step=2,
                       use_sliding_window=True, sliding_window=4, max_window_layers=4), [1, 2]),
    "qwen3_next": (dict(SMALL, **EXPERTS, num_hidden_layers=8, head_dim=8, shared_expert_intermediate_size=16,
                        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8),
                   [1, 4]),
    "llama4_text": (dict(SMALL, num_hidden_layers=8, head_dim=8, intermediate_size_mlp=48, num_local_experts=4,
                         num_experts_per_tok=1, interleave_moe_layer_step=2, attention_chunk_size=4), [1, 4, 7]),
    "gemma3": (dict(text_config=dict(SMALL, num_hidden_layers=7, head_dim=8, sliding_window=4, model_type="gemma3_text"),
                    vision_config=VISION, mm_tokens_per_image=4, image_token_index=90, boi_token_index=91,
                    eoi_token_index=92), [1, 5]),
    "llava": (dict(text_config=dict(SMALL, num_hidden_layers=6, model_type="llama"),
                   vision_config=dict(VISION, model_type="clip_vision_model", projection_dim=16), image_token_index=90),
              [2, 4]),
}
VISUAL = {"gemma3", "llava"}
LAYER = re.compile(r"^[^\d]*?\.?(?:layers|h|blocks)\.(\d+)\.")
OTHER = re.compile("vision")


def stirred(model, matrices, vectors):
    """The model with random matrices of that spread, and its vectors moved by as much as is said."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, matrices)
            else:
                parameter.add_(torch.randn_like(parameter) * vectors)
    return model


def made(name, keys):
    """A random model whose layers do something."""
    torch.manual_seed(sum(map(ord, name)))
    config = transformers.AutoConfig.for_model(name, **keys)
    auto = transformers.AutoModelForImageTextToText if name in VISUAL else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    return stirred(model, 0.15, 0.05)


def layers_of(model):
    """The decoder's layers."""
    found = [(name, module) for name, module in model.named_modules()
             if isinstance(module, torch.nn.ModuleList) and "vision" not in name and len(module) >= 6
             and name.rsplit(".", 1)[-1] in {"layers", "h", "blocks"}]
    (_, layers), = found
    return layers


def hand_on(module, arguments, keywords, output):
    """In place of a layer's output, its input."""
    states = arguments[0] if arguments else keywords["hidden_states"]
    return (states, *output[1:]) if isinstance(output, tuple) else states


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.float()


def without_defaults(name, folder, keys):
    """A configuration as one on the hub: without the lists that transformers adds when it saves one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for section, given in [(config, keys), (config.get("text_config", {}), keys.get("text_config", {}))]:
        for key in ["layer_types", "no_rope_layers", "moe_layers", "attention_layers"]:
            if key not in given:
                section.pop(key, None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def checked(program, name, folder):
    keys, pruned = DECODERS[name]
    model = made(name, keys)
    tokens = torch.randint(3, 88, (2, 12), generator=torch.Generator().manual_seed(7))
    source, target = folder / "model", folder / "pruned"
    model.save_pretrained(source)
    without_defaults(name, source, keys)
    layers = layers_of(model)
    hooks = [layers[layer].register_forward_hook(hand_on, with_kwargs=True) for layer in pruned]
    expected = logits(model, tokens)
    for hook in hooks:
        hook.remove()
    whole = logits(model, tokens)
    plan = {"format": "gradpruner-plan", "version": 1, "num_layers": len(layers), "pruned": pruned, "merges": [],
            "density": 0.2, "rule": "same-sign"}
    (folder / "plan.json").write_text(json.dumps(plan))
    run = [program, "prune", "--model", source, "--plan", folder / "plan.json", "--out", target]
    subprocess.run(list(map(str, run)), check=True, capture_output=True, text=True)
    auto = type(model)
    loaded, info = auto.from_pretrained(target, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    left = {key: value for key, value in info.items() if value and key in {"missing_keys", "unexpected_keys",
                                                                           "mismatched_keys"}}
    found = logits(loaded.eval(), tokens)
    scale = expected.abs().max()
    apart = ((found - expected).abs().max() / scale).item()
    moved = ((whole - expected).abs().max() / scale).item()
    return apart, moved, left, source, target


def keep(name, source, target, folder):
    """Leaves what a model is made of and what becomes of it for the tests."""
    pruned = DECODERS[name][1]
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    count = 1 + max(int(found[1]) for found in map(LAYER.match, before) if found and not OTHER.search(found[0]))
    retained = [layer for layer in range(count) if layer not in pruned]
    origin = {}
    for old, tensor in before.items():
        found = LAYER.match(old)
        new = old
        if found and not OTHER.search(old):
            if int(found[1]) not in retained:
                continue
            new = old[:found.start(1)] + str(retained.index(int(found[1]))) + old[found.end(1):]
        assert torch.equal(after[new], tensor), (new, old)
        origin[new] = old
    assert set(origin) == set(after)
    golden = {"config": config, "tensors": {key: [str(value.dtype).removeprefix("torch."), *value.shape]
                                            for key, value in sorted(before.items())},
              "pruned": pruned, "pruned_config": json.loads((target / "config.json").read_text()),
              "pruned_tensors": dict(sorted(origin.items()))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=pathlib.Path)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    for name in DECODERS:
        if arguments.only and name != arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                apart, moved, left, source, target = checked(arguments.program.resolve(), name, pathlib.Path(folder))
            except subprocess.CalledProcessError as error:
                print(f"{name:12} FAILED: {error.stderr.strip()}")
                failed += 1
                continue
            except Exception as error:  # One family's trouble is not the others'.
                print(f"{name:12} FAILED: {type(error).__name__}: {error}")
                failed += 1
                continue
            good = apart < 1e-5 and moved > 1e-2 and not left
            failed += not good
            print(f"{name:12} {'equal' if good else 'FAILED'}: {apart:.1e} apart, {moved:.1e} from the whole model"
                  + (f", {left}" if left else ""))
            if good and arguments.keep:
                keep(name, source, target, arguments.keep)
    print(f"{len(DECODERS) if not arguments.only else 1} families, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
