from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from support.compose import choices, composed, defaults, pairs

from openqwen2vl.__main__ import verbs
from openqwen2vl.commands.train import SCHEMA
from openqwen2vl.config import check
from openqwen2vl.formats.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"
GROUPS = [g for g in defaults("train") if g not in ("stage", "model", "mixture", "experiment")]
# The paper's table 7 and the official launch scripts.
PAPER = {
    "align": {"lr": 1e-3, "weight_decay": 0.0, "documents_per_step": 256, "grid": 27},
    "pretrain": {"lr": 5e-5, "weight_decay": 0.01, "global_batch": 256, "grid": 12},
    "sft": {"lr": 2e-5, "weight_decay": 0.1, "documents_per_step": 128, "grid": 27},
}


def targets(node: Any) -> Iterator[str]:
    """Yield every `_target_` of a plain config, at any depth."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    for value in node if isinstance(node, list) else []:
        yield from targets(value)


@pytest.mark.parametrize("overrides", list(pairs()), ids=" ".join)
def test_every_shipped_run_is_sound(overrides: tuple[str, ...]) -> None:
    check(composed(*overrides), SCHEMA)


@pytest.mark.parametrize("choice", [f"{g}={name}" for g in GROUPS for name in choices(g)])
def test_every_choice_of_every_group_is_sound(choice: str) -> None:
    check(composed("stage=pretrain", choice), SCHEMA)


def test_every_group_of_the_tree_is_used_by_a_command() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert groups == {group for verb in verbs() for group in defaults(verb)}


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_target_is_ours_or_lightnings_or_torchs(path: Path) -> None:
    # A class found as `data_modules.packed...` would be another class than ours from the wheel.
    for target in targets(yaml.safe_load(path.read_text())):
        assert target.startswith(("openqwen2vl.", "lightning.", "torch.")), target


@pytest.mark.parametrize("verb", verbs())
def test_a_commands_primary_holds_the_keys_that_its_schema_names(verb: str) -> None:
    schema = import_module(f"openqwen2vl.commands.{verb}").SCHEMA
    overrides = ("stage=pretrain",) if verb in ("train", "plan") else ()
    config = composed(*overrides, name=verb)
    assert {str(key) for key in config} == set(schema.keys)
    try:
        check(config, schema)
    except ConfigError as error:
        # What a user has to give is the only thing that may be wrong with it.
        faults = str(error).split("\n  ")[1:]
        assert [f for f in faults if not f.endswith(": must be given")] == []


@pytest.mark.parametrize("verb", verbs())
def test_a_no_is_not_taken_for_a_yes(verb: str) -> None:
    # Hydra leaves `no` a text, and every text is true.
    schema = import_module(f"openqwen2vl.commands.{verb}").SCHEMA
    shipped = yaml.safe_load((CONF / f"{verb}.yaml").read_text())
    switches = [key for key, value in shipped.items() if isinstance(value, bool)]
    assert "json" in switches
    for key in switches:
        stage = ("stage=pretrain",) if verb in ("train", "plan") else ()
        with pytest.raises(ConfigError, match=f"{key} is 'no'; expected true or false"):
            check(composed(*stage, f"{key}=no", name=verb), schema)


@pytest.mark.parametrize("stage", choices("stage"))
def test_stages_have_the_papers_hyper_parameters(stage: str) -> None:
    config = composed(f"stage={stage}")
    wanted = PAPER[stage]
    assert (config.optim.lr, config.optim.weight_decay) == (wanted["lr"], wanted["weight_decay"])
    assert config.data.global_batch == wanted.get("global_batch")
    assert config.data.documents_per_step == wanted.get("documents_per_step")
    assert [phase.grid for phase in config.resolution.plan] == [wanted["grid"]]
    assert config.clip == 1.0
    assert (config.schedule.shape, config.schedule.warmup, config.schedule.final) == (
        "cosine",
        0.03,
        0.0,
    )
    assert list(config.optim.betas) == [0.9, 0.999]
    assert config.optim.eps == 1e-8
    assert config.seed == 7


@pytest.mark.parametrize(
    ("stage", "trainable"),
    [
        ("align", (False, True, False)),
        ("pretrain", (False, True, True)),
        ("sft", (False, True, True)),
    ],
)
def test_stages_freeze_what_the_paper_freezes(stage: str, trainable: tuple[bool, ...]) -> None:
    config = composed(f"stage={stage}").trainable
    assert (config.vision, config.projector, config.llm) == trainable


def test_the_default_model_and_mixture_are_the_papers() -> None:
    config = composed("stage=pretrain")
    assert config.vision.name == "vit_so400m_patch14_siglip_384"
    assert config.vision.image_side == 384
    assert config.llm.path == config.tokenizer == "Qwen/Qwen2.5-1.5B-Instruct"
    assert config.projector._target_ == "openqwen2vl.model.projector.AvgPoolProjector"
    assert list(config.mixture.sources) == ["ccs", "datacomp_dfn", "su85_minus_dfn"]
    assert config.mixture.mode == "proportional"
    assert config.strategy.sharding == "FULL_SHARD"


def test_fine_tuning_must_say_what_it_starts_from() -> None:
    config = composed("stage=sft", given=("run_dir=runs/test",))
    with pytest.raises(ConfigError, match="init_from: must be given"):
        check(config, SCHEMA)


def test_a_run_must_name_its_stage() -> None:
    with pytest.raises(Exception, match="You must specify 'stage'"):
        composed()


@pytest.mark.parametrize("order", [("stage=sft", "model=tiny"), ("model=tiny", "stage=sft")])
def test_a_choice_on_the_command_line_beats_stage_and_model(order: tuple[str, str]) -> None:
    config = composed(*order, "resolution=tiny_low_to_high", "optim.lr=0.25")
    assert [phase.grid for phase in config.resolution.plan] == [3, 6]
    assert config.optim.lr == 0.25
    assert config.vision.image_side == 84


def test_the_tiny_preset_stays_within_its_tower_at_every_stage() -> None:
    for stage in choices("stage"):
        config = composed(f"stage={stage}", "model=tiny")
        patches = config.vision.image_side // 14
        assert all(phase.grid <= patches for phase in config.resolution.plan)
        assert config.strategy._target_.endswith(".single")


def test_the_grid_has_one_home() -> None:
    config = composed("stage=pretrain", "resolution=low_to_high")
    assert config.projector.grid == config.resolution.plan[0].grid == 12
    assert OmegaConf.to_container(config.data.resolution) == OmegaConf.to_container(
        config.resolution
    )


def test_a_callback_can_be_dropped_and_changed_by_its_name() -> None:
    config = composed("stage=pretrain", "~callbacks.answers", "callbacks.checkpoints.keep=5")
    assert "answers" not in config.callbacks
    assert config.callbacks.checkpoints.keep == 5
    check(config, SCHEMA)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("+optim.weight_decy=0.1", "did you mean 'weight_decay'?"),
        ("+callbacks.checkpoints.evry_n_steps=3", "did you mean 'every_n_steps'?"),
        ("+trainer.max_step=3", "did you mean 'max_steps'?"),
        ("+budget.step=3", "did you mean 'steps'?"),
        ("budget={passes: 1, steps: 3}", "budget: {'passes': 1, 'steps': 3} are given together"),
        ("data.micro_batch=3", "data.global_batch is 256 packs"),
        ("resolution.plan=[{grid: 12, until: 0.5}]", "'until' must rise to 1, found [0.5]"),
        ("data.num_workrs=3", "Could not override 'data.num_workrs'"),
    ],
)
def test_mistakes_on_the_command_line_are_found_before_anything_is_built(
    override: str, fault: str
) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        check(composed("stage=pretrain", override), SCHEMA)
    assert fault in str(caught.value)
