"""Small trained models as their runs leave them, without a run; and their export."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.built import build
from openqwen2vl.release.export import Export
from openqwen2vl.release.prepared import prepare
from openqwen2vl.training.checkpoint import AtomicCheckpointIO
from support.models import SIDE, TOWER
from support.released import shaken
from support.shards import tiny_tokenizer

PATCHES = SIDE // 14
LLM = {
    "model_type": "qwen2",
    "vocab_size": 520,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    "rms_norm_eps": 1e-5,
    "use_cache": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}
VISION = {
    "_target_": "openqwen2vl.model.vision.VisionTower",
    "_convert_": "all",
    "name": TOWER,
    "pretrained": False,
    "weights": None,
    "image_side": SIDE,
    "overrides": {"embed_dim": 48, "depth": 4, "num_heads": 4},
    "trainable": False,
    "seed": 0,
}


@dataclass(frozen=True)
class Trained:
    """A run's folder, its checkpoint, and the model that is in it."""

    run: Path
    checkpoint: Path
    model: MLLM
    facts: dict[str, Any]


def write_run(
    run: Path,
    grid: int = PATCHES,
    *,
    projector: str = "AvgPoolProjector",
    template: str = "qwen2_5",
    sharded: bool = False,
    trainable_tower: bool = False,
    tied: bool = True,
    stage: str = "sft",
    init_from: Path | None = None,
    vision: dict[str, Any] | None = None,
) -> Trained:
    """Write a run's folder with one checkpoint of step 5."""
    tokenizer = tiny_tokenizer(run.parent / "tokenizer")
    name = f"openqwen2vl.model.projector.{projector}"
    facts: dict[str, Any] = {
        "model": {
            "vision": vision or VISION,
            "projector": {"_target_": name, "_partial_": True, "grid": grid, "seed": 0},
            "llm": {"path": "Qwen/Qwen2.5-1.5B-Instruct"},
            "attention": {"backend": "auto"},
            "trainable": {"vision": trainable_tower, "projector": True, "llm": True},
            "checkpointing": "none",
        },
        "llm_config": LLM | {"tie_word_embeddings": tied},
        "vocab_size": len(tokenizer),
        "tokenizer": str(run.parent / "tokenizer"),
        "text": {
            "tokenizer": tokenizer_hash(load_tokenizer(str(run.parent / "tokenizer"))),
            "template": TEMPLATES[template].hash,
        },
        "stage": stage,
        "init_from": None if init_from is None else str(init_from),
        "order": {"seed": 7, "global_batch": 4, "sources": ["red", "blue"], "mode": "proportional"},
        "licences": {"red": "CC-BY-4.0", "blue": None},
        "phases": [{"start": 0, "stop": 5, "grid": grid}],
        "steps": 5,
        "tower": {"name": TOWER, "hash": None},
    }
    model = build(facts, run)
    for part in (model.llm, model.projector):
        shaken(part)
    if trainable_tower:
        shaken(model.vision)
    else:
        facts["tower"]["hash"] = model.vision.weights_hash()
    checkpoint = run / "checkpoints" / "step_00000005.ckpt"
    checkpoint.parent.mkdir(parents=True)
    _save(checkpoint, facts, model, sharded)
    write_records(run)
    return Trained(run, checkpoint, model.eval(), facts)


def _save(path: Path, facts: dict[str, Any], model: MLLM, sharded: bool) -> None:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    rest = {"global_step": 5, "openqwen2vl": facts}
    if sharded:
        dcp.save({"model": state}, checkpoint_id=path, no_dist=True)
        torch.save(rest, path / "meta.pt")
    else:
        AtomicCheckpointIO().save_checkpoint(rest | {"state_dict": state}, path)


def write_records(run: Path, hours: float = 1.5, step: int = 5) -> None:
    """Write what a run keeps beside its checkpoints."""
    count = {"packs": 20, "tokens": 5000, "targets": 900, "images": 60, "documents": 70}
    files = {
        "run.json": {
            "state": "finished",
            "step": step,
            "steps": 5,
            "device": "NVIDIA A100-SXM4-40GB",
            "devices": 8,
            "device_hours": hours,
            "versions": {"torch": "2.11.0"},
        },
        "consumed.json": {"red": count | {"passes": 0.5}, "blue": count | {"passes": 2.0}},
        "config.json": {"optim": {"lr": 2e-5}},
    }
    for name, content in files.items():
        (run / name).write_text(json.dumps(content))


def request(path: Path, grid: int | None = None, **more: Any) -> Export:
    """Ask for the export of a checkpoint, with a card of one line."""
    prepared = prepare(path, grid=grid)
    settings: dict[str, Any] = {
        "build": prepared.build,
        "weights": prepared.weights,
        "texts": prepared.texts,
        "llm_config": prepared.facts["llm_config"],
        "about": {"facts": prepared.kept_facts()},
        "card": lambda config: "a card\n",
        "dtype": "fp32",
    }
    return Export(**(settings | more))


def unchecked(folder: Path, question: Path) -> dict[str, Any]:
    """Stand for the other process where a test is about something else."""
    return {
        "transformers": "none",
        "loading": {},
        "unlike_ids": [],
        "unlike_ends": [],
        "pixels": [0.0, 0.0],
        "logits": 0.0,
        "first_token": 0.0,
        "largest_logit": 1.0,
    }


def beside(out: Path) -> set[str]:
    """Everything that lies where the folder was to be, but what the tests put there."""
    return {path.name for path in out.parent.iterdir()} - {"run", "tokenizer"}
