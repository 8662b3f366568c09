import hashlib
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples import samples_of

from openqwen2vl.curation.scorers import language, text
from openqwen2vl.curation.scorers.caption_rules import normalized
from openqwen2vl.curation.scorers.text import TextScorer

SENTENCES = {
    "en": "A woman in a red coat walks her dog along the river on a cold morning.",
    "de": "Eine Frau im roten Mantel geht an einem kalten Morgen mit ihrem Hund am Fluss entlang.",
    "fr": "Une femme en manteau rouge prom\u00e8ne son chien au bord de la rivi\u00e8re le matin.",
    "es": "Una mujer con un abrigo rojo pasea a su perro junto al r\u00edo por la ma\u00f1ana.",
    "ru": "\u0416\u0435\u043d\u0449\u0438\u043d\u0430 \u0432 \u043a\u0440\u0430\u0441\u043d\u043e\u043c \u043f\u0430\u043b\u044c\u0442\u043e \u0433\u0443\u043b\u044f\u0435\u0442 \u0441 \u0441\u043e\u0431\u0430\u043a\u043e\u0439 \u0443 \u0440\u0435\u043a\u0438.",
    "zh": "\u4e00\u4f4d\u7a7f\u7740\u7ea2\u8272\u5916\u5957\u7684\u5973\u58eb\u5728\u6cb3\u8fb9\u905b\u72d7\u3002",
    "ja": "\u8d64\u3044\u30b3\u30fc\u30c8\u3092\u7740\u305f\u5973\u6027\u304c\u5ddd\u6cbf\u3044\u3092\u72ac\u3068\u6563\u6b69\u3057\u3066\u3044\u307e\u3059\u3002",
}


def scored(folder, captions, **settings):
    columns = TextScorer(**settings).score(samples_of(folder / "00000.tar", captions=captions))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_a_caption_is_counted_without_the_white_space_around_it(tmp_path):
    (row,) = scored(tmp_path, ["  The cat and THE dog\tand the   bird \n"])
    assert (row["characters"], row["words"]) == (34, 8)
    assert row["unique_ratio"] == 5 / 8  # the, cat, and, dog, bird
    assert row["bad_pattern"] is None


def test_a_caption_without_spaces_is_one_word_of_its_characters(tmp_path):
    (row,) = scored(tmp_path, [SENTENCES["zh"]])
    assert (row["characters"], row["words"], row["unique_ratio"]) == (17, 1, 1.0)


def test_what_unicode_counts_as_space_alone_has_no_words(tmp_path):
    # A soft hyphen is no white space, so that the shard's reader takes it for a caption.
    (row,) = scored(tmp_path, ["\u00ad"])
    assert row["bad_pattern"] == "no_letters"


def test_the_name_of_the_rule_that_was_met_is_told(tmp_path):
    rows = scored(tmp_path, ["IMG_1234.jpg", "a red sofa", "red sofa stock photo"])
    assert [row["bad_pattern"] for row in rows] == ["file_name", None, "stock"]


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_the_hash_is_blake2b_of_the_normalized_caption(tmp_path_factory, caption):
    (row,) = scored(tmp_path_factory.mktemp("s"), [caption], language=False)
    digest = hashlib.blake2b(normalized(caption).encode(), digest_size=8).hexdigest()
    assert f"{row['caption_hash']:016x}" == digest


def test_captions_that_are_alike_have_one_hash_and_others_another(tmp_path):
    rows = scored(tmp_path, ["A  Red Sofa", "a red sofa", "\uff21 red sofa", "a red sofa."])
    hashes = [row["caption_hash"] for row in rows]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences_are_told_by_their_language(tmp_path, code):
    (row,) = scored(tmp_path, [SENTENCES[code]])
    assert row["language"] == code
    assert 0.5 < row["language_probability"] <= 1
    assert row["language_probability"] == round(row["language_probability"], 4)


def test_captions_that_no_language_has_are_scored_all_the_same(tmp_path):
    rows = scored(tmp_path, ["12345", "\U0001f600", "x" * 5000, "\u0000"])
    assert all(isinstance(row["language"], str) for row in rows)
    assert all(0 <= row["language_probability"] <= 1 for row in rows)


def test_no_more_than_the_beginning_of_a_long_caption_is_asked_for_its_language():
    begin = SENTENCES["en"] * 20
    assert language.language_of(begin) == language.language_of(begin + SENTENCES["de"] * 500)


def test_without_language_its_columns_are_not_there(tmp_path):
    (row,) = scored(tmp_path, ["a red sofa"], language=False)
    assert set(row) == {"characters", "words", "unique_ratio", "bad_pattern", "caption_hash"}
    assert set(TextScorer(language=False).columns) == set(row)


def test_the_fingerprint_changes_with_all_that_scores_depend_on(monkeypatch):
    known = TextScorer().fingerprint()
    assert TextScorer(batch_size=7).fingerprint() == known
    assert TextScorer(language=False).fingerprint() != known
    monkeypatch.setattr(language, "version", lambda name: "0.0.0")
    assert TextScorer().fingerprint() != known
    assert "0.0.0" not in str(TextScorer(language=False).fingerprint())
    monkeypatch.undo()
    monkeypatch.setattr(text, "rules_hash", lambda: "0" * 16)
    assert TextScorer().fingerprint() != known


def test_the_shipped_config_builds_the_scorer_with_its_own_defaults():
    path = Path(__file__).parents[1] / "conf" / "scorers" / "text.yaml"
    assert instantiate(yaml.safe_load(path.read_text())) == {"text": TextScorer()}
