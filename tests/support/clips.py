"""A tiny random model of open_clip's, saved as the folder that a user would give."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

CONTEXT = 16
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


def clip_folder(folder: Path, seed: int = 0, preprocess: dict[str, object] | None = None) -> Path:
    """Save a CLIP of two layers a tower."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    network = open_clip.CLIP(**CONFIG)
    # At their starting values the towers hardly look at their inputs.
    for weights in network.parameters():
        if weights.ndim > 1:
            weights.data *= 4
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder
