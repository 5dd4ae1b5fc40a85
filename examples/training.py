"""One training run: a model, its optimizer, its data and its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import checkpoint
import torch
from llama import SIZES, Llama
from progress import Progress
from text import Batches, Corpus
from torch import Tensor

from quartet_compile._compat import saved_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    size: str
    backend: str
    recipe: str | None
    steps: int
    batch: int
    accumulate: int
    seq: int
    lr: float
    warmup: float
    seed: int
    device: str
    dtype: str
    eval_every: int
    eval_batches: int
    schedule: tuple[tuple[int, str], ...] = ()
    stats_every: int = 0
    weight_decay: float = 0.1
    clip: float = 1.0

    @property
    def tokens_a_step(self) -> int:
        return self.batch * self.seq


@dataclasses.dataclass
class History:
    """What a run measured. Times are in seconds; a process's first step and first evaluation compile, and are apart."""

    losses: list[float] = dataclasses.field(default_factory=list)
    validation: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    first_step_seconds: float = 0.0
    first_eval_seconds: float = 0.0
    saved_bytes: int = 0


class Stopped(Exception):
    """The user asked a run to stop; it is saved."""


class Diverged(Exception):
    """A loss or a gradient is no longer a number; the weights before that step are saved."""


def compiled(model: torch.nn.Module, backend: str, recipe: str | None, stats: bool = False) -> Callable[..., Tensor]:
    """The one line in which the runs differ. `dynamic=False`: every batch has the same shape."""
    if backend == "eager":
        return model
    options = ({"recipe": recipe} if recipe else {}) | ({"stats": True} if stats else {})
    return torch.compile(model, backend=backend, dynamic=False, options=options or None)


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up over the first `warmup` of the steps, then a cosine down to a tenth."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return settings.lr * (step + 1) / warm
    progress = (step - warm) / max(1, settings.steps - warm)
    return settings.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def adamw(model: torch.nn.Module, settings: Settings) -> torch.optim.AdamW:
    """Weight decay on the matrices of the linear layers (the head's too), none on the embedding and the norms."""
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    decayed = {id(weight) for weight in matrices}
    others = [p for p in model.parameters() if id(p) not in decayed]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)


@contextlib.contextmanager
def repeatable(device: str) -> Iterator[None]:
    """On a CPU, makes every sum run in one order: Inductor else adds an embedding's gradient in the threads' order."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(device == "cpu" or before[0])
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


class Trainer:
    """A run that can be stopped after any step and continued to the same bits (on one machine's CPU)."""

    def __init__(self, settings: Settings, corpus: Corpus, folder: Path, label: str) -> None:
        self.settings, self.folder, self.label = settings, folder, label
        self.fingerprint = corpus.fingerprint
        torch.manual_seed(settings.seed)
        self.model = Llama(SIZES[settings.size], positions=settings.seq).to(settings.device)
        self.forward = compiled(self.model, settings.backend, settings.recipe)
        self.measured = compiled(self.model, settings.backend, settings.recipe, True) if settings.stats_every else None
        self.monitor: Callable[[Trainer, float], None] = lambda trainer, loss: None
        self.recipe = settings.recipe
        self.optimizer = adamw(self.model, settings)
        batch = settings.batch // settings.accumulate
        self.data = Batches(corpus, batch=batch, seq=settings.seq, seed=settings.seed, device=settings.device)
        self.step = 0
        self.warm = False
        self.history = History()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        steps = self.settings.steps
        tokens = self.settings.tokens_a_step
        with (
            repeatable(self.settings.device),
            Progress(self.label, steps=steps, start=self.step, tokens_a_step=tokens) as progress,
        ):
            while self.step < steps:
                loss, seconds = self.train_step()
                if self.step % self.settings.eval_every == 0 or self.step == steps:
                    progress.validation = self.evaluate()
                    self.save(self.checkpoint)
                self.monitor(self, loss)
                progress.update(self.step, loss, seconds)
                if self.step < steps and stop():
                    self.save(self.checkpoint)
                    raise Stopped(f"{self.label}: stopped after step {self.step}; saved {self.checkpoint}")

    def train_step(self) -> tuple[float, float]:
        """One update; returns its loss and its seconds. Nothing is updated if the loss or a gradient isn't finite."""
        self._follow_schedule()
        before = checkpoint.random_state(self.settings.device, self.data.generator)
        start = time.perf_counter()
        loss = 0.0
        for _ in range(self.settings.accumulate):
            forward = self.measured if self.measures(self.step) else self.forward
            part = self._loss(*self.data.draw(), forward) / self.settings.accumulate
            if not self.history.saved_bytes:
                self.history.saved_bytes = saved_bytes(part, self.model)
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._diverged(f"the loss is {loss}, the gradient's norm {norm}", before)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if self.warm:
            self.history.step_seconds.append(seconds)
        else:
            self.history.first_step_seconds = seconds
        self.warm = True
        self.history.losses.append(loss)
        self.step += 1
        return loss, seconds

    def _follow_schedule(self) -> None:
        """Switches to the recipe of this step, also after a restart."""
        due = [recipe for step, recipe in sorted(self.settings.schedule) if step <= self.step]
        recipe = due[-1] if due else self.settings.recipe
        if recipe != self.recipe:
            import quartet_compile as qc

            for forward in (self.forward, self.measured):
                if forward is not None:
                    qc.set_recipe(forward, recipe or "quartet")
            self.recipe = recipe

    def measures(self, step: int) -> bool:
        """Whether the step after so many runs with statistics, which change no bit of it."""
        return bool(self.settings.stats_every) and (step + 1) % self.settings.stats_every == 0

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the validation windows, with the compiled model in eval mode, and recorded."""
        start = time.perf_counter()
        self.model.eval()
        losses = [self._loss(*pair, self.forward).item() for pair in self.data.validation(self.settings.eval_batches)]
        self.model.train()
        self.history.first_eval_seconds = self.history.first_eval_seconds or time.perf_counter() - start
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss):
            self._diverged(f"the validation loss is {loss}", None)
        self.history.validation.append((self.step, loss))
        return loss

    def _loss(self, tokens: Tensor, targets: Tensor, forward: Callable[..., Tensor]) -> Tensor:
        with self.autocast():
            return forward(tokens, targets)

    def autocast(self) -> contextlib.AbstractContextManager:
        dtype = DTYPES[self.settings.dtype]
        low = dtype != torch.float32
        return torch.autocast(self.settings.device, dtype=dtype) if low else contextlib.nullcontext()

    def _diverged(self, what: str, random: dict[str, Tensor] | None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        path = self.folder / "diverged.pt"
        self.save(path, random)
        raise Diverged(
            f"{self.label}: {what} at step {self.step + 1}; stopped. The state before that step is in {path}"
            + (f", the last regular checkpoint in {self.checkpoint}" if self.checkpoint.exists() else "")
            + f". A lower --lr than {self.settings.lr:g}, or a longer --warmup, may help."
        )

    def save(self, path: Path, random: dict[str, Tensor] | None = None) -> None:
        """The model's keys are those of the plain module, so any code can load them."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "random": random or checkpoint.random_state(self.settings.device, self.data.generator),
            "settings": dataclasses.asdict(self.settings),
            "data": self.fingerprint,
            "history": dataclasses.asdict(self.history),
        }
        checkpoint.write(path, state)

    def keep_previous(self) -> None:
        """A run that starts anew moves an older run's checkpoint aside instead of losing it."""
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.folder / "checkpoint.previous.pt")

    def restore(self) -> list[str]:
        """Continues from the checkpoint; returns what differs from the run that wrote it."""
        state = checkpoint.read(self.checkpoint)
        if not isinstance(state, dict) or "settings" not in state:
            raise checkpoint.CheckpointError(f"--resume: {self.checkpoint} is not a checkpoint of train_llama.py")
        saved, now = state["settings"], dataclasses.asdict(self.settings)
        if saved["size"] != now["size"]:
            raise checkpoint.CheckpointError(
                f"--resume: {self.checkpoint} is a model of size {saved['size']}, and --size says {now['size']}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        checkpoint.restore_random_state(state["random"], self.data.generator)
        self.step = state["step"]
        self.history = History(**state["history"])
        changed = [f"{key} {saved.get(key)} -> {now[key]}" for key in now if saved.get(key) != now[key]]
        return changed + (["the text"] if state["data"] != self.fingerprint else [])
