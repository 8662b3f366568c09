"""The same rows and the same outputs for both: ours and theirs side by side."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from lmms.public_files import public_file
from lmms.sayings import sayings
from lmms.theirs import COUNTERPARTS, Doc, TheirTask
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.protocols import protocol
from openqwen2vl.evaluation.questions import Question

STANDARD = protocol("standard")
_ALWAYS = ("A", "B", "C", "D", "E", "14", "1.45", "-3", "yes", "No", "24/7", "[2007, 2008]")
_TERMS = 22
COPY = 1_000_000


@dataclass(frozen=True)
class Sides:
    """A benchmark of ours, its counterpart, and the rows that both read from one file."""

    ours: Benchmark
    theirs: TheirTask
    rows: list[tuple[Question, Doc]]

    def ours_of(self, question: Question, said: str) -> float:
        """Give what an output is worth here."""
        return self.ours.judge(answered(question, question.id, said), STANDARD).correct

    def kinds(self, most: int) -> list[tuple[Question, Doc]]:
        """Give rows of every kind in turn, each with another answer; one of each kind at least."""
        kinds: dict[tuple[object, ...], dict[str, tuple[Question, Doc]]] = {}
        for question, doc in self.rows:
            fields = question.fields
            told = (fields.get("question_type"), fields.get("answer_type"))
            several = str(fields.get("answer")).startswith("[")
            kind = kinds.setdefault((len(fields.get("options") or ()), several, *told), {})
            kind.setdefault(str(fields.get("answer")), (question, doc))
        turns = zip_longest(*(list(rows.values()) for rows in kinds.values()))
        found = [row for turn in turns for row in turn if row is not None]
        return found[: max(most, len(kinds))]

    def sayings(self) -> list[str]:
        """Give outputs for the rows' answers and options."""
        terms = list(_ALWAYS)
        for question, _ in self.rows:
            fields = question.fields
            terms += [fields["answer"], *fields.get("answers", ())] if "answer" in fields else []
            terms += [*(fields.get("options") or {}).values(), *(fields.get("choices") or ())]
            terms += fields.get("shown") or ()
        many = list(dict.fromkeys(terms))
        numbers = _numbers() if self.ours.name == "mathvista" else []
        return list(dict.fromkeys([*sayings(many[:_TERMS], seed=len(many)), *numbers]))


def sides(benchmark: str, root: Path) -> Sides:
    """Write the file of a benchmark and let both read it."""
    ours = BENCHMARKS[benchmark]
    path = public_file(root, ours.schema.data)
    theirs = TheirTask(benchmark, path, root)
    docs = [doc for doc in theirs.docs if doc.get("data_type", "image") == "image"]
    if benchmark == "mmbench":
        # Each row as a question of its own: theirs leaves copies without their first row out.
        docs = [{**doc, "index": doc["index"] % COPY} for doc in docs]
    return Sides(ours, theirs, list(zip(ours.read(path).questions, docs, strict=True)))


def answered(question: Question, name: str, said: str) -> Answered:
    """Give an output as a line of predictions."""
    return Answered(id=name, cluster=name, output=said, fields=question.fields, prompt_hash="")


def many(side: Sides, least: int) -> Iterator[tuple[Answered, Doc]]:
    """Give the rows over and over under new numbers, most of them with a right answer.

    All copies of a question are right or none has to be: so many outputs at random would never be.
    """
    name = side.ours.name
    rng = random.Random(name)
    said = _numbers() if name == "mathvista" else side.sayings()
    rng.shuffle(said)
    right = {
        question.id: _right(side, question, [*said, *side.sayings()]) for question, _ in side.rows
    }
    for turn in range(2 * least // len(side.rows)):
        answer = {question.cluster: rng.random() < 0.7 for question, _ in side.rows}
        for place, (question, doc) in enumerate(side.rows):
            number = turn * len(side.rows) + place
            known = right[question.id] if answer[question.cluster] else []
            line = answered(question, str(number), rng.choice(known or said))
            if name == "mmbench":
                copy, first = divmod(int(question.id), COPY)
                number = first + 1000 * turn
                cluster, number = str(number), number + COPY * copy
                line = replace(line, id=str(number), cluster=cluster)
            told = {"index": number, "pid": str(number), "id": number}
            told["question_id"] = f"drawn_{number:012d}.jpg"
            kept = {"mmmu": (), "mmstar": ()}.get(name, told)
            yield line, {**doc, **{key: told[key] for key in kept if key in doc}}


def _right(side: Sides, question: Question, said: Sequence[str]) -> list[str]:
    if side.ours.name == "coco_captions":
        return list(question.fields["answers"])
    found = [text for text in said if side.ours_of(question, text) > 0]
    if side.ours.name == "mathvista":  # of the others its judge would be asked
        found = [t for t in found if t in (*question.fields["choices"], *_numbers())]
    return found[:40]


def _numbers() -> list[str]:
    """Outputs that are a number and nothing else: all that MathVista reads by rules."""
    whole = [str(number) for number in range(-60, 240)]
    parts = [f"{number / 100:.2f}" for number in range(80, 330)]
    odd = [f"{sign}{body}" for sign in ("+", "-", " ") for body in ("14", "014", "1_4", "1.450")]
    forms = ["14.0", "1.4e1", "1.449", "1.4451", "145e-2", ".5", "5.", "nan", "1,000"]
    wide = ["\uff11\uff14", "\uff10\uff11\uff14"]  # digits of another width
    return [*whole, *parts, *odd, *forms, *wide]


def names() -> Sequence[str]:
    """Give the benchmarks whose answers are read one by one."""
    return [name for name in COUNTERPARTS if name not in ("coco_captions", "textvqa_ocr")]
