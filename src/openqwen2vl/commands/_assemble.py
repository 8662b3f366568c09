"""Builds the parts of a run from a composed config; shared by the commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.budget import accumulation
from openqwen2vl.release.folder import read_model_folder
from openqwen2vl.training.checkpoint import load_weights, newest, read_facts, read_weights
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


def load_model(path: Path) -> tuple[MLLM, dict[str, Any]]:
    """Rebuild a trained model from a run's checkpoint, or the newest of a run folder.

    Returns:
        The model with its weights, and the facts that the run wrote.

    Raises:
        CheckpointError: no such checkpoint, or its frozen tower is another one here.
    """
    path = newest(path)
    facts = read_facts(path)
    config = OmegaConf.create(facts["model"])
    # The checkpoint holds every weight but a frozen tower's, so nothing else is looked up.
    config.llm = {
        "_target_": "openqwen2vl.model.llm.load_llm",
        "pretrained": False,
        "config": facts["llm_config"],
    }
    config.vision.pretrained = config.vision.pretrained and not config.trainable.vision
    model = build_model(config, facts["vocab_size"])
    load_weights(model, read_weights(path), path)
    check_tower(model, facts, path)
    model.projector.grid = facts["phases"][-1]["grid"]
    return model, facts


def check_tower(model: MLLM, facts: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint that was trained on another frozen tower.

    A tower that an earlier stage trained and this run froze lies in that stage's checkpoint; it
    is fetched from there.

    Raises:
        CheckpointError: with both names and hashes.
    """
    there = facts["tower"]
    if there["hash"] is None or model.vision.trainable:
        return
    if model.vision.weights_hash() != there["hash"] and facts["init_from"] is not None:
        _load_tower(model, _read_any(Path(facts["init_from"])), Path(facts["init_from"]))
    here = model.vision.weights_hash()
    if here != there["hash"]:
        raise CheckpointError(
            f"{path} was trained on the frozen tower {there['name']} with weights "
            f"{there['hash']}, here they are {here}; compose that tower (vision=...)"
        )


def initial_weights(model: MLLM, path: Path) -> None:
    """Start from another run's weights (`init_from`).

    Args:
        model: that takes them.
        path: a checkpoint, a run folder (its newest checkpoint) or a model folder.

    Raises:
        CheckpointError: nothing loadable there, or another model.
    """
    weights = _read_any(path)
    if not _load_tower(model, weights, path) and not _is_model_folder(path):
        check_tower(model, read_facts(newest(path)), path)
    load_weights(model, weights, path)


def _load_tower(model: MLLM, weights: Mapping[str, Tensor], source: Path) -> bool:
    """Fill a tower that is frozen here from weights that hold one; tells whether they did."""
    prefix = "vision."
    found = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if not found or model.vision.trainable:
        return bool(found)
    load_weights(model.vision, found, source)
    return True


def _read_any(path: Path) -> dict[str, Tensor]:
    return read_model_folder(path) if _is_model_folder(path) else read_weights(newest(path))


def _is_model_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and not (path / "checkpoints").is_dir()


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
    if _is_model_folder(path):
        return
    learnt, here = read_facts(newest(path))["text"], text_facts(data)
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
