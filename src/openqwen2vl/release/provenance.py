"""Where a model comes from: its stages back to the first, from what each run recorded."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.release.folder import read_json
from openqwen2vl.release.opened import KEY, is_folder, is_ours
from openqwen2vl.training.checkpoint import checkpoint_step, newest, read_facts
from openqwen2vl.training.run_folder import RunFolder

_RECORDED = ("device", "devices", "device_hours", "hours_by_device", "versions")


def stages(path: Path) -> list[dict[str, Any]]:
    """Give the stages that led to a checkpoint, the first one first.

    A stage says its run's name and not where it lay. What was not recorded, or no longer lies
    where it was, is left out and never guessed: an earlier stage that is gone says ``missing``.

    Args:
        path: of a checkpoint.

    Raises:
        CheckpointError: it is none.
    """
    found: list[dict[str, Any]] = []
    seen: set[Path] = set()
    place: Path | None = _newest(path)
    while place is not None and place.resolve() not in seen:
        seen.add(place.resolve())
        earlier, start = _stage(place, first=not found)
        found = [*earlier, *found]
        place = None if start is None else _newest(start)
    return found


def _newest(path: Path) -> Path:
    """Give a run's newest checkpoint, and whatever else as it is."""
    with suppress(CheckpointError):
        return newest(path)
    return path


def _stage(path: Path, first: bool) -> tuple[list[dict[str, Any]], Path | None]:
    """Give one stage, or those of a model folder, and what it started from."""
    if is_folder(path):
        return _folder_stages(path), None
    try:
        facts = read_facts(path)
    except CheckpointError:
        if first:
            raise
        return [{"run": _run_name(path), "missing": True}], None
    if "converted" in facts:
        # It was a model of somebody's; what is known of its stages came along.
        source = Path(str(facts["converted"].get("source", path))).name
        return facts.get("earlier") or [{"run": source, "model_folder": True}], None
    if "earlier" in facts:
        return [*facts["earlier"], _told(path, facts)], None
    start = facts.get("init_from")
    return [_told(path, facts)], None if start is None else Path(start)


def _folder_stages(path: Path) -> list[dict[str, Any]]:
    if is_ours(path):
        known = read_json(path / "config.json")[KEY].get("provenance", {}).get("stages", [])
        return list(known)
    return [{"run": path.name, "model_folder": True}]


def _told(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Give what is known of one stage; sources by name, with what was consumed of each."""
    folder = RunFolder(_run_folder(path))
    run, config = folder.read_json("run.json"), folder.read_json("config.json")
    # What it has cost and consumed a checkpoint says itself, up to its own step and without its
    # run's folder; old ones leave that to the folder.
    recorded = {**run, **facts.get("cost", {})}
    own = facts.get("consumed")
    consumed = folder.read_json("consumed.json") if own is None else own
    step = checkpoint_step(path)
    order, licences = facts.get("order", {}), facts.get("licences", {})
    weights = dict(zip(order.get("sources", []), order.get("weights", []), strict=False))
    by_weights = order.get("mode") == "weights"
    stage = {
        "stage": facts.get("stage"),
        "run": _run_name(path),
        "step": step,
        "steps": facts.get("steps"),
        # The record is brought up to date now and then, the checkpoint may be an earlier one.
        "recorded_step": run.get("step") if own is None else step,
        "grids": _grids_seen(facts, step),
        "mode": order.get("mode"),
        "global_batch": order.get("global_batch"),
        "seed": order.get("seed"),
        "lr": config.get("optim", {}).get("lr"),
        "init_from": None if facts.get("init_from") is None else Path(facts["init_from"]).name,
        "trainable": facts.get("model", {}).get("trainable"),
        "sources": {
            name: {
                "licence": licences.get(name),
                **({"weight": weights.get(name)} if by_weights else {}),
                **consumed.get(name, {}),
            }
            for name in order.get("sources", licences)
        },
        **{key: recorded.get(key) for key in _RECORDED},
    }
    return {key: value for key, value in stage.items() if value is not None}


def _grids_seen(facts: Mapping[str, Any], step: int) -> list[int]:
    """Give the grids that were trained at up to a step; a plan's later phases are still to come."""
    return [one["grid"] for one in facts.get("phases", []) if one.get("start", 0) < step]


def _run_folder(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _run_name(path: Path) -> str:
    inside = path.suffix == ".ckpt" and path.parent.name == "checkpoints"
    return path.parent.parent.name if inside else path.name
