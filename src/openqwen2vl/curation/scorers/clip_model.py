"""Contrastive models through open_clip: by name and tag, from a checkpoint file or a folder."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from openqwen2vl.curation.scorers.weights import weights_hash
from openqwen2vl.formats.errors import CheckpointError, ConfigError

CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class ClipModel:
    """A model of two towers with all that its scores depend on.

    Attributes:
        network: open_clip's model, in eval mode.
        preprocess: the model's own way from an RGB picture to float32 (3, S, S).
        tokenize: texts to int64 (N, context length), longer ones cut.
        facts: hash of weights and of config, preprocessing; fit for JSON.
    """

    network: Any
    preprocess: Any
    tokenize: Any
    facts: dict[str, Any]

    def prepare(self, picture: Image.Image) -> Tensor:
        """Give float32 (3, S, S)."""
        pixels: Tensor = self.preprocess(picture)
        return pixels

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move and round the network."""
        self.network.to(device=device, dtype=dtype)

    @torch.inference_mode()
    def similarity(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Cosine of each picture and the text beside it.

        Args:
            pixels: (N, 3, S, S), on the network's device and in its dtype.
            tokens: int64 (N, context length), on the network's device.

        Returns:
            float32 (N,), from -1 to 1; the learnt temperature and bias are left out.
        """
        # Normalised in float32: sixteen bits would round a cosine of 0.3 by 0.0002 once more.
        image = torch.nn.functional.normalize(self.network.encode_image(pixels).float(), dim=-1)
        text = torch.nn.functional.normalize(self.network.encode_text(tokens).float(), dim=-1)
        return (image * text).sum(dim=-1)


def load_clip(model: str, pretrained: str | None) -> ClipModel:
    """Load a model with its weights on the CPU in float32.

    Args:
        model: a name that open_clip knows, ``hf-hub:ORG/NAME``, or a folder that holds
            ``open_clip_config.json`` and weights.
        pretrained: for a name of open_clip's: a tag of that model, or a checkpoint file.

    Raises:
        ConfigError: no such model or tag.
        CheckpointError: the weights cannot be reached or do not fit.
    """
    address = _address(model, pretrained)
    try:
        with _quiet():
            network, preprocess = open_clip.create_model_from_pretrained(
                address, pretrained=pretrained, precision="fp32", device="cpu"
            )
            tokenize = open_clip.get_tokenizer(address)
            config = open_clip.get_model_config(address)
    except (OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(_unreachable(model, pretrained, error)) from error
    facts = {
        "weights": weights_hash(network.state_dict()),
        "config": _hash(config),
        "preprocess": _plain(open_clip.model.get_model_preprocess_cfg(network)),
    }
    return ClipModel(network.eval(), preprocess, tokenize, facts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what open_clip writes to the root logger: its errors are raised as well."""

    def other(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    logging.root.addFilter(other)
    try:
        yield
    finally:
        logging.root.removeFilter(other)


def _address(model: str, pretrained: str | None) -> str:
    """Give the name by which open_clip finds the model."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if pretrained is not None:
            raise ConfigError(
                f"model {model} is a folder, which holds its own weights; drop pretrained"
            )
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"{folder} holds no {CONFIG}; give a folder that open_clip saved")
        return f"local-dir:{folder}"
    if model.startswith("hf-hub:"):
        return model
    names = open_clip.list_models()
    if model not in names:
        close = get_close_matches(model, names, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f'open_clip has no model "{model}", and there is no such folder{hint}')
    _check_tag(model, pretrained)
    return model


def _check_tag(model: str, pretrained: str | None) -> None:
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained in tags:
        _check_activation(model, pretrained)
        return
    if pretrained is not None and Path(pretrained).is_file():
        return
    found = f'"{pretrained}" is no file and no weights of it' if pretrained else "none are named"
    raise ConfigError(
        f"{model} needs weights, but {found}; set pretrained to a checkpoint file"
        + (f" or to one of {', '.join(tags)}" if tags else "")
    )


def _check_activation(model: str, tag: str | None) -> None:
    """Refuse what open_clip only warns of: with the wrong activation all scores are off."""
    quick = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
    if bool(open_clip.get_model_config(model).get("quick_gelu", False)) != quick:
        other = f"{model}-quickgelu" if quick else model.removesuffix("-quickgelu")
        raise ConfigError(
            f"the weights {tag} were trained {'with' if quick else 'without'} QuickGELU, model "
            f"{model} computes {'without' if quick else 'with'} it; take model {other}"
        )


def _unreachable(model: str, pretrained: str | None, error: Exception) -> str:
    name = f"{model} ({pretrained})" if pretrained else model
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    known = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else None
    place = (known or {}).get("hf_hub", "").rstrip("/") or model.removeprefix("hf-hub:")
    return (
        f"cannot load the weights of {name}: {said}; where the hub cannot be reached, download "
        f"{place} elsewhere and give its folder (with {CONFIG}) as model, or a checkpoint file of "
        f"it as pretrained"
    )


def _plain(value: Any) -> Any:
    """Give a settings dict as it looks after a journey through JSON, so that both compare equal."""
    return json.loads(json.dumps(value, default=list))


def _hash(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
