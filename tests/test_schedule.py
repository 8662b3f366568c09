from itertools import pairwise
from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.schedule import Schedule

SCHEDULES = st.builds(
    Schedule,
    shape=st.sampled_from(["cosine", "constant"]),
    warmup=st.floats(0, 0.99),
    final=st.floats(0, 1),
)


@given(schedule=SCHEDULES, length=st.integers(1, 500))
def test_the_rate_rises_to_its_peak_and_never_rises_again(schedule: Schedule, length: int) -> None:
    curve = [schedule.factor(step, length) for step in range(length)]
    rising = round(schedule.warmup * length)
    assert all(0 < factor <= 1 for factor in curve[: rising + 1])
    assert all(a < b for a, b in pairwise(curve[: rising + 1]))
    assert all(a >= b for a, b in pairwise(curve[rising:]))
    if rising < length:
        assert curve[rising] == 1.0


@given(schedule=SCHEDULES, length=st.integers(1, 200), later=st.integers(0, 100))
def test_past_the_end_the_rate_stays_where_it_ended(
    schedule: Schedule, length: int, later: int
) -> None:
    if schedule.shape == "cosine" and round(schedule.warmup * length) < length:
        assert schedule.factor(length + later, length) == pytest.approx(schedule.final, abs=1e-12)


def test_the_papers_curve_at_a_few_steps() -> None:
    # 1000 steps, 3 % warm-up, cosine to 0: values of the formula, written out by hand.
    schedule = Schedule()
    assert schedule.factor(0, 1000) == pytest.approx(1 / 31)
    assert schedule.factor(29, 1000) == pytest.approx(30 / 31)
    assert schedule.factor(30, 1000) == 1.0
    assert schedule.factor(515, 1000) == pytest.approx(0.5)
    assert schedule.factor(999, 1000) == pytest.approx(0.5 * (1 + cos(pi * 969 / 970)))


def test_no_step_is_wasted_at_a_rate_of_zero() -> None:
    assert all(Schedule().factor(0, length) > 0 for length in range(1, 400))


def test_a_longer_curve_is_another_curve() -> None:
    # Why going on past a finished budget needs schedule.length.
    assert Schedule().factor(9, 10) != Schedule().factor(9, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "cosin"}, "schedule.shape is 'cosin'; expected one of"),
        ({"warmup": 1.0}, "schedule.warmup is 1.0"),
        ({"warmup": -0.1}, "expected shares of 1"),
        ({"final": 3.0}, "schedule.final 3.0"),
        ({"length": 0}, "schedule.length is 0 steps"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(**arguments)
