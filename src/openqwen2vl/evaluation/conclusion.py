"""One plain sentence on what a comparison shows: a real difference or not, detectable or not."""

from openqwen2vl.evaluation.comparison import BOOTSTRAP, Comparison, Settings

# With fewer differing questions an interval drawn from them is rough.
_FEW = 10


def is_real(found: Comparison, settings: Settings) -> bool:
    """Whether chance alone would hardly give this difference, over all benchmarks compared."""
    return found.p_holm < settings.alpha


def is_below_detectable(found: Comparison) -> bool:
    """Whether so many questions would often miss a difference of this size."""
    return found.detectable is None or abs(found.difference) < found.detectable


def sentence(found: Comparison, settings: Settings) -> str:
    """Say in one sentence what the figures mean.

    Args:
        found: the comparison, p-values corrected.
        settings: as it was made.
    """
    level = interval(found, settings)
    if not found.differing:
        return (
            f"{found.name}: no difference shown: a and b are equally right on each of "
            f"{questions(found)} ({level})."
        )
    size = f"{_who(found)} ({level}, {_p(found, settings)})"
    return f"{found.name}: {size}: {_meaning(found, settings)}{roughness(found)}."


def interval(found: Comparison, settings: Settings) -> str:
    """Give the interval of the difference in words, with its level."""
    low, high = found.interval
    return f"{100 * (1 - settings.alpha):g} % interval {low:.2f} to {high:.2f}"


def questions(found: Comparison) -> str:
    """Say how many questions were asked."""
    return f"{found.questions:,} question{'' if found.questions == 1 else 's'}"


def _who(found: Comparison) -> str:
    if found.difference == 0:
        return f"a and b are both at {found.a:.2f} %"
    better, worse = ("b", "a") if found.difference > 0 else ("a", "b")
    return f"{better} is {abs(found.difference):.2f} points above {worse}"


def _p(found: Comparison, settings: Settings) -> str:
    if found.p < settings.alpha <= found.p_holm:
        return f"p = {found.p:.2g} alone but {found.p_holm:.2g} among all benchmarks compared"
    return f"p = {found.p_holm:.2g}"


def _meaning(found: Comparison, settings: Settings) -> str:
    if found.detectable is None:
        return f"no real difference shown; {questions(found)} could not show any"
    least = (
        f"the {found.detectable:.2f} points that {questions(found)} find in "
        f"{100 * settings.power:g} % of cases"
    )
    below = is_below_detectable(found)
    if is_real(found, settings):
        size = f", but below {least}: its size is uncertain" if below else f", not below {least}"
        return f"a real difference{size}"
    joint = "; it is below" if below else ", though it is not below"
    return f"no real difference shown{joint} {least}"


def roughness(found: Comparison) -> str:
    """Give a clause that ends a sentence where too few questions differ for the interval, or ''."""
    if found.differing >= _FEW or found.interval_method != BOOTSTRAP:
        return ""
    return f"; so few questions differ ({found.differing}) that the interval is rough"
