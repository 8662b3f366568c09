import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench"
SPREAD = {"median", "min", "max"}

pytestmark = pytest.mark.slow


def quick(script: str, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Run a bench as CI does; gives its figures and the lines it printed."""
    words = [sys.executable, BENCH / script, "--quick", "--json", out]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout.splitlines()


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return quick("train_step.py", tmp_path_factory.mktemp("bench") / "step.json")


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return quick("loader.py", tmp_path_factory.mktemp("bench") / "loader.json")


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return quick("packing.py", tmp_path_factory.mktemp("bench") / "packing.json")


@pytest.fixture(scope="module")
def verifying(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return quick("verify.py", tmp_path_factory.mktemp("bench") / "verify.json")


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    return quick("online.py", tmp_path_factory.mktemp("bench") / "online.json")


def test_step_measures_every_variant(step: tuple[dict[str, Any], list[str]]) -> None:
    figures, _ = step
    assert set(figures["variants"]) == {"ours", "padded", "grouped", "full"}
    for row in figures["variants"].values():
        assert set(row["tokens_per_s"]) == SPREAD
        assert 0 < row["mfu"] < 2
        assert 0 < row["step_mib"] < row["peak_mib"]
    for ratio in figures["ratios"].values():
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert set(figures["memory_ratios"]) == set(figures["ratios"]) == {"padded", "grouped", "full"}


def test_isolated_packs_have_the_loss_of_padded_rows(
    step: tuple[dict[str, Any], list[str]],
) -> None:
    losses = {name: row["loss_first"] for name, row in step[0]["variants"].items()}
    assert losses["padded"] == pytest.approx(losses["ours"], abs=1e-5)
    assert losses["grouped"] == pytest.approx(losses["ours"], abs=1e-5)


def test_packs_that_leak_have_another_loss(step: tuple[dict[str, Any], list[str]]) -> None:
    losses = {name: row["loss_first"] for name, row in step[0]["variants"].items()}
    assert abs(losses["full"] - losses["ours"]) > 1e-4


def test_step_computes_fewer_positions_for_the_same_tokens_than_it_pads(
    step: tuple[dict[str, Any], list[str]],
) -> None:
    figures, _ = step
    positions = {name: row["positions"] for name, row in figures["variants"].items()}
    assert figures["data"]["tokens"] <= positions["ours"] < positions["padded"]
    assert positions["full"] == positions["ours"]
    assert positions["grouped"] < positions["padded"]


def test_loader_gives_the_batches_of_the_naive_one(
    loader: tuple[dict[str, Any], list[str]],
) -> None:
    figures, _ = loader
    assert figures["same_batches"] is True
    differ = figures["pixel_difference"]
    assert differ["pillow"] <= 2
    assert differ.get("simplejpeg", 0) <= 2
    assert differ["drafts"] > 2


def test_loader_measures_overhead_and_decoding(loader: tuple[dict[str, Any], list[str]]) -> None:
    figures, _ = loader
    sizes = ("384 x 384", "512 x 384", "1024 x 768")
    decoders = [name for name in figures["pixel_difference"] if name != "drafts"]
    ways = {f"{decoder} {size}" for decoder in decoders for size in sizes}
    ways |= {"overhead", "drafts 1024 x 768"}
    assert set(figures["ratios"]) == set(figures["tokens_per_s"]) == ways
    assert all(set(pair) == {"ours", "naive"} for pair in figures["tokens_per_s"].values())
    assert set(figures["data_loader_tokens_per_s"]) == {"384 x 384", "512 x 384"}
    assert figures["data"]["tokens_per_document"] == pytest.approx(172.4, abs=8)


def test_packing_gives_the_bins_of_the_definition_faster(
    packing: tuple[dict[str, Any], list[str]],
) -> None:
    for size, kinds in packing[0]["speed"].items():
        assert set(kinds) == {"captions", "conversations"}, size
        assert all(found["same_bins"] for found in kinds.values())
    assert packing[0]["speed"]["1000"]["captions"]["ratio"]["min"] > 1


def test_packing_measures_every_packer_beside_the_bound(
    packing: tuple[dict[str, Any], list[str]],
) -> None:
    packers = {"first_fit_decreasing", "seed_fill_close", "cutting_stock", "auto"}
    assert len(packing[0]["fill"]) == 5
    for found in packing[0]["fill"].values():
        fills = {name: figures["fill"] for name, figures in found["packers"].items()}
        assert set(fills) == packers
        assert 0.9 < max(fills.values()) <= found["bound"] <= 1
        assert fills["auto"] == max(fills["first_fit_decreasing"], fills["seed_fill_close"])
        assert fills["auto"] == fills[found["auto_took"]]


def test_packing_keeps_bytes_that_pixels_multiply(
    packing: tuple[dict[str, Any], list[str]],
) -> None:
    whole = packing[0]["end_to_end"]
    sizes = whole["kib_per_document"]
    assert sizes["ours"] < 1.1 * whole["kib_per_image"] < sizes["pixels"]
    assert sizes["pixels"] == pytest.approx(3 * 384 * 384 / 1024, rel=0.02)


def test_verify_measures_both_modes_at_each_size(
    verifying: tuple[dict[str, Any], list[str]],
) -> None:
    assert set(verifying[0]["corpora"]) == {"1000", "15000", "75000"}
    for modes in verifying[0]["corpora"].values():
        for mode in ("index", "deep"):
            found = modes[mode]
            assert found["same_counts"] is True
            assert found["documents_per_s"]["ours"]["min"] > 0
            assert (found["megabytes_per_s"]["ours"]["min"] > 0) == (mode == "deep")
    assert verifying[0]["corpora"]["1000"]["index"]["ratio"]["max"] > 1


def test_online_gives_the_packs_that_were_written(online: tuple[dict[str, Any], list[str]]) -> None:
    figures, _ = online
    assert figures["same_packs"] is True
    assert set(figures["tokens_per_s"]) == {"online", "packed"}
    assert 0 < figures["ratio"]["min"] <= figures["ratio"]["max"]


@pytest.mark.parametrize("name", ["step", "loader", "packing", "verifying", "online"])
def test_the_last_line_is_the_headline_ratio(name: str, request: pytest.FixtureRequest) -> None:
    figures, lines = request.getfixturevalue(name)
    assert lines[-1] == figures["headline"]
    assert "x (" in lines[-1]
    assert set(figures["machine"]) == {"processor", "cores", "python", "versions", "commit"}


@pytest.mark.parametrize("script", ["curation.py", "duplicates.py", "reshard.py", "selection.py"])
def test_the_benches_of_curation_compare_with_a_plain_way(script: str, tmp_path: Path) -> None:
    figures, lines = quick(script, tmp_path / "figures.json")
    assert lines[-1] == figures["headline"]
    assert "x (" in lines[-1]
    assert "polars" in figures["machine"]["versions"]


def test_a_variant_that_fails_gets_a_word_instead_of_figures(tmp_path: Path) -> None:
    words = [sys.executable, BENCH / "train_step.py", "--quick", "--variant", "ours"]
    # Finer than the tower's patches: the model refuses, in the variant's own process.
    words += ["--grid", "7", "--json", tmp_path / "step.json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "grid 7" in json.loads((tmp_path / "step.json").read_text())["variants"]["ours"]["error"]
    assert done.stdout.splitlines()[-1].startswith("no ratio")
