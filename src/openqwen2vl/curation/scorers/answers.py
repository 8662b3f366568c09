"""Reading a judge's answer: a whole number from 0 to 100 on its first line, or none."""

import re

HIGHEST = 100

# Signs of emphasis, which may stand anywhere around a number.
_NO_MARKS = str.maketrans("", "", "*`")
# What may stand before the number: signs of layout, and a heading that ends in a colon.
_LEAD = re.compile(r"(?:[^0-9:=\n]*[:=])?[\s_#>\"'(\[{~-]*")
# One number, with its sign, thousands and decimals, so that no part of it is taken for the whole.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,])[-+]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?![A-Za-z0-9_]|[.,][0-9])"
)
_OUT_OF_HUNDRED = re.compile(r"\s*(?:/\s*|out\s+of\s+)100(?![0-9.])")
_OTHER_SCALE = re.compile(r"\s*(?:/|out\s+of\s)\s*[0-9]")
# A range or a choice of two numbers is no score.
_RANGE = re.compile(r"\s*(?:-|\u2013|\u2014|\.\.+|to|or|and)\s*[0-9]")


def read_score(answer: str, finished: bool = True) -> int | None:
    """Read the score that an answer gives.

    It is the whole number that the first line opens with, after a heading such as ``Score:`` if
    there is one; or the only number of a first line that opens with words. What else could be
    meant by it is not guessed:

    ======================================  =====
    answer                                  score
    ======================================  =====
    ``85``, ``85.``, ``85,``, ``**85**``    85
    ``100``                                 100
    ``85`` newline, reasons                 85
    ``Score: 85 because of 3 birds``        85
    ``85/100``, ``85 out of 100``, ``85%``  85
    ``I would say 85``                      85
    ``85.0``                                85
    ``0``                                   0
    ``8/10``, ``8 out of 10``               none: another scale
    ``101``, ``-5``, ``1,000``              none: outside of 0 to 100
    ``85.5``                                none: no whole number
    ``80-90``, ``80 or 90``                 none: two numbers
    ``between 0 and 100, 85``               none: three numbers after words
    ``eighty``, ``N/A``, nothing            none
    ======================================  =====

    Args:
        answer: the generated text.
        finished: whether the answer ended by itself. In one that was cut off, a number at the
            very end may lack digits and does not count.
    """
    line, *others = answer.lstrip().splitlines(keepends=True) or [""]
    whole = finished or bool(others) or line.endswith("\n")
    line = line.translate(_NO_MARKS)
    found = list(_NUMBER.finditer(line))
    if not found:
        return None
    first = found[0]
    lead = _LEAD.match(line)
    opens = lead is not None and lead.end() >= first.start()
    after = line[first.end() :]
    of_hundred = _OUT_OF_HUNDRED.match(after)
    rest = after[of_hundred.end() :] if of_hundred else after
    if not opens and _NUMBER.search(rest):
        return None
    if _RANGE.match(rest) or (not of_hundred and _OTHER_SCALE.match(after)):
        return None
    if not whole and not after.strip(" .,"):
        return None
    return _in_range(first.group())


def _in_range(number: str) -> int | None:
    value = float(number.replace(",", ""))
    return int(value) if value.is_integer() and 0 <= value <= HIGHEST else None
