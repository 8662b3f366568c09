"""Token ids read back: what is said in each turn, without the template around it."""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.tokens import SpecialTokens


def said_turns(
    ids: Sequence[int], tokenizer: PreTrainedTokenizerFast, special: SpecialTokens
) -> Iterator[tuple[str, str]]:
    """Yield the role and the text of each turn; nothing of a document without turns.

    Args:
        ids: of a document or a prompt; image marks are left out.
        tokenizer: that made them.
        special: its special tokens.
    """
    starts = [place for place, one in enumerate(ids) if one == special.im_start]
    for first, last in pairwise([*starts, len(ids)]):
        # Some templates open the answer right behind the end of the user's turn.
        for ended, piece in groupby(ids[first:last], lambda one: one == special.im_end):
            text = "" if ended else str(tokenizer.decode(list(piece), skip_special_tokens=True))
            if text.strip():
                role, _, said = text.strip().partition("\n")
                yield role, said.strip()
