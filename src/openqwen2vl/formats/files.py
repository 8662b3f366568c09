"""Atomic writing: a name that exists is a file that is complete."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from openqwen2vl.formats.errors import UserError


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
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a hidden sibling for writing and rename it to ``path`` when the block ends well.

    Raises:
        UserError: the disk is full; the half-written sibling is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left while writing {path}; free some or choose another folder"
            ) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
