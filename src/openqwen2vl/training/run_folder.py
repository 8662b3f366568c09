"""One folder a run, one writer at a time, no clock in any name."""

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.training.checkpoint import checkpoints

FRESH, AUTO, LAST = None, "auto", "last"
_LOCK = ".lock"
_PATIENCE = 1.0  # seconds in which one that only looks (`RunFolder.written`) has let go


class RunFolder:
    """`runs/<name>/`: config, metrics, checkpoints, what was consumed, hardware.

    Args:
        path: of the folder; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None

    @property
    def checkpoints(self) -> Path:
        """Give the folder of the checkpoints."""
        return self.path / "checkpoints"

    def lock(self) -> None:
        """Become the folder's only writer until this process dies, however it dies.

        Raises:
            UserError: another process is writing, or the file system knows no locks.
        """
        while self._lock is None:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the folder went, as ``forget`` says
                self._lock = self._locked((self.path / _LOCK).open("a+b"))

    def _locked(self, lock: BinaryIO) -> BinaryIO | None:
        """Lock an open file; ``None`` when its owner forgot it meanwhile, so that it guards nothing."""
        try:
            _take(lock)
            if os.path.samestat(os.fstat(lock.fileno()), (self.path / _LOCK).stat()):
                return lock
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            lock.close()
            raise UserError(
                f"another process is writing to {self.path}; wait for it, stop it, or choose "
                "another name="
            ) from error
        except OSError as error:
            lock.close()
            raise UserError(
                f"{self.path} cannot be locked ({error}), so two runs could write to it; choose a "
                "run_dir= on a file system with locks"
            ) from error
        lock.close()
        return None

    def forget(self) -> None:
        """Remove the folder again when this process locked it and nothing else lies in it.

        So a run that was refused before it wrote anything leaves nothing behind.
        """
        if self._lock is None or [path.name for path in self.path.iterdir()] != [_LOCK]:
            return
        (self.path / _LOCK).unlink()
        with suppress(OSError):  # another run took the folder in this very moment
            self.path.rmdir()
        self._lock.close()
        self._lock = None

    def written(self) -> bool:
        """Tell whether a process writes to the folder: a run that says so may have been killed.

        Where locks cannot be asked for, no process is known to.
        """
        path = self.path / _LOCK
        if not path.is_file():
            return False
        try:
            with path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def checkpoint(self, resume: str | None) -> Path | None:
        """Find what to resume from.

        Args:
            resume: None (a fresh run), ``auto`` (the newest checkpoint if there is one),
                ``last`` (the newest checkpoint) or a checkpoint's path.

        Returns:
            The checkpoint, or None for a fresh start.

        Raises:
            UserError: the folder holds a run and ``resume`` is None.
            CheckpointError: there is nothing to resume from.
        """
        found = checkpoints(self.checkpoints)
        if resume == FRESH:
            if found or (self.path / "metrics.csv").exists():
                raise UserError(
                    f"{self.path} holds a run already; go on with it by resume=last, or start "
                    "another with name=OTHER (or delete the folder)"
                )
            return None
        if resume in (AUTO, LAST):
            if not found and resume == LAST:
                raise CheckpointError(
                    f"resume=last, but {self.checkpoints} has no complete checkpoint; "
                    "resume=auto starts afresh in that case"
                )
            return found[-1] if found else None
        if not Path(resume).exists():
            raise CheckpointError(f"resume={resume}: there is no such checkpoint")
        return Path(resume)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a small file of facts, atomically, keys in their order: that of sources counts."""
        with atomic_file(self.path / name) as file:
            file.write((json.dumps(content, indent=1) + os.linesep).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a file that `write_json` wrote; empty when there is none."""
        path = self.path / name
        loaded = json.loads(path.read_text()) if path.is_file() else {}
        return dict(loaded)


def _take(lock: BinaryIO) -> None:
    """Lock a file for this process alone.

    Raises:
        BlockingIOError: another process held it all the while.
        OSError: there are no locks here.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.05)
