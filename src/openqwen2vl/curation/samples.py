"""Samples: the image-text pairs of a raw shard, as curation looks at them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.raw import read_raw_items
from openqwen2vl.formats.rejects import Reject


@dataclass(frozen=True)
class Sample:
    """One image and its caption; ``(source, shard, key)`` tells it from every other.

    Attributes:
        source: the name that the corpus goes by.
        shard: the raw shard's file name without its ending.
        key: the sample's name within the shard.
        uid: the sample's own ``uid``, else ``shard/key``.
        caption: what ``KEY.txt`` holds, or the text of a page in ``KEY.json``.
        image: where the image's bytes lie.
        fields: what ``KEY.json`` holds; empty without one.
    """

    source: str
    shard: str
    key: str
    uid: str
    caption: str
    image: ImageRef
    fields: dict[str, Any]

    def read(self) -> bytes:
        """Give the image's bytes as they were delivered.

        Raises:
            ShardError: the shard went away or was cut since it was read.
        """
        try:
            with open(self.image.path, "rb", buffering=0) as file:
                file.seek(self.image.offset)
                data = file.read(self.image.size)
        except FileNotFoundError as error:
            raise ShardError(f"{self.image.path} went away while its images were needed") from error
        if len(data) != self.image.size:
            raise ShardError(
                f"{self.image.path} was cut while its images were needed: {self.key} has "
                f"{len(data)} of {self.image.size} bytes; start again"
            )
        return data


def read_samples(path: Path, source: str) -> Iterator[Sample | Reject]:
    """Read the pairs of a raw shard in the order of their first files.

    Args:
        path: a tar as img2dataset delivers it; what is wrong with it becomes rejects, as in
            ``formats.raw.read_raw_shard``. So does what is no pair: a conversation or an
            interleaved document has no caption, ``missing_text``.
        source: the name to give the samples.

    Raises:
        ShardError: the file is missing.
    """
    for item, fields in read_raw_items(path, source):
        yield item if isinstance(item, Reject) else _sample(item, fields)


def _sample(document: Document, fields: dict[str, Any]) -> Sample | Reject:
    source, shard, key, uid = document.source, document.shard, document.key, document.uid
    turn = document.turns[0]
    if turn.role != "caption":
        kind = "an interleaved document" if turn.role == "interleaved" else "a conversation"
        detail = f"{key} is {kind}; curation reads pairs of an image and a caption"
        return Reject(source, shard, key, uid, "missing_text", detail)
    return Sample(source, shard, key, uid, turn.text, document.images[0], fields)
