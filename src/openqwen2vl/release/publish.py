"""Putting a finished folder in the place of another, so that readers see the old one or the new."""

import ctypes
import os
import shutil
from pathlib import Path

from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import publish
from openqwen2vl.release.opened import is_folder, is_ours

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def check_place(out: Path, overwrite: bool) -> None:
    """Make sure that a folder may be put at ``out``.

    Raises:
        UserError: something is there that may not go, or that is no model folder.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (is_folder(out) and is_ours(out)):
        # A run's folder has a config.json, too, and a base model is not ours to replace.
        raise UserError(
            f"{out} exists and is no model folder that export wrote; choose another out"
        )
    if not overwrite:
        raise UserError(
            f"{out} holds a model already; set overwrite=true to replace it, or choose another out"
        )


def put(work: Path, out: Path) -> None:
    """Give ``work`` the name ``out``; what had it before is removed afterwards."""
    if not out.exists():
        publish(work, out)
        return
    if not _exchange(work, out):
        # A file system without the exchange: for a moment there is neither.
        aside = work.with_name(f"{work.name}.old")
        os.replace(out, aside)
        publish(work, out)
        work = aside
    shutil.rmtree(work)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; tells whether the system could."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and (
        rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
    )
