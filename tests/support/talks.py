"""Small corpora of conversations in every layout in which they are delivered, and `curate` on them."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openqwen2vl.formats.cells import CellReader, is_cell
from openqwen2vl.formats.corpora import open_corpus, read_shard
from openqwen2vl.formats.documents import ImageRef, Turn
from openqwen2vl.formats.rejects import Reject
from support.runs import Run
from support.selections import write_table
from support.shards import COLORS, SHAPES, picture, write_tar

NAME = "llava"


@dataclass(frozen=True)
class Talk:
    """A conversation: what is said in turn, a question first, and the pictures that it begins with."""

    said: tuple[str, ...]
    pictures: tuple[bytes, ...] = ()

    def turns(self) -> list[dict[str, str]]:
        """As LLaVA writes them."""
        marks = "<image>\n" * len(self.pictures)
        told = [marks + self.said[0], *self.said[1:]]
        return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(told)]


def talks(count: int = 12, seed: int = 0) -> list[Talk]:
    """Make conversations of none to three pictures, of one to three rounds."""
    rng = random.Random(seed)
    kinds = ("JPEG", "PNG", "WEBP", "GIF")
    return [
        Talk(
            tuple(
                text
                for _ in range(rng.randint(1, 3))
                for text in (
                    f"What colour is the {rng.choice(SHAPES)}? ({number})",
                    f"It is {rng.choice(COLORS)}.",
                )
            ),
            tuple(picture(rng, (64, 40 + number), kinds[number % 4]) for _ in range(number % 4)),
        )
        for number in range(count)
    ]


def _listing(folder: Path, given: list[Talk], ending: str, one: bool) -> tuple[Path, Path]:
    entries = []
    for number, talk in enumerate(given):
        names = [f"coco/{number}/{n}.jpg" for n in range(len(talk.pictures))]
        for name, data in zip(names, talk.pictures, strict=True):
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        fields: dict[str, Any] = {"id": f"{number // 2}", "conversations": talk.turns()}
        if names:
            fields["image"] = names[0] if one and len(names) == 1 else names
        entries.append(fields)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / f"mix665k{ending}"
    lines = "\n".join(map(json.dumps, entries))
    path.write_text(lines if ending == ".jsonl" else json.dumps(entries, indent=1))
    return path, folder / "images"


def _tars(folder: Path, given: list[Talk]) -> tuple[Path, None]:
    for shard in range(3):
        files: dict[str, bytes] = {}
        for number, talk in enumerate(given):
            if number % 3 == shard:
                for n, data in enumerate(talk.pictures):
                    files[f"{number:04d}.{n}.jpg"] = data
                files[f"{number:04d}.json"] = json.dumps({"conversations": talk.turns()}).encode()
        write_tar(folder / f"{shard:05d}.tar", files)
    return folder, None


def _tables(
    folder: Path, given: list[Talk], rows: Callable[[list[Talk]], Any]
) -> tuple[Path, None]:
    for shard in range(3):
        write_table(folder / f"train-{shard:05d}.parquet", rows(given[shard::3]))
    return folder, None


def _bytes(talk: Talk) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": None} for data in talk.pictures]


def _rows(given: list[Talk]) -> dict[str, Any]:
    return {
        "id": [str(n) for n in range(len(given))],
        "images": [_bytes(talk) for talk in given],
        "conversations": [talk.turns() for talk in given],
    }


def _dialogues(given: list[Talk]) -> dict[str, Any]:
    pairs = [
        [{"user": q, "assistant": a} for q, a in zip(talk.said[::2], talk.said[1::2], strict=True)]
        for talk in given
    ]
    return {"images": [_bytes(talk) for talk in given], "texts": pairs}


def _paths(folder: Path, given: list[Talk]) -> tuple[Path, Path]:
    """Tables whose conversations are JSON, and whose pictures are files."""
    path, root = _listing(folder / "files", given, ".json", one=False)
    entries = json.loads(path.read_text())
    rows = {
        "conversations": [json.dumps(entry["conversations"]) for entry in entries],
        "images": [entry.get("image", []) for entry in entries],
    }
    write_table(folder / "tables" / "train.parquet", rows)
    return folder / "tables", root


Layout = Callable[[Path, list[Talk]], tuple[Path, Path | None]]

LAYOUTS: Mapping[str, Layout] = {
    "llava": lambda folder, given: _listing(folder, given, ".json", one=True),
    "mammoth": lambda folder, given: _listing(folder, given, ".jsonl", one=False),
    "tars": _tars,
    "tables": lambda folder, given: _tables(folder, given, _rows),
    "paths": _paths,
    "finevision": lambda folder, given: _tables(folder, given, _dialogues),
}
"""Writes conversations below a folder; gives the input and, where it names pictures, their folder."""

Read = dict[str, tuple[tuple[Turn, ...], list[bytes]]]


def read(path: Path, image_root: Path | None = None) -> Read:
    """Give by uid what pack reads: the turns, and the bytes of each picture."""
    found: Read = {}
    cells = CellReader()
    for shard in open_corpus(path, image_root):
        for item in read_shard(shard, "s"):
            if not isinstance(item, Reject):
                found[item.uid] = (item.turns, [_data(image, cells) for image in item.images])
    return found


def _data(image: ImageRef, cells: CellReader) -> bytes:
    if is_cell(image):
        return cells.read(image)
    with open(image.path, "rb") as file:
        file.seek(image.offset)
        return file.read(image.size)


def told(call: Run, given: tuple[Path, Path | None], out: Path, *more: str) -> tuple[int, str, str]:
    """Call `curate` on one input."""
    path, image_root = given
    root = [] if image_root is None else [f"image_root={image_root}"]
    words = ["scorers.text.language=false", "samples_per_shard=5", "workers=1", "json=true"]
    return call("curate", f"input={{{NAME}: {path}}}", f"out={out}", *root, *words, *more)


def curated(call: Run, given: tuple[Path, Path | None], out: Path, *more: str) -> dict[str, Any]:
    """Curate one input, and give the figures."""
    code, stdout, stderr = told(call, given, out, *more)
    assert code == 0, stderr
    figures: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return figures
