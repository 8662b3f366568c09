"""A run's figures as columns: what is read, smoothed and drawn of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reported import row, write_metrics

from openqwen2vl.formats.errors import UserError
from openqwen2vl.training.csv_log import last_step
from openqwen2vl.training.report.metrics import read_metrics, smooth, thin, window_of

VALUES = st.floats(-100, 100, width=32)
MAYBE = st.one_of(VALUES, st.sampled_from([np.nan, np.inf]))


def test_columns_are_the_rows_figures(tmp_path: Path) -> None:
    rows = [row(1), row(2, loss=float("nan"), val_loss=1.5, **{"loss/with, comma": 3.0})]
    read = read_metrics(write_metrics(tmp_path, rows))
    assert read.steps.tolist() == [1, 2]
    assert read.column("loss")[0] == 6.0
    assert np.isnan(read.column("loss")[1])
    assert np.isnan(read.column("val_loss")[0])
    assert read.column("val_loss")[1] == 1.5
    assert set(read.parts("loss")) == {"red", "blue", "with, comma"}
    assert read.seconds.tolist() == [0.5, 0.5]
    assert not read.has("mfu")
    assert np.isnan(read.column("mfu")).all()


def test_of_a_step_told_twice_the_later_row_counts(tmp_path: Path) -> None:
    rows = [row(step, loss=float(step)) for step in (1, 2, 3, 4)]
    rows += [row(step, loss=10.0 + step) for step in (3, 4, 5)]
    read = read_metrics(write_metrics(tmp_path, rows))
    assert read.steps.tolist() == [1, 2, 3, 4, 5]
    assert read.column("loss").tolist() == [1, 2, 13, 14, 15]
    assert read.again == [3]


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_last_row_that_a_kill_cut_off_is_left_out(tmp_path: Path, kept: int) -> None:
    path = write_metrics(tmp_path, [row(step) for step in (1, 2, 3)])
    whole = path.read_text()
    first = whole[:-1].rfind("\n") + 1
    path.write_text(whole[:first] + whole[first:-1][:kept])
    assert read_metrics(path).steps.tolist() == [1, 2]
    assert last_step(path) == 2


@pytest.mark.parametrize("text", [None, "", "step,loss\n", "step,lo"])
def test_a_file_without_rows_has_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    assert len(read_metrics(path).steps) == 0
    assert last_step(path) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [("step,loss\n1,two\n", "no table of figures"), ("name\n1\n", "no column 'step'")],
)
def test_what_is_no_table_of_figures_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as raised:
        read_metrics(path)
    assert str(path) in str(raised.value)


@given(st.lists(st.tuples(MAYBE, st.floats(0.5, 2)), max_size=40), st.integers(1, 9))
def test_smoothing_is_the_weighted_mean_of_the_last_rows(
    pairs: list[tuple[float, float]], window: int
) -> None:
    values, weights = (np.array([pair[k] for pair in pairs], np.float64) for k in (0, 1))
    for counts in (None, weights):
        got = smooth(values, window, counts)
        for place in range(len(values)):
            last = slice(max(0, place - window + 1), place + 1)
            good = np.isfinite(values[last])
            mine = np.ones(len(values))[last] if counts is None else counts[last]
            if good.any():
                wanted = np.average(values[last][good], weights=mine[good])
                assert got[place] == pytest.approx(wanted, abs=1e-6)
            else:
                assert np.isnan(got[place])


@given(st.lists(MAYBE, max_size=60), st.integers(1, 5))
def test_thinning_keeps_the_extremes_the_ends_and_the_order(
    values: list[float], buckets: int
) -> None:
    x, y = np.arange(len(values), dtype=np.float64), np.array(values, np.float64)
    points = thin(x, y, buckets)
    finite = [(place, value) for place, value in enumerate(values) if np.isfinite(value)]
    assert set(points) <= set(finite)
    assert points == sorted(points)
    if len(finite) <= 2 * buckets:
        assert points == finite
    else:
        assert len(points) <= 2 * buckets + 2
        assert points[0] == finite[0]
        assert points[-1] == finite[-1]
        for extreme in (min, max):
            assert extreme(p[1] for p in points) == extreme(f[1] for f in finite)


def test_a_mean_spans_a_part_of_the_run() -> None:
    assert [window_of(rows) for rows in (1, 100, 400, 10**6)] == [5, 5, 20, 200]
