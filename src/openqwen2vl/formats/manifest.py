"""Manifests: what a folder of packs holds and what it was made for."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.interleaved import DEFAULT_RULES, InterleavedRules
from openqwen2vl.formats.templates import Encoded
from openqwen2vl.formats.tokens import SpecialTokens

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class PackSpec:
    """What packs are made for; packs of unlike specs do not go into one batch.

    Attributes:
        context: tokens in a pack, pads included.
        grid: visual tokens along one side of an image: 12 in pre-training, 27 in SFT.
        tokenizer_hash: of the tokenizer that made the ids.
        vocab_size: ids that the tokenizer can make; the language model needs as many rows.
        template: name of the template that laid the documents out.
        template_hash: of that template's content.
        special: ids of the special tokens.

    Raises:
        PackError: a context or grid below 1, or an image that alone outgrows the context.
    """

    context: int
    grid: int
    tokenizer_hash: str
    vocab_size: int
    template: str
    template_hash: str
    special: SpecialTokens

    def __post_init__(self) -> None:
        if self.context < 1 or self.grid < 1:
            raise PackError(f"context is {self.context} and grid {self.grid}; both start at 1")
        if self.tokens_per_image >= self.context:
            raise PackError(
                f"grid {self.grid} makes {self.tokens_per_image} tokens an image; the context of "
                f"{self.context} holds none: take a smaller grid or a longer context"
            )

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one image."""
        return self.grid * self.grid

    def length(self, encoded: Encoded) -> int:
        """Tokens of a document once its image marks are expanded."""
        return len(encoded.ids) + encoded.num_images * (self.tokens_per_image - 1)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Totals over a folder of packs; tokens are expanded ones, without pads."""

    packs: int
    documents: int
    images: int
    tokens: int
    targets: int


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One packed shard: its file name, packs, size in bytes and sha256 in hex."""

    name: str
    packs: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record beside packed shards; where it exists, the packs are complete.

    It holds neither a clock nor a path, so that packing again gives the same bytes.

    Attributes:
        spec: what the packs are made for.
        source: name of the corpus.
        part: the range ``[lo, hi)`` of hash(uid) that the training packs cover.
        validation: the share of documents, by hash(uid), that are kept for validation.
        split: which of the two splits these packs are.
        counts: totals.
        fill: share of the packs' positions that are not pads.
        lower_bound: the fewest packs that could hold the tokens.
        rejects: how many documents were left out, by reason; the ledger lists them.
        outside_part: how many documents belong to another part.
        shards: the packed shards in order.
        max_documents: most documents in one pack.
        max_images: most images in one pack.
        packers: how many windows each packer laid out, by name.
        image_limit: images that a pack was allowed to hold; None means any number.
        image_lower_bound: the fewest packs that could hold the images; None without a limit.
        interleaved: which interleaved documents were taken.
        overlong: what became of conversations that outgrow the context: ``reject``, or
            ``drop_last_turns``, their last exchanges and the images of those were left away.
        shortened: how many documents lost exchanges that way.
    """

    spec: PackSpec
    source: str
    part: tuple[float, float]
    validation: float
    split: Literal["train", "validation"]
    counts: Counts
    fill: float
    lower_bound: int
    rejects: dict[str, int]
    outside_part: int
    shards: tuple[ShardEntry, ...]
    max_documents: int
    max_images: int
    # Packs that are older than these say nothing of them.
    packers: dict[str, int] = field(default_factory=dict)
    image_limit: int | None = None
    image_lower_bound: int | None = None
    interleaved: InterleavedRules = DEFAULT_RULES
    overlong: str = "reject"
    shortened: int = 0
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The file's text: keys sorted, so that equal manifests are equal bytes."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` in a folder, atomically."""
        with atomic_file(folder / MANIFEST_NAME) as file:
            file.write(self.to_json().encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of a folder.

        Raises:
            ShardError: there is none: packing did not end, or this is another folder.
            PackError: another version of the format, or a damaged file.
        """
        path = folder / MANIFEST_NAME
        try:
            fields: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise ShardError(
                f"no {MANIFEST_NAME} in {folder}: packing has not finished there, or it is not a "
                "folder of packs; run pack again or check the path"
            ) from error
        except ValueError as error:
            raise PackError(f"{path} is damaged ({error}); run pack again") from error
        found = fields.get("format_version") if isinstance(fields, dict) else None
        if found != FORMAT_VERSION:
            raise PackError(
                f"{path} has format_version {found}, this program reads {FORMAT_VERSION}; pack again"
            )
        try:
            return cls(**_rebuilt(fields))
        except (TypeError, KeyError) as error:
            raise PackError(f"{path} is damaged ({error}); run pack again") from error

    def hash(self) -> str:
        """16 hex digits over the whole content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _rebuilt(fields: dict[str, Any]) -> dict[str, Any]:
    """Turn JSON's plain lists and objects back into the types of ``Manifest``."""
    spec = dict(fields["spec"], special=SpecialTokens(**fields["spec"]["special"]))
    low, high = fields["part"]
    if "interleaved" in fields:
        fields = dict(fields, interleaved=InterleavedRules(**fields["interleaved"]))
    return dict(
        fields,
        spec=PackSpec(**spec),
        part=(low, high),
        counts=Counts(**fields["counts"]),
        shards=tuple(ShardEntry(**shard) for shard in fields["shards"]),
    )
