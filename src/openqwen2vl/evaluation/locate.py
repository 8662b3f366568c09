"""Where the files of a benchmark lie, and which of them are meant."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openqwen2vl.formats.errors import ShardError

ENDINGS = (".parquet", ".tsv", ".jsonl")
ROWS, PICTURES = "_instructions", "_images"
_TRAIN = ("train", "train2014")
_SPLITS = (*_TRAIN, "test", "testdev", "testmini", "validation", "val", "val2014", "dev")
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The form of a benchmark's files.

    Attributes:
        data: what its files or their folder are called here.
        columns: those that must be there; ``a|b`` is either, and called ``a`` from then on.
        optional: those that are read when they are there.
        images: the columns of pictures, ``a|b`` likewise; at least one must be there.
        splits: what the names of files of the evaluated split begin with, when they say.
        folders: subsets of the data set that are meant, when their folders' names say.
        picture_id: the column that says which picture is meant, where pictures lie in files of
            their own, in the folder that is called ``..._images`` in place of
            ``..._instructions``.
        counts: the known numbers of questions, in the forms that go round.
        hub: where the data set is found on the Hugging Face hub.
        train: where its train split is found when that copy has none.
    """

    data: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    counts: tuple[int, ...]
    hub: str
    optional: tuple[str, ...] = ()
    images: tuple[str, ...] = ("image",)
    folders: tuple[str, ...] = ()
    picture_id: str | None = None
    train: str | None = None


def find_files(path: Path, schema: Schema, demos: bool = False) -> list[Path]:
    """Find the files of one split.

    Args:
        path: a file, or a folder that holds the files itself, in a folder of the data's name or
            in a file of that name.
        schema: says which data, split and subset are meant.
        demos: find those of the train split instead.

    Raises:
        ShardError: there are none, those there are of another split, or of several forms.
    """
    found = _candidates(path, schema)
    meant = [file for file in found if not set(schema.folders).isdisjoint(_below(file, path))]
    found = meant or [file for file in found if not file.parent.name.endswith(PICTURES)]
    wanted = _TRAIN if demos else schema.splits
    named = {file: _split(file) for file in found}
    taken = [file for file, split in named.items() if split in wanted]
    if not (taken or demos):
        # What names no split is the evaluated one where nothing else says that it is.
        taken = [file for file, split in named.items() if split is None]
    if not taken:
        splits = ", ".join(sorted({split for split in named.values() if split})) or "no split"
        raise ShardError(
            f"{path} holds {splits} of {schema.data}; expected files that begin with {wanted[0]}"
        )
    endings = sorted({file.suffix for file in taken})
    if len(endings) > 1:
        raise ShardError(
            f"{schema.data} is in {path} as {' and as '.join(endings)}; leave one of them"
        )
    return taken


def download_command(schema: Schema, data_root: Path, demos: bool = False) -> str:
    """Give the command that fetches a benchmark's files to where ``find_files`` finds them.

    Args:
        schema: of the benchmark.
        data_root: the folder that is given as such when evaluating.
        demos: fetch the train split, too; where the hub has none a second line, a comment of the
            shell's, says where it is.
    """
    splits = [*schema.splits[:1], *(["train"] if demos and schema.train is None else [])]
    inside = [*schema.folders, *_pictures_of(schema)]
    patterns = [
        f"{name}/{split}*"
        for split in splits
        for name in inside
        if not schema.picture_id or name.startswith(split)
    ] or [f"*{split}*" for split in splits]
    wanted = " ".join(f"--include '{pattern}'" for pattern in patterns)
    folder = data_root / schema.data
    command = f"hf download {schema.hub} --repo-type dataset {wanted} --local-dir {folder}"
    if demos and schema.train is not None:
        command += (
            f"\n# {schema.hub} has no train split to take demonstrations from: write "
            f"{folder}/train.jsonl from {schema.train} (docs/evaluation.md says how)"
        )
    return command


def _below(file: Path, path: Path) -> tuple[str, ...]:
    """Give the names between a folder and a file in it; where the folder lies says nothing."""
    return file.relative_to(path).parts if file != path else (file.name,)


def _candidates(path: Path, schema: Schema) -> list[Path]:
    if path.is_file():
        return [path]
    name = schema.data
    own = [path / f"{name}{ending}" for ending in ENDINGS]
    if any(file.is_file() for file in own):
        return [file for file in own if file.is_file()]
    if (path / name).is_dir():
        inside = list((path / name).rglob("*"))
    else:
        # The folder of the data itself; of any other folder in it nobody knows whose it is.
        folders = ["data", *schema.folders, *_pictures_of(schema)]
        below = [file for one in folders for file in (path / one).rglob("*")]
        inside = [*(file for file in path.glob("*") if _is_of(file, name)), *below]
    found = sorted(file for file in inside if file.suffix in ENDINGS and file.is_file())
    if not found:
        raise ShardError(
            f"no files of {name}: neither {path / name}/ nor {path / name}.parquet, .tsv or .jsonl "
            "is there; give data_root or fetch them"
        )
    return found


def _is_of(file: Path, name: str) -> bool:
    """Tell whether a file right in ``data_root`` is the benchmark's, and not another one's.

    It is when it or the folder is called after the data, or when it is called after a split, as
    in a folder that holds one data set.
    """
    called = _plain(file.name)
    return _plain(name) in called or _plain(name) in _plain(file.parent.name) or bool(_split(file))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _pictures_of(schema: Schema) -> list[str]:
    return [name.replace(ROWS, PICTURES) for name in schema.folders if schema.picture_id]


def _split(file: Path) -> str | None:
    """Read the split off a name such as ``val-00000-of-00001.parquet`` or ``test.jsonl``."""
    start = file.name.split(".")[0].split("-")[0].lower()
    return start if start in _SPLITS else None


def file_hash(files: Sequence[Path]) -> str:
    """Give the sha256 of the files' bytes, one after the other in the order given."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
