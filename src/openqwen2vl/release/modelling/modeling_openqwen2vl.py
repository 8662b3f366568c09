"""LLaVA with visual tokens that are averaged onto a coarser grid before the projector.

transformers loads this file from the folder of a model (``trust_remote_code=True``); it needs
nothing but transformers (4.57 or newer) and PyTorch.
"""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaConfig, LlavaForConditionalGeneration


class OpenQwen2VLConfig(LlavaConfig):  # type: ignore[misc]
    """LLaVA's config with two more fields.

    Attributes:
        grid: visual tokens on each side of an image; an image gives its square.
        projector_widths: of the projector's input and of what each of its linear maps gives.
    """

    model_type = "openqwen2vl"
    grid: int = 12
    projector_widths: Any = None


class PoolingProjector(nn.Module):
    """Averages patches onto the grid, then linear maps with GELU between them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.grid = config.grid
        self.maps = len(config.projector_widths) - 1
        for number, (before, after) in enumerate(pairwise(config.projector_widths), 1):
            self.add_module(f"linear_{number}", nn.Linear(before, after))

    def forward(self, features: Tensor) -> Tensor:
        """Visual tokens of images: (K, patches, width) to (K, grid * grid, text width)."""
        images, patches, width = features.shape
        side = round(patches**0.5)
        if side != self.grid:
            square = features.transpose(1, 2).reshape(images, width, side, side)
            features = functional.adaptive_avg_pool2d(square, self.grid).flatten(2).transpose(1, 2)
        for number in range(1, self.maps + 1):
            if number > 1:
                features = functional.gelu(features)
            features = getattr(self, f"linear_{number}")(features)
        return features


class OpenQwen2VLForConditionalGeneration(LlavaForConditionalGeneration):  # type: ignore[misc]
    """LLaVA in all but its projector."""

    config_class = OpenQwen2VLConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = PoolingProjector(config)
