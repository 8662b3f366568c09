"""What a run writes of itself into its checkpoints, and what all its ranks must agree on."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from openqwen2vl.commands._assemble import model_config, text_facts
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.provenance import stages
from openqwen2vl.training.checkpoint import checkpoint_step
from openqwen2vl.training.schedule import Schedule
from openqwen2vl.training.stream import PackedData

# Settings that checkpoints do not hold: they change what is learnt, or take all ranks at once, as
# validation, sample answers and checkpoints do.
_SETTINGS = ("schedule", "clip", "loss", "precision", "compile", "strategy", "callbacks")
# Facts that each rank reads for itself from folders where other runs may still be at work.
_OWN = ("earlier",)


def run_facts(
    config: DictConfig,
    data: PackedData,
    model: MLLM,
    schedule: Schedule,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Give the plain values that a checkpoint carries, for resuming and rebuilding the model.

    Args:
        config: of the run.
        data: opened, its phases settled.
        model: built.
        schedule: of the learning rate.
        before: those of the checkpoint that the run goes on from; None: it begins.
    """
    tower = model.vision
    return {
        "model": model_config(config),
        "llm_config": model.llm.config.to_diff_dict(),
        "vocab_size": data.vocab_size,
        "tokenizer": config.tokenizer,
        "text": text_facts(data),
        "tower": {
            "name": tower.name,
            "hash": None if tower.trainable else tower.weights_hash(),
        },
        "stage": config.stage,
        **_origin(config, before),
        "order": data.identity(),
        "pictures": data.pictures.facts(),
        "optim": plain(config.optim),
        "licences": {name: one.licence for name, one in data.mixture.spec.sources.items()},
        "phases": [asdict(phase) for phase in data.order.phases],
        "steps": data.order.steps,
        "schedule_length": schedule.length or data.order.steps,
    }


def shared_facts(
    config: DictConfig, written: Mapping[str, Any], micro_batch: int, checkpoint: Path | None
) -> dict[str, Any]:
    """Give what must be the same on all ranks; see `agreement.require_agreement`.

    Args:
        config: of the run.
        written: the facts of its checkpoints.
        micro_batch: packs that a rank processes at a time.
        checkpoint: from which it goes on.
    """
    return {
        **{key: value for key, value in written.items() if key not in _OWN},
        **{key: plain(config[key]) for key in _SETTINGS},
        "max_gpu_hours": config.trainer.get("max_gpu_hours"),
        "micro_batch": micro_batch,
        "resumes": None if checkpoint is None else f"step {checkpoint_step(checkpoint)}",
    }


def plain(node: Any) -> Any:
    """Give a part of a config in plain values, resolved; a value goes through as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _origin(config: DictConfig, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say what the run started from; one that is resumed started from what it did at first.

    The stages before it are told here and now: their runs may go on, or go.
    """
    if before is not None:
        return {key: before[key] for key in ("init_from", "earlier") if key in before}
    if config.init_from is None:
        return {"init_from": None, "earlier": []}
    start = Path(config.init_from).absolute()
    return {"init_from": str(start), "earlier": stages(start)}
