"""Safetensors written one tensor at a time, in shards with an index as Hugging Face lays them out.

A file is 8 bytes of the header's length, a JSON header that spaces may follow, and the tensors without gaps. The header
comes first and lists all tensors of the file, so room for it is left and filled in at the end. Tensors that would leave
the next one misaligned wait in memory for the end of their shard: of the formats here, only scales do.
Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import torch

from ..errors import ExportError

SHARD_BYTES = 5 * 10**9
_ALIGNED = 8
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PARTS, _ENTRY = 8, 220
"""At most so many tensors are written for one of the model, with so many bytes of header each beside their names."""


class Shards:
    """Writes tensors into `folder`. names: of the model's tensors, to know how long the header may become."""

    def __init__(self, folder: pathlib.Path, names: Iterable[str], shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._limit = folder, shard_bytes
        self._room = math.ceil(sum(_PARTS * (len(name) + _ENTRY) for name in names) / _ALIGNED) * _ALIGNED + 64
        self._files: list[tuple[pathlib.Path, list[str]]] = []
        self._total = 0
        self._file: Any = None
        self._header: dict[str, Any] = {}
        self._waiting: list[tuple[str, torch.Tensor]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor, of a name that isn't there yet. Raises `ExportError` for a dtype that safetensors doesn't have."""
        if tensor.dtype not in _DTYPES:
            raise ExportError(
                f"The tensor {name!r} is {tensor.dtype}; expected one of {', '.join(map(str, _DTYPES))}. Convert it, or "
                "leave it out of the state dict."
            )
        if self._file is not None and self._size() + tensor.nbytes > self._limit:
            self._finish()
        if self._file is None:
            self._start()
        if tensor.nbytes % _ALIGNED:
            self._waiting.append((name, tensor.clone()))
        else:
            self._write(name, tensor)

    def close(self) -> None:
        """Finish the last shard, name the files, and write the index if there are several."""
        if self._file is None and not self._files:
            self._start()
        if self._file is not None:
            self._finish()
        count, where = len(self._files), {}
        for number, (path, names) in enumerate(self._files, 1):
            final = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(path.with_name(final))
            where.update(dict.fromkeys(names, final))
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(where.items()))}
            (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def abandon(self) -> None:
        """Close the file that an error left open; what can't be written any more is lost."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _size(self) -> int:
        return int(self._file.tell()) - self._start_of_data + sum(tensor.nbytes for _, tensor in self._waiting)

    @property
    def _start_of_data(self) -> int:
        return 8 + self._room

    def _start(self) -> None:
        path = self._folder / f"shard-{len(self._files)}"
        self._file = open(path, "wb")  # noqa: SIM115  closed by `_finish` or `abandon`
        self._file.seek(self._start_of_data)
        self._files.append((path, []))
        self._header = {"__metadata__": {"format": "pt"}}

    def _write(self, name: str, tensor: torch.Tensor) -> None:
        start = self._file.tell() - self._start_of_data
        self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        entry = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        self._header[name] = entry
        self._files[-1][1].append(name)
        self._total += tensor.nbytes

    def _finish(self) -> None:
        for name, tensor in sorted(self._waiting, key=lambda item: -item[1].element_size()):
            self._write(name, tensor)
        self._waiting.clear()
        header = json.dumps(self._header).encode()
        assert len(header) <= self._room
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.close()
        self._file = None
