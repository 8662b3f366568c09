"""One sample as it stands in a new shard: its key, its image, its caption, and what its JSON gains."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openqwen2vl.curation.resharding.blur import Blurred, blur_faces
from openqwen2vl.curation.resharding.locate import SCORE
from openqwen2vl.curation.shards import FACES, name_in_uids
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.rejects import Unusable
from openqwen2vl.formats.sample_json import parse_sample, sample_uid
from openqwen2vl.formats.tar import BLOCK, header

_LONGEST = 80  # letters of a key: with its ending it must fit a tar's header


@dataclass(frozen=True)
class Old:
    """A kept sample as its raw shard has it.

    Attributes:
        source: the name that the raw shards go by.
        shard: the raw shard's file name without its ending.
        row: of the index file: key, uid, the image's ending, and scores.
        image: the file's bytes.
        text: of ``KEY.txt``; None when there is none.
        json: of ``KEY.json``; empty when there is none.
        pictures: ending and bytes of each image of a conversation; None of a pair.
    """

    source: str
    shard: str
    row: Mapping[str, Any]
    image: bytes
    text: bytes | None
    json: bytes
    pictures: tuple[tuple[str, bytes], ...] | None = None


def renewed(old: Old, blur: bool) -> tuple[bytes, Blurred]:
    """Give a sample's members of a new tar, and what became of its faces.

    ``KEY.json`` keeps its fields and gains ``uid`` if it has none, ``origin`` (``source``,
    ``shard``, ``key``, and how many faces are ``blurred`` if any) and ``scores``. Image and text are
    the bytes that there were, unless faces are blurred. A sample whose faces were to be blurred and
    cannot be, since its image is unreadable, has no members at all. A conversation's images are
    ``KEY.0.jpg, KEY.1.jpg ...`` as they were; faces are those of pairs.

    Args:
        old: the sample.
        blur: whether to blur the faces that its JSON tells of.

    Raises:
        ShardError: its JSON is broken, or has another uid than was kept, or it is a conversation
            and has faces.
    """
    fields = _fields(old)
    picture = Blurred(old.image)
    if blur and old.pictures is not None and fields.get(FACES):
        raise ShardError(
            f"{old.row['key']} of {old.shard} is a conversation with {FACES}, and nothing tells "
            "whose picture they are of; blur its pictures first, or set blur=false"
        )
    if blur and old.pictures is None:
        picture = blur_faces(old.image, fields.get(FACES))
        if picture.unreadable:
            return b"", picture
    origin: dict[str, Any] = {"source": old.source, "shard": old.shard, "key": old.row["key"]}
    if picture.faces:
        origin["blurred"] = picture.faces
    content = json.dumps(_told(fields, old.row, origin), ensure_ascii=False).encode()
    name = new_key(old.shard, old.row["key"])
    if old.pictures is not None:
        images = [
            piece
            for number, (ending, data) in enumerate(old.pictures)
            for piece in _member(f"{name}.{number}.{ending}", data)
        ]
        return b"".join(images + _member(f"{name}.json", content)), picture
    pieces = _member(f"{name}.{old.row['ending'].rpartition('.')[2]}", picture.data)
    if old.text is not None:
        pieces += _member(f"{name}.txt", old.text)
    return b"".join(pieces + _member(f"{name}.json", content)), picture


def new_key(shard: str, key: str) -> str:
    """Give a sample's name in the new shards: no two of a source have the same.

    ``SHARD_KEY``, where what a key may not hold (dots, slashes, an underscore in the shard's name)
    is written in hex; the end of a long name gives way to a hash.
    """
    name = f"{_escaped(r'[^A-Za-z0-9-]', shard)}_{_escaped(r'[^A-Za-z0-9_-]', key)}"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _escaped(what: str, text: str) -> str:
    return re.sub(what, lambda m: "".join(f"%{byte:02X}" for byte in m.group().encode()), text)


def _member(name: str, content: bytes) -> list[bytes]:
    return [header(name, len(content)), content, bytes(-len(content) % BLOCK)]


def _fields(old: Old) -> dict[str, Any]:
    """Parse ``KEY.json``; one that is not there is empty."""
    key, kept = old.row["key"], old.row["uid"]
    try:
        fields = parse_sample(old.json, f"{key}.json") if old.json else {}
    except Unusable as verdict:
        raise ShardError(
            f"{old.shard}: {verdict.detail}; it cannot have been kept like that: score it again"
        ) from verdict
    uid = sample_uid(fields, kept)
    if uid != kept:
        raise ShardError(
            f"{key} of {old.shard} has the uid {uid}, and was kept as {kept}; the raw shard is "
            "another file than was scored: bring it back, or score it again"
        )
    return fields


def _told(
    fields: dict[str, Any], row: Mapping[str, Any], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Add to what ``KEY.json`` said: a uid if it had none, where it is from, its scores."""
    if not sample_uid(fields, ""):
        names = {origin["shard"], name_in_uids(origin["shard"])}
        # Other sources have shards and keys of the same names.
        common = row["uid"] in {f"{name}/{origin['key']}" for name in names}
        own = f"{origin['source']}/{row['uid']}" if common else row["uid"]
        fields = {**fields, "uid": own}
    scores = {
        name.removeprefix(SCORE): _plain(value)
        for name, value in row.items()
        if name.startswith(SCORE)
    }
    return {**fields, "origin": dict(origin), **({"scores": scores} if scores else {})}


def _plain(value: object) -> object:
    """Give a score as JSON can hold it: bytes in hex, no number for NaN and infinity."""
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
