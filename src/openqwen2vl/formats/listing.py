"""LLaVA's other layout: one JSON or JSONL list of conversations beside a folder of images."""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from openqwen2vl.formats.conversations import is_conversation, parse_turns
from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.raw import IMAGE_EXTENSIONS
from openqwen2vl.formats.rejects import Reject, Unusable
from openqwen2vl.formats.sample_json import parse_sample, sample_uid

# A JSON string as a whole, or a bracket: enough to find where the elements of a list end.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_OPENING, _CLOSING = b"{[", b"}]"


@dataclass(frozen=True)
class ListingShard:
    """A run of entries of a listing, so that several processes can share one file.

    Attributes:
        path: the JSON or JSONL file.
        image_root: the folder that the entries' image paths start from.
        first: number of the first entry.
        spans: the bytes ``[start, stop)`` of each entry.
        broken: how the file breaks off after these entries, if it does.
    """

    path: Path
    image_root: Path
    first: int
    spans: tuple[tuple[int, int], ...]
    broken: str | None = None


def listing_shards(
    path: Path, image_root: Path | None, entries: int = 10_000
) -> list[ListingShard]:
    """Cut a listing into runs of entries.

    Args:
        path: ``.json`` with one list, or ``.jsonl`` with an entry a line.
        image_root: needed even when few entries have images.
        entries: in a run, at most.

    Raises:
        ShardError: the file or the folder is missing, or the file holds no list of entries.
    """
    if not path.is_file():
        raise ShardError(f"no file {path}; check the path of the conversations")
    if image_root is None or not image_root.is_dir():
        raise ShardError(f"image_root is {image_root}; name the folder that {path}'s images are in")
    if path.stat().st_size == 0:
        raise ShardError(f"{path} is empty; expected a list of conversations")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        spans, broken = _lines(data) if path.suffix == ".jsonl" else _elements(data, path)
    if not spans:
        raise ShardError(f"{path} holds no conversation")
    runs = [tuple(spans[i : i + entries]) for i in range(0, len(spans), entries)]
    return [
        ListingShard(path, image_root, i * entries, run, broken if i == len(runs) - 1 else None)
        for i, run in enumerate(runs)
    ]


def read_listing_shard(shard: ListingShard, source: str) -> Iterator[Document | Reject]:
    """Read the entries of a run; ``image`` of an entry is a path or a list of paths.

    An entry's key is its number: LLaVA's ``id`` names the picture, which several entries share.

    Raises:
        ShardError: the file is missing.
    """
    for item, _ in read_listing_items(shard, source):
        yield item


def read_listing_items(
    shard: ListingShard, source: str
) -> Iterator[tuple[Document | Reject, dict[str, Any]]]:
    """Read entries as ``read_listing_shard`` does; beside each what it holds.

    The fields of a reject are empty.

    Raises:
        ShardError: the file is missing.
    """
    name = shard.path.stem
    try:
        file = shard.path.open("rb")
    except FileNotFoundError as error:
        raise ShardError(f"listing {shard.path} is missing") from error
    with file:
        for number, (start, stop) in enumerate(shard.spans, shard.first):
            file.seek(start)
            yield _read_entry(file.read(stop - start), shard, f"{number:09d}", source)
    if shard.broken:
        detail = f"{shard.path.name} {shard.broken}"
        yield Reject(source, name, "", name, "truncated_shard", detail), {}


def _read_entry(
    raw: bytes, shard: ListingShard, key: str, source: str
) -> tuple[Document | Reject, dict[str, Any]]:
    name = shard.path.stem
    uid = f"{name}/{key}"
    try:
        fields = parse_sample(raw, f"entry {key}")
        uid = sample_uid(fields, uid)
        if not is_conversation(fields):
            raise Unusable("missing_text", "the entry has no conversation")
        images = _images(fields, shard.image_root)
        turns = parse_turns(fields, len(images))
    except Unusable as verdict:
        return Reject(source, name, key, uid, verdict.reason, verdict.detail), {}
    return Document(source, name, key, uid, turns, images), fields


def _images(fields: dict[str, Any], root: Path) -> tuple[ImageRef, ...]:
    given = fields.get("image", fields.get("images"))
    names = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unusable("bad_json", "image is neither a path nor a list of paths")
    return tuple(image_file(name, root) for name in names)


def image_file(name: str, root: Path) -> ImageRef:
    """Give an image that is a file of its own.

    Args:
        name: its path from ``root``.
        root: the folder of images.

    Raises:
        Unusable: ``missing_image``, when it is not there or is empty.
    """
    path = root / name
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise Unusable("missing_image", f"no image {name} under image_root") from error
    if not S_ISREG(found.st_mode):
        raise Unusable("missing_image", f"image {name!r} under image_root is no file")
    size = found.st_size
    if size == 0:
        raise Unusable("missing_image", f"{name} holds no bytes")
    ending = path.suffix.lower().removeprefix(".")
    # It becomes part of a name in a tar; what decodes the image goes by its bytes.
    return ImageRef(str(path), 0, size, ending if ending in IMAGE_EXTENSIONS else "img")


def _lines(data: mmap.mmap) -> tuple[list[tuple[int, int]], str | None]:
    spans, start = [], 0
    while start < len(data):
        stop = data.find(b"\n", start)
        stop = len(data) if stop < 0 else stop
        if data[start:stop].strip():
            spans.append((start, stop))
        start = stop + 1
    return spans, None


def _elements(data: mmap.mmap, path: Path) -> tuple[list[tuple[int, int]], str | None]:
    """Find the objects of a JSON list without parsing them."""
    spans: list[tuple[int, int]] = []
    depth, start = 0, 0
    for match in _TOKEN.finditer(data):
        token = match.group()
        if token in _OPENING:
            if depth == 0 and token != b"[":
                break
            if depth == 1:
                start = match.start()
            depth += 1
        elif token in _CLOSING:
            depth -= 1
            if depth == 1:
                spans.append((start, match.end()))
            if depth == 0:
                return spans, None
    if depth == 0:
        raise ShardError(f"{path} is not a JSON list of conversations")
    return spans, f"ends within entry {len(spans)}"
