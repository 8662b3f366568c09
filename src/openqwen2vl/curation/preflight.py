"""What can be seen to be wrong before hours are spent on scores."""

from pathlib import Path

from openqwen2vl.curation.request import Curation
from openqwen2vl.curation.selection.expression import Expression, parse_expression, suggest
from openqwen2vl.curation.selection.select import Rule
from openqwen2vl.curation.selection.sources import open_source
from openqwen2vl.curation.selection.tables import FREQUENCY, IDENTITY
from openqwen2vl.formats.errors import ConfigError

_NEEDS = {
    "image": ("sha256", "phash"),
    "near": ("phash",),
    "pair": ("caption_hash",),
}
"""One of which columns a criterion of duplicates needs."""


def check_request(curation: Curation) -> None:
    """Look at folders, lists, expressions and the columns that they speak of.

    Raises:
        ConfigError: something is missing or misspelt.
        TableError: an input cannot be opened.
    """
    for name, folder in curation.inputs.items():
        if not folder.is_dir():
            raise ConfigError(f"no folder {folder}; check the path of input {name}")
    for name, path in curation.chosen.lists.items():
        if not Path(path).is_file():
            raise ConfigError(f"no file {path}; check the path of the list {name}")
    for name, place in (curation.evaluations.against or {}).items():
        if not place.exists():
            raise ConfigError(f"no evaluation file or folder {place}; check the path of {name}")
    for name, rule in curation.chosen.sources.items():
        if rule.input not in curation.inputs:
            there = f"; there are {', '.join(curation.inputs)}"
            hint = suggest(rule.input, curation.inputs) or there
            raise ConfigError(
                f"source {name} selects from input {rule.input!r}, which is not given{hint}"
            )
        try:
            _check_columns(curation, rule, parse_expression(rule.keep))
        except ConfigError as error:
            raise ConfigError(f"keep of {name}: {error}") from error
    _check_duplicates(curation)


def _known(curation: Curation, name: str) -> set[str]:
    """Give the columns that an input has or will have once it is scored."""
    tables = open_source(
        name, curation.inputs[name], curation.scores, curation.tables.get(name, ())
    )
    known = {FREQUENCY, *IDENTITY, *tables.names}
    for scorer in curation.scorers_of(name):
        known |= {*scorer.columns, *(f"{scorer.name}.{column}" for column in scorer.columns)}
    return known


def _check_columns(curation: Curation, rule: Rule, expression: Expression) -> None:
    known = _known(curation, rule.input)
    for column in expression.columns:
        if column not in known:
            there = sorted(name for name in known if "." not in name)
            hint = suggest(column, known) or f"; there are {', '.join(there)}"
            raise ConfigError(f"{rule.input} has no column {column!r}{hint}")


def _check_duplicates(curation: Curation) -> None:
    for criterion in curation.duplicates.by if curation.duplicates else ():
        needed = _NEEDS.get(criterion, ())
        for rule in curation.chosen.sources.values():
            if needed and not _known(curation, rule.input) & set(needed):
                raise ConfigError(
                    f"duplicates by {criterion} need {' or '.join(needed)}, which {rule.input} has "
                    "not; add the scorers image and text, or take the criterion out of duplicates.by"
                )
