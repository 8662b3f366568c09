"""Scores as `evaluate` leaves them, without a model that was asked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD: dict[str, Any] = {
    "benchmark": "mmbench",
    "protocol": "standard",
    "protocol_version": 1,
    "file_hash": "f00d",
    "decoding": {"max_new_tokens": 16, "greedy": True},
    "template_hash": "cafe",
    "model_hash": "1",
    "metrics": {},
}


def write_scores(
    folder: Path,
    correct: Sequence[float],
    clusters: Sequence[object] | None = None,
    **head: object,
) -> Path:
    """Write what `evaluate` leaves for one benchmark; give the file of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    names = range(len(correct)) if clusters is None else clusters
    lines = [
        json.dumps({"id": f"q{i}", "cluster": str(name), "correct": value, "read": "A", "how": "x"})
        for i, (value, name) in enumerate(zip(correct, names, strict=True))
    ]
    (folder / "scored.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "scores.json").write_text(json.dumps({**HEAD, "n": len(correct), **head}))
    return folder / "scored.jsonl"
