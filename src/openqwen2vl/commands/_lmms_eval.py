"""Answers lmms-eval's requests; `_lmms_plugin` tells it where these classes are."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from openqwen2vl.commands._evaluate_answers import open_subject
from openqwen2vl.curation.scorers.weights import placement, reachable
from openqwen2vl.evaluation.generate import Effort
from openqwen2vl.evaluation.questions import Prompt
from openqwen2vl.evaluation.respondent import Respondent, user_turn
from openqwen2vl.formats.errors import ConfigError

_T = TypeVar("_T")
_BATCHES = 8
_MOST_TOKENS = 128  # where a task says nothing, as the protocol `standard`
# What lmms-eval fills in for a task that names no end; an answer may well have two paragraphs.
_NOT_AN_END = "\n\n"


class OpenQwen2VL(lmms):  # type: ignore[misc]  # it is untyped
    """A model of ours whose questions are one text with its pictures in front.

    Options are judged by this class alone (`--force_simple`). Answers are drawn greedily, whatever
    a task asks for: Mantis-Eval's would change from run to run.

    Args:
        pretrained: a run folder, a checkpoint or a model folder.
        tokenizer: folder or hub name; None is where the model says it is.
        device: as torch writes it; None is this process's GPU, or the CPU.
        dtype: float32, float16 or bfloat16; None is bfloat16 on a GPU, else float32.
        batch_size: questions at a time.
        batch_tokens: their tokens with padding, at most.
        max_batch_size: not used; lmms-eval gives it to every model.

    Raises:
        CheckpointError: no model there.
        ConfigError: an unknown device or dtype, or a batch size that is no number.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        batch_tokens: int | str = 65536,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._rank, self._world_size = _number("RANK", 0), _number("WORLD_SIZE", 1)
        if device in (None, "cuda") and torch.cuda.is_available():
            device = f"cuda:{_number('LOCAL_RANK', 0)}"
        self._device, numbers = placement(device, dtype, half=torch.bfloat16)
        subject = open_subject(Path(pretrained), tokenizer)
        subject.model.to(reachable(self._device))
        # Not the buffers: rotary frequencies of 16 bits would move far positions.
        for weight in subject.model.parameters():
            weight.data = weight.data.to(numbers)
        try:
            effort = Effort(batch_size=int(batch_size), batch_tokens=int(batch_tokens))
        except ValueError as error:
            raise ConfigError(f"batch_size and batch_tokens are numbers here ({error})") from error
        self._respondent = Respondent(subject, effort)

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers its ranks' counts there."""
        return self._device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer each request."""
        answers: list[str] = []
        for some in self._windows(requests):
            asked = [self._asked(request.args) for request in some]
            prompts = [user_turn(content, _most_tokens(given)) for content, given in asked]
            said = self._respondent.texts(prompts)
            answers += [_cut(text, given) for text, (_, given) in zip(said, asked, strict=True)]
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Judge continuations: each its loss, summed, and whether it is the greedy answer.

        The loss is the negative log-likelihood of the continuation as the whole answer: lmms-eval
        takes the smallest of a question's for the chosen one. The space with which it begins a
        continuation does not belong to a turn of its own. Its 0.7.3 makes a text of a plain pair,
        on which every task that judges options fails; a pair as the text of a result stays one.
        """
        of_question: dict[tuple[Any, ...], list[int]] = {}
        answers = []
        for number, request in enumerate(requests):
            context, continuation, _, *where = request.args
            if callable(continuation):
                continuation = continuation(self._doc(*where))
            answers.append(str(continuation).strip())
            of_question.setdefault((context, *where), []).append(number)
        found: dict[int, GenerationResult] = {}
        for some in self._windows(list(of_question.values())):
            judged, greedy = [], []
            for numbers in some:
                context, _, visual, *where = requests[numbers[0]].args
                content = [*_pictures(visual, self._doc(*where)), context]
                judged.append(user_turn(content, 1, [answers[number] for number in numbers]))
                greedy.append(user_turn(content, self._longest(judged[-1])))
            logprobs, said = self._respondent.logprobs(judged), self._respondent.texts(greedy)
            for numbers, values, text in zip(some, logprobs, said, strict=True):
                for number, value in zip(numbers, values, strict=True):
                    found[number] = GenerationResult((-value, text == answers[number]))
        return [found[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse: there is no second round.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("openqwen2vl answers tasks of one round; leave this task out")

    def _windows(self, items: Sequence[_T]) -> Iterator[Sequence[_T]]:
        """Give some at a time, since pictures are held decoded; batches are gathered among them."""
        size = _BATCHES * self._respondent.effort.batch_size
        with tqdm(total=len(items), disable=self.rank != 0, desc="answering") as bar:
            for first in range(0, len(items), size):
                some = items[first : first + size]
                yield some
                bar.update(len(some))

    def _asked(self, arguments: tuple[Any, ...]) -> tuple[list[Any], Mapping[str, Any]]:
        context, given, visual, *where = arguments
        return [*_pictures(visual, self._doc(*where)), context], given

    def _doc(self, number: int, task: str, split: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.task_dict[task][split][number]
        return found

    def _longest(self, prompt: Prompt) -> int:
        return max(map(len, self._respondent.subject.option_ids(prompt)))


class OpenQwen2VLChat(OpenQwen2VL):
    """The same, asked with pictures where a task puts them: as `evaluate protocol=standard`."""

    is_simple = False

    def _asked(self, arguments: tuple[Any, ...]) -> tuple[list[Any], Mapping[str, Any]]:
        _, messages, given, *where = arguments
        turns = messages(self._doc(*where))
        if [turn["role"] for turn in turns] != ["user"]:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ConfigError(f"a task with the turns {roles}; expected one of a user")
        kinds = {"text": "text", "image": "url"}
        content = turns[0]["content"]
        others = {part["type"] for part in content} - kinds.keys()
        if others:
            raise ConfigError(f"a task with {', '.join(sorted(others))}; expected images")
        return [part[kinds[part["type"]]] for part in content], given


def _number(name: str, default: int) -> int:
    """Read what `accelerate launch` and torchrun say of this process."""
    return int(os.environ.get(name, default))


def _pictures(
    visual: Callable[[Mapping[str, Any]], Sequence[Any] | None], doc: Mapping[str, Any]
) -> list[Image.Image]:
    found = list(visual(doc) or ())
    if not all(isinstance(picture, Image.Image) for picture in found):
        kinds = ", ".join(sorted({type(picture).__name__ for picture in found}))
        raise ConfigError(f"a task that shows {kinds}; expected pictures")
    return found


def _most_tokens(given: Mapping[str, Any]) -> int:
    return int(given.get("max_new_tokens") or _MOST_TOKENS)


def _cut(text: str, given: Mapping[str, Any]) -> str:
    ends = given.get("until") or []
    for end in [ends] if isinstance(ends, str) else ends:
        if end and end != _NOT_AN_END:
            text = text.split(end)[0]
    return text
