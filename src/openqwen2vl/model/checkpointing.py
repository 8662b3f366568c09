"""What backward works out again instead of keeping it."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from openqwen2vl.formats.errors import ConfigError

MODES = ("none", "mlp", "full")


def checkpoint_layers(layers: Iterable[Any], mode: str) -> None:
    """Choose what each decoder layer keeps; choosing again replaces the choice.

    Args:
        layers: of transformers.
        mode: ``none``, ``mlp`` for the feed-forwards (half of what a step keeps, a fifth of its
            work) or ``full`` for whole layers.

    Raises:
        ConfigError: another mode, or ``mlp`` for layers without a part of that name.
    """
    if mode not in MODES:
        raise ConfigError(f'checkpointing is "{mode}"; choose {", ".join(MODES)}')
    again = partial(checkpoint, use_reentrant=False)
    for layer in layers:
        # What a layer reads; transformers renamed its switch on the whole model in version 5.
        layer.gradient_checkpointing = mode == "full"
        layer._gradient_checkpointing_func = again
        feed_forward = getattr(layer, "mlp", None)
        if feed_forward is None and mode == "mlp":
            raise ConfigError(
                f"checkpointing=mlp, but a {type(layer).__name__} has no mlp; choose full"
            )
        if feed_forward is not None:
            plain = type(feed_forward).forward.__get__(feed_forward)
            feed_forward.forward = partial(again, plain) if mode == "mlp" else plain
