"""How likely each whole number is as the beginning of an answer.

Shapes: B prompts, V vocabulary.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from openqwen2vl.curation.scorers.answers import HIGHEST

Tokens = tuple[int, ...]


def number_tokens(encode: Callable[[str], Sequence[int]]) -> list[Tokens]:
    """Give the token ids of 0, 1, ... 100, each as ``encode`` splits it."""
    return [tuple(encode(str(number))) for number in range(HIGHEST + 1)]


def needed_prefixes(numbers: Collection[Tokens]) -> list[Tokens]:
    """Give the beginnings after which the next token's distribution must be known.

    Where a tokenizer splits digits there are 11: the empty one, 1 to 9, and 10. What follows a
    two-digit number other than 10 need not be asked, for no number up to 100 goes on from there.

    Returns:
        Each after those that it begins with; the empty one first.
    """
    found = {number[:end] for number in numbers for end in range(len(number))}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def distribution(numbers: Sequence[Tokens], logits: Mapping[Tokens, Tensor]) -> Tensor:
    """Give the probability that an answer begins with each number and goes on to no longer one.

    The answer begins with ``10`` if its tokens begin with those of 10; of that, what begins with
    those of 100 is taken away. So the probabilities add up to that of an answer which begins with
    a number at all. Where a tokenizer could write a number in several ways, the way that
    ``numbers`` names counts.

    Args:
        numbers: the tokens of each number, all of them different.
        logits: (B, V) of the next token after each of ``needed_prefixes(numbers)``.

    Returns:
        float64 (B, numbers), on the logits' device.
    """
    chances = {prefix: scores.double().softmax(dim=1) for prefix, scores in logits.items()}
    begins: dict[Tokens, Tensor] = {(): torch.ones_like(chances[()][:, 0])}
    for number in numbers:
        for end in range(1, len(number) + 1):
            prefix, token = number[: end - 1], number[end - 1]
            begins[number[:end]] = begins[prefix] * chances[prefix][:, token]
    known = set(numbers)
    exact = {number: begins[number].clone() for number in numbers}
    for number in numbers:
        shorter = (number[:end] for end in range(len(number) - 1, 0, -1))
        parent = next((prefix for prefix in shorter if prefix in known), None)
        if parent is not None:
            exact[parent] -= begins[number]
    # What is left of a number whose continuations take everything may be -1e-17.
    return torch.stack([exact[number] for number in numbers], dim=1).clamp(min=0)


def expected_value(chances: Sequence[float], least: float) -> float | None:
    """Give the mean of the numbers weighted by their chances.

    Args:
        chances: of 0, 1, 2 ...
        least: with less than this in sum, what is likely is no number, and its mean says nothing.
    """
    total = sum(chances)
    if total < least or total <= 0:
        return None
    return sum(number * chance for number, chance in enumerate(chances)) / total
