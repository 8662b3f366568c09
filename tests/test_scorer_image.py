import hashlib
import io
import random
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path

import imagehash
import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFile, ImageOps
from support.samples import encoded, photo, samples_of

from openqwen2vl.curation.scorers import image
from openqwen2vl.curation.scorers.image import ImageScorer, blank_share, perceptual_hash, thumbnail
from openqwen2vl.curation.scorers.jpeg import plain_jpeg_size
from openqwen2vl.formats import images
from openqwen2vl.formats.errors import ImageError, ShardError

HEADER = {"phash": False, "blank": False}
COLUMNS = ("width", "height", "aspect", "bytes", "sha256", "phash", "blank_share")


def scored(folder, pictures, **keys):
    columns = ImageScorer(**keys).score(samples_of(folder / "00000.tar", pictures))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def opened(data):
    return Image.open(io.BytesIO(data))


def bits(first, second):
    return (first ^ second).bit_count()


def png_header(width, height):
    """The header of a PNG, and nothing that would decode."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + b"\0" * 13


def turned(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


@pytest.mark.parametrize("keys", [{}, HEADER], ids=["decoded", "header"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_is_measured_whatever_its_format(tmp_path, format, keys):
    data = encoded(photo(0, (96, 64)), format)
    (row,) = scored(tmp_path, [data], **keys)
    assert (row["width"], row["height"], row["aspect"]) == (96, 64, 1.5)
    assert row["bytes"] == len(data)
    assert row["sha256"] == hashlib.sha256(data).digest()
    assert row["image_error"] is None
    assert set(row) == {*COLUMNS[: 5 if keys else 7], "image_error"}


def test_columns_are_those_that_the_settings_ask_for():
    assert tuple(ImageScorer().columns) == COLUMNS
    assert tuple(ImageScorer(**HEADER, sha256=False).columns) == COLUMNS[:4]
    assert ImageScorer().fingerprint() != ImageScorer(blank=False).fingerprint()
    assert ImageScorer().fingerprint() == ImageScorer(batch_size=1).fingerprint()
    assert ImageScorer().fingerprint() != ImageScorer(max_pixels=5).fingerprint()


def test_the_header_alone_is_read_when_nothing_else_is_asked_for(tmp_path, monkeypatch):
    pictures = [encoded(photo(0, (96, 64)), form) for form in ("JPEG", "PNG", "WEBP")]
    pictures.append(turned(photo(0, (96, 64)), 6))

    def decode(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    rows = scored(tmp_path, pictures, **HEADER)
    assert [row["width"] for row in rows] == [96, 96, 96, 64]
    assert all("pixels were decoded" in row["image_error"] for row in scored(tmp_path, pictures))


@pytest.mark.parametrize("keys", [{}, HEADER], ids=["decoded", "header"])
def test_what_is_no_picture_has_an_error_and_nothing_else(tmp_path, keys):
    jpeg = encoded(photo(0))
    broken = [b"no picture", jpeg[:40], b"\xff\xd8\xff", png_header(20_000, 20_000), b"GIF89a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = scored(tmp_path, [*broken, jpeg], **keys)
    assert [row["image_error"] is None for row in rows] == [False] * 5 + [True]
    assert all(set(row.values()) == {None, row["image_error"]} for row in rows[:5])
    assert "pixels" in rows[3]["image_error"]
    again = scored(tmp_path, [*broken, jpeg], **keys)
    assert again == rows  # no address of this process is in what is told


def test_a_picture_is_as_large_as_training_takes_it(tmp_path):
    assert ImageScorer().max_pixels == images.MAX_PIXELS
    (row,) = scored(tmp_path, [encoded(photo(0, (96, 64)))], max_pixels=96 * 64 - 1, **HEADER)
    assert row["image_error"] == "96 x 64 pixels; at most 6143 are decoded"


def test_a_large_picture_is_measured_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = scored(tmp_path, [png_header(10_000, 9_000)], **HEADER)
    assert (row["width"], row["height"], row["image_error"]) == (10_000, 9_000, None)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_is_cut_off_is_told(tmp_path, format):
    data = encoded(photo(0, (200, 200)), format)
    (row,) = scored(tmp_path, [data[: len(data) * 3 // 4]])
    assert row["image_error"] is not None
    assert row["width"] is row["phash"] is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_damage_ends_in_scores_or_in_an_error(tmp_path_factory, seed, count):
    rng, data = random.Random(seed), bytearray(encoded(photo(1, (64, 48))))
    for _ in range(count):
        data[rng.randrange(len(data))] = rng.randrange(256)
    for keys in ({}, HEADER):
        (row,) = scored(tmp_path_factory.mktemp("s"), [bytes(data)], **keys)
        assert (row["image_error"] is None) == (row["bytes"] == len(data))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    gray=st.booleans(),
    options=st.fixed_dictionaries(
        {"progressive": st.booleans(), "quality": st.integers(5, 95), "optimize": st.booleans()},
        optional={"comment": st.binary(min_size=1, max_size=20), "dpi": st.just((300, 300))},
    ),
    profile=st.booleans(),
    orientation=st.integers(0, 9),
)
def test_a_size_from_markers_is_the_one_that_pil_gives(size, gray, options, profile, orientation):
    picture = Image.new("L" if gray else "RGB", size)
    if profile:
        options["icc_profile"] = b"p" * 70_000  # several segments
    try:
        data = encoded(picture, **options)
    except OSError:
        # Pillow's own buffer is now and then too small for a profile beside so few pixels.
        assume(False)
    assert plain_jpeg_size(data) == opened(data).size == size
    assert plain_jpeg_size(data[: data.index(b"\xff\xda") + 2]) is None
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert plain_jpeg_size(encoded(picture, exif=exif, **options)) is None
    assert plain_jpeg_size(encoded(picture, "PNG")) is None


@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_is_measured_as_it_is_shown(tmp_path, orientation):
    data = turned(photo(3, (320, 200)), orientation)
    shown = ImageOps.exif_transpose(opened(data))
    for keys in ({}, HEADER):
        (row,) = scored(tmp_path, [data], **keys)
        assert (row["width"], row["height"]) == shown.size
    (row,) = scored(tmp_path, [data])
    assert bits(row["phash"], int(str(imagehash.phash(shown)), 16)) <= 4


def test_the_perceptual_hash_is_imagehashs():
    for seed in range(5):
        picture = photo(seed)
        assert f"{perceptual_hash(picture):016x}" == str(imagehash.phash(picture))


@pytest.mark.parametrize("size", [(512, 512), (512, 384), (1000, 300), (130, 70), (40, 30)])
def test_a_draft_changes_a_few_bits_of_the_hash_at_most(size):
    distances, whole = [], []
    for seed in range(12):
        data = encoded(photo(seed, size, cells=5 + seed), quality=85)
        whole.append(int(str(imagehash.phash(opened(data))), 16))
        distances.append(bits(perceptual_hash(thumbnail(opened(data))), whole[-1]))
    assert max(distances) <= 4
    assert sum(distances) / len(distances) <= 1
    assert min(bits(a, b) for i, a in enumerate(whole) for b in whole[:i]) > 10


def test_a_jpeg_is_decoded_small_and_other_formats_whole():
    assert thumbnail(opened(encoded(photo(0, (512, 512))))).size == (64, 64)
    assert thumbnail(opened(encoded(photo(0, (1100, 520))))).size == (138, 65)
    assert thumbnail(opened(encoded(photo(0, (100, 90))))).size == (100, 90)
    assert thumbnail(opened(encoded(photo(0, (512, 512)), "PNG"))).size == (512, 512)


@cache
def modes():
    clear = photo(2).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = Image.fromarray(np.asarray(photo(2).convert("L")).astype(np.uint16) * 257)
    key = photo(2).convert("P")
    return {
        "RGB": encoded(photo(2), "PNG"),
        "RGBA": encoded(clear, "PNG"),
        "LA": encoded(clear.convert("LA"), "PNG"),
        "L": encoded(photo(2).convert("L"), "PNG"),
        "16 bits": encoded(deep, "PNG"),
        "palette": encoded(key, "PNG", transparency=key.getpixel((0, 0))),
        "1": encoded(photo(2).convert("1"), "PNG"),
        "CMYK": encoded(photo(2).convert("CMYK"), "JPEG"),
        "GIF": encoded(key, "GIF", transparency=3),
    }


@pytest.mark.parametrize("mode", modes())
def test_a_thumbnail_shows_what_training_sees(mode):
    data = modes()[mode]
    seen = images.decode_image(data, 64).astype(int)
    ours = np.asarray(thumbnail(opened(data)).resize((64, 64), Image.Resampling.BOX), int)
    assert np.abs(ours - seen).mean() < 4


def test_a_shard_that_goes_away_ends_the_run(tmp_path):
    samples = samples_of(tmp_path / "00000.tar", [encoded(photo(0))])
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(ShardError, match="went away"):
        ImageScorer().score(samples)


def product(ground, size=(300, 300), share=0.25):
    picture = Image.new("RGB", size, ground)
    side = [round(edge * share**0.5) for edge in size]
    low = [(edge - part) // 2 for edge, part in zip(size, side, strict=True)]
    picture.paste(photo(4).resize(side), tuple(low))
    return picture


@pytest.mark.parametrize("ground", ["white", "black", (130, 130, 130), (16, 32, 48), (15, 31, 47)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_thing_on_a_plain_ground_is_blank_where_the_ground_is(tmp_path, ground, format):
    pictures = [encoded(product(ground, share=share), format) for share in (1e-4, 0.25, 0.6)]
    shares = [row["blank_share"] for row in scored(tmp_path, pictures)]
    assert shares == pytest.approx([1, 0.75, 0.4], abs=0.05)


def test_photographs_are_hardly_blank():
    assert max(blank_share(photo(seed)) for seed in range(10)) < 0.2


def test_a_colour_on_the_edge_of_a_bin_is_one_colour():
    rng = np.random.default_rng(0)
    pixels = rng.integers(126, 130, (64, 64, 3), np.uint8)  # 127 and 128 are in different bins
    assert blank_share(Image.fromarray(pixels)) == 1


def test_halves_and_stripes_count_once():
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle((0, 0, 23, 63), fill="red")
    assert blank_share(picture) == 40 / 64
    ramp = Image.linear_gradient("L").convert("RGB")
    assert blank_share(ramp) < 0.2
    assert blank_share(Image.new("RGB", (1, 1))) == 1


def test_what_a_damaged_picture_raises_is_told_by_its_kind(tmp_path, monkeypatch):
    def fail(_):
        raise ImageError("odd")

    monkeypatch.setattr(image, "thumbnail", fail)
    (row,) = scored(tmp_path, [encoded(photo(0))])
    assert row["image_error"] == "odd"


def test_the_shipped_config_builds_the_scorer_with_its_own_defaults():
    path = Path(__file__).parents[1] / "conf" / "scorers" / "image.yaml"
    assert instantiate(yaml.safe_load(path.read_text())) == {"image": ImageScorer()}
