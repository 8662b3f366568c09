"""Which option, or which of yes and no, an output gives as its answer.

Each reader is the rule of one of lmms-eval 0.7.3's tasks, named in its docstring, so that a score
under the standard protocol can be set beside others. Where such a rule draws at random or asks
another model, a reader here finds nothing; nor does it take a capital inside a word for a letter.
"""

import re
from collections.abc import Collection, Mapping

from openqwen2vl.evaluation.questions import Read

LETTERS = "ABCDEFGHIJ"
NOTHING = Read(None, "nothing")
_LETTER = {letter: Read(letter, "letter") for letter in LETTERS}

_EDGES = ",.!?;:'"
_ALONE = re.compile(r"(?<![A-Za-z0-9])[A-J](?![A-Za-z0-9])")
_SAID = tuple(
    f"{before}{noun} is"
    for noun, befores in {
        "answer": ("the ", "", "the correct ", "correct ", "the best ", "best ", "my "),
        "option": ("the correct ", "correct ", "the best ", "best "),
        "choice": ("the ", "", "the correct ", "correct ", "my "),
    }.items()
    for before in befores
)
_PHRASES = (
    *_SAID,
    "i choose",
    "i select",
    "i pick",
    *["옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"],
)
_LEADING = re.compile(r"\s*([A-Z])\.")
# What may stand around a letter that is a word by itself, in the order of preference.
_WORDS = [
    ("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
]  # fmt: skip
_RANKED = {
    before + letter + after: (rank, letter)
    for rank, (before, after) in enumerate(_WORDS)
    for letter in "ABCDE"
}


def read_letter(text: str, letters: Collection[str]) -> Read:
    """Find the letter that is most likely meant [`extract_mcq_answer`: MMStar, RealWorldQA].

    In order: the text begins with it; ends with it; it follows a phrase such as "the answer is";
    it stands as (B); as B. or B: or B) or before a space; it stands alone anywhere. Of several in
    the same way the last one counts.

    Args:
        text: the output.
        letters: those of the options, capitals.
    """
    text = _bare(text.strip(), _EDGES + '"')
    if text in _LETTER and text in letters:
        return _LETTER[text]
    text = f" {text} "
    alone = [(m.start(), m.group()) for m in _ALONE.finditer(text) if m.group() in letters]
    if not alone:
        return NOTHING
    first, last = len(text) - len(text.lstrip()), len(text.rstrip()) - 1
    if alone[0][0] == first and not text[first + 1].isalpha():
        return Read(alone[0][1], "letter at start")
    if alone[-1][0] == last and not text[last - 1].isalpha():
        return Read(alone[-1][1], "letter at end")
    return _after_phrase(text, alone) or _by_form(text, alone)


def _after_phrase(text: str, alone: list[tuple[int, str]]) -> Read | None:
    """Take, of the first of each letter after each phrase, the one furthest behind."""
    lower = text.lower()
    last = (-1, "")
    for phrase in _PHRASES:
        said = lower.find(phrase)
        if said >= 0:
            first: dict[str, int] = {}
            for place, letter in alone:
                if place >= said + len(phrase):
                    first.setdefault(letter, place)
            last = max([last, *((place, letter) for letter, place in first.items())])
    return Read(last[1], "answer is X") if last[1] else None


def _by_form(text: str, alone: list[tuple[int, str]]) -> Read:
    """Take the last letter of the most telling form."""
    best = (0, -1, "")
    for place, letter in alone:
        follows = text[place + 1]
        if follows == ")" and text[place - 1] == "(":
            rank = 5
        else:
            rank = {".": 4, ":": 3, ")": 2, " ": 1}.get(follows, 0)
        best = max(best, (rank, place, letter))
    forms = ("X alone", "X alone", "X)", "X:", "X.", "(X)")
    return Read(best[2], forms[best[0]])


def read_first_character(text: str, letters: Collection[str]) -> Read:
    """Take the first character, whatever follows it, in either case [SEED-Bench].

    Args:
        text: the output.
        letters: those of the options, capitals.
    """
    letter = text.strip()[:1].upper()
    return Read(letter, "first character") if letter in letters and letter else NOTHING


def read_leading_letter(text: str, letters: Collection[str]) -> Read:
    """Take "B." at the start, or a text that is a letter but for punctuation and case [AI2D].

    Args:
        text: the output.
        letters: those of the options, capitals.
    """
    text = text.strip()
    found = _LEADING.match(text)
    letter = plain(found.group(1) if found else text).upper()
    return Read(letter, "letter") if letter in letters and letter else NOTHING


def read_option(text: str, options: Mapping[str, str]) -> Read:
    """Find a letter as a word, else the one option whose text is in the output [MMBench].

    Last comes ``read_letter``, as in `mmbench_en_dev_static`. A letter beyond the options is an
    answer, though none that can be right.

    Args:
        text: the output.
        options: letter to text, those that are there.
    """
    if text in _LETTER and text in options:
        return _LETTER[text]
    words = text.split()
    found: dict[int, set[str]] = {}
    for word in words:
        if word in _RANKED:
            rank, letter = _RANKED[word]
            found.setdefault(rank, set()).add(letter)
    # "A" in a sentence may be an article.
    article = "A" in words and len(words) > 3
    for rank in sorted(found):
        if len(found[rank]) == 1 and not (rank == 0 and article):
            (letter,) = found[rank]
            return Read(letter, "letter") if letter in options else Read(None, "no such option")
    lower = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in lower]
    if len(named) == 1:
        return Read(named[0], "option text")
    return read_letter(text, options)


def read_candidates(text: str, options: Mapping[str, str]) -> Read:
    """Find the options that an output speaks of and take the last [MMMU's own parser].

    Letters count as (B), else before a space, else before a full stop; only an output of more than
    five words is searched for the options' texts. Where MMMU draws at random, nothing is found.

    Args:
        text: the output.
        options: letter to text.
    """
    text = _bare(text.strip(), _EDGES)
    if text in _LETTER and text in options:
        return _LETTER[text]
    text = f" {text} "
    for form, place, how in (
        ("({})", "({})", "(X)"),
        ("{} ", " {} ", "X alone"),
        ("{}.", " {} ", "X."),
    ):
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            return Read(max(found, key=lambda letter: text.rfind(place.format(letter))), how)
    if len(text.split()) > 5:
        lower = text.lower()
        found = [letter for letter, option in options.items() if option.lower() in lower]
        if found:
            last = max(found, key=lambda letter: lower.rfind(options[letter].lower()))
            return Read(last, "option text")
    return NOTHING


def read_yes_no(text: str, strip: str = "") -> Read:
    """Take a text that is yes or no in either case and nothing else [POPE].

    Args:
        text: the output.
        strip: characters to leave out first, wherever they stand.
    """
    for char in strip:
        text = text.replace(char, "")
    word = text.strip().lower()
    return Read(word, "word") if word in ("yes", "no") else NOTHING


_PUNCTUATION = str.maketrans("", "", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def plain(text: str) -> str:
    """Lower a text and leave out ASCII punctuation, as lmms-eval's exact match does."""
    return text.lower().translate(_PUNCTUATION)


def _bare(text: str, edges: str) -> str:
    """Strip one character after the other, each once: the order is part of the rule."""
    for char in edges:
        text = text.strip(char)
    return text
