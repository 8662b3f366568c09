import io
import json
import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from support.kept import contents, fields, samples, write_kept
from support.samples import encoded, photo
from support.shards import picture, write_tar

from openqwen2vl.curation.resharding.blur import blur_faces
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard

IFD1 = ExifTags.IFD.IFD1  # what an EXIF tells of its thumbnail
WHOLE = photo(0, (160, 120), cells=40)
JPEG, PNG = encoded(WHOLE, quality=90), encoded(WHOLE, "PNG")
FACE = [0.25, 0.25, 0.5, 0.75]
BAD = [
    None,
    "face",
    [],
    [0.1, 0.2, 0.3],
    [0.1, 0.2, 0.3, 0.4, 7],
    [0.1, 0.2, 0.3, 0.4, float("nan")],
    [0.1, 0.2, 0.3, 0.4, "0.9"],
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    ["0.1", 0.2, 0.3, 0.4],
    [0.1, 0.2, float("nan"), 0.4],
    [0.1, 0.2, float("inf"), 0.4],
    [0.5, 0.2, 0.3, 0.4],
    [0.1, 0.4, 0.3, 0.4],
    [1.1, 0.2, 1.5, 0.4],
    [-0.5, 0.2, -0.1, 0.4],
    {"x": 1},
]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def contrast(part):
    """How far neighbours differ."""
    return abs(np.diff(part, axis=1)).mean()


def test_a_face_is_smooth_and_far_from_it_nothing_changes():
    blurred = blur_faces(PNG, [FACE])
    before, after = pixels(PNG), pixels(blurred.data)
    assert (blurred.faces, blurred.bad_boxes, blurred.unreadable) == (1, 0, False)
    face = slice(30, 90), slice(40, 80)
    assert contrast(after[face]) < 0.15 * contrast(before[face])
    far = np.ones(before.shape[:2], bool)
    far[30 - 8 : 90 + 8, 40 - 8 : 80 + 8] = False
    assert (after[far] == before[far]).all()


def test_how_sure_a_detector_was_does_not_matter():
    assert blur_faces(PNG, [[*FACE, 0.99]]) == blur_faces(PNG, [FACE])
    assert blur_faces(PNG, [[*FACE, 1]]) == blur_faces(PNG, [FACE])


def test_the_edge_is_soft():
    """Black beside white, with the box's edge within the white: no line shows where it ends."""
    image = Image.new("RGB", (200, 200), "white")
    image.paste("black", (0, 0, 100, 200))
    after = pixels(blur_faces(encoded(image, "PNG"), [[0.4, 0.3, 0.6, 0.7]]).data)[:, 95, 0]
    steps = abs(np.diff(after))
    assert after[100] > 40
    assert after[0] == 0
    assert steps.max() < 0.5 * after[100]


def test_without_faces_the_bytes_stay():
    for boxes in (None, [], BAD):
        assert blur_faces(JPEG, boxes).data is JPEG
    assert blur_faces(JPEG, BAD).bad_boxes == len(BAD)
    assert blur_faces(JPEG, "none").bad_boxes == 1


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_boxes_do_not_keep_others_from_being_blurred(bad):
    found = blur_faces(PNG, [bad, FACE])
    assert (found.faces, found.bad_boxes) == (1, 1)
    assert found.data == blur_faces(PNG, [FACE]).data


def test_a_box_is_cut_to_the_picture():
    assert blur_faces(PNG, [[-1, 0.5, 0.5, 7.0]]).data == blur_faces(PNG, [[0, 0.5, 0.5, 1]]).data


def test_the_same_picture_gives_the_same_bytes():
    assert blur_faces(JPEG, [FACE]).data == blur_faces(JPEG, [FACE]).data


@given(st.lists(st.lists(st.floats(-1, 2), min_size=4, max_size=4), max_size=3))
def test_any_boxes_leave_a_picture_of_the_same_size(boxes):
    found = blur_faces(JPEG, boxes)
    assert Image.open(io.BytesIO(found.data)).size == (160, 120)
    assert found.faces + found.bad_boxes == len(boxes)
    assert (found.data is JPEG) == (found.faces == 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_file_keeps_its_format(format):
    found = blur_faces(encoded(WHOLE, format), [FACE])
    assert Image.open(io.BytesIO(found.data)).format == format


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_blurred(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 60), 30_000, np.uint16))
    else:
        image = WHOLE.convert(mode)
    found = blur_faces(encoded(image, "JPEG" if mode == "CMYK" else "PNG"), [FACE])
    assert found.faces == 1
    assert Image.open(io.BytesIO(found.data)).size == image.size


def test_orientation_profile_and_subsampling_of_a_jpeg_stay():
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif, "icc_profile": b"profile", "subsampling": 0}
    found = Image.open(io.BytesIO(blur_faces(encoded(WHOLE, **options), [FACE]).data))
    assert found.getexif()[0x0112] == 6
    assert found.info["icc_profile"] == b"profile"
    assert [layer[1:3] for layer in found.layer] == [(1, 1)] * 3


def with_thumbnail(format):
    """A picture whose EXIF holds its orientation, words, and all of it again, small."""
    small = encoded(WHOLE.resize((40, 30)), quality=80)
    words = b"Maker of it\0"
    first = struct.pack("<H", 2)
    at = 8 + 2 + 2 * 12 + 4
    first += struct.pack("<HHII", 0x010F, 2, len(words), at)
    first += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    second = at + len(words)
    there = second + 2 + 3 * 12 + 4
    entries = ((0x0103, 3, 6), (0x0201, 4, there), (0x0202, 4, len(small)))
    more = struct.pack("<H", 3) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + struct.pack("<I", second) + words
    return encoded(WHOLE, format, exif=exif + more + bytes(4) + small), small


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_no_small_picture_of_the_face_is_left_in_the_exif(format):
    data, small = with_thumbnail(format)
    assert small in data
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(IFD1)[0x0202] == len(small)
    found = blur_faces(data, [FACE]).data
    exif = Image.open(io.BytesIO(found)).getexif()
    assert dict(exif) == {0x0112: 6}
    assert exif.get_ifd(IFD1) == {}
    assert small[100:150] not in found


@pytest.mark.parametrize("data", [b"no picture", JPEG[:900]])
def test_nothing_is_left_of_a_picture_that_has_faces_and_cannot_be_decoded(data):
    found = blur_faces(data, [FACE])
    assert found.data == b""
    assert (found.faces, found.unreadable) == (0, True)


def test_a_machine_without_memory_costs_no_sample(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        blur_faces(JPEG, [FACE])


@pytest.mark.parametrize("samples_per_shard", [1, 10])
def test_samples_whose_faces_cannot_be_blurred_are_left_out(tmp_path, samples_per_shard, caplog):
    files = {}
    for key, image in {"a": JPEG, "b": JPEG[:900], "c": b"no picture", "d": JPEG[:900]}.items():
        boxes = [] if key == "d" else [FACE]
        told = {"uid": key, "face_bboxes": boxes}
        files |= {f"{key}.jpg": image, f"{key}.txt": b"words"}
        files[f"{key}.json"] = json.dumps(told).encode()
    write_tar(tmp_path / "raw" / "0.tar", files)
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    request = {"kept": kept, "input": tmp_path / "raw", "source": "s", "name": "s"}
    out, how = tmp_path / "out", {"samples_per_shard": samples_per_shard, **request}
    manifest = reshard(ReshardRequest(out=out, blur=True, **how))
    assert {uid for uid, _, _ in contents(out)} == {"a", "d"}
    assert manifest.blurred == {"pictures": 1, "faces": 1, "bad_boxes": 0, "unreadable": 2}
    assert "2 samples of s are left out" in caplog.text
    assert (manifest.samples, sum(shard.samples for shard in manifest.shards)) == (2, 2)
    assert reshard(ReshardRequest(out=out, blur=True, **how)) == manifest
    assert reshard(ReshardRequest(out=tmp_path / "plain", **how)).samples == 4


def test_resharding_blurs_only_pictures_with_faces(tmp_path, caplog):
    rng, files = random.Random(0), {}
    boxes = {"a": [FACE, FACE, "bad"], "b": [], "c": None, "d": [BAD[3]]}
    for key, box in boxes.items():
        files[f"{key}.jpg"] = picture(rng)
        files[f"{key}.txt"] = b"words"
        told = {"uid": key} | ({} if box is None else {"face_bboxes": box})
        files[f"{key}.json"] = json.dumps(told).encode()
    write_tar(tmp_path / "raw" / "0.tar", files)
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    request = {"kept": kept, "input": tmp_path / "raw", "source": "s", "name": "s"}
    out, plain = tmp_path / "out", tmp_path / "plain"
    manifest = reshard(ReshardRequest(out=out, blur=True, **request))
    assert manifest.blurred == {"pictures": 1, "faces": 2, "bad_boxes": 2, "unreadable": 0}
    assert "2 boxes of faces of s are none, and what they mean is not blurred" in caplog.text
    assert "nothing of s is blurred" not in caplog.text
    found = {uid: image for uid, image, _ in contents(out)}
    assert {key for key in boxes if found[key] == files[f"{key}.jpg"]} == {"b", "c", "d"}
    assert found["a"] == blur_faces(files["a.jpg"], boxes["a"]).data
    blurred = {told["uid"]: told["origin"].get("blurred") for told in fields(out)}
    assert blurred == {"a": 2, "b": None, "c": None, "d": None}
    assert reshard(ReshardRequest(out=plain, **request)).blurred == {}
    assert {uid: image for uid, image, _ in contents(plain)}["a"] == files["a.jpg"]


def test_blurring_where_no_sample_tells_of_a_face_is_told(tmp_path, caplog):
    files = {"a.jpg": JPEG, "a.txt": b"words", "a.json": b'{"uid": "a"}'}
    write_tar(tmp_path / "raw" / "0.tar", files)
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    request = {"kept": kept, "input": tmp_path / "raw", "source": "s", "name": "s"}
    reshard(ReshardRequest(out=tmp_path / "plain", **request))
    assert "blurred" not in caplog.text
    reshard(ReshardRequest(out=tmp_path / "out", blur=True, **request))
    assert "nothing of s is blurred: no kept sample has a box in face_bboxes" in caplog.text
