"""Locks: one process at a time makes a file, and a lock ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openqwen2vl.formats.errors import UserError


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Fill a folder alone while the block runs; whoever comes meanwhile is turned away.

    Args:
        folder: what the block fills; made when missing. The lock is a hidden file in it, gone
            afterwards.

    Raises:
        UserError: another process fills it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(folder / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing into {folder}; wait for it, stop it, or give another out"
        ) from error
    except OSError as error:
        raise UserError(
            f"nothing can be written into {folder} ({error.strerror}); give another out"
        ) from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Wait until no other process makes a file, and hold others off while the block runs.

    Two runs may share an index, and a worker of a run that was killed may live on for a moment.

    Args:
        path: what the block makes; the lock is a hidden sibling, gone afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path, how: int) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, how)
        except OSError:
            os.close(descriptor)
            raise
        # Who held it before may have removed the file that was waited for.
        if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
            return descriptor
        os.close(descriptor)
