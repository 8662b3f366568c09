"""Packing while training: raw shards in place of pack folders, the same packs in the same order."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from openqwen2vl.engine.local import map_shards
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.tokens import load_tokenizer
from openqwen2vl.packing.mixture import SourceSpec
from openqwen2vl.packing.online import OnlinePacks, open_online
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.training.loading import rank_cores

from .packed import PackedDataModule


class OnlineDataModule(PackedDataModule):
    """Blends corpora of raw shards that are packed in memory; nothing but length indexes is written.

    ``mixture.sources.NAME.packs`` names a corpus. Each phase of the resolution plan takes the part
    of it that the phase's share of the run covers, as ``part`` does for packs that are written.

    Args:
        tokenizer: a folder or a name on the hub.
        template: of `openqwen2vl.formats.templates`.
        context: tokens in a pack.
        index: the folder that keeps length indexes.
        validation: the share of documents kept for validation.
        window: documents planned together, at least.
        packs_per_shard: packs in a packed shard if there were any: it decides their numbers.
        packer: one of ``packers.PACKERS``.
        max_images: images in a pack, at most; None means any number.
        workers: processes that index; None is one for each core of the rank.
        **loading: what `PackedDataModule` takes.

    Raises:
        ConfigError: as of `PackedDataModule`, or a source of several corpora.
        UserError: bad input, as of ``openqwen2vl pack``.
    """

    def __init__(
        self,
        tokenizer: str,
        index: str,
        template: str = "qwen2_5",
        context: int = 4096,
        validation: float = 0.0,
        window: int = 50_000,
        packs_per_shard: int = 512,
        packer: str = "auto",
        max_images: int | None = None,
        workers: int | None = None,
        **loading: Any,
    ) -> None:
        self._tokenizer, self._index, self._template = tokenizer, Path(index), template
        self._context, self._validation = context, validation
        self._planning = {
            "window": window,
            "packs_per_shard": packs_per_shard,
            "packer": packer,
            "max_images": max_images,
        }
        # torchrun says how many ranks share this machine's cores.
        self._workers = workers or rank_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        super().__init__(**loading)

    def open_source(self, name: str, source: SourceSpec) -> Sequence[OnlinePacks]:
        """Plan the packs of one corpus, for each phase of the resolution plan its part.

        Raises:
            ConfigError: the source names several corpora.
        """
        if len(source.folders) != 1:
            raise ConfigError(
                f"mixture.sources.{name}.packs names {len(source.folders)} folders; with "
                "data=online it names one corpus of raw shards"
            )
        tokenizer = load_tokenizer(self._tokenizer)
        requests, start = [], 0.0
        for phase in self.plan:
            spec = make_spec(tokenizer, self._context, phase.grid, self._template)
            request = PackRequest(
                input=source.folders[0],
                out=source.folders[0] / "online",
                source=name,
                spec=spec,
                selection=Selection((start, phase.until), self._validation),
                index=self._index,
                **self._planning,  # type: ignore[arg-type]  # as the signature above has them
            )
            requests.append(request)
            start = phase.until
        return open_online(requests, tokenizer, partial(map_shards, workers=self._workers))
