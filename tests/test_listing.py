import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import picture

from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.listing import listing_shards, read_listing_shard
from openqwen2vl.formats.rejects import Reject

ANSWER = {"from": "gpt", "value": 'He said "{[" and \\ left.'}


def entry(image=None, marks=0):
    fields = {"id": "same", "conversations": [{"from": "human", "value": "<image>" * marks + "Hi"}]}
    fields["conversations"].append(ANSWER)
    return fields if image is None else {**fields, "image": image}


def write(folder, entries, name="data.json"):
    (folder / "images" / "coco").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "coco" / "a.jpg").write_bytes(picture(random.Random(0)))
    lines = name.endswith("l")
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries, indent=1)
    (folder / name).write_text(text)
    return folder / name


def read(path, **options):
    root = path.parent / "images"
    shards = listing_shards(path, root, **options)
    return [item for shard in shards for item in read_listing_shard(shard, "llava")]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_entries_become_documents_with_their_images(tmp_path, name):
    path = write(tmp_path, [entry("coco/a.jpg", 1), entry(), entry(["coco/a.jpg"] * 2, 2)], name)
    items = read(path)
    assert [len(i.images) for i in items] == [1, 0, 2]
    assert [i.uid for i in items] == [f"data/{k:09d}" for k in range(3)]
    assert items[0].turns[1].text == ANSWER["value"]
    image = items[0].images[0]
    assert (image.offset, image.extension) == (0, "jpg")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_runs_of_entries_add_up_to_the_file(tmp_path, name):
    path = write(tmp_path, [entry() for _ in range(7)], name)
    assert len(listing_shards(path, tmp_path, entries=3)) == 3
    assert read(path, entries=3) == read(path)


def test_bad_entries_cost_only_themselves(tmp_path):
    entries = [
        entry("coco/gone.jpg", 1),
        5,
        entry(),
        {"id": 1},
        {**entry(), "image": 3},
        entry(None, 1),
    ]
    items = read(write(tmp_path, [e for e in entries if e != 5]))
    reasons = [i.reason if isinstance(i, Reject) else None for i in items]
    assert reasons == ["missing_image", None, "missing_text", "bad_json", "image_count"]


def test_a_listing_that_breaks_off_gives_what_is_whole(tmp_path):
    path = write(tmp_path, [entry() for _ in range(4)])
    path.write_text(path.read_text()[:-40])
    *documents, rest = read(path, entries=2)
    assert len(documents) == 3
    assert all(isinstance(d, Document) for d in documents)
    assert rest.reason == "truncated_shard"
    assert "data.json ends within entry 3" in rest.detail


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(), st.recursive(st.text(), st.lists, max_leaves=5), max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_elements_are_found_whatever_strings_they_hold(tmp_path_factory, entries):
    path = tmp_path_factory.getbasetemp() / "strings.json"
    path.write_text(json.dumps(entries, indent=1))
    (shard,) = listing_shards(path, path.parent)
    data = path.read_bytes()
    assert [json.loads(data[a:b]) for a, b in shard.spans] == entries


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("[]", "holds no conversation"), ('{"a": 1}', "is not a JSON list")],
)
def test_a_file_without_a_list_is_told(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ShardError, match=message):
        listing_shards(tmp_path / "data.json", tmp_path)


def test_a_missing_file_or_image_root_is_told(tmp_path):
    with pytest.raises(ShardError, match="no file"):
        listing_shards(tmp_path / "gone.json", tmp_path)
    path = write(tmp_path, [entry()])
    with pytest.raises(ShardError, match="image_root is None; name the folder"):
        listing_shards(path, None)


@pytest.mark.parametrize("image", ["", ".", "folder"])
def test_an_image_that_is_a_folder_costs_its_own_entry(tmp_path, image):
    (tmp_path / "folder").mkdir()
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]
    path = tmp_path / "all.json"
    path.write_text(json.dumps([{"image": image, "conversations": turns}]))
    (shard,) = listing_shards(path, tmp_path)
    (found,) = read_listing_shard(shard, "x")
    assert isinstance(found, Reject)
    assert (found.reason, "is no file" in found.detail) == ("missing_image", True)
