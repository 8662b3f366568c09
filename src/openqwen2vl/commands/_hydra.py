"""Runs a command under Hydra: composes, checks, calls, and turns user errors into one message."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from openqwen2vl.commands._explain import explain, key_as_flag
from openqwen2vl.config import check
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.training.exit_note import USER_ERROR, tell_mistake


def launch(verb: str, overrides: Sequence[str]) -> int:
    """Run a verb.

    A command module has `SCHEMA`, what its config may hold, and `run(config)`, which prints its
    table and returns its figures. Where people's words mean something else to Hydra, it also has
    `reword(words)`, which gives them as Hydra takes them. A command that gives a verdict has
    `exit_code(figures)`.

    Args:
        verb: name of a module in `openqwen2vl.commands`.
        overrides: Hydra's command line.

    Returns:
        0, or 2 for a mistake of the user's, told in one message without a traceback; or what the
        command's `exit_code` says.
    """
    # Before PyTorch is loaded: threads that wait for each other by spinning take the processor
    # from loader workers and from neighbours, and a step on a busy CPU becomes 100 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = import_module(f"openqwen2vl.commands.{verb}")
    overrides = getattr(command, "reword", list)(overrides)
    # Hydra would print and exit 1; we want its exceptions, to tell mistakes from crashes.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["openqwen2vl", *_flags_first(overrides)]

    verdicts: list[int] = []
    mistakes = _null_groups(overrides)
    if unknown := key_as_flag(overrides):
        mistakes.append(unknown)
    if mistakes:
        sys.stderr.write("\n".join(mistakes) + "\n")
        return USER_ERROR

    def task(config: DictConfig) -> Any:
        _quiet()
        try:
            check(config, command.SCHEMA)
            figures = command.run(config)
        except (UserError, InstantiationException) as error:
            # Caught here, since Hydra would print the whole command line before it.
            mistakes.append(str(_mistake(error)))
            return None
        verdicts.append(getattr(command, "exit_code", _done)(figures))
        if config.json:
            sys.stdout.write(json.dumps(figures, default=float) + "\n")
            sys.stdout.flush()
        return figures

    compose = hydra.main(version_base="1.3", config_path="pkg://openqwen2vl.conf", config_name=verb)
    try:
        compose(task)()
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        mistakes.append(explain(error, verb))
    for mistake in mistakes:
        sys.stderr.write(mistake.rstrip() + "\n")
    if mistakes:
        tell_mistake()
    return USER_ERROR if mistakes else max(verdicts, default=0)


def _done(_: object) -> int:
    return 0


def _mistake(error: Exception) -> UserError:
    """Give the user's mistake that made a constructor fail; what is none goes on as it came."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if cause is None and isinstance(error, InstantiationException):
        # Only now: Lightning takes seconds to import, and most commands do without it.
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        if isinstance(error.__cause__, MisconfigurationException):
            key = str(error).rpartition("full_key: ")[2].strip()
            return ConfigError(f"{key}: {error.__cause__}")
    if cause is None:
        raise error
    return cause


def _null_groups(words: Sequence[str]) -> list[str]:
    """Answer `group=null`, of which Hydra says neither the group nor what to do."""
    found = []
    for word in words:
        name, _, value = word.partition("=")
        folder = files("openqwen2vl.conf").joinpath(name)
        if value == "null" and name.isidentifier() and folder.is_dir():
            names = (entry.name for entry in folder.iterdir())
            known = sorted(one.removesuffix(".yaml") for one in names if one.endswith(".yaml"))
            found.append(f"{name} cannot be null; leave it away or choose of {', '.join(known)}")
    return found


# Flags whose value is the next word, unless it follows a =.
_WITH_VALUE = frozenset(
    [
        "--config-dir",
        "-cd",
        "--config-name",
        "-cn",
        "--config-path",
        "-cp",
        "--cfg",
        "-c",
        "--package",
        "-p",
    ]
)


def _flags_first(words: Sequence[str]) -> list[str]:
    """Let flags such as `-m` stand anywhere; Hydra takes them only before or after all keys."""
    flags: list[str] = []
    keys: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word in _WITH_VALUE:
            flags += [word, next(remaining, "")]
        elif word.startswith("-"):
            flags.append(word)
        else:
            keys.append(word)
    return [*flags, *keys]


def _quiet() -> None:
    """Keep the libraries' chatter out of a command's output; their warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "httpx", "timm"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # True of Lightning's usual loaders, not of ours: the data module itself is resumable.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    # PyTorch and Lightning about each other; nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message=".*Multiple backends are registered.*")
    warnings.filterwarnings("ignore", message=".*When using ``NO_SHARD``.*")
