"""Raw shards: tars as img2dataset writes them, read as documents without touching an image."""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from openqwen2vl.formats.captions import caption_turn
from openqwen2vl.formats.documents import Document, ImageRef, Turn
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import DEFAULT_RULES, InterleavedRules, is_interleaved
from openqwen2vl.formats.layouts import lay_out
from openqwen2vl.formats.rejects import Reject, Unusable
from openqwen2vl.formats.sample_json import parse_sample, sample_scores, sample_uid
from openqwen2vl.formats.tar import Member, TruncatedTarError, members
from openqwen2vl.formats.written import written_images

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

# WebDataset's rule: the key ends at the first dot of the file's name.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_IMAGE_NAME = re.compile(rf"(?:(\d+)\.)?({'|'.join(IMAGE_EXTENSIONS)})", re.IGNORECASE)


@dataclass
class _Group:
    """The files of one key; ``number`` counts the samples that claim the same key."""

    key: str
    number: int = 1
    files: dict[str, Member] = field(default_factory=dict)


def raw_shards(folder: Path) -> list[Path]:
    """List the raw shards of a folder by name.

    Raises:
        ShardError: there is no such folder, or it holds no ``.tar``.
    """
    if not folder.is_dir():
        raise ShardError(f"no folder {folder}; check the path of the raw shards")
    found = sorted(folder.glob("*.tar"))
    if not found:
        raise ShardError(
            f"{folder} holds no .tar; raw shards are img2dataset's KEY.jpg, .txt, .json"
        )
    return found


def read_raw_shard(
    path: Path, source: str, rules: InterleavedRules = DEFAULT_RULES
) -> Iterator[Document | Reject]:
    """Read the documents of a shard in the order of their first files.

    ``KEY.jpg`` and ``KEY.txt`` are a caption; ``KEY.json`` may give its ``uid``. A ``KEY.json``
    with ``conversations`` or ``messages`` is a conversation, one with ``parts``, ``texts`` or
    ``text_list`` an interleaved document, each with its images ``KEY.jpg`` or
    ``KEY.0.jpg, KEY.1.jpg ...``; one with ``ground_truth`` is the text of a page ``KEY.jpg``.
    Endings may be written in capitals. A page without images beside it may hold them itself, as
    ``written.written_images`` reads them.

    A file whose whole name came before opens another sample of that key. Only the first sample
    of a key can be a document: nothing tells which files of the two belong together.

    Args:
        path: a tar; it may break off, then the last item is a ``Reject`` for its rest.
        source: the name to give the documents.
        rules: which interleaved documents are taken.

    Raises:
        ShardError: the file is missing.
    """
    for item, _ in read_raw_items(path, source, rules):
        yield item


def read_raw_items(
    path: Path, source: str, rules: InterleavedRules = DEFAULT_RULES
) -> Iterator[tuple[Document | Reject, dict[str, Any]]]:
    """Read a shard as ``read_raw_shard`` does; beside each item what its ``KEY.json`` holds.

    The fields of a reject are empty.

    Raises:
        ShardError: the file is missing.
    """
    with _opened(path) as file:
        if path.stat().st_size == 0:
            yield _rest(path, source, "is empty"), {}
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            groups, broken = _groups(data)
            for group in groups:
                yield _read_group(group, data, path, source, rules)
    if broken:
        yield _rest(path, source, broken), {}


def read_raw_files(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Give each key of a shard and where its files lie, in the order of their first files.

    Of samples that share a key only the first is given, as in ``read_raw_shard``; a tar that
    breaks off gives the samples that are whole.

    Args:
        path: a tar.

    Yields:
        The key, and by their endings in lower case its images, its text and its JSON.

    Raises:
        ShardError: the file is missing.
    """
    with _opened(path) as file:
        if path.stat().st_size == 0:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            groups, _ = _groups(data)
    for group in groups:
        if group.number == 1:
            yield group.key, group.files


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise ShardError(f"raw shard {path} is missing") from error


def _rest(path: Path, source: str, detail: str) -> Reject:
    return Reject(source, path.stem, "", path.stem, "truncated_shard", f"{path.name} {detail}")


def _groups(data: mmap.mmap) -> tuple[list[_Group], str | None]:
    """Gather files by key; also say how the tar breaks off, if it does."""
    groups: list[_Group] = []
    latest: dict[str, _Group] = {}
    broken = None
    try:
        for member in members(data):
            match = _NAME.fullmatch(member.name)
            if match is None or member.name.startswith("__"):
                continue
            key, ending = match.group(1), match.group(2).lower()
            if not _matters(ending):
                continue
            group = latest.get(key)
            if group is None or ending in group.files:
                group = latest[key] = _Group(key, group.number + 1 if group else 1)
                groups.append(group)
            group.files[ending] = member
    except TruncatedTarError as error:
        match = _NAME.fullmatch(error.member or "")
        # The sample that the cut goes through is part of what is lost.
        if match and groups and groups[-1].key == match.group(1):
            groups.pop()
        broken = f"{error}; {len(groups)} documents before that are whole"
    return groups, broken


def _matters(ending: str) -> bool:
    return ending in ("txt", "json") or _IMAGE_NAME.fullmatch(ending) is not None


def _read_group(
    group: _Group, data: mmap.mmap, path: Path, source: str, rules: InterleavedRules
) -> tuple[Document | Reject, dict[str, Any]]:
    shard, key = path.stem, group.key
    uid = f"{shard}/{key}"
    if group.number > 1:
        # A uid of its own, so that the ledger does not seem to speak of the first sample.
        detail = f"sample {group.number} of the key {key} in {path.name}"
        return Reject(source, shard, key, f"{uid}#{group.number}", "duplicate_key", detail), {}
    try:
        fields = _json(group, data)
        uid = sample_uid(fields, uid)
        images = _images(group, path) or _written(fields, group, data, path)
        found = lay_out(fields, images, rules)
        turns, images = found or ((_caption(group, data, len(images)),), images)
    except Unusable as verdict:
        return Reject(source, shard, key, uid, verdict.reason, verdict.detail), {}
    scores = sample_scores(fields)
    return Document(source, shard, key, uid, turns, images, scores), fields


def _json(group: _Group, data: mmap.mmap) -> dict[str, Any]:
    member = group.files.get("json")
    if member is None:
        return {}
    return parse_sample(data[member.offset : member.offset + member.size], member.name)


def _images(group: _Group, path: Path) -> tuple[ImageRef, ...]:
    numbered = []
    for ending, member in group.files.items():
        match = _IMAGE_NAME.fullmatch(ending)
        if match is None:
            continue
        if member.size == 0:
            raise Unusable("missing_image", f"{member.name} holds no bytes")
        ref = ImageRef(str(path), member.offset, member.size, match.group(2))
        numbered.append((int(match.group(1) or 0), ref))
    return tuple(ref for _, ref in sorted(numbered, key=lambda item: item[0]))


def _written(
    fields: dict[str, Any], group: _Group, data: mmap.mmap, path: Path
) -> tuple[ImageRef, ...]:
    """Give the images that a page's JSON holds itself."""
    if not is_interleaved(fields):
        return ()
    member = group.files["json"]
    raw = data[member.offset : member.offset + member.size]
    return written_images(fields, raw, member.offset, path)


def _caption(group: _Group, data: mmap.mmap, num_images: int) -> Turn:
    member = group.files.get("txt")
    if member is None:
        raise Unusable("missing_text", f"{group.key} has no .txt and no .json with a document")
    try:
        text = data[member.offset : member.offset + member.size].decode()
    except UnicodeDecodeError as error:
        raise Unusable("bad_text", f"{member.name} is not UTF-8 ({error.reason})") from error
    return caption_turn(text, num_images, member.name)
