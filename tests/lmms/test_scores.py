"""An answer is worth the same here and in lmms-eval, and the figures of many are the same."""

from collections.abc import Iterator

import pytest

from lmms.deviations import DEVIATIONS, decided, mended
from lmms.parity import STANDARD, Sides, answered, many, names, sides
from lmms.theirs import COUNTERPARTS, Chance

MOST_KINDS = 2
LEAST_SAYINGS = 500


@pytest.fixture(autouse=True)
def chance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chance]:
    found = Chance()
    found.install(monkeypatch)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sides]:
    return {name: sides(name, tmp_path_factory.mktemp(name)) for name in COUNTERPARTS}


@pytest.mark.parametrize("name", names())
def test_every_output_is_worth_the_same(name: str, both: dict[str, Sides], chance: Chance) -> None:
    side = both[name]
    compared, right, differing = set(), set(), []
    for said in side.sayings():
        for question, doc in side.kinds(MOST_KINDS):
            before = chance.used
            ours, theirs = side.ours_of(question, said), side.theirs.worth(*mended(name, doc, said))
            if name == "mathvista" and chance.used > before:
                continue  # theirs asked its judge
            compared.add(said)
            right |= {said} if ours else set()
            if ours != pytest.approx(theirs, abs=1e-9):
                differing.append((said, question.fields.get("answer"), ours, theirs))
    assert differing == []
    assert len(compared) >= LEAST_SAYINGS
    assert len(right) >= 10


@pytest.mark.parametrize("cause", DEVIATIONS)
def test_a_listed_deviation_is_one(cause: str, both: dict[str, Sides], chance: Chance) -> None:
    deviation = DEVIATIONS[cause]
    assert {name for name, _ in deviation.examples} == set(deviation.benchmarks)
    for name, said in deviation.examples:
        side, found = both[name], []
        for question, doc in side.rows:
            ours, theirs = side.ours_of(question, said), side.theirs.worth(doc, said)
            if ours != pytest.approx(theirs, abs=1e-9):
                found.append(ours == side.theirs.worth(*deviation.mend(doc, said)))
        assert found, f"{said!r} is worth the same in {name}"
        assert all(found), f"{said!r} in {name} differs for another reason"


def test_where_theirs_draws_a_letter_nothing_is_read(
    both: dict[str, Sides], chance: Chance
) -> None:
    side = both["mmmu"]
    question, doc = side.rows[0]
    for said in ("I cannot say", "", "Cat", "both of them"):
        chance.draws = doc["answer"]
        assert side.theirs.worth(doc, said) == 1
        chance.draws = None
        assert side.theirs.worth(doc, said) == side.ours_of(question, said) == 0


def test_where_theirs_asks_a_judge_rules_read_the_answer(
    both: dict[str, Sides], chance: Chance
) -> None:
    side = both["mathvista"]
    for question, doc in side.rows:
        said = f"The answer is {doc['answer']}"
        chance.judges = str(doc["answer"])
        mended_doc, _ = mended("mathvista", doc, said)
        before = chance.used
        assert side.ours_of(question, said) == side.theirs.worth(mended_doc, said) == 1
        assert chance.used == before + 1


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_the_figures_of_many_answers_are_the_same(
    name: str, both: dict[str, Sides], chance: Chance
) -> None:
    side = both[name]
    lines, results = [], []
    for line, doc in many(side, LEAST_SAYINGS):
        before = chance.used
        result = side.theirs.result(*decided(name, *mended(name, doc, line.output)))
        if name == "mathvista" and chance.used > before:
            continue
        lines.append(line)
        results.append(result)
    _, summary = side.ours.score(lines, STANDARD)
    assert len(lines) >= LEAST_SAYINGS
    # MMMU's script rounds to five digits, MathVista's to hundredths of a percent.
    close = {"mmmu": 5e-4, "mathvista": 5e-3}.get(name, 1e-7)
    for their_name, our_name in COUNTERPARTS[name].metrics.items():
        theirs = side.theirs.aggregate(their_name, results) * COUNTERPARTS[name].percent
        assert summary.metrics[our_name] == pytest.approx(theirs, abs=close)
        assert theirs > 10


def test_pope_counts_an_unreadable_answer_as_a_missed_yes(both: dict[str, Sides]) -> None:
    side = both["pope"]
    question, doc = next(row for row in side.rows if row[1]["answer"] == "yes")
    said = ["yes", "maybe"]
    lines = [answered(question, str(number), text) for number, text in enumerate(said)]
    _, summary = side.ours.score(lines, STANDARD)
    results = [side.theirs.result(doc, text) for text in said]
    assert side.theirs.aggregate("pope_recall", results) == 1
    assert summary.metrics["recall"] == 50
