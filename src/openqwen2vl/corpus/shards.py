"""Raw shards as img2dataset writes them: `00000.tar` with KEY.jpg, KEY.txt and KEY.json."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openqwen2vl.formats.files import atomic_file


@dataclass(frozen=True)
class Sample:
    """One picture with its text.

    Attributes:
        uid: unique in the whole corpus.
        image: JPEG bytes.
        width: the picture's width in pixels.
        height: its height in pixels.
        caption: what KEY.txt holds; None writes no KEY.txt (a conversation).
        extra: further keys of KEY.json, for instance ``conversations``.
    """

    uid: str
    image: bytes
    width: int
    height: int
    caption: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def metadata(self, key: str) -> dict[str, Any]:
        """What KEY.json holds: img2dataset's keys, then our own."""
        caption = {} if self.caption is None else {"caption": self.caption}
        return {
            "uid": self.uid,
            "key": key,
            "url": "",
            **caption,
            "status": "success",
            "error_message": None,
            "width": self.width,
            "height": self.height,
            "original_width": self.width,
            "original_height": self.height,
            "sha256": hashlib.sha256(self.image).hexdigest(),
            **self.extra,
        }


def write_raw_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write one shard, atomically and byte for byte the same for the same samples.

    Args:
        path: the shard, named by its number: ``00003.tar``; keys begin with that number.
        samples: in the order they are to stand in.

    Returns:
        How many samples were written.
    """
    count = 0
    with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for number, sample in enumerate(samples):
            key = f"{path.stem}{number:04d}"
            _add(tar, f"{key}.jpg", sample.image)
            if sample.caption is not None:
                _add(tar, f"{key}.txt", sample.caption.encode())
            _add(tar, f"{key}.json", json.dumps(sample.metadata(key)).encode())
            count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # A fresh TarInfo has time, owner and group 0: nothing of this machine gets into the shard.
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
