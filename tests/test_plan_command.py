"""`openqwen2vl plan`: the paper's hours, refusals with the knob that would do, packs and probe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compose import composed
from support.runs import TINY_MODEL, Run, assert_one_message

from openqwen2vl.callbacks.throughput import PEAKS
from openqwen2vl.commands._assemble import build_model
from openqwen2vl.commands._plan_model import meta_model
from openqwen2vl.commands._plan_table import said
from openqwen2vl.commands.plan import SCHEMA
from openqwen2vl.config import check
from openqwen2vl.training.activations import MemorySpec
from openqwen2vl.training.flops import FlopSpec

PAPER = ("plan", "stage=pretrain", "tokens=5e9", "images=29e6", "hardware=a100_40g", "json=true")
GENEROUS = ("hardware.memory_gib=200", "devices=2")
PROFILES = ["a100_40g", "a100_80g", "h100", "h200", "l40s", "rtx_4090", "cpu"]


def planned(told: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = told
    assert code == 0, err
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    return figures


@pytest.mark.parametrize(("mfu", "hours"), [(0.24, 220), (0.12, 442)])
def test_the_papers_data_takes_the_papers_hours(call: Run, mfu: float, hours: float) -> None:
    figures = planned(call(*PAPER, f"hardware.mfu={mfu}", "devices=8"))
    assert figures["gpu_hours"] == pytest.approx(hours, rel=0.01)
    assert figures["wall_hours"] == pytest.approx(figures["gpu_hours"] / 8)
    low, high = figures["gpu_hours_range"]
    assert low < figures["gpu_hours"] < high
    assert sum(v for k, v in figures["flops"].items() if k != "total") == figures["flops"]["total"]
    assert figures["flops"]["tower"] / figures["flops"]["total"] == pytest.approx(0.31, abs=0.01)
    assert figures["tokens"] == pytest.approx(5e9, rel=1e-3)
    assert figures["images"] == pytest.approx(29e6, rel=1e-3)


def test_the_shipped_model_has_the_papers_sizes_without_weights_or_network() -> None:
    model = meta_model(composed("stage=pretrain", name="plan"), 0)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    sizes = {name: part.total for name, part in model.trainable_summary().items()}
    assert sizes == {"vision": 397_745_440, "projector": 4_131_840, "llm": 1_543_714_304}
    spec = MemorySpec.of(model)
    assert (spec.layers, spec.width, spec.heads, spec.keys, spec.feed) == (28, 1536, 12, 256, 8960)
    assert (spec.vocabulary, spec.tower_blocks, spec.tower_width) == (151_936, 26, 1152)
    assert (spec.tower_hidden, spec.tower_tokens, spec.tower_side) == (4304, 729, 384)


@pytest.mark.parametrize("trainable", [True, False])
def test_sizes_from_the_config_are_those_of_the_built_model(trainable: bool) -> None:
    words = [*TINY_MODEL, "stage=pretrain", f"trainable.vision={str(trainable).lower()}"]
    config = composed(*words, name="plan")
    built, shapes = build_model(config, 700), meta_model(config, 700)
    assert FlopSpec.of(shapes) == FlopSpec.of(built)
    assert MemorySpec.of(shapes) == MemorySpec.of(built)


def test_the_sizes_of_a_folder_are_read_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen2",
                "hidden_size": 64,
                "num_hidden_layers": 5,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 96,
                "vocab_size": 320,
            }
        )
    )
    config = composed("stage=pretrain", f"llm.path={tmp_path}", name="plan")
    spec = MemorySpec.of(meta_model(config, 0))
    assert (spec.layers, spec.width, spec.feed, spec.vocabulary) == (5, 64, 96, 320)


def test_a_name_that_cannot_be_reached_is_told(call: Run) -> None:
    told = call(*PAPER, "llm.path=nobody/nothing")
    assert_one_message(told, 'the sizes of the language model "nobody/nothing"', "config.json")


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_sound_and_has_the_peak_that_the_log_divides_by(name: str) -> None:
    config = composed("stage=sft", f"hardware={name}", name="plan")
    check(config, SCHEMA)
    known = {key.replace("RTX ", ""): peak for key, peak in PEAKS.items()}
    named = next((key for key in known if key in config.hardware.name), None)
    assert named is None or config.hardware.peak_tflops == known[named]
    assert (named is None) == (name == "cpu")


def test_memory_that_will_not_do_is_refused_with_the_knobs_that_would(call: Run) -> None:
    code, out, err = call(*PAPER, "hardware=l40s", "data.micro_batch=4")
    assert code == 2
    figures = json.loads(out.splitlines()[-1])
    assert not figures["fits"]
    assert figures["memory"]["peak"] > figures["memory"]["available"]
    assert "memory: a device needs" in err
    (line,) = [line for line in err.splitlines() if "memory:" in line]
    ways = remedies(line)
    assert "checkpointing=full" in ways
    assert any(way.startswith("data.micro_batch=") for way in ways)
    for way, size in ways.items():  # what is advised does do, with the memory it says
        told = planned(call(*PAPER, "hardware=l40s", "data.micro_batch=4", *way.split()))
        assert said(told["memory"]["peak"]) == size, way


def remedies(line: str) -> dict[str, str]:
    """Give the changes that a refusal names, and what a device would hold."""
    told = line.split("these would do: ")[1].rstrip(")").split("); ")
    return {way: size for way, _, size in (one.partition(" (") for one in told)}


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["devices=1", "checkpointing=full"], "strategy.cpu_offload=true"),
        (["strategy=single"], "strategy=fsdp strategy.cpu_offload=true devices=1"),
    ],
)
def test_a_small_device_is_told_to_offload(call: Run, words: list[str], way: str) -> None:
    code, _, err = call(*PAPER, "hardware=rtx_4090", *words)
    assert code == 2
    assert "Traceback" not in err
    size = remedies(err.splitlines()[-1])[way]
    figures = planned(call(*PAPER, "hardware=rtx_4090", *words, *way.split()))
    # Weights, gradients and two moments in fp32, and gradients of earlier micro-batches.
    trained = sum(part["trainable"] for part in figures["parameters"].values())
    assert figures["host"]["memory"] == 20 * trained
    told = said(figures["memory"]["peak"]), said(figures["host"]["memory"])
    assert size == f"{told[0]}, and {told[1]} of each host's memory"
    assert figures["memory"]["weights"] == figures["memory"]["optimizer"] == 0


def test_offload_shares_the_host_and_counts_what_it_moves(call: Run) -> None:
    plain = planned(call(*PAPER, "devices=16"))
    assert plain["host"] == {"memory": 0, "moved_a_step": 0}
    # Two nodes of eight; one micro-batch a step.
    words = ("devices=16", "strategy.cpu_offload=true", "data.global_batch=32")
    figures = planned(call(*PAPER, *words, "data.micro_batch=2"))
    trained = sum(part["trainable"] for part in figures["parameters"].values())
    assert figures["host"]["memory"] == pytest.approx(16 * trained / 2)
    layers = MemorySpec.of(meta_model(composed("stage=pretrain", name="plan"), 0))
    moved = 4 * (2 * trained + layers.unit * layers.layers)
    assert figures["host"]["moved_a_step"] == pytest.approx(moved / 16)
    # Processes on a CPU have nothing to offload from.
    on_cpu = planned(call(*PAPER, "hardware=cpu", "strategy.cpu_offload=true", *GENEROUS))
    assert on_cpu["host"]["memory"] == 0


def test_disk_that_will_not_do_is_refused(call: Run) -> None:
    told = call(*PAPER, "disk=3e12")
    assert_one_message(told, "disk: 5.58 TB are to be written", "callbacks.checkpoints.keep=1")
    assert call(*PAPER, "disk=6e12")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images=null"], "give images=N"),
        (["images=1e8"], "take more than the 5,000,000,000 tokens"),
        (["tokens=null"], "images and documents describe data by numbers; give tokens"),
        (["hardware.mfu=1.2"], "mfu 1.2"),
        (["devices=3"], "nearest: 255 or 258"),
        (["strategy=single", "devices=2"], "devices is 2; expected 1 with strategy=single"),
        (["probe=30"], "it wants packs (no tokens=)"),
        (["resolution.plan=[{grid: 30, until: 1}]", "images=1e6"], "only 27 x 27 patches"),
        (["fil=0.9"], "'fil'"),
    ],
)
def test_plans_that_cannot_be_meant_are_answered(call: Run, words: list[str], message: str) -> None:
    assert_one_message(call(*PAPER, *words), message)


def test_neither_packs_nor_numbers_is_answered(call: Run) -> None:
    told = call("plan", "stage=pretrain")
    assert_one_message(told, "no manifest.json in packs/ccs-g12", "tokens=N images=N")


def test_a_plan_makes_no_folder(call: Run, tmp_path: Path) -> None:
    planned(call(*PAPER))
    assert list(tmp_path.iterdir()) == []
    assert not torch.distributed.is_initialized()
