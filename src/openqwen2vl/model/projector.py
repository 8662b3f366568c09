"""Projectors: patch features to the few visual tokens a language model reads.

Shapes: K images, P patches, C tower width, G grid, D language-model width.
"""

from itertools import pairwise
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.seeding import seeded


class ProjectorFactory(Protocol):
    """Builds a projector once both widths are known."""

    def __call__(self, vision_width: int, llm_width: int) -> "PooledProjector":
        """A projector from tower width to language-model width."""
        ...


class PooledProjector(nn.Module):
    """Pools the patches to a grid, then maps each cell to a language-model embedding.

    Pooling comes before the layers, so ``grid`` may change during a run while the weights stay.
    All projectors pool, so that the number of visual tokens is decided in one place.

    Attributes:
        grid: visual tokens on each side; an image gives its square. Plain and settable: a change
            of resolution sets it.
        layers: the map applied to every cell.
    """

    layers: nn.Sequential

    def __init__(self, layers: nn.Sequential, grid: int) -> None:
        """Pool to ``grid``, then apply ``layers``.

        Raises:
            ConfigError: the grid is not a positive whole number.
        """
        super().__init__()
        if grid < 1:
            raise ConfigError(f"projector grid is {grid}; give at least 1 token per side")
        self.grid = grid
        self.layers = layers

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens of each image.

        Args:
            features: (K, P, C), P a square, row-major. K may be 0.

        Returns:
            (K, G*G, D) in the dtype of the layers' weights.

        Raises:
            ValueError: the grid is finer than the patches.
        """
        # Plain attribute access: within a sharded forward the weight is a view, no Parameter.
        weight: Tensor = self.layers[0].weight  # type: ignore[assignment]
        tokens: Tensor = self.layers(pool(features.to(weight.dtype), self.grid))
        return tokens


class AvgPoolProjector(PooledProjector):
    """Average pooling, Linear, exact GELU, Linear [paper 2.1, official ``AvgPoolProjector``]."""

    def __init__(self, vision_width: int, llm_width: int, grid: int, seed: int = 0) -> None:
        """Build with random weights.

        Args:
            vision_width: C.
            llm_width: D.
            grid: G; 12 in the paper's pre-training, 27 in its fine-tuning.
            seed: for the weights.
        """
        super().__init__(_stack([vision_width, llm_width, llm_width], seed), grid)


class LinearProjector(PooledProjector):
    """Average pooling and a single Linear."""

    def __init__(self, vision_width: int, llm_width: int, grid: int, seed: int = 0) -> None:
        """Build with random weights; arguments as of ``AvgPoolProjector``."""
        super().__init__(_stack([vision_width, llm_width], seed), grid)


class MLPProjector(PooledProjector):
    """Average pooling and three Linears with GELU between, widened first [prismatic's fused MLP]."""

    def __init__(
        self, vision_width: int, llm_width: int, grid: int, expansion: int = 4, seed: int = 0
    ) -> None:
        """Build with random weights.

        Args:
            vision_width: C.
            llm_width: D.
            grid: G.
            expansion: width of the first hidden layer in units of C.
            seed: for the weights.
        """
        widths = [vision_width, expansion * vision_width, llm_width, llm_width]
        super().__init__(_stack(widths, seed), grid)


def pool(features: Tensor, grid: int) -> Tensor:
    """Average the patches onto a coarser square grid (windows overlap when sides do not divide).

    Args:
        features: (K, P, C), P a square, row-major.
        grid: cells on each side, at most the patches on each side.

    Returns:
        (K, grid*grid, C), row-major; the very same values when the sides are equal.

    Raises:
        ValueError: the grid is finer than the patches, both numbers named.
    """
    images, patches, width = features.shape
    side = round(patches**0.5)
    if grid > side:
        raise ValueError(
            f"projector grid {grid} is finer than the tower's {side}x{side} patches; "
            f"give a grid of at most {side}"
        )
    if grid == side:
        return features
    if images == 0:
        # A slice rather than new zeros keeps the tower in the graph (see VisionTower).
        return features[:, : grid * grid]
    square = features.transpose(1, 2).reshape(images, width, side, side)
    return functional.adaptive_avg_pool2d(square, grid).flatten(2).transpose(1, 2)


def _stack(widths: list[int], seed: int) -> nn.Sequential:
    """Linears of the given widths with exact GELU between them."""
    with seeded(seed):
        linears = [nn.Linear(before, after) for before, after in pairwise(widths)]
    layers = [layer for linear in linears for layer in (nn.GELU(), linear)]
    return nn.Sequential(*layers[1:])
