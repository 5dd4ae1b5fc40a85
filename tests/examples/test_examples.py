"""The example that trains a Llama: its data, its figures, its checkpoints. Runs on the CPU, mostly uncompiled."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import checkpoint
import figures
import llama
import monitor
import pytest
import text
import torch
import train_llama
import training

from quartet_compile._compat import saved_bytes

WORDS = "the quick brown fox jumps over the lazy dog and runs away from it\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> text.Corpus:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (folder / f"{i}.txt").write_text(WORDS * (i + 5))
    return text.load([folder])


def trainer(corpus: text.Corpus, folder: Path, argv: str = "", backend: str = "eager") -> training.Trainer:
    args = train_llama.parser().parse_args(["--size", "test", *argv.split()])
    return training.Trainer(train_llama.settings_of(args, backend), corpus, folder, backend)


def stopped_and_resumed(corpus: text.Corpus, folder: Path, backend: str, step: int) -> training.Trainer:
    first = trainer(corpus, folder, backend=backend)
    with pytest.raises(training.Stopped, match=f"stopped after step {step}; saved .*checkpoint.pt"):
        first.run(lambda: first.step == step)
    torch._dynamo.reset()
    torch.manual_seed(12345)  # whatever the new process does before it resumes must not matter
    second = trainer(corpus, folder, backend=backend)
    assert second.restore() == []
    assert second.step == step
    second.run()
    return second


def assert_same_run(one: training.Trainer, other: training.Trainer) -> None:
    assert one.history.losses == other.history.losses
    assert one.history.validation == other.history.validation
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    states = zip(one.optimizer.state.values(), other.optimizer.state.values(), strict=True)
    assert all(torch.equal(a[key], b[key]) for a, b in states for key in ("exp_avg", "exp_avg_sq", "step"))
    assert torch.equal(one.data.generator.get_state(), other.data.generator.get_state())


class TestModel:
    def test_names_are_those_of_hugging_face(self) -> None:
        names = {name for name, _ in llama.Llama(llama.SIZES["test"]).named_parameters()}
        block = {f"self_attn.{n}_proj.weight" for n in "qkvo"}
        block |= {f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
        block |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
        outer = {"embed_tokens.weight", "norm.weight", "lm_head.weight"}
        assert names == outer | {f"layers.{i}.{name}" for i in range(2) for name in block}

    def test_published_size(self) -> None:
        with torch.device("meta"):
            model = llama.Llama(llama.SIZES["30M"])
        linear = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
        assert linear == 6 * (4 * 640 * 640 + 3 * 640 * 1792)

    def test_initialization(self) -> None:
        torch.manual_seed(0)
        model = llama.Llama(llama.SIZES["test"])
        assert model.layers[0].mlp.gate_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert model.layers[1].mlp.down_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.05)

    def test_a_token_sees_only_what_is_before_it(self) -> None:
        model = llama.Llama(llama.SIZES["test"])
        tokens = torch.randint(256, (1, 16))
        changed = tokens.clone()
        changed[0, 10] = (changed[0, 10] + 1) % 256
        one, other = model(tokens), model(changed)
        assert torch.equal(one[:, :10], other[:, :10])
        assert not torch.equal(one[:, 10], other[:, 10])

    def test_rotation_depends_on_the_distance_only(self) -> None:
        cos, sin = llama.rotary_table(8, 16)
        q, k = torch.randn(2, 16).unbind()
        turned_q, turned_k = (llama.rotate(t.expand(8, 16), cos, sin) for t in (q, k))
        scores = turned_q @ turned_k.T
        torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])


class TestData:
    def test_split_is_disjoint_and_deterministic(self, corpus: text.Corpus) -> None:
        assert not set(corpus.train_files) & set(corpus.validation_files)
        assert len(corpus.train_files) + len(corpus.validation_files) == 40
        assert len(corpus.train_files) > 30
        folder = Path(corpus.source)
        again = text.load([folder])
        assert again.fingerprint == corpus.fingerprint
        (folder / "0.txt").rename(folder / "0.md")  # another name may be on the other side; the others stay
        moved = text.load([folder])
        (folder / "0.md").rename(folder / "0.txt")
        changed = set(moved.validation_files) ^ set(corpus.validation_files)
        assert changed <= {f"{folder.name}/0.txt", f"{folder.name}/0.md"}

    def test_standard_library(self) -> None:
        corpus = text.load()
        assert len(corpus.train) > 1_000_000
        assert len(corpus.validation) > 50_000
        assert not any("site-packages" in name or "/test" in name for name in corpus.train_files)

    def test_one_file_is_cut(self, tmp_path: Path) -> None:
        (tmp_path / "one.txt").write_bytes(bytes(range(1, 101)) * 10)
        corpus = text.load([tmp_path / "one.txt"])
        assert bytes(corpus.train.tolist() + corpus.validation.tolist()) == bytes(range(1, 101)) * 10
        assert len(corpus.validation) == 50

    def test_a_file_named_twice_is_read_once(self, tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / name).write_text(name * 10)
        (tmp_path / "link").symlink_to(tmp_path / "a")
        corpus = text.load([tmp_path, tmp_path / "a"])
        assert len(corpus.train_files) + len(corpus.validation_files) == 3

    def test_what_is_not_text_is_left_out(self, tmp_path: Path) -> None:
        for name, content in {"a": b"text", "b": b"more", "picture": b"\x89PNG\0\0", "empty": b" \n"}.items():
            (tmp_path / name).write_bytes(content)
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git" / "config").write_text("hidden")
        corpus = text.load([tmp_path])
        assert sorted(corpus.train_files + corpus.validation_files) == [f"{tmp_path.name}/{name}" for name in "ab"]

    def test_batches_do_not_depend_on_the_global_generator(self, corpus: text.Corpus) -> None:
        one, other = (text.Batches(corpus, batch=4, seq=16, seed=3) for _ in range(2))
        for _ in range(3):
            tokens, targets = one.draw()
            torch.randn(5)
            assert torch.equal(tokens, other.draw()[0])
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        assert not torch.equal(tokens, text.Batches(corpus, batch=4, seq=16, seed=4).draw()[0])

    def test_shortest_text(self, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / name).write_bytes(b"abcdefghi")
        data = text.Batches(text.load([tmp_path]), batch=3, seq=8, seed=0)
        tokens, targets = data.draw()
        assert bytes(tokens[2].tolist()) == b"abcdefgh"
        assert bytes(targets[2].tolist()) == b"bcdefghi"
        assert all(torch.equal(tokens, windows) for windows, _ in data.validation(2))

    @pytest.mark.parametrize(
        ("content", "argv", "message"),
        [
            (None, [], r"--data .*nowhere: no such file or folder"),
            (b" \n", [], r"no text in .*nowhere: every file is empty or binary"),
            (b"x" * 300, ["--seq", "64"], r"the validation text of .* has 15 bytes; a sequence of 64 .*--data.*--seq"),
        ],
        ids=["missing", "empty", "short"],
    )
    def test_errors(
        self, content: bytes | None, argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        file = tmp_path / "nowhere"
        if content is not None:
            file.write_bytes(content)
        arguments = ["--size", "test", "--backend", "eager", "--data", str(file), "--out", str(tmp_path / "out"), *argv]
        with pytest.raises(SystemExit) as stop:
            train_llama.main(arguments)
        assert stop.value.code == 2
        assert re.search(message, capsys.readouterr().err)


class TestSavedBytes:
    def test_what_eager_keeps(self) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(32, 64, bias=False), torch.nn.Sigmoid())
        x = torch.randn(10, 32)
        assert saved_bytes(model(x).sum(), model) == 4 * (10 * 32 + 10 * 64)

    def test_a_storage_counts_once_and_parameters_never(self) -> None:
        model = torch.nn.Linear(32, 32, bias=False)
        x = torch.randn(16, 32, requires_grad=True)
        y = model(x)
        assert saved_bytes((y * y + y[:4].mean() * y).sum(), model) >= 4 * (2 * 16 * 32)
        assert saved_bytes((x.view(8, 64) * x.view(8, 64)).sum(), model) == 4 * 16 * 32

    def test_what_a_compiled_graph_keeps(self) -> None:
        torch._dynamo.reset()
        model = torch.nn.Sequential(torch.nn.Linear(32, 64, bias=False), torch.nn.Sigmoid())
        x = torch.randn(10, 32)
        loss = torch.compile(model, dynamic=False)(x).square().sum()
        assert "Compiled" in type(loss.grad_fn.next_functions[0][0].next_functions[0][0]).__name__
        assert saved_bytes(loss, model) == 4 * (10 * 32 + 10 * 64)
        loss.backward()

    def test_smoothing_has_no_bias(self) -> None:
        assert figures.smoothed([2.0] * 5, 3) == pytest.approx([2.0] * 5)
        assert figures.smoothed([1.0, 3.0], 1) == [1.0, 3.0]


class TestTraining:
    def test_the_loss_falls(self, corpus: text.Corpus, tmp_path: Path) -> None:
        run = trainer(corpus, tmp_path)
        run.run()
        assert run.history.losses[0] == pytest.approx(math.log(256), abs=0.1)
        assert run.history.validation[-1][1] < 4
        assert run.history.saved_bytes > 0

    def test_schedule(self, corpus: text.Corpus, tmp_path: Path) -> None:
        settings = trainer(corpus, tmp_path, "--steps 100 --lr 1").settings
        rates = [training.learning_rate(step, settings) for step in range(101)]
        assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert rates[10] == 1
        assert rates[100] == pytest.approx(0.1)
        assert sorted(rates[10:], reverse=True) == rates[10:]

    def test_what_decays(self, corpus: text.Corpus, tmp_path: Path) -> None:
        run = trainer(corpus, tmp_path)
        matrices, others = run.optimizer.param_groups
        assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
        assert len(matrices["params"]) == 2 * 7 + 1
        assert {id(p) for p in others["params"]} == {
            id(p) for name, p in run.model.named_parameters() if "norm" in name or "embed" in name
        }

    def test_accumulation_is_the_same_step(self, corpus: text.Corpus, tmp_path: Path) -> None:
        whole, pieces = trainer(corpus, tmp_path), trainer(corpus, tmp_path, "--accumulate 2")
        assert whole.train_step()[0] == pytest.approx(pieces.train_step()[0], rel=1e-5)

    @pytest.mark.parametrize("step", [7, 10])
    def test_resume_is_bitwise(self, step: int, corpus: text.Corpus, tmp_path: Path) -> None:
        whole = trainer(corpus, tmp_path / "whole")
        whole.run()
        assert_same_run(whole, stopped_and_resumed(corpus, tmp_path / "parts", "eager", step))

    @pytest.mark.parametrize("backend", ["inductor", "quartet"])
    def test_resume_is_bitwise_compiled(self, backend: str, corpus: text.Corpus, tmp_path: Path) -> None:
        torch._dynamo.reset()
        whole = trainer(corpus, tmp_path / "whole", backend=backend)
        whole.run()
        assert_same_run(whole, stopped_and_resumed(corpus, tmp_path / "parts", backend, 7))

    def test_checkpoint_loads_into_the_plain_model(self, corpus: text.Corpus, tmp_path: Path) -> None:
        run = trainer(corpus, tmp_path)
        run.save(run.checkpoint)
        state = torch.load(run.checkpoint, weights_only=True)
        llama.Llama(llama.SIZES["test"]).load_state_dict(state["model"])
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]

    def test_a_checkpoint_that_was_cut_off_leaves_the_old_one(
        self, corpus: text.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = trainer(corpus, tmp_path)
        run.save(run.checkpoint)
        before = run.checkpoint.read_bytes()

        def full_disk(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space"):
            run.save(run.checkpoint)
        assert run.checkpoint.read_bytes() == before

    def test_resume_says_what_changed_or_does_not_fit(self, corpus: text.Corpus, tmp_path: Path) -> None:
        run = trainer(corpus, tmp_path)
        run.save(run.checkpoint)
        assert trainer(corpus, tmp_path, "--lr 1e-4 --steps 30").restore() == ["steps 20 -> 30", "lr 0.003 -> 0.0001"]
        other = dataclasses.replace(corpus, train=corpus.train[1:])
        assert trainer(other, tmp_path).restore() == ["the text"]
        args = train_llama.parser().parse_args(["--size", "demo"])
        demo = training.Trainer(train_llama.settings_of(args, "eager"), text.load(), tmp_path, "demo")
        with pytest.raises(checkpoint.CheckpointError, match="is a model of size test, and --size says demo"):
            demo.restore()
        run.checkpoint.write_bytes(b"not a checkpoint")
        with pytest.raises(checkpoint.CheckpointError, match="checkpoint.pt is not a checkpoint of train_llama.py"):
            run.restore()

    def test_divergence_stops_and_saves_the_last_good_weights(self, corpus: text.Corpus, tmp_path: Path) -> None:
        run = trainer(corpus, tmp_path)
        run.train_step()
        good = {name: value.clone() for name, value in run.model.state_dict().items()}
        data = run.data.generator.get_state()
        run.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
        with pytest.raises(training.Diverged, match=r"norm nan at step 2; .*diverged.pt.*lower --lr than 0.003"):
            run.train_step()
        state = torch.load(tmp_path / "diverged.pt", weights_only=True)
        assert state["step"] == 1
        assert all(torch.equal(state["model"][name], value) for name, value in good.items())
        assert torch.equal(state["random"]["data"], data)

    def test_a_loss_that_is_not_a_number_stops(self, corpus: text.Corpus, tmp_path: Path) -> None:
        run = trainer(corpus, tmp_path)
        with torch.no_grad():
            run.model.norm.weight.fill_(math.nan)
        with pytest.raises(training.Diverged, match="the loss is nan"):
            run.run()


class TestMonitor:
    @pytest.mark.slow
    def test_statistics_change_no_bit_and_are_written(self, corpus: text.Corpus, tmp_path: Path) -> None:
        events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        plain = trainer(corpus, tmp_path / "plain", "--steps 4 --eval-every 4", backend="quartet")
        plain.run()
        torch._dynamo.reset()
        measured = trainer(corpus, tmp_path / "measured", "--steps 4 --eval-every 4 --stats-every 2", backend="quartet")
        measured.monitor = monitor.Monitor(tmp_path / "events")
        measured.run()
        assert_same_run(measured, plain)
        assert (tmp_path / "measured" / "stats.txt").read_text().startswith("Step 4\n\nmatmul")
        found = events.EventAccumulator(str(tmp_path / "events")).Reload()
        assert [event.step for event in found.Scalars("loss/train")] == [1, 2, 3, 4]
        assert [event.step for event in found.Scalars("loss/validation")] == [4]
        cosines = found.Scalars("quantization/layers.1.mlp.up_proj/wgrad/dW/cosine")
        assert [event.step for event in cosines] == [2, 4] and all(0.5 < event.value < 1 for event in cosines)

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        monkeypatch.setattr(train_llama, "has_tensorboard", lambda: False)
        with pytest.raises(SystemExit):
            train_llama.main(["--tensorboard", "events"])
        assert "needs the package tensorboard: pip install tensorboard" in capsys.readouterr().err


class TestCommand:
    def test_compare_writes_table_picture_and_figures(
        self, corpus: text.Corpus, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        argv = ["--size", "test", "--compare", "--baseline", "eager", "--backend", "eager", "--data", corpus.source]
        assert train_llama.main([*argv, "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        for part in ("CPU, eager PyTorch", "validation loss", "+0.0000 (+0.0 %)", "step time", "saved for backward"):
            assert part in said
        assert (tmp_path / "table.txt").read_text() in said
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
        written = json.loads((tmp_path / "figures.json").read_text())
        one, other = written["runs"].values()
        assert list(written["runs"]) == ["full precision (float32)", "eager"]
        assert one["losses"] == other["losses"]
        assert written["against_first"]["eager"]["validation_gap"] == 0
        assert len(one["losses"]) == written["settings"]["steps"] == 20
        assert (tmp_path / "full-precision" / "checkpoint.pt").exists()

        assert train_llama.main([*argv, "--out", str(tmp_path), "--resume"]) == 0  # both are done: the table again
        assert json.loads((tmp_path / "figures.json").read_text())["runs"] == written["runs"]

    def test_quartet(self, corpus: text.Corpus, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        argv = ["--size", "test", "--steps", "2", "--recipe", "quartet", "--data", corpus.source]
        assert train_llama.main([*argv, "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "CPU, Inductor + Quartet CPU kernels" in said
        assert "14 of 17 matmuls in FP4" in said
        assert "layers.0-1.mlp.down_proj" in (tmp_path / "explain.txt").read_text()

    def test_a_new_run_moves_the_old_checkpoint_aside(self, corpus: text.Corpus, tmp_path: Path) -> None:
        argv = ["--size", "test", "--steps", "1", "--backend", "eager", "--data", corpus.source, "--out", str(tmp_path)]
        assert train_llama.main(argv) == 0
        first = (tmp_path / "checkpoint.pt").read_bytes()
        assert train_llama.main(argv) == 0
        assert (tmp_path / "checkpoint.previous.pt").read_bytes() == first

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ("--resume", "there is no checkpoint.pt in"),
            ("--steps 0", "0 is not a positive number"),
            ("--lr -1", "--lr -1.0 is not a positive number"),
            ("--warmup 2", "--warmup 2.0 is a share of the steps"),
            ("--accumulate 3", "--accumulate 3 doesn't divide the batch of 4 sequences"),
            ("--stats-every 5", "--stats-every 5 needs --backend quartet, not eager"),
            ("--recipe quartet", "--recipe quartet needs --backend quartet, not eager"),
            ("--backend quartet --recipe quartett", "Unknown recipe 'quartett' (did you mean 'quartet'?)"),
        ],
    )
    def test_errors(self, argv: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        with pytest.raises(SystemExit):
            train_llama.main(["--size", "test", "--backend", "eager", "--out", str(tmp_path), *argv.split()])
        assert message in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self, capsys: pytest.CaptureFixture) -> None:
        with pytest.raises(SystemExit):
            train_llama.main(["--device", "cuda"])
        assert "leave it out to train on the CPU" in capsys.readouterr().err

    def test_ctrl_c_saves(self, corpus: text.Corpus, tmp_path: Path) -> None:
        script = Path(train_llama.__file__)
        command = [sys.executable, script, "--size", "test", "--backend", "eager", "--steps", "1000000"]
        process = subprocess.Popen(
            [*command, "--data", corpus.source, "--out", tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while "step 1/" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert "continue with the same command and --resume" in error
        assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] >= 1


def test_curves_have_whole_steps_and_the_switches_of_a_schedule(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    pyplot = pytest.importorskip("matplotlib.pyplot")
    seen = []
    monkeypatch.setattr(pyplot, "close", seen.append)
    losses = [3.0, 2.5, 2.2, 2.1]
    plain = {"losses": losses, "validation": [(2, 2.6), (4, 2.2)]}
    switched = {**plain, "schedule": [[3, "mxfp4-bwd"]]}
    figures.picture({"full precision": plain, "quartet": switched}, "a run", tmp_path / "curves.png")
    (drawn,) = seen
    assert isinstance(drawn, figure) and (tmp_path / "curves.png").exists()
    top, below = drawn.axes
    assert [text.get_text() for text in top.texts] == ["mxfp4-bwd"] and top.texts[0].xy[0] == 3
    assert all(float(tick).is_integer() for tick in below.get_xticks())
