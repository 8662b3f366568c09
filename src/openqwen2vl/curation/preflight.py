"""What can be seen to be wrong before hours are spent on scores."""

import ast
import logging
from pathlib import Path

from openqwen2vl.curation.request import Curation
from openqwen2vl.curation.scorer import reads_conversations
from openqwen2vl.curation.selection.expression import (
    EVERYTHING,
    Expression,
    parse_expression,
    suggest,
)
from openqwen2vl.curation.selection.select import Rule
from openqwen2vl.curation.selection.tables import FREQUENCY, IDENTITY
from openqwen2vl.curation.shards import FACES, is_listing, of_conversations
from openqwen2vl.formats.errors import ConfigError

_NEEDS = {
    "image": ("sha256", "phash"),
    "near": ("phash",),
    "pair": ("caption_hash",),
}
"""One of which columns a criterion of duplicates needs, among pairs."""

_OF_PAIRS = ("image", "near")
"""Criteria that conversations are not compared by."""

_LOG = logging.getLogger(__name__)


def check_request(curation: Curation) -> None:
    """Look at folders, lists, expressions and the columns that they speak of.

    Raises:
        ConfigError: something is missing or misspelt.
        TableError: an input cannot be opened.
    """
    for name, folder in curation.inputs.items():
        if not (folder.is_file() if is_listing(folder) else folder.is_dir()):
            kind = "file" if is_listing(folder) else "folder"
            raise ConfigError(f"no {kind} {folder}; check the path of input {name}")
    for name, folder in curation.image_roots.items():
        if not folder.is_dir():
            raise ConfigError(f"no folder {folder}; check the path of the images of {name}")
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
    _tell_faces(curation)


def _known(curation: Curation, name: str) -> set[str]:
    """Give the columns that an input has or will have once it is scored."""
    tables = curation.open_input(name)
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
    _check_pairs(curation, rule.input, expression)


def _check_pairs(curation: Curation, name: str, expression: Expression) -> None:
    """Refuse to ask of conversations what only pairs are told."""
    if not of_conversations(curation.shards_of(name)):
        return
    brought = {
        word for table in curation.open_input(name).brought.values() for word in table.columns
    }
    blind = {
        word: scorer.name
        for scorer in curation.scorers_of(name)
        if not reads_conversations(scorer)
        for column in scorer.columns
        for word in (column, f"{scorer.name}.{column}")
        if word not in brought
    }
    for term in expression.terms:
        text = ast.unparse(term)
        words = parse_expression(text).columns
        if words and blind.keys() >= set(words) and not _may_hold_anyway(term):
            raise ConfigError(
                f"{name} holds conversations, which {blind[words[0]]} does not score: {text!r} is "
                "unknown for all of them, so nothing would stay; leave it out of keep, or join it "
                f"by 'or' with what holds for them, as missing({words[0]})"
            )


def _may_hold_anyway(term: ast.expr) -> bool:
    """Whether a condition may hold where all its columns are null."""
    names = {node.id for node in ast.walk(term) if isinstance(node, ast.Name)}
    values = [node.value for node in ast.walk(term) if isinstance(node, ast.Constant)]
    return bool(names & {"missing", "uids", EVERYTHING}) or any(type(v) is bool for v in values)


def _check_duplicates(curation: Curation) -> None:
    for criterion in curation.duplicates.by if curation.duplicates else ():
        for rule in curation.chosen.sources.values():
            for needed in _needed(criterion, of_conversations(curation.shards_of(rule.input))):
                if not _known(curation, rule.input) & set(needed):
                    raise ConfigError(
                        f"duplicates by {criterion} need {' or '.join(needed)}, which {rule.input} "
                        "has not; add the scorers image and text, or take the criterion out of "
                        "duplicates.by"
                    )
    by = curation.duplicates.by if curation.duplicates else ()
    if by and set(by) <= set(_OF_PAIRS):
        for rule in curation.chosen.sources.values():
            if of_conversations(curation.shards_of(rule.input)):
                text = "%s holds conversations, of which none are compared by %s; add pair or uid"
                _LOG.warning(text, rule.input, " and ".join(by))


def _tell_faces(curation: Curation) -> None:
    """Say of which inputs no face will be blurred; a conversation with boxes stops the last step."""
    for name in sorted({rule.input for rule in curation.chosen.sources.values()}):
        if curation.blur and of_conversations(curation.shards_of(name)):
            text = (
                "%s holds conversations, whose faces blur does not find: resharding stops at the "
                "first with %s; blur their pictures before, or set blur=false"
            )
            _LOG.warning(text, name, FACES)


def _needed(criterion: str, conversations: bool) -> list[tuple[str, ...]]:
    """Give the columns that a criterion needs: one of each tuple."""
    if conversations:
        needed = [("caption_hash",), ("pictures",), ("sha256", "phash")]
        return needed if criterion == "pair" else []
    return [_NEEDS[criterion]] if criterion in _NEEDS else []
