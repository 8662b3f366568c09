"""Does this device compute what it should? `gpu.py` asks before it believes any speed.

python bench/gpu_gate.py --packs-at DIR --model tiny --device cpu
"""

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from gpu_step import Micro, Runner, Ways
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from openqwen2vl.model.attention import packed_attention
from openqwen2vl.training.loss import batch_losses, read_rows, target_losses

# Relative errors that bf16 allows.
BOUNDS = {
    "attention against float32, forward": 1e-2,
    "attention against float32, backward": 2e-2,
    "a document against changed neighbours": 0.0,
    "loss against all logits": 2e-3,
    "compiled loss against uncompiled": 1e-2,
}


def main() -> None:
    """Check and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs-at", type=Path, required=True)
    parser.add_argument("--model", default="2b")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    print(json.dumps({"checks": checks(options)}))


def checks(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Give each check's error, its bound and whether it is kept."""
    runner = Runner(Ways(compile=False, packs=1), options)
    forward, backward = attention_errors(runner)
    uncompiled, everywhere = losses(runner)
    runner.model.compile("inductor" if runner.device.type == "cuda" else "aot_eager")
    compiled, _ = losses(runner)
    found = {
        "attention against float32, forward": forward,
        "attention against float32, backward": backward,
        "a document against changed neighbours": leak(runner),
        "loss against all logits": abs(uncompiled / everywhere - 1),
        "compiled loss against uncompiled": abs(compiled / uncompiled - 1),
    }
    return {
        name: {"error": error, "bound": BOUNDS[name], "kept": error <= BOUNDS[name]}
        for name, error in found.items()
    }


def attention_errors(runner: Runner) -> tuple[float, float]:
    """Compare the device's own kernel in bf16 with one call per document in float32.

    Boundaries are a real pack's; heads are the model's, grouped.
    """
    batch, config = runner.batches[0], runner.model.llm.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    length = batch["input_ids"].shape[1]
    generator = torch.Generator(runner.device).manual_seed(0)
    drawn = [
        torch.randn(1, count, length, width, device=runner.device, generator=generator)
        for count in (heads, groups, groups)
    ]
    results = []
    for backend, dtype in (("auto", torch.bfloat16), ("sdpa", torch.float32)):
        tensors = [one.to(torch.bfloat16).to(dtype).requires_grad_() for one in drawn]
        mixed, _ = packed_attention(
            nn.Identity(),
            *tensors,
            None,
            cu_seq_lens_q=batch["cu_seqlens"],
            max_length_q=batch["max_length"],
            attention_backend=backend,
        )
        mixed.float().square().mean().backward()
        grads = torch.cat([one.grad.float().flatten() for one in tensors if one.grad is not None])
        results.append((mixed.detach().float(), grads))
    (ours, slope), (theirs, their_slope) = results
    return _relative(ours, theirs), _relative(slope, their_slope)


def leak(runner: Runner) -> float:
    """Change a pack's first document: the largest change of any other's hidden states.

    Raises:
        AssertionError: the changed document stayed the same, so nothing was checked.
    """
    batch = runner.batches[0]
    documents = batch["document_ids"]
    first, others = documents == 0, documents > 0
    changed = torch.where(first, (batch["input_ids"] + 1) % 100, batch["input_ids"])
    before, after = _hidden(runner, batch), _hidden(runner, {**batch, "input_ids": changed})
    assert not torch.equal(before[first], after[first])
    return float((after - before)[others].abs().max())


def losses(runner: Runner) -> tuple[float, float]:
    """Give the mean loss of a step's targets: in chunks of gathered rows, and by all logits."""
    batch = runner.batches[0]
    with _computing(runner):
        ours = batch_losses(runner.model, batch, target_losses).mean()
        rows = read_rows(runner.model, batch, batch["target_positions"]).detach()
        logits = runner.model.head(rows).float()
        return float(ours.detach()), float(cross_entropy(logits, batch["target_ids"]).detach())


def _hidden(runner: Runner, batch: Micro) -> Tensor:
    with torch.no_grad(), _computing(runner):
        hidden = read_rows(runner.model, batch, None)
    return hidden.reshape(*batch["input_ids"].shape, -1)


def _computing(runner: Runner) -> AbstractContextManager[object]:
    """Give autocast as a run on this device has it."""
    cuda = runner.device.type == "cuda"
    return torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


if __name__ == "__main__":
    main()
