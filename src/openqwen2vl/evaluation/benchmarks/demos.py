"""Few-shot: solved questions of the train split, shown before the one that is asked."""

import random
from collections.abc import Sequence
from dataclasses import replace

from openqwen2vl.evaluation.questions import Question
from openqwen2vl.formats.errors import ShardError


def with_demos(
    questions: Sequence[Question], train: Sequence[Question], shots: int
) -> list[Question]:
    """Give each question its own demonstrations.

    They are drawn by the question's id alone, so that neither the order of the questions nor the
    number of them changes a prompt.

    Args:
        questions: the evaluated split.
        train: another split of the same benchmark.
        shots: demonstrations for each question.

    Raises:
        ShardError: a question of the evaluated split is in ``train``, or that has too few.
    """
    both = {question.id for question in questions} & {question.id for question in train}
    if both:
        raise ShardError(
            f"{len(both)} questions are in the evaluated split and in the demonstrations', the "
            f"first is {min(both)}; the train split must be another one"
        )
    if len(train) < shots:
        raise ShardError(f"{len(train)} questions to demonstrate with; {shots} are needed")
    drawn = sorted(train, key=lambda question: question.id)
    return [
        replace(question, demos=tuple(random.Random(f"demos/{question.id}").sample(drawn, shots)))
        for question in questions
    ]
