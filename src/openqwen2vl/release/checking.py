"""Whether a model folder says the same as the model that it was made from."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openqwen2vl.formats.errors import CheckpointError

_SCRIPT = Path(__file__).with_name("reload.py")
_LOGITS = 1e-4
"""Share of the largest logit that sums in another order may cost; both sides count in float32."""

_LEVELS = 2.5
"""Of 255: what another bicubic kernel may cost a picture that is resized."""


def reload(folder: Path, question: Path, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Open a folder in a process of its own, by transformers alone.

    Args:
        folder: with the model.
        question: as ``write_question`` wrote it.
        more: variables of the process's environment beside our own.

    Returns:
        What ``reload.py`` found.

    Raises:
        CheckpointError: it could not be opened or run.
    """
    with tempfile.TemporaryDirectory() as cache:
        # Bundled code is copied before it runs: not into the user's own cache.
        alone = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": cache, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            # -P: this room's files must not stand in for modules of their names.
            [sys.executable, "-P", str(_SCRIPT), str(folder), str(question)],
            env={**os.environ, **alone, **(more or {})},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise CheckpointError(
            f"the exported model cannot be opened by transformers ({said}); nothing was kept"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(found: Mapping[str, Any], std: float) -> None:
    """Refuse a folder that differs from its model.

    Args:
        found: by ``reload``.
        std: the smallest spread that pixels are divided by.

    Raises:
        CheckpointError: with every difference.
    """
    faults = [
        f"{kind} weights {', '.join(keys[:3])}" for kind, keys in found["loading"].items() if keys
    ]
    faults += [f"other token ids for {text!r}" for text in found["unlike_ids"]]
    faults += [f"answers that end with token {end}" for end in found["unlike_ends"]]
    square, wide = found["pixels"]
    if not (square < 1e-5 and wide < _LEVELS / 255 / std):
        faults.append(f"pixels that differ by {square:.3g}, after a resize by {wide:.3g}")
    most = _LOGITS * max(1.0, found["largest_logit"])
    if not found["logits"] <= most:  # not a number is no equality
        faults.append(f"logits that differ by {found['logits']:.3g}, at most {most:.3g} may be")
    if not found["first_token"] <= most:
        faults.append("generate() that begins with another token than the likeliest")
    if faults:
        raise CheckpointError(
            f"transformers {found['transformers']} reads the exported model as another one: "
            f"{'; '.join(faults)}; nothing was kept"
        )
