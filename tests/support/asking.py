"""Questions about drawn pictures, and the tiny model to put them to."""

import random
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl

from openqwen2vl.evaluation.asking import Asked, put
from openqwen2vl.evaluation.generate import Answering, Effort, Questionnaire, generate
from openqwen2vl.evaluation.pictures import BytesImage
from openqwen2vl.evaluation.predictions import Answered, Header
from openqwen2vl.evaluation.questions import Prompt, Question
from openqwen2vl.evaluation.subject import Subject
from openqwen2vl.evaluation.unfinished import Unfinished
from openqwen2vl.formats.documents import IMAGE
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.model.decoding import Sampling
from support.models import tiny_mllm
from support.shards import picture, tiny_tokenizer

HEADER = Header(
    benchmark="drawn",
    file_hash="f" * 64,
    n=0,
    protocol="standard",
    protocol_version=1,
    template_hash=TEMPLATES["qwen2_5"].hash,
    decoding={"method": "greedy"},
    model_hash="0" * 16,
    model="tiny",
)


def tiny_subject(folder: Path) -> Subject:
    """The tiny model with a tokenizer of 512 ids."""
    tokenizer = tiny_tokenizer(folder)
    model = tiny_mllm(vocab_size=512).eval()
    return Subject(model, tokenizer, TEMPLATES["qwen2_5"], "tiny", "0" * 16)


def drawn_questions(count: int, seed: int = 0, max_images: int = 2) -> list[Question]:
    """Questions of several lengths about none to some pictures."""
    rng = random.Random(seed)
    words = ["What", "color", "is", "the", "large", "circle", "below", "two", "squares", "?"]
    return [
        Question(
            benchmark="drawn",
            id=f"q{number}",
            cluster=f"q{number // 2}",
            images=tuple(BytesImage(picture(rng)) for _ in range(rng.randint(0, max_images))),
            fields={"question": " ".join(rng.choices(words, k=rng.randint(1, 30))), "answer": "A"},
        )
        for number in range(count)
    ]


def plain_prompt(question: Question, max_new_tokens: int = 6, **changes: object) -> Prompt:
    """The pictures, then the question."""
    parts = (*[IMAGE] * len(question.images), "\n" + question.fields["question"])
    settings: dict[str, object] = {"max_new_tokens": max_new_tokens, **changes}
    return Prompt(parts=parts, images=question.images, **settings)


def predictor() -> pl.Trainer:
    """One CPU, nothing on the side."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def answer_all(
    subject: Subject,
    asked: Sequence[Asked],
    folder: Path,
    effort: Effort | None = None,
    header: Header = HEADER,
    overwrite: bool = False,
) -> list[Answered]:
    """Ask with the Trainer, as the command does."""
    questions = Questionnaire(asked=asked, header=header, overwrite=overwrite)
    store = Unfinished(folder)
    answering = Answering(subject, questions, store, Sampling(), effort or Effort())
    return generate(predictor(), answering)


def asked_of(subject: Subject, questions: Sequence[Question], **changes: object) -> list[Asked]:
    """Put plain prompts."""
    return put(questions, lambda question: plain_prompt(question, **changes), subject)
