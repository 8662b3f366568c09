"""The shipped models' shapes with random weights, read from their configs without Hydra."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from openqwen2vl.model.llm import load_llm
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.projector import AvgPoolProjector
from openqwen2vl.model.vision import VisionTower

CONF = Path(__file__).resolve().parents[1] / "conf"
PARTS = {"2b": ("siglip_so400m_384", "qwen2_5_1_5b"), "tiny": ("tiny", "tiny")}


def random_model(name: str, grid: int, vocab_size: int, trainable_tower: bool = False) -> MLLM:
    """Build the model with random weights, which take as long as trained ones; zeros would not.

    Args:
        name: a key of ``PARTS``.
        grid: of the projector.
        vocab_size: ids that the packs' tokenizer can give.
        trainable_tower: whether the tower trains.
    """
    tower_name, llm_name = PARTS[name]
    tower = _arguments("vision", tower_name) | {
        "pretrained": False,
        "weights": None,
        "trainable": trainable_tower,
    }
    llm = _arguments("llm", llm_name)
    built = VisionTower(**tower)
    if not trainable_tower and torch.get_default_device().type == "cuda":
        # As when a run moves it there; what is made in place is never moved.
        built.to(torch.bfloat16)
    return MLLM(
        built,
        partial(AvgPoolProjector, grid=grid),
        load_llm(config=llm["config"], pretrained=False, min_vocab=vocab_size),
    )


def _arguments(group: str, name: str) -> dict[str, Any]:
    read = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return {key: value for key, value in read.items() if not key.startswith("_")}
