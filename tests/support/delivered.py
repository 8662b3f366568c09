"""Folders as the tools that fetch corpora leave them."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.selection.uids import PAIR
from support.shards import picture, write_tar

CAPTIONS = ("a red circle", "two cats, asleep", "Ein grüner Kreis")
NO_MORE = {1: "failed_to_download"}


def img2dataset(
    folder: Path,
    number: int,
    captions: Sequence[str] = CAPTIONS,
    *,
    digits: int = 5,
    failed: Mapping[int, str] = NO_MORE,
    **columns: Sequence[Any],
) -> None:
    """Write a shard as img2dataset does with ``output_format=webdataset``.

    A tar of the images that came, a table of all rows and a file of counts. ``columns`` are those
    of ``save_additional_columns``, a value for each caption.
    """
    rng = random.Random(number)
    name, files, rows = f"{number:0{digits}d}", {}, []
    for i, caption in enumerate(captions):
        key, failure = f"{name}{i:04d}", failed.get(i)
        fields = {column: values[i] for column, values in columns.items()}
        fields |= {"caption": caption, "url": f"https://example.org/{key}.jpg", "key": key}
        fields |= {"status": failure or "success", "error_message": failure and "HTTP Error 404"}
        fields |= {"width": None if failure else 64, "height": None if failure else 48}
        fields |= {"original_width": None if failure else 640}
        fields |= {"original_height": None if failure else 480}
        fields |= {"exif": None if failure else "{}", "sha256": None if failure else f"{i:064x}"}
        rows.append(fields)
        if not failure:
            files[f"{key}.jpg"] = picture(rng)
            files[f"{key}.json"] = json.dumps(fields, indent=4).encode()
            files[f"{key}.txt"] = caption.encode()
    write_tar(folder / f"{name}.tar", files)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    stats = {"count": len(rows), "successes": len(rows) - len(failed), "failed_to_resize": 0}
    stats |= {"failed_to_download": len(failed), "duration": 1.5, "status_dict": {}}
    (folder / f"{name}_stats.json").write_text(json.dumps(stats, indent=4))


def uid_list(path: Path, uids: Iterable[str]) -> Path:
    """Write a list of uids as DataComp's README says, apart from how the program does it."""
    pairs = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], PAIR)
    pairs.sort()
    np.save(path, pairs)
    return path
