"""Templates: how a document becomes token ids, and which of them the model is asked for."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.documents import IMAGE, Document, ImageMark, Part, Turn
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.tokens import (
    SpecialTokens,
    encode_texts,
    end_of_chunk,
    special_tokens,
)


@dataclass(frozen=True)
class Template:
    """The layout of conversations and interleaved documents; captions are alike in all of them.

    Attributes:
        name: what configs and manifests call it.
        system: what the system turn says when a conversation has none.
        bos: whether a conversation opens with ``<s>``.
        assistant_mark: whether ``<|im_start|>`` stands before ``assistant``.
        image_first: whether the image of a one-image conversation is moved, with a newline,
            in front of everything else.
        chunk_end: whether ``<|endofchunk|>`` stands after each text of an interleaved document;
            else a newline parts a text from what follows.
        image_glued: whether the newline behind an image of a conversation is left out.
    """

    name: str
    system: str
    bos: bool
    assistant_mark: bool
    image_first: bool
    chunk_end: bool = False
    image_glued: bool = False

    @property
    def hash(self) -> str:
        """16 hex digits over every field but the name."""
        fields = asdict(self)
        del fields["name"]
        # These fields came later: where one is not set, packs made before it are still the same.
        for later in ("chunk_end", "image_glued"):
            if not fields[later]:
                del fields[later]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


_DEFAULT_SYSTEM = "You are a helpful assistant."

TEMPLATES = {
    # Qwen2.5's own ChatML, as its chat template writes it.
    "qwen2_5": Template("qwen2_5", _DEFAULT_SYSTEM, False, True, False),
    # What the released Open-Qwen2VL weights saw (qwen2_prompter.py, the `<image>\n` that the
    # trainer of March 2025 moved to the front, and the packer's `preprocess_obelics_interleaved`).
    "open_qwen2vl_v1": Template("open_qwen2vl_v1", _DEFAULT_SYSTEM, True, False, True, True),
    # What their trainer has written since May 2025: the image stays behind `<s>`, in its turn, and
    # the text behind an image loses its first token, which is the newline (`data_utils.py`).
    "open_qwen2vl_v2": Template("open_qwen2vl_v2", _DEFAULT_SYSTEM, True, False, False, True, True),
}


def template(name: str) -> Template:
    """Give the template of a name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"template is '{name}'; there are {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


@dataclass(frozen=True)
class Encoded:
    """A document in compact coordinates: one image mark per image, whatever the grid.

    Attributes:
        ids: token ids.
        targets: half-open spans ``(start, stop)`` over ``ids``: the tokens that the model is
            asked to predict. No span holds an image mark.
        num_images: how many of ``ids`` are image marks.
    """

    ids: list[int]
    targets: list[tuple[int, int]]
    num_images: int


@dataclass(frozen=True)
class _Piece:
    """A part of the layout: one id, or a text that is yet to be encoded."""

    content: int | str
    target: bool = False


def encode_document(
    document: Document, tokenizer: PreTrainedTokenizerFast, template: Template
) -> Encoded:
    """Lay a document out and encode it.

    A caption is ``<s>``, image, newline and caption, ``<|im_end|>``; its text and end are targets
    [official packer, `preprocess_caption`]. In a conversation each assistant turn's text and
    ``<|im_end|>`` are targets. An interleaved document is ``<s>``, its texts and images in order
    with a newline after each image, ``<|im_end|>``; all but ``<s>`` and the images are targets.

    Raises:
        UserError: the template parts texts by ``<|endofchunk|>`` and the tokenizer lacks it.
    """
    return encode_documents([document], tokenizer, template)[0]


def encode_documents(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, template: Template
) -> list[Encoded]:
    """Encode many documents with one call of the tokenizer, each as ``encode_document`` would."""
    marks = _marks([document.turns for document in documents], tokenizer, template)
    layouts = [_layout(document.turns, marks, template) for document in documents]
    # Headers such as "user\n" come back in every document: encode each different text once.
    texts = {p.content for layout in layouts for p in layout if isinstance(p.content, str)}
    ordered = sorted(texts)
    codes = dict(zip(ordered, encode_texts(tokenizer, ordered), strict=True))
    return [_assemble(layout, codes, marks.special.image) for layout in layouts]


def prompt_ids(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerFast, template: Template
) -> list[int]:
    """Give the ids after which an answer is generated, laid out as in training.

    Args:
        turns: a conversation that ends with a user turn, or one ``caption`` or ``interleaved``
            turn, which a base model continues; a caption's text may be empty.
        tokenizer: from ``load_tokenizer``.
        template: the one that the model was trained with.

    Returns:
        Ids with one image mark per image, up to and including ``assistant`` and its newline; for
        a caption or an interleaved document, up to the end of its text.
    """
    marks = _marks([turns], tokenizer, template)
    pieces = _layout(turns, marks, template)
    if turns[0].role == "caption":
        pieces = pieces[:-1]
    elif turns[0].role == "interleaved":
        ended = template.chunk_end and isinstance(turns[0].parts[-1], str)
        pieces = pieces[: -2 if ended else -1]
    elif not template.assistant_mark:
        pass  # the user turn has opened the assistant's already
    else:
        pieces += [_Piece(marks.special.im_start), _Piece("assistant\n")]
    texts = [p.content for p in pieces if isinstance(p.content, str)]
    codes = dict(zip(texts, encode_texts(tokenizer, texts), strict=True))
    return _assemble(pieces, codes, marks.special.image).ids


@dataclass(frozen=True)
class _Marks:
    """The ids that a layout is made with; ``chunk_end`` where the template wants it."""

    special: SpecialTokens
    chunk_end: int | None


def _marks(
    documents: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerFast, template: Template
) -> _Marks:
    # Only who lays out an interleaved document needs a tokenizer that has the mark.
    needed = template.chunk_end and any(turns[0].role == "interleaved" for turns in documents)
    return _Marks(special_tokens(tokenizer), end_of_chunk(tokenizer) if needed else None)


def _layout(turns: Sequence[Turn], marks: _Marks, template: Template) -> list[_Piece]:
    special = marks.special
    if turns[0].role == "interleaved":
        return _interleaved(turns[0], marks)
    if turns[0].role == "caption":
        (turn,) = turns
        return [
            _Piece(special.bos),
            _Piece(special.image),
            _Piece("\n" + turn.text, target=True),
            _Piece(special.eos, target=True),
        ]
    if template.image_first and sum(turn.num_images for turn in turns) == 1:
        pieces = [_Piece(special.image), _Piece("\n")]
        turns = [_without_image(turn) for turn in turns]
    else:
        pieces = []
    if template.bos:
        pieces.append(_Piece(special.bos))
    if turns[0].role != "system":
        turns = [Turn("system", (template.system,)), *turns]
    for turn in turns:
        pieces += _turn(turn, special, template)
    return pieces


def _interleaved(turn: Turn, marks: _Marks) -> list[_Piece]:
    """Lay out a page; what stands between two images is one text, as a tokenizer would see it."""
    pieces = [_Piece(marks.special.bos)]
    text = ""
    for number, part in enumerate(turn.parts, 1):
        if isinstance(part, ImageMark):
            pieces += [*_learnt(text), _Piece(marks.special.image)]
            text = "\n"
        elif marks.chunk_end is not None:
            pieces += [*_learnt(text + part), _Piece(marks.chunk_end, target=True)]
            text = ""
        else:
            text += part + ("\n" if number < len(turn.parts) else "")
    return [*pieces, *_learnt(text), _Piece(marks.special.eos, target=True)]


def _learnt(text: str) -> list[_Piece]:
    return [_Piece(text, target=True)] if text else []


def _turn(turn: Turn, special: SpecialTokens, template: Template) -> list[_Piece]:
    answer = turn.role == "assistant"
    pieces: list[_Piece] = []
    if not answer or template.assistant_mark:
        pieces = [_Piece(special.im_start), _Piece(f"{turn.role}\n")]
    for part in _glued(turn) if template.image_glued else turn.parts:
        if isinstance(part, ImageMark):
            pieces.append(_Piece(special.image))
        elif part:
            pieces.append(_Piece(part, target=answer))
    pieces.append(_Piece(special.im_end, target=answer))
    opens_answer = turn.role == "user" and not template.assistant_mark
    pieces.append(_Piece("assistant\n" if opens_answer else "\n"))
    return pieces


def _without_image(turn: Turn) -> Turn:
    """Take the image out, and the newline that followed it."""
    return Turn(turn.role, tuple(part for part in _glued(turn) if isinstance(part, str)))


def _glued(turn: Turn) -> list[Part]:
    """Give the parts of a turn without the newline that follows an image."""
    parts: list[Part] = []
    after_image = False
    for part in turn.parts:
        if after_image and isinstance(part, str):
            part = part.removeprefix("\n")
        parts.append(part)
        after_image = part is IMAGE
    return parts


def _assemble(pieces: list[_Piece], codes: dict[str, list[int]], image: int) -> Encoded:
    ids: list[int] = []
    targets: list[tuple[int, int]] = []
    num_images = 0
    for piece in pieces:
        start = len(ids)
        if isinstance(piece.content, int):
            ids.append(piece.content)
            num_images += piece.content == image
        else:
            ids.extend(codes[piece.content])
        if piece.target and len(ids) > start:
            if targets and targets[-1][1] == start:
                start = targets.pop()[0]
            targets.append((start, len(ids)))
    return Encoded(ids, targets, num_images)
