"""Recognises what is to be converted; composes what a file without a config does not say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

from openqwen2vl.commands._assemble import model_config
from openqwen2vl.formats.errors import CheckpointError, ConfigError, UserError
from openqwen2vl.formats.templates import template
from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash
from openqwen2vl.release.converted import open_prismatic
from openqwen2vl.release.folder import listed
from openqwen2vl.release.opened import Opened, is_folder, open_trained
from openqwen2vl.release.pickled import open_pickled
from openqwen2vl.release.prismatic import is_prismatic

_GIVEN = {
    "template": "open_qwen2vl_v1 is what the released weights were fine-tuned on, "
    "open_qwen2vl_v2 what that trainer writes today",
    "grid": "27 for the released instruct weights, 12 for the base ones",
}


def open_source(config: DictConfig, source: Path) -> Opened:
    """Open what is to be converted.

    Raises:
        CheckpointError: nothing of a known layout there, or it cannot be read.
        ConfigError: the file says less than is needed, with what is to be given.
    """
    if is_folder(source):
        model = open_trained(source, config.tokenizer, config.template, config.tower)
        return _with_tokenizer(model, config.tokenizer, source)
    if not source.exists():
        raise CheckpointError(
            f"nothing at {source}; give a file or a folder of this machine (what lies on a hub is "
            "downloaded first)"
        )
    if source.is_dir():
        held = "a run" if (source / "checkpoints").is_dir() else "no config.json"
        raise CheckpointError(
            f"{source} holds {held}; expected a model folder (config.json and .safetensors) or a "
            "prismatic .pt"
        )
    opened = open_pickled(source)
    if is_prismatic(opened):
        return open_prismatic(source, _composed(config, source))
    if "openqwen2vl" in opened:
        raise CheckpointError(f"{source} is a checkpoint of openqwen2vl; it needs no conversion")
    raise CheckpointError(
        f"{source} holds {listed(map(str, opened)) or 'nothing'}; expected prismatic's "
        "{model: {projector, llm_backbone}}"
    )


def _with_tokenizer(opened: Opened, given: str | None, source: Path) -> Opened:
    """Make sure that the checkpoint will name a tokenizer which is there and is the model's."""
    name = given or str(opened.facts["tokenizer"])
    try:
        here = tokenizer_hash(load_tokenizer(name))
    except UserError as error:
        raise UserError(f"{error}; give the model's own (tokenizer=DIR_OR_NAME)") from error
    learnt = opened.facts["text"]["tokenizer"]
    if learnt != here:
        raise CheckpointError(
            f"{source} was trained with tokenizer {learnt}, {name} is {here}; give the model's own "
            "(tokenizer=DIR_OR_NAME)"
        )
    return replace(opened, facts={**opened.facts, "tokenizer": name})


def _composed(config: DictConfig, source: Path) -> dict[str, Any]:
    """Give the facts of a file that holds weights alone, from the composed config."""
    missing = [f"{key}=... ({why})" for key, why in _GIVEN.items() if config[key] is None]
    if missing:
        raise ConfigError(f"{source} holds weights alone; give {' and '.join(missing)}")
    name = config.tokenizer or config.llm.path
    if not name:
        raise ConfigError(f"{source} holds weights alone; give tokenizer=DIR_OR_NAME")
    tokenizer = load_tokenizer(str(name))
    return {
        "model": model_config(config),
        "llm_config": _language_model(config),
        "vocab_size": len(tokenizer),
        "tokenizer": str(name),
        "text": {
            "tokenizer": tokenizer_hash(tokenizer),
            "template": template(config.template).hash,
        },
        "tower": {"name": config.vision.name, "hash": None},
        "init_from": None,
        "phases": [{"grid": config.grid}],
    }


def _language_model(config: DictConfig) -> dict[str, Any]:
    """Give the language model's config: the composed one, or that of a folder or hub name."""
    if not config.llm.pretrained:
        plain = OmegaConf.to_container(config.llm.config, resolve=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}
    try:
        found = AutoConfig.from_pretrained(str(config.llm.path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the config of the language model {config.llm.path}: "
            f"{str(error).strip().splitlines()[0]}; give llm.path=DIR, or llm.pretrained=false "
            "and its sizes in llm.config"
        ) from error
    return {**found.to_diff_dict(), "vocab_size": found.vocab_size}
