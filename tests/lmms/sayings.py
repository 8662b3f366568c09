"""Things that models say for an answer: every term in every frame, pairs of terms, and a jumble."""

import random
from collections.abc import Sequence

_FRAMES = (
    "{}",
    "{}.",
    " {}\n",
    "({})",
    "({}).",
    "{})",
    "{}:",
    '"{}"',
    "**{}**",
    "{}!",
    "Option {}",
    "Answer: {}",
    "Final Answer: {}",
    "The answer is {}",
    "The answer is {}.",
    "the answer is: ({})",
    "The correct answer is {}.",
    "I choose {}",
    "The best option is {}, I think",
    "So the result is {}",
    "{} is correct",
    "{}. It is what the picture shows.",
    "It is {}, because the picture shows it very clearly.",
    "The picture shows many things.\nTherefore {}",
    "{}\n\nThe picture shows it.",
    "答案是{}",
    "My answer: {} {}",
)
_PAIRS = (
    "{} or {}",
    "{} and {}",
    "{}, {}",
    "({}) ({})",
    "not {} but {}",
    "{}\n{}",
    "The answer is {}. No, it is {}.",
    "Either {} or {}; the picture does not tell which one of them",
)
_REFUSALS = (
    "I cannot answer that.",
    "Sorry, I am not able to see the picture",
    "unanswerable",
    "None of the above",
    "As an AI model, I can't say.",
    "Both",
    "Unknown",
    "?",
    "...",
    "",
    "   ",
    "\n",
)
_SCRAPS = (
    *("Cat", "NBA", "A1", "E", "F", "a", "b", "an apple", "the", "not", "or", "is", "so ", "="),
    *("\n", " ", "  ", ".", ",", ":", ")", "(", "-", "$", "%", '"', "it's", "dont", "U.S.A", "x/y"),
    *(
        "Answer: cat",
        "the answer is",
        "i choose",
        "答案是",
        "选",
        "B)",
        "C:",
        "(D)",
        "A.",
        "yes",
        "No",
    ),
    *("1.45", "5.", "3,000", "12:30", "2e3", "-7", ".5", "two", "none", "[1, 2]", "100%", "nan"),
)
_JUMBLED = 500


def sayings(terms: Sequence[str], seed: int) -> list[str]:
    """Give distinct outputs, the same ones every time.

    Args:
        terms: what an answer of the benchmark may be: letters, options' texts, numbers, words.
        seed: of the jumble.
    """
    framed = [frame.replace("{}", term) for term in terms for frame in _FRAMES]
    pairs = [
        frame.replace("{}", one, 1).replace("{}", other, 1)
        for number, one in enumerate(terms)
        for other in terms[number + 1 :: 3]
        for frame in _PAIRS
    ]
    rng = random.Random(seed)
    scraps = [*_SCRAPS, *terms]
    jumble = [
        "".join(rng.choice(scraps) + rng.choice(("", " ")) for _ in range(rng.randint(1, 6)))
        for _ in range(_JUMBLED)
    ]
    cased = [text for term in terms for text in (term.lower(), term.upper(), term.title())]
    return list(dict.fromkeys([*framed, *cased, *_REFUSALS, *pairs, *jumble]))
