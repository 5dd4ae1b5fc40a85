"""TRL's SFTTrainer with `torch_compile_backend="quartet"`: all weights, and adapters by peft."""

from __future__ import annotations

import pytest
import torch
from runs import check, observed

import quartet_compile as qc  # noqa: F401  it makes the backend's name known to accelerate

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 128, 32


def model_of(adapted):
    torch.manual_seed(1)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **sizes))
    if not adapted:
        return model
    layers = ["q_proj", "v_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=32, lora_alpha=64, target_modules=layers, task_type="CAUSAL_LM")
    )


def tokenizer():
    words = {"<pad>": 0, "<eos>": 1, **{f"w{index}": index for index in range(2, WORDS)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def run(folder, adapted, **compiled):
    rows = torch.randint(2, WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(5)).tolist()
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=20,
        learning_rate=1e-2 if adapted else 3e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=None,
        **compiled,
    )
    data = datasets.Dataset.from_dict({"input_ids": rows})
    trainer = trl.SFTTrainer(model_of(adapted), args=arguments, train_dataset=data, processing_class=tokenizer())
    with observed() as made:
        trainer.train()
    made.losses += [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return made


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_sft(tmp_path, adapted):
    ours = run(tmp_path, adapted, torch_compile_backend="quartet")
    check(ours, run(tmp_path, adapted))
    projections = {name.rpartition(".")[2] for name in ours.rewritten}
    assert {"k_proj", "o_proj", "gate_proj"} <= projections
    assert any("lora_A" in name for name in ours.rewritten) == adapted
