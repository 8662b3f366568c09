"""What a curation is asked for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules
from openqwen2vl.curation.scorer import Scorer, for_conversations
from openqwen2vl.curation.selection.select import Rule, Selection
from openqwen2vl.curation.selection.sources import open_source
from openqwen2vl.curation.selection.tables import SourceTables
from openqwen2vl.curation.shards import RawShard, of_conversations, shards_of
from openqwen2vl.formats.errors import ConfigError

_NAME = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Pictures that should not be trained on.

    Attributes:
        against: files or folders of evaluations, by the name to give each.
        drop: whether samples that show one go, or are only told of.
    """

    against: Mapping[str, Path] | None = None
    drop: bool = True


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What to curate, and how.

    Attributes:
        inputs: folders of raw shards (tars, or tables with images or conversations), or of tables
            alone, or listings of conversations, by the name of the source.
        image_roots: folders of the images that an input names by path, by its name.
        tables: more tables that a source brings, by its name.
        out: takes everything that is made.
        scorers: each looks at every input that has shards, or at those of ``scorer_inputs``.
        scorer_inputs: the inputs that a scorer looks at, by its name.
        selection: what stays; one without sources keeps every input whole.
        duplicates: when samples are alike; None keeps them all.
        evaluations: pictures that must not be trained on.
        seed: of the shuffle.
        samples_per_shard: of the new shards, at most.
        window: raw shards shuffled together.
        blur: whether to blur the faces that DataComp's boxes tell of.
        write_uids: whether to write the kept uids as lists in DataComp's form, too.
        overwrite: whether what was made from something else may go.
    """

    inputs: Mapping[str, Path]
    out: Path
    image_roots: Mapping[str, Path] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    scorers: Sequence[Scorer] = ()
    scorer_inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    selection: Selection = field(default_factory=lambda: Selection(sources={}))
    duplicates: DuplicateRules | None = field(default_factory=DuplicateRules)
    evaluations: Evaluations = field(default_factory=Evaluations)
    seed: int = 0
    samples_per_shard: int = 10_000
    window: int = 16
    blur: bool = False
    write_uids: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Look at the names.

        Raises:
            ConfigError: no input, one that is spoken of and not there, or a name that is no name
                of a folder.
        """
        if not self.inputs:
            raise ConfigError("input names no folder; write input=DIR or input={NAME: DIR}")
        for given, names in (("tables", self.tables), ("image roots", self.image_roots)):
            if unknown := sorted(set(names) - set(self.inputs)):
                raise ConfigError(
                    f"{given} are given for {', '.join(unknown)}; inputs are "
                    f"{', '.join(self.inputs)}"
                )
        scorers = [scorer.name for scorer in self.scorers]
        for scorer, inputs in self.scorer_inputs.items():
            strange = sorted(set(inputs) - set(self.inputs)) or sorted({scorer} - set(scorers))
            if strange:
                raise ConfigError(
                    f"scorer_inputs speaks of {strange[0]}; inputs are {', '.join(self.inputs)}, "
                    f"scorers {', '.join(scorers)}"
                )
        for name in (*self.inputs, *self.selection.sources, *scorers):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{name!r} is to name a folder; expected letters, digits, '_', '-' and '.', no "
                    "'.' in front"
                )

    def scorers_of(self, name: str) -> list[Scorer]:
        """Give the scorers that look at an input, made for conversations where it holds them.

        Raises:
            ShardError: see ``shards_of``.
        """
        chosen = self.scorer_inputs
        found = [one for one in self.scorers if name in chosen.get(one.name, (name,))]
        if not of_conversations(self.shards_of(name)):
            return found
        return [for_conversations(one) for one in found]

    def shards_of(self, name: str) -> list[RawShard]:
        """Give the shards of an input.

        Raises:
            ShardError: see ``shards.shards_of``.
        """
        return shards_of(self.inputs[name], self.image_roots.get(name))

    @property
    def scores(self) -> Path:
        """Give the folder of all scores."""
        return self.out / "scores"

    @property
    def unreadable(self) -> Path:
        """Give the folder of what could not be read, shard by shard."""
        return self.out / "unreadable"

    @property
    def chosen(self) -> Selection:
        """Give the selection; one that names no sources keeps every input whole."""
        if self.selection.sources:
            return self.selection
        whole = {name: Rule(input=name, keep="all") for name in self.inputs}
        return replace(self.selection, sources=whole)

    def open_inputs(self) -> dict[str, SourceTables]:
        """Open the inputs that the selection uses, with what is known of them by now.

        Raises:
            TableError: one cannot be read.
        """
        used = {rule.input for rule in self.chosen.sources.values()} & set(self.inputs)
        return {name: self.open_input(name) for name in self.inputs if name in used}

    def open_input(self, name: str) -> SourceTables:
        """Open one input.

        Raises:
            TableError: it cannot be read.
        """
        return open_source(
            name,
            self.inputs[name],
            self.scores,
            self.tables.get(name, ()),
            self.image_roots.get(name),
        )
