"""What a benchmark is: a schema, and plain functions over its rows."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openqwen2vl.evaluation.benchmarks.demos import with_demos
from openqwen2vl.evaluation.locate import Schema, file_hash, find_files
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record, read_records
from openqwen2vl.formats.errors import ConfigError, ShardError

_TOLD = ("question", "answer", "answers")


@dataclass(frozen=True)
class Reading:
    """The questions of a benchmark's files.

    Attributes:
        questions: in the files' order.
        file_hash: of the files that hold them.
        notes: what the reader of a score should know, such as a count that is not the known one.
    """

    questions: list[Question]
    file_hash: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: what configs and predictions call it.
        title: what tables call it, with the split.
        schema: the columns of its files, their names and the known number of rows.
        question: makes a question of a row; gives None for a row that is not asked.
        ask: puts a question in the words of a protocol.
        judge: reads an output and says what it is worth.
        summarise: the figures of all rows.
        headline: the metric that stands for all, by protocol.
        protocols: those that are defined for it.
        shots: solved questions shown before each; taken from the train split.
        judge_all: in place of ``judge`` where an output's worth depends on all the others.
        needs: refuses, by a ConfigError, a machine that lacks what scoring takes.
    """

    name: str
    title: str
    schema: Schema
    question: Callable[[Record], Question | None]
    ask: Callable[[Question, EvaluationProtocol], Prompt]
    judge: Callable[[Answered, EvaluationProtocol], Verdict]
    summarise: Callable[[Sequence[Row], EvaluationProtocol], Summary]
    headline: dict[str, str]
    protocols: tuple[str, ...] = ("standard", "oqvl-paper")
    shots: int = 0
    judge_all: Callable[[Sequence[Answered], EvaluationProtocol], list[Verdict]] | None = None
    needs: Callable[[], None] | None = None

    def read(self, path: Path) -> Reading:
        """Read the benchmark's local files.

        Args:
            path: a file, or a folder that holds them itself or under the data's name.

        Raises:
            ShardError: no such files, columns or pictures; two rows of one id; no row to ask; a
                question among its own demonstrations.
        """
        files = find_files(path, self.schema)
        questions = self._questions(files)
        notes = []
        known = self.schema.counts
        if known and len(questions) not in known:
            notes.append(
                f"{self.name} has {len(questions)} questions here; "
                f"{' or '.join(map(str, known))} are known"
            )
        if self.shots:
            train = find_files(path, self.schema, demos=True)
            questions = with_demos(questions, self._questions(train), self.shots)
            files = [*files, *train]
        return Reading(questions, file_hash(files), tuple(notes))

    def prompt(self, question: Question, protocol: EvaluationProtocol) -> Prompt:
        """Put a question in the words of a protocol.

        Raises:
            ConfigError: the protocol is not defined for this benchmark.
        """
        self.check(protocol)
        return self.ask(question, protocol)

    def score(
        self, predictions: Sequence[Answered], protocol: EvaluationProtocol
    ) -> tuple[list[Row], Summary]:
        """Judge every prediction and sum up; a pure function, whatever their order.

        Raises:
            ConfigError: the protocol is not defined for this benchmark.
        """
        self.check(protocol)
        ordered = sorted(predictions, key=lambda one: one.id)
        if self.judge_all is not None:
            verdicts = self.judge_all(ordered, protocol)
        else:
            verdicts = [self.judge(prediction, protocol) for prediction in ordered]
        rows = [
            Row(p.id, p.cluster, p.fields, p.output, verdict)
            for p, verdict in zip(ordered, verdicts, strict=True)
        ]
        return rows, self.summarise(rows, protocol)

    def check(self, protocol: EvaluationProtocol) -> None:
        """Refuse a protocol under which this benchmark is not defined.

        Raises:
            ConfigError: with those that are.
        """
        if protocol.name not in self.protocols:
            raise ConfigError(
                f"{self.name} is not defined under protocol={protocol.name}; "
                f"there is {', '.join(self.protocols)}"
            )

    def _questions(self, files: Sequence[Path]) -> list[Question]:
        made = (self.question(_whole(record)) for record in read_records(files, self.schema))
        questions = [question for question in made if question is not None]
        if not questions:
            raise ShardError(f"{files[0]} holds no question of {self.name}")
        times = Counter(question.id for question in questions)
        twice = [name for name, count in times.items() if count > 1]
        if twice:
            raise ShardError(
                f"{len(twice)} ids of {self.name} come twice in {files[0].parent}, the first is "
                f"{twice[0]}; is a split there in two forms?"
            )
        return questions


def _whole(record: Record) -> Record:
    """Give a row back that says what is asked and what is right.

    Raises:
        ShardError: it does not; all its outputs would count as wrong.
    """
    for name in _TOLD:
        value = record.values.get(name, ".")
        if value is None or value != value or str(value).strip() in ("", "[]"):
            why = "" if name == "question" else "; is it a split whose answers are kept back?"
            raise ShardError(f"{record.place}: {name} is empty{why}")
    return record
