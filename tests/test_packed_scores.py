"""Scores that curation left in raw shards travel into packs, and onto the page of `inspect`."""

import json
import random
from pathlib import Path

import pytest
from support.packs import pack
from support.shards import picture, tiny_tokenizer, write_tar

from openqwen2vl.commands._inspect_page import build_page
from openqwen2vl.formats.sample_json import sample_scores
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.summary import summarise


def test_scores_stay_with_their_documents(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    rng = random.Random(0)
    for number in range(4):
        key = f"{number:04d}"
        files |= {f"{key}.jpg": picture(rng), f"{key}.txt": b"a red circle"}
        scores = {"clip_similarity": 0.25 + number / 100} if number else "none"
        files[f"{key}.json"] = json.dumps({"uid": f"u{number}", "scores": scores}).encode()
    write_tar(tmp_path / "raw" / "00000.tar", files)
    pack(tmp_path / "raw", tmp_path / "packs", tiny_tokenizer(tmp_path / "tokenizer"))
    folder = PackFolder(tmp_path / "packs")
    found = {
        d["uid"]: d.get("scores") for n in range(len(folder)) for d in folder.read(n).documents
    }
    assert found == {
        "u0": None,
        "u1": {"clip_similarity": 0.26},
        "u2": {"clip_similarity": 0.27},
        "u3": {"clip_similarity": 0.28},
    }
    page = build_page(folder, summarise(folder), range(len(folder)), None, 32).html()
    assert "uid u2, clip_similarity 0.27:" in page


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"b": 2, "a": 0.5}, (("a", 0.5), ("b", 2))),
        ({"a": float("nan"), "b": float("inf"), "c": True, "d": "x", "e": None}, ()),
        ([1, 2], ()),
        (None, ()),
    ],
)
def test_only_finite_numbers_are_scores(given: object, found: tuple[object, ...]) -> None:
    assert sample_scores({"scores": given}) == found
    assert sample_scores({}) == ()
