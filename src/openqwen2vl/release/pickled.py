"""Opening a ``.pt`` of others without running what a stranger put into it."""

import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from openqwen2vl.formats.errors import CheckpointError


def open_pickled(path: Path) -> dict[str, Any]:
    """Open a file of PyTorch's, tensors and plain values alone; they lie in the file until used.

    Raises:
        CheckpointError: no such file, another kind of file, an archive whose names lead out of
            it, half a file, or one that would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"no file at {path}; check the path")
    if not zipfile.is_zipfile(path):
        kind = "a tar archive" if tarfile.is_tarfile(path) else "cut off, or no file of PyTorch's"
        raise CheckpointError(
            f"{path} is {kind}; expected a .pt in the zip layout that torch.save has written "
            "since version 1.6"
        )
    _check_names(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        said = str(error)
        if "weights_only" in said or "Unsupported" in said:
            raise CheckpointError(
                f"{path} is refused: it holds more than tensors and plain values, which could run "
                "code when it is opened; give a file with weights alone"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {said.splitlines()[0]}); it is cut "
            "off or damaged"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a table of names")
    return loaded


def _check_names(path: Path) -> None:
    """Refuse an archive with names that lead out of it; nothing is unpacked here, but elsewhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it is cut off") from error
    outside = [n for n in names if n.startswith("/") or ".." in PurePosixPath(n).parts]
    if outside:
        raise CheckpointError(
            f"{path} is refused: {outside[0]!r} in it leads out of the archive; no program of "
            "good will writes such names"
        )
