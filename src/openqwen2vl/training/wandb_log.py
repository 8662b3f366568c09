"""Weights & Biases: one run of theirs for a run folder, over all its starts."""

import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.training.launch import rank

ID_FILE = "wandb-id"


class RunWandbLogger(WandbLogger):
    """Logs to the run that belongs to a run folder, and ends it when training ends.

    Stock Lightning leaves the end to the interpreter's exit, which a rank of several skips; the
    run would be shown as crashed.

    Args:
        run_dir: the run folder; ``wandb-id`` in it names the run. A name would not do: jobs of a
            sweep share theirs, and so do the runs of a team.
        name: as it is shown.
        project: of the runs.
        **options: others of `WandbLogger`.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, run_dir: str, name: str, project: str, **options: Any) -> None:
        try:
            super().__init__(
                save_dir=run_dir,
                name=name,
                project=project,
                # Only rank 0 speaks to them, and only it writes in the folder.
                id=run_id(Path(run_dir)) if rank() == 0 else None,
                resume="allow",
                **options,
            )
        except ModuleNotFoundError as error:
            raise ConfigError(
                "logger=wandb wants wandb: pip install 'openqwen2vl[wandb]'"
            ) from error

    def finalize(self, status: str) -> None:
        """End the run, as well or as failed."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


def run_id(run_dir: Path) -> str:
    """Give the id of a run folder, 16 hex digits; the first to ask draws it."""
    path = run_dir / ID_FILE
    if path.is_file():
        return path.read_text().strip()
    drawn = secrets.token_hex(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(f"{drawn}\n".encode())
    return drawn
