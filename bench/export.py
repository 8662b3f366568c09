"""What does an export cost, in memory and in time, against copying the checkpoint twice?

    python bench/export.py                   # the 2B model's shapes: 22 GB of disk, minutes
    python bench/export.py --model small     # 0.3B, under a minute on an idle machine

Random weights of the model's shapes are written as a sharded checkpoint, without an optimizer's
state, and exported as `openqwen2vl export` does it, in a process of its own. Memory is that
process's peak, and that of the process which opens the folder with transformers, in units of the
weights: every weight of the model, the frozen tower's too, in float32. Libraries take some 0.5 GB
beside them. Time is that of reading, converting and writing, without the check, which runs the
model twice; both sides of a round end on the disk.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import figures

GOAL = 1.3  # peak memory in units of the weights
TOWER = "vit_so400m_patch14_siglip_384"
_QWEN = {
    "model_type": "qwen2",
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "tie_word_embeddings": True,
}


def _sizes(vocab: int, width: int, inner: int, layers: int, heads: int, groups: int) -> Any:
    return _QWEN | {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
    }


# Language model, the tower's overrides, and image side.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "quick": (
        _sizes(30_000, 512, 1408, 6, 8, 2),
        {"embed_dim": 256, "depth": 5, "num_heads": 4},
        84,
    ),
    "small": (
        _sizes(60_000, 1024, 2816, 16, 16, 4),
        {"embed_dim": 768, "depth": 9, "num_heads": 12},
        224,
    ),
    "2b": (_sizes(151_936, 1536, 8960, 28, 12, 2), {}, 384),
}


def main() -> None:
    """Export and copy in turns, print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="2b")
    parser.add_argument("--grid", type=int, help="visual tokens along a side; the patches'")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, help="of torch; its own choice")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="takes the files; the system's own for such")
    parser.add_argument("--quick", action="store_true", help="two rounds of tiny shapes, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.model, options.rounds = "quick", 2
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        report = _measure(Path(root), options)
    report["settings"] = {k: v for k, v in vars(options).items() if k not in ("json", "folder")}
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    _apart(_write, root, options)
    checkpoint = root / "run" / "checkpoints" / "step_00000001.ckpt"
    rounds, copies = [], []
    for _ in range(options.rounds):
        rounds.append(_apart(_export, root, options))
        copies.append(_copy_twice(checkpoint, root / "copy"))
    numbers = rounds[0]["numbers"]
    exports = [one["build_s"] + one["write_s"] for one in rounds]
    return {
        "bench": "export",
        "machine": figures.machine(),
        "weights_bytes": 4 * numbers,
        "checkpoint_bytes": _size(checkpoint),
        "peak": {
            side: figures.spread([one[f"{side}_peak"] / (4 * numbers) for one in rounds])
            for side in ("export", "reload")
        },
        "libraries": {
            side: figures.spread([one[f"{side}_base"] / (4 * numbers) for one in rounds])
            for side in ("export",)
        },
        "seconds": {
            key: figures.spread([one[key] for one in rounds])
            for key in ("build_s", "write_s", "ask_s", "reload_s")
        },
        "two_copies_s": figures.spread(copies),
        "over_two_copies": figures.ratios(exports, copies),
        "logits_apart": rounds[0]["logits"],
    }


def _apart(work: Any, root: Path, options: argparse.Namespace) -> Any:
    """Run in a process of its own, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(work, root, vars(options), theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit("the process that exports has ended; what it said is above") from None
    finally:
        process.join()


def _run(work: Any, root: Path, options: dict[str, Any], end: Connection) -> None:
    import torch

    if options["threads"]:
        torch.set_num_threads(options["threads"])
        os.environ["OMP_NUM_THREADS"] = str(options["threads"])
    end.send(work(root, **options))


def _write(root: Path, model: str, grid: int | None, **_: Any) -> None:
    """Write the run's folder: a tower's file, a tokenizer, and a sharded checkpoint."""
    import timm
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file

    from openqwen2vl.formats.templates import TEMPLATES
    from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash, train_tokenizer
    from openqwen2vl.release.built import build, frozen_tower
    from openqwen2vl.release.filled import without_values

    llm, overrides, side = MODELS[model]
    train_tokenizer(["a red circle", "a blue square"], 300).save_pretrained(root / "tokenizer")
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    tower = timm.create_model(TOWER, pretrained=False, img_size=side, **overrides)
    save_file(tower.state_dict(), root / "tower.safetensors")
    facts: dict[str, Any] = {
        "model": {
            "vision": {
                "_target_": "openqwen2vl.model.vision.VisionTower",
                "name": TOWER,
                "pretrained": True,
                "weights": str(root / "tower.safetensors"),
                "image_side": side,
                "overrides": overrides,
            },
            "projector": {
                "_target_": "openqwen2vl.model.projector.AvgPoolProjector",
                "_partial_": True,
                "grid": 1,
            },
            "attention": {"backend": "auto"},
            "trainable": {"vision": False, "projector": True, "llm": True},
            "checkpointing": "none",
        },
        "llm_config": llm,
        "vocab_size": len(tokenizer),
        "tokenizer": str(root / "tokenizer"),
        "text": {
            "tokenizer": tokenizer_hash(tokenizer),
            "template": TEMPLATES["qwen2_5"].hash,
        },
        "init_from": None,
        "phases": [{"grid": grid or side // 14}],
        "tower": {"name": TOWER, "hash": None},
    }
    facts["tower"]["hash"] = frozen_tower(facts, root).weights_hash()
    with without_values():
        shapes = build(facts, root, holds_tower=True).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        f"model.{name}": torch.empty(value.shape).normal_(0, 0.02, generator=generator)
        for name, value in shapes.items()
        if name != "llm.lm_head.weight"
    }
    state["model.llm.lm_head.weight"] = state["model.llm.model.embed_tokens.weight"]
    folder = root / "run" / "checkpoints" / "step_00000001.ckpt"
    dcp.save({"model": state}, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 1, "openqwen2vl": facts}, folder / "meta.pt")


def _export(root: Path, dtype: str, **_: Any) -> dict[str, Any]:
    from openqwen2vl.release.export import Export, export
    from openqwen2vl.release.prepared import prepare

    prepared = prepare(root / "run")
    base = _status("VmRSS")
    request = Export(
        build=prepared.build,
        weights=prepared.weights,
        texts=prepared.texts,
        llm_config=prepared.facts["llm_config"],
        about={"facts": prepared.kept_facts()},
        card=lambda config: "a card\n",
        dtype=dtype,
    )
    told = export(request, root / "out", overwrite=True)
    return {
        **{key: told[key] for key in ("build_s", "write_s", "ask_s", "reload_s")},
        "numbers": told["parameters"],
        "export_base": base,
        "export_peak": _status("VmHWM"),
        "reload_peak": told["check"]["peak_bytes"],
        "logits": told["check"]["logits"] / told["check"]["largest_logit"],
    }


def _status(key: str) -> int:
    """Give a figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def _copy_twice(checkpoint: Path, to: Path) -> float:
    start = time.perf_counter()
    for number in (1, 2):
        shutil.copytree(checkpoint, to / str(number))
        for path in (to / str(number)).rglob("*"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(to)
    return seconds


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


def _print(report: Mapping[str, Any]) -> None:
    gigabytes = report["weights_bytes"] / 1e9
    rows = [
        ("weights in float32", f"{gigabytes:.2f} GB"),
        ("peak of the export", figures.show(report["peak"]["export"])),
        ("of these its libraries", figures.show(report["libraries"]["export"])),
        ("peak of the process that opens it", figures.show(report["peak"]["reload"])),
        *((key.removesuffix("_s"), f"{v['median']:.1f} s") for key, v in report["seconds"].items()),
        ("two copies of the checkpoint", f"{report['two_copies_s']['median']:.1f} s"),
    ]
    figures.table(("export", ""), rows)


def _headline(report: Mapping[str, Any]) -> str:
    return (
        f"export over two copies of the checkpoint: {figures.show(report['over_two_copies'])}; "
        f"peak memory over the weights: {figures.show(report['peak']['export'])}, goal {GOAL}"
    )


if __name__ == "__main__":
    main()
