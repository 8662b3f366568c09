"""A run folder of the tiny model without training, and small benchmarks to ask it."""

import json
import random
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra

from openqwen2vl.commands._assemble import build_model, model_config
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.formats.tokens import tokenizer_hash
from support.compose import composed
from support.runs import TINY_MODEL
from support.shards import picture, tiny_tokenizer


def write_run(folder: Path, seed: int = 0) -> Path:
    """Write what a run of one step would leave: a checkpoint with its facts."""
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    GlobalHydra.instance().clear()
    config = composed("stage=pretrain", *TINY_MODEL, "resolution=tiny", f"llm.seed={seed}")
    model = build_model(config, len(tokenizer))
    torch.manual_seed(seed)
    for weight in model.llm.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    facts = {
        "model": model_config(config),
        "llm_config": model.llm.config.to_diff_dict(),
        "vocab_size": len(tokenizer),
        "tokenizer": str(folder / "tokenizer"),
        "text": {"tokenizer": tokenizer_hash(tokenizer), "template": TEMPLATES["qwen2_5"].hash},
        "tower": {"name": model.vision.name, "hash": None},
        "init_from": None,
        "phases": [{"grid": 6}],
    }
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(
        {"global_step": 1, "state_dict": state, "openqwen2vl": facts},
        folder / "checkpoints" / "step_00000001.ckpt",
    )
    return folder


def write_benchmarks(root: Path, rows: int = 20, seed: int = 0) -> Path:
    """Write ``mmbench.jsonl`` (each question twice) and ``ai2d.jsonl`` with drawn pictures."""
    rng = random.Random(seed)
    (root / "pictures").mkdir(parents=True)
    for number in range(rows):
        (root / "pictures" / f"{number}.jpg").write_bytes(picture(rng))
    half = rows // 2
    choices = [
        {
            "index": number % half + 1_000_000 * (number // half),
            "question": "What color is " + "the large circle, " * (number % 7) + "then?",
            "answer": "AB"[number // half],
            "A": ("red", "blue")[number // half],
            "B": ("blue", "red")[number // half],
            "image": f"pictures/{number % half}.jpg",
        }
        for number in range(rows)
    ]
    diagrams = [
        {
            "question": f"Which is {number}?",
            "options": ["red", "blue", "green", "a square"],
            "answer": str(number % 4),
            "image": f"pictures/{number}.jpg",
        }
        for number in range(rows)
    ]
    for name, lines in (("mmbench", choices), ("ai2d", diagrams)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"{name}.jsonl").write_text(text)
    return root
