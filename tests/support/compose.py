"""Composes the shipped configs and checks them; run as a script, it says how many were sound."""

import json
from collections.abc import Iterator
from importlib.resources import files
from itertools import product

import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

import openqwen2vl
from openqwen2vl.commands.train import SCHEMA
from openqwen2vl.config import check

# Hydra itself sets the run folder only for a command; a stage that starts from parts needs some.
GIVEN = ("run_dir=runs/test", "init_from=null")


def choices(group: str) -> list[str]:
    """List the files of a config group."""
    folder = files("openqwen2vl.conf").joinpath(group)
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def composed(*overrides: str, name: str = "train", given: tuple[str, ...] = GIVEN) -> DictConfig:
    """Compose a command's config as its command line would."""
    with initialize_config_module("openqwen2vl.conf", version_base="1.3"):
        return compose(name, [*(given if name == "train" else ()), *overrides])


def defaults(primary: str) -> dict[str, str]:
    """Read the groups of a primary's defaults list and what it chooses."""
    listed = yaml.safe_load(files("openqwen2vl.conf").joinpath(f"{primary}.yaml").read_text())
    found: dict[str, str] = {}
    for entry in listed.get("defaults", []):
        if isinstance(entry, dict):
            found |= {k: v for k, v in entry.items() if not k.startswith("override ")}
    return found


def pairs() -> Iterator[tuple[str, ...]]:
    """Yield the overrides of every stage with every model, of every mixture and every experiment."""
    stages, models = choices("stage"), choices("model")
    for stage, model in product(stages, models):
        yield (f"stage={stage}", f"model={model}")
    for mixture in choices("mixture"):
        yield ("stage=pretrain", f"mixture={mixture}")
    for experiment in choices("experiment"):
        # An experiment that has a stage in its name is made for that one.
        for stage in [name for name in stages if name in experiment] or stages:
            yield (f"stage={stage}", f"experiment={experiment}")


def main() -> None:
    """Check all of them and print where the package lies and what was sound."""
    sound = []
    for overrides in pairs():
        check(composed(*overrides), SCHEMA)
        sound.append(" ".join(overrides))
    print(json.dumps({"file": openqwen2vl.__file__, "sound": sound}))


if __name__ == "__main__":
    main()
