"""Atomic writing: a name that exists is a file that is complete."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from openqwen2vl.formats.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file or folder its name, so that readers see all of it or none.

    Args:
        temporary: complete and flushed, on the same file system as ``final``.
        final: the name to give; a file of that name is replaced.
    """
    os.replace(temporary, final)
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def tell_full_disk(path: Path) -> Iterator[None]:
    """Turn whatever a full disk makes of writing into one sentence.

    Args:
        path: what the block writes.

    Raises:
        UserError: the disk, or its owner's share of it, is full.
    """
    try:
        yield
    except BaseException as error:  # PyTorch's of a sharded checkpoint is no Exception
        if _is_full(error):
            raise UserError(_no_space(path)) from error
        raise


def _no_space(path: Path) -> str:
    return f"no space left while writing {path}; free some or choose another folder"


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError):
            if error.errno in _FULL:
                return True
        # Libraries in other languages, and PyTorch of its ranks, pass on the sentence alone.
        elif any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a hidden sibling for writing and rename it to ``path`` when the block ends well.

    Raises:
        UserError: the disk is full, or nothing may be written there; no half-written sibling is
            left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(_no_space(path)) from error
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose another folder"
        ) from error
    with tell_full_disk(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
