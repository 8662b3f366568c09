"""The steps of curation, one after another, each on what the one before left on disk."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openqwen2vl.curation.chain import (
    MADE_OF,
    check_scores,
    demand,
    kept_is_made_of,
    selection_is_made_of,
)
from openqwen2vl.curation.duplicates.contamination import EvaluationIndex, find_hits
from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules, Removed, deduplicate
from openqwen2vl.curation.duplicates.selected import Selected
from openqwen2vl.curation.funnel import funnel
from openqwen2vl.curation.preflight import check_request
from openqwen2vl.curation.request import Curation
from openqwen2vl.curation.resharding.columns import ScoreColumn
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.scorer import NO_PAIR, Scorer, reads_conversations
from openqwen2vl.curation.scorers.image import ImageScorer
from openqwen2vl.curation.scores import read_facts, score_path
from openqwen2vl.curation.selection.carried import brought, is_in_scores
from openqwen2vl.curation.selection.expression import parse_expression
from openqwen2vl.curation.selection.select import Rule, export_uids, select
from openqwen2vl.curation.selection.tables import IDENTITY, SourceTables
from openqwen2vl.curation.shards import RawShard, of_conversations, shard_name
from openqwen2vl.curation.unreadable import join_ledgers, ledgers, look_through
from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.formats.files import atomic_file, publish
from openqwen2vl.packing.locks import only_writer

STEPS = ("score", "select", "deduplicate", "reshard")
"""In their order; each can be run alone once those before it have been."""

FIGURES = "curation.json"
"""The file in ``out`` that keeps what each step counted."""


def curate(
    curation: Curation, mapper: Mapper = map_inline, steps: Sequence[str] = STEPS
) -> dict[str, Any]:
    """Run steps of a curation; what is finished already is not made again.

    ``out/scores``, ``out/selection``, ``out/kept``, ``out/dropped`` and ``out/shards`` are as their
    modules say; a source without shards ends as a list of uids in ``out/uids``.

    Args:
        curation: what to do.
        mapper: runs functions over shards, here or elsewhere; the result is the same.
        steps: of ``STEPS``.

    Returns:
        By step what it counted, of earlier runs as well; also in ``out/curation.json``.

    Raises:
        UserError: whatever is wrong with inputs, settings or an earlier step's output.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ConfigError(f"there is no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    check_request(curation)
    with only_writer(curation.out):
        return _run(curation, mapper, steps)


def _run(curation: Curation, mapper: Mapper, steps: Sequence[str]) -> dict[str, Any]:
    found = read_figures(curation.out)
    work = {"score": _score, "select": _select, "deduplicate": _deduplicate, "reshard": _reshard}
    for number, step in enumerate(STEPS):
        if step in steps:
            # Told before the step begins: it may be killed amid what it writes, and what follows
            # was counted on something else.
            before, found = found, {name: found[name] for name in STEPS[:number] if name in found}
            _write_figures(curation.out, found)
            try:
                found[step] = work[step](curation, mapper, found)
            except UserError:
                _write_figures(curation.out, before)  # it refused, and left all as it was
                raise
            _write_figures(curation.out, found)
    return found


def _write_figures(out: Path, found: Mapping[str, Any]) -> None:
    with atomic_file(out / FIGURES) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())


def read_figures(out: Path) -> dict[str, Any]:
    """Give what the steps that were run counted; nothing when there were none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((out / FIGURES).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{out / FIGURES} is damaged ({error}); remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{out / FIGURES} holds no figures of steps; remove it")
    return found


def _score(curation: Curation, mapper: Mapper, found: dict[str, Any]) -> dict[str, Any]:
    counts = {}
    for name in curation.inputs:
        shards = curation.shards_of(name)
        scorers = curation.scorers_of(name)
        if shards and scorers:
            score_source(
                shards,
                name,
                scorers,
                curation.scores,
                mapper,
                overwrite=curation.overwrite,
                unreadable=curation.unreadable,
            )
        counts[name] = {"shards": len(shards), "scorers": [one.name for one in scorers]}
        if of_conversations(shards):
            counts[name]["unscored"] = _no_pairs(curation, name, shards, scorers)
    return counts


def _no_pairs(
    curation: Curation, name: str, shards: Sequence[RawShard], scorers: Sequence[Scorer]
) -> dict[str, Any]:
    """Count the conversations that scorers of pairs were not shown, by the scorer's name."""
    lost: dict[str, Any] = {}
    for scorer in scorers:
        if not reads_conversations(scorer):
            # Of shards that went away there may be scores as well.
            files = (score_path(curation.scores, name, scorer.name, shard_name(s)) for s in shards)
            lost[scorer.name] = {NO_PAIR: sum(read_facts(path).errors for path in files)}
    return lost


def _select(curation: Curation, mapper: Mapper, found: dict[str, Any]) -> dict[str, Any]:
    check_scores(curation)
    out, work = curation.out, curation.out / ".selecting"
    shutil.rmtree(work, ignore_errors=True)
    try:
        counts = select(curation.chosen, curation.open_inputs(), work)
        _note_unreadable(curation, mapper, work / "dropped")
        # All sources or none, and nothing of a source that is no longer chosen.
        for folder in ("selection", "dropped", "kept"):
            shutil.rmtree(out / folder, ignore_errors=True)
        for folder in ("selection", "dropped"):
            publish(work / folder, out / folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"sources": counts, MADE_OF: selection_is_made_of(curation)}


def _note_unreadable(curation: Curation, mapper: Mapper, dropped: Path) -> None:
    """Write for each source what of its input could not be read; scoring has noted most of it."""
    for name, rule in curation.chosen.sources.items():
        shards = curation.shards_of(rule.input)
        parts = ledgers(curation.unreadable, rule.input, shards)
        for _ in mapper(look_through, [part for part in parts if not part.is_current()]):
            pass
        if parts:
            join_ledgers(parts, dropped / f"unreadable-{name}.parquet")


def _deduplicate(curation: Curation, mapper: Mapper, found: dict[str, Any]) -> dict[str, Any]:
    out = curation.out
    demand("select", found.get("select", {}), selection_is_made_of(curation))
    for path in (out / "dropped").glob("reshard-*.parquet"):
        path.unlink()  # of shards that other samples will take the place of
    selections = [
        Selected(
            name,
            out / "selection" / f"{name}.parquet",
            rule.input,
            of_conversations(curation.shards_of(rule.input)),
        )
        for name, rule in curation.chosen.sources.items()
    ]
    removed, told = _contaminated(curation, selections)
    rules = curation.duplicates or DuplicateRules(by=())
    counts = deduplicate(selections, out / "kept", out / "dropped", rules, removed)
    sources = {name: asdict(count) for name, count in counts.items()}
    return {"sources": sources, "contamination": told, MADE_OF: kept_is_made_of(curation)}


def _contaminated(
    curation: Curation, selections: Sequence[Selected]
) -> tuple[Removed | None, dict[str, dict[str, int]]]:
    """Look for pictures of evaluations: what must go, and counts by the evaluations' files."""
    if not curation.evaluations.against:
        shutil.rmtree(curation.out / "contamination", ignore_errors=True)
        return None, {}
    scorer = next((one for one in curation.scorers if isinstance(one, ImageScorer)), None)
    if scorer is None:
        raise ConfigError(
            "contamination.against needs the scorer that hashes pictures; add image to scorers"
        )
    index = EvaluationIndex.build(curation.evaluations.against, scorer)
    hits = find_hits(selections, index, curation.duplicates or DuplicateRules())
    index.write(curation.out / "contamination" / "evaluations.parquet")
    hits.write(curation.out / "contamination" / "hits.parquet", selections, index)
    return hits.removed(index) if curation.evaluations.drop else None, hits.counts(index)


def _reshard(curation: Curation, mapper: Mapper, found: dict[str, Any]) -> dict[str, Any]:
    demand("select", found.get("select", {}), selection_is_made_of(curation))
    demand("deduplicate", found.get("deduplicate", {}), kept_is_made_of(curation))
    _clear_others(curation)
    counts: dict[str, Any] = {}
    tables = curation.open_inputs()
    for name, rule in curation.chosen.sources.items():
        kept = curation.out / "kept" / f"{name}.parquet"
        shards = curation.shards_of(rule.input)
        counts[name] = {}
        if curation.write_uids or not shards:
            path = curation.out / "uids" / f"{name}.npy"
            counts[name] |= {"uids": str(path), "same_uid": export_uids(kept, path)}
        if shards:
            request = ReshardRequest(
                kept=kept,
                input=curation.inputs[rule.input],
                image_root=curation.image_roots.get(rule.input),
                out=curation.out / "shards" / name,
                source=rule.input,
                name=name,
                seed=curation.seed,
                samples_per_shard=curation.samples_per_shard,
                window=curation.window,
                scores=_carried(curation, tables[rule.input], rule),
                blur=curation.blur,
                funnel=funnel(found, name),
                overwrite=curation.overwrite,
            )
            made = reshard(request, mapper)
            counts[name] |= {
                "shards": len(made.shards),
                "samples": made.samples,
                "bytes": made.bytes,
                "blurred": made.blurred,
                "dropped": made.dropped,
            }
            made.write_dropped(curation.out / "dropped" / f"reshard-{name}.parquet")
    return counts


def _clear_others(curation: Curation) -> None:
    """Remove shards of sources that are no longer chosen, when that is allowed."""
    there = (path for path in (curation.out / "shards").glob("*") if path.is_dir())
    others = sorted(path for path in there if path.name not in curation.chosen.sources)
    if others and not curation.overwrite:
        raise ConfigError(
            f"{curation.out / 'shards'} holds {', '.join(path.name for path in others)}, which this "
            "selection does not make; say overwrite=true to remove them, or choose another out"
        )
    for path in others:
        shutil.rmtree(path)


def _carried(curation: Curation, tables: SourceTables, rule: Rule) -> tuple[ScoreColumn, ...]:
    """Name the scores that the selection looked at; brought ones went along with the samples."""
    columns = tables.resolve(
        word for word in parse_expression(rule.keep).columns if word not in IDENTITY
    )
    scored = [
        ScoreColumn(column.own, curation.scores / rule.input / column.place)
        for column in columns.values()
        if is_in_scores(tables, column)
    ]
    # Called as the expression calls them, without the table's name where no other is called so.
    names = {word: word.rpartition(".")[2] for word in brought(tables, columns)}
    called = Counter([*names.values(), *(column.name for column in scored)])
    along = [
        ScoreColumn(own, label=names[word] if called[names[word]] == 1 else word)
        for word, own in brought(tables, columns).items()
    ]
    return (*scored, *along)
