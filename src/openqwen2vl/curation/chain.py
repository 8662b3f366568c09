"""What a step's output was made of, so that the next one does not build on something else.

Every part is told by names, sizes and times, which a hundred thousand files take seconds for; only
the settings are told whole.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openqwen2vl.curation.request import Curation
from openqwen2vl.curation.scores import ScoreError, list_scores, read_facts, stamp
from openqwen2vl.curation.shards import image_root_of, shard_name
from openqwen2vl.formats.errors import ConfigError

MADE_OF = "made_of"
"""The key under which a step's figures say what they were made of."""


def selection_is_made_of(curation: Curation) -> dict[str, str]:
    """Tell the parts that a selection depends on, each by a hash.

    Args:
        curation: as it is asked for now.
    """
    chosen = curation.chosen
    used = {rule.input: curation.inputs[rule.input] for rule in chosen.sources.values()}
    lists = [Path(path) for path in chosen.lists.values()]
    tables = [path for name in used for path in curation.tables.get(name, ())]
    return {
        "what to keep": _hash({name: asdict(rule) for name, rule in chosen.sources.items()}),
        "lists of uids": _hash([sorted(chosen.lists), *_stamps(lists)]),
        "inputs": _hash(
            [[n, *_roots(curation, n), *_stamps(_data(path))] for n, path in sorted(used.items())]
        ),
        "tables": _hash([found for path in tables for found in _stamps(_parquet(path))]),
        "scores": _hash(
            [s for name in sorted(used) for s in _stamps(_scores(curation.scores / name))]
        ),
    }


def kept_is_made_of(curation: Curation) -> dict[str, str]:
    """Tell the parts that de-duplication depends on beside the selection, each by a hash."""
    rules, against = curation.duplicates, curation.evaluations.against or {}
    return {
        "duplicates": _hash(asdict(rules) if rules else None),
        "contamination": _hash(
            [curation.evaluations.drop, *((n, *_stamps([p])) for n, p in sorted(against.items()))]
        ),
    }


def demand(step: str, figures: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Make sure that an earlier step was run on what is there now.

    Args:
        step: the earlier one.
        figures: what it counted; empty when it was not run.
        now: what its output would be made of.

    Raises:
        ConfigError: it was not run, or on something else, which is named.
    """
    if MADE_OF not in figures:
        raise ConfigError(f"the step {step} has not been run here; run it first: only={step}")
    then = figures[MADE_OF]
    changed = [name for name, told in now.items() if then.get(name) != told]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changed since the step {step} was run; run it again: only={step}"
        )


def check_scores(curation: Curation) -> None:
    """Make sure that all scores of a source are of its shards as they are, and of one scorer.

    Raises:
        ScoreError: a shard changed after it was scored, or a scorer's settings did on the way.
    """
    for name in {rule.input for rule in curation.chosen.sources.values()}:
        shards = {shard_name(shard): shard for shard in curation.shards_of(name)}
        for folder in sorted(path for path in (curation.scores / name).glob("*") if path.is_dir()):
            identities: dict[str, Path] = {}
            for path in list_scores(folder):
                if path.stem not in shards:
                    continue
                facts = read_facts(path)
                if (facts.bytes, facts.mtime_ns) != stamp(shards[path.stem]):
                    raise ScoreError(
                        f"{shards[path.stem]} changed after {path} was made; score it again: "
                        "only=score overwrite=true"
                    )
                if facts.image_root != image_root_of(shards[path.stem]):
                    raise ScoreError(
                        f"{path} was made with image_root={facts.image_root}, which is "
                        f"{image_root_of(shards[path.stem])} now; score it again: only=score "
                        "overwrite=true"
                    )
                identities[_hash(facts.scorer)] = path
            if len(identities) > 1:
                one, other = list(identities.values())[:2]
                raise ScoreError(
                    f"{one} and {other} were made with other settings or weights; make them alike: "
                    "only=score overwrite=true"
                )


def _roots(curation: Curation, name: str) -> list[str]:
    """Give the folder of an input's pictures, if it has one."""
    root = curation.image_roots.get(name)
    return [] if root is None else [os.path.abspath(root)]


def _data(folder: Path) -> list[Path]:
    """Give the raw shards of an input and the tables beside them, or the listing that it is.

    The pictures that a listing names are not looked at: there are too many of them.
    """
    if not folder.is_dir():
        return [folder]
    return sorted([*folder.glob("*.tar"), *folder.glob("*.parquet")])


def _parquet(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def _scores(folder: Path) -> list[Path]:
    return [path for scorer in sorted(folder.glob("*")) for path in list_scores(scorer)]


def _stamps(paths: Iterable[Path]) -> list[list[object]]:
    """Tell files by name, size and time; a folder by those of all files in it."""
    found: list[list[object]] = []
    for path in paths:
        if path.is_dir():
            found += _stamps(sorted(file for file in path.rglob("*") if file.is_file()))
        elif path.exists():
            state = path.stat()
            found.append([path.name, state.st_size, state.st_mtime_ns])
        else:
            found.append([path.name, None, None])
    return found


def _hash(told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
