"""Under the trainers people use: the loss falls, a checkpoint is the untouched model's, and a resumed run goes on."""

from __future__ import annotations

import shutil

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore")

PRODUCTS = 14  # two blocks of q, k, v, o, gate, up, down


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def falls(losses: list[float]) -> bool:
    return losses[-1] < 0.85 * losses[0]


def hugging_face():
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    import train_hf

    return train_hf


def trained_and_resumed(folder, *arguments: str) -> tuple[dict, dict]:
    """A run of 20 steps, and the same from its checkpoint of step 10."""
    command = ["--steps", "20", "--width", "64", "--out", str(folder), *arguments]
    whole = hugging_face().main(command)
    shutil.move(folder / "checkpoint-20", folder / "last")
    torch._dynamo.reset()
    return whole, hugging_face().main([*command, "--resume"])


def test_hugging_face(tmp_path):
    whole, resumed = trained_and_resumed(tmp_path)
    assert falls(whole["losses"]) and whole["rewritten"] == PRODUCTS
    assert resumed["losses"] == whole["losses"] and resumed["validation"] == whole["validation"]
    untouched = hugging_face().build(64)
    assert whole["keys"] == sorted(untouched.state_dict())
    loaded = type(untouched).from_pretrained(tmp_path / "last")
    assert sorted(loaded.state_dict()) == whole["keys"]
    rows = hugging_face().Windows(hugging_face().text.load().validation, 64, 32).rows
    with torch.no_grad():
        assert loaded(input_ids=rows, labels=rows).loss.item() == pytest.approx(whole["validation"][-1], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--checkpointing", "--accumulate", "2"], ["--bf16"]], ids=" ".join)
def test_hugging_face_with(tmp_path, arguments):
    whole, resumed = trained_and_resumed(tmp_path, *arguments)
    assert falls(whole["losses"]) and resumed["losses"] == whole["losses"]


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_lightning(tmp_path, precision):
    pytest.importorskip("lightning")
    import train_lightning

    command = ["--precision", precision, "--out", str(tmp_path)]
    made = train_lightning.main(["--steps", "20", *command])
    assert falls(made["losses"]) and made["rewritten"] == PRODUCTS
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert sorted(saved) == made["keys"]
    untouched = train_lightning.Llama(train_lightning.SIZE)
    untouched.load_state_dict({key.removeprefix("model."): value for key, value in saved.items()})

    torch._dynamo.reset()
    resumed = train_lightning.main(["--steps", "24", "--resume", str(tmp_path / "last.ckpt"), *command])
    assert len(resumed["losses"]) == 4 and max(resumed["losses"]) < 0.85 * made["losses"][0]
