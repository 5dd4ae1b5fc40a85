"""Where the weights come from: a model, or a checkpoint folder that is read a tensor at a time."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from .. import _compat
from ..errors import ExportError
from ..held import Held
from ..optional import needed
from .plan import unshared

_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")


class Source(Protocol):
    """names: of the tensors. config: what `config.json` says, or an empty dict. companions: files that go with the
    weights."""

    names: list[str]
    config: dict[str, Any]
    companions: list[pathlib.Path]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor | Held]]:
        """Each tensor with its name, one at a time."""

    @property
    def sharded(self) -> bool:
        """Whether each tensor is gathered from several ranks, which all read it at the same time."""


class ModelSource:
    """The tensors of a model in memory. Those of a sharded one are gathered, one at a time, on all of its ranks."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = unshared(model)
        self.names = list(self._tensors)
        self.companions: list[pathlib.Path] = []
        config: Any = getattr(model, "config", None)
        self.config: dict[str, Any] = json.loads(config.to_json_string(use_diff=False)) if _is_hf(config) else {}
        if self.config:
            self.config["architectures"] = [type(model).__name__]
        self.sharded = any(map(_compat.is_distributed_tensor, self._tensors.values()))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor | Held]]:
        for name, tensor in self._tensors.items():
            yield name, tensor if isinstance(tensor, Held) else _compat.whole(tensor.detach())


class FolderSource:
    """The tensors of a checkpoint folder: `model.safetensors`, or shards with an index. quantized: whether the weights may
    be."""

    sharded = False

    def __init__(self, folder: pathlib.Path, quantized: bool = False) -> None:
        if not folder.is_dir():
            raise ExportError(
                f"No folder {str(folder)!r}; expected one with model.safetensors, as save_pretrained writes."
            )
        index = _read_json(folder / _INDEX).get("weight_map", {}) if (folder / _INDEX).is_file() else None
        self._files = _files(folder, index)
        self.names = _names(folder, self._files)
        held = set(self.names)
        lost = [name for name in index or () if name not in held]
        if lost:
            raise ExportError(
                f"{_INDEX} in {str(folder)!r} lists {len(lost)} tensors that its files don't hold, as {lost[0]!r}. Copy the "
                "checkpoint again."
            )
        self.config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        if "quantization_config" in self.config and not quantized:
            method = self.config["quantization_config"].get("quant_method", "some method")
            raise ExportError(
                f"The checkpoint {str(folder)!r} is quantized already (by {method}); expected the weights "
                "that were trained. "
                "Give the checkpoint that training saved."
            )
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self.companions = [path for path in files if not path.name.endswith(_WEIGHTS) and path.name != "config.json"]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for file in self._files:
            with _open(file) as opened:
                for name in opened.keys():  # noqa: SIM118  a handle, not a dict
                    yield name, opened.get_tensor(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, none of which is read."""
        found: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            with _open(file) as opened:
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return found


def _is_hf(config: Any) -> bool:
    return hasattr(config, "to_json_string")


def _files(folder: pathlib.Path, index: Mapping[str, str] | None) -> list[pathlib.Path]:
    """The files with the tensors. index: in which file each tensor is; None for a folder without one."""
    if index is not None:
        files = [folder / name for name in sorted(set(index.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise ExportError(
                f"{_INDEX} in {str(folder)!r} names files that aren't there: {', '.join(missing) or 'none at all'}."
            )
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ExportError(
            f"{str(folder)!r} has no *.safetensors; expected model.safetensors, or shards with {_INDEX}. "
            "Save the model with "
            "save_pretrained(..., safe_serialization=True) or safetensors.torch.save_model."
        )
    return files


def _names(folder: pathlib.Path, files: Iterable[pathlib.Path]) -> list[str]:
    """The names of the tensors. Raises `ExportError` for one that two files hold."""
    places: dict[str, str] = {}
    for file in files:
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118  a handle, not a dict
                if name in places:
                    raise ExportError(
                        f"The checkpoint {str(folder)!r} has the tensor {name!r} in {places[name]} and in {file.name}; "
                        "expected each in one file. Keep the files of one checkpoint only."
                    )
                places[name] = file.name
    return list(places)


def _open(file: pathlib.Path) -> Any:
    safetensors: Any = needed("safetensors", "Reading a checkpoint", ExportError, "export")
    try:
        return safetensors.safe_open(file, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ExportError(f"{str(file)!r} can't be read: {error}. Copy the checkpoint again.") from None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{str(path)!r} can't be read: {error}.") from None
    if not isinstance(read, dict):
        raise ExportError(f"{str(path)!r} holds a {type(read).__name__}; expected an object.")
    return read
