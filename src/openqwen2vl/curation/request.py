"""What a curation is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from openqwen2vl.curation.duplicates import DuplicateRules
from openqwen2vl.curation.scorer import Scorer
from openqwen2vl.curation.select import Rule, Selection
from openqwen2vl.curation.sources import open_source
from openqwen2vl.curation.tables import SourceTables
from openqwen2vl.formats.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Pictures that should not be trained on.

    Attributes:
        against: files or folders of evaluations, by the name to give each.
        drop: whether samples that show one go, or are only told of.
    """

    against: Mapping[str, Path] = field(default_factory=dict)
    drop: bool = True


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What to curate, and how.

    Attributes:
        inputs: folders of raw shards, or of tables alone, by the name of the source.
        tables: more tables that a source brings, by its name.
        out: takes everything that is made.
        scorers: all of them look at every input that has shards.
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
    tables: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    scorers: Sequence[Scorer] = ()
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
            ConfigError: no input, or tables for one that there is not.
        """
        if not self.inputs:
            raise ConfigError("input names no folder; write input=DIR or input={NAME: DIR}")
        unknown = sorted(set(self.tables) - set(self.inputs))
        if unknown:
            raise ConfigError(
                f"tables are given for {', '.join(unknown)}; inputs are {', '.join(self.inputs)}"
            )

    @property
    def scores(self) -> Path:
        """Give the folder of all scores."""
        return self.out / "scores"

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
        return {
            name: open_source(name, folder, self.scores, self.tables.get(name, ()))
            for name, folder in self.inputs.items()
            if name in used
        }
