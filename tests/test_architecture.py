from pathlib import Path

import pytest
from support.architecture import (
    FLOORS,
    PACKAGE,
    PICKLE_READER,
    RING,
    floor_faults,
    library_faults,
    ring_faults,
    size_faults,
    sources,
)

ROOT = Path(__file__).parents[1]


def plant(root: Path, name: str, text: str) -> Path:
    """Write one file of a small tree; `name` is relative to the repository's root."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


def test_imports_go_down_only_and_every_room_has_a_floor() -> None:
    assert floor_faults(ROOT) == []


def test_only_conf_names_the_outer_ring() -> None:
    assert ring_faults(ROOT) == []


def test_the_library_neither_configures_nor_prints_nor_unpickles() -> None:
    assert library_faults(ROOT) == []


def test_files_and_functions_stay_small() -> None:
    assert size_faults(ROOT) == []


def test_the_checker_reads_the_whole_package() -> None:
    names = {source.name for source in sources(ROOT)}
    assert {
        f"src/{PACKAGE}/__main__.py",
        PICKLE_READER,
        *(f"{room}/__init__.py" for room in RING),
    } <= names
    there = {path.name for path in (ROOT / "src" / PACKAGE).iterdir() if path.is_dir()}
    assert there - {"__pycache__"} <= set(FLOORS)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        (
            "src/openqwen2vl/formats/tokens.py",
            "from openqwen2vl.training.loss import target_losses",
            "floor 0 may not use floor 3",
        ),
        (
            "src/openqwen2vl/model/mllm.py",
            "def late():\n    import openqwen2vl.packing.batch",
            "model/mllm.py:2 imports openqwen2vl.packing.batch: floor 2 may not use floor 2",
        ),
        (
            "src/openqwen2vl/model/mllm.py",
            "from ..commands import train",
            "imports openqwen2vl.commands.train: floor 2 may not use floor 6",
        ),
        (
            "src/openqwen2vl/packing/order.py",
            "from openqwen2vl import config",
            "floor 2 may not use floor 5",
        ),
        ("callbacks/steps.py", "from openqwen2vl import config", "floor 5 may not use floor 5"),
        ("src/openqwen2vl/attic/box.py", "", "attic stands on no floor: add it to FLOORS"),
    ],
)
def test_an_import_that_goes_up_or_across_is_found(
    tmp_path: Path, name: str, text: str, fault: str
) -> None:
    (found,) = floor_faults(plant(tmp_path, name, text))
    assert fault in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "src/openqwen2vl/commands/train.py",
            "from openqwen2vl.callbacks.steps import StepMetrics",
        ),
        ("src/openqwen2vl/training/module.py", "import callbacks.steps"),
        ("src/openqwen2vl/training/module.py", "NAME = 'openqwen2vl.data_modules.packed.Packed'"),
        ("callbacks/steps.py", "from openqwen2vl.callbacks.boundary import ends_step"),
        ("callbacks/steps.py", "from openqwen2vl.data_modules.rows import PackedRows"),
        ("callbacks/steps.py", "from ..training import module"),
    ],
)
def test_whoever_names_the_ring_is_found(tmp_path: Path, name: str, text: str) -> None:
    assert len(ring_faults(plant(tmp_path, name, text))) == 1


def test_a_ring_file_may_use_its_neighbour_and_the_library(tmp_path: Path) -> None:
    text = "from openqwen2vl.training.module import MLLMModule\nfrom .boundary import ends_step\n"
    plant(tmp_path, "callbacks/steps.py", text)
    assert floor_faults(tmp_path) == ring_faults(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("packing/plan.py", "import hydra.utils", "imports hydra"),
        ("packing/plan.py", "from omegaconf import OmegaConf", "imports omegaconf"),
        ("config.py", "from hydra import compose", "imports hydra"),
        ("commands/pack.py", "import pickle", "imports pickle"),
        ("packing/plan.py", "print(1)", "prints"),
        ("training/checkpoint.py", "torch.load(path)", "weights_only=True"),
        ("training/checkpoint.py", "torch.load(path, weights_only=False)", "weights_only=True"),
        ("packing/reader.py", "np.load(path, allow_pickle=True)", "pickles"),
    ],
)
def test_what_a_library_must_not_do_is_found(
    tmp_path: Path, name: str, text: str, fault: str
) -> None:
    (found,) = library_faults(plant(tmp_path, f"src/openqwen2vl/{name}", text))
    assert fault in found


def test_a_command_may_compose_and_the_config_check_may_read_nodes(tmp_path: Path) -> None:
    plant(tmp_path, "src/openqwen2vl/commands/train.py", "import hydra, omegaconf\nprint(1)")
    plant(tmp_path, "src/openqwen2vl/config.py", "from omegaconf import OmegaConf")
    assert library_faults(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("packing/plan.py", "\n" * 301, "has 301 lines"),
        ("packing/utils.py", "", "name a file by what it is for"),
        ("packing/plan.py", "def f():\n" + "    1\n" * 45, "f has 46 lines"),
    ],
)
def test_what_has_grown_too_large_is_found(
    tmp_path: Path, name: str, text: str, fault: str
) -> None:
    (found,) = size_faults(plant(tmp_path, f"src/openqwen2vl/{name}", text))
    assert fault in found


def test_a_long_docstring_does_not_make_a_function_long(tmp_path: Path) -> None:
    said = '    """Say.' + "\n" * 60 + '    """\n'
    plant(tmp_path, "src/openqwen2vl/packing/plan.py", f"def f():\n{said}    return 1\n")
    assert size_faults(tmp_path) == []
