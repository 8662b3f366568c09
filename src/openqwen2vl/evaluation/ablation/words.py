"""What an ablation shows, in plain sentences: which differences are real and which are not shown."""

from collections.abc import Sequence

from openqwen2vl.evaluation.ablation.effects import Effect, agree
from openqwen2vl.evaluation.comparison import Settings
from openqwen2vl.evaluation.conclusion import is_below_detectable


def verdict(effect: Effect) -> str:
    """Give the verdict in two words at most."""
    return "real" if effect.real else "not shown"


def sentence(effect: Effect, settings: Settings) -> str:
    """Say in one sentence what one effect is, how sure it is, and what that means."""
    found = effect.comparison
    if not found.differing:
        return (
            f"{found.name}: no difference shown: {effect.mixture} and {effect.baseline} are "
            f"equally right on each of {found.questions:,} questions."
        )
    low, high = found.interval
    if found.difference:
        side = "above" if found.difference > 0 else "below"
        size = f"{effect.mixture} is {abs(found.difference):.2f} points {side} {effect.baseline}"
    else:
        size = f"{effect.mixture} and {effect.baseline} are both at {found.a:.2f} %"
    level = f"{100 * (1 - settings.alpha):g} % interval {low:.2f} to {high:.2f}"
    return f"{found.name}: {size} ({level}, p = {found.p_holm:.2g}): {_meaning(effect, settings)}."


def _meaning(effect: Effect, settings: Settings) -> str:
    found = effect.comparison
    least = (
        ""
        if found.detectable is None
        else f"{found.questions:,} questions find {found.detectable:.2f} points in "
        f"{100 * settings.power:g} % of cases"
    )
    if effect.real:
        small = is_below_detectable(found)
        return f"a real difference{f', its size uncertain: {least}' if small else ''}"
    if found.p_holm < settings.alpha and not agree(effect.by_seed):
        told = ", ".join(f"{value:+.2f}" for value in effect.by_seed)
        return f"not shown, since the seeds disagree ({told})"
    alone = f" (p = {found.p:.2g} alone)" if found.p < settings.alpha else ""
    return f"not shown{alone}; {least}"


def conclusions(effects: Sequence[Effect], settings: Settings) -> list[str]:
    """Say what the ablation shows as a whole: how many differences are real, how they were told.

    Args:
        effects: corrected; several seeds as `effects` treats them.
        settings: of the tests.

    Returns:
        Sentences, the most important first.
    """
    if not effects:
        return ["Nothing to compare: only one mixture has scores."]
    real = [one for one in effects if one.real]
    told = [
        f"{len(real)} of {len(effects)} differences from {effects[0].baseline} are real: chance "
        f"alone would hardly give them, all {len(effects)} comparisons taken together (Holm, "
        f"level {settings.alpha:g})."
    ]
    if len(real) < len(effects):
        told.append(
            f"The other {len(effects) - len(real)} are not shown, which does not mean that the "
            "mixtures are equal: smaller differences than the detectable ones may be there."
        )
    most = max(len(one.seeds) for one in effects)
    if most == 1:
        told.append(
            "One seed a mixture: what is real is real of these trained models; how far another "
            "seed would have moved each score was not measured."
        )
    else:
        told.append(
            f"Up to {most} seeds a mixture: questions are drawn and exchanged with their answers "
            "under every seed, and a difference whose sign is not the same under each seed is not "
            "called real; the seeds' own spread stands beside it."
        )
    return told
