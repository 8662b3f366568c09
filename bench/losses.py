"""Which implementation of the loss is the fastest on this device, and do they agree?

    python bench/losses.py                   # shapes that a CPU can take
    python bench/losses.py --device cuda     # the 2B model's head

Forward and backward of the head and the loss alone, on gathered target rows, as training calls
them; one loss a target, weighted like those of two sources. The ways take turns, round by round.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import figures
import torch
from torch import Tensor, nn
from torch.nn import functional

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.loss_choices import LOSSES, choose_losses

# Targets, width, vocabulary: the tiny model's step, and a head as wide as fits a CPU's patience.
SHAPES = {"cpu": ((400, 64, 1000), (128, 512, 32_000)), "cuda": ((2700, 1536, 151_936),)}
QUICK = ((32, 16, 500),)
OWN_CHUNKS = "linear_cross_entropy, its own chunks"
FULL = "all logits at once"
AGREE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # relative, of the head's gradient


def main() -> None:
    """Time all ways at all shapes and print each shape's table, then the headline."""
    options = _options()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    shapes = QUICK if options.quick else SHAPES[device.type]
    measured = [_measure(shape, device, options.rounds) for shape in shapes]
    for shape in measured:
        _print(shape)
    report = {
        "bench": "losses",
        "machine": figures.machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "shapes": measured,
    }
    figures.finish(report, _headline(measured[-1]), options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    return options


def _ways(device: torch.device) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str]]:
    """Give what runs here, ours first, and why the others do not."""
    ways: dict[str, Callable[..., Tensor]] = {}
    lacking: dict[str, str] = {}
    for name in LOSSES[1:]:
        try:
            ways[name] = choose_losses(name, device.type)
        except ConfigError as error:
            lacking[name] = str(error)
    if "linear_cross_entropy" in ways:
        options = nn.LinearCrossEntropyOptions()
        ways[OWN_CHUNKS] = partial(_torchs, options=options)
    ways[FULL] = _full
    return ways, lacking


def _torchs(rows: Tensor, ids: Tensor, head: Tensor, **given: Any) -> Tensor:
    return functional.linear_cross_entropy(rows, head, ids, reduction="none", **given)


def _full(rows: Tensor, ids: Tensor, head: Tensor) -> Tensor:
    return functional.cross_entropy((rows @ head.T).float(), ids, reduction="none")


def _measure(shape: tuple[int, int, int], device: torch.device, rounds: int) -> dict[str, Any]:
    targets, width, vocabulary = shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    head = torch.randn(vocabulary, width, device=device).mul_(width**-0.5).to(dtype)
    inputs = torch.randn(targets, width, device=device).to(dtype), head
    ids = torch.randint(0, vocabulary, (targets,), device=device)
    ways, lacking = _ways(device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            spent, peak, gradient = _once(way, inputs, ids)
            if turn == 0:  # what is made at the first call
                found[name] = (peak, gradient.float())
            else:
                seconds[name].append(spent)
    ours, scale = seconds["chunked"], found[FULL][1].norm()
    differ = {n: float((g - found[FULL][1]).norm() / scale) for n, (_, g) in found.items()}
    return {
        "targets": targets,
        "width": width,
        "vocabulary": vocabulary,
        "dtype": str(dtype),
        "ms": {n: figures.spread([1e3 * one for one in s]) for n, s in seconds.items()},
        "ratios": {n: figures.ratios(s, ours) for n, s in seconds.items() if n != "chunked"},
        "peak_mib": {name: peak for name, (peak, _) in found.items()},
        "gradient_error": differ,
        "wrong": [name for name, error in differ.items() if not error < AGREE[dtype]],
        "lacking": lacking,
    }


def _once(
    way: Callable[..., Tensor], inputs: tuple[Tensor, Tensor], ids: Tensor
) -> tuple[float, float | None, Tensor]:
    """One pass there and back: seconds, peak MiB above what lies there (GPU), head's gradient."""
    rows, head = (tensor.detach().requires_grad_() for tensor in inputs)
    weights = torch.full((len(ids),), 1 / len(ids), device=ids.device)
    weights[: len(ids) // 3] *= 2
    cuda = ids.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    # On a CPU the time that the processor worked: a busy neighbour slows a round, not a way.
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    (way(rows, ids, head).float() * weights).sum().backward()
    if cuda:
        torch.cuda.synchronize()
    spent = clock() - start
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else None
    assert head.grad is not None
    return spent, peak, head.grad


def _print(shape: dict[str, Any]) -> None:
    print(
        f"{shape['targets']} targets, width {shape['width']}, vocabulary {shape['vocabulary']}, "
        f"{shape['dtype'].removeprefix('torch.')}"
    )
    rows = []
    for name, spent in shape["ms"].items():
        ratio, peak = shape["ratios"].get(name), shape["peak_mib"][name]
        rows.append(
            (
                name,
                f"{spent['median']:.1f}",
                figures.show(ratio) if ratio else "-",
                "-" if peak is None else f"{peak:.0f}",
                f"{shape['gradient_error'][name]:.1e}",
            )
        )
    figures.table(("", "ms", "ours is", "peak MiB", "gradient differs"), rows)
    for name, reason in shape["lacking"].items():
        print(f"{name}: not run: {reason}")
    if shape["wrong"]:
        print(f"WRONG: the gradient differs in {', '.join(shape['wrong'])}")


def _headline(shape: dict[str, Any]) -> str:
    others = {name: ratio["median"] for name, ratio in shape["ratios"].items()}
    fastest = min(others, key=lambda name: others[name])
    return (
        f"ours against the fastest other ({fastest}), vocabulary {shape['vocabulary']}: "
        f"{figures.show(shape['ratios'][fastest])}"
    )


if __name__ == "__main__":
    main()
