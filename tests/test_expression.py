import ast
import math
import operator

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.curation.selection.expression import ExpressionError, parse_expression
from openqwen2vl.curation.selection.predicate import compile_expression

NUMBERS, STRINGS, TRUTHS = ("a", "b", "t.c"), ("s", "p q"), ("flag",)
SCHEMA = {
    "a": pl.Float32(),
    "b": pl.Int64(),
    "t.c": pl.Float64(),
    "s": pl.String(),
    "p q": pl.String(),
    "flag": pl.Boolean(),
    "raw": pl.Binary(),
}
CALLS = ("uids('dfn')", "top(a, 0.5)", "top_n(b, 2)")
COMPARE = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
CALCULATE = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value_of(node, row):
    """Say what an expression is for one row, by the definition: None stands for unknown."""
    text = ast.unparse(node)
    if isinstance(node, ast.Call):
        if text.startswith("column"):
            return known(row[ast.literal_eval(node.args[0])])
        if text.startswith("missing"):
            return value_of(node.args[0], row) is None
        return row[text]
    if isinstance(node, ast.Name | ast.Attribute):
        return True if text == "all" else known(row[text])
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        inner = value_of(node.operand, row)
        if isinstance(node.op, ast.Not):
            return None if inner is None else not inner
        return None if inner is None else -inner
    if isinstance(node, ast.BoolOp):
        values = [value_of(part, row) for part in node.values]
        decides = isinstance(node.op, ast.Or)
        return decides if decides in values else None if None in values else not decides
    if isinstance(node, ast.BinOp):
        left, right = value_of(node.left, row), value_of(node.right, row)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Div):
            return None if right == 0 else known(float(left) / right)
        return known(CALCULATE[type(node.op)](float(left), float(right)))
    return chain(node, row)


def known(value):
    return None if isinstance(value, float) and math.isnan(value) else value


def chain(node, row):
    sides, answers = [node.left, *node.comparators], []
    for left, how, right in zip(sides[:-1], node.ops, sides[1:], strict=True):
        value = value_of(left, row)
        if isinstance(how, ast.In | ast.NotIn):
            inside = value in ast.literal_eval(right)
            answers.append(None if value is None else inside == isinstance(how, ast.In))
        else:
            other = value_of(right, row)
            unknown = value is None or other is None
            answers.append(None if unknown else COMPARE[type(how)](value, other))
    return False if False in answers else None if None in answers else True


def decided(text, rows):
    """Let polars decide on rows, given as a list of dicts."""
    kinds = {**SCHEMA, **dict.fromkeys(CALLS, pl.Boolean())}
    predicate = compile_expression(parse_expression(text), SCHEMA, ["dfn"])
    frame = pl.DataFrame(rows, schema=kinds)
    return frame.with_columns(keep=pl.all_horizontal(t.holds for t in predicate.terms))["keep"]


literal = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -0.25, 1e308, 2.0]))
number = st.recursive(
    st.one_of(st.sampled_from(NUMBERS), literal.map(str)),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("-({})".format, inner),
    ),
    max_leaves=4,
)
string = st.sampled_from(["s", "column('p q')", "'x'", "'y'", "''", "'é'"])
compare = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
member = st.sampled_from(["in", "not in"])
condition = st.recursive(
    st.one_of(
        st.builds("{} {} {}".format, number, compare, number),
        st.builds("{} {} {} {} {}".format, number, compare, number, compare, number),
        st.builds("{} {} {}".format, string, compare, string),
        st.builds("{} {} {!r}".format, number, member, st.lists(literal, min_size=1, max_size=3)),
        st.builds("{} {} ['x', 'é']".format, string, member),
        st.builds("missing({})".format, st.sampled_from([*NUMBERS, "s", "column('p q')", "flag"])),
        st.sampled_from(["all", "flag", "flag == True", "flag != (a < b)", *CALLS]),
    ),
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=8,
)
maybe = st.sampled_from([True, False, None])
single = st.sampled_from([0.0, 0.5, -1.0, 2.0, float("nan"), float("inf"), -0.0, None])
row = st.fixed_dictionaries(
    {
        "a": single,
        "b": st.one_of(st.integers(-3, 3), st.none()),
        "t.c": st.one_of(single, st.just(1e308)),
        "s": st.sampled_from(["x", "y", "", "é", None]),
        "p q": st.sampled_from(["x", "z", None]),
        "flag": maybe,
        **dict.fromkeys(CALLS, maybe),
    }
)


@settings(deadline=None, max_examples=400)
@given(condition, st.lists(row, min_size=1, max_size=8))
def test_polars_decides_as_a_plain_interpreter_does(text, rows):
    tree = ast.parse(text, mode="eval").body
    assert decided(text, rows).to_list() == [value_of(tree, one) for one in rows], text


def test_what_an_expression_reads_is_told():
    text = "uids('dfn') or top(a + t.c, 0.3) and not missing(column('p q')) and uids('b') or a > 1"
    expression = parse_expression(text)
    assert expression.columns == ("a", "p q", "t.c")
    assert expression.lists == ("b", "dfn")
    assert [top.text for top in expression.tops] == ["top(a + t.c, 0.3)"]


def test_terms_are_what_and_joins_at_the_top():
    expression = parse_expression("a>1 and (b<2 or flag) and (s == 'x' and all)")
    predicate = compile_expression(expression, SCHEMA, [])
    assert [t.text for t in predicate.terms] == ["a > 1", "b < 2 or flag", "s == 'x' and all"]
    (only,) = compile_expression(parse_expression("a > 1 or flag"), SCHEMA, []).terms
    assert only.text == "a > 1 or flag"


@pytest.mark.parametrize(
    ("text", "ranked", "size"),
    [
        ("top(a, 0.3)", 10, 3),
        ("top(a, 0.29)", 100, 29),  # 28.999999999999996 as doubles
        ("top(a, 0.3)", 3, 0),
        ("top(a, 1)", 7, 7),
        ("top(a, 1e-05)", 100_000, 1),
        ("top_n(a, 3)", 10, 3),
        ("top_n(a, 30)", 10, 10),
    ],
)
def test_a_fraction_is_taken_as_it_is_written_and_rounded_down(text, ranked, size):
    (top,) = parse_expression(text).tops
    assert top.size(ranked) == size


def test_an_expression_may_stand_on_several_lines():
    expression = parse_expression("a > 1\n  and s == 'x'\n")
    assert [ast.unparse(term) for term in expression.terms] == ["a > 1", "s == 'x'"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "write 'all' to keep every sample"),
        (None, "an expression is None"),
        ("a >", "invalid syntax (character 4 of"),
        ("a > 1) or (b > 1", "unmatched ')' (character 6"),
        ("(a > 1", "'(' was never closed (character 1"),
        ("a > 1 # b\nand b > 1", "a comment would hide what follows; take it out (character 7"),
        ("a is 1", "'is' is not part of the language"),
        ("s == 'é' and a ** 2 > 1", "+ - * / only (character 14 of"),
        ("a if flag else b", "is not part of the language"),
        ("[x for x in s]", "is not part of the language"),
        ("(lambda: 1)()", "there is no function 'lambda: 1'"),
        ("__import__('os').system('x')", "there is no function"),
        ("s.t.u == 1", "'s.t.u' is not TABLE.COLUMN"),
        ("a[0] > 1", "'a[0]' is not part of the language"),
        ("f'{a}' == s", "is not part of the language"),
        ("a == None", "use missing(column)"),
        ("s == b'x'", "neither a number nor a string"),
        ("a > 1e999", "too large for a double"),
        ("a > 1" + "0" * 400, "too large for a double"),
        ("tops(a, 0.3)", "there is no function 'tops'; did you mean 'top'?"),
        ("gzip(a)", "there are uids, top, top_n, missing, column"),
        ("top(a)", "'top(a)' should be top(number, fraction)"),
        ("top(a, b)", "should be top(number, fraction)"),
        ("top(a, fraction=0.3)", "should be top(number, fraction)"),
        ("top(a, 30)", "the fraction 30 is not above 0 and at most 1"),
        ("top(a, 0)", "the fraction 0 is not above 0"),
        ("top_n(a, 0.3)", "the count 0.3 is not a whole number"),
        ("top(a, True)", "should be top(number, fraction)"),
        ("uids(dfn)", "'uids(dfn)' should be uids('name of a list')"),
        ("missing('a')", "should be missing(column)"),
        ("top > 1", "top is a function; write top(number, fraction)"),
        ("(" * 300 + "a" + ")" * 300, "too many nested parentheses"),
        ("not " * 4000 + "flag", "nested too deep"),
    ],
)
def test_what_the_language_has_not_is_told_with_its_place(text, fault):
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("flg", "there is no column 'flg'; did you mean 'flag'? (character 1 of 'flg')"),
        ("all and zzz > 1", "there are a, b, flag, p q, raw, s, t.c (character 9"),
        ("missing(zzz)", "there is no column 'zzz'"),
        ("uids('dfm')", "the selection has no list 'dfm'; did you mean 'dfn'?"),
        ("s >= 85", "'s' is a string and '85' is a number; they cannot be compared (character 1"),
        ("flag < True", "they cannot be compared"),
        ("raw == 's'", "'raw' is of no kind that can be compared"),
        ("a", "a condition is needed, but 'a' is a number"),
        ("a > 1 and 's'", "a condition is needed, but \"'s'\" is a string (character 11"),
        ("not b", "a condition is needed"),
        ("s + 1 > 2", "to calculate needs a number, but 's' is a string"),
        ("-s > 2", "a sign needs a number, but 's' is a string"),
        ("top(s, 0.3)", "top(s, 0.3) ranks a number, but 's' is a string"),
        ("a in s", "'in' needs a list that holds something"),
        ("a in []", "'in' needs a list that holds something"),
        ("a in ['x']", "'a' is a number; 'x' cannot be equal to it"),
        ("a in [1, True]", "True cannot be equal to it"),
        ("a in [b]", "a list holds numbers or strings"),
        ("flag in [1]", "'flag' is true or false; 1 cannot be equal to it"),
        ("[1] == a", "a list only stands after 'in'"),
    ],
)
def test_what_does_not_fit_the_columns_is_told_with_its_place(text, fault):
    expression = parse_expression(text)
    with pytest.raises(ExpressionError) as caught:
        compile_expression(expression, SCHEMA, ["dfn"])
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
