"""Mini benchmarks of 12 to 20 rows in the public schemas: drawn pictures, questions of our own."""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openqwen2vl.corpus.questions import NO, YES, Question, choice_questions, yes_no_question
from openqwen2vl.corpus.render import jpeg, render
from openqwen2vl.corpus.scenes import COLOURS, WORDS, Scene, Sign, caption, draw_scene
from support.mini_files import DATA, WRITERS, Rows


def write_mini(root: Path, data: str, form: str = "parquet", split: str | None = None) -> Path:
    """Write one of ``MINI`` where ``data_root=root`` finds it; gives the file.

    What lies in ``DATA`` is copied from there, other forms and splits are drawn anew.

    Args:
        root: the data root.
        form: ``parquet``, ``tsv`` or ``jsonl``.
        split: the evaluated one when not given.
    """
    split = split or MINI[data][0]
    (root / data).mkdir(parents=True, exist_ok=True)
    path = root / data / f"{split}-00000-of-00001.{form}"
    if (there := DATA / data / path.name).exists():
        shutil.copyfile(there, path)
    else:
        WRITERS[form](path, mini_rows(data, split))
    return path


def mini_rows(data: str, split: str) -> Rows:
    """Draw the rows of a mini benchmark, the same each time; pictures are JPEG bytes."""
    rows = MINI[data][1](random.Random(f"{data}/{split}"))
    if split == "train":
        for row in rows:
            row.update({name: f"t{row[name]}" for name in ("id", "question_id") if name in row})
    return rows


def _picture(scene: Scene, rng: random.Random) -> dict[str, Any]:
    return {"bytes": jpeg(render(scene, rng)), "path": "drawn.jpg"}


def _choice(rng: random.Random) -> tuple[Question, dict[str, Any]]:
    scene = draw_scene(rng, held_out=True)
    return choice_questions(scene, rng)[0], _picture(scene, rng)


def _letter(question: Question) -> str:
    return "ABCD"[question.right]


def _mmbench(rng: random.Random) -> Rows:
    """Four questions of four options and one of two, each with its circular copies."""
    rows = []
    for index in range(5):
        question, picture = _choice(rng)
        options = list(question.options[: 2 if index == 4 else 4])
        answer = question.answer if question.answer in options else options[0]
        for copy in range(len(options)):
            moved = options[-copy:] + options[:-copy] if copy else options
            shown = {"ABCD"[n]: moved[n] if n < len(moved) else "nan" for n in range(4)}
            rows.append(
                {
                    "index": 100 + index + copy * 1_000_000,
                    "question": question.text,
                    "hint": "Look closely." if index == 1 else "nan",
                    **shown,
                    "answer": "ABCD"[moved.index(answer)],
                    "category": f"topic {index % 2}",
                    "L2-category": "perception",
                    "source": "drawn",
                    "split": "dev",
                    "image": picture,
                }
            )
    return rows


def _pope(rng: random.Random) -> Rows:
    rows: Rows = []
    for number in range(6):
        scene = draw_scene(rng, held_out=True)
        asked, picture = yes_no_question(scene, rng), _picture(scene, rng)
        for part in ("adversarial", "popular", "random"):
            rows.append(
                {
                    "id": str(len(rows)),
                    "question_id": str(number + 1),
                    "question": asked.text,
                    "answer": (YES, NO)[number % 2] if number < 2 else asked.answer,
                    "image_source": f"drawn_{number}",
                    "image": picture,
                    "category": part,
                }
            )
    return rows


def _seedbench(rng: random.Random) -> Rows:
    rows = []
    for number in range(13):
        question, picture = _choice(rng)
        moving = number == 12
        rows.append(
            {
                "question_id": str(1000 + number),
                "question": question.text,
                **{f"choice_{n}": t for n, t in zip("abcd", question.options, strict=True)},
                "answer": _letter(question),
                "data_type": "video" if moving else "image",
                "question_type_id": number % 3 + 1,
                "image": [picture] * (2 if moving else 1),
            }
        )
    return rows


def _mmstar(rng: random.Random) -> Rows:
    rows = []
    for number in range(12):
        question, picture = _choice(rng)
        options = ", ".join(f"{m}: {o}" for m, o in zip("ABCD", question.options, strict=True))
        rows.append(
            {
                "index": number,
                "question": f"{question.text}\nOptions: {options}",
                "image": picture["bytes"],
                "answer": _letter(question),
                "category": ("coarse perception", "math")[number % 2],
                # One finer category is larger than the others, so that macro differs from micro.
                "l2_category": ("geometry", "recognition", "image emotion")[min(number, 2)],
                "meta_info": {"source": "drawn"},
            }
        )
    return rows


def _ai2d(rng: random.Random) -> Rows:
    drawn = [_choice(rng) for _ in range(12)]
    return [
        {"question": q.text, "options": list(q.options), "answer": str(q.right), "image": picture}
        for q, picture in drawn
    ]


def _mmmu(rng: random.Random) -> Rows:
    rows = []
    for number in range(12):
        question, picture = _choice(rng)
        several, open_ended = number % 4 == 1, number % 4 == 2
        marks = "<image 1> and <image 2>" if several else "<image 1>"
        row: dict[str, Any] = {
            "id": f"validation_{('Math', 'Art_Theory', 'Accounting')[number % 3]}_{number + 1}",
            "question": f"{question.text} See {marks}.",
            "options": str([] if open_ended else list(question.options)),
            "answer": question.answer if open_ended else _letter(question),
            "question_type": "open" if open_ended else "multiple-choice",
            "subfield": "Drawing",
        }
        for place in range(1, 8):
            row[f"image_{place}"] = picture if place <= 1 + several else None
        rows.append(row)
    return rows


def _written(rng: random.Random) -> tuple[Sign, dict[str, Any]]:
    sign = Sign(rng.choice(WORDS), rng.choice(COLOURS), "middle", "white")
    return sign, _picture(sign, rng)


def _short(rng: random.Random, answers: Callable[[str], Sequence[Any]]) -> Rows:
    rows = []
    for number in range(12):
        sign, picture = _written(rng)
        rows.append(
            {
                "question_id": str(500 + number),
                "question": "What WORD is written?",
                "answers": list(answers(sign.word)),
                "ocr_tokens": [sign.word.upper(), "tm"],
                "category": "other",
                "image": picture,
            }
        )
    return rows


def _ten(word: str) -> list[str]:
    return [word] * 6 + [f"the {word}", word.title(), "unanswerable", "two cats"]


def _of_dicts(word: str) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_id": number} for number, text in enumerate(_ten(word))]


def _mathvista(rng: random.Random) -> Rows:
    rows = []
    for number in range(12):
        question, picture = _choice(rng)
        kind = ("text", "integer", "float", "list")[number % 4]
        answer = {"text": question.answer, "integer": "14", "float": "1.45", "list": "[2007, 2008]"}
        rows.append(
            {
                "pid": str(number + 1),
                "question": question.text,
                "image": "images/drawn.jpg",
                "decoded_image": picture,
                "choices": list(question.options) if kind == "text" else None,
                "unit": "$" if kind == "float" else None,
                "precision": 2.0 if kind == "float" else None,
                "answer": answer[kind],
                "question_type": "multi_choice" if kind == "text" else "free_form",
                "answer_type": kind,
                "metadata": {"task": "drawing", "split": "testmini"},
                "query": "",
            }
        )
    return rows


def _realworldqa(rng: random.Random) -> Rows:
    rows = []
    for number in range(12):
        question, picture = _choice(rng)
        options = "\n".join(f"{m}. {o}" for m, o in zip("ABCD", question.options, strict=True))
        asked, answer = f"{question.text}\n\n{options}\nAnswer with the letter.", _letter(question)
        if number % 3 == 2:
            asked, answer = f"{question.text} Answer in a word.", question.answer.title()
        rows.append({"question": asked, "answer": answer, "image": picture, "image_path": "x"})
    return rows


def _mantis(rng: random.Random) -> Rows:
    rows = []
    for number in range(12):
        question, picture = _choice(rng)
        _, other = _choice(rng)
        short = number % 4 == 3
        options = [f"({m}) {o}" for m, o in zip("ABCD", question.options, strict=True)]
        rows.append(
            {
                "id": f"drawn_{number}",
                "question_type": "short-answer" if short else "multi-choice",
                "question": f"<image> <image> Of the first: {question.text}",
                "images": [picture, other],
                "options": [] if short else options,
                "answer": question.answer if short else _letter(question),
                "data_source": "drawn",
                "category": "compare",
            }
        )
    return rows


def _gqa(rng: random.Random) -> Rows:
    rows = []
    for number in range(12):
        question, picture = _choice(rng)
        row = {"question": question.text, "answer": question.answer, "image": picture}
        rows.append({"id": str(900 + number), **row})
    return rows


def _captions(rng: random.Random) -> Rows:
    rows = []
    for number in range(12):
        scene = draw_scene(rng, held_out=True)
        said = [caption(scene, rng) for _ in range(5)]
        rows.append(
            {
                "question_id": f"drawn_{number:012d}.jpg",
                "answer": said,
                "image": _picture(scene, rng),
            }
        )
    return rows


MINI: dict[str, tuple[str, Callable[[random.Random], Rows]]] = {
    "mmbench": ("dev", _mmbench),
    "pope": ("test", _pope),
    "seedbench": ("test", _seedbench),
    "mmstar": ("val", _mmstar),
    "ai2d": ("test", _ai2d),
    "mmmu": ("validation", _mmmu),
    "textvqa": ("validation", lambda rng: _short(rng, _ten)),
    "mathvista": ("testmini", _mathvista),
    "realworldqa": ("test", _realworldqa),
    "mantis": ("test", _mantis),
    "gqa": ("testdev", _gqa),
    "vqav2": ("validation", lambda rng: _short(rng, _of_dicts)),
    "okvqa": ("val2014", lambda rng: _short(rng, _ten)),
    "vizwiz": ("val", lambda rng: _short(rng, _ten)),
    "coco_captions": ("val", _captions),
}
