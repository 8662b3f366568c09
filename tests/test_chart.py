import re
import xml.etree.ElementTree as ElementTree

import pytest

from openqwen2vl.pages.chart import Series, line_chart

LINE = Series("loss", [(1, 4.0), (2, 2.5), (3, 1.0)])


def drawings(figure: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(figure))


def points(drawing: ElementTree.Element, number: int = 0) -> list[tuple[float, float]]:
    pairs = drawing.findall("polyline")[number].attrib["points"].split()
    return [tuple(map(float, pair.split(","))) for pair in pairs]


def texts(drawing: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in drawing.iter("text")]


def test_a_chart_is_drawn_once_for_wide_and_once_for_narrow_screens():
    wide, narrow = drawings(line_chart([LINE], "step", "loss"))
    assert (wide.attrib["class"], narrow.attrib["class"]) == ("wide", "narrow")
    width = [int(drawing.attrib["viewBox"].split()[2]) for drawing in (wide, narrow)]
    assert width[0] > 700
    assert width[1] <= 360


def test_every_point_lies_inside_and_higher_values_lie_higher():
    for drawing in drawings(line_chart([LINE], "step", "loss")):
        _, _, width, height = map(int, drawing.attrib["viewBox"].split())
        placed = points(drawing)
        assert len(placed) == 3
        assert all(0 <= x <= width and 0 <= y <= height for x, y in placed)
        assert [x for x, _ in placed] == sorted(x for x, _ in placed)
        assert [y for _, y in placed] == sorted(y for _, y in placed)


def test_labels_and_names_are_there():
    for drawing in drawings(line_chart([LINE], "step", "nats")):
        assert {"step", "nats", "loss"} <= set(texts(drawing))
        assert drawing.find("title").text == "nats over step: loss"


def test_ticks_enclose_the_data_and_are_round():
    line = Series("loss", [(0, 0.137), (970, 4.61)])
    wide = drawings(line_chart([line], "step", "loss"))[0]
    ticks = [text for text in texts(wide) if re.fullmatch(r"-?[\d.]+", text)]
    assert ticks[:6] == ["0", "1", "2", "3", "4", "5"]
    assert ticks[-1] == "1000"


def test_points_without_a_finite_value_are_left_out():
    line = Series("loss", [(1, 1.0), (2, float("nan")), (3, float("inf")), (4, 2.0)])
    assert len(points(drawings(line_chart([line], "step", "loss"))[0])) == 2


def test_a_chart_without_any_value_is_refused():
    with pytest.raises(ValueError, match="at least one finite point"):
        line_chart([Series("loss", [(1, float("nan"))])], "step", "loss")


def test_a_constant_line_is_drawn():
    placed = points(drawings(line_chart([Series("fill", [(1, 2.0), (2, 2.0)])], "step", "fill"))[0])
    assert placed[0][1] == placed[1][1]


def test_names_are_escaped():
    chart = line_chart([Series("<a> & b", LINE.points)], "<x>", '"y"')
    assert {"<a> & b", "<x>", '"y"'} <= set(texts(drawings(chart)[0]))
