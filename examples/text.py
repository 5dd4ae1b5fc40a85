"""Training text as bytes: the Python standard library's source, or any text files; and the batches drawn from it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT = 0.05
"""Share of the files kept for validation."""

LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
"""Folders of the standard library that are left out: not part of it, tests, and machine-written tables."""


class DataError(ValueError):
    """The text that was asked for can't be trained on."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """train, validation: uint8[bytes], of disjoint files (of one file: its first part and its end)."""

    source: str
    train: Tensor
    validation: Tensor
    train_files: tuple[str, ...]
    validation_files: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes when any byte of the text, or the split, does."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.numpy())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        return (
            f"{self.source}: {len(self.train) / 1e6:.2f} MB to train on ({len(self.train_files)} files), "
            f"{len(self.validation) / 1e6:.2f} MB held out ({len(self.validation_files)} files)"
        )


def load(paths: Sequence[str | Path] = ()) -> Corpus:
    """The text of `paths` (files, or folders with everything below them), or the standard library's source."""
    if not paths:
        root = Path(sysconfig.get_path("stdlib"))
        files = [p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts)]
        if not files:
            raise DataError(f"this Python has no standard library source in {root}; name some text with --data PATH")
        return split("the Python standard library's source", read((str(p.relative_to(root)), p) for p in files))
    files = {}
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"--data {path}: no such file or folder (looked in {Path.cwd()})")
        for name, file in text_files(path):
            files.setdefault(file.resolve(), name)  # a file named twice must not be on both sides of the split
    return split(", ".join(map(str, paths)), read((name, file) for file, name in files.items()))


def text_files(path: Path) -> Iterator[tuple[str, Path]]:
    """(relative name, file) of a file, or of every text file below a folder; hidden ones are left out."""
    if path.is_file():
        yield path.name, path
        return
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                yield str(Path(path.name) / file.relative_to(path)), file


def read(files: Iterable[tuple[str, Path]]) -> dict[str, bytes]:
    """Contents by name. Empty files and binary ones (a NUL in the first 8 KB, as git tells them) are left out."""
    contents = {}
    for name, file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(f"can't read {file}: {error.strerror}") from error
        if data.strip() and b"\0" not in data[:8192]:
            contents[name if name not in contents else str(file)] = data
    return contents


def split(source: str, contents: dict[str, bytes]) -> Corpus:
    """Files whose name hashes into the lowest `HELD_OUT` are for validation; at least one is, and one is not."""

    def place(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64

    if not contents:
        raise DataError(f"no text in {source}: every file is empty or binary")
    if len(contents) == 1:
        ((name, data),) = contents.items()
        cut = int(len(data) * (1 - HELD_OUT))
        return Corpus(source, as_tensor([data[:cut]]), as_tensor([data[cut:]]), (name,), (name,))
    ranked = sorted(contents, key=place)
    held_out = max(1, min(len(ranked) - 1, sum(place(name) < HELD_OUT for name in ranked)))
    validation, train = sorted(ranked[:held_out]), sorted(ranked[held_out:])
    parts = (as_tensor([contents[name] for name in names]) for names in (train, validation))
    return Corpus(source, *parts, tuple(train), tuple(validation))


def as_tensor(pieces: Iterable[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join(pieces)), dtype=torch.uint8)


class Batches:
    """Random windows of the training text, and fixed ones of the validation text.

    The generator is its own: a backend may draw from torch's global one (a seed each backward pass), and runs that are
    compared must still see the same windows.
    """

    def __init__(self, corpus: Corpus, *, batch: int, seq: int, seed: int, device: str = "cpu") -> None:
        for part, data in (("training", corpus.train), ("validation", corpus.validation)):
            if len(data) <= seq:
                raise DataError(
                    f"the {part} text of {corpus.source} has {len(data)} bytes; a sequence of {seq} tokens needs at "
                    f"least {seq + 1}. Give more text (--data) or a shorter sequence (--seq)."
                )
        self.corpus, self.batch, self.seq, self.device = corpus, batch, seq, device
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """tokens, targets: int64[batch, seq], at uniformly random offsets."""
        last = len(self.corpus.train) - self.seq
        return self._windows(self.corpus.train, torch.randint(last, (self.batch,), generator=self.generator))

    def validation(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`count` batches of windows evenly spaced over the validation text: the same at every call."""
        last = len(self.corpus.validation) - self.seq - 1
        offsets = torch.linspace(0, last, count * self.batch, dtype=torch.float64).long()
        for piece in offsets.split(self.batch):
            yield self._windows(self.corpus.validation, piece)

    def _windows(self, data: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        windows = data[offsets[:, None] + torch.arange(self.seq + 1)].long().to(self.device)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
