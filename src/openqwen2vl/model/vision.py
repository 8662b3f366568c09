"""Vision tower: uint8 pictures to the patch features of a timm ViT's second-to-last block.

Shapes: K images, S image side, P patches, C tower width.
"""

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.model.compiled import compile_blocks, leave_open
from openqwen2vl.model.seeding import seeded

FEATURE_BLOCK = -2
"""Which block's output is the feature: the second to last [official ``base_vision.py``]."""


class VisionTower(nn.Module):
    """Patch features of a timm ViT, without final norm and without prefix tokens [paper 2.1].

    The blocks behind the feature block, the final norm and the head are dropped once the weights
    are loaded: nothing reads them, and a trainable tower would else hold parameters without
    gradients.

    A frozen tower is always in eval mode, runs without autograd, and follows the images to their
    device by itself (bfloat16 on CUDA, float32 elsewhere), since its owner does not register it.

    Attributes:
        side: pixels on each side of an input image.
        patch_grid: patches on each side; P is its square.
        width: C.
        trainable: whether gradients reach the tower.
        model: the timm model as far as it runs.
    """

    model: Any

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        weights: str | None = None,
        image_side: int | None = None,
        overrides: Mapping[str, object] | None = None,
        trainable: bool = False,
        seed: int = 0,
    ) -> None:
        """Build the tower on the CPU in float32.

        Args:
            name: a timm model name; any ViT whose blocks timm can list.
            pretrained: load weights; otherwise they are random, from ``seed``.
            weights: a ``.safetensors`` file of timm's layout; ``None`` asks the hub.
            image_side: pixels; ``None`` is the side the named model was trained at.
            overrides: further constructor arguments of the timm model (``embed_dim``, ``depth``).
            trainable: see the class.
            seed: for random weights.

        Raises:
            ConfigError: timm has no such ViT, or refuses the overrides.
            CheckpointError: the weights cannot be found or do not fit.
        """
        super().__init__()
        arguments = dict(overrides or {})
        if image_side is not None:
            arguments["img_size"] = image_side
        model = _build(name, pretrained, weights, arguments, seed)
        depth = len(model.blocks)
        if depth < -FEATURE_BLOCK:
            raise ConfigError(
                f"vision tower {name} has {depth} block, but the features are those of block "
                f"{FEATURE_BLOCK}; give overrides.depth of at least {-FEATURE_BLOCK}"
            )
        model.prune_intermediate_layers(indices=[depth + FEATURE_BLOCK], prune_norm=True)
        rows, columns = model.patch_embed.grid_size
        if rows != columns:
            raise ConfigError(
                f"vision tower {name} sees {rows}x{columns} patches, but the projector pools a "
                "square; give a square image_side"
            )
        self.name = name
        self.model = model
        self.trainable = trainable
        self._compiled = False
        self.side = int(model.patch_embed.img_size[0])
        self.patch_grid = int(rows)
        self.width = int(model.embed_dim)
        # Plain tensors, not buffers: casting the module to bfloat16 must not round them.
        self._mean, self._std = (
            torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std")
        )
        self.requires_grad_(trainable)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Patch features of each image.

        Args:
            images: uint8 (K, S, S, 3), RGB. K may be 0.

        Returns:
            (K, P, C) in the tower's dtype, row-major over the patch grid.

        Raises:
            ValueError: the images are not of this shape or dtype.
        """
        self._check(images)
        self._follow(images.device)
        if self.trainable:
            return self._trainable_features(images)
        if len(images) == 0:
            return self._patch_weight.new_zeros(0, self.patch_grid**2, self.width)
        with torch.no_grad():
            return self._features(images)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised channels-first pixels: what timm's own model takes.

        Args:
            images: uint8 (K, S, S, 3).

        Returns:
            (K, 3, S, S) in the tower's dtype, with the mean and spread the weights were trained on.
        """
        # Worked out in float32 whatever the tower's dtype: bfloat16 cannot tell 254 from 255.
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return ((scaled - self._mean) / self._std).to(self._patch_weight.dtype)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks in place, for any number of images.

        Args:
            backend: of ``torch.compile``.
        """
        if not self._compiled:
            compile_blocks(self.model.blocks, backend)
            self.model.norm_pre.register_forward_hook(_leave_open)
            self._compiled = True

    def weights_hash(self) -> str:
        """16 hex digits that name the weights, the same on every device.

        Each value counts as rounded to bfloat16, so that a frozen tower's move to a GPU does not
        change its name.
        """
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)} ".encode())
            rounded = value.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def train(self, mode: bool = True) -> "VisionTower":
        """Set the mode; a frozen tower stays in eval mode."""
        super().train(mode and self.trainable)
        return self

    @property
    def _patch_weight(self) -> Tensor:
        weight: Tensor = self.model.patch_embed.proj.weight
        return weight

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != (self.side, self.side, 3):
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; tower {self.name} takes "
                f"torch.uint8 (K, {self.side}, {self.side}, 3): decode them at image side "
                f"{self.side}"
            )

    def _follow(self, device: torch.device) -> None:
        if not self.trainable and self._patch_weight.device != device:
            self.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)

    def _features(self, images: Tensor) -> Tensor:
        if self._compiled and len(images) == 1:
            # One image would be another program.
            return self._features(images.expand(2, -1, -1, -1))[:1]
        features = self.model.forward_intermediates(
            self.pixels(images),
            indices=[len(self.model.blocks) - 1],
            output_fmt="NLC",
            intermediates_only=True,
        )
        result: Tensor = features[0]
        return result

    def _trainable_features(self, images: Tensor) -> Tensor:
        if len(images):
            return self._features(images)
        # A batch without images must still give every weight a (zero) gradient: ranks that shard
        # the tower gather it block by block, and one rank that stays away stops all of them.
        blank = images.new_zeros(1, self.side, self.side, 3)
        return self._features(blank)[:0]


def _leave_open(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return leave_open(output)


def _build(
    name: str, pretrained: bool, weights: str | None, arguments: dict[str, object], seed: int
) -> Any:
    """The full timm model with its weights; see ``VisionTower`` for what can go wrong."""
    if not timm.is_model(name):
        close = get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f'timm has no model named "{name}"{hint}')
    if weights is not None:
        _check_weights(weights)
    overlay = {"file": weights} if pretrained and weights is not None else None
    try:
        with seeded(seed):
            model = timm.create_model(
                name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **arguments
            )
    except TypeError as error:
        raise ConfigError(f"timm's {name} refuses the overrides {arguments}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot load weights of vision tower {name} from {weights or 'the hub'}: "
            f"{str(error).strip().splitlines()[0]}; give a timm .safetensors file "
            "(vision.weights=FILE) or, for random weights, vision.pretrained=false"
        ) from error
    if not hasattr(model, "prune_intermediate_layers") or not hasattr(model, "blocks"):
        raise ConfigError(f"timm's {name} is no plain ViT; choose one whose name begins with vit_")
    return model


def _check_weights(weights: str) -> None:
    path = Path(weights)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"vision weights {path} are no .safetensors file; other formats can run code when "
            "they are opened, so convert them first"
        )
    if not path.is_file():
        raise CheckpointError(f"vision weights {path} do not exist; give an existing file")
