"""Keys of a chat: what may be given, and what is wrong before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from openqwen2vl.commands._evaluate_config import Model, sampling
from openqwen2vl.config import Schema
from openqwen2vl.curation.scorers.weights import placement
from openqwen2vl.formats.errors import ConfigError

TERMINAL, WEB = "terminal", "web"
_KEYS = (
    "model prompt image chat system tokenizer template max_new_tokens temperature top_p seed "
    "device dtype json"
)
_MOST_PORT = 65_535


@dataclass(frozen=True)
class Place:
    """Where people talk to the model.

    Attributes:
        ui: ``terminal`` or ``web``.
        host: address to listen at.
        port: 0 takes a free one.
        max_upload_mb: millions of bytes of a picture's file.
        max_images: pictures of a question.
    """

    ui: str
    host: str
    port: int
    max_upload_mb: int
    max_images: int


def _given(config: DictConfig) -> None:
    if config.model.path is None:
        raise ConfigError("model: must be given")


def _possible_place(config: DictConfig) -> None:
    chat = config.chat
    if chat.ui not in (TERMINAL, WEB):
        raise ConfigError(f"chat.ui is '{chat.ui}'; there are {TERMINAL}, {WEB}")
    if chat.ui == WEB and (config.prompt is not None or config.image):
        raise ConfigError("prompt and image are of the terminal; on the page you give them there")
    if not 0 <= chat.port <= _MOST_PORT:
        raise ConfigError(f"chat.port is {chat.port}; expected 0 to {_MOST_PORT}")
    for key in ("max_upload_mb", "max_images"):
        if chat[key] < 1:
            raise ConfigError(f"chat.{key} is {chat[key]}; expected a whole number from 1 on")


def _possible_question(config: DictConfig) -> None:
    if config.prompt is not None and not config.prompt.strip():
        raise ConfigError("prompt is empty; ask something, or leave it away for a conversation")
    for key in ("prompt", "system"):
        # Python keeps bytes that are none of the terminal's letters as halves of a pair.
        if any("\ud800" <= letter <= "\udfff" for letter in config[key] or ""):
            raise ConfigError(f"{key} holds bytes that are no letters here; write it in UTF-8")


def _possible_numbers(config: DictConfig) -> None:
    sampling(config)
    if config.max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {config.max_new_tokens}; expected 1 or more")
    placement(config.device, config.dtype, half=torch.bfloat16)


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    groups={"model": Model, "chat": Place},
    types={
        **dict.fromkeys(
            ("prompt", "system", "tokenizer", "template", "device", "dtype"), str | None
        ),
        **dict.fromkeys(("temperature", "top_p"), float),
        **dict.fromkeys(("seed", "max_new_tokens"), int),
        "image": Sequence[str],
        "json": bool,
    },
    parts=("model", "chat"),
    rules=(_given, _possible_place, _possible_question, _possible_numbers),
)
