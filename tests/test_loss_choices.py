"""Every implementation of the loss gives the same numbers; what cannot run here says so."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_mllm
from torch import Tensor
from torch.nn.functional import cross_entropy

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training import loss_choices
from openqwen2vl.training.loss import Losses, target_losses
from openqwen2vl.training.loss_choices import choose_losses, linear_cross_entropy_losses

HAS_OPERATOR = hasattr(torch.nn, "LinearCrossEntropyOptions")
needs_operator = pytest.mark.skipif(not HAS_OPERATOR, reason="this torch has no such operator")
IMPLEMENTATIONS = [
    target_losses,
    pytest.param(linear_cross_entropy_losses, marks=needs_operator),
]


@pytest.fixture(autouse=True)
def _asked_afresh() -> Iterator[None]:
    yield
    loss_choices._torch_operator.cache_clear()
    loss_choices._liger_operator.cache_clear()


def reference(hidden: Tensor, ids: Tensor, head: Tensor) -> Tensor:
    return cross_entropy(hidden @ head.T, ids, reduction="none")


def problem(rows: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=draw, dtype=dtype, requires_grad=True)
    head = torch.randn(50, 8, generator=draw, dtype=dtype, requires_grad=True)
    return hidden, torch.randint(0, 50, (rows,), generator=draw), head


def results(losses: Losses, rows: int, seed: int, dtype: torch.dtype) -> list[Any]:
    """Losses and gradients where every target has a weight of its own, as sources may have."""
    hidden, ids, head = problem(rows, seed, dtype)
    found = losses(hidden, ids, head)
    weights = torch.linspace(0.5, 2, rows, dtype=found.dtype)
    (found * weights).sum().backward()
    return [found.detach(), hidden.grad, head.grad]


@pytest.mark.parametrize("losses", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=["float64", "float32"]
)
@given(rows=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_values_and_gradients_are_those_of_full_logits(
    losses: Losses, dtype: torch.dtype, near: float, rows: int, chunk: int, seed: int
) -> None:
    before, loss_choices.CHUNK = loss_choices.CHUNK, chunk
    loss_choices._torch_operator.cache_clear()
    try:
        ours = results(losses, rows, seed, dtype)
    finally:
        loss_choices.CHUNK = before
    assert [tensor.dtype for tensor in ours] == [dtype] * 3
    torch.testing.assert_close(ours, results(reference, rows, seed, dtype), rtol=near, atol=near)


@pytest.mark.parametrize("losses", IMPLEMENTATIONS)
def test_no_target_still_leaves_a_graph(losses: Losses) -> None:
    hidden, ids, head = problem(0, 0, torch.float32)
    found = losses(hidden, ids, head)
    found.sum().backward()
    assert found.shape == (0,)
    assert head.grad is not None
    assert not head.grad.any()


@pytest.mark.parametrize("losses", IMPLEMENTATIONS)
def test_frozen_heads_and_frozen_rows_are_left_alone(losses: Losses) -> None:
    expected = results(reference, 5, 0, torch.float64)
    weights = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    hidden, ids, head = problem(5, 0, torch.float64)
    (losses(hidden, ids, head.detach()) * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, expected[1])
    (losses(hidden.detach(), ids, head) * weights).sum().backward()
    torch.testing.assert_close(head.grad, expected[2])


@pytest.mark.parametrize("losses", IMPLEMENTATIONS)
def test_under_autocast_losses_are_float32(losses: Losses) -> None:
    hidden, ids, head = problem(20, 0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(hidden, ids, head)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert head.grad is not None
    assert head.grad.dtype == torch.float32
    theirs = reference(hidden.detach(), ids, head.detach())
    torch.testing.assert_close(found, theirs, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("losses", IMPLEMENTATIONS)
def test_rows_and_targets_must_be_as_many(losses: Losses) -> None:
    hidden, ids, head = problem(5, 0, torch.float32)
    with pytest.raises(ValueError, match="5 hidden rows meet 4 targets"):
        losses(hidden, ids[:4], head)


@needs_operator
def test_a_tied_head_gets_both_its_gradients() -> None:
    gradients = []
    for losses in (linear_cross_entropy_losses, reference):
        model = tiny_mllm()
        ids = torch.arange(5, 15)
        rows = model.llm.get_input_embeddings()(ids)
        losses(rows, ids + 1, model.head_weight).sum().backward()
        gradients.append(model.head_weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@needs_operator
def test_torchs_operator_holds_a_chunk_of_logits_at_most() -> None:
    """Its buffers, as the profiler sees them: a whole set of logits is thrice the bound."""
    hidden, ids, head = problem(48, 0, torch.float32)
    head = torch.randn(5000, 8, requires_grad=True)
    loss_choices.CHUNK, before = 16, loss_choices.CHUNK
    loss_choices._torch_operator.cache_clear()
    try:
        linear_cross_entropy_losses(hidden, ids, head)  # proves the operator
        with torch.profiler.profile(profile_memory=True) as profile:
            linear_cross_entropy_losses(hidden, ids, head)
    finally:
        loss_choices.CHUNK = before
    held = max(event.cpu_memory_usage for event in profile.events())
    assert 16 * 5000 * 4 <= held < 2 * 16 * 5000 * 4


@needs_operator
def test_torchs_operator_reads_nothing_back() -> None:
    hidden, ids, head = problem(20, 0, torch.float32)
    with torch.profiler.profile() as profile:
        linear_cross_entropy_losses(hidden, ids, head).sum().backward()
    names = {event.name for event in profile.events()}
    assert "aten::mm" in names  # what the operator does inside is seen
    assert not names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}


def test_the_default_is_ours_on_every_device() -> None:
    assert choose_losses("auto", "cpu") is choose_losses("chunked", "cpu") is target_losses
    assert choose_losses("auto", "cuda") is target_losses


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match='loss is "fused"; choose one of auto, chunked'):
        choose_losses("fused", "cpu")


def test_liger_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="loss=liger runs Triton kernels, which need a CUDA"):
        choose_losses("liger", "cpu")


def test_a_missing_liger_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'openqwen2vl\[liger\]'"):
        choose_losses("liger", "cuda")


@pytest.mark.parametrize(("found", "good"), [("0.8.1", False), ("0.8.2", True), ("0.10", True)])
def test_a_liger_with_wrong_gradients_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: str, good: bool
) -> None:
    asked: dict[str, Any] = {}

    def build(**options: Any) -> Callable[..., Tensor]:
        asked.update(options)
        return lambda weight, rows, ids: reference(rows, ids, weight)

    kernels = SimpleNamespace(LigerFusedLinearCrossEntropyLoss=build)
    monkeypatch.setattr(loss_choices, "import_module", lambda name: kernels)
    monkeypatch.setattr(loss_choices, "version", lambda name: found)
    if not good:
        with pytest.raises(ConfigError, match=f"liger-kernel {found}, whose gradients"):
            choose_losses("liger", "cuda")
        return
    losses = choose_losses("liger", "cuda")
    hidden, ids, head = problem(5, 0, torch.float32)
    torch.testing.assert_close(losses(hidden, ids, head), reference(hidden, ids, head))
    assert losses(hidden[:0], ids[:0], head).shape == (0,)
    assert asked == {"reduction": "none", "accum_dtype": torch.float32}


@pytest.mark.parametrize("lack", ["operator", "chunks"])
def test_a_torch_without_the_operator_is_told(monkeypatch: pytest.MonkeyPatch, lack: str) -> None:
    functional = torch.nn.functional
    if lack == "operator":  # torch 2.11
        monkeypatch.delattr(functional, "linear_cross_entropy", raising=False)
    else:

        def unchunked(rows: Tensor, weight: Tensor, ids: Tensor, **options: Any) -> Tensor:
            warnings.warn("linear_cross_entropy: ``options`` ignored", stacklevel=2)
            return reference(rows, ids, weight)

        monkeypatch.setattr(functional, "linear_cross_entropy", unchunked, raising=False)
        monkeypatch.setattr(torch.nn, "LinearCrossEntropyOptions", lambda **_: None, raising=False)
    with pytest.raises(ConfigError, match="loss=linear_cross_entropy needs torch's operator"):
        choose_losses("linear_cross_entropy", "cpu")


LIGER_TRIAL = """
import sys
sys.path[:0] = {path!r}
import test_loss_choices as there
from openqwen2vl.training.loss_choices import liger_losses
import torch
for rows in (1, 13):
    ours = there.results(liger_losses, rows, 0, torch.float32)
    theirs = there.results(there.reference, rows, 0, torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
there.test_no_target_still_leaves_a_graph(liger_losses)
"""


@pytest.mark.slow
def test_ligers_kernel_gives_the_same_under_tritons_interpreter() -> None:
    """The kernel's own code, run by Triton's interpreter in a process that asks for it."""
    trial = LIGER_TRIAL.format(path=[str(Path(__file__).parent)])
    setting = {**os.environ, "TRITON_INTERPRET": "1"}
    words = [sys.executable, "-c", trial]
    done = subprocess.run(words, env=setting, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
