"""Samples: the image-text pairs or the conversations of a shard, as curation looks at them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from openqwen2vl.curation.shards import FACES, ConversationShard, RawShard
from openqwen2vl.formats.cells import CellReader, is_cell
from openqwen2vl.formats.documents import Document, ImageRef, Turn
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import DEFAULT_RULES
from openqwen2vl.formats.parquet import ParquetShard, read_parquet_items
from openqwen2vl.formats.raw import read_raw_items
from openqwen2vl.formats.rejects import Reject, Unusable

_TABLE = ".parquet"


class Cells:
    """Reads images from a table, for one thread at a time."""

    def __init__(self) -> None:
        self._lock, self._cells = Lock(), CellReader()

    def read(self, image: ImageRef) -> bytes:
        """Give the bytes of an image, as they were stored.

        Raises:
            ShardError: the table went away or changed.
        """
        with self._lock:
            return self._cells.read(image)


@dataclass(frozen=True)
class Sample:
    """One image and its caption, or one conversation.

    ``(source, shard, key)`` tells it from every other.

    Attributes:
        source: the name that the corpus goes by.
        shard: the raw shard's name, as of ``shards.shard_name``.
        key: the sample's name within the shard.
        uid: the sample's own ``uid``, else ``shard/key``, as packing has it.
        caption: what ``KEY.txt`` or a table's cell holds, or the text of a page; of a conversation
            the texts of its turns, a line each.
        image: where the image's bytes lie, of a conversation its first one's; None without any.
        fields: what ``KEY.json`` holds; empty without one. Of a table's row its own uid and
            ``FACES``, where it has them, and its conversation.
        turns: of a conversation; none of a pair.
        others: the images of a conversation after the first.
        cells: reads the images of the sample's table, whose samples share it; None in a tar.
    """

    source: str
    shard: str
    key: str
    uid: str
    caption: str
    image: ImageRef | None
    fields: dict[str, Any]
    turns: tuple[Turn, ...] = field(default=(), kw_only=True)
    others: tuple[ImageRef, ...] = field(default=(), kw_only=True)
    cells: Cells | None = field(default=None, repr=False, compare=False, kw_only=True)

    @property
    def is_conversation(self) -> bool:
        """Whether it is a conversation rather than a pair."""
        return bool(self.turns)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All its images, in the order of their marks."""
        return () if self.image is None else (self.image, *self.others)

    def read(self) -> bytes:
        """Give the image's bytes as they were delivered, of a conversation its first one's.

        Raises:
            ValueError: it is a conversation without images.
            ShardError: the shard went away or was cut since it was read.
        """
        if self.image is None:
            raise ValueError(f"{self.key} of {self.source}/{self.shard} has no image")
        return self.read_image(self.image)

    def read_image(self, image: ImageRef) -> bytes:
        """Give the bytes of one of ``images``.

        Raises:
            Unusable: ``missing_image``, when a file of its own may not be read.
            ShardError: the shard or the file went away or was cut since it was read, or the disk
                does not give it.
        """
        if is_cell(image):
            return (self.cells or Cells()).read(image)
        try:
            with open(image.path, "rb", buffering=0) as file:
                file.seek(image.offset)
                data = file.read(image.size)
        except FileNotFoundError as error:
            raise ShardError(f"{image.path} went away while its images were needed") from error
        except OSError as error:
            # In a tar nothing begins at 0: this is a file of the picture's own.
            if isinstance(error, PermissionError) and image.offset == 0:
                raise Unusable("missing_image", f"{image.path} may not be read") from error
            # The disk's or the network's fault, which may be gone tomorrow.
            raise ShardError(f"{image.path} cannot be read ({error.strerror})") from error
        if len(data) != image.size:
            raise ShardError(
                f"{image.path} was cut while its images were needed: {self.key} has "
                f"{len(data)} of {image.size} bytes; start again"
            )
        return data


def read_samples(shard: RawShard, source: str) -> Iterator[Sample | Reject]:
    """Read the samples of a shard in the order of their first files, their rows or entries.

    Args:
        shard: a tar as img2dataset delivers it, or a parquet file with the images' bytes, for
            pairs; or a shard of conversations. What is wrong with it becomes rejects, as in
            ``formats.raw.read_raw_shard`` and its likes. So does what is of another kind, as an
            interleaved document always is: ``missing_text``.
        source: the name to give the samples.

    Raises:
        ShardError: the file is missing, or a table has no column of captions.
    """
    if isinstance(shard, ConversationShard):
        yield from _conversations(shard, source)
    elif shard.suffix == _TABLE:
        cells = Cells()
        for item, row in read_parquet_items(ParquetShard(shard), source, DEFAULT_RULES, (FACES,)):
            fields = {name: row[name] for name in ("uid", FACES) if name in row}
            yield item if isinstance(item, Reject) else _pair(item, fields, cells)
    else:
        for item, fields in read_raw_items(shard, source):
            yield item if isinstance(item, Reject) else _pair(item, fields)


def _pair(
    document: Document, fields: dict[str, Any], cells: Cells | None = None
) -> Sample | Reject:
    turn = document.turns[0]
    if turn.role != "caption":
        return _other_kind(document, "pairs of an image and a caption")
    source, shard, key, uid = document.source, document.shard, document.key, document.uid
    return Sample(source, shard, key, uid, turn.text, document.images[0], fields, cells=cells)


def _conversations(shard: ConversationShard, source: str) -> Iterator[Sample | Reject]:
    cells = Cells()
    for item, fields in shard.items(source):
        item = replace(item, shard=shard.name)
        yield item if isinstance(item, Reject) else _conversation(item, fields, cells)


def _conversation(document: Document, fields: dict[str, Any], cells: Cells) -> Sample | Reject:
    if document.turns[0].role in ("caption", "interleaved"):
        return _other_kind(document, "conversations")
    source, shard, key, uid = document.source, document.shard, document.key, document.uid
    text = "\n".join(turn.text.strip() for turn in document.turns)
    first, *others = document.images or (None,)
    more = tuple(image for image in others if image is not None)
    turns = document.turns
    return Sample(
        source, shard, key, uid, text, first, fields, turns=turns, others=more, cells=cells
    )


def _other_kind(document: Document, kind: str) -> Reject:
    """Refuse what is not of the kind of its input."""
    role = document.turns[0].role
    names = {
        "caption": "a pair of an image and a caption",
        "interleaved": "an interleaved document",
    }
    detail = f"{document.key} is {names.get(role, 'a conversation')}; curation reads {kind}"
    if role != "interleaved":
        detail += " here, as most samples of the input are: give the others an input of their own"
    source, shard, key, uid = document.source, document.shard, document.key, document.uid
    return Reject(source, shard, key, uid, "missing_text", detail)
