"""Proves that packing lost nothing: every document in exactly one pack or in the ledger."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.formats.corpora import Shard, open_corpus, shard_path
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.plan import SPLITS, Selection
from openqwen2vl.packing.proof.beginnings import Packed, check_beginnings
from openqwen2vl.packing.proof.census import OUTSIDE, Census, CensusJob, join_censuses, take_census
from openqwen2vl.packing.proof.compare import compare_images
from openqwen2vl.packing.proof.entries import list_shard
from openqwen2vl.packing.proof.faults import LISTED, Faults
from openqwen2vl.packing.proof.hashes import hash_shards
from openqwen2vl.packing.proof.holdings import Holdings, read_holdings
from openqwen2vl.packing.proof.multisets import lookup, surplus
from openqwen2vl.packing.proof.texts import check_tokenizer, compare_texts
from openqwen2vl.packing.reader import VALIDATION


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What to prove.

    Attributes:
        input: the corpus that was packed.
        packs: its folders of packs: one, or one for each part.
        image_root: folder of the images of a listing.
        deep: whether every byte of every image is compared, and every packed shard hashed.
        tokenizer: the one that the packs were made with, to lay out and encode every document
            again; None leaves texts alone.
    """

    input: Path
    packs: tuple[Path, ...]
    image_root: Path | None = None
    deep: bool = False
    tokenizer: PreTrainedTokenizerFast | None = None


@dataclass
class Verification:
    """What was found.

    Attributes:
        documents: entries of the corpus: packed, rejected and outside, or there is a fault.
        packed: documents in packs, validation's included.
        validation_again: validation documents that further folders hold, too: all parts of a
            corpus hold the same ones.
        rejected: documents of the ledgers by reason.
        outside: documents that belong to no given folder's part.
        packs: packs read.
        images: images in them.
        bytes: bytes of image that were compared; 0 unless ``deep``.
        texts: packed documents whose ids and targets were compared; None without a tokenizer.
        faults: everything that is not as it should be.
    """

    documents: int = 0
    packed: int = 0
    validation_again: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    packs: int = 0
    images: int = 0
    bytes: int = 0
    texts: int | None = None
    faults: Faults = field(default_factory=Faults)


@dataclass(frozen=True)
class _Corpus:
    """A corpus' shards, how they are read, their census, and ``starts``, their bounds in it."""

    shards: Sequence[Shard]
    rules: InterleavedRules
    census: Census
    starts: NDArray[np.int64]

    def names(self, places: NDArray[np.int64]) -> Iterator[str]:
        """Read the names of entries again, by their places in the census."""
        owners = np.searchsorted(self.starts, places, side="right") - 1
        for owner in np.unique(owners).tolist():
            stem, listed = (
                shard_path(self.shards[owner]).stem,
                list_shard(self.shards[owner], self.rules),
            )
            for number in (places[owners == owner] - self.starts[owner]).tolist():
                yield f"{stem}/{listed.keys[number]} (uid {listed.uids[number]})"


def _common_rules(manifests: Sequence[Manifest]) -> InterleavedRules:
    """Give the rules by which interleaved documents were taken for all folders."""
    rules = manifests[0].interleaved
    if any(manifest.interleaved != rules for manifest in manifests):
        raise PackError(
            "the folders were packed with different rules for interleaved documents; verify "
            "those of one rule at a time"
        )
    return rules


def verify(request: VerifyRequest, mapper: Mapper = map_inline) -> Verification:
    """Compare a corpus with its packs, document by document.

    Documents are told apart by a hash of shard, key and uid; a document's number of turns and the
    sizes of its images must agree too, and with ``deep`` the images' bytes. What is recorded as
    shortened must be the beginning of the corpus' document. With a tokenizer the ids and targets
    of each, and the reasons of rejects, must be what packing the corpus gives.

    Args:
        request: what to prove.
        mapper: runs a function over shards, here or in other processes, results in order.

    Raises:
        UserError: a corpus or a folder that cannot be read at all, or another tokenizer.
    """
    if not request.packs:
        raise PackError("packs names no folder; give the packs' folder, or [DIR,DIR] of its parts")
    manifests = [Manifest.load(path) for path in request.packs]
    texts = request.tokenizer is not None
    if request.tokenizer is not None:
        check_tokenizer(request.packs, manifests, request.tokenizer)
    corpus = _read_corpus(request, manifests, mapper)
    found = Verification(documents=len(corpus.census))
    folders: list[list[Holdings]] = []
    for number, (path, manifest) in enumerate(zip(request.packs, manifests, strict=True)):
        held = [read_holdings(path, "train", mapper, texts=texts)]
        if manifest.validation:
            held.append(read_holdings(path / VALIDATION, "validation", mapper, texts=texts))
        folders.append(held)
        _check_folder(corpus, number, held, found)
    for one, other in combinations(folders, 2):
        _check_disjoint(one, other, found.faults)
    _count(corpus, folders, found)
    every = [holdings for held in folders for holdings in held]
    shards, rules, starts = corpus.shards, corpus.rules, corpus.starts
    packed = _shortened(corpus, every)
    found.faults.merge(check_beginnings(shards, rules, starts, packed, mapper))
    if request.deep:
        for holdings in every:
            found.faults.merge(hash_shards(holdings, mapper))
        faults, found.bytes = compare_images(shards, rules, corpus.census, starts, every, mapper)
        found.faults.merge(faults)
    if request.tokenizer is not None:
        names = corpus.census.identities
        faults, found.texts = compare_texts(
            shards, rules, names, starts, folders, request.tokenizer, mapper
        )
        found.faults.merge(faults)
    return found


def _read_corpus(request: VerifyRequest, manifests: Sequence[Manifest], mapper: Mapper) -> _Corpus:
    rules = _common_rules(manifests)
    shards = open_corpus(request.input, request.image_root)
    selections = tuple(Selection(m.part, m.validation) for m in manifests)
    jobs = [CensusJob(shard, selections, rules, request.deep) for shard in shards]
    parts = list(mapper(take_census, jobs))
    starts = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return _Corpus(shards, rules, join_censuses(parts), starts)


def _shortened(corpus: _Corpus, every: Sequence[Holdings]) -> Packed:
    """Find the shortened documents that the corpus has, as they are in packs."""
    parts = []
    for holdings in every:
        audit = holdings.audit
        at = lookup(corpus.census.identities, audit.identities)
        mine = np.isin(audit.identities, holdings.shortened.identities) & (at >= 0)
        parts.append((at[mine], audit.turns[mine], audit.num_images[mine], audit.sizes[mine]))
    return Packed(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _check_folder(
    corpus: _Corpus, number: int, held: Sequence[Holdings], found: Verification
) -> None:
    """Compare the splits of one folder with what its selection takes of the corpus."""
    splits, manifest = corpus.census.splits[number], held[0].manifest
    outside = int((splits == OUTSIDE).sum())
    if outside != manifest.outside_part:
        found.faults.add(
            "manifest",
            f"{held[0].path}: {outside} documents outside the part, the manifest says "
            f"{manifest.outside_part}",
        )
    for holdings in held:
        found.packs += len(holdings.index.shard)
        found.images += int(holdings.index.images.sum())
        found.faults.merge(holdings.faults)
        for key in ("spec", "source", "part", "validation", "interleaved", "overlong"):
            if getattr(holdings.manifest, key) != getattr(manifest, key):
                found.faults.add("manifest", f"{holdings.path} was packed with another {key}")
        _check_split(corpus, splits == SPLITS.index(holdings.split), holdings, found.faults)


def _check_split(
    corpus: _Corpus, mine: NDArray[np.bool_], holdings: Holdings, faults: Faults
) -> None:
    """Compare the entries of a split with packs and ledger, as multisets."""
    places = np.flatnonzero(mine)
    expected = corpus.census.identities[places]
    held = np.concatenate([holdings.audit.identities, holdings.ledger.identities])
    if not np.array_equal(np.sort(expected), np.sort(held)):
        missing = surplus(expected, held)
        for name in corpus.names(places[missing[:LISTED]]):
            faults.add("missing", f"{name} is in no pack of {holdings.path} and not in its ledger")
        if len(missing) > LISTED:
            faults.counts["missing"] += len(missing) - LISTED
        _tell_surplus(corpus, expected, holdings, surplus(held, expected), faults)
    _check_content(corpus.census, places, holdings, faults)


def _check_content(
    census: Census, places: NDArray[np.int64], holdings: Holdings, faults: Faults
) -> None:
    """Compare images and turns of the documents that are in both, but for what was shortened."""
    audit = holdings.audit
    at = lookup(census.identities[places], audit.identities)
    mine = np.flatnonzero((at >= 0) & ~np.isin(audit.identities, holdings.shortened.identities))
    there = places[at[mine]]
    for place in mine[audit.sizes[mine] != census.sizes[there]].tolist():
        faults.add("images", f"{holdings.name(place)} has images of other sizes in the corpus")
    found, whole = audit.turns[mine], census.turns[there]
    for place in np.flatnonzero(found != whole).tolist():
        faults.add(
            "turns",
            f"{holdings.name(int(mine[place]))} has {found[place]} turns, the corpus "
            f"{whole[place]}, and it is not recorded as shortened",
        )


def _tell_surplus(
    corpus: _Corpus,
    expected: NDArray[np.uint64],
    holdings: Holdings,
    places: NDArray[np.int64],
    faults: Faults,
) -> None:
    """Say of what packs and ledger hold too much why it should not be there."""
    held = np.concatenate([holdings.audit.identities, holdings.ledger.identities])
    kinds = np.where(
        np.isin(held[places], expected),
        "duplicate",
        np.where(np.isin(held[places], corpus.census.identities), "misplaced", "unknown"),
    )
    why = {
        "duplicate": "is there a second time",
        "misplaced": f"does not belong to the part or split of {holdings.path}",
        "unknown": "is not in the corpus",
    }
    for kind, sentence in why.items():
        mine = places[kinds == kind].tolist()
        for place in mine[:LISTED]:
            faults.add(kind, f"{holdings.name(place)} {sentence}")
        if len(mine) > LISTED:
            faults.counts[kind] += len(mine) - LISTED


def _check_disjoint(one: Sequence[Holdings], other: Sequence[Holdings], faults: Faults) -> None:
    """Find documents that two folders train on, or that one trains on and the other validates on."""
    for first in one:
        for second in other:
            if first.split == second.split == "validation":
                continue  # the same documents in every part, by design
            kind = "duplicate" if first.split == second.split else "leak"
            shared = np.flatnonzero(np.isin(second.audit.identities, first.audit.identities))
            for place in shared[:LISTED].tolist():
                faults.add(kind, f"{second.name(place)} is in {first.path} too")
            if len(shared) > LISTED:
                faults.counts[kind] += len(shared) - LISTED


def _count(corpus: _Corpus, folders: Sequence[Sequence[Holdings]], found: Verification) -> None:
    """Count documents over folders; validation's are the same in each, so the most count once."""
    found.outside = int((corpus.census.splits == OUTSIDE).all(axis=0).sum())
    validation = [held[1] for held in folders if len(held) > 1]
    counted = [held[0] for held in folders]
    validation.sort(key=lambda holdings: len(holdings.audit.identities))
    counted += validation[-1:]
    found.validation_again = sum(len(h.audit.identities) for h in validation[:-1])
    for number, holdings in enumerate(counted):
        found.packed += len(holdings.audit.identities)
        # What is lost of a shard without a key is told in every part.
        found.rejected.update(r["reason"] for r in holdings.ledger.rows if r["key"] or not number)
