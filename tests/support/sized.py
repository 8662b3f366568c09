"""Tiny models of given sizes with a batch, and the memory that their tensors are seen to take."""

import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openqwen2vl.model.llm import load_llm
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.projector import AvgPoolProjector
from openqwen2vl.training.activations import MicroBatch
from support.batches import ModelInputs, lay_out, random_document, random_images
from support.models import tiny_tower

GRID = 3


class Size(NamedTuple):
    """Sizes of a language model and of a batch with one image a row."""

    width: int
    feed: int
    layers: int
    heads: int
    keys: int
    rows: int
    context: int
    targets: int

    def model(self, tower: bool = False, projector: bool = True, llm: bool = True) -> MLLM:
        """Build it; the arguments say what trains."""
        config = {
            "model_type": "qwen2",
            "vocab_size": 300,
            "hidden_size": self.width,
            "intermediate_size": self.feed,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.keys,
            "tie_word_embeddings": True,
        }
        model = MLLM(
            vision=tiny_tower(trainable=tower),
            projector=partial(AvgPoolProjector, grid=GRID),
            llm=load_llm(config=config, pretrained=False),
        )
        model.freeze(projector=not projector, llm=not llm)
        return model

    def batch(self) -> ModelInputs:
        """Lay rows of two documents and pads out."""
        packs = [
            [random_document(20, row, 1), random_document(self.context - 45, 9, 0)]
            for row in range(self.rows)
        ]
        return lay_out(packs, random_images(self.rows), self.context)

    @property
    def micro(self) -> MicroBatch:
        """The batch as formulas see it."""
        positions = self.rows * self.context
        return MicroBatch(positions=positions, targets=self.targets, images=self.rows, grid=GRID)


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all living tensors, backward's included.

    Attributes:
        now: bytes at this moment.
        peak: the most so far.
    """

    def __init__(self, present: Iterable[Tensor]) -> None:
        """Begin with the tensors that are there."""
        super().__init__()
        self._known: dict[int, int] = {}
        self.now = 0
        for tensor in present:
            self._see(tensor)
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.peak = max(self.peak, self.now)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._lose, key)

    def _lose(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)
