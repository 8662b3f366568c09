"""Says in words where a packed document, or a reject, and the corpus' own document differ."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.templates import Encoded
from openqwen2vl.packing.proof.fates import Fate
from openqwen2vl.packing.proof.holdings import Holdings

_SHOWN = 6  # ids in a quotation


def sentence(holdings: Holdings, place: int, fate: Fate, tokenizer: PreTrainedTokenizerFast) -> str:
    """Say what a folder holds of a document where packing the corpus would do otherwise.

    Args:
        holdings: the folder.
        place: of the document or reject, as ``Holdings.name`` counts.
        fate: what the corpus gives.
        tokenizer: turns ids back into words.
    """
    name = holdings.name(place)
    reason = holdings.reason(place)
    if reason is not None:
        if not isinstance(fate, Encoded):
            return f"{name} was left out as {reason}, by the corpus it is {fate}"
        spec = holdings.manifest.spec
        length = f"{spec.length(fate)} tokens of {spec.context}"
        return f"{name} was left out as {reason}, by the corpus it has {length} and can be packed"
    if not isinstance(fate, Encoded):
        return f"{name} would be left out of packs of the corpus: {fate}"
    ids, targets = holdings.text(place)
    if ids == fate.ids:
        return f"{name} asks for the target spans {targets}, by the corpus {fate.targets}"
    common = min(len(ids), len(fate.ids))
    at = next((n for n in range(common) if ids[n] != fate.ids[n]), common)
    return (
        f"{name} has other ids than the corpus gives, from id {at} on: "
        f"{_quoted(ids, at, tokenizer)} where the corpus has {_quoted(fate.ids, at, tokenizer)}"
    )


def _quoted(ids: Sequence[int], at: int, tokenizer: PreTrainedTokenizerFast) -> str:
    shown = list(ids[at : at + _SHOWN])
    if not shown:
        return f"nothing (it ends at {len(ids)})"
    # What was tampered with may be no id at all, which a tokenizer cannot turn into words.
    known = all(0 <= number < len(tokenizer) for number in shown)
    return repr(tokenizer.decode(shown)) if known else str(shown)
