"""Word for word: what packs hold of each document against the corpus' own, encoded again."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from openqwen2vl.engine.local import Mapper
from openqwen2vl.formats.corpora import Shard, read_shard, shard_path
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.formats.rejects import REASONS, Reject
from openqwen2vl.formats.templates import Encoded, template
from openqwen2vl.formats.tokens import tokenizer_hash
from openqwen2vl.packing.lengths import reason_code
from openqwen2vl.packing.proof.census import text_marks, without_collector
from openqwen2vl.packing.proof.fates import Fate, Making, fates
from openqwen2vl.packing.proof.faults import LISTED, Faults
from openqwen2vl.packing.proof.holdings import Holdings
from openqwen2vl.packing.proof.multisets import lookup
from openqwen2vl.packing.proof.wording import sentence
from openqwen2vl.packing.scan import load_saved

_BATCH = 1024  # documents in one call of the tokenizer
_DUPLICATE = reason_code("duplicate_uid")


@dataclass(frozen=True)
class TextsJob:
    """What a folder of packs says of one raw shard; n claims, each about one of its entries.

    Attributes:
        shard: the raw shard.
        rules: which interleaved documents were taken.
        making: what the packs are made for.
        tokenizer: a folder that every worker can read.
        entries: int64 (n,), numbers of the entries, ascending.
        reasons: int8 (n,), 0 for a packed document, else the number of why it was left out.
        marks: uint64 (n,), see ``census.text_marks``; 0 for what was left out.
    """

    shard: Shard
    rules: InterleavedRules
    making: Making
    tokenizer: Path
    entries: NDArray[np.int64]
    reasons: NDArray[np.int8]
    marks: NDArray[np.uint64]

    def __str__(self) -> str:
        return str(shard_path(self.shard))


@dataclass
class Differences:
    """Claims that do not hold: how many by kind, and of the first what the corpus says instead.

    Attributes:
        counts: ``text`` of packed documents, ``ledger`` of those that were left out.
        told: the claim's number and the entry's fate.
    """

    counts: Counter[str] = field(default_factory=Counter)
    told: list[tuple[int, Fate]] = field(default_factory=list)

    def add(self, claim: int, kind: str, fate: Fate) -> None:
        """Count one; its fate is kept while there are few of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= LISTED:
            self.told.append((claim, fate))


def compare_texts_of(job: TextsJob) -> Differences:
    """Lay out and encode one raw shard's documents again, and compare what is claimed of them.

    Raises:
        ShardError: the shard went away, or changed meanwhile.
        UserError: the template asks for a token that the tokenizer lacks.
    """
    found, done = Differences(), 0
    tokenizer = load_saved(str(job.tokenizer), job.making.spec.tokenizer_hash)
    wanted = _wanted(job)
    with without_collector():
        while batch := list(islice(wanted, _BATCH)):
            documents = [item for item, _ in batch if isinstance(item, Document)]
            told = iter(fates(documents, job.making, tokenizer))
            result = [next(told) if isinstance(i, Document) else i.reason for i, _ in batch]
            marks = _marks(result)
            for (_, claims), fate, mark in zip(batch, result, marks, strict=True):
                for claim in claims:
                    reason = int(job.reasons[claim])
                    if not _holds(reason, int(job.marks[claim]), fate, mark):
                        found.add(claim, "ledger" if reason else "text", fate)
                done += len(claims)
    if done != len(job.entries):
        raise ShardError(f"{job} changed while it was being verified; run verify again")
    return found


def _wanted(job: TextsJob) -> Iterator[tuple[Document | Reject, range]]:
    """Give the entries of which something is claimed, and which claims those are."""
    entries = [*job.entries.tolist(), -1]
    claim = 0
    for number, item in enumerate(read_shard(job.shard, "", job.rules)):
        first = claim
        while entries[claim] == number:
            claim += 1
        if claim > first:
            yield item, range(first, claim)


def _marks(told: Sequence[Fate]) -> list[int]:
    """Give the marks of what is to be packed; 0 for what is not."""
    codes = [fate for fate in told if isinstance(fate, Encoded)]
    marks = iter(text_marks((code.ids, code.targets) for code in codes).tolist())
    return [next(marks) if isinstance(fate, Encoded) else 0 for fate in told]


def _holds(reason: int, claimed: int, fate: Fate, mark: int) -> bool:
    if not isinstance(fate, Encoded):
        return reason == reason_code(fate)
    # Whether the document that came first is packed is looked at with the rest of the ledger.
    return reason == _DUPLICATE if reason else claimed == mark


@dataclass(frozen=True)
class _Claims:
    """What a folder says of the corpus' entries, train and validation together; see ``TextsJob``.

    Attributes:
        entries: numbers in the corpus.
        reasons: see above.
        marks: see above.
        held: int8 (n,), which split says so.
        places: int64 (n,), as ``Holdings.name`` counts.
    """

    entries: NDArray[np.int64]
    reasons: NDArray[np.int8]
    marks: NDArray[np.uint64]
    held: NDArray[np.int8]
    places: NDArray[np.int64]


def _claims(identities: NDArray[np.uint64], held: Sequence[Holdings]) -> _Claims:
    """Find what a folder says; what is not in the corpus or of no known reason is left out."""
    columns = []
    for number, holdings in enumerate(held):
        audit, ledger = holdings.audit, holdings.ledger
        packed, left = len(audit.identities), len(ledger.identities)
        told = [row["reason"] for row in ledger.rows]
        codes = [reason_code(reason) if reason in REASONS else -1 for reason in told]
        entries = lookup(identities, np.concatenate([audit.identities, ledger.identities]))
        reasons = np.concatenate([np.zeros(packed, np.int8), np.array(codes, np.int8)])
        marks = np.concatenate([audit.texts, np.zeros(left, np.uint64)])
        places = np.flatnonzero((entries >= 0) & (reasons >= 0))
        who = np.full(len(places), number, np.int8)
        columns.append((entries[places], reasons[places], marks[places], who, places))
    joined = _Claims(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))
    order = np.argsort(joined.entries, kind="stable")
    return _Claims(*(column[order] for column in vars(joined).values()))


def check_tokenizer(
    paths: Sequence[Path], manifests: Sequence[Manifest], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Make sure that a tokenizer, and the templates of this program, are those of packs.

    Raises:
        PackError: another tokenizer, or a template that has changed since.
    """
    given = tokenizer_hash(tokenizer)
    for path, manifest in zip(paths, manifests, strict=True):
        spec = manifest.spec
        if spec.tokenizer_hash != given:
            raise PackError(
                f"the packs of {path} were made with a tokenizer of hash {spec.tokenizer_hash}, "
                f"the one given has {given}; give tokenizer= as it was given to pack"
            )
        known = template(spec.template).hash
        if spec.template_hash != known:
            raise PackError(
                f"the packs of {path} were laid out by a template {spec.template} of hash "
                f"{spec.template_hash}, this program's has {known}; verify them with the version "
                "that made them, or without tokenizer="
            )


def compare_texts(
    shards: Sequence[Shard],
    rules: InterleavedRules,
    identities: NDArray[np.uint64],
    starts: NDArray[np.int64],
    folders: Sequence[Sequence[Holdings]],
    tokenizer: PreTrainedTokenizerFast,
    mapper: Mapper,
) -> tuple[Faults, int]:
    """Compare ids and target spans in packs, and the ledger's reasons, with the corpus.

    Args:
        shards: of the corpus.
        rules: which interleaved documents were taken.
        identities: uint64, of the corpus' entries, see ``census.identity``.
        starts: int64 (shards + 1,), bounds of the shards' entries in the corpus.
        folders: the packs, read with ``texts``: each folder's splits.
        tokenizer: the one that they were made with.
        mapper: runs a function over shards, results in order.

    Returns:
        Faults, and how many packed documents were compared. What the corpus does not have is left
        out: it is a fault already.
    """
    faults, compared = Faults(), 0
    with TemporaryDirectory(prefix="openqwen2vl-verify-") as folder:
        tokenizer.save_pretrained(folder)
        for held in folders:
            claims = _claims(identities, held)
            compared += int((claims.reasons == 0).sum())
            bounds = np.searchsorted(claims.entries, starts).tolist()
            jobs, firsts = [], []
            for number, shard in enumerate(shards):
                mine = slice(bounds[number], bounds[number + 1])
                if mine.start < mine.stop:
                    jobs.append(
                        TextsJob(
                            shard,
                            rules,
                            Making.of(held[0].manifest),
                            Path(folder),
                            claims.entries[mine] - starts[number],
                            claims.reasons[mine],
                            claims.marks[mine],
                        )
                    )
                    firsts.append(mine.start)
            for first, found in zip(firsts, mapper(compare_texts_of, jobs), strict=True):
                _tell(found, first, claims, held, tokenizer, faults)
    return faults, compared


def _tell(
    found: Differences,
    first: int,
    claims: _Claims,
    held: Sequence[Holdings],
    tokenizer: PreTrainedTokenizerFast,
    faults: Faults,
) -> None:
    """Say what differs; of a shard with very many only the first are told, all are counted."""
    rest = found.counts.copy()
    for claim, fate in found.told:
        place = first + claim
        kind = "ledger" if claims.reasons[place] else "text"
        holdings = held[claims.held[place]]
        # A sentence takes a look at the pack, which is not worth it where none is printed.
        if len(faults.told.get(kind, ())) < LISTED:
            faults.add(kind, sentence(holdings, int(claims.places[place]), fate, tokenizer))
            rest[kind] -= 1
    faults.counts += rest
