import pytest

from openqwen2vl.formats.rejects import Unusable
from openqwen2vl.formats.sample_json import parse_sample, sample_uid


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[1]", b"\xff", b'{"uid": "\\ud800"}', b'{"a": ["\\udc00"]}', b"[" * 100_000],
)
def test_what_cannot_be_used_is_a_reject(raw):
    with pytest.raises(Unusable, match=r"^k\.json") as verdict:
        parse_sample(raw, "k.json")
    assert verdict.value.reason == "bad_json"


def test_escaped_text_is_read():
    assert parse_sample(b'{"a": "\\u00e9\\ud83d\\ude00"}', "k") == {"a": "é😀"}


@pytest.mark.parametrize(
    ("fields", "uid"),
    [
        ({"uid": "x"}, "x"),
        ({"uid": 7}, "7"),
        ({"uid": ""}, "0/k"),
        ({"uid": None}, "0/k"),
        ({}, "0/k"),
    ],
)
def test_the_uid_is_the_samples_own_or_the_default(fields, uid):
    assert sample_uid(fields, "0/k") == uid
