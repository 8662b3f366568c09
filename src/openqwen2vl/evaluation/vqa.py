"""Short answers as the VQA challenges compare them: normalised, and scored against ten people's."""

import re
from collections.abc import Sequence
from functools import lru_cache

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32  # what EvalAI's script takes for a flag is a number of replacements
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
# Words whose apostrophe may be left out, and those with two, of which either may.
_SHORTENED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # the challenges' own table has it the wrong way round
    for word in _SHORTENED.split():
        for place, letter in enumerate(word):
            if letter == "'":
                table[word[:place] + word[place + 1 :]] = word
    return table


_CONTRACTIONS = _contractions()


def without_punctuation(text: str) -> str:
    """Take punctuation out; where it joins two words a space is left in its place."""
    out = text
    commas = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        if mark in text:
            apart = commas or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if apart else " ")
    return _FULL_STOP.sub("", out, count=_MOST_STOPS)


def with_digits(text: str) -> str:
    """Lower the text, write numbers up to ten in digits, leave out articles, put apostrophes."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    kept = (word for word in words if word not in _ARTICLES)
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


@lru_cache(maxsize=1 << 16)
def normalised(text: str) -> str:
    """Give the form in which EvalAI compares answers [TextVQA, OK-VQA, VizWiz]."""
    if text.isalpha():
        return with_digits(text)
    word = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return with_digits(without_punctuation(word.replace("\n", " ").replace("\t", " ").strip()))


@lru_cache(maxsize=1 << 16)
def normalised_vqav2(text: str) -> str:
    """Give the form in which VQAv2's script compares answers, which keeps more of the text."""
    line = text.replace("\n", " ").replace("\t", " ").strip()
    return with_digits(without_punctuation(line))


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """Score a normalised answer against those of people, normalised likewise.

    Each person's answer is left out in turn; three of the others who agree are enough for 1.

    Returns:
        The mean over those left out, from 0 to 1; 0 when nobody answered.
    """
    if not given:
        return 0.0
    same = sum(other == answer for other in given)
    rest = len(given) - same
    return (same * min(1.0, (same - 1) / 3) + rest * min(1.0, same / 3)) / len(given)
