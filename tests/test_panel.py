"""Small charts that share an x axis."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from openqwen2vl.pages.panel import Band, Level, Line, Panel, Scene, panels, short

NASTY = "<script>alert(1)</script> & more"
SCENE = Scene(x_range=(0, 100), x_name="step")
PANEL = Panel(title="Loss", lines=[Line("loss", [(0, 4.0), (50, 2.0), (100, 9.0)])], y_range=(0, 4))


def drawn(scene: Scene = SCENE, panel: Panel = PANEL) -> ElementTree.Element:
    (figure,) = ElementTree.fromstring(panels(scene, [panel]))
    return figure


def path(figure: ElementTree.Element, number: int = 0) -> list[tuple[float, float]]:
    pairs = list(figure.iter("polyline"))[number].attrib["points"].split()
    return [tuple(map(float, pair.split(","))) for pair in pairs]


def keys(figure: ElementTree.Element) -> list[str]:
    return ["".join(span.itertext()) for span in figure.iterfind("p[@class='keys']/span")]


def words(figure: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in figure.iter("text")]


def test_what_lies_beyond_the_axis_is_drawn_at_its_border() -> None:
    high, low, beyond = path(drawn())
    assert high[1] == beyond[1] < low[1]
    assert low[0] == pytest.approx((high[0] + beyond[0]) / 2)


def test_one_line_needs_no_key_and_two_do() -> None:
    assert keys(drawn()) == []
    faint = Line("each step", PANEL.lines[0].points, faint=True)
    two = drawn(panel=replace(PANEL, lines=[faint, *PANEL.lines]))
    assert keys(two) == ["each step", "loss"]
    back, front = two.iter("polyline")
    assert "opacity" in back.attrib
    assert "opacity" not in front.attrib


def test_marks_bounds_and_events_are_drawn_where_they_are_and_named() -> None:
    scene = replace(SCENE, marks=[50.0], mark_name="restart")
    panel = replace(PANEL, level=Level(2.0, "bound"), events=[50.0, 50.01], event_name="skipped")
    figure = drawn(scene, panel)
    assert keys(figure) == ["bound", "restart", "skipped"]
    _, middle, _ = path(figure)
    rules = list(figure.iter("line"))
    (mark,) = [one for one in rules if one.get("stroke-dasharray") == "5 3"]
    (bound,) = [one for one in rules if one.get("stroke-dasharray") == "2 3"]
    (event,) = [one for one in rules if one.get("class") == "event"]
    assert float(mark.attrib["x1"]) == float(event.attrib["x1"]) == middle[0]
    assert float(bound.attrib["y1"]) == middle[1]


def test_a_bound_beyond_the_axis_is_named_but_not_drawn() -> None:
    figure = drawn(panel=replace(PANEL, level=Level(40.0, "bound")))
    assert keys(figure) == ["bound"]
    assert all(one.get("stroke-dasharray") != "2 3" for one in figure.iter("line"))


def test_bands_say_less_where_they_are_narrow() -> None:
    bands = [
        Band(0, 80, "144 tokens an image", "144"),
        Band(80, 97, "729 tokens an image", "729"),
        Band(97, 100, "900 tokens an image", "900"),
    ]
    figure = drawn(replace(SCENE, bands=bands))
    told = [word for word in words(figure) if re.match("144|729|900", word)]
    assert told == ["144 tokens an image", "729"]
    assert len(list(figure.iter("rect"))) == 1


def test_a_second_reading_stands_below_the_first_where_it_is_known() -> None:
    def read(x: float) -> float:
        return 1e6 * x if x <= 50 else float("nan")

    said = words(drawn(replace(SCENE, second=read, second_name="tokens")))
    assert said.count("tokens") == 1
    assert "40M" in said
    assert "100" in said
    assert "100M" not in said


@pytest.mark.parametrize("count", [1, 5, 50])
def test_a_line_of_few_points_shows_them(count: int) -> None:
    line = Line("loss", [(float(x), 2.0) for x in range(count)])
    figure = drawn(panel=replace(PANEL, lines=[replace(line, faint=True), line]))
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in figure.iter("circle")]
    assert dots == (path(figure, 1) if count < 50 else [])


def test_texts_are_escaped() -> None:
    panel = Panel(
        title=NASTY,
        lines=[Line(NASTY, [(0, 1.0)]), Line(NASTY, [(0, 1.0)])],
        y_range=(0, 1),
        now=NASTY,
        note=NASTY,
        level=Level(1, NASTY),
        events=[1],
        event_name=NASTY,
    )
    scene = Scene((0, 1), NASTY, [Band(0, 1, NASTY, NASTY)], [1], NASTY, lambda x: x, NASTY)
    html = panels(scene, [panel])
    assert "<script" not in html
    assert "".join(ElementTree.fromstring(html).itertext()).count(NASTY) >= 10


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (12, "12"),
        (0.25, "0.25"),
        (999.9, "1k"),
        (12_340, "12.3k"),
        (2.5e9, "2.5B"),
        (-3e6, "-3M"),
        (5e12, "5T"),
        (0.00015, "1.5e-4"),
        (2e-5, "2e-5"),
    ],
)
def test_figures_are_short(number: float, text: str) -> None:
    assert short(number) == text
