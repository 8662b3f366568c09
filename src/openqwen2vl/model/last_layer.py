"""The last decoder layer's feed-forward works only on rows that somebody reads.

After the last attention no row looks at another, and the loss reads the rows of targets alone: in
pre-training one of five. Whatever the feed-forward makes of the others is thrown away, so it is
not made: 2 % of the 2B model's work, a fifth of a model of three layers. The official code and
the plain transformers loop compute all of it.

Shapes: B rows, T tokens, D width, N positions that are read.
"""

from typing import Any

from torch import Tensor, nn

KEYWORD = "read_positions"
"""The keyword that carries the positions through transformers to its layers."""


class ReadRows:
    """Hooks on one layer: gather before its feed-forward, scatter behind it.

    Hooks, so that weights keep their names. The positions come with each call of the layer, hence
    also when checkpointing calls it again during backward.
    """

    def __init__(self, layer: Any) -> None:
        """Attach to a decoder layer.

        Args:
            layer: gets ``read_positions`` among its keywords: int64 (N,) over B*T, or None for all
                rows. A layer whose ``mlp`` is not made of linear maps alone (experts, which count
                their rows) is left as it is.
        """
        self._positions: Tensor | None = None
        self._shape: Any = None
        if reads_rows(layer):
            layer.register_forward_pre_hook(self._begin, with_kwargs=True)
            layer.mlp.register_forward_pre_hook(self._gather)
            layer.mlp.register_forward_hook(self._scatter)

    def _begin(self, layer: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
        # Here and not in the feed-forward: compiled code that checkpoints allows no notes inside.
        self._positions = keywords.get(KEYWORD)
        hidden: Tensor = args[0] if args else keywords["hidden_states"]
        self._shape = hidden.shape

    def _gather(self, feed_forward: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if self._positions is None:
            return None
        return (args[0].flatten(0, 1).index_select(0, self._positions).unsqueeze(0),)

    def _scatter(self, feed_forward: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self._positions is None:
            return None
        rows = output.squeeze(0)
        flat = rows.new_zeros(self._shape[0] * self._shape[1], rows.shape[1])
        return flat.index_copy(0, self._positions, rows).view(*self._shape[:2], -1)


def reads_rows(layer: Any) -> bool:
    """Whether a layer has a feed-forward made of linear maps alone, so that rows can be left out.

    Args:
        layer: a decoder layer of transformers.
    """
    feed_forward = getattr(layer, "mlp", None)
    if not isinstance(feed_forward, nn.Module):
        return False
    parts = list(feed_forward.modules())
    if any(isinstance(part, nn.ModuleList) for part in parts):
        return False  # experts, even if each is a dense one
    linears = [part for part in parts if isinstance(part, nn.Linear)]
    owned = {id(weight) for linear in linears for weight in linear.parameters()}
    return bool(linears) and all(id(weight) in owned for weight in feed_forward.parameters())
