"""Space: whether packs fit on the disk, told before the first of them is written."""

import shutil
from pathlib import Path

from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.tar import BLOCK

_PER_ID, _PER_DOCUMENT = 7, 250  # bytes of JSON: digits and a comma; uid, shard, key and counts


def packed_bytes(packs: int, documents: int, ids: int, image_bytes: int) -> int:
    """Estimate what packs take up.

    Args:
        packs: how many.
        documents: in them.
        ids: compact ids in them.
        image_bytes: what their images take up in a tar.
    """
    return image_bytes + _PER_ID * ids + _PER_DOCUMENT * documents + 2 * BLOCK * packs


def check_space(folder: Path, needed: int, what: str = "the packs") -> None:
    """Make sure that so many bytes fit into a folder.

    Args:
        folder: where they are to go.
        needed: bytes.
        what: they are, in the plural.

    Raises:
        UserError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{what} need about {_said(needed)} and {folder} has {_said(free)} free; free some "
            "or choose another out"
        )


def _said(size: int) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} TB"
