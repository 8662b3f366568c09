"""Where a score under the standard protocol is not lmms-eval's, on purpose, and why."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Doc = dict[str, Any]
Case = tuple[Doc, str]
_VQA = ("textvqa", "okvqa", "vizwiz", "vqav2")
_BESIDE_A_LETTER = re.compile(r"(?<=[A-Za-z0-9])[A-D]|[A-D](?=[A-Za-z0-9])")


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One cause of differences.

    Attributes:
        reason: why we do otherwise.
        benchmarks: where.
        mend: takes the cause out of a row and an output; their worth of what is left has to be
            ours of the whole.
        examples: benchmark and output, each of which differs for some row of the mini benchmark.
    """

    reason: str
    benchmarks: tuple[str, ...]
    mend: Callable[[Doc, str], Case]
    examples: tuple[tuple[str, str], ...]


def _without_capitals_in_words(doc: Doc, said: str) -> Case:
    return doc, _BESIDE_A_LETTER.sub(lambda found: found.group().lower(), said)


def _without_absent_options(doc: Doc, said: str) -> Case:
    absent = {letter: None for letter in "CD" if doc[letter] == "nan"}
    return {**doc, **absent}, said


def _with_whole_precision(doc: Doc, said: str) -> Case:
    return {**doc, "precision": int(doc["precision"] or 0)}, said


def _never_right_when_empty(doc: Doc, said: str) -> Case:
    if said.strip():
        return doc, said
    if "answers" not in doc:
        return {**doc, "answer": "left"}, said
    people = [{**p, "answer": "left"} if isinstance(p, dict) else "left" for p in doc["answers"]]
    return {**doc, "answers": people}, said


def _with_listed_answers(doc: Doc, said: str) -> Case:
    if not doc["answer"].startswith("["):
        return doc, said
    return {**doc, "answer": ast.literal_eval(doc["answer"])}, said


DEVIATIONS = {
    "capital in a word": Deviation(
        reason="'Answer: cat' speaks of no option A, nor 'Cat' of C: only a letter by itself is one",
        benchmarks=("mmbench", "mmstar", "realworldqa"),
        mend=_without_capitals_in_words,
        examples=(
            ("mmbench", "Answer: 14"),
            ("mmstar", "Answer: yes"),
            ("realworldqa", "Answer: yes"),
        ),
    ),
    "absent option": Deviation(
        reason="MMBench's files say 'nan' where there is no option; theirs is then found in 'banana'",
        benchmarks=("mmbench",),
        mend=_without_absent_options,
        examples=(("mmbench", "The answer is A. No, it is D."),),
    ),
    "precision": Deviation(
        reason=(
            "the public file's precision is a float, on which their rounding fails in silence: "
            "every floating-point answer counts as wrong"
        ),
        benchmarks=("mathvista",),
        mend=_with_whole_precision,
        examples=(("mathvista", "1.45"),),
    ),
    "empty": Deviation(
        reason=(
            "no answer is not right, even if an option is short (MathVista) or people said 'the', "
            "of which nothing is left"
        ),
        benchmarks=("mathvista", *_VQA),
        mend=_never_right_when_empty,
        examples=tuple((name, "") for name in ("mathvista", *_VQA)),
    ),
    "several answers": Deviation(
        reason=(
            "MMMU's file writes several answers as the text of a list; MMMU's own scripts take any "
            "of them, lmms-eval 0.7.3 looks for the text of the list"
        ),
        benchmarks=("mmmu",),
        mend=_with_listed_answers,
        examples=(("mmmu", "The answer is 24/7"),),
    ),
}


def mended(benchmark: str, doc: Doc, said: str) -> Case:
    """Take every known cause out of a row and an output."""
    for deviation in DEVIATIONS.values():
        if benchmark in deviation.benchmarks:
            doc, said = deviation.mend(doc, said)
    return doc, said


def decided(benchmark: str, doc: Doc, said: str) -> Case:
    """Say no for POPE's outputs that are neither: for us a yes was missed, theirs leaves them out.

    It changes their recall and F1 alone: such an answer is wrong for both.
    """
    unread = said.strip().lower() not in ("yes", "no")
    return doc, "no" if benchmark == "pope" and doc["answer"] == "yes" and unread else said
