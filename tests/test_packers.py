import random

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packs import pack as pack_shards
from support.shards import tiny_tokenizer, write_conversation_shard

from openqwen2vl.formats.errors import PackError, UserError
from openqwen2vl.packing.bins import Limits, first_fit_decreasing
from openqwen2vl.packing.fill import seed_fill_close
from openqwen2vl.packing.packers import PACKERS, check_packer, pack

FAST = ("seed_fill_close", "first_fit_decreasing")


@st.composite
def problems(draw):
    limits = Limits(draw(st.integers(1, 80)), draw(st.none() | st.integers(1, 9)))
    item = st.tuples(st.integers(1, limits.tokens), st.integers(0, limits.images or 9))
    items = draw(st.lists(item, max_size=50))
    return [length for length, _ in items], [number for _, number in items], limits


def test_these_are_the_packers():
    assert set(PACKERS) == {"auto", *FAST, "cutting_stock"}


@settings(deadline=None, max_examples=80)
@given(problems())
def test_auto_keeps_the_fuller_of_the_fast_ones_and_says_which(problem):
    packers = {"seed_fill_close": seed_fill_close, "first_fit_decreasing": first_fit_decreasing}
    found = pack("auto", *problem)
    assert found.bins == packers[found.packer](*problem)
    assert len(found.bins) == min(len(packer(*problem)) for packer in packers.values())


def test_auto_takes_either_where_it_is_the_fuller():
    rng = random.Random(0)
    captions = [147 + round(rng.lognormvariate(2.89, 0.8)) for _ in range(3000)]
    assert pack("auto", captions, [1] * 3000, Limits(4096)).packer == "seed_fill_close"
    drawn = (144 * rng.randint(1, 9) + round(rng.lognormvariate(6.4, 0.8)) for _ in range(900))
    pages = [length for length in drawn if length <= 4096]
    assert pack("auto", pages, [1] * len(pages), Limits(4096)).packer == "first_fit_decreasing"


@pytest.mark.parametrize("name", [*FAST, "cutting_stock"])
def test_a_packer_asked_for_is_the_one_that_packs(name):
    if name == "cutting_stock":
        pytest.importorskip("scipy")
    found = pack(name, [5, 5, 3, 7], [1, 1, 0, 2], Limits(10))
    assert found.packer == name
    assert sorted(map(sorted, found.bins)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("name", "most", "message"),
    [
        ("magic", None, "packer is 'magic'; there are auto, "),
        ("auto", 0, "max_images is 0; expected 1 or more"),
        ("cutting_stock", 4, "max_images is 4; set max_images=null"),
    ],
)
def test_what_cannot_be_is_told_before_there_is_anything_to_pack(name, most, message):
    with pytest.raises(UserError, match=message):
        check_packer(name, most)


def test_an_item_of_more_images_than_a_pack_holds_is_refused():
    with pytest.raises(PackError, match="a pack takes 0 to 2"):
        pack("auto", [1, 1], [3, 1], Limits(10, 2))


def pictures(path):
    return pq.read_table(path / "index.parquet")["images"].to_pylist()


@pytest.mark.parametrize("packer", ["auto", *FAST])
def test_packs_hold_no_more_images_than_allowed_and_the_ledger_tells_of_the_rest(tmp_path, packer):
    write_conversation_shard(tmp_path / "raw" / "00000.tar", 60, max_images=3)
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    free = pack_shards(tmp_path / "raw", tmp_path / "free", tokenizer, packer=packer)
    limited = pack_shards(
        tmp_path / "raw", tmp_path / "limited", tokenizer, packer=packer, max_images=2
    )
    assert free.max_images > 2
    assert free.image_limit is free.image_lower_bound is None
    assert max(pictures(tmp_path / "limited")) == limited.max_images == limited.image_limit == 2
    assert limited.image_lower_bound == -(-limited.counts.images // 2) <= limited.counts.packs
    refused = pq.read_table(tmp_path / "limited" / "rejects.parquet").to_pylist()
    assert {row["reason"] for row in refused} == {"too_many_images"}
    assert {row["detail"] for row in refused} == {"3 images, a pack holds 2"}
    assert limited.rejects == {"too_many_images": len(refused)}
    assert limited.counts.documents + len(refused) == free.counts.documents == 60


def test_the_manifest_tells_how_many_windows_each_packer_laid_out(tmp_path):
    for number in range(3):
        write_conversation_shard(tmp_path / "raw" / f"{number:05d}.tar", 20, number)
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    chosen = pack_shards(tmp_path / "raw", tmp_path / "auto", tokenizer, window=1)
    assert sum(chosen.packers.values()) == 3
    assert set(chosen.packers) <= set(FAST)
    asked = pack_shards(tmp_path / "raw", tmp_path / "asked", tokenizer, packer=FAST[1])
    assert asked.packers == {FAST[1]: 1}
