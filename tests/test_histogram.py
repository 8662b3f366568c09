"""A histogram's areas are its counts."""

import xml.etree.ElementTree as ElementTree

import pytest

from openqwen2vl.pages.axes import Mark
from openqwen2vl.pages.histogram import Layer, histogram

LAYERS = [Layer("kept", [0, 2, 6]), Layer("dropped", [4, 2, 0])]


def test_heights_are_in_proportion_and_stacked() -> None:
    figure = ElementTree.fromstring(histogram(0.0, 0.3, LAYERS, "clip_similarity"))
    for drawing in figure:
        boxes = [{k: v for k, v in box.attrib.items()} for box in drawing.iter("rect")]
        kept = [box for box in boxes if box["fill"] == "var(--series-0)"]
        dropped = [box for box in boxes if box["fill"] == "var(--series-1)"]
        heights = [float(box["height"]) for box in (*kept, *dropped)]
        assert heights == pytest.approx([h * heights[1] / 6 for h in (2, 6, 4, 2)], abs=0.2)
        # In the middle bin the dropped stand on the kept.
        assert float(dropped[1]["y"]) + float(dropped[1]["height"]) == pytest.approx(
            float(kept[0]["y"]), abs=0.11
        )


def test_a_threshold_stands_where_its_value_lies() -> None:
    drawn = histogram(0.0, 0.3, LAYERS, "x", [Mark(0.1, "keep from 0.1")])
    for drawing in ElementTree.fromstring(drawn):
        line = next(e for e in drawing.iter("line") if e.attrib["stroke-dasharray"] != "none")
        edge = min(float(b.attrib["x"]) for b in list(drawing.iter("rect"))[1:3])
        assert float(line.attrib["x1"]) == pytest.approx(edge, abs=0.2)


def test_layers_of_unlike_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\] bins"):
        histogram(0, 1, [Layer("a", [1, 2]), Layer("b", [1])], "x")
    with pytest.raises(ValueError, match="bins"):
        histogram(0, 1, [], "x")
