"""Pairs through curation's own steps: scored, selected, resharded; and packs of what stays."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from filtering_corpus import SAMPLES_PER_SHARD
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from openqwen2vl.corpus.noise import MISMATCHED
from openqwen2vl.curation.resharding.columns import ScoreColumn
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.scorers.clip import ClipScorer
from openqwen2vl.curation.scores import score_path
from openqwen2vl.curation.selection.select import Rule, Selection, select
from openqwen2vl.curation.selection.sources import open_source
from openqwen2vl.curation.selection.uids import write_uids
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.raw import raw_shards
from openqwen2vl.packing.request import PackRequest
from openqwen2vl.packing.writer import pack_folder

SOURCE = "web"
SCORE = "clip_similarity"
MATCHED = "matched"


@dataclass(frozen=True)
class Pairs:
    """Raw shards with what their builder knows of them.

    Attributes:
        folder: the shards.
        samples: in their order.
        fates: what is wrong with each caption, as ``corpus.noise`` calls it.
    """

    folder: Path
    samples: list[Sample]
    fates: NDArray[np.str_]

    @classmethod
    def read(cls, folder: Path) -> "Pairs":
        """Read all shards of a folder; none of ours holds rejects."""
        found = [item for shard in raw_shards(folder) for item in read_samples(shard, SOURCE)]
        samples = [item for item in found if isinstance(item, Sample)]
        return cls(folder, samples, np.array([sample.fields["noise"] for sample in samples]))

    @property
    def matched(self) -> NDArray[np.bool_]:
        """Tell whose caption is of the picture, whatever else is wrong with it."""
        return self.fates != MISMATCHED


def score(pairs: Pairs, clip: Path, scores: Path) -> NDArray[np.float64]:
    """Score shards with a CLIP's folder; gives the similarities in the samples' order."""
    scorer = ClipScorer(model=str(clip), device="cpu", threads=1)
    shards = raw_shards(pairs.folder)
    score_source(shards, SOURCE, [scorer], scores)
    found: dict[tuple[str, str], float] = {}
    for shard in shards:
        table = pq.read_table(score_path(scores, SOURCE, scorer.name, shard.stem))
        rows = zip(table["key"].to_pylist(), table[SCORE].to_pylist(), strict=True)
        found |= {(shard.stem, key): value for key, value in rows}
    return np.array([found[sample.shard, sample.key] for sample in pairs.samples])


def keep(pairs: Pairs, arms: Mapping[str, str], root: Path) -> dict[str, int]:
    """Select by each arm's expression and reshard what stays to ``root/shards/ARM``.

    Args:
        pairs: scored below ``root/scores``.
        arms: expressions by the name of what they leave; the list ``matched`` holds the uids of
            pairs that do match, which no filter could know.
        root: takes selections and shards.

    Returns:
        How many pairs each arm keeps.
    """
    uids = root / "matched.npy"
    known = [s.uid for s, match in zip(pairs.samples, pairs.matched, strict=True) if match]
    write_uids(uids, pl.Series(known))
    rules = {name: Rule(input=SOURCE, keep=expression) for name, expression in arms.items()}
    tables = open_source(SOURCE, pairs.folder, root / "scores")
    select(Selection(sources=rules, lists={MATCHED: str(uids)}), {SOURCE: tables}, root)
    kept = {}
    for name in arms:
        request = ReshardRequest(
            kept=root / "selection" / f"{name}.parquet",
            input=pairs.folder,
            out=root / "shards" / name,
            source=SOURCE,
            name=name,
            samples_per_shard=SAMPLES_PER_SHARD,
            scores=(ScoreColumn(SCORE, root / "scores" / SOURCE / "clip"),),
        )
        kept[name] = reshard(request).samples
    return kept


def pack(
    shards: Path, out: Path, name: str, spec: PackSpec, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Pack raw shards as ``openqwen2vl pack`` does."""
    pack_folder(PackRequest(input=shards, out=out, source=name, spec=spec), tokenizer)


def auc(scores: NDArray[np.float64], matched: NDArray[np.bool_]) -> float:
    """How often a matched pair scores above a mismatched one, a tie counting half."""
    right, wrong = scores[matched], np.sort(scores[~matched])
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / 2 / len(wrong))


def separation(pairs: Pairs, scores: NDArray[np.float64]) -> dict[str, float]:
    """Give the AUC against mismatched pairs of all matched ones, and of each kind of them."""
    found = {"all": auc(scores, pairs.matched)}
    for fate in sorted(set(pairs.fates[pairs.matched].tolist())):
        chosen = (pairs.fates == fate) | ~pairs.matched
        found[fate] = auc(scores[chosen], pairs.matched[chosen])
    return found


def shares(shards: Path) -> dict[str, float]:
    """Give the share of each kind of caption in raw shards."""
    fates = Pairs.read(shards).fates
    return {str(fate): float((fates == fate).mean()) for fate in np.unique(fates)}
