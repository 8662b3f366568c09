"""Selection: which samples of each source stay, and why the others do not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.measured import measured_facts
from openqwen2vl.curation.selection.carried import (
    CARRIED,
    CARRY,
    brought,
    measured,
    needed_later,
    plain_type,
)
from openqwen2vl.curation.selection.expression import EVERYTHING, parse_expression, suggest
from openqwen2vl.curation.selection.frames import TableError
from openqwen2vl.curation.selection.predicate import compile_expression
from openqwen2vl.curation.selection.ranks import rank
from openqwen2vl.curation.selection.tables import IDENTITY, SourceTables
from openqwen2vl.curation.selection.uids import UidList, read_uids, write_uids
from openqwen2vl.curation.selection.verdicts import Question, Verdicts
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.formats.files import atomic_file

_DROPPED = pa.schema(dict.fromkeys((*IDENTITY, "reason", "detail"), pa.string()))
_WORDS = ("shard", "reason", "detail")
_COMPRESSION = {"uid": "none", "sha256": "none", "key": "snappy"}


class SelectionError(UserError):
    """A selection that leaves nothing."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What stays of one input.

    Attributes:
        input: name of the input.
        keep: an expression, see ``curation.expression``.
    """

    input: str
    keep: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a corpus is filtered (config group ``selection``).

    Attributes:
        sources: by the name that the result goes by; the order is their priority. Without any,
            every input stays whole, under its own name. Pictures that a scorer of every shard could
            not decode go all the same.
        lists: ``.npy`` lists of uids by the name that expressions use.
    """

    sources: Mapping[str, Rule]
    lists: Mapping[str, str] = field(default_factory=dict)


def select(
    selection: Selection, inputs: Mapping[str, SourceTables], out: Path
) -> dict[str, dict[str, Any]]:
    """Select the samples of every source.

    ``out/selection/NAME.parquet`` has shard, key and uid of what stays, of ``CARRIED`` what the
    scorers know, with who measured it (``measured``), and of raw shards what the expression looked
    at and no file of scores holds (``carried.brought``); ``out/dropped/select-NAME.parquet`` has shard, key, uid, reason and detail of the
    others. Both are in the order of the shards, and the same inputs give the same bytes.

    Args:
        selection: what to keep; all of it is checked before anything is written.
        inputs: opened sources by name.
        out: takes the two folders.

    Returns:
        Figures by source: ``seen`` and ``kept``; ``dropped`` by ``verdicts.REASONS``; ``terms``,
        how many samples each of the conditions joined by ``and`` loses; ``rejects`` by reason,
        which could not be read and are not among those seen; ``nan`` and ``unparsed``, values that
        count as null, by column.

    Raises:
        ConfigError: the selection does not fit the inputs.
        TableError: tables cannot be read, or a source has no sample.
        UidError: a list of uids cannot be read.
        SelectionError: nothing of a source stays.
    """
    lists: dict[str, UidList] = {}
    rules = selection.sources or {name: Rule(input=name, keep=EVERYTHING) for name in inputs}
    questions = {
        name: _question(name, rule, selection, inputs, lists) for name, rule in rules.items()
    }
    return {name: _answer(name, question, out) for name, question in questions.items()}


def export_uids(selected: Path, path: Path) -> int:
    """Write the uids of a ``selection/NAME.parquet`` as a list in DataComp's form.

    Returns:
        How many samples have a uid that another has before them; the list has it once.

    Raises:
        UidError: a uid is not 32 hex digits.
    """
    return write_uids(path, pl.read_parquet(selected, columns=["uid"])["uid"])


def _question(
    name: str,
    rule: Rule,
    selection: Selection,
    inputs: Mapping[str, SourceTables],
    lists: dict[str, UidList],
) -> Question:
    """Check a source of a selection; a list is opened once for all of them."""
    if rule.input not in inputs:
        there = f"; there are {', '.join(sorted(inputs)) or 'none'}"
        hint = suggest(rule.input, inputs) or there
        raise ConfigError(f"source {name} selects from {rule.input!r}, which is no input{hint}")
    tables = inputs[rule.input]
    try:
        expression = parse_expression(rule.keep)
        columns = tables.resolve(word for word in expression.columns if word not in IDENTITY)
        known = {word: found[0].dtype for word, found in tables.names.items() if "." not in word}
        known |= {word: column.dtype for word, column in columns.items()}
        known |= dict.fromkeys(IDENTITY, pl.String())
        predicate = compile_expression(expression, known, selection.lists)
        for listed in expression.lists:
            if listed not in lists:
                lists[listed] = read_uids(Path(selection.lists[listed]))
    except UserError as error:
        raise type(error)(f"keep of {name}: {error}") from error
    return Question(
        tables=tables, expression=expression, predicate=predicate, columns=columns, lists=lists
    )


def _answer(name: str, question: Question, out: Path) -> dict[str, Any]:
    tables = question.tables
    verdicts = Verdicts(
        question, rank(tables, question.expression, question.predicate, question.columns)
    )
    carried = needed_later(tables)
    names = {CARRY + column: column for column in CARRIED if CARRY + column in carried}
    facts = measured_facts(measured(tables, carried)) if names else {}
    types = {**dict.fromkeys(IDENTITY, pa.string()), **{n: CARRIED[n] for n in names.values()}}
    for word, own in brought(tables, question.columns).items():
        names[word], types[own] = own, plain_type(question.columns[word].dtype)
    schema = pa.schema(types)
    kept_path = out / "selection" / f"{name}.parquet"
    dropped_path = out / "dropped" / f"select-{name}.parquet"
    with _table(kept_path, schema, facts) as kept, _table(dropped_path, _DROPPED, {}) as dropped:
        for piece in tables.pieces({**question.columns, **carried, **question.errors}):
            stay, go = verdicts.judge(piece)
            _write(kept, stay.select(*IDENTITY, *names).rename(names), schema)
            _write(dropped, go.select(_DROPPED.names), _DROPPED)
        _demand_some(name, verdicts)
    return verdicts.figures()


@contextmanager
def _table(path: Path, schema: pa.Schema, facts: Mapping[str, str]) -> Iterator[pq.ParquetWriter]:
    """Open a table for writing.

    Uids and digests are hashes, which compression would only slow down. Keys rise, and a delta
    would make them a sixth of what snappy does, but it takes readers five times as long. Of
    statistics, only those of shards tell what a reader could look for.
    """
    compression = {column: _COMPRESSION.get(column, "zstd") for column in schema.names}
    repeated = [column for column in schema.names if column in _WORDS]
    # Arrow's own types, views into polars' memory, are none that every reader knows.
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file,
            _views(schema),
            compression=compression,
            use_dictionary=repeated,
            write_statistics=["shard"],
            store_schema=False,
        ) as writer,
    ):
        writer.add_key_value_metadata(facts)
        yield writer


def _views(schema: pa.Schema) -> pa.Schema:
    """Give the types in which polars hands its memory over without a copy."""
    views = {pa.string(): pa.string_view(), pa.binary(): pa.binary_view()}
    words = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [(f.name, words if f.name in _WORDS else views.get(f.type, f.type)) for f in schema]
    )


def _write(writer: pq.ParquetWriter, frame: pl.DataFrame, schema: pa.Schema) -> None:
    if not len(frame):
        return
    columns = {
        name: _words(frame[name])
        if name in _WORDS
        else frame[name].to_arrow(compat_level=pl.CompatLevel.newest())
        for name in frame.columns
    }
    table = pa.table(columns).cast(_views(schema))
    writer.write_table(table, row_group_size=len(frame))


def _words(column: pl.Series) -> pa.DictionaryArray:
    """Give a column of few words as numbers of words; a shard's name is the same for long."""
    if not isinstance(column.dtype, pl.Enum):
        runs = column.rle()
        lengths, words = runs.struct.field("len"), runs.struct.field("value")
        known = words.unique(maintain_order=True)
        codes = words.replace_strict(known, range(len(known)), return_dtype=pl.Int32)
        numbers = np.repeat(codes.to_numpy(), lengths.to_numpy())
    else:
        known = column.dtype.categories
        numbers = column.to_physical().to_numpy()
    return pa.DictionaryArray.from_arrays(
        pa.array(numbers.astype(np.int32)), pa.array(known.to_list(), pa.string())
    )


def _demand_some(name: str, verdicts: Verdicts) -> None:
    """Raise when nothing stays, with what each condition loses."""
    if not verdicts.seen:
        raise TableError(f"source {name} has no sample; check what its input holds")
    if verdicts.kept:
        return
    worst = verdicts.lost.most_common()
    lines = [f"{text}: {count:,}" for text, count in worst]
    unknown = verdicts.dropped["unscored"] + verdicts.dropped["unreadable"]
    raise SelectionError(
        f"nothing of {name} stays of {verdicts.seen:,} samples, {unknown:,} of them for want of a "
        f"score; most are lost by {worst[0][0]!r}. Each condition loses:\n  " + "\n  ".join(lines)
    )
