"""CLIP scores are open_clip's own cosine, whatever the batch, and nothing for a broken picture."""

import io
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from support.clips import CONTEXT, clip_folder
from support.samples import encoded, samples_of
from support.shards import caption, picture, write_caption_shard

from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.scorers.clip import BATCHES_A_CALL, ClipScorer
from openqwen2vl.curation.scorers.pictures import ahead, open_picture
from openqwen2vl.engine.local import map_shards
from openqwen2vl.formats.errors import CheckpointError, ConfigError, ImageError
from openqwen2vl.formats.images import decode_image

CONF = Path(__file__).parents[1] / "conf" / "scorers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "tiny")


def drawn(count: int) -> tuple[list[bytes], list[str]]:
    rng = random.Random(0)
    sizes = [(64, 48), (40, 90), (33, 33), (200, 30)]
    images = [picture(rng, sizes[n % 4], ("JPEG", "PNG", "WEBP")[n % 3]) for n in range(count)]
    return images, [caption(rng) for _ in range(count)]


def by_open_clip(folder: Path, images: list[bytes], captions: list[str]) -> list[float]:
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    tokenize = open_clip.get_tokenizer(name)
    found = []
    with torch.no_grad():
        for data, text in zip(images, captions, strict=True):
            pixels = preprocess(Image.open(io.BytesIO(data)).convert("RGB"))[None]
            image = model.encode_image(pixels, normalize=True)
            found.append(float(image @ model.encode_text(tokenize([text]), normalize=True).T))
    return found


def test_a_line_of_pixels_is_no_picture() -> None:
    assert open_picture(encoded(Image.new("RGB", (400, 2)))).size == (400, 2)
    with pytest.raises(ImageError, match="longer than 200 to 1"):
        open_picture(encoded(Image.new("RGB", (402, 2))))


def test_scores_are_open_clips_cosine_one_pair_at_a_time(folder: Path, tmp_path: Path) -> None:
    images, captions = drawn(11)
    samples = samples_of(tmp_path / "0.tar", images, captions)
    found = ClipScorer(str(folder), batch_size=4).score(samples)
    wanted = by_open_clip(folder, images, captions)
    assert found["clip_similarity"] == pytest.approx(wanted, abs=1e-5)
    assert found["clip_error"] == [None] * 11
    assert max(wanted) - min(wanted) > 0.02
    assert all(abs(score) < 1 for score in wanted)


def test_the_batch_does_not_change_a_score(folder: Path, tmp_path: Path) -> None:
    samples = samples_of(tmp_path / "0.tar", *drawn(9))
    scores = [
        ClipScorer(str(folder), batch_size=size).score(samples)["clip_similarity"]
        for size in (1, 2, 9, 64)
    ]
    assert all(score == pytest.approx(scores[0], abs=1e-5) for score in scores)


def test_a_long_caption_counts_up_to_the_context(folder: Path, tmp_path: Path) -> None:
    image = picture(random.Random(0))
    # Each word is one token; start and end take two places.
    texts = ["dog " * (CONTEXT - 2), "dog " * 300, "dog " * (CONTEXT - 3), "."]
    scores = ClipScorer(str(folder)).score(samples_of(tmp_path / "0.tar", [image] * 4, texts))
    full, cut, short, none = scores["clip_similarity"]
    assert cut == pytest.approx(full, abs=1e-6)
    assert short != pytest.approx(full, abs=1e-6)
    assert none is not None


def test_broken_pictures_have_no_score_and_the_others_their_own(
    folder: Path, tmp_path: Path
) -> None:
    images, captions = drawn(7)
    broken = [*images]
    broken[2], broken[3], broken[6] = b"no picture", images[3][:200], b"x"
    scorer = ClipScorer(str(folder), batch_size=2)
    whole = scorer.score(samples_of(tmp_path / "0.tar", images, captions))["clip_similarity"]
    found = scorer.score(samples_of(tmp_path / "1.tar", broken, captions))
    for at in range(7):
        score, error = found["clip_similarity"][at], found["clip_error"][at]
        if at in (2, 3, 6):
            assert score is None
            assert "cannot be decoded" in error
            assert " 0x" not in error
        else:
            assert (score, error) == (pytest.approx(whole[at], abs=1e-5), None)


def test_a_batch_of_nothing_but_broken_pictures_is_scored_too(folder: Path, tmp_path: Path) -> None:
    samples = samples_of(tmp_path / "0.tar", [b"x", b"y"], ["a", "b"])
    assert ClipScorer(str(folder)).score(samples)["clip_similarity"] == [None, None]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_come_near(folder: Path, tmp_path: Path, dtype: str) -> None:
    samples = samples_of(tmp_path / "0.tar", *drawn(5))
    exact, rounded = (
        ClipScorer(str(folder), device="cpu", dtype=kind).score(samples)["clip_similarity"]
        for kind in (None, dtype)
    )
    assert rounded == pytest.approx(exact, abs=0.03)
    assert rounded != exact


def test_column_and_name_are_the_users(folder: Path, tmp_path: Path) -> None:
    scorer = ClipScorer(str(folder), name="dfn", column="dfn_similarity", batch_size=3)
    assert dict(scorer.columns) == {"dfn_similarity": pa.float32()}
    assert scorer.batch_size == 3 * BATCHES_A_CALL
    found = scorer.score(samples_of(tmp_path / "0.tar", *drawn(2)))
    assert set(found) == {"dfn_similarity", "dfn_error"}


def test_the_fingerprint_tells_weights_preprocessing_and_numbers(
    folder: Path, tmp_path: Path
) -> None:
    known = ClipScorer(str(folder), device="cpu").fingerprint()
    assert known["model"] == "tiny"
    assert known["preprocess"]["size"] == [32, 32]
    moved = clip_folder(tmp_path / "elsewhere" / "tiny")
    assert ClipScorer(str(moved), device="cpu", batch_size=1).fingerprint() == known
    others = {
        "weights": ClipScorer(str(clip_folder(tmp_path / "seed" / "tiny", seed=1))),
        "preprocess": ClipScorer(
            str(clip_folder(tmp_path / "squash" / "tiny", preprocess={"resize_mode": "squash"}))
        ),
        "dtype": ClipScorer(str(folder), dtype="bfloat16"),
        "column": ClipScorer(str(folder), column="x"),
    }
    for key, other in others.items():
        told = other.fingerprint()
        assert {name for name in known if known[name] != told[name]} == {key}


def test_a_scorer_travels_without_its_weights(folder: Path, tmp_path: Path) -> None:
    scorer = ClipScorer(str(folder))
    samples = samples_of(tmp_path / "0.tar", *drawn(3))
    found, sent = scorer.score(samples), pickle.dumps(scorer)
    assert len(sent) < 2000
    there: Any = pickle.loads(sent)
    assert there.fingerprint() == scorer.fingerprint()
    assert there.score(samples) == found


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_is_needed_by_who_scores_and_not_by_who_asks(folder: Path, tmp_path: Path) -> None:
    scorer = ClipScorer(str(folder), device="cuda")
    assert scorer.fingerprint()["dtype"] == "float16"
    with pytest.raises(ConfigError, match="device is cuda, but a process that scores sees 0 GPUs"):
        scorer.score(samples_of(tmp_path / "0.tar", *drawn(1)))


@pytest.mark.slow
def test_scores_on_disk_are_the_same_from_other_processes(folder: Path, tmp_path: Path) -> None:
    shards = [tmp_path / "raw" / f"0000{n}.tar" for n in range(2)]
    for number, shard in enumerate(shards):
        write_caption_shard(shard, 5, seed=number)
    files = []
    for name, workers in (("here", 1), ("there", 2)):
        mapper = partial(map_shards, workers=workers)
        scorer = ClipScorer(str(folder), device="cpu")
        files.append(score_source(shards, "web", [scorer], tmp_path / name, mapper)["clip"])
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


@pytest.mark.parametrize(
    ("model", "pretrained", "told"),
    [
        ("ViT-B-33", None, "no model .ViT-B-33.*did you mean ViT-B-32"),
        ("ViT-B-32", None, "ViT-B-32 needs weights, but none are named; set pretrained"),
        ("ViT-B-32", "nix", '"nix" is no file and no weights of it; .* one of openai'),
        ("ViT-L-14", "openai", "with QuickGELU.*take model ViT-L-14-quickgelu"),
        (".", None, r"holds no open_clip_config\.json"),
    ],
)
def test_a_model_that_is_none_is_told(model: str, pretrained: str | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ClipScorer(model, pretrained).fingerprint()


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_a_mistake(threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads is {threads}; expected at least 1"):
        ClipScorer("x", threads=threads)


def test_a_folder_takes_no_tag(folder: Path) -> None:
    with pytest.raises(ConfigError, match="holds its own weights; drop pretrained"):
        ClipScorer(str(folder), "openai").fingerprint()


@pytest.mark.parametrize(
    ("model", "pretrained", "place"),
    [
        ("ViT-L-14-quickgelu", "dfn2b", "apple/DFN2B-CLIP-ViT-L-14"),
        ("ViT-SO400M-14-SigLIP-384", "webli", "timm/ViT-SO400M-14-SigLIP-384"),
        ("hf-hub:nobody/nothing", None, "nobody/nothing"),
    ],
)
def test_without_a_network_it_says_what_to_download(
    model: str, pretrained: str | None, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CheckpointError, match=f"download {place} elsewhere and give its folder"):
        ClipScorer(model, pretrained).fingerprint()
    assert caplog.records == []


def test_weights_that_do_not_fit_are_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(
        (folder / "open_clip_config.json").read_bytes().replace(b'"layers": 2', b'"layers": 3')
    )
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="cannot load the weights of"):
        ClipScorer(str(tmp_path)).fingerprint()


@pytest.mark.parametrize("name", ["clip", "dfn", "siglip"])
def test_the_shipped_configs_name_models_and_weights_that_there_are(name: str) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")[name]
    scorer = instantiate(config)
    assert scorer.name == name
    assert list(scorer.columns) == [f"{name}_similarity"]
    assert config.pretrained in open_clip.list_pretrained_tags_by_model(config.model)


def test_pictures_are_upright_opaque_and_scaled_as_in_training() -> None:
    turned = Image.new("RGB", (8, 4), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    for data in (
        encoded(turned, "PNG", exif=exif),
        encoded(Image.new("RGBA", (8, 4), (255, 0, 0, 0)), "PNG"),
        encoded(Image.new("I;16", (8, 4), 40_000), "PNG"),
        encoded(Image.new("P", (8, 4), 3), "PNG"),
    ):
        opened = open_picture(data)
        assert opened.mode == "RGB"
        square = opened.resize((4, 4), Image.Resampling.NEAREST)
        assert square.tobytes() == decode_image(data, 4).tobytes()
    assert open_picture(encoded(turned, "PNG", exif=exif)).size == (4, 8)


def test_results_are_begun_ahead_and_no_further() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return item * item

    with ThreadPoolExecutor(2) as pool:
        results = ahead(work, range(20), pool, most=3)
        assert next(results) == 0
        deadline = time.monotonic() + 5
        while len(begun) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sorted(begun) == [0, 1, 2, 3]
        assert list(results) == [item * item for item in range(1, 20)]
