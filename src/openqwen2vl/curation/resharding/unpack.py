"""Samples in a table, written as the tar that img2dataset would have made of them."""

import json
from collections.abc import Container
from pathlib import Path

from openqwen2vl.curation.resharding.conversations import image_ending
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.shards import RawShard
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.rejects import Unusable
from openqwen2vl.formats.tar import BLOCK, END, header


def unpack(table: RawShard, keys: Container[str], tar: Path) -> None:
    """Copy some samples of a table into a tar, atomically; about a row group is in memory.

    ``KEY.txt`` is the caption or the text of the page, ``KEY.json`` what the sample has of fields.
    Images keep their bytes; the ending is that of their format, ``jpg`` for one that has no ending
    in raw shards: whoever decodes images looks at the bytes. A conversation is ``KEY.json`` and
    its images ``KEY.0.jpg, KEY.1.jpg ...``.

    Args:
        table: a parquet file with the images' bytes, or a shard of conversations that is one.
        keys: of the samples; one that the table lacks is not in the tar.
        tar: where to write.

    Raises:
        ShardError: the table is missing, or changes while it is read, or a picture may not be read.
        UserError: the disk is full.
    """
    with atomic_file(tar) as file:
        for sample in read_samples(table, ""):
            if isinstance(sample, Sample) and sample.key in keys:
                for ending, content in _files(sample).items():
                    file.write(header(f"{sample.key}.{ending}", len(content)))
                    file.write(content + bytes(-len(content) % BLOCK))
        file.write(END)


def _files(sample: Sample) -> dict[str, bytes]:
    if not sample.is_conversation:
        (image,) = sample.images
        return {
            image_ending(image): sample.read(),
            "txt": sample.caption.encode(),
            "json": json.dumps(sample.fields).encode(),
        }
    try:
        images = [sample.read_image(image) for image in sample.images]
    except Unusable as verdict:
        raise ShardError(
            f"{sample.key} of {sample.shard} is kept: {verdict.detail}; mend that, or score again"
        ) from verdict
    pictures = {
        f"{number}.{image_ending(image)}": data
        for number, (image, data) in enumerate(zip(sample.images, images, strict=True))
    }
    # What JSON cannot hold, as an image's bytes in a message beside its mark, is left out.
    return {**pictures, "json": json.dumps(sample.fields, default=lambda _: None).encode()}
