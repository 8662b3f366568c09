from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from omegaconf import DictConfig, OmegaConf

from openqwen2vl.config import Schema, check, nearest
from openqwen2vl.formats.errors import ConfigError

SCHEDULE = "openqwen2vl.training.schedule.Schedule"


@dataclass(frozen=True)
class Budget:
    steps: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Part:
    packs: str
    weight: float = 1.0


@dataclass(frozen=True)
class Turn:
    shape: Literal["round", "flat"]


@dataclass(frozen=True)
class Parts:
    sources: Mapping[str, Part]
    plan: Sequence[Turn] = ()


def steps_and_tokens(config: DictConfig) -> None:
    if config.budget.steps > config.budget.tokens:
        raise ConfigError(f"budget.steps {config.budget.steps} over tokens {config.budget.tokens}")


def even(config: DictConfig) -> None:
    if config.seed % 2:
        raise ConfigError(f"seed is {config.seed}; expected an even one")


SCHEMA = Schema(
    keys=frozenset({"seed", "schedule", "optim", "budget", "parts", "name"}),
    groups={"budget": Budget, "parts": Parts},
    rules=(steps_and_tokens, even),
)


def config(**changes: Any) -> DictConfig:
    """Give a config without faults, with these keys changed."""
    sound = {
        "seed": 8,
        "schedule": {"_target_": SCHEDULE, "shape": "cosine"},
        "budget": {"steps": 1, "tokens": 2},
    }
    return OmegaConf.create(sound | changes)


def faults(**changes: Any) -> list[str]:
    """Check the changed config and give the lines of the error, without its first."""
    with pytest.raises(ConfigError) as caught:
        check(config(**changes), SCHEMA)
    title, *lines = str(caught.value).split("\n  ")
    count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
    assert title == f"{count} in the config:"
    return lines


def test_a_sound_config_passes() -> None:
    check(config(), SCHEMA)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"seed": "???"}, "seed: must be given"),
        ({"budget": {"steps": "???"}}, "budget.steps: must be given"),
        (
            {"optin": 1},
            "optin: the config has no such key; did you mean 'optim'?",
        ),
        ({"zzz": 1}, "zzz: the config has no such key"),
        (
            {"schedule": {"_target_": SCHEDULE, "warm_up": 0.1}},
            f"schedule.warm_up: {SCHEDULE} takes no such key; did you mean 'warmup'?",
        ),
        (
            {"name": [{"inner": {"_target_": SCHEDULE, "xyz": 1}}]},
            f"name[0].inner.xyz: {SCHEDULE} takes no such key",
        ),
        (
            {"optim": {"_target_": "torch.nn.Linear", "in_features": 3}},
            "optim: torch.nn.Linear needs 'out_features'",
        ),
        ({"budget": {"step": 3}}, "budget.step: budget has no such key; did you mean 'steps'?"),
        ({"seed": "${sed}"}, "seed: Interpolation key 'sed' not found"),
        (
            {"budget": {"steps": 30, "tokens": 20}},
            "budget.steps 30 over tokens 20",
        ),
        ({"budget": {"steps": "abc"}}, "budget.steps is 'abc'; expected a whole number or null"),
        ({"budget": {"steps": 1.5}}, "budget.steps is 1.5; expected a whole number or null"),
        ({"budget": None}, "budget is None; expected the keys steps, tokens"),
        (
            {"schedule": {"_target_": SCHEDULE, "warmup": "abc"}},
            "schedule.warmup is 'abc'; expected a number",
        ),
        (
            {"seed": "abc", "schedule": {"_target_": SCHEDULE, "length": "${seed}"}},
            "schedule.length is 'abc'; expected a whole number or null",
        ),
        (
            {"parts": {"sources": {"a": {"packs": "x", "weigth": 1}}}},
            "parts.sources.a.weigth: parts.sources.a has no such key; did you mean 'weight'?",
        ),
        ({"parts": {"sources": {"a": {"weight": 1}}}}, "parts.sources.a needs 'packs'"),
        (
            {"parts": {"sources": {"a": {"packs": "x", "weight": True}}}},
            "parts.sources.a.weight is True; expected a number",
        ),
        ({"parts": {"sources": {}, "plan": [3]}}, "parts.plan[0] is 3; expected the keys shape"),
        (
            {"parts": {"sources": {}, "plan": [{"shape": "round"}, {"shape": "odd"}]}},
            "parts.plan[1].shape is 'odd'; expected typing.Literal['round', 'flat']",
        ),
    ],
)
def test_each_kind_of_fault_is_found(changes: dict[str, Any], fault: str) -> None:
    assert faults(**changes) == [fault]


@pytest.mark.parametrize(
    "target",
    [
        "openqwen2vl.training.schedule.Schedul",
        "openqwen2vl.training.nowhere.Schedule",
        "openqwen2vl.training.schedule.SHAPES",
        "Schedule",
    ],
)
def test_a_target_that_is_not_there_is_named(target: str) -> None:
    (fault,) = faults(schedule={"_target_": target})
    assert fault.startswith(f"schedule._target_: there is no {target!r} (")


def test_a_partial_target_may_lack_arguments_but_not_misspell_them() -> None:
    node = {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 3}
    check(config(optim=node), SCHEMA)
    assert faults(optim={**node, "out_feature": 4}) == [
        "optim.out_feature: torch.nn.Linear takes no such key; did you mean 'out_features'?"
    ]


def test_a_whole_number_is_a_number_and_an_unknown_type_is_not_judged() -> None:
    check(config(schedule={"_target_": SCHEDULE, "warmup": 0, "length": None}), SCHEMA)
    check(config(optim={"_target_": "pathlib.PurePath", "args": 3}), SCHEMA)


def test_a_target_that_takes_any_key_is_left_alone() -> None:
    check(config(optim={"_target_": "builtins.dict", "whatever": 1}), SCHEMA)


def test_all_faults_come_in_one_message() -> None:
    found = faults(
        seed="???",
        nane="x",
        schedule={"_target_": SCHEDULE, "shap": "cosine"},
        optim={"_target_": "torch.optim.Adamm"},
        budget={"token": 1, "steps": "???"},
    )
    assert [line.split(":")[0] for line in found] == [
        "nane",
        "budget.steps",
        "seed",
        "schedule.shap",
        "optim._target_",
        "budget.token",
    ]


def test_a_part_that_is_null_is_named() -> None:
    schema = Schema(keys=frozenset({"optim", "data"}), parts=["optim", "data"])
    with pytest.raises(ConfigError, match=r"1 fault in the config:\n  optim is null; leave it"):
        check(OmegaConf.create({"optim": None, "data": {}}), schema)


def test_rules_are_asked_only_when_every_value_is_there() -> None:
    # The second rule would divide what is not a number yet.
    assert faults(seed="???", budget={"steps": 30, "tokens": 20}) == ["seed: must be given"]


def test_all_broken_rules_are_told_with_both_numbers() -> None:
    assert faults(seed=7, budget={"steps": 30, "tokens": 20}) == [
        "budget.steps 30 over tokens 20",
        "seed is 7; expected an even one",
    ]


def test_an_interpolation_to_a_key_yet_to_be_given_is_one_fault_only() -> None:
    assert faults(seed="???", name="run-${seed}") == ["seed: must be given"]


def test_a_rule_that_crashes_is_our_bug_and_keeps_its_traceback() -> None:
    def broken(_: DictConfig) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        check(config(), Schema(keys=SCHEMA.keys, rules=(broken,)))


def test_the_nearest_word_is_hinted_at_only_when_it_is_near() -> None:
    assert nearest("warmpu", ["warmup", "shape"]) == "; did you mean 'warmup'?"
    assert nearest("qqq", ["warmup", "shape"]) == ""
