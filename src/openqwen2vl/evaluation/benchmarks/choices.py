"""What multiple-choice benchmarks share: options by letter, and a letter's worth."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.questions import Read, Verdict
from openqwen2vl.formats.errors import ShardError

WRONG = 0.0
RIGHT = 1.0
COLUMNS = tuple("ABCDEF")


def options_of(texts: Sequence[Any]) -> dict[str, str]:
    """Letter options from A on."""
    return {chr(ord("A") + number): str(text) for number, text in enumerate(texts)}


def as_list(value: Any, place: str) -> list[Any]:
    """Give a list that a file holds as one or as the text of one.

    Raises:
        ShardError: it is neither.
    """
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if value.strip() else []
        except (ValueError, SyntaxError) as error:
            raise ShardError(f"{place}: expected a list, found {value[:60]!r}") from error
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ShardError(f"{place}: expected a list, found {type(value).__name__}")
    return list(value)


def present(value: Any) -> bool:
    """Whether a cell says anything: not null, empty, not-a-number or the word for it."""
    return value is not None and str(value).strip() not in ("", "nan")


def column_options(row: Mapping[str, Any]) -> dict[str, str]:
    """Give the options that stand in columns of their own, as VLMEvalKit's files have them."""
    return {letter: str(row[letter]) for letter in COLUMNS if present(row.get(letter))}


def right_letter(value: Any, options: Mapping[str, str], place: str) -> str:
    """Check that the known answer is the letter of an option.

    Raises:
        ShardError: it is not.
    """
    letter = str(value).strip().upper()
    if letter not in options:
        raise ShardError(f"{place}: the answer is {value!r}; the options are {', '.join(options)}")
    return letter


def verdict(read: Read, answer: str) -> Verdict:
    """An answer that is read is right when it is the known one."""
    return Verdict(RIGHT if read.value == answer else WRONG, read)


def held(prediction: Answered, ignore_case: bool) -> Verdict:
    """Judge as the paper's harness: right when the known letter occurs anywhere in the output.

    Args:
        prediction: its fields give the letter as ``answer`` and the options.
        ignore_case: compare in lower case.
    """
    answer, output = prediction.fields["answer"], prediction.output
    if ignore_case:
        answer, output = answer.lower(), output.lower()
    if answer in output:
        return Verdict(RIGHT, Read(prediction.fields["answer"], "letter within"))
    text = prediction.output.strip()
    return Verdict(WRONG, Read(text or None, "as it stands" if text else "nothing"))


def likeliest(prediction: Answered) -> Verdict:
    """Judge by the option of the highest log-probability; the first of equal ones.

    Raises:
        ShardError: there is not one log-probability for each option.
    """
    options = list(prediction.fields["options"])
    logprobs = prediction.logprobs
    if len(logprobs) != len(options):
        raise ShardError(
            f"prediction {prediction.id} has {len(logprobs)} log-probabilities for "
            f"{len(options)} options; generate again"
        )
    best = max(range(len(options)), key=logprobs.__getitem__)
    return verdict(Read(options[best], "likeliest"), prediction.fields["answer"])
