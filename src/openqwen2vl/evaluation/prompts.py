"""Pieces that the prompts of several benchmarks share."""

from collections.abc import Mapping, Sequence

from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import CHUNK_END, ImageSource, Prompt, Question
from openqwen2vl.formats.documents import IMAGE, Part

BY_LETTER = "Answer with the option's letter from the given choices directly."
IN_A_WORD = "Answer the question using a single word or phrase."
MOST_TOKENS = 128
FEW_TOKENS = 16
DEMO_STOPS = ("\n", "<|im_end|>")


def lettered(options: Mapping[str, str]) -> str:
    """Give one line an option: ``A. text``."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def image_first(text: str, images: Sequence[ImageSource]) -> tuple[Part, ...]:
    """Put all pictures, and a newline, in front of a text."""
    return (*[IMAGE] * len(images), "\n" + text if images else text)


def asked(
    question: Question, text: str, protocol: EvaluationProtocol, tokens: int = FEW_TOKENS
) -> Prompt:
    """Ask with the question's pictures in front.

    Args:
        question: gives the pictures.
        text: what stands after them.
        protocol: chat or not, and how answers end.
        tokens: cap on the answer, which the protocol may lower.
    """
    return placed(image_first(text, question.images), question.images, protocol, tokens)


def placed(
    parts: Sequence[Part],
    images: Sequence[ImageSource],
    protocol: EvaluationProtocol,
    tokens: int = FEW_TOKENS,
) -> Prompt:
    """Ask with the pictures where the parts say."""
    return Prompt(
        tuple(parts),
        tuple(images),
        raw=not protocol.chat,
        max_new_tokens=protocol.tokens(tokens),
        stop=protocol.stop,
    )


def short_question(question: Question) -> str:
    """Ask for a word in plain text, as the paper's harness does."""
    return f"Question: {question.fields['question']}\n{IN_A_WORD}\nAnswer:"


def continued(question: Question, protocol: EvaluationProtocol) -> Prompt:
    """Ask a base model, after the question's demonstrations with their answers.

    Every protocol asks in plain text here. The paper's ends a demonstration with
    ``<|endofchunk|>``, the standard one with a newline.
    """
    parts: list[Part] = []
    images: list[ImageSource] = []
    for demo in question.demos:
        solved = f"{short_question(demo)} {demo.fields['answer']}"
        parts += image_first(solved + ("\n" if protocol.chat else ""), demo.images)
        if not protocol.chat:
            parts.append(CHUNK_END)
        images += demo.images
    parts += image_first(short_question(question), question.images)
    return Prompt(
        tuple(parts),
        (*images, *question.images),
        raw=True,
        max_new_tokens=protocol.tokens(FEW_TOKENS),
        stop=protocol.stop or DEMO_STOPS,
    )
