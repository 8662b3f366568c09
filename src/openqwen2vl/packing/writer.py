"""From a corpus to a folder of packs: index, choose, plan, write, and the manifest last."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.formats.corpora import Shard, open_corpus
from openqwen2vl.formats.errors import PackError, UserError
from openqwen2vl.formats.files import tell_full_disk
from openqwen2vl.formats.manifest import MANIFEST_NAME, Manifest
from openqwen2vl.formats.parquet import ParquetShard
from openqwen2vl.packing.choose import Choice, choose, leave_out_duplicates
from openqwen2vl.packing.index import INDEX_NAME
from openqwen2vl.packing.ledger import count_reasons
from openqwen2vl.packing.locks import only_writer
from openqwen2vl.packing.plan import SPLITS
from openqwen2vl.packing.request import PackRequest
from openqwen2vl.packing.scan import ScanJob, index_folder, scan_shard
from openqwen2vl.packing.shorten import shorten
from openqwen2vl.packing.space import check_space
from openqwen2vl.packing.split import REJECTS_NAME, SHORTENED_NAME, UIDS_NAME, plan_split

_WORK = ".work"


def pack_folder(
    request: PackRequest, tokenizer: PreTrainedTokenizerFast, mapper: Mapper = map_inline
) -> Manifest:
    """Pack a corpus; the same request gives the same bytes, whatever maps the work.

    Whatever stops it, a new start goes on with the index files and packed shards that are
    finished; packed shards of another request or of raw shards that changed are written anew.

    Args:
        request: what to do.
        tokenizer: the one that ``request.spec`` was made with.
        mapper: runs a function over shards, here or in other processes, results in order.

    Returns:
        The manifest of the training packs; ``out/validation`` has its own.

    Raises:
        UserError: bad input, packs already there, another process at them, nothing left to pack,
            or too small a disk.
    """
    shards = open_corpus(request.input, request.image_root)
    with only_writer(request.out):
        return _fill(request, shards, tokenizer, mapper)


def _fill(
    request: PackRequest,
    shards: Sequence[Shard],
    tokenizer: PreTrainedTokenizerFast,
    mapper: Mapper,
) -> Manifest:
    """Do what ``pack_folder`` says, with the folder to itself."""
    _clear(request)
    work = request.out / _WORK
    with tell_full_disk(work):
        work.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(work / "tokenizer")
    choices = index_corpus(request, shards, work, mapper)
    tables = any(isinstance(shard, ParquetShard) for shard in shards)
    splits = [s for s in SPLITS if s == "train" or request.selection.validation]
    plans = [plan_split(request, s, choices, mapper, work, tables=tables) for s in splits]
    for plan in plans:
        plan.folder.mkdir(parents=True, exist_ok=True)
    check_space(request.out, sum(plan.take_over() for plan in plans))
    manifests = [plan.write(mapper) for plan in plans]
    # Training's manifest is the last of all: with it the whole folder is complete.
    for plan, manifest in reversed(list(zip(plans, manifests, strict=True))):
        manifest.save(plan.folder)
    shutil.rmtree(work)
    return manifests[0]


def _clear(request: PackRequest) -> None:
    """Make room: finished packs go only on request, what can be taken over stays."""
    finished = (request.out / MANIFEST_NAME).exists()
    if finished and not request.overwrite:
        shutil.rmtree(request.out / _WORK, ignore_errors=True)
        raise PackError(
            f"{request.out} already holds packs; delete the folder or set overwrite=true, "
            "or give another out"
        )
    names = [MANIFEST_NAME, INDEX_NAME, REJECTS_NAME, SHORTENED_NAME, UIDS_NAME, ".*.tmp"]
    for folder in (request.out, request.out / "validation"):
        # The manifest goes first: without it the rest counts as unfinished.
        for name in names + ["packed-*.tar"] * finished:
            for path in folder.glob(name):
                path.unlink()
    if finished:
        shutil.rmtree(request.out / _WORK, ignore_errors=True)


def index_corpus(
    request: PackRequest, shards: Sequence[Shard], work: Path, mapper: Mapper
) -> list[Choice]:
    """Index a corpus, where it is not, and choose among its documents.

    Args:
        request: what to pack.
        shards: of the corpus, in order.
        work: holds the folder ``tokenizer``, and takes documents that are shortened.
        mapper: runs a function over shards, results in order.

    Raises:
        ShardError: a raw shard is missing or changes meanwhile.
        UserError: the index cannot be kept, or the disk is full.
        PackError: nothing is left for training.
    """
    spec, selection, most = request.spec, request.selection, request.max_images
    folder = index_folder(request.index_root, spec, request.source, request.rules)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the length index cannot be kept in {folder} ({error.strerror}); give index=DIR"
        ) from error
    scans = [
        ScanJob(
            shard=shard,
            source=request.source,
            template=spec.template,
            rules=request.rules,
            tokenizer=work / "tokenizer",
            tokenizer_hash=spec.tokenizer_hash,
            folder=folder,
        )
        for shard in shards
    ]
    choices, spoken = [], []
    for lengths in mapper(scan_shard, scans):
        choices.append(choose(lengths, spec, selection, most))
        spoken.append(lengths.conversation)
    if request.overlong == "drop_last_turns":
        choices = shorten(choices, scans, spoken, spec, selection, most, work, mapper)
    leave_out_duplicates(choices)
    if not any(choice.kept("train").any() for choice in choices):
        raise PackError(_nothing_left(request, choices))
    return choices


def _nothing_left(request: PackRequest, choices: Sequence[Choice]) -> str:
    counts = count_reasons(choices, "train")
    reasons = ", ".join(f"{number} {reason}" for reason, number in counts.items())
    return (
        f"nothing of {request.input} is left to pack: {sum(counts.values())} rejected "
        f"({reasons or 'none'}), {sum(choice.outside for choice in choices)} outside the part; "
        "look at the shards, or widen part"
    )
