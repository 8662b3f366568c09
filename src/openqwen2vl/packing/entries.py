"""The entries of raw shards: who is in them, read without laying a document out."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.corpora import Shard, read_shard
from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.interleaved import is_interleaved
from openqwen2vl.formats.raw import IMAGE_EXTENSIONS
from openqwen2vl.formats.rejects import Reject, Unusable
from openqwen2vl.formats.sample_json import parse_sample, sample_uid
from openqwen2vl.formats.tar import BLOCK

_WINDOW = 4096  # bytes of one read of headers
_TOGETHER = 64  # samples whose JSON is parsed with one call


class Entry(NamedTuple):
    """One document of a raw shard, usable or not.

    Attributes:
        key: the sample's name within the shard; empty when the rest of a shard is lost.
        uid: as in ``Document``.
        images: path, offset and size of each image as in ``ImageRef``, in the order of the
            marks; what an unusable document has here means nothing.
    """

    key: str
    uid: str
    images: tuple[tuple[str, int, int], ...]

    @property
    def refs(self) -> list[ImageRef]:
        """Give the images as those who read their bytes take them."""
        return [ImageRef(path, offset, size, "") for path, offset, size in self.images]


def shard_entries(shard: Shard) -> Iterator[Entry]:
    """Give the documents of a raw shard in the order in which packing reads them.

    A tar of plain headers is read by its headers and JSON alone, about three times as fast as
    ``read_shard``; everything else goes through that.

    Raises:
        ShardError: the shard went away.
    """
    if isinstance(shard, Path) and shard.is_file() and shard.stat().st_size:
        with shard.open("rb") as file:
            found = plain_entries(file.fileno(), shard)
        if found is not None:
            return iter(found)
    return map(_as_entry, read_shard(shard, ""))


def _as_entry(item: Document | Reject) -> Entry:
    if isinstance(item, Reject):
        return Entry(item.key, item.uid, ())
    return Entry(item.key, item.uid, tuple((i.path, i.offset, i.size) for i in item.images))


@dataclass(frozen=True)
class PlainTar:
    """The regular files of a tar of plain headers.

    Attributes:
        names: of the files, in order.
        offsets: of their first bytes.
        sizes: in bytes.
        contents: the bytes of files that came along with the headers, else None.
    """

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    contents: list[bytes | None]


def walk_plain(file: int) -> PlainTar | None:
    """List the regular files of a tar of plain headers.

    Only the sizes are read one by one, since each says where the next header lies; everything
    else is looked at in all headers at once. A read takes in the small files that lie together,
    so that a sample of one image costs one read.

    Args:
        file: descriptor of the tar.

    Returns:
        None when the tar breaks off, is damaged, or holds names or sizes that plain headers
        cannot, so that ``formats.tar.members`` has to read it.
    """
    offsets: list[int] = []
    sizes: list[int] = []
    contents: list[bytes | None] = []
    headers: list[bytes] = []
    at, end, base = BLOCK, os.fstat(file).st_size, 0
    window = os.pread(file, _WINDOW, 0)
    try:
        while True:
            near = at - base
            if near > len(window):
                base, near = at - BLOCK, BLOCK
                window = os.pread(file, _WINDOW, base)
            block = window[near - BLOCK : near]
            if not block[0]:
                break
            size = int(block[124:135], 8)
            stop = near + size
            headers.append(block)
            offsets.append(at)
            sizes.append(size)
            contents.append(window[near:stop] if stop <= len(window) else None)
            at += (size + BLOCK - 1 & -BLOCK) + BLOCK
    except (ValueError, IndexError):  # no octal number, or no block at all
        return None
    if not headers or any(block) or len(block) < BLOCK or offsets[-1] + sizes[-1] > end:
        return None
    blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    kinds = blocks[:, 156]
    regular = (kinds == 0) | (kinds == ord("0"))
    for place in np.flatnonzero(~regular).tolist():
        content = os.pread(file, sizes[place], offsets[place])
        if kinds[place] == ord("L") or b"path=" in content or b"size=" in content:
            return None
    joined = b"\0".join(np.ascontiguousarray(blocks[:, :100]).view("S100")[:, 0].tolist())
    names = joined.decode(errors="replace").split("\0")
    if len(names) != len(headers) or blocks[:, 345].any() or not sound_headers(blocks):
        return None
    if not regular.all():
        kept = np.flatnonzero(regular).tolist()
        names = [names[i] for i in kept]
        offsets, sizes = [offsets[i] for i in kept], [sizes[i] for i in kept]
        contents = [contents[i] for i in kept]
    return PlainTar(names, offsets, sizes, contents)


def sound_headers(blocks: NDArray[np.uint8]) -> bool:
    """Whether every header's checksum is right and every size ends where it should.

    Args:
        blocks: uint8 (n, 512).
    """
    digits = blocks[:, 148:154].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 7)).any() or blocks[:, 154].any():
        return False
    if not np.isin(blocks[:, 135], (0, ord(" "))).all():
        return False
    stated = digits @ 8 ** np.arange(5, -1, -1)
    sums = blocks.sum(1, dtype=np.int64) - blocks[:, 148:156].sum(1, dtype=np.int64) + 8 * 32
    return bool((stated == sums).all())


def plain_entries(file: int, path: Path) -> list[Entry] | None:
    """List a tar's entries by its headers and JSON; None when it takes the reader to tell them."""
    tar = walk_plain(file)
    if tar is None or any("/" in name for name in tar.names):
        return None
    offsets, sizes, contents = tar.offsets, tar.sizes, tar.contents
    where, stem = str(path), path.stem
    groups = _groups(tar.names)
    samples: list[bytes | None] = []
    for _, _, places in groups:
        at = places.get("json")
        sample = None if at is None else contents[at]
        if at is not None and sample is None:
            sample = os.pread(file, sizes[at], offsets[at])
        samples.append(sample)
    uids = _uids(samples, [f"{stem}/{key}" for key, _, _ in groups])
    if uids is None:
        return None
    layouts: dict[tuple[str, ...], list[str]] = {}
    found = []
    for (key, number, places), uid in zip(groups, uids, strict=True):
        endings = tuple(places)
        if endings not in layouts:
            layouts[endings] = _image_endings(endings)
        images = [(where, offsets[places[e]], sizes[places[e]]) for e in layouts[endings]]
        # As the reader has it: samples that claim an earlier one's key have uids of their own.
        uid = uid if number == 1 else f"{stem}/{key}#{number}"
        found.append(Entry(key, uid, tuple(images)))
    return found


_Group = tuple[str, int, dict[str, int]]
"""A sample's key, its number among those of that key, and the place of each ending."""


def _groups(names: list[str]) -> list[_Group]:
    """Gather files by key as ``formats.raw`` does."""
    groups: list[_Group] = _alike(names) or []
    if groups:
        return groups
    latest: dict[str, _Group] = {}
    known: dict[str, bool] = {}
    for place, name in enumerate(names):
        key, _, ending = name.partition(".")
        ending = ending.lower()
        if ending not in known:
            known[ending] = _matters(ending)
        if not key or not known[ending] or name.startswith("__"):
            continue
        group = latest.get(key)
        if group is None or ending in group[2]:
            group = latest[key] = (key, group[1] + 1 if group else 1, {})
            groups.append(group)
        group[2][ending] = place
    return groups


def _alike(names: list[str]) -> list[_Group] | None:
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
    return [
        (key, 1, dict(zip(endings, range(at, at + step), strict=True)))
        for key, at in zip(keys, range(0, len(names), step), strict=True)
    ]


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


def _uids(samples: Sequence[bytes | None], defaults: Sequence[str]) -> list[str] | None:
    """Read the uid of each sample's JSON; None when one is a document that chooses its images."""
    found = list(defaults)
    for start in range(0, len(samples), _TOGETHER):
        some = {i: raw for i, raw in enumerate(samples[start : start + _TOGETHER], start) if raw}
        # An escape may be half a surrogate pair, which makes a sample unusable.
        plain = [i for i, raw in some.items() if b"\\u" not in raw]
        parsed = _parse_together([some[i] for i in plain])
        together = dict(zip(plain, parsed, strict=True)) if parsed is not None else {}
        for i, raw in some.items():
            fields = together[i] if i in together else _parse(raw)
            if is_interleaved(fields):
                return None
            found[i] = sample_uid(fields, defaults[i])
    return found


def _parse_together(samples: Sequence[bytes]) -> list[dict[str, Any]] | None:
    """Parse objects as one list; None when any of them needs a look of its own."""
    try:
        parsed = json.loads(b"[" + b",".join(samples) + b"]")
    except (ValueError, RecursionError):
        return None
    sound = len(parsed) == len(samples) and all(type(fields) is dict for fields in parsed)
    return parsed if sound else None


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        return parse_sample(raw, "")
    except Unusable:
        return {}
