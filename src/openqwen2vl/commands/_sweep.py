"""Names of a sweep's folders: what varies between its jobs, and nothing else."""

from collections.abc import Sequence
from importlib.resources import files

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_FLAGS = {"-m", "--multirun"}


def named_by_what_varies(words: Sequence[str]) -> list[str]:
    """Give a command line on which keys that are the same in every job leave the folders' names.

    They would make long names, break at the slashes of a path, and lead a sweep that goes on with
    another number of GPUs into other folders. A run that is no sweep has its `name` alone, too.

    Args:
        words: of the command line, after the verb.
    """
    if not _FLAGS & set(words):
        return list(words)
    keys = [word for word in words if "=" in word and not word.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(keys)
    except HydraException:
        return list(words)  # told when Hydra parses them itself
    swept = {one.key_or_group for one in parsed if one.is_sweep_override()}
    fixed = {one.key_or_group for one in parsed} - swept
    unnamed = fixed | (_unnamed() - (swept & _CHOICES))
    listed = ",".join(f"'{key}'" for key in sorted(unnamed) if not key.startswith("hydra."))
    return [*words, f"hydra.job.config.override_dirname.exclude_keys=[{listed}]"]


# Of the keys that name no folder those that two jobs may differ in.
_CHOICES = frozenset(["model", "init_from", "tokenizer", "packs_root"])


def _unnamed() -> set[str]:
    """Give the keys that name no folder of a sweep by the shipped config."""
    shipped = yaml.safe_load(files("openqwen2vl.conf").joinpath("hydra_train.yaml").read_text())
    return set(shipped["job"]["config"]["override_dirname"]["exclude_keys"])
