"""A small model, rows and a trainer for the tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers


def model(family="llama", layers=6, **more):
    """The same random model with the same random LoRA every time."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(
        family, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **more)
    made = transformers.AutoModelForCausalLM.from_config(config).float()
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    made = peft.get_peft_model(made, lora)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)  # Else A's gradients are zero.
    return made


class Rows(torch.utils.data.Dataset):
    """Rows of one length, so that a mean over parts of a batch is the batch's."""

    def __init__(self, count=24, length=12):
        generator = torch.Generator().manual_seed(5)
        self.rows = torch.randint(3, 96, (count, length), generator=generator)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, at):
        row = self.rows[at]
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone()}


def in_order(kind):
    """A kind of Trainer that takes rows in their order."""

    class InOrder(kind):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def arguments(folder, batch, accumulate, **more):
    """What a training of five steps is told."""
    return dict(
        output_dir=str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        learning_rate=1e-3, lr_scheduler_type="constant", max_steps=5, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_strategy="no", **more)


def trainer(made, folder, batch, accumulate, callbacks, **more):
    """A Trainer that takes rows in their order."""
    told = transformers.TrainingArguments(**arguments(folder, batch, accumulate, **more))
    return in_order(transformers.Trainer)(model=made, args=told, train_dataset=Rows(), callbacks=callbacks)


def sft_trainer(made, folder, batch, accumulate, callbacks, **more):
    """TRL's SFTTrainer, on the same rows."""
    import datasets
    import pyarrow
    import tokenizers
    import trl

    told = trl.SFTConfig(
        **arguments(folder, batch, accumulate, **more), bf16=False, gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True})
    rows = [{key: row[key].tolist() for key in ("input_ids", "labels")} for row in Rows()]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"<{number}>": number for number in range(96)}, "<0>"))
    names = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", eos_token="<2>")
    # A fingerprint, since datasets cannot work one out in every version of pyarrow.
    rows = datasets.Dataset(pyarrow.Table.from_pylist(rows), fingerprint="rows")
    return in_order(trl.SFTTrainer)(
        model=made, args=told, train_dataset=rows, processing_class=names, callbacks=callbacks)
