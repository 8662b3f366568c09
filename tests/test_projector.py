import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.projector import AvgPoolProjector, LinearProjector, MLPProjector, pool

PROJECTORS = [AvgPoolProjector, LinearProjector, MLPProjector]


def features(images, side, width, seed=0):
    return torch.randn(images, side * side, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(side=st.integers(1, 12), grid=st.integers(1, 12), images=st.integers(1, 3))
def test_pooling_averages_the_patches_under_each_cell(side, grid, images):
    if grid > side:
        return
    given_features = features(images, side, 5)
    pooled = pool(given_features, grid)
    square = given_features.view(images, side, side, 5)
    for row in range(grid):
        for column in range(grid):
            # A cell covers every patch it touches: floor of its start to ceiling of its end.
            rows = slice(row * side // grid, -((-(row + 1) * side) // grid))
            columns = slice(column * side // grid, -((-(column + 1) * side) // grid))
            expected = square[:, rows, columns].mean(dim=(1, 2))
            torch.testing.assert_close(pooled[:, row * grid + column], expected)


def test_pooling_to_the_patches_own_grid_changes_no_bit():
    given_features = features(2, 6, 8)
    assert torch.equal(pool(given_features, 6), given_features)


def test_the_papers_projector_is_pool_linear_exact_gelu_linear():
    projector = AvgPoolProjector(48, 64, grid=3)
    first, _, last = projector.layers
    given_features = features(2, 6, 48)
    middle = pool(given_features, 3) @ first.weight.T + first.bias
    exact = middle * 0.5 * (1 + torch.erf(middle / 2**0.5))
    torch.testing.assert_close(projector(given_features), exact @ last.weight.T + last.bias)


def test_the_papers_projector_has_the_papers_size():
    with torch.device("meta"):
        layers = [nn.Linear(1152, 1536), nn.Linear(1536, 1536)]
    expected = sum(p.numel() for layer in layers for p in layer.parameters())
    projector = AvgPoolProjector(1152, 1536, grid=12)
    assert sum(p.numel() for p in projector.parameters()) == expected == 4_131_840


@pytest.mark.parametrize("kind", PROJECTORS)
def test_the_grid_can_change_while_the_weights_stay(kind):
    projector = kind(48, 64, grid=3)
    assert projector(features(2, 6, 48)).shape == (2, 9, 64)
    projector.grid = 6
    assert projector(features(2, 6, 48)).shape == (2, 36, 64)


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize("grid", [3, 6])
def test_no_image_still_gives_every_weight_and_the_tower_a_gradient(kind, grid):
    projector = kind(48, 64, grid=grid)
    given_features = features(0, 6, 48).requires_grad_()
    tokens = projector(given_features)
    assert tokens.shape == (0, grid * grid, 64)
    tokens.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in projector.parameters())
    assert given_features.grad is not None


@pytest.mark.parametrize("kind", PROJECTORS)
def test_weights_depend_on_the_seed_and_leave_the_random_state_alone(kind):
    state = torch.get_rng_state()
    first, again, other = (kind(48, 64, grid=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_features_are_cast_to_the_weights_dtype():
    projector = AvgPoolProjector(48, 64, grid=3)
    assert projector(features(1, 6, 48).bfloat16()).dtype == torch.float32
    assert projector.bfloat16()(features(1, 6, 48)).dtype == torch.bfloat16


def test_a_grid_finer_than_the_patches_names_both():
    with pytest.raises(ValueError, match="grid 7 is finer than the tower's 6x6"):
        AvgPoolProjector(48, 64, grid=7)(features(1, 6, 48))


def test_a_grid_below_one_is_refused():
    with pytest.raises(ConfigError, match="grid is 0"):
        LinearProjector(48, 64, grid=0)
