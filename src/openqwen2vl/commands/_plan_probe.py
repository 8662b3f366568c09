"""A plan's hours from some real steps on this machine."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import quantiles

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from openqwen2vl.commands._plan_data import Planned
from openqwen2vl.commands.train import ranks
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.training.csv_log import read_rows

_WARM = 3  # first steps at a grid, which fill caches and allocators
_OWN = re.compile(
    r"[+~]*(tokens|images|documents|context|fill|target_share|image_bytes|devices|probe|disk|known"
    r"|hardware|budget|json|name|run_dir|resume|callbacks\.(checkpoints|validation|answers)"
    r"|logger)([.@=].*)?"
)


def probe(config: DictConfig, data: Planned) -> tuple[float, float, float]:
    """Time real steps of the planned run and stretch them to its length.

    Args:
        config: of the command; ``probe`` steps are run with the keys of ``train``.
        data: what the run serves.

    Returns:
        Device-hours: by the fastest tenth of the steps, the median, the slowest tenth.

    Raises:
        ConfigError: there are no packs, or too few steps.
        UserError: the steps failed; their message is above.
    """
    wanted = (_WARM + 2) * len(data.loads)
    if not data.exists or config.probe < wanted:
        raise ConfigError(
            f"probe={config.probe} runs real steps: it wants packs (no tokens=) and at least "
            f"{wanted} steps, of which the first {_WARM} at each grid are not counted"
        )
    with tempfile.TemporaryDirectory(prefix="openqwen2vl-probe-") as folder:
        seconds = _step_seconds(config, Path(folder))
    hours = [0.0, 0.0, 0.0]
    for load in data.loads:
        found = sorted(seconds.get(load.grid, []))
        if len(found) < 2:
            raise ConfigError(
                f"probe={config.probe} left {len(found)} steps to count at grid {load.grid}; run more"
            )
        tenths = quantiles(found, n=10, method="inclusive")
        for place, one in enumerate((tenths[0], tenths[4], tenths[8])):
            hours[place] += one * load.steps * ranks(config) / 3600
    return hours[0], hours[1], hours[2]


def _step_seconds(config: DictConfig, folder: Path) -> dict[int, list[float]]:
    """Train in a process of its own and give the seconds of the steps at each grid."""
    task = HydraConfig.get()
    sources = [s.path for s in task.runtime.config_sources if s.provider == "command-line"]
    words = [word for word in task.overrides.task if not _OWN.fullmatch(word)]
    run = folder / "run"
    command = [sys.executable, "-m", "openqwen2vl", "train", *words]
    command += [f"--config-dir={path}" for path in sources]
    command += [f"budget.steps={config.probe}", f"hydra.run.dir={run}", "logger=csv"]
    command += [f"callbacks.{name}=null" for name in ("checkpoints", "validation", "answers")]
    command += ["+trainer.enable_checkpointing=false", "resume=null"]
    if config.stage == "sft":
        command += [] if any(w.startswith("init_from=") for w in words) else ["init_from=null"]
    # Its table and bar are not this command's output.
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError("the steps of the probe failed; their message is above")
    seconds: dict[int, list[float]] = {}
    for row in read_rows(run / "metrics.csv")[1]:
        found = seconds.setdefault(int(float(row["grid"])), [])
        found.append(float(row["tokens"]) / float(row["tokens_per_second"]))
    return {grid: found[_WARM:] for grid, found in seconds.items()}
