"""Expressions of a selection, made into those of polars for the columns there are."""

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from openqwen2vl.curation.selection.expression import (
    EVERYTHING,
    Expression,
    Top,
    called,
    column_name,
    fault,
    suggest,
)

Kind = Literal["number", "string", "truth", "nothing"]
_Part = tuple[Kind, pl.Expr]

_SAID = {
    "number": "a number",
    "string": "a string",
    "truth": "true or false",
    "nothing": "of no kind that can be compared",
}
_COMPARE: dict[type[ast.cmpop], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    ast.Lt: pl.Expr.lt,
    ast.LtE: pl.Expr.le,
    ast.Gt: pl.Expr.gt,
    ast.GtE: pl.Expr.ge,
    ast.Eq: pl.Expr.eq,
    ast.NotEq: pl.Expr.ne,
}


@dataclass(frozen=True)
class Term:
    """One of the conditions that ``and`` joins at the top.

    Attributes:
        text: as it is written, in Python's own spacing.
        holds: boolean, null where unknown.
    """

    text: str
    holds: pl.Expr


@dataclass(frozen=True)
class Predicate:
    """An expression for polars.

    It reads the expression's columns, and for each ``uids(...)`` and ``top(...)`` a boolean column
    that has the call's own text as its name.

    Attributes:
        terms: a sample stays when all of them hold.
        numbers: what each ``top`` ranks, float64, by the text of the call.
    """

    terms: tuple[Term, ...]
    numbers: Mapping[str, pl.Expr]


def kind_of(dtype: pl.DataType) -> Kind:
    """Tell what an expression can do with a column."""
    if dtype.is_numeric():
        return "number"
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "string"
    return "truth" if dtype == pl.Boolean else "nothing"


def compile_expression(
    expression: Expression, schema: Mapping[str, pl.DataType], lists: Collection[str]
) -> Predicate:
    """Make an expression into one of polars.

    Args:
        expression: what stays.
        schema: the columns that there are.
        lists: names of the lists of uids.

    Raises:
        ExpressionError: a column or list is unknown, or a part is not of the kind that is needed.
    """
    compiler = _Compiler(expression.text, schema, lists)
    numbers = {top.text: compiler.number(top.number, _first(top)) for top in expression.tops}
    terms = [Term(ast.unparse(node), compiler.truth(node)) for node in expression.terms]
    return Predicate(tuple(terms), numbers)


def _first(top: Top) -> str:
    return f"{top.text} ranks"


class _Compiler:
    """Compiles the parts of one expression; each method names the kind that it gives."""

    def __init__(
        self, text: str, schema: Mapping[str, pl.DataType], lists: Collection[str]
    ) -> None:
        self._text, self._schema, self._lists = text, schema, lists

    def truth(self, node: ast.expr) -> pl.Expr:
        """Compile what has to be true or false."""
        return self._of_kind("truth", node, "a condition is needed")

    def number(self, node: ast.expr, needs: str) -> pl.Expr:
        """Compile what has to be a number."""
        return self._of_kind("number", node, f"{needs} a number")

    def _of_kind(self, kind: Kind, node: ast.expr, message: str) -> pl.Expr:
        found, part = self._part(node)
        if found != kind:
            said = f"{message}, but {ast.unparse(node)!r} is {_SAID[found]}"
            raise fault(node, self._text, said)
        return part

    def _part(self, node: ast.expr) -> _Part:
        column = column_name(node)
        if column is not None:
            return self._column(node, column)
        if isinstance(node, ast.Call):
            return "truth", self._call(node)
        if isinstance(node, ast.Name):
            return "truth", pl.lit(node.id == EVERYTHING)
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.BoolOp):
            parts = [self.truth(value) for value in node.values]
            joined = pl.all_horizontal if isinstance(node.op, ast.And) else pl.any_horizontal
            return "truth", joined(*parts)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node)
        if isinstance(node, ast.BinOp):
            return "number", self._arithmetic(node)
        if isinstance(node, ast.Compare):
            return "truth", self._comparison(node)
        raise fault(node, self._text, "a list only stands after 'in'")

    def _column(self, node: ast.expr, name: str) -> _Part:
        dtype = self._known(node, name)
        kind = kind_of(dtype)
        column = pl.col(name)
        if kind == "number":
            return kind, column.cast(pl.Float64).fill_nan(None)
        return kind, column.cast(pl.String) if kind == "string" else column

    def _known(self, node: ast.expr, name: str) -> pl.DataType:
        if name not in self._schema:
            hint = suggest(name, self._schema)
            there = ", ".join(sorted(self._schema)) or "none"
            message = f"there is no column {name!r}{hint or f'; there are {there}'}"
            raise fault(node, self._text, message)
        return self._schema[name]

    def _constant(self, node: ast.Constant) -> _Part:
        value = node.value
        if isinstance(value, bool):
            return "truth", pl.lit(value)
        if isinstance(value, str):
            return "string", pl.lit(value, pl.String)
        return "number", pl.lit(float(value), pl.Float64)  # type: ignore[arg-type]

    def _call(self, node: ast.Call) -> pl.Expr:
        if called(node) == "missing":
            name = str(column_name(node.args[0]))
            dtype = self._known(node.args[0], name)
            column = pl.col(name)
            return (column.fill_nan(None) if dtype.is_float() else column).is_null()
        if called(node) == "uids":
            name = str(ast.literal_eval(node.args[0]))
            if name not in self._lists:
                there = ", ".join(sorted(self._lists)) or "none"
                hint = suggest(name, self._lists) or f"; there are {there}"
                raise fault(node, self._text, f"the selection has no list {name!r}{hint}")
        return pl.col(ast.unparse(node))

    def _unary(self, node: ast.UnaryOp) -> _Part:
        if isinstance(node.op, ast.Not):
            return "truth", ~self.truth(node.operand)
        part = self.number(node.operand, "a sign needs")
        return "number", -part if isinstance(node.op, ast.USub) else part

    def _arithmetic(self, node: ast.BinOp) -> pl.Expr:
        left, right = (self.number(side, "to calculate needs") for side in (node.left, node.right))
        if isinstance(node.op, ast.Div):
            result: pl.Expr = pl.when(right != 0).then(left / right)
        elif isinstance(node.op, ast.Mult):
            result = left * right
        else:
            result = left + right if isinstance(node.op, ast.Add) else left - right
        # Infinity less infinity is no number either.
        return result.fill_nan(None)

    def _comparison(self, node: ast.Compare) -> pl.Expr:
        sides = [node.left, *node.comparators]
        parts = [
            self._pair(node, left, operator, right)
            for left, operator, right in zip(sides[:-1], node.ops, sides[1:], strict=True)
        ]
        return pl.all_horizontal(*parts) if len(parts) > 1 else parts[0]

    def _pair(
        self, node: ast.Compare, left: ast.expr, operator: ast.cmpop, right: ast.expr
    ) -> pl.Expr:
        kind, part = self._part(left)
        if isinstance(operator, ast.In | ast.NotIn):
            within = part.is_in(self._items(left, kind, right))
            return ~within if isinstance(operator, ast.NotIn) else within
        other, against = self._part(right)
        ordered = not isinstance(operator, ast.Eq | ast.NotEq)
        if kind != other or kind == "nothing" or (kind == "truth" and ordered):
            raise fault(
                node,
                self._text,
                f"{ast.unparse(left)!r} is {_SAID[kind]} and {ast.unparse(right)!r} is "
                f"{_SAID[other]}; they cannot be compared",
            )
        return _COMPARE[type(operator)](part, against)

    def _items(self, left: ast.expr, kind: Kind, node: ast.expr) -> list[str | float]:
        if not isinstance(node, ast.List | ast.Tuple) or not node.elts:
            raise fault(node, self._text, "'in' needs a list that holds something: ['en', 'de']")
        items: list[str | float] = []
        for item in node.elts:
            try:
                value = ast.literal_eval(item)
            except ValueError:
                raise fault(item, self._text, "a list holds numbers or strings") from None
            found = "string" if isinstance(value, str) else "number"
            if found != kind or isinstance(value, bool):
                raise fault(
                    item,
                    self._text,
                    f"{ast.unparse(left)!r} is {_SAID[kind]}; {value!r} cannot be equal to it",
                )
            items.append(value if isinstance(value, str) else float(value))
        return items
