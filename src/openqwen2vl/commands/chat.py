"""Talk with a trained model about pictures, in the terminal or on a page in the browser."""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from rich.console import Console

from openqwen2vl.commands._chat_config import SCHEMA, WEB, Place
from openqwen2vl.commands._chat_server import free, serve
from openqwen2vl.commands._chat_terminal import Terminal, find_picture, read_picture
from openqwen2vl.commands._chat_web import library
from openqwen2vl.commands._chat_words import reword
from openqwen2vl.commands._evaluate_config import folder, sampling
from openqwen2vl.curation.scorers.weights import placement, reachable
from openqwen2vl.formats.errors import ImageError, UserError
from openqwen2vl.release.conversation import Partner, started
from openqwen2vl.release.trained import load_trained

__all__ = ["SCHEMA", "reword", "run"]

_INTERRUPTED = 130  # as shells say it


def run(config: DictConfig) -> Mapping[str, object]:
    """Answer one question, hold a conversation, or serve the page until Ctrl-C.

    Returns:
        The model, and what was asked and answered; of a page only the model and its address.

    Raises:
        UserError: no such model, a picture that is none, or Gradio is missing.
        SystemExit: Ctrl-C before there is a conversation.
    """
    try:
        return _talked(config)
    except ImageError as error:  # of the keys; in a conversation it costs a line
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _talked(config: DictConfig) -> Mapping[str, object]:
    _ready(config)
    with Console(stderr=True).status("loading the model"):
        partner = _open(config)
    about = {"model": partner.name, "grid": partner.grid}
    if config.chat.ui == WEB:
        return {**about, "address": serve(partner, started(config.system), Place(**config.chat))}
    shown = [read_picture(partner, path) for path in config.image]
    terminal = Terminal(partner, started(config.system), shown)
    if config.prompt is not None:
        terminal.ask(config.prompt)
    else:
        terminal.converse()
    answers = terminal.answers
    return {**about, "answer": answers[-1]["answer"] if answers else None, "answers": answers}


def _ready(config: DictConfig) -> None:
    """Find what would be told as a mistake only after minutes of loading a model."""
    if config.chat.ui == WEB:
        library()
        free(Place(**config.chat))
    for path in config.image:
        find_picture(path)


def _open(config: DictConfig) -> Partner:
    device, numbers = placement(config.device, config.dtype, half=torch.bfloat16)
    reachable(device)
    trained = load_trained(folder(config.model.path), config.tokenizer, config.template)
    trained.model.eval()
    # Not the buffers: rotary frequencies of 16 bits would move far positions.
    for weight in trained.model.parameters():
        weight.data = weight.data.to(numbers)
    return Partner(trained, device, sampling(config), config.max_new_tokens)
