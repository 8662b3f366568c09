"""Language models through transformers: float32 masters from a folder, the hub, or a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.model.seeding import seeded


def load_llm(
    path: str | None = None,
    config: Mapping[str, Any] | None = None,
    pretrained: bool = True,
    seed: int = 0,
    min_vocab: int = 0,
) -> PreTrainedModel:
    """A decoder-only language model with float32 weights and no cache.

    Training keeps float32 masters whatever the file holds: transformers would by itself load
    Qwen2.5's bfloat16, and an update of 1e-5 is lost in that.

    Args:
        path: folder or hub name of a causal language model; only ``.safetensors`` is opened.
        config: ``model_type`` and that type's config fields; what is built, with random weights,
            when ``pretrained`` is false.
        pretrained: take weights and config from ``path``.
        seed: for random weights, and for embedding rows that are added.
        min_vocab: ids the tokenizer can give; fewer embedding rows than that are filled up.

    Returns:
        A transformers ``...ForCausalLM`` on the CPU.

    Raises:
        ConfigError: neither weights nor a usable config are named.
        CheckpointError: ``path`` holds no language model or cannot be reached.
    """
    with seeded(seed):
        llm = _load(path) if pretrained else _random(config, min_vocab)
        if llm.get_input_embeddings().num_embeddings < min_vocab:
            # Added rows are drawn, not averaged: an average would read the global statistics of a
            # matrix that FSDP may later shard, for rows that training sets anyway.
            llm.resize_token_embeddings(min_vocab, mean_resizing=False)
    llm.config.use_cache = False
    return llm


def check_head(llm: PreTrainedModel) -> None:
    """Refuse a model whose logits are more than hidden states times output embedding.

    The loss multiplies target rows by the output embedding itself, so that must be all.

    Raises:
        ConfigError: with what comes on top.
    """
    head = llm.get_output_embeddings()
    extras = [
        name
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        if getattr(llm.config, name, None) not in (None, 1, 1.0)
    ]
    extras += ["a bias"] if getattr(head, "bias", None) is not None else []
    if extras:
        raise ConfigError(
            f"the logits of {type(llm).__name__} have {', '.join(extras)} beyond the output "
            "embedding, which the loss on target rows does not apply; choose another LLM"
        )


def _load(path: str | None) -> PreTrainedModel:
    if not path:
        raise ConfigError(
            "llm.path is empty; give a folder or hub name, or llm.pretrained=false with llm.config"
        )
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise CheckpointError(f"no folder {path}, which llm.path names; check the path")
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f'cannot load a language model from "{path}": {str(error).strip().splitlines()[0]}; '
            "give llm.path a folder with config.json and .safetensors files, or a hub name that "
            "this machine can reach"
        ) from error


def _random(config: Mapping[str, Any] | None, min_vocab: int) -> PreTrainedModel:
    fields = dict(config or {})
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ConfigError(
            "llm.pretrained=false builds from llm.config, which has no model_type; "
            "give one, for example llm.config.model_type=qwen2"
        )
    fields["vocab_size"] = max(int(fields.get("vocab_size", 0)), min_vocab)
    try:
        built = AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise ConfigError(f"llm.config cannot be built: {error}") from error
    return AutoModelForCausalLM.from_config(built, dtype=torch.float32)
