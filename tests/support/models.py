"""Tiny models of the very classes that train the 2B one."""

from functools import partial

from torch import nn

from openqwen2vl.model.llm import load_llm
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.projector import AvgPoolProjector
from openqwen2vl.model.vision import VisionTower

TOWER = "vit_so400m_patch14_siglip_384"
SIDE = 84
"""Pixels; 6x6 patches of 14."""


def tiny_tower(
    trainable: bool = False, width: int = 48, depth: int = 4, seed: int = 0
) -> VisionTower:
    """A SigLIP tower of 6x6 patches; one block fewer than ``depth`` runs."""
    return VisionTower(
        TOWER,
        pretrained=False,
        image_side=SIDE,
        overrides={"embed_dim": width, "depth": depth, "num_heads": 4},
        trainable=trainable,
        seed=seed,
    )


def tiny_llm(vocab_size: int = 300, seed: int = 0) -> nn.Module:
    """A Qwen2 of two layers, width 64, four query and two key-value heads, tied embeddings."""
    config = {
        "model_type": "qwen2",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return load_llm(config=config, pretrained=False, seed=seed)


def tiny_mllm(
    grid: int = 3, trainable_tower: bool = True, vocab_size: int = 300, seed: int = 0
) -> MLLM:
    """The whole model, a few hundred thousand parameters, from a seed."""
    return MLLM(
        vision=tiny_tower(trainable=trainable_tower, seed=seed),
        projector=partial(AvgPoolProjector, grid=grid, seed=seed),
        llm=tiny_llm(vocab_size=vocab_size, seed=seed),
    )
