"""What an ablation shows, in plain sentences: of mixtures, of trained models, or not at all."""

from collections.abc import Sequence

from openqwen2vl.evaluation.ablation.effects import Effect, agree, least_over_seeds
from openqwen2vl.evaluation.comparison import Settings
from openqwen2vl.evaluation.conclusion import interval, is_below_detectable, questions, roughness


def verdict(effect: Effect) -> str:
    """Give the verdict in two words at most."""
    if effect.of_mixtures:
        return "mixtures"
    return "these models" if effect.of_models else "not shown"


def sentence(effect: Effect, settings: Settings) -> str:
    """Say in one sentence what one effect is, how sure it is, and what that means."""
    found = effect.comparison
    level = interval(found, settings)
    if not found.differing:
        return (
            f"{found.name}: no difference shown: {effect.mixture} and {effect.baseline} are "
            f"equally right on each of {questions(found)} ({level})."
        )
    if found.difference:
        side = "above" if found.difference > 0 else "below"
        size = f"{effect.mixture} is {abs(found.difference):.2f} points {side} {effect.baseline}"
    else:
        size = f"{effect.mixture} and {effect.baseline} are both at {found.a:.2f} %"
    meaning = f"{_meaning(effect, settings)}{roughness(found)}"
    return f"{found.name}: {size} ({level}, p by Holm {found.p_holm:.2g}): {meaning}."


def _meaning(effect: Effect, settings: Settings) -> str:
    found = effect.comparison
    least = (
        f"{questions(found)} could not show any"
        if found.detectable is None
        else f"{questions(found)} find {found.detectable:.2f} points in "
        f"{100 * settings.power:g} % of cases, compared alone"
    )
    if effect.of_models:
        size = f", its size uncertain: {least}" if is_below_detectable(found) else ""
        models = f"a difference between these {2 * len(effect.seeds)} trained models"
        if effect.p_over_seeds is None:
            return f"{models}{size}"
        over = f"p over {len(effect.seeds)} seeds by Holm {effect.p_over_seeds:.2g}"
        if effect.of_mixtures:
            return f"a real difference between the mixtures ({over}){size}"
        return f"{models}, not shown of the mixtures ({over}){size}"
    if found.p_holm < settings.alpha and not agree(effect.by_seed):
        told = ", ".join(f"{value:+.2f}" for value in effect.by_seed)
        return f"not shown, since the seeds disagree ({told})"
    alone = f" (p = {found.p:.2g} alone)" if found.p < settings.alpha else ""
    return f"not shown{alone}; {least}"


def conclusions(effects: Sequence[Effect], settings: Settings) -> list[str]:
    """Say what the ablation shows as a whole: how many differences, of what, how they were told.

    Args:
        effects: corrected; several seeds as `effects` treats them.
        settings: of the tests.

    Returns:
        Sentences, the most important first.
    """
    if not effects:
        return [
            "Nothing to compare: no other mixture has scores under a seed of the baseline, or the "
            "baseline has none; only=report baseline=MIXTURE compares with another."
        ]
    num, base = len(effects), effects[0].baseline
    models, mixtures = (
        sum(getattr(one, k) for one in effects) for k in ("of_models", "of_mixtures")
    )
    together = f"all {num} comparisons taken together (Holm, level {settings.alpha:g})"
    by = together if num > 1 else f"at level {settings.alpha:g}"
    told = [f"{models} of {num} differences from {base} are shown of the trained models, {by}."]
    if max(len(one.seeds) for one in effects) > 1:
        told.insert(
            0, f"{mixtures} of {num} differences from {base} are real ones of the mixtures, {by}."
        )
    if models < num:
        told.append(
            f"{num - models} of {num} are not shown, which does not mean that the mixtures are "
            "equal: smaller differences than the detectable ones may be there."
        )
    return [*told, _seeds([len(one.seeds) for one in effects], settings.alpha)]


def _seeds(counts: Sequence[int], alpha: float) -> str:
    """Say what the numbers of seeds behind the effects leave open."""
    num = len(counts)
    most, fewest = max(counts), min(counts)
    if most == 1:
        return (
            "One seed a mixture: what is shown is shown of these trained models, not of the "
            "mixtures. How far another seed would have moved each score was not measured; with five "
            f"seeds a difference {least_over_seeds(5, num, alpha):.1f} times that scatter would show."
        )
    many = f"{most}" if most == fewest else f"{fewest} to {most}"
    return (
        f"{many} seeds a mixture: of the trained models, p and intervals hold the chance in the "
        "choice of questions, which are drawn and exchanged with their answers under every seed; "
        "of the mixtures, a second test (Student's t over seeds) holds the chance in the choice of "
        "seeds, and both must show the difference. That needs a difference "
        f"{least_over_seeds(most, num, alpha):.1f} times its scatter over {most} seeds, or "
        f"{least_over_seeds(2 * most, num, alpha):.1f} times over {2 * most}."
    )
