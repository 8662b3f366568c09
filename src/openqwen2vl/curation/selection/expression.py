"""The language in which a selection says what stays: read with Python's own parser, never run.

    uids('dfn') or semantic_understanding >= 85
    top(clip_similarity, 0.3) and language in ['en', 'de'] and not missing(phash)

It has columns (`image.width` where several tables have a `width`, `column('a-b')` for a name that
is no word), numbers, strings, comparisons, ``in`` lists, ``+ - * /``, ``and or not``, and

    all                     every sample
    uids('name')            the uid is in this list of the selection
    top(number, fraction)   the largest: floor(fraction * samples that have the number) of them
    top_n(number, count)    the largest, so many
    missing(column)         the column is null

What is unknown stays unknown (three values, as in SQL): ``null >= 85`` is neither true nor false,
and ``or`` and ``and`` with it are known only where the other side decides. NaN is null, and so is
what is divided by zero. Numbers are compared as doubles.
"""

import ast
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction

from openqwen2vl.formats.errors import ConfigError

FUNCTIONS = {
    "uids": "uids('name of a list')",
    "top": "top(number, fraction)",
    "top_n": "top_n(number, count)",
    "missing": "missing(column)",
    "column": "column('name')",
}
EVERYTHING = "all"
_KINDS = (
    ast.BoolOp,
    ast.UnaryOp,
    ast.BinOp,
    ast.Compare,
    ast.Name,
    ast.Attribute,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Call,
)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.In, ast.NotIn)
_SIGNS = (ast.Not, ast.USub, ast.UAdd)


class ExpressionError(ConfigError):
    """An expression that cannot be read, or that does not fit the columns there are."""


@dataclass(frozen=True)
class Top:
    """One ``top`` or ``top_n``.

    Attributes:
        text: the call as it is written, in Python's own spacing; it names the answer's column.
        number: what is ranked.
        share: how many stay of the samples that have the number, when that is a fraction.
        count: how many stay, when that is given.
    """

    text: str
    number: ast.expr = field(repr=False)
    share: Fraction | None
    count: int | None

    def size(self, ranked: int) -> int:
        """Give how many stay of those that have the number."""
        wanted = self.count if self.share is None else int(self.share * ranked)
        return min(ranked, wanted or 0)


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: as given.
        tree: its syntax; only what the language has is in it.
        columns: the columns that it reads, rising.
        lists: the lists of uids that it names, rising.
        tops: its calls of ``top`` and ``top_n``, in the order of their texts.
    """

    text: str
    tree: ast.expr = field(repr=False)
    columns: tuple[str, ...]
    lists: tuple[str, ...]
    tops: tuple[Top, ...]

    @property
    def terms(self) -> list[ast.expr]:
        """Give what is joined by ``and`` at the top; the expression itself when nothing is."""
        tree = self.tree
        return tree.values if isinstance(tree, ast.BoolOp) and _is_and(tree) else [tree]


def parse_expression(text: str) -> Expression:
    """Parse an expression; columns and lists are looked at by ``predicate.compile_expression``.

    Raises:
        ExpressionError: it is empty, has a fault of syntax, or something that the language has not;
            the message says where.
    """
    if not isinstance(text, str) or not text.strip():
        raise ExpressionError(f"an expression is {text!r}; write 'all' to keep every sample")
    tree = _tree(text)
    try:
        nodes = list(_walk(tree, text))
        tops = {top.text: top for top in map(_top, _calls(nodes, ("top", "top_n")))}
    except RecursionError as error:
        raise ExpressionError("an expression is nested too deep") from error
    return Expression(
        text=text,
        tree=tree,
        columns=tuple(sorted({name for node in nodes if (name := column_name(node))})),
        lists=tuple(sorted({_word(call) for call in _calls(nodes, ("uids",))})),
        tops=tuple(tops[name] for name in sorted(tops)),
    )


def column_name(node: ast.AST) -> str | None:
    """Give the column that a node stands for, None when it stands for something else."""
    if isinstance(node, ast.Name):
        return None if node.id == EVERYTHING else node.id
    if isinstance(node, ast.Attribute):
        return ast.unparse(node)
    return _word(node) if isinstance(node, ast.Call) and called(node) == "column" else None


def called(call: ast.Call) -> str:
    """Give the name of the function that is called."""
    return ast.unparse(call.func)


def fault(node: ast.AST, text: str, message: str) -> ExpressionError:
    """Give an error that says where in the expression the fault is."""
    line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    # Python counts bytes, people count characters.
    place = len(_flat(text).splitlines()[line - 1].encode()[:offset].decode(errors="ignore")) + 1
    return ExpressionError(f"{message} (character {place} of {_flat(text)!r})")


def suggest(word: str, known: Iterable[str]) -> str:
    """Give a hint such as `; did you mean 'width'?`, or nothing when no known word is near."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _flat(text: str) -> str:
    """Put an expression on one line: YAML may break it anywhere."""
    return " ".join(line.strip() for line in text.strip().splitlines())


def _tree(text: str) -> ast.expr:
    line = _flat(text)
    try:
        tree = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        at = error.offset or len(line) + 1  # 0 is what Python says of the end
        raise ExpressionError(f"{error.msg} (character {at} of {line!r})") from error
    except ValueError as error:
        raise ExpressionError(f"{error.args[0]} in {line!r}") from error
    except (RecursionError, MemoryError) as error:
        raise ExpressionError("an expression is nested too deep") from error
    for token in tokenize.generate_tokens(io.StringIO(line).readline):
        if token.type == tokenize.COMMENT:
            start = len(line[: token.start[1]].encode())
            node = ast.Constant(None, lineno=1, col_offset=start)
            raise fault(node, text, "a comment would hide what follows; take it out")
    return tree


def _walk(node: ast.expr, text: str) -> Iterator[ast.expr]:
    """Yield all parts that have a meaning of their own; raise for what the language has not."""
    _judge(node, text)
    yield node
    for child in _children(node):
        yield from _walk(child, text)


def _children(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Attribute):
        return []
    if isinstance(node, ast.Call):
        # The second argument of `top` is no number of the samples.
        return [] if called(node) in ("uids", "column") else node.args[:1]
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]


def _judge(node: ast.expr, text: str) -> None:
    """Raise for a node that the language has not."""
    said = ast.unparse(node)
    if not isinstance(node, _KINDS):
        raise fault(node, text, f"{said!r} is not part of the language")
    if isinstance(node, ast.Call):
        _judge_call(node, text)
    elif isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Name):
        raise fault(node, text, f"{said!r} is not TABLE.COLUMN")
    elif isinstance(node, ast.Name) and node.id in FUNCTIONS:
        raise fault(node, text, f"{node.id} is a function; write {FUNCTIONS[node.id]}")
    elif isinstance(node, ast.BinOp) and not isinstance(node.op, _OPERATORS):
        raise fault(node, text, f"{said!r}: the language calculates with + - * / only")
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, _SIGNS):
        raise fault(node, text, f"{said!r} is not part of the language")
    elif isinstance(node, ast.Compare):
        for operator in node.ops:
            if not isinstance(operator, _COMPARISONS):
                raise fault(node, text, f"{said!r}: 'is' is not part of the language; use ==")
    elif isinstance(node, ast.Constant):
        _judge_constant(node, text)


def _judge_constant(node: ast.Constant, text: str) -> None:
    if node.value is None:
        raise fault(node, text, "None is not part of the language; use missing(column)")
    if not isinstance(node.value, bool | int | float | str):
        raise fault(node, text, f"{ast.unparse(node)!r} is neither a number nor a string")
    if isinstance(node.value, int | float) and not abs(node.value) <= 1.7e308:
        raise fault(node, text, "a number is too large for a double")


def _judge_call(node: ast.Call, text: str) -> None:
    name = called(node)
    if name not in FUNCTIONS:
        known = ", ".join(FUNCTIONS)
        hint = suggest(name, FUNCTIONS) or f"; there are {known}"
        raise fault(node, text, f"there is no function {name!r}{hint}")
    values = [arg.value if isinstance(arg, ast.Constant) else None for arg in node.args]
    checks: dict[str, Callable[[], bool]] = {
        "uids": lambda: len(values) == 1 and isinstance(values[0], str),
        "column": lambda: len(values) == 1 and isinstance(values[0], str),
        "missing": lambda: len(values) == 1 and column_name(node.args[0]) is not None,
        "top": lambda: len(values) == 2 and _is_number(values[1]),
        "top_n": lambda: len(values) == 2 and _is_number(values[1]),
    }
    if node.keywords or not checks[name]():
        raise fault(node, text, f"{ast.unparse(node)!r} should be {FUNCTIONS[name]}")
    size = values[-1]
    if name == "top" and isinstance(size, int | float) and not 0 < size <= 1:
        raise fault(node, text, f"the fraction {size} is not above 0 and at most 1")
    if name == "top_n" and not (isinstance(size, int) and size > 0):
        raise fault(node, text, f"the count {size!r} is not a whole number above 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_and(node: ast.BoolOp) -> bool:
    return isinstance(node.op, ast.And)


def _calls(nodes: list[ast.expr], names: tuple[str, ...]) -> list[ast.Call]:
    return [node for node in nodes if isinstance(node, ast.Call) and called(node) in names]


def _word(call: ast.Call) -> str:
    return str(ast.literal_eval(call.args[0]))


def _top(call: ast.Call) -> Top:
    size = ast.literal_eval(call.args[1])
    if called(call) == "top_n":
        return Top(ast.unparse(call), call.args[0], None, size)
    # As it is written: 0.29 of 100 are 29, though the double is a little less.
    return Top(ast.unparse(call), call.args[0], Fraction(repr(size)), None)
