"""A run's folder opened to look back: its order, its packs, its checkpoints."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.formats.said import said_turns
from openqwen2vl.formats.tokens import load_tokenizer
from openqwen2vl.packing.order import Phase
from openqwen2vl.packing.provenance import Traced, trace_step
from openqwen2vl.release.trained import load_model
from openqwen2vl.training.checkpoint import checkpoint_step, checkpoints, read_facts
from openqwen2vl.training.csv_log import read_rows
from openqwen2vl.training.document_loss import document_losses
from openqwen2vl.training.stream import PackedData


@dataclass
class Found:
    """A document of the step, with what can be shown of it.

    Attributes:
        traced: where it came from.
        text: its tokens as text, images marked.
        said: the text of a conversation without the template around it; else ``text``.
        pictures: its images' bytes.
        tokens: with its visual tokens.
        loss: mean over its targets; None where it was not asked for, or nothing is a target.
    """

    traced: Traced
    text: str
    said: str
    pictures: list[bytes] = field(repr=False)
    tokens: int
    loss: float | None = None

    def record(self) -> dict[str, Any]:
        """Give plain values, without pictures."""
        key = self.traced.pack
        return {
            **self.traced.record,
            "source": self.traced.source,
            "pack": key.pack,
            "turn": key.turn,
            "grid": key.grid,
            "text": self.text,
            "loss": self.loss,
        }


@dataclass(frozen=True)
class TracedRun:
    """A run that has ended or still goes on.

    Attributes:
        path: its folder.
        data: its data module, with the order that its checkpoints fixed.
        tokenizer: of its packs.
        isolate: whether documents of a pack do not see each other.
    """

    path: Path
    data: PackedData
    tokenizer: PreTrainedTokenizerFast
    isolate: bool

    def documents(self, step: int) -> list[Found]:
        """Give the documents of an optimizer step, counted from 1.

        Raises:
            ConfigError: the run has fewer steps.
        """
        steps = self.data.order.steps
        if step > steps:
            raise ConfigError(f"step is {step}, but the run in {self.path} has {steps} steps")
        found = []
        packs: dict[Any, Any] = {}
        for traced in trace_step(self.data.mixture, self.data.order, step - 1):
            if traced.pack not in packs:
                packs[traced.pack] = self._folder(traced).read(traced.pack.pack)
            found.append(self._found(traced, packs[traced.pack]))
        return found

    def _folder(self, traced: Traced) -> Any:
        return self.data.mixture.folders[traced.pack.grid][traced.pack.source]

    def _found(self, traced: Traced, pack: Any) -> Found:
        spec = self._folder(traced).manifest.spec
        record = traced.record
        start, images = record["start"], record["images"]
        first = sum(one["images"] for one in pack.documents[: traced.place])
        ids = pack.ids[start : start + record["length"]].tolist()
        parts: list[str] = []
        turns = said_turns(ids, self.tokenizer, spec.special)
        said = [f"-> {x}" if role == "assistant" else x for role, x in turns if role != "system"]
        while ids:
            stop = ids.index(spec.special.image) if spec.special.image in ids else len(ids)
            parts.append(self.tokenizer.decode(ids[:stop], skip_special_tokens=True))
            parts += ["[image]"] * (stop < len(ids))
            ids = ids[stop + 1 :]
        text = " ".join(part.strip() for part in parts if part.strip())
        return Found(
            traced=traced,
            text=text,
            said=" ".join(said) or text,
            pictures=pack.images[first : first + images],
            tokens=record["length"] + images * (spec.tokens_per_image - 1),
        )

    def judge(self, documents: Sequence[Found], step: int) -> Path:
        """Fill in each document's loss and say which checkpoint gave it.

        Raises:
            CheckpointError: the run kept no checkpoint, or its pixels cannot be made here.
        """
        kept = checkpoints(self.path / "checkpoints")
        if not kept:
            raise CheckpointError(f"{self.path} has no checkpoint, so no losses; leave loss=false")
        # The weights that met the global batch are those before its step.
        before = [path for path in kept if checkpoint_step(path) < step]
        chosen = before[-1] if before else kept[0]
        self._decode_as(chosen)
        model, _ = load_model(chosen)
        model.eval()
        known: dict[Any, list[float | None]] = {}
        for one in documents:
            key = one.traced.pack
            if key not in known:
                folder = self._folder(one.traced)
                model.projector.grid = key.grid
                pack, spec = folder.read(key.pack), folder.manifest.spec
                known[key] = document_losses(model, pack, spec, self.isolate, self.data.pictures)
            one.loss = known[key][one.traced.place]
        return chosen

    def _decode_as(self, checkpoint: Path) -> None:
        """Decode pictures as the run did that wrote a checkpoint.

        Raises:
            CheckpointError: the library is not installed, or it was another decoding.
        """
        try:
            self.data.keep_pictures(read_facts(checkpoint).get("pictures"))
        except CheckpointError as error:
            raise CheckpointError(
                f"losses need the pixels that the run had, but {error}. A trace with loss=false "
                "needs none"
            ) from error

    def row(self, step: int) -> dict[str, str]:
        """Give the step's row of metrics.csv; empty when it is not there."""
        _, rows = read_rows(self.path / "metrics.csv")
        return next((row for row in rows if int(row["step"]) == step), {})


def open_run(path: Path, tokenizer: str | None) -> TracedRun:
    """Open a run's folder.

    Args:
        path: of the folder.
        tokenizer: folder or hub name; None: the run's own.

    Raises:
        CheckpointError: no run there, or one that names a class of others.
        PackError: its packs have changed or are gone.
    """
    config = _config(path / "config.json")
    config.data.preflight = False
    if "decoder" in config.data:
        # What a run asked for may be missing here; its checkpoints know what it had.
        config.data.decoder = "auto"
    data = cast(PackedData, instantiate(config.data, _convert_="all"))
    kept = checkpoints(path / "checkpoints")
    if kept:
        facts = read_facts(kept[-1])
        changed = [key for key, value in data.identity().items() if facts["order"][key] != value]
        if changed:
            raise CheckpointError(
                f"{path} was trained in another order than its packs give now ({', '.join(changed)} "
                "differ); restore the packs that it was trained on"
            )
        data.keep_phases([Phase(**phase) for phase in facts["phases"]])
    name = str(tokenizer or config.tokenizer)
    return TracedRun(path, data, load_tokenizer(name), bool(config.data.isolate))


def _config(written: Path) -> DictConfig:
    """Read a run's config, whose classes will be called: only ours are, whoever wrote the file."""
    if not written.is_file():
        raise CheckpointError(
            f"{written.parent} holds no run: there is no config.json; give run=runs/NAME"
        )
    try:
        found = json.loads(written.read_text())
    except ValueError as error:
        raise CheckpointError(f"{written} is no JSON ({error}); it is damaged") from error
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, dict) or "_target_" not in data or "tokenizer" not in found:
        raise CheckpointError(
            f"{written} is not of a run (a model folder has one, too); give run=runs/NAME"
        )
    strange = [one for one in _targets(data) if not str(one).startswith("openqwen2vl.")]
    if strange:
        raise CheckpointError(
            f"{written} names {strange[0]} as a part of its data; only parts of openqwen2vl are "
            "called for a run that may be a stranger's"
        )
    return cast(DictConfig, OmegaConf.create(found))


def _targets(node: Any) -> Iterator[Any]:
    """Yield what a config would call, however deep."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]
    for one in inner:
        yield from _targets(one)
