"""Fates: what packing makes of a document by itself, its ids or the reason why it stays out."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.manifest import Manifest, PackSpec
from openqwen2vl.formats.overlong import drop_last_turns
from openqwen2vl.formats.rejects import Reason
from openqwen2vl.formats.templates import Encoded, encode_document, encode_documents, template

Fate = Encoded | Reason
"""What a pack holds of a document, shortened where that was asked for, or why none holds it."""


@dataclass(frozen=True)
class Making:
    """What a document's fate depends on.

    Attributes:
        spec: what the packs are made for.
        overlong: what becomes of conversations that outgrow the context.
        max_images: images in a pack, at most; None means any number.
    """

    spec: PackSpec
    overlong: str
    max_images: int | None

    @classmethod
    def of(cls, manifest: Manifest) -> "Making":
        """Read it from the manifest of a folder of packs."""
        return cls(manifest.spec, manifest.overlong, manifest.image_limit)


def fates(
    documents: Sequence[Document], making: Making, tokenizer: PreTrainedTokenizerFast
) -> list[Fate]:
    """Tell the fates of documents, with one call of the tokenizer but for what is shortened.

    That an earlier document has the same uid is left out of it.

    Args:
        documents: as a raw shard's reader gives them.
        making: what they are packed for.
        tokenizer: the one that the packs are made with.

    Raises:
        UserError: the template asks for a token that the tokenizer lacks.
    """
    codes = encode_documents(documents, tokenizer, template(making.spec.template))
    return [_fate(*both, making, tokenizer) for both in zip(documents, codes, strict=True)]


def _fate(
    document: Document, code: Encoded, making: Making, tokenizer: PreTrainedTokenizerFast
) -> Fate:
    spec = making.spec
    chosen = template(spec.template)
    if spec.length(code) > spec.context:
        short = None
        if making.overlong == "drop_last_turns":
            short = drop_last_turns(
                document,
                spec.context,
                lambda part: spec.length(encode_document(part, tokenizer, chosen)),
            )
        if short is None:
            return "too_long"
        code = encode_document(short, tokenizer, chosen)
    if making.max_images is not None and code.num_images > making.max_images:
        return "too_many_images"
    return code
