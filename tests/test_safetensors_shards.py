"""Weights written by us are those that the safetensors library reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from openqwen2vl.release.shards import INDEX, write_shards

SHAPES = st.dictionaries(
    st.text("abcdefgh._\u00e9", min_size=1, max_size=9),
    st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    min_size=1,
    max_size=8,
)


def made(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Give numbers that bfloat16 cannot hold, in another order of memory."""
    torch.manual_seed(0)
    for name, shape in shapes.items():
        yield name, torch.randn(*reversed(shape)).permute(*range(len(shape))[::-1])


@settings(max_examples=50, deadline=None)
@given(
    shapes=SHAPES,
    most=st.integers(1, 900),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[int, ...]],
    most: int,
    dtype: torch.dtype,
) -> None:
    folder: Path = tmp_path_factory.mktemp("shards")
    size = write_shards(folder, shapes, made(shapes), dtype, most)
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    assert (folder / INDEX).exists() == (len(files) > 1)
    held = {name: value for file in files for name, value in file.items()}
    assert held.keys() == shapes.keys()
    for name, value in made(shapes):
        assert torch.equal(held[name], value.to(dtype))
    assert size == sum(value.nbytes for value in held.values())
    for file in files:
        assert len(file) == 1 or sum(value.nbytes for value in file.values()) <= most


def test_tensors_that_were_not_announced_are_refused(tmp_path: Path) -> None:
    for came in ([("b", torch.ones(2))], [("a", torch.ones(3))], []):
        with pytest.raises(ValueError, match=r"a \(2,\) was to be written"):
            write_shards(tmp_path, {"a": (2,)}, iter(came), torch.float32, 100)
        assert list(tmp_path.iterdir()) == []
