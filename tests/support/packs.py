"""Small folders of packs."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.plan import WHOLE, Selection
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder


def pack(
    raw: Path,
    out: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    context: int = 256,
    grid: int = 4,
    template: str = "qwen2_5",
    selection: Selection = WHOLE,
    **options: object,
) -> Manifest:
    """Pack a folder of raw shards for a small context; ``options`` are those of PackRequest."""
    request = PackRequest(
        input=raw,
        out=out,
        source="tiny",
        spec=make_spec(tokenizer, context, grid, template),
        selection=selection,
        **options,
    )
    return pack_folder(request, tokenizer)


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder by its relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents_of(folder: Path) -> list[dict[str, Any]]:
    """List the documents of a folder of packs in its order."""
    packs = PackFolder(folder)
    return [document for k in range(len(packs)) for document in packs.read(k).documents]


def ledger(folder: Path) -> list[dict[str, Any]]:
    """List what a folder of packs left out, and why."""
    return pq.read_table(folder / "rejects.parquet").to_pylist()
