import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openqwen2vl.formats import decoders
from openqwen2vl.formats.decoders import PictureDecoder
from openqwen2vl.formats.errors import CheckpointError, ConfigError, ImageError
from openqwen2vl.formats.images import PIXELS_VERSION, decode_image, draft_scale

simplejpeg = pytest.importorskip("simplejpeg")

PILLOW, FAST = PictureDecoder("pillow"), PictureDecoder("simplejpeg")
SIDE = 24
JPEGS = {
    "subsampling": st.sampled_from([0, 1, 2]),
    "progressive": st.booleans(),
    "quality": st.integers(20, 98),
}


def picture(width, height, seed=0):
    shape = (max(2, height // 6), max(2, width // 6), 3)
    small = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def distance(one, other):
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def outcome(decode, data):
    """Pixels, or the words of the refusal."""
    try:
        return decode(data, SIDE)
    except ImageError as error:
        return str(error)


def assert_same(one, other):
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
    else:
        assert distance(one, other) <= 1


@settings(deadline=None, max_examples=60)
@given(
    st.integers(8, 220),
    st.integers(8, 220),
    st.integers(8, 64),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.booleans(),
    st.fixed_dictionaries(JPEGS),
)
def test_both_libraries_give_the_same_pixels(width, height, side, mode, draft, options):
    data = encoded(picture(width, height).convert(mode), **options)
    one = PictureDecoder("pillow", draft)(data, side)
    other = PictureDecoder("simplejpeg", draft)(data, side)
    assert other.dtype == np.uint8
    assert other.flags.c_contiguous
    assert distance(one, other) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_both_libraries_turn_pictures_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(60, 40), exif=exif)
    assert distance(PILLOW(data, SIDE), FAST(data, SIDE)) <= 1
    into = np.zeros((SIDE, SIDE, 3), np.uint8)
    assert FAST(data, SIDE, out=into) is into
    assert (into == FAST(data, SIDE)).all()


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_what_is_damaged_is_refused_or_mended_alike(seed, cut, progressive):
    rng = random.Random(seed)
    data = bytearray(encoded(picture(80, 60), progressive=progressive))
    if cut:
        data = data[: rng.randrange(len(data))]
    else:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    assert_same(outcome(PILLOW, bytes(data)), outcome(FAST, bytes(data)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_every_cut_near_the_end_is_judged_alike(options):
    data = encoded(picture(50, 50), **options)
    found = [outcome(FAST, data[: len(data) - gone]) for gone in range(40)]
    for gone, one in enumerate(found):
        assert_same(outcome(PILLOW, data[: len(data) - gone]), one)
    assert any(isinstance(one, str) for one in found)


def test_a_refusal_says_the_same_at_every_time():
    assert len({outcome(FAST, bytes(40)) for _ in range(20)}) == 1


def test_simplejpeg_reads_gray_and_rgb_and_nothing_else(monkeypatch):
    read = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        simplejpeg, "decode_jpeg", lambda data, **how: read.append(data) or real(data, **how)
    )
    ours = [encoded(picture(40, 30).convert(mode)) for mode in ("RGB", "L")]
    others = [
        encoded(picture(40, 30).convert("CMYK")),
        encoded(picture(40, 30), "PNG"),
        encoded(picture(40, 30), "WEBP"),
        encoded(Image.fromarray(np.full((30, 40), 4000, np.uint16)), "PNG"),
    ]
    for data in [*ours, *others]:
        assert distance(FAST(data, SIDE), decode_image(data, SIDE)) <= 1
    assert read == ours


def test_a_picture_is_not_overwritten_by_the_next():
    files = [encoded(picture(SIDE, SIDE, seed)) for seed in range(3)]
    large = encoded(picture(1300, 1100))  # outgrows the memory that is used again
    kept = [FAST(data, SIDE) for data in [*files, large, *files]]
    for data, pixels in zip([*files, large, *files], kept, strict=True):
        assert distance(pixels, PILLOW(data, SIDE)) <= 1


@settings(max_examples=200)
@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(1, 600))
def test_a_draft_keeps_both_sides_at_the_target(width, height, side):
    allowed = [s for s in (2, 4, 8) if width >= s * side and height >= s * side]
    assert draft_scale((width, height), side) == max(allowed, default=1)


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize(
    "size", [(47, 200), (48, 48), (97, 131), (96, 500), (300, 192), (401, 391)]
)
def test_drafts_are_those_of_libjpeg_by_the_rule(decoder, size):
    data = encoded(picture(*size), subsampling=2)
    drafted = Image.open(io.BytesIO(data))
    scale = draft_scale(size, SIDE)
    if scale > 1:
        drafted.draft(None, (size[0] // scale, size[1] // scale))
    assert drafted.size == (-(-size[0] // scale), -(-size[1] // scale))
    # A lossless copy of the draft, resized without another one.
    theirs = decode_image(encoded(drafted.convert("RGB"), "PNG"), SIDE)
    ours = PictureDecoder(decoder, draft=True)(data, SIDE)
    assert distance(ours, theirs) <= 1
    if scale == 1:
        assert (ours == decode_image(data, SIDE)).all()
    else:
        assert distance(ours, decode_image(data, SIDE)) > 1


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_other_formats_know_no_draft(format):
    data = encoded(picture(200, 200), format)
    assert (decode_image(data, SIDE, draft=True) == decode_image(data, SIDE)).all()


def missing(monkeypatch):
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)


def test_auto_takes_simplejpeg_where_it_is_installed(monkeypatch):
    assert PictureDecoder.chosen("auto", True) == PictureDecoder("simplejpeg", True)
    assert PictureDecoder.chosen("pillow", False) == PILLOW
    missing(monkeypatch)
    assert PictureDecoder.chosen("auto", False) == PILLOW
    with pytest.raises(ConfigError, match=r"pip install \"openqwen2vl\[fast\]\""):
        PictureDecoder.chosen("simplejpeg", False)
    with pytest.raises(ConfigError, match="there are auto, pillow, simplejpeg"):
        PictureDecoder.chosen("turbo", False)


def test_a_resumed_run_keeps_its_library_unless_another_is_named(monkeypatch):
    fast = FAST.facts()
    assert PILLOW.resumed("auto", fast) == FAST
    assert FAST.resumed("auto", PILLOW.facts()) == PILLOW
    assert PILLOW.resumed("pillow", fast) == PILLOW
    # A run of before this was recorded read in full, by Pillow.
    assert FAST.resumed("auto", None) == PILLOW
    missing(monkeypatch)
    with pytest.raises(CheckpointError, match=r"openqwen2vl\[fast\].*data\.decoder=pillow"):
        PILLOW.resumed("auto", fast)


@pytest.mark.parametrize(
    "facts",
    [{"draft": True}, {"version": PIXELS_VERSION + 1}],
)
def test_pixels_do_not_change_midway(facts):
    with pytest.raises(CheckpointError, match="start a new run with init_from="):
        PILLOW.resumed("auto", {**PILLOW.facts(), **facts})
    with pytest.raises(CheckpointError, match=r"data\.draft=False .* now it is data\.draft=True"):
        PictureDecoder("pillow", True).resumed("pillow", None)
