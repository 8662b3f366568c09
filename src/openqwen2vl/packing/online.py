"""Packs without a folder: planned from the length index and read from the raw shards.

Nothing is written but the length index. Each process works the same plan out for itself, so that
pack number k is what `pack_folder` would have written as pack k.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.formats.corpora import open_corpus
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.manifest import Counts
from openqwen2vl.packing.choose import Choice
from openqwen2vl.packing.gather import gather
from openqwen2vl.packing.layout import Layout
from openqwen2vl.packing.lengths import IndexFile
from openqwen2vl.packing.pictures import ImageBytes
from openqwen2vl.packing.plan import Split
from openqwen2vl.packing.reader import Pack
from openqwen2vl.packing.request import PackRequest
from openqwen2vl.packing.shards import pack_content
from openqwen2vl.packing.split import describe, lay_out
from openqwen2vl.packing.writer import index_corpus

_KEPT_TABLES = 64  # index files in a process' memory, a few megabytes each


class OnlinePacks:
    """The packs of one split of a corpus, as `PackFolder` gives those that were written.

    It can be pickled and used after a fork: files are opened when first needed, by each process
    for itself.

    Args:
        request: what to pack; ``out`` is only a name, nothing is written there.
        split: which split.
        choices: of the corpus' index files, by `open_online`.
        mapper: runs a function over windows, results in order.

    Attributes:
        path: of the raw shards, for messages.
        manifest: what a folder of these packs would say of itself, without its shards.
        tokens: int64 (n,), expanded tokens of each pack, without pads.
        targets: int64 (n,), labels that each pack asks for.
        images: int64 (n,), images of each pack.
        documents: int64 (n,), documents of each pack.

    Raises:
        PackError: a packer that cannot do this.
        ShardError: a raw shard or its index changed.
    """

    def __init__(
        self,
        request: PackRequest,
        split: Split,
        choices: Sequence[Choice],
        mapper: Mapper = map_inline,
    ) -> None:
        self.path = request.input
        self._source = request.source
        windows = lay_out(request, split, choices, mapper)
        self._place(list(chain.from_iterable(window.layouts for window in windows)), choices)
        self._hashes = np.sort(np.concatenate([c.hashes[c.kept(split)] for c in choices]))
        self.tokens = self._totals([choice.lengths for choice in choices])
        self.images = self._totals([choice.images for choice in choices])
        self.targets = self._totals(_targets(choices, self._files))
        self.manifest = describe(
            request,
            split,
            choices,
            [window.packer for window in windows],
            self._counts(),
            shards=(),
            max_documents=int(self.documents.max(initial=0)),
            max_images=int(self.images.max(initial=0)),
        )
        self._held_out: OnlinePacks | None = None
        if split == "train" and request.selection.validation:
            self._held_out = OnlinePacks(request, "validation", choices, mapper)
        self._pictures: tuple[int, ImageBytes | None] = (0, None)

    def _place(self, layouts: Sequence[Layout], choices: Sequence[Choice]) -> None:
        """Keep which documents are in which pack, and the index files that hold them."""
        self._documents = _joined([layout.files for layout in layouts], np.int32)
        self._rows = _joined([layout.rows for layout in layouts], np.int32)
        sizes = _joined([np.diff(layout.starts) for layout in layouts], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._files = {
            number: _KeptIndex(**vars(choices[number].file))
            for number in np.unique(self._documents).tolist()
        }
        self.documents = sizes

    def _totals(self, values: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
        """Sum a column of the documents over each pack."""
        column = np.zeros(len(self._rows), np.int64)
        for number in self._files:
            mine = self._documents == number
            column[mine] = values[number][self._rows[mine]]
        before = np.concatenate([[0], np.cumsum(column)])
        totals: NDArray[np.int64] = before[self._starts[1:]] - before[self._starts[:-1]]
        return totals

    def _counts(self) -> Counts:
        return Counts(
            packs=len(self),
            documents=int(self.documents.sum()),
            images=int(self.images.sum()),
            tokens=int(self.tokens.sum()),
            targets=int(self.targets.sum()),
        )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pictures": (0, None)}

    def read(self, number: int) -> Pack:
        """Give pack ``number``.

        Raises:
            ShardError: a raw shard changed since it was indexed.
            IndexError: there is no such pack.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"pack {number} of {len(self)} of {self.path}")
        start, stop = self._starts[number : number + 2].tolist()
        bounds = np.array([0, stop - start], np.int32)
        layout = Layout(number, self._documents[start:stop], self._rows[start:stop], bounds)
        found = gather(layout, self._files)
        # By way of the text that a packed shard would hold, so that both give the same.
        content = json.loads(pack_content(found, 0, stop - start, self._source)[0])
        pictures = self._opened()
        return Pack(
            ids=np.array(content["ids"], np.int64),
            targets=np.array(content["targets"], np.int64).reshape(-1, 2),
            documents=content["documents"],
            images=[pictures.read(image) for image in found.images],
        )

    def _opened(self) -> ImageBytes:
        """Open raw shards once in each process."""
        owner, pictures = self._pictures
        if pictures is None or owner != os.getpid():
            pictures = ImageBytes()
            self._pictures = (os.getpid(), pictures)
        return pictures

    def uid_hashes(self) -> NDArray[np.uint64]:
        """Give the sorted 64-bit identities of the documents (see ``plan.uid_hash``)."""
        return self._hashes

    def validation(self) -> "OnlinePacks | None":
        """Give the held-out packs; None when nothing is held out."""
        return self._held_out


def open_online(
    requests: Sequence[PackRequest],
    tokenizer: PreTrainedTokenizerFast,
    mapper: Mapper = map_inline,
) -> list[OnlinePacks]:
    """Index a corpus, where it is not, and plan its packs for each request.

    Args:
        requests: of one corpus, such as one for each grid.
        tokenizer: the one that their specs were made with.
        mapper: runs a function over shards, here or in other processes, results in order.

    Raises:
        UserError: bad input, nothing left to pack, or an ``overlong`` that has to write.
    """
    found = []
    for request in requests:
        if request.overlong != "reject":
            raise PackError(
                f"packing while training takes overlong=reject, not {request.overlong}, which "
                "writes shortened documents; pack into a folder first"
            )
        with tempfile.TemporaryDirectory() as work:
            tokenizer.save_pretrained(Path(work) / "tokenizer")
            shards = open_corpus(request.input, request.image_root)
            choices = index_corpus(request, shards, Path(work), mapper)
        found.append(OnlinePacks(request, "train", choices, mapper))
    return found


class _KeptIndex(IndexFile):
    """An index file that is kept in memory for a while, since packs come in random order."""

    def read(self, columns: Sequence[str]) -> pa.Table:
        return _table(self, tuple(columns))


@lru_cache(maxsize=_KEPT_TABLES)
def _table(file: IndexFile, columns: tuple[str, ...]) -> pa.Table:
    file.stamp.check()
    return IndexFile.read(file, columns)


def _targets(choices: Sequence[Choice], files: Mapping[int, IndexFile]) -> list[NDArray[np.int64]]:
    """Count the targets of all rows of the files named; of others there is an empty array."""
    counts = [np.empty(0, np.int64)] * len(choices)
    for number in files:
        (column,) = choices[number].file.read(["targets"]).columns
        lists = pa.concat_arrays(column.chunks)
        edges = lists.flatten().to_numpy()
        before = np.concatenate([[0], np.cumsum(edges[1::2] - edges[::2])])
        ends = np.cumsum(lists.value_lengths().to_numpy()) // 2
        counts[number] = np.diff(before[ends], prepend=0)
    return counts


def _joined(arrays: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *arrays]).astype(kind)
