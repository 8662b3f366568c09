"""Folders of a sweep are named by what varies."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from openqwen2vl.commands._sweep import named_by_what_varies


def names(*words: str) -> set[str]:
    """Give the keys that may stand in the folders' names."""
    *same, added = named_by_what_varies(["-m", *words])
    assert same == ["-m", *words]
    (override,) = OverridesParser.create().parse_overrides([added])
    left_out = override.value()
    given = OverridesParser.create().parse_overrides([w for w in words if "=" in w])
    return {one.key_or_group for one in given} - set(left_out)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stage=pretrain", "mixture=ccs,ccs_laion", "budget.steps=3"], {"mixture"}),
        (["+mixture.sources.red.packs=[a/g3,a/g6]", "optim.lr=1e-3,3e-4"], {"optim.lr"}),
        (["mixture=glob(ccs*)", "seed=range(3)", "trainer.devices=2"], {"mixture", "seed"}),
        (["name=a,b", "resume=auto"], set()),
        (["init_from=runs/a,runs/b", "model=tiny"], {"init_from"}),
    ],
)
def test_what_varies_names_a_job_and_what_does_not_stays_away(
    words: list[str], named: set[str]
) -> None:
    assert names(*words) == named


@pytest.mark.parametrize("words", [["optim.lr=1e-3"], ["-m", "optim.lr=[1"]])
def test_a_single_run_and_a_line_that_hydra_will_refuse_stay_as_they_are(words: list[str]) -> None:
    assert named_by_what_varies(words) == words
