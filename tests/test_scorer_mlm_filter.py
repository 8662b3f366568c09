"""The judge's scorer: one question a metric, nothing where no score was said, all of it told."""

import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support.judges import llava_folder
from support.runs import PackedCorpora, train
from support.samples import samples_of
from support.shards import picture, tiny_tokenizer

from openqwen2vl.curation.batches import Batches
from openqwen2vl.curation.scorers.judge import Question, Reply
from openqwen2vl.curation.scorers.mlm_filter import MlmFilterScorer
from openqwen2vl.curation.scorers.prompts import METRICS, read_prompts
from openqwen2vl.formats.errors import CheckpointError, ConfigError, ImageError
from openqwen2vl.release.trained import load_trained, trained_judge

CONF = Path(__file__).parents[1] / "conf" / "scorers" / "mlm_filter.yaml"
ITM, SU = "image_text_matching", "semantic_understanding"


@dataclass
class Parrot:
    """Says the caption; remembers how many it was asked at once."""

    asked: list[int] = field(default_factory=list)
    most: int = 1000

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "parrot"}

    def picture(self, data: bytes) -> int:
        if len(data) < 100:
            raise ImageError("cannot be decoded (too short)")
        return len(data)

    def ask(self, questions: Sequence[Question], max_new_tokens: int, numbers: bool) -> list[Reply]:
        self.asked.append(len(questions))
        if len(questions) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [Reply(q.caption, True, _chances(q.caption) if numbers else ()) for q in questions]


def _chances(caption: str) -> list[float]:
    """0.6 on the number that a caption is, nothing where it is none."""
    return [0.6 * (str(number) == caption) for number in range(101)]


def pictures(count: int) -> list[bytes]:
    return [picture(random.Random(number)) for number in range(count)]


def test_each_metric_is_read_and_what_is_no_score_is_told(tmp_path: Path) -> None:
    captions = ["85", "100", "0", "no idea", "101", "7"]
    images = [*pictures(5), b"no image"]
    found = MlmFilterScorer(Parrot(), [ITM, SU]).score(
        samples_of(tmp_path / "0.tar", images, captions)
    )
    assert found[ITM] == found[SU] == [85.0, 100.0, 0.0, None, None, None]
    errors = found["mlm_filter_error"]
    assert errors[:3] == [None] * 3
    assert errors[3] == f"{ITM}: no score in 'no idea'; {SU}: no score in 'no idea'"
    assert "'101'" in errors[4]
    assert errors[5] == "ImageError: cannot be decoded (too short)"


def test_expected_values_have_columns_and_errors_of_their_own(tmp_path: Path) -> None:
    scorer = MlmFilterScorer(Parrot(), [ITM], expected=True, name="judge")
    assert dict(scorer.columns) == {ITM: pa.float32(), f"{ITM}_expected": pa.float32()}
    found = scorer.score(samples_of(tmp_path / "0.tar", pictures(2), ["40", "none"]))
    assert found[f"{ITM}_expected"] == [pytest.approx(40.0), None]
    assert found["judge_error"][0] is None
    assert (
        "image_text_matching_expected: a number is likely by 0.000 only" in found["judge_error"][1]
    )
    strict = MlmFilterScorer(Parrot(), [ITM], expected=True, least_chance=0.7)
    found = strict.score(samples_of(tmp_path / "0.tar", pictures(1), ["40"]))
    assert (found[ITM], found[f"{ITM}_expected"]) == ([40.0], [None])


def test_a_batch_of_broken_pictures_asks_nothing(tmp_path: Path) -> None:
    judge = Parrot()
    found = MlmFilterScorer(judge, [ITM]).score(samples_of(tmp_path / "0.tar", [b"x"], ["5"]))
    assert found[ITM] == [None]
    assert judge.asked == []


def test_a_batch_that_memory_cannot_hold_is_halved(tmp_path: Path) -> None:
    judge = Parrot(most=2)
    batches = Batches(MlmFilterScorer(judge, [ITM], batch_size=8))
    samples = samples_of(tmp_path / "0.tar", pictures(8), [str(number) for number in range(8)])
    assert batches.score(samples)[ITM] == [float(number) for number in range(8)]
    assert batches.halved_to == 2


def test_the_fingerprint_tells_judge_questions_and_decoding(tmp_path: Path) -> None:
    known = MlmFilterScorer(Parrot(), [ITM]).fingerprint()
    assert known["judge"] == {"model": "parrot"}
    assert known["metrics"] == [ITM]
    own = tmp_path / "own.yaml"
    own.write_text(f"{ITM}: 'How good is {{caption}}?'")
    changes: dict[str, dict[str, Any]] = {
        "prompts": {"prompt_file": str(own)},
        "decoding": {"max_new_tokens": 3},
        "expected": {"expected": True},
    }
    for key, change in changes.items():
        other = MlmFilterScorer(Parrot(), [ITM], **change).fingerprint()
        assert {name for name in known if known[name] != other[name]} == {key}
    assert MlmFilterScorer(Parrot(), [ITM], batch_size=3, name="x").fingerprint() == known


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"metrics": ["image_text"]}, "image_text is unknown; did you mean image_text_matching"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"least_chance": 2}, "least_chance 2"),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        MlmFilterScorer(Parrot(), **settings)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_folder(tmp_path_factory.mktemp("llava"))


def test_the_shipped_config_scores_with_a_model(llava: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(CONF)
    config.mlm_filter.judge.model = str(llava)
    config.mlm_filter.expected = True
    config.mlm_filter.least_chance = 0.0
    scorer = pickle.loads(pickle.dumps(instantiate(config.mlm_filter)))
    assert scorer.name == "mlm_filter"
    assert list(scorer.columns) == [c for m in METRICS for c in (m, f"{m}_expected")]
    samples = samples_of(tmp_path / "0.tar", pictures(3), ["a", "a dog", "a cat on a mat"])
    together, apart = scorer.score(samples), [scorer.score([sample]) for sample in samples]
    for name, values in together.items():
        if name.endswith("_expected"):
            assert values == pytest.approx([one[name][0] for one in apart], rel=1e-4)
            assert all(0 <= value <= 100 for value in values)
        else:
            assert values == [one[name][0] for one in apart]


def test_a_scores_questions_are_those_of_the_file(tmp_path: Path) -> None:
    class Ear(Parrot):
        def ask(self, questions: Sequence[Question], limit: int, numbers: bool) -> list[Reply]:
            heard.extend(q.before + q.caption + q.after for q in questions)
            return super().ask(questions, limit, numbers)

    heard: list[str] = []
    MlmFilterScorer(Ear(), [SU, ITM]).score(samples_of(tmp_path / "0.tar", pictures(1), ["{x}"]))
    prompts = read_prompts(None, [SU, ITM])
    assert heard == [p.before + "{x}" + p.after for p in prompts.values()]


@pytest.mark.slow
def test_a_run_of_ours_becomes_a_judge(corpora: PackedCorpora, tmp_path: Path) -> None:
    done = train(
        corpora, tmp_path / "run", budget__steps=1, resolution="tiny", strategy__device="cpu"
    )
    assert done.returncode == 0, done.stderr
    judge = trained_judge(str(tmp_path / "run"))
    scorer = pickle.loads(
        pickle.dumps(MlmFilterScorer(judge, [ITM], expected=True, least_chance=0.0))
    )
    found = scorer.score(samples_of(tmp_path / "0.tar", pictures(2), ["a red circle", "a cross"]))
    assert all(0 <= value <= 100 for value in found[f"{ITM}_expected"])
    assert scorer.fingerprint()["judge"]["model"] == "run"
    other = tmp_path / "tokenizer"
    tiny_tokenizer(other, 400)
    with pytest.raises(CheckpointError, match="give the tokenizer of that run"):
        load_trained(tmp_path / "run", str(other))
