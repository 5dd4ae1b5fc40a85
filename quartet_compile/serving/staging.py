"""A folder that is there as a whole, or not at all."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from ..errors import ExportError


def require_new(folder: pathlib.Path) -> None:
    """Raise `ExportError` if something has the name of the folder."""
    if folder.exists() or folder.is_symlink():
        raise ExportError(
            f"The folder {str(folder)!r} exists already; expected a new one, since an export is written as a whole. Name "
            "another, or remove it."
        )


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `folder`, which gets that name at the end of the block; after an error it is removed.

    Raises `ExportError` for a folder that is there already, and for what can't be written, as on a full disk.
    """
    require_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
        staged.mkdir()
    except OSError as error:
        raise ExportError(f"The folder {str(folder)!r} can't be made: {error.strerror}. Name another.") from None
    try:
        yield staged
        staged.rename(folder)
    except OSError as error:
        free = shutil.disk_usage(folder.parent).free
        raise ExportError(
            f"The export can't be written to {str(folder)!r}: {error.strerror or error}. {free:,} bytes are free there; "
            "nothing was left behind. Make room, or name a folder elsewhere."
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
