import base64
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.packs import pack
from support.shards import picture, tiny_tokenizer, write_tar
from support.verified import told

from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.rejects import Reject, Unusable
from openqwen2vl.formats.written import decode_written, is_written, written_images, written_span
from openqwen2vl.packing.online import open_online
from openqwen2vl.packing.pictures import ImageBytes
from openqwen2vl.packing.proof.verify import VerifyRequest, verify
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec

RNG = random.Random(0)
PICTURES = [picture(RNG, format=kind) for kind in ("JPEG", "PNG", "WEBP", "JPEG")]


def written(data: bytes) -> dict[str, str]:
    return {"image_base64": base64.b64encode(data).decode()}


def obelics(number: int) -> bytes:
    """Write a page as the official packer reads OBELICS: two lists, pictures within."""
    infos = [written(PICTURES[number % 4]), None, written(PICTURES[(number + 1) % 4]), None]
    texts = [None, f"a red circle {number}", None, "a blue square"]
    return json.dumps({"image_info": infos, "texts": texts, "uid": f"o{number}"}).encode()


def mmc4() -> bytes:
    """Write a page as MMC4 does: pictures matched with sentences, not in their order."""
    infos = [written(PICTURES[0]) | {"matched_text_index": 1, "image_name": "a.png"}]
    infos += [written(PICTURES[1]) | {"matched_text_index": 0}]
    return json.dumps({"text_list": ["one", "two"], "image_info": infos}).encode()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    files = {f"{number}.json": obelics(number) for number in range(6)} | {"m.json": mmc4()}
    write_tar(tmp_path / "raw" / "shard_0.tar", files)
    return tmp_path / "raw"


def bytes_of(document: Document) -> list[bytes]:
    with ImageBytes() as read:
        return [read.read(image) for image in document.images]


def test_pages_are_read_with_the_pictures_that_they_hold(raw: Path) -> None:
    items = list(read_raw_shard(raw / "shard_0.tar", "s"))
    assert all(isinstance(item, Document) for item in items)
    *pages, last = items
    for number, page in enumerate(pages):
        assert bytes_of(page) == [PICTURES[number % 4], PICTURES[(number + 1) % 4]]
        assert [image.size for image in page.images] == [len(data) for data in bytes_of(page)]
    assert [image.extension for image in pages[1].images] == ["png", "webp"]
    # In the order of the sentences, as its marks.
    assert bytes_of(last) == [PICTURES[1], PICTURES[0]]


def test_they_are_packed_as_pictures_verified_and_packed_online(raw: Path, tmp_path: Path) -> None:
    tokenizer, packs = tiny_tokenizer(tmp_path / "tokenizer"), tmp_path / "packs"
    manifest = pack(raw, packs, tokenizer)
    assert (manifest.counts.documents, manifest.counts.images) == (7, 14)
    found = verify(VerifyRequest(input=raw, packs=(packs,), deep=True))
    assert told(found) == ""
    assert (found.packed, found.images) == (7, 14)
    assert found.bytes == sum(
        len(i) for n in range(len(PackFolder(packs))) for i in images(packs, n)
    )
    spec = make_spec(tokenizer, 256, 4, "qwen2_5")
    request = PackRequest(input=raw, out=tmp_path / "online", source="tiny", spec=spec)
    (online,) = open_online([request], tokenizer)
    assert len(online) == len(PackFolder(packs))
    for number in range(len(online)):
        assert online.read(number).images == images(packs, number)
        assert set(online.read(number).images) <= set(PICTURES)


def images(packs: Path, number: int) -> list[bytes]:
    return PackFolder(packs).read(number).images


def test_another_picture_in_the_corpus_is_found_byte_by_byte(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "packs", tiny_tokenizer(tmp_path / "tokenizer"))
    shard = raw / "shard_0.tar"
    data = bytearray(shard.read_bytes())
    at = data.find(b"/9j/") + 100
    data[at] = ord("A") if data[at] != ord("A") else ord("B")
    shard.write_bytes(data)
    request = {"input": raw, "packs": (tmp_path / "packs",)}
    assert told(verify(VerifyRequest(**request))) == ""
    assert "image 0 of shard_0/0" in told(verify(VerifyRequest(**request, deep=True)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "image 0 holds no text"),
        ("", "image 0 holds no text"),
        ("é", "is no base64"),
        ("!!!!", "is no base64"),
        ("abc", "is no base64"),
        ("YWJj\nYWJj", "written with escapes"),
    ],
)
def test_a_picture_that_is_not_whole_costs_its_page_alone(
    tmp_path: Path, value: object, message: str
) -> None:
    bad = json.dumps({"image_info": [{"image_base64": value}, None], "texts": [None, "a"]})
    write_tar(tmp_path / "s.tar", {"a.json": bad.encode(), "b.json": obelics(0)})
    reject, page = read_raw_shard(tmp_path / "s.tar", "s")
    assert isinstance(reject, Reject)
    assert reject.reason == "missing_image"
    assert message in reject.detail
    assert isinstance(page, Document)


def test_pictures_beside_the_json_are_taken_first(tmp_path: Path) -> None:
    files = {"a.json": obelics(0), "a.0.jpg": b"first", "a.1.jpg": b"second"}
    write_tar(tmp_path / "s.tar", files)
    (page,) = read_raw_shard(tmp_path / "s.tar", "s")
    assert isinstance(page, Document)
    assert bytes_of(page) == [b"first", b"second"]


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=4), st.binary(max_size=9))
def test_each_address_leads_to_its_bytes(pictures: list[bytes], before: bytes) -> None:
    raw = json.dumps({"image_info": [written(data) for data in pictures]}).encode()
    found = written_images(json.loads(raw), raw, len(before), Path("x.tar"))
    for data, image in zip(pictures, found, strict=True):
        assert is_written(image)
        path, size = written_span(image)
        assert path == "x.tar"
        assert decode_written((before + raw)[image.offset : image.offset + size]) == data


def test_a_shard_that_changed_is_told(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"!" * 40)
    image = ImageRef(f"{tmp_path / 's.tar'}#base64", 3, 12, "jpg")
    with ImageBytes() as read, pytest.raises(ShardError, match="no base64 of 12 bytes at 3"):
        read.read(image)


def test_escapes_are_told_as_such() -> None:
    raw = rb'{"image_info": [{"image_base64": "\/9j\/"}]}'
    with pytest.raises(Unusable, match="written with escapes"):
        written_images(json.loads(raw), raw, 0, Path("x.tar"))
