"""Train a small Hugging Face Llama on bytes under transformers' `Trainer`, with its matrix products in FP4.

    python examples/train_hf.py --steps 60 --out runs/hf
    python examples/train_hf.py --steps 60 --out runs/hf --resume      # from the last checkpoint

The model is compiled in place, so that the trainer evaluates in FP4 too: with `torch_compile_backend="quartet"` it evaluates
the model as it was. Nothing is downloaded: the text is the Python library's source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import text
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import quartet_compile as qc


class Windows(torch.utils.data.Dataset):
    """Consecutive windows of a text, as a causal language model takes them."""

    def __init__(self, data: torch.Tensor, length: int, count: int) -> None:
        self.rows = data[: length * count].view(count, length).long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def build(width: int) -> LlamaForCausalLM:
    """A Llama of two layers over bytes."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=512, use_cache=False,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def arguments(args: argparse.Namespace) -> TrainingArguments:
    """The trainer's settings."""
    return TrainingArguments(
        output_dir=str(args.out), max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=3e-3,
        gradient_accumulation_steps=args.accumulate, bf16=args.bf16,
        logging_steps=5, save_steps=max(1, args.steps // 2), eval_steps=args.steps, eval_strategy="steps",
        seed=args.seed, report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(), lr_scheduler_type="constant",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> dict:
    """Train; returns what is written to `--out`: the losses and the report's counts."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recipe", default="quartet")
    p.add_argument("--exclude", nargs="*", default=[], metavar="GLOB")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--length", type=int, default=64)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--accumulate", type=int, default=1)
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("runs/hf"))
    args = p.parse_args(argv)
    set_seed(args.seed)
    model, corpus = build(args.width), text.load()
    options = {"recipe": args.recipe, "exclude": args.exclude}
    report = qc.explain(model, torch.randint(256, (args.batch, args.length)), **options)
    print(report)
    if args.checkpointing:
        model.gradient_checkpointing_enable()
    model.compile(backend="quartet", options=options)
    rows = args.steps * args.batch * args.accumulate
    trainer = Trainer(
        model=model,
        args=arguments(args),
        train_dataset=Windows(corpus.train, args.length, rows),
        eval_dataset=Windows(corpus.validation, args.length, 4 * args.batch),
    )
    trainer.train(resume_from_checkpoint=args.resume)
    history = trainer.state.log_history
    made = {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "validation": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "rewritten": sum(site.rewritten for site in report.sites),
        "keys": sorted(model.state_dict()),
    }
    (args.out / "figures.json").write_text(json.dumps(made))
    return made


if __name__ == "__main__":
    main()
