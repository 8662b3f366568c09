import pytest
import torch
from support.models import tiny_mllm
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.optim import (
    adamw,
    decayed_names,
    keep_rates,
    plain_name,
    skip_update,
    told_rates,
)

WEIGHT_DECAY = 0.1


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv2d(3, 4, 2)
        # A bias of two dimensions is still a bias.
        self.grid = nn.Module()
        self.grid.bias = nn.Parameter(torch.zeros(2, 2))


def groups(
    module: nn.Module, decayed: frozenset[str], prefix: str = ""
) -> tuple[set[str], set[str]]:
    """Give the names that AdamW decays and those that it does not."""
    named = [(prefix + name, parameter) for name, parameter in module.named_parameters()]
    optimizer = adamw(named, decayed, lr=0.1, weight_decay=WEIGHT_DECAY)
    names = {id(parameter): name for name, parameter in named}
    pulled, free = optimizer.param_groups
    assert (pulled["weight_decay"], free["weight_decay"]) == (WEIGHT_DECAY, 0.0)
    assert pulled["lr"] == free["lr"] == 0.1
    return {names[id(p)] for p in pulled["params"]}, {names[id(p)] for p in free["params"]}


def test_matrices_and_embeddings_decay_but_biases_and_norms_do_not() -> None:
    module = Small()
    pulled, free = groups(module, decayed_names(module))
    assert pulled == {"embedding.weight", "layer.weight", "conv.weight"}
    assert free == {"layer.bias", "norm.weight", "norm.bias", "conv.bias", "grid.bias"}


def test_every_trainable_parameter_of_the_model_is_in_one_group() -> None:
    model = tiny_mllm()
    pulled, free = groups(model, decayed_names(model))
    assert pulled | free == {name for name, _ in model.named_parameters()}
    assert not pulled & free
    assert "llm.model.embed_tokens.weight" in pulled
    assert any(name.endswith("q_proj.bias") for name in free)
    assert all("norm" in name or name.endswith("bias") for name in free)


def test_frozen_parameters_stay_out() -> None:
    module = Small()
    module.layer.requires_grad_(False)
    pulled, free = groups(module, decayed_names(module))
    assert not {name for name in pulled | free if name.startswith("layer")}


@pytest.mark.parametrize(
    "wrapping",
    [
        "_fsdp_wrapped_module.",
        "_checkpoint_wrapped_module.",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.",
    ],
)
def test_wrapped_and_flattened_parameters_keep_their_group(wrapping: str) -> None:
    module = Small()
    decayed = decayed_names(module)
    # FSDP gives each rank a flat piece of every parameter: its shape tells nothing any more.
    for name, parameter in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Parameter(parameter.detach().flatten()))
    pulled, free = groups(module, decayed, prefix=wrapping)
    assert {plain_name(name) for name in pulled} == {
        "embedding.weight",
        "layer.weight",
        "conv.weight",
    }
    assert len(free) == 5


def test_wrappers_are_taken_out_of_names_wherever_they_stand() -> None:
    wrapped = "_fsdp_wrapped_module.llm.layers.0._checkpoint_wrapped_module.mlp.weight"
    assert plain_name(wrapped) == "llm.layers.0.mlp.weight"
    assert plain_name("llm.layers.0.mlp.weight") == "llm.layers.0.mlp.weight"


def test_one_step_is_the_step_of_the_formula() -> None:
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = adamw([("w", parameter)], frozenset({"w"}), lr=0.5, weight_decay=0.2)
    parameter.grad = torch.tensor([[3.0, -4.0]])
    optimizer.step()
    # Decoupled decay, then a first Adam step, which is the sign of the gradient.
    wanted = torch.tensor([[1.0, -2.0]]) * (1 - 0.5 * 0.2) - 0.5 * torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(parameter.data, wanted)


@pytest.mark.parametrize("arguments", [{"lr": -1.0}, {"lr": 0.1, "weight_decay": -0.1}])
def test_a_rate_or_decay_below_zero_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="neither may be below 0"):
        adamw([("w", nn.Parameter(torch.ones(1)))], frozenset(), **arguments)


def stepped(fused: bool, gradients: list[float]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weights, first moment and step count after these gradients, skipping what is no number."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = adamw([("p", parameter)], frozenset(), lr=0.1, fused=fused)
    for value in gradients:
        parameter.grad = torch.full((3,), value)
        skip_update(optimizer, ~torch.isfinite(parameter.grad.norm()))
        optimizer.step()
    state = optimizer.state[parameter]
    return parameter.detach(), state["exp_avg"], float(state["step"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_skipped_step_leaves_weights_moments_and_count_as_if_it_had_not_been(
    fused: bool, bad: float
) -> None:
    weights, moment, count = stepped(fused, [0.5, bad, bad, -0.25])
    expected = stepped(fused, [0.5, -0.25])
    torch.testing.assert_close((weights, moment), expected[:2], rtol=0, atol=0)
    assert count == expected[2] == 2


def scheduled(lr: float, decay: float) -> tuple[torch.optim.AdamW, LambdaLR]:
    module = Small()
    optimizer = adamw(module.named_parameters(), decayed_names(module), lr, decay, betas=(0.9, lr))
    return optimizer, LambdaLR(optimizer, lambda step: 1 / (step + 3))


def test_a_resumed_run_goes_on_with_the_rates_of_its_config() -> None:
    before, curve = scheduled(1e-3, 0.1)
    for _ in range(5):
        before.step()
        curve.step()
    for lr, decay in ((1e-3, 0.1), (1e-5, 0.3)):
        optimizer, scheduler = scheduled(lr, decay)
        told = told_rates(optimizer)
        optimizer.load_state_dict(before.state_dict())
        scheduler.load_state_dict(curve.state_dict())
        keep_rates(optimizer, scheduler, told)
        for step in (5, 6):
            pulled, free = optimizer.param_groups
            assert pulled["lr"] == free["lr"] == lr * (1 / (step + 3))
            assert (pulled["weight_decay"], free["weight_decay"]) == (decay, 0.0)
            assert pulled["betas"] == (0.9, lr)
            optimizer.step()
            scheduler.step()
