"""What the plugin makes of lmms-eval's requests, without lmms-eval's command."""

import math
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image
from support.evaluations import write_run

from openqwen2vl.commands._lmms_eval import OpenQwen2VL, OpenQwen2VLChat
from openqwen2vl.formats.errors import CheckpointError, ConfigError

PICTURES = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "green", "white")]
DOCS = [{"question": f"Which is {number}?", "image": p} for number, p in enumerate(PICTURES * 3)]
WHERE = ("drawn", "test")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def opened(run_folder: Path, kind: type[OpenQwen2VL], **settings: Any) -> OpenQwen2VL:
    model = kind(str(run_folder), device="cpu", **settings)
    model.task_dict = {"drawn": {"test": DOCS}}
    return model


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [doc["image"]]


def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    picture, text = (
        {"type": "image", "url": doc["image"]},
        {"type": "text", "text": doc["question"]},
    )
    return [{"role": "user", "content": [picture, text]}]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    about = {"task": WHERE[0], "doc_id": 0, "repeats": 1}
    return [Instance(kind, (*given, *WHERE), n, about) for n, given in enumerate(arguments)]


def generated(settings: dict[str, Any]) -> list[Instance]:
    asked = [(doc["question"], settings, visual, number) for number, doc in enumerate(DOCS)]
    return requests("generate_until", *asked)


def test_lmms_eval_finds_both_classes_by_the_entry_point() -> None:
    assert get_model("openqwen2vl") is OpenQwen2VLChat
    assert get_model("openqwen2vl", force_simple=True) is OpenQwen2VL


def test_answers_come_in_the_order_of_requests_whatever_the_batches(run_folder: Path) -> None:
    settings = {"max_new_tokens": 8, "until": ["\n\n"], "temperature": 0.2, "do_sample": True}
    asked = generated(settings)
    alone = opened(run_folder, OpenQwen2VL).generate_until(asked)
    assert opened(run_folder, OpenQwen2VL, batch_size=5).generate_until(asked) == alone
    assert len(set(alone)) > 1
    chat = [(d["question"], messages, settings, number) for number, d in enumerate(DOCS)]
    found = opened(run_folder, OpenQwen2VLChat, batch_size=3)
    assert found.generate_until(requests("generate_until", *chat)) == alone


def test_an_answer_ends_where_the_task_says(run_folder: Path) -> None:
    model = opened(run_folder, OpenQwen2VL)
    whole = model.generate_until(generated({"max_new_tokens": 8}))
    end = whole[0][3]
    cut = model.generate_until(generated({"max_new_tokens": 8, "until": [end]}))
    assert cut == [text.split(end)[0] for text in whole]
    assert model.generate_until(generated({"max_new_tokens": 8, "until": end})) == cut


def test_continuations_are_judged_together_and_told_apart(run_folder: Path) -> None:
    model = opened(run_folder, OpenQwen2VL, batch_size=2)
    choices = (" red", " blue", lambda doc: doc["question"])
    # Choice by choice, so that those of a question do not lie side by side.
    asked = [(DOCS[n]["question"], choice, visual, n) for choice in choices for n in range(4)]
    found = [result.text for result in model.loglikelihood(requests("loglikelihood", *asked))]
    assert all(0 < loss < 200 for loss, _ in found)
    for number in (0, 5, 11):
        (alone,) = model.loglikelihood(requests("loglikelihood", asked[number]))
        assert alone.text[0] == pytest.approx(found[number][0], abs=1e-4)
    assert not any(greedy for _, greedy in found)


def test_the_greedy_answer_is_told(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(run_folder, OpenQwen2VL)
    monkeypatch.setattr(type(model._respondent), "texts", lambda self, prompts: ["blue"])
    asked = [("Which?", choice, visual, 1) for choice in (" red", " blue")]
    found = model.loglikelihood(requests("loglikelihood", *asked))
    assert [result.text[1] for result in found] == [False, True]
    assert all(math.isfinite(result.text[0]) for result in found)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"role": "system", "content": []}], "the turns system"),
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "with video"),
    ],
)
def test_what_it_cannot_be_shown_is_told(
    run_folder: Path, content: list[dict[str, Any]], told: str
) -> None:
    model = opened(run_folder, OpenQwen2VLChat)
    with pytest.raises(ConfigError, match=told):
        model.generate_until(requests("generate_until", ("", lambda doc: content, {}, 0)))
    simple = opened(run_folder, OpenQwen2VL)
    with pytest.raises(ConfigError, match="shows str"):
        simple.generate_until(requests("generate_until", ("", {}, lambda doc: ["a.mp4"], 0)))
    with pytest.raises(ConfigError, match="one round"):
        simple.generate_until_multi_round([])


def test_a_mistake_in_the_arguments_is_told(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        OpenQwen2VL(str(tmp_path / "nothing"), device="cpu")
    with pytest.raises(ConfigError, match="batch_size and batch_tokens are numbers"):
        opened(run_folder, OpenQwen2VL, batch_size="auto")
    with pytest.raises(ConfigError, match="dtype"):
        opened(run_folder, OpenQwen2VL, dtype="float8")
