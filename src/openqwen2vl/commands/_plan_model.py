"""The sizes of a model, read from its config without its weights."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

from openqwen2vl.commands._assemble import build_model
from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.model.mllm import MLLM


def meta_model(config: DictConfig, vocab_size: int) -> MLLM:
    """Build what ``train`` would, on the meta device: shapes without storage or downloads.

    Args:
        config: of the command.
        vocab_size: ids that the tokenizer can give; 0 when it is not known.

    Raises:
        CheckpointError: the language model's config cannot be reached.
    """
    plain = OmegaConf.merge(config, {})
    assert isinstance(plain, DictConfig)
    plain.vision.pretrained, plain.vision.weights = False, None
    if plain.llm.get("pretrained", False):
        plain.llm.config = _llm_config(config)
        plain.llm.pretrained = False
    with torch.device("meta"):
        return build_model(plain, vocab_size)


def _llm_config(config: DictConfig) -> dict[str, object]:
    """Read a folder's or the hub's config.json; the shipped model's sizes stand in conf/llm."""
    path = config.llm.path
    if not path or (path == config.known and not Path(path).is_dir()):
        stated = OmegaConf.to_container(config.llm.config, resolve=True)
        assert isinstance(stated, dict)
        return {str(key): value for key, value in stated.items()}
    try:
        found: dict[str, object] = AutoConfig.from_pretrained(path).to_dict()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f'cannot read the sizes of the language model "{path}": '
            f"{str(error).strip().splitlines()[0]}; give llm.path a folder with config.json, or "
            "llm.pretrained=false and llm.config"
        ) from error
    return found
