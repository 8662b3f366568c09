"""Resharding: kept samples written into balanced, shuffled WebDataset shards, original bytes kept."""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openqwen2vl.curation.resharding.blur import METHOD
from openqwen2vl.curation.resharding.columns import ScoreColumn, labelled, made_of
from openqwen2vl.curation.resharding.deal import Hand, deal
from openqwen2vl.curation.resharding.kept import KeptTable
from openqwen2vl.curation.resharding.locate import LocateJob, locate_shard
from openqwen2vl.curation.resharding.resharded import FORMAT_VERSION, ReshardManifest
from openqwen2vl.curation.resharding.rewrite import NewShard, WriteJob, write_shard
from openqwen2vl.curation.scores import stamp
from openqwen2vl.curation.shards import FACES, RawShard, shard_file, shards_at
from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.formats.errors import ShardError, UserError
from openqwen2vl.formats.files import tell_full_disk
from openqwen2vl.formats.manifest import MANIFEST_NAME
from openqwen2vl.packing.space import check_space

_WORK = ".work"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReshardRequest:
    """What to reshard.

    Attributes:
        kept: the kept table of a source.
        input: the folder of its raw shards, or the listing that it is.
        out: the folder to fill.
        source: the name that the raw shards go by.
        name: the name of what is kept of them, as mixtures have it.
        seed: of the shuffle.
        samples_per_shard: samples in a new shard, at most; all have as many, or one fewer.
        window: raw shards that are shuffled together: more mix better, and are read at once.
        scores: columns that go into ``KEY.json``, under labels where they share a name.
        blur: whether to blur the faces that DataComp's boxes tell of. A sample that has some and
            whose image cannot be decoded is left out of its shard.
        funnel: what became of the other samples, by step and reason; it goes into the manifest,
            with what is left out here.
        overwrite: whether shards that ``out`` holds may go.
        image_root: folder of the images that the input names by path.

    Raises:
        UserError: a number below 1, or shards that would be written among the raw ones.
    """

    kept: Path
    input: Path
    out: Path
    source: str
    name: str
    seed: int = 0
    samples_per_shard: int = 10_000
    window: int = 16
    scores: tuple[ScoreColumn, ...] = ()
    blur: bool = False
    funnel: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    image_root: Path | None = None

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it starts at 1")
        if self.out.resolve() == self.input.resolve():
            raise UserError(f"{self.out} holds the raw shards; choose another out")


def reshard(request: ReshardRequest, mapper: Mapper = map_inline) -> ReshardManifest:
    """Write the kept samples of a source; the same request gives the same bytes, whatever maps it.

    Whatever stops it, a new start goes on with the shards that are finished. In a folder that is
    complete, shards that went missing or have another size are written again, and no other. A
    source of which nothing is kept has a manifest and no shards.

    Args:
        request: what to do.
        mapper: runs a function over shards, here or elsewhere, results in order.

    Raises:
        UserError: scores are missing, the folder holds something else, or too small a disk.
        ShardError: the kept table or a raw shard is missing, damaged, or another than was scored.
    """
    request = replace(request, scores=labelled(request.scores))
    table = KeptTable.open(request.kept)
    raws = _raw_shards(request, table)
    digest = _digest(request, table, raws)
    known = _finished(request, digest)
    counts = [shard.rows for shard in table.shards]
    dealt = deal(counts, request.seed, request.window, request.samples_per_shard)
    shards = () if known is None else known.shards
    there = {shard.name: shard for shard in shards if shard.is_in(request.out)}
    lacking = {n: hands for n, hands in enumerate(dealt) if _name(n) not in there}
    if known is None or lacking:
        _check_scores(request, table)
        jobs = _write_jobs(request, lacking, _locate_jobs(request, table, raws), mapper)
        if known is None:
            _remove_others(request.out, [job.finished() for job in jobs])
        _check_space(request.out, jobs)
        there |= {shard.name: shard for shard in mapper(write_shard, jobs)}
    manifest = _manifest(request, [there[_name(n)] for n in range(len(dealt))], digest)
    if request.blur:
        _tell_blur(request.name, manifest.blurred)
    if manifest != known:
        manifest.save(request.out)
    shutil.rmtree(request.out / _WORK, ignore_errors=True)
    return manifest


def _name(number: int) -> str:
    return f"{number:08d}.tar"


def _tell_blur(name: str, blurred: Mapping[str, int]) -> None:
    """Say what of faces one may have hoped to be blurred is not."""
    if left_out := blurred.get("unreadable"):
        text = "%d samples of %s are left out: their images have faces and cannot be decoded"
        _LOG.warning(text, left_out, name)
    if bad := blurred.get("bad_boxes"):
        text = (
            "%d boxes of faces of %s are none, and what they mean is not blurred; expected [left, "
            "top, right, bottom], fractions of width and height"
        )
        _LOG.warning(text, bad, name)
    if not any(blurred.values()):
        _LOG.warning("nothing of %s is blurred: no kept sample has a box in %s", name, FACES)


def _make(work: Path) -> None:
    with tell_full_disk(work):
        try:
            work.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                f"{work.parent} cannot be written ({error.strerror}); choose another folder"
            ) from error


def _raw_shards(request: ReshardRequest, table: KeptTable) -> list[RawShard]:
    """Give each raw shard that the kept table speaks of."""
    if not table.shards:
        _LOG.warning("nothing of %s is kept: %s has no rows", request.name, request.kept)
    names = [shard.name for shard in table.shards]
    found = shards_at(request.input, names, request.image_root)
    raws = [found[name] for name in names]
    missing = [raw for raw in raws if not shard_file(raw).is_file()]
    if missing:
        raise ShardError(
            f"{missing[0]} is missing, and {len(missing) - 1} others that {request.kept} keeps "
            "samples of; check the path of the raw shards"
        )
    return raws


def _check_scores(request: ReshardRequest, table: KeptTable) -> None:
    for column in request.scores:
        if column.folder is None and column.name not in table.columns:
            raise UserError(
                f"{request.kept} has no column {column.name}; it has {', '.join(table.columns)}: "
                "select and deduplicate again"
            )


def _digest(request: ReshardRequest, table: KeptTable, raws: Sequence[RawShard]) -> str:
    paths = [column.path(shard.name) for column in request.scores for shard in table.shards]
    names = [text for column in request.scores for text in (column.name, column.label) if text]
    told = [
        [FORMAT_VERSION, request.source, request.name, request.seed, request.samples_per_shard],
        [request.window, request.blur and METHOD, names],
        [table.hash, [(shard_file(raw).name, *stamp(raw)) for raw in raws]],
        [path and made_of(path) for path in paths],
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _finished(request: ReshardRequest, digest: str) -> ReshardManifest | None:
    """Give the manifest of a folder that was complete; make room in one that is to go."""
    out = request.out
    if (out / MANIFEST_NAME).exists():
        known = ReshardManifest.load(out)
        if known.digest == digest:
            return known
        if not request.overwrite:
            raise UserError(
                f"{out} holds shards of other samples or settings; delete the folder or set "
                "overwrite=true, or give another out"
            )
        # The manifest goes first: without it the rest counts as unfinished.
        (out / _WORK).mkdir(exist_ok=True)
        (out / MANIFEST_NAME).unlink()
    elif any(out.glob("*.tar")) and not (out / _WORK).exists():
        raise UserError(f"{out} holds tars that were not written by this step; choose another out")
    return None


def _locate_jobs(
    request: ReshardRequest, table: KeptTable, raws: Sequence[RawShard]
) -> list[LocateJob]:
    return [
        LocateJob(
            raw=raw,
            kept=request.kept,
            kept_hash=table.hash,
            shard=shard,
            scores=request.scores,
            path=request.out / _WORK / "located" / f"{shard.name}.parquet",
        )
        for raw, shard in zip(raws, table.shards, strict=True)
    ]


def _write_jobs(
    request: ReshardRequest,
    dealt: Mapping[int, tuple[Hand, ...]],
    locating: Sequence[LocateJob],
    mapper: Mapper,
) -> list[WriteJob]:
    """Say how to write some new shards; only the raw shards that give to them are looked through."""
    work = request.out / _WORK
    _make(work)
    needed = sorted({n for hands in dealt.values() for hand in hands for n in hand.window.shards})
    found = list(mapper(locate_shard, [locating[n] for n in needed]))
    located = dict(zip(needed, found, strict=True))
    return [
        WriteJob(
            path=request.out / _name(number),
            note=work / "written" / f"{number:08d}.json",
            source=request.source,
            seed=request.seed,
            blur=request.blur,
            hands=hands,
            located=tuple(tuple(located[n] for n in hand.window.shards) for hand in hands),
        )
        for number, hands in dealt.items()
    ]


def _remove_others(out: Path, done: Sequence[NewShard | None]) -> None:
    """Remove shards and notes that an earlier start left and this one does not take over."""
    kept = {shard.name for shard in done if shard is not None}
    for path in [*out.glob("*.tar"), *(out / _WORK / "written").glob("*.json")]:
        if f"{path.stem}.tar" not in kept:
            path.unlink()


def _check_space(out: Path, jobs: Sequence[WriteJob]) -> None:
    """Make sure that there is room for the shards that are not finished."""
    lacking = sum(job.samples for job in jobs if job.finished() is None)
    files = {file for job in jobs for files in job.located for file in files}
    total, samples = sum(file.bytes for file in files), sum(file.samples for file in files)
    check_space(out, total * lacking // max(1, samples), "the shards")


def _manifest(request: ReshardRequest, shards: Sequence[NewShard], digest: str) -> ReshardManifest:
    blurred = Counter[str]()
    for shard in shards:
        blurred.update(shard.blur)
    manifest = ReshardManifest(
        name=request.name,
        source=request.source,
        samples=sum(shard.samples for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        seed=request.seed,
        samples_per_shard=request.samples_per_shard,
        window=request.window,
        scores=tuple(column.called for column in request.scores),
        blur=request.blur,
        blurred=dict(blurred),
        shards=tuple(shards),
        funnel=dict(request.funnel),
        digest=digest,
    )
    if not manifest.dropped:
        return manifest
    own = {"reshard": manifest.dropped, "kept": {"samples": manifest.samples}}
    return replace(manifest, funnel={**manifest.funnel, **own})
