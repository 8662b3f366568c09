"""CLIP scores: how near an image and its caption lie for a contrastive model."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from openqwen2vl.curation.batches import is_out_of_memory
from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorer import error_column, told
from openqwen2vl.curation.scorers.clip_model import ClipModel, load_clip
from openqwen2vl.curation.scorers.pictures import ahead, decoding_threads, open_picture
from openqwen2vl.curation.scorers.weights import placement, reachable, same_sums
from openqwen2vl.formats.errors import ImageError, UserError

_LOG = logging.getLogger(__name__)

BATCHES_A_CALL = 16
"""Batches of the model in one call: pictures of the next are decoded while it is at one."""


class ClipScorer:
    """Cosine similarity of image and caption by any model of open_clip's: CLIP, DFN, SigLIP.

    The cosine itself is given, from -1 to 1, as DataComp and LAION publish theirs; SigLIP's
    temperature and bias, which would make a probability of it, are left out. A caption beyond the
    model's context is cut there, as open_clip's tokenizers do.

    Attributes:
        name: folder of the scores.
        batch_size: samples that one call takes; ``BATCHES_A_CALL`` batches of the model.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        name: str = "clip",
        column: str = "clip_similarity",
        batch_size: int = 64,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Say what to score with; nothing is loaded yet.

        Args:
            model: a name of open_clip's, ``hf-hub:ORG/NAME``, or a folder that it saved.
            pretrained: for a name: a tag of its weights, or a checkpoint file.
            name: folder of the scores.
            column: what the score is called in a selection.
            batch_size: pairs that the model sees at once.
            device: ``None`` is the GPU where this process sees one; ``cuda`` where only workers do.
            dtype: float32, float16 or bfloat16; ``None`` is float16 on a GPU, else float32.
            threads: that decode pictures; ``None`` is one for each usable core.

        Raises:
            ConfigError: an unknown device or dtype, no threads.
        """
        self.name = name
        self.batch_size = batch_size * BATCHES_A_CALL
        self.columns: Mapping[str, pa.DataType] = {column: pa.float32()}
        self._column = column
        self._model, self._pretrained = model, pretrained
        self._pairs = batch_size
        self._device, self._dtype = placement(device, dtype, half=torch.float16)
        self._threads = decoding_threads(threads)
        self._loaded: ClipModel | None = None
        self._placed = False

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._device

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the weights; they are loaded there."""
        return {**self.__dict__, "_loaded": None, "_placed": False}

    def fingerprint(self) -> dict[str, Any]:
        """Give model, tag, numbers, and hashes of weights and config; loads the weights.

        Raises:
            UserError: as of ``load_clip``.
        """
        return {
            "model": _title(self._model),
            "pretrained": self._pretrained and _title(self._pretrained),
            "column": self._column,
            "dtype": str(self._dtype).removeprefix("torch."),
            **self._clip().facts,
        }

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        """Score samples; an image that cannot be decoded gives None and says why.

        Where memory runs out, the model sees half as many pairs from then on.

        Raises:
            UserError: as of ``load_clip``, or the memory does not hold a single pair.
        """
        clip = self._clip()
        if not self._placed:
            clip.to(reachable(self._device), self._dtype)
            self._placed = True
        errors: list[str | None] = []
        found: list[Tensor] = []
        with ThreadPoolExecutor(self._threads) as pool, same_sums(self._device):
            prepared = ahead(partial(_prepared, clip), samples, pool, most=2 * self._pairs)
            remaining = iter(samples)
            while batch := list(islice(remaining, self._pairs)):
                results = list(islice(prepared, len(batch)))
                errors += [result if isinstance(result, str) else None for result in results]
                found += self._similarities(clip, batch, results)
        # One wait for all of them: until here a GPU has been given one batch after the other.
        scores = iter(torch.cat(found).tolist() if found else [])
        values = [next(scores) if error is None else None for error in errors]
        return {self._column: values, error_column(self): errors}

    def _similarities(
        self, clip: ClipModel, batch: Sequence[Sample], results: Sequence[Tensor | str]
    ) -> list[Tensor]:
        """Give the scores of the pictures that could be decoded, all in their order."""
        pairs = [
            (pixels, sample.caption)
            for pixels, sample in zip(results, batch, strict=True)
            if isinstance(pixels, Tensor)
        ]
        found: list[Tensor] = []
        while pairs:
            most = self._pairs
            scores = self._attempt(clip, pairs[:most])
            if scores is not None:
                found.append(scores)
                pairs = pairs[most:]
        return found

    def _attempt(self, clip: ClipModel, pairs: Sequence[tuple[Tensor, str]]) -> Tensor | None:
        """Score pairs at once; None when they were too many, and fewer are to be taken."""
        try:
            pixels = torch.stack([pixels for pixels, _ in pairs]).to(self._device, self._dtype)
            tokens = clip.tokenize([caption for _, caption in pairs]).to(self._device)
            return clip.similarity(pixels, tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(pairs) == 1:
                raise UserError(
                    f"{self.name} ran out of memory on one pair: {told(error)}; take a smaller "
                    "model or dtype, fewer workers, or a machine with more memory, and start again"
                ) from error
        # The error is gone here, and with it the frames that hold what filled the memory.
        self._pairs = len(pairs) // 2
        text = "%s ran out of memory on %d pairs at once; going on with %d"
        _LOG.warning(text, self.name, len(pairs), self._pairs)
        return None

    def _clip(self) -> ClipModel:
        if self._loaded is None:
            self._loaded = load_clip(self._model, self._pretrained)
        return self._loaded


def _prepared(clip: ClipModel, sample: Sample) -> Tensor | str:
    """Give float32 (3, S, S), or why there is none."""
    try:
        return clip.prepare(open_picture(sample.read()))
    except ImageError as error:
        return told(error)


def _title(address: str) -> str:
    """Give a model's name; of a path the last part, since a folder may lie elsewhere tomorrow."""
    path = Path(address).expanduser()
    return path.name if path.exists() else address
