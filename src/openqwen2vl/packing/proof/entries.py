"""The entries of raw shards: who is in them, read without laying a document out."""

import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.conversations import is_conversation
from openqwen2vl.formats.corpora import Shard, read_shard
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.interleaved import DEFAULT_RULES, InterleavedRules, is_interleaved
from openqwen2vl.formats.raw import IMAGE_EXTENSIONS
from openqwen2vl.formats.rejects import Reject, Unusable
from openqwen2vl.formats.sample_json import parse_sample, sample_uid
from openqwen2vl.packing.proof.headers import walk_plain

_TOGETHER = 64  # samples whose JSON is parsed with one call
_PARTING = b'"~|~"'
_BETWEEN = b"," + _PARTING + b","
_DOCUMENTS = frozenset(
    ["conversations", "messages", "parts", "content", "text_list", "texts", "images", "image_info"]
)


@dataclass(frozen=True)
class Listed:
    """The n entries of a raw shard, usable documents or not, in the order packing reads them.

    What an unusable document has of turns and images here means nothing.

    Attributes:
        keys: the samples' names within the shard; empty when the rest of a shard is lost.
        uids: as in ``Document``.
        turns: int32 (n,), see ``num_turns``.
        counts: int64 (n,), images of each.
        sizes: int64 (images,), bytes of each image, in the order of the marks.
        offsets: int64 (images,), where each begins in the shard's file; None where some image
            lies elsewhere.
    """

    keys: list[str]
    uids: list[str]
    turns: NDArray[np.int32]
    counts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64] | None


def num_turns(document: Document) -> int:
    """Count the ends of turns that a document has in a pack: a system turn comes with the rest."""
    first = document.turns[0].role
    if first in ("caption", "interleaved"):
        return 1
    return len(document.turns) + (first != "system")


def list_shard(shard: Shard, rules: InterleavedRules = DEFAULT_RULES) -> Listed:
    """List the entries of a raw shard.

    A tar of plain headers is read by its headers and JSON alone, several times as fast as
    ``read_shard``; everything else goes through that.

    Args:
        shard: from ``corpora.open_corpus``.
        rules: which interleaved documents were taken.

    Raises:
        ShardError: the shard went away.
    """
    if isinstance(shard, Path) and shard.is_file() and shard.stat().st_size:
        with (
            shard.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            found = list_plain(data, shard)
        if found is not None:
            return found
    return _listed(read_shard(shard, "", rules), str(shard) if isinstance(shard, Path) else None)


def _listed(items: Iterator[Document | Reject], path: str | None) -> Listed:
    keys, uids, turns, counts = [], [], [], []
    sizes: list[int] = []
    offsets: list[int] = []
    own = path is not None
    for item in items:
        images = item.images if isinstance(item, Document) else ()
        keys.append(item.key)
        uids.append(item.uid)
        turns.append(num_turns(item) if isinstance(item, Document) else 0)
        counts.append(len(images))
        sizes += [image.size for image in images]
        offsets += [image.offset for image in images]
        own = own and all(image.path == path for image in images)
    return Listed(
        keys,
        uids,
        np.array(turns, np.int32),
        np.array(counts, np.int64),
        np.array(sizes, np.int64),
        np.array(offsets, np.int64) if own else None,
    )


def list_plain(data: mmap.mmap, path: Path) -> Listed | None:
    """List a tar's entries by its headers and JSON; None when it takes the reader to tell them."""
    tar = walk_plain(data)
    if tar is None or "/" in "".join(tar.names):
        return None
    stem, found = path.stem, _alike(tar.names) or _gathered(tar.names)
    samples: list[bytes | None] = [None] * len(found.keys)
    with_json = np.flatnonzero(found.texts >= 0)
    places = found.texts[with_json]
    starts, stops = tar.offsets[places].tolist(), (tar.offsets + tar.sizes)[places].tolist()
    for sample, start, stop in zip(with_json.tolist(), starts, stops, strict=True):
        samples[sample] = data[start:stop]
    told = _told(samples, [f"{stem}/{key}" for key in found.keys])
    if told is None:
        return None
    uids, turns = told
    for sample, number in found.again.items():
        # As the reader has it: samples that claim an earlier one's key have uids of their own.
        uids[sample] = f"{stem}/{found.keys[sample]}#{number}"
    return Listed(
        found.keys,
        uids,
        np.array(turns, np.int32),
        found.counts,
        tar.sizes[found.images],
        tar.offsets[found.images],
    )


@dataclass(frozen=True)
class _Samples:
    """The n samples of a tar by column.

    Attributes:
        keys: of each.
        again: the number of those that are not the first of their key.
        texts: int64 (n,), place of each one's JSON among the files; -1 where there is none.
        counts: int64 (n,), images of each.
        images: int64 (images,), their places among the files.
    """

    keys: list[str]
    again: dict[int, int]
    texts: NDArray[np.int64]
    counts: NDArray[np.int64]
    images: NDArray[np.int64]


def _gathered(names: list[str]) -> _Samples:
    """Gather files by key as ``formats.raw`` does."""
    keys: list[str] = []
    numbers: list[int] = []
    files: list[dict[str, int]] = []
    latest: dict[str, int] = {}
    known: dict[str, bool] = {}
    for place, name in enumerate(names):
        key, _, ending = name.partition(".")
        ending = ending.lower()
        if ending not in known:
            known[ending] = _matters(ending)
        if not key or not known[ending] or name.startswith("__"):
            continue
        sample = latest.get(key)
        if sample is None or ending in files[sample]:
            numbers.append(1 if sample is None else numbers[sample] + 1)
            sample = latest[key] = len(keys)
            keys.append(key)
            files.append({})
        files[sample][ending] = place
    images = [[mine[ending] for ending in _image_endings(tuple(mine))] for mine in files]
    return _Samples(
        keys,
        {sample: number for sample, number in enumerate(numbers) if number > 1},
        np.array([mine.get("json", -1) for mine in files], np.int64),
        np.array([len(mine) for mine in images], np.int64),
        np.array([place for mine in images for place in mine], np.int64),
    )


def _alike(names: list[str]) -> _Samples | None:
    """Gather the files of a tar whose samples have the same endings in the same order.

    All of img2dataset's do, and whole columns are compared sooner than names are taken apart.
    """
    first = names[0].partition(".")[0]
    endings = [n.partition(".")[2] for n in takewhile(lambda n: n.startswith(f"{first}."), names)]
    step = len(endings)
    if not first or not all(e == e.lower() and _matters(e) for e in endings):
        return None
    keys = [name.removesuffix(f".{endings[0]}") for name in names[::step]]
    if len(set(keys)) < len(keys) or "." in "".join(keys) or "" in keys or len(set(endings)) < step:
        return None
    for place, ending in enumerate(endings):
        if names[place::step] != [f"{key}.{ending}" for key in keys]:
            return None
    if any(key.startswith("__") for key in keys):
        return None
    firsts = np.arange(len(keys)) * step
    images = np.array([endings.index(e) for e in _image_endings(tuple(endings))], np.int64)
    return _Samples(
        keys,
        {},
        firsts + endings.index("json") if "json" in endings else np.full(len(keys), -1),
        np.full(len(keys), len(images)),
        (firsts[:, None] + images).ravel(),
    )


def _matters(ending: str) -> bool:
    return ending in ("txt", "json") or bool(_image_endings((ending,)))


def _image_endings(endings: tuple[str, ...]) -> list[str]:
    """Give those of a key's endings that are images, in order."""
    numbered = []
    for ending in endings:
        number, dot, extension = ending.rpartition(".")
        if extension in IMAGE_EXTENSIONS and (not dot or number.isdecimal()):
            numbered.append((int(number or 0), ending))
    return [ending for _, ending in sorted(numbered, key=lambda item: item[0])]


def _told(
    samples: Sequence[bytes | None], defaults: Sequence[str]
) -> tuple[list[str], list[int]] | None:
    """Read uid and turns of each sample's JSON; None when one is a page that chooses its images."""
    uids, turns = list(defaults), [1] * len(samples)
    for start in range(0, len(samples), _TOGETHER):
        some = samples[start : start + _TOGETHER]
        for place, fields in enumerate(_parse_together(some) or map(_parse, some), start):
            uid = fields.get("uid")
            if uid is not None:
                uids[place] = uid if type(uid) is str and uid else sample_uid(fields, uids[place])
            if not fields.keys().isdisjoint(_DOCUMENTS):
                if is_interleaved(fields) and not is_conversation(fields):
                    return None
                turns[place] = _said(fields)
    return uids, turns


def _said(fields: dict[str, Any]) -> int:
    """Count a sample's turns as ``num_turns`` would once it is read."""
    if not is_conversation(fields):
        return 1
    raw = fields.get("conversations", fields.get("messages"))
    if not isinstance(raw, list) or not raw or not isinstance(raw[0], dict):
        return 0
    return len(raw) + (raw[0].get("from", raw[0].get("role")) != "system")


def _parse_together(samples: Sequence[bytes | None]) -> list[dict[str, Any]] | None:
    """Parse objects as one list; None when any of them needs a look of its own."""
    if None in samples:
        return None
    joined = _BETWEEN.join(samples)  # type: ignore[arg-type]
    # An escape may be half a surrogate pair, which makes a sample unusable. Where no sample holds
    # what parts them, pieces of several cannot add up to as many objects.
    if b"\\u" in joined or joined.count(_PARTING) != len(samples) - 1:
        return None
    try:
        parsed = json.loads(b"[" + joined + b"]")
    except (ValueError, RecursionError):
        return None
    apart = parsed[1::2].count(json.loads(_PARTING)) == len(samples) - 1 == len(parsed) // 2
    return parsed[::2] if apart and set(map(type, parsed[::2])) == {dict} else None


def _parse(raw: bytes | None) -> dict[str, Any]:
    try:
        return parse_sample(raw, "") if raw else {}
    except Unusable:
        return {}
