"""Multiple choice and yes/no by likelihood: which option the model finds most probable."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from openqwen2vl.corpus.conversations import LETTERS, letter_prompt
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import Template, prompt_ids
from openqwen2vl.formats.tokens import encode_text, special_tokens
from openqwen2vl.model.mllm import MLLM

FIELDS = ("id", "image", "topic", "question", "options", "answer")


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    Attributes:
        id: unique in its file.
        image: the picture's path.
        topic: what is asked about, for a table by topic.
        question: without options.
        options: in the order in which they are shown.
        answer: index of the right one.
    """

    id: str
    image: Path
    topic: str
    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Judged:
    """An item, and the option that the model chose."""

    item: Item
    chosen: int

    @property
    def right(self) -> bool:
        """Whether it is the answer."""
        return self.chosen == self.item.answer


def read_items(path: Path) -> list[Item]:
    """Read questions from JSONL; pictures lie beside the file.

    Raises:
        ShardError: no such file, or a line without one of the fields.
    """
    if not path.is_file():
        raise ShardError(f"no questions at {path}; give a .jsonl file")
    items = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        record = json.loads(line)
        missing = [name for name in FIELDS if name not in record]
        if missing:
            raise ShardError(f"{path}, line {number} lacks {', '.join(missing)}")
        values = [record[name] for name in FIELDS]
        values[1] = path.parent / record["image"]
        values[4] = tuple(record["options"])
        items.append(Item(*values))
    return items


def judge(
    model: MLLM,
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    letters: bool = False,
    batch: int = 32,
) -> list[Judged]:
    """Choose for each item the option with the highest log-probability, at the model's grid.

    The log-probabilities of an option's tokens and of the end of the turn are summed, so that a
    short option gains nothing from being short. Ties go to the first option.

    Args:
        model: on any device.
        items: the questions.
        tokenizer: the one that the model was trained with.
        template: likewise.
        letters: show the options by letter and judge the letters; otherwise the options' words
            after the question alone.
        batch: questions at a time.
    """
    special = special_tokens(tokenizer)
    judged = []
    for group in _groups(items, batch):
        prompts, options = [], []
        for item in group:
            asked = letter_prompt(item.question, item.options) if letters else item.question
            turns = [Turn("user", (IMAGE, "\n" + asked))]
            prompts.append(prompt_ids(turns, tokenizer, template))
            answers = LETTERS[: len(item.options)] if letters else item.options
            options.append([[*encode_text(tokenizer, text), special.eos] for text in answers])
        with torch.no_grad():
            scores = model.option_logprobs(prompts, options, _images(model, group), special.image)
        for item, logprobs in zip(group, scores, strict=True):
            judged.append(Judged(item, max(range(len(logprobs)), key=logprobs.__getitem__)))
    return judged


def accuracy(judged: Sequence[Judged]) -> float:
    """Give the share of right answers."""
    return sum(one.right for one in judged) / len(judged)


def chance(items: Sequence[Item]) -> float:
    """Give the expected accuracy of guessing among each item's options."""
    return sum(1 / len(item.options) for item in items) / len(items)


def by_topic(judged: Sequence[Judged]) -> dict[str, tuple[int, int]]:
    """Count right answers and questions per topic, topics in alphabetical order."""
    topics = sorted({one.item.topic for one in judged})
    groups = {topic: [one for one in judged if one.item.topic == topic] for topic in topics}
    return {topic: (sum(o.right for o in group), len(group)) for topic, group in groups.items()}


def _groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _images(model: MLLM, items: Sequence[Item]) -> Tensor:
    side = model.vision.side
    pictures = [torch.from_numpy(decode_image(i.image.read_bytes(), side)) for i in items]
    return torch.stack(pictures).to(model.head_weight.device)
