"""New shards: kept samples copied out of their tars, with captions and image bytes as they were."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from openqwen2vl.curation.resharding.blur import METHOD
from openqwen2vl.curation.resharding.conversations import PICTURES
from openqwen2vl.curation.resharding.deal import Hand
from openqwen2vl.curation.resharding.locate import NOWHERE, Located
from openqwen2vl.curation.resharding.renew import Old, renewed
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.tar import END
from openqwen2vl.packing.locks import one_writer

_VERSION = 1


@dataclass(frozen=True)
class NewShard:
    """A shard that is written.

    Attributes:
        name: of the file.
        samples: in it.
        bytes: its size.
        sha256: of the file, in hex.
        blur: how many ``pictures`` were blurred, ``faces`` in them, ``bad_boxes``, and pictures
            with faces that are ``unreadable``: their samples are left out. Empty without blurring.
        left_out: shard, key and uid of each of those samples.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    blur: dict[str, int]
    left_out: list[list[str]] = field(default_factory=list)

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has the shard, by name and size."""
        try:
            return (folder / self.name).stat().st_size == self.bytes
        except OSError:
            return False


@dataclass(frozen=True)
class WriteJob:
    """One shard to write.

    Attributes:
        path: the tar.
        note: the file that says when it is finished.
        source: the name that the raw shards go by.
        seed: of the shuffle.
        blur: whether faces are blurred.
        hands: which samples of which window.
        located: for each hand, the index files of its window's raw shards in their order.
    """

    path: Path
    note: Path
    source: str
    seed: int
    blur: bool
    hands: tuple[Hand, ...]
    located: tuple[tuple[Located, ...], ...]

    def __str__(self) -> str:
        return str(self.path)

    @property
    def samples(self) -> int:
        """How many the shard is to hold; when blurring, at most."""
        return sum(hand.stop - hand.start for hand in self.hands)

    def digest(self) -> str:
        """16 hex digits over everything that the shard's bytes depend on."""
        told: list[object] = [_VERSION, self.path.name, self.source, self.seed]
        told += [self.blur and METHOD]
        for hand, files in zip(self.hands, self.located, strict=True):
            told += [hand.window.number, hand.start, hand.stop, [file.identity for file in files]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def finished(self) -> NewShard | None:
        """Give the shard when an earlier start has finished it."""
        try:
            noted = json.loads(self.note.read_bytes())
            whole = noted.pop("digest") == self.digest()
            shard = NewShard(**noted)
            return shard if whole and shard.is_in(self.path.parent) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def write_shard(job: WriteJob) -> NewShard:
    """Write a shard, unless an earlier start has finished it; one sample is in memory.

    Raises:
        ShardError: a raw shard changed since it was looked through.
        UserError: the disk is full.
    """
    with one_writer(job.note):
        return job.finished() or _write(job)


class _Tars:
    """Reads bytes of tars by offset, keeping the last few files open."""

    _MOST_OPEN = 128

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Give bytes ``[offset, offset + size)``; none for what is nowhere."""
        if offset == NOWHERE:
            return b""
        with _telling(path):
            data = os.pread(self._descriptor(path), size, offset)
        if len(data) != size:
            raise ShardError(f"{path} was cut while its samples were copied; start again")
        return data

    def size(self, path: Path) -> int:
        """Give how many bytes a file has now."""
        with _telling(path):
            return os.fstat(self._descriptor(path)).st_size

    def _descriptor(self, path: Path) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) >= self._MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._open[path] = os.open(path, os.O_RDONLY)
        return descriptor


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Tell what the disk or the network says of a file."""
    try:
        yield
    except FileNotFoundError as error:
        raise ShardError(f"{path} went away while its samples were copied") from error
    except OSError as error:
        raise ShardError(
            f"{path} cannot be read ({error.strerror}); its samples are kept, so mend that and "
            "start again"
        ) from error


def _write(job: WriteJob) -> NewShard:
    digest, size, counts = hashlib.sha256(), 0, Counter[str]()
    left_out: list[list[str]] = []
    with _Tars() as tars, atomic_file(job.path) as file:
        for located, row in _rows(job):
            sample, picture = renewed(_old(job.source, located, row, tars), job.blur)
            file.write(sample)
            digest.update(sample)
            size += len(sample)
            counts["pictures"] += picture.faces > 0
            counts["faces"] += picture.faces
            counts["bad_boxes"] += picture.bad_boxes
            counts["unreadable"] += picture.unreadable
            if picture.unreadable:
                left_out.append([located.name, row["key"], row["uid"]])
        file.write(END)
        digest.update(END)
        for located in {file.name: file for files in job.located for file in files}.values():
            located.check()
    size += len(END)
    blurred = dict(counts) if job.blur else {}
    samples = job.samples - counts["unreadable"]
    shard = NewShard(job.path.name, samples, size, digest.hexdigest(), blurred, left_out)
    with atomic_file(job.note) as note:
        note.write(json.dumps({**asdict(shard), "digest": job.digest()}).encode())
    return shard


def _rows(job: WriteJob) -> Iterator[tuple[Located, dict[str, Any]]]:
    """Give index and row of it for each sample, in the order in which they are written."""
    for hand, files in zip(job.hands, job.located, strict=True):
        tables = [file.read() for file in files]
        numbers = np.repeat(np.arange(len(files)), [table.num_rows for table in tables])
        order = hand.rows(job.seed)
        rows = pa.concat_tables(tables).combine_chunks().take(order)
        names = rows.schema.names
        columns = [column.to_pylist() for column in rows.columns]
        for number, *values in zip(numbers[order].tolist(), *columns, strict=True):
            yield files[number], dict(zip(names, values, strict=True))


def _old(source: str, located: Located, row: Mapping[str, Any], tars: _Tars) -> Old:
    shard = located.name
    if PICTURES in row:
        content = tars.read(located.tar, row["json_at"], row["json_size"])
        pictures = tuple((told["ending"], _picture(located, told, tars)) for told in row[PICTURES])
        return Old(source, shard, row, b"", None, content, pictures)
    image, text, content = (
        tars.read(located.tar, row[f"{kind}_at"], row[f"{kind}_size"])
        for kind in ("image", "text", "json")
    )
    has_text = row["text_at"] != NOWHERE
    return Old(source, shard, row, image, text if has_text else None, content)


def _picture(located: Located, told: Mapping[str, Any], tars: _Tars) -> bytes:
    """Give a picture of a conversation, whose file, if it has one, no stamp tells of."""
    path = Path(told["file"] or located.tar)
    if told["file"] and (now := tars.size(path)) != told["size"]:
        raise ShardError(
            f"{path} has {now} bytes and had {told['size']}: it changed since it was looked up; "
            f"remove {located.path} and start again"
        )
    return tars.read(path, told["at"], told["size"])
