"""A folder to build in that doesn't outlive its process by much: one that a killed process left is removed by the next.

The folder holds a locked file. The system drops the lock when the process ends, however it ends, so a folder whose lock
is free belongs to nobody. Names of processes would not do: they are reused, and mean nothing to another host or
container that shares the cache.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_PREFIX, _LOCK = "building-", "lock"
_YOUNG = 60.0
"""Seconds in which a folder may not have got its lock yet."""


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end. Raises `OSError` where none can be made."""
    remove_leftovers(parent)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as name,
        open(Path(name) / _LOCK, "w") as lock,
    ):
        with contextlib.suppress(OSError):  # a file system without locks: then nobody removes what is left there
            _lock(lock)
        yield Path(name)


def remove_leftovers(parent: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in parent.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):  # another process was faster, or owns it
            if time.time() - folder.stat().st_mtime > _YOUNG and _is_free(folder / _LOCK):
                shutil.rmtree(folder)


def _is_free(lock: Path) -> bool:
    if not lock.exists():
        return True
    with open(lock) as file:
        _lock(file)
    return True


def _lock(file: IO[str]) -> None:
    """Raises `OSError` if another process holds it, or if the file system has no locks."""
    import fcntl  # which Windows lacks: the package can be imported there, and builds nothing

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
