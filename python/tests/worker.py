"""One process of a distributed training: worker.py KIND FOLDER, under torchrun."""

import pathlib
import sys

import peft
import torch
import transformers

import tiny
from gradpruner import GradientRecorder, Recorder


def fsdp2(folder):
    """Fully sharded parameters, each a DTensor."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    model = tiny.model()
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    loop(model, folder)


def fsdp1(folder):
    """Fully sharded parameters, flattened by layer."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    torch.distributed.init_process_group("gloo")
    model = tiny.model()
    policy = ModuleWrapPolicy({type(model.base_model.model.model.layers[0])})
    model = FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))
    loop(model, folder)


def loop(model, folder):
    """A loop of one's own."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    recorder = Recorder(model, folder / "record", steps=3)
    rows = tiny.Rows()
    for step in range(3):
        part = [rows[step * 4 + at] for at in range(rank * 4 // world, (rank + 1) * 4 // world)]
        batch = {key: torch.stack([row[key] for row in part]) for key in part[0]}
        model(**batch).loss.backward()
        recorder.step(optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()
    torch.distributed.destroy_process_group()


def tune(folder):
    """A pruned model trained on, in each process."""
    made = transformers.AutoModelForCausalLM.from_pretrained(folder / "pruned", dtype=torch.float32)
    made = peft.get_peft_model(made, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer = tiny.trainer(made, folder / "tuned", 2, 1, [])
    print("loss", trainer.train().training_loss)


def ddp(folder):
    """Hugging Face's Trainer in each process."""
    callback = GradientRecorder(folder / "record", steps=3, stop=True)
    tiny.trainer(tiny.model(), folder / "out", 2, 1, [callback], weight_decay=0.0, max_grad_norm=0.0).train()


def deepspeed(folder, stage):
    """The Trainer over DeepSpeed's ZeRO."""
    config = {"zero_optimization": {"stage": stage}, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
              "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    callback = GradientRecorder(folder / "record", steps=3, stop=True)
    tiny.trainer(tiny.model(), folder / "out", 2, 1, [callback], weight_decay=0.0, max_grad_norm=0.0,
                 deepspeed=config).train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    kinds = {"fsdp1": fsdp1, "fsdp2": fsdp2, "ddp": ddp, "tune": tune, "zero2": lambda folder: deepspeed(folder, 2),
             "zero3": lambda folder: deepspeed(folder, 3)}
    kinds[sys.argv[1]](pathlib.Path(sys.argv[2]))
