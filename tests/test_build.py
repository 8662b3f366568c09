import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from openqwen2vl.corpus.build import CAPTION_SOURCES, CorpusSpec, build_corpus
from openqwen2vl.corpus.split import is_held_out
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.raw import raw_shards, read_raw_shard

SPEC = CorpusSpec(
    seed=7,
    scenes=300,
    noisy=120,
    handwriting=90,
    conversations=150,
    multiple_choice=120,
    yes_no=60,
    samples_per_shard=100,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    out = tmp_path_factory.mktemp("corpus")
    return out, build_corpus(out, SPEC)


def training_images(out: Path) -> Iterator[bytes]:
    for shard in sorted(out.glob("raw/*/*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    yield tar.extractfile(member).read()


def records(out: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out / "questions" / f"{name}.jsonl").open()]


def every_file(out: Path) -> dict[str, str]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_source_has_its_size_and_every_sample_is_readable(corpus):
    out, counts = corpus
    assert counts == {
        "scenes": 300,
        "noisy": 120,
        "handwriting": 90,
        "conversations": 150,
        "multiple_choice": 120,
        "yes_no": 60,
    }
    uids = []
    for source in (*CAPTION_SOURCES, "conversations"):
        shards = raw_shards(out / "raw" / source)
        found = [document for shard in shards for document in read_raw_shard(shard, source)]
        assert all(isinstance(document, Document) for document in found)
        assert len(found) == counts[source]
        uids += [document.uid for document in found]
    assert len(set(uids)) == len(uids)


def test_no_held_out_picture_is_in_training(corpus):
    out, _ = corpus
    trained = {hashlib.sha256(image).digest() for image in training_images(out)}
    asked = {
        hashlib.sha256((out / "questions" / record["image"]).read_bytes()).digest()
        for name in ("multiple_choice", "yesno")
        for record in records(out, name)
    }
    assert len(asked) == 180
    assert trained.isdisjoint(asked)


def test_held_out_scenes_have_descriptions_that_training_never_draws(corpus):
    out, _ = corpus
    for name in ("multiple_choice", "yesno"):
        for record in records(out, name):
            described = record["description"]
            if described.startswith("the number"):
                scans = json.loads(described.partition("from scans ")[2])
                assert min(scans) >= 1438
            else:
                assert is_held_out(described)


def test_held_out_questions_name_their_answer_and_their_picture(corpus):
    out, _ = corpus
    for name, size in (("multiple_choice", 4), ("yesno", 2)):
        for record in records(out, name):
            assert len(record["options"]) == size
            assert 0 <= record["answer"] < size
            picture = Image.open(out / "questions" / record["image"])
            picture.load()
            assert picture.mode == "RGB"


def test_yes_and_no_are_balanced(corpus):
    out, _ = corpus
    answers = Counter(record["answer"] for record in records(out, "yesno"))
    assert min(answers.values()) > 18


def test_noisy_samples_say_what_is_wrong_with_them(corpus):
    out, _ = corpus
    kinds = Counter()
    for shard in raw_shards(out / "raw" / "noisy"):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    kinds[json.load(io.BytesIO(tar.extractfile(member).read()))["noise"]] += 1
    assert sum(kinds.values()) == 120
    assert kinds["mismatched"] > 10


def test_the_same_spec_gives_the_same_bytes_in_whatever_order_shards_are_written(corpus, tmp_path):
    def backwards(function, jobs):
        done = {job: function(job) for job in reversed(jobs)}
        return [done[job] for job in jobs]

    build_corpus(tmp_path, SPEC, backwards)
    assert every_file(tmp_path) == every_file(corpus[0])


def test_another_seed_gives_other_pictures(corpus, tmp_path):
    small = CorpusSpec(
        seed=8,
        scenes=20,
        noisy=0,
        handwriting=0,
        conversations=0,
        multiple_choice=1,
        yes_no=1,
    )
    build_corpus(tmp_path, small)
    assert set(training_images(tmp_path)).isdisjoint(training_images(corpus[0]))


@pytest.mark.parametrize(("name", "value"), [("scenes", -1), ("samples_per_shard", 0)])
def test_a_corpus_of_less_than_nothing_is_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"corpus\.{name} is {value}; expected at least"):
        replace(SPEC, **{name: value})
