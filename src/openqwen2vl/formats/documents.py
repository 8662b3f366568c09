"""Documents: what one sample says and shows, before it is turned into tokens."""

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["caption", "interleaved", "system", "user", "assistant"]


@dataclass(frozen=True)
class ImageMark:
    """The place of one image between pieces of text; ``IMAGE`` is the one to use."""


IMAGE = ImageMark()

Part = str | ImageMark
"""A piece of a turn: text, or the place of the document's next image."""


@dataclass(frozen=True)
class Turn:
    """What one speaker says.

    An image is a part of its own, never a word inside a text: a caption that holds the letters
    ``<image>`` talks about them.

    Attributes:
        role: ``caption`` for the single turn of an image-text pair, ``interleaved`` for that of a
            page of texts and images; both are learnt whole.
        parts: texts and image marks in reading order.
    """

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The texts joined, without the images."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def num_images(self) -> int:
        """How many image marks the turn holds."""
        return sum(isinstance(part, ImageMark) for part in self.parts)


@dataclass(frozen=True)
class ImageRef:
    """Where the bytes of an image lie, so that nothing is read before it is needed.

    Attributes:
        path: the tar or image file; for an image in a table the address of its column, as
            ``cells.cell_path`` writes it; for one that its file holds as base64 the file's path
            and ``#base64``, see ``written``.
        offset: first byte within the file; for an image in a table the number of its row.
        size: number of bytes, decoded ones where they are held as base64.
        extension: lower case, without the dot.
    """

    path: str
    offset: int
    size: int
    extension: str


@dataclass(frozen=True)
class Document:
    """One sample of a source.

    Attributes:
        source: the name that the corpus goes by in mixtures.
        shard: the raw shard's file name without its ending.
        key: the sample's name within the shard.
        uid: the sample's own ``uid``, else ``shard/key``.
        turns: one ``caption`` or ``interleaved`` turn, or a conversation.
        images: as many as the turns hold marks, in the same order.
        scores: what curation found, by name; packs keep it.
    """

    source: str
    shard: str
    key: str
    uid: str
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = field(default=())
    scores: tuple[tuple[str, float], ...] = ()
