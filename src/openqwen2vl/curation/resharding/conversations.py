"""Where the files of kept conversations lie: any number of pictures each, some in files of their own."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.shards import ConversationShard, RawShard
from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.listing import ListingShard
from openqwen2vl.formats.raw import IMAGE_EXTENSIONS, read_raw_files

PICTURES = "pictures"
"""The column of an index file that only conversations have."""

_PICTURE = pa.struct(
    {"file": pa.string(), "ending": pa.string(), "at": pa.int64(), "size": pa.int64()}
)
_FILES = pa.schema({"json_at": pa.int64(), "json_size": pa.int64(), PICTURES: pa.list_(_PICTURE)})


def image_ending(image: ImageRef) -> str:
    """Give the ending of an image in a raw shard; whoever decodes images looks at the bytes."""
    return image.extension if image.extension in IMAGE_EXTENSIONS else IMAGE_EXTENSIONS[0]


def conversation_files(shard: RawShard, keys: Sequence[str]) -> pa.Table:
    """Find the JSON and the pictures of some conversations.

    Args:
        shard: a tar or a run of a listing's entries.
        keys: of the conversations.

    Returns:
        A row for each key: place and size of its JSON in the shard's file, and of each picture the
        file, where that is not the shard's, its ending, place and size.

    Raises:
        ShardError: the shard is missing, or lacks one of them as a sample that can be read.
    """
    wanted = set(keys)
    items = (item for item in read_samples(shard, "") if isinstance(item, Sample))
    there = {sample.key: sample for sample in items if sample.key in wanted}
    missing = [key for key in keys if key not in there]
    if missing:
        raise ShardError(
            f"{shard} lacks {missing[0]} or a picture of it, one of {len(missing)} kept samples; it "
            "or its pictures are others than were scored: bring them back, or score again"
        )
    spans = _spans(shard, keys)
    rows = [
        {
            "json_at": spans[key][0],
            "json_size": spans[key][1],
            PICTURES: [_picture(shard, image) for image in there[key].images],
        }
        for key in keys
    ]
    return pa.Table.from_pylist(rows, _FILES)


def _spans(shard: RawShard, keys: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Give place and size of each JSON."""
    part = shard.part if isinstance(shard, ConversationShard) else shard
    if isinstance(part, ListingShard):
        found = ((key, part.spans[int(key) - part.first]) for key in keys)
        return {key: (start, stop - start) for key, (start, stop) in found}
    assert not hasattr(part, "image_root"), "a table is unpacked before it is looked through"
    files = {key: files["json"] for key, files in read_raw_files(part) if "json" in files}
    return {key: (files[key].offset, files[key].size) for key in keys}


def _picture(shard: RawShard, image: ImageRef) -> dict[str, Any]:
    in_shard = not isinstance(shard, ConversationShard) or not isinstance(shard.part, ListingShard)
    file = None if in_shard else image.path
    return {"file": file, "ending": image_ending(image), "at": image.offset, "size": image.size}
