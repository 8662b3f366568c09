"""Builds the parts of a run from a composed config; shared by the commands."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.budget import accumulation
from openqwen2vl.release.opened import known_facts
from openqwen2vl.training.stream import PackedData


def build_model(config: DictConfig, vocab_size: int) -> MLLM:
    """Build the model that a config describes, with its parts frozen as `trainable` says.

    Args:
        config: with vision, projector, llm, attention, trainable and checkpointing.
        vocab_size: ids that the tokenizer can give.
    """
    tower = instantiate(config.vision, trainable=config.trainable.vision)
    projector = instantiate(config.projector, _convert_="all")
    llm = instantiate(config.llm, min_vocab=vocab_size, _convert_="all")
    model = MLLM(tower, projector, llm, attention=config.attention.backend)
    model.freeze(projector=not config.trainable.projector, llm=not config.trainable.llm)
    model.set_checkpointing(config.checkpointing)
    return model


def model_config(config: DictConfig) -> dict[str, Any]:
    """Give the part of a config from which `build_model` builds the same model again."""
    keys = ("vision", "projector", "llm", "attention", "trainable", "checkpointing")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {key: plain[key] for key in keys}


def check_grids(data: PackedData, model: MLLM) -> None:
    """Refuse a grid finer than the tower's patches.

    Raises:
        ConfigError: with both numbers.
    """
    finest = max(phase.grid for phase in data.plan)
    if finest > model.vision.patch_grid:
        raise ConfigError(
            f"resolution.plan asks for grid {finest}, but the vision tower has only "
            f"{model.vision.patch_grid} x {model.vision.patch_grid} patches; nothing finer exists"
        )


def text_facts(data: PackedData) -> dict[str, str]:
    """Give the hashes of the tokenizer and the template that a run learns to read and write."""
    spec = data.mixture.folders[data.plan[0].grid][0].manifest.spec
    return {"tokenizer": spec.tokenizer_hash, "template": spec.template_hash}


def check_text(data: PackedData, path: Path) -> None:
    """Refuse packs of another tokenizer or template than the run before was trained on.

    Args:
        data: of this run.
        path: what it starts from; a model folder of others tells nothing, and is not judged.

    Raises:
        CheckpointError: with both hashes.
    """
    known = known_facts(path)
    if known is None:
        return
    learnt, here = known["text"], text_facts(data)
    unlike = [f"{name} {learnt[name]} there, {here[name]} here" for name in here]
    if learnt != here:
        raise CheckpointError(
            f"{path} was trained on packs of another tokenizer or template ({'; '.join(unlike)}); "
            "pack with the tokenizer and template of that run"
        )


def check_batches(config: DictConfig, ranks: int) -> None:
    """Refuse a global batch that ranks and micro-batch do not divide.

    Raises:
        ConfigError: names the nearest that they do.
    """
    if config.data.global_batch is not None:
        accumulation(config.data.global_batch, config.data.micro_batch, ranks)
