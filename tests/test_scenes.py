import random

import pytest

from openqwen2vl.corpus.scenes import (
    PLACES,
    Crowd,
    Sign,
    Thing,
    Things,
    article,
    caption,
    draw_scene,
    plural,
)
from openqwen2vl.corpus.split import is_held_out


def scenes(held_out: bool, number: int = 400):
    rng = random.Random(3)
    return [draw_scene(rng, held_out) for _ in range(number)]


@pytest.mark.parametrize("held_out", [False, True])
def test_scenes_come_from_the_asked_side_of_the_split(held_out):
    assert {is_held_out(scene.description) for scene in scenes(held_out)} == {held_out}


def test_no_held_out_description_is_ever_drawn_for_training():
    trained = {scene.description for scene in scenes(False, 3000)}
    assert trained.isdisjoint(scene.description for scene in scenes(True, 1000))


def test_things_of_a_scene_differ_in_colour_shape_and_place_and_stand_in_reading_order():
    for scene in scenes(False):
        if isinstance(scene, Things):
            for part in ("colour", "shape", "place"):
                values = [getattr(thing, part) for thing in scene.things]
                assert len(set(values)) == len(values)
            places = [PLACES.index(thing.place) for thing in scene.things]
            assert places == sorted(places)


def test_all_three_kinds_are_drawn():
    assert {type(scene) for scene in scenes(False)} == {Things, Crowd, Sign}


def test_captions_say_what_is_there():
    rng = random.Random(0)
    things = Things(
        (Thing("orange", "star", "top left"), Thing("red", "circle", "bottom left")), "grey"
    )
    assert "an orange star at the top left and a red circle at the bottom left" in caption(
        things, rng
    )
    assert "three blue squares" in caption(Crowd("blue", "square", (0, 4, 8), "grey"), rng)
    assert "the word cat in green at the top" in caption(Sign("cat", "green", "top", "grey"), rng)


def test_descriptions_do_not_depend_on_the_order_of_things():
    one, other = Thing("red", "star", "top left"), Thing("blue", "circle", "top right")
    assert Things((one, other), "grey").description == Things((other, one), "grey").description


def test_grammar_of_the_few_words_there_are():
    assert (article("orange"), article("red")) == ("an", "a")
    assert [plural("star", 1), plural("star", 2), plural("cross", 2)] == [
        "star",
        "stars",
        "crosses",
    ]
