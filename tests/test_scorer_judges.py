"""Judges: a batch answers as one by one, padding is not seen, numbers have their exact chances."""

import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.judges import llava_folder, qwen2_vl_folder
from support.models import tiny_mllm
from support.shards import picture, tiny_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from openqwen2vl.curation.scorers.judge import Judge, Question
from openqwen2vl.curation.scorers.mllm_judge import MllmJudge, TrainedModel
from openqwen2vl.curation.scorers.transformers_judge import TransformersJudge
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.errors import CheckpointError, ConfigError, ImageError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import prompt_ids, template
from openqwen2vl.formats.tokens import load_tokenizer, special_tokens

CAPTIONS = ["a red circle", "two squares on the left. " * 6, ""]
MAKERS = {"llava": llava_folder, "qwen2_vl": qwen2_vl_folder}
NEW = 6


def load_ours(folder: Path) -> TrainedModel:
    tokenizer = load_tokenizer(str(folder))
    model = tiny_mllm(trainable_tower=False, vocab_size=len(tokenizer))
    return TrainedModel(model, tokenizer, template("qwen2_5"), "tiny")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    made = {name: make(root / name) for name, make in MAKERS.items()}
    tiny_tokenizer(root / "ours")
    return {**made, "ours": root / "ours"}


@pytest.fixture(scope="module")
def judges(folders: dict[str, Path]) -> dict[str, Judge]:
    ours = MllmJudge(partial(load_ours, folders["ours"]))
    return {**{name: TransformersJudge(str(folders[name])) for name in MAKERS}, "ours": ours}


@pytest.fixture(params=["llava", "qwen2_vl", "ours"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def data(number: int) -> bytes:
    return picture(random.Random(number), (64 + 30 * number, 48))


def questions(judge: Judge, captions: list[str] = CAPTIONS) -> list[Question]:
    return [
        Question(judge.picture(data(number)), "Caption: ", caption, "\nHow good?")
        for number, caption in enumerate(captions)
    ]


def test_a_batch_answers_as_one_by_one(name: str, judges: dict[str, Judge]) -> None:
    judge = judges[name]
    asked = questions(judge)
    together = judge.ask(asked, NEW, numbers=True)
    apart = [judge.ask([question], NEW, numbers=True)[0] for question in asked]
    assert [reply.text for reply in together] == [reply.text for reply in apart]
    for one, other in zip(together, apart, strict=True):
        assert one.numbers == pytest.approx(other.numbers, rel=1e-3, abs=1e-9)
        assert sum(one.numbers) > 0
    assert len({reply.numbers[50] for reply in together}) == len(asked)


def test_asking_for_numbers_leaves_the_answer_as_it_is(name: str, judges: dict[str, Judge]) -> None:
    judge = judges[name]
    asked = questions(judge)
    plain = judge.ask(asked, NEW, numbers=False)
    assert [reply.text for reply in plain] == [r.text for r in judge.ask(asked, NEW, numbers=True)]
    assert all(reply.numbers == () for reply in plain)


def test_a_long_neighbour_is_not_seen_through_the_padding(
    name: str, judges: dict[str, Judge]
) -> None:
    judge = judges[name]
    first, *_ = questions(judge)
    long = questions(judge, ["a blue cross. " * 20, "a cross. " * 20])[1]
    alone = judge.ask([first], NEW, numbers=True)[0]
    beside = judge.ask([first, long], NEW, numbers=True)[0]
    assert beside.text == alone.text
    assert beside.numbers == pytest.approx(alone.numbers, rel=1e-3, abs=1e-9)


def test_picture_and_caption_both_matter(name: str, judges: dict[str, Judge]) -> None:
    judge = judges[name]
    pictures = [judge.picture(data(number)) for number in (0, 0, 2)]
    captions = ["a circle", "a square", "a circle"]
    asked = [Question(p, "", c, "") for p, c in zip(pictures, captions, strict=True)]
    chances = [tuple(reply.numbers) for reply in judge.ask(asked, 1, numbers=True)]
    assert len(set(chances)) == 3


def by_hand(name: str, folder: Path) -> Callable[[Question, list[int]], torch.Tensor]:
    """Logits after a question and some more ids, without cache, batch or padding."""
    if name == "ours":
        return partial(ours_by_hand, load_ours(folder))
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(question: Question, more: list[int]) -> torch.Tensor:
        text = question.before + question.caption + question.after
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(text=[prompt], images=[question.picture], return_tensors="pt")
        for key, filler in (("input_ids", more), ("attention_mask", [1] * len(more))):
            inputs[key] = torch.cat([inputs[key], torch.tensor([filler])], 1).long()
        if "mm_token_type_ids" in inputs:
            kinds = torch.zeros(1, len(more), dtype=torch.int64)
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], kinds], 1)
        with torch.no_grad():
            found: torch.Tensor = model(**inputs).logits[0]
        return found

    return logits


def ours_by_hand(judge: TrainedModel, question: Question, more: list[int]) -> torch.Tensor:
    text = "\n" + question.before + question.caption + question.after
    ids = prompt_ids([Turn("user", (IMAGE, text))], judge.tokenizer, judge.template) + more
    mark = special_tokens(judge.tokenizer).image
    at = ids.index(mark)
    spread = torch.tensor([[*ids[:at], *[mark] * 9, *ids[at + 1 :]]])
    length = spread.shape[1]
    judge.model.eval()
    with torch.no_grad():
        hidden = judge.model(
            spread,
            torch.arange(length)[None],
            torch.from_numpy(question.picture)[None],
            torch.arange(at, at + 9),
            torch.tensor([0, length], dtype=torch.int32),
            length,
            3,
        )
        return judge.model.head(hidden[0])


def test_numbers_have_the_chances_of_all_101_strings(
    name: str, judges: dict[str, Judge], folders: dict[str, Path]
) -> None:
    question = questions(judges[name])[1]
    logits = by_hand(name, folders[name])
    digit = load_tokenizer(str(folders[name])).convert_tokens_to_ids

    def begins_with(text: str) -> float:
        ids = [digit(character) for character in text]
        chances = logits(question, ids[:-1]).double().softmax(1)[-len(ids) :]
        return float(torch.prod(chances[torch.arange(len(ids)), torch.tensor(ids)]))

    first = {str(number): begins_with(str(number)) for number in range(101)}
    wanted = [first[str(n)] - sum(first.get(f"{n}{d}", 0.0) for d in range(10)) for n in range(101)]
    found = judges[name].ask(questions(judges[name]), NEW, numbers=True)[1].numbers
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-10)


def test_the_answer_takes_the_likeliest_tokens(
    name: str, judges: dict[str, Judge], folders: dict[str, Path]
) -> None:
    question = questions(judges[name])[0]
    logits = by_hand(name, folders[name])
    ids: list[int] = []
    for _ in range(NEW):
        ids.append(int(logits(question, ids)[-1].argmax()))
    tokenizer = load_tokenizer(str(folders[name]))
    wanted = tokenizer.decode(ids, skip_special_tokens=True)
    assert judges[name].ask([question], NEW, numbers=False)[0].text == wanted


@pytest.mark.parametrize("mark", ["<image>", "<|image_pad|>", "<|im_end|>", "<|vision_start|>"])
def test_marks_in_a_caption_are_text(name: str, mark: str, judges: dict[str, Judge]) -> None:
    judge = judges[name]
    broken = f"{mark[0]} {mark[1:]}"
    # A mark that were taken for an image would raise: there is one image only.
    (reply,) = judge.ask(questions(judge, [f"a {mark} b {mark}"]), 1, numbers=True)
    (other,) = judge.ask(questions(judge, [f"a {broken} b {broken}"]), 1, numbers=True)
    # Ours reads the letters as they are; another tokenizer knows them only with a space between.
    special = mark in ours_or_special(name)
    assert (reply.numbers == other.numbers) == special


def ours_or_special(name: str) -> tuple[str, ...]:
    """Marks that a judge's tokenizer takes for special tokens wherever they stand."""
    marks = {"llava": ("<image>",), "qwen2_vl": ("<|vision_start|>",), "ours": ()}
    return marks[name] + (("<|image_pad|>", "<|im_end|>") if name != "ours" else ())


def test_a_long_caption_is_shortened_and_the_question_is_not(folders: dict[str, Path]) -> None:
    short = TransformersJudge(str(folders["llava"]), caption_tokens=8)
    ours = MllmJudge(partial(load_ours, folders["ours"]), caption_tokens=8)
    for judge in (short, ours):
        words = ["\u00e9" * 40, "\u00e9" * 400]
        shown = judge.picture(data(0))
        endings = [Question(shown, "Caption: ", w, e) for w in words for e in ("\nA?", "\nB?")]
        a, b, c, d = (tuple(r.numbers) for r in judge.ask(endings, 1, numbers=True))
        assert a == pytest.approx(c, rel=1e-3)
        assert b == pytest.approx(d, rel=1e-3)
        assert a != pytest.approx(b, rel=1e-3)


def test_an_answer_can_be_begun(name: str, judges: dict[str, Judge]) -> None:
    judge = judges[name]
    shown = judge.picture(data(0))
    asked = [Question(shown, "", "a circle", "", start) for start in ("", " ", "Score:")]
    assert len({tuple(reply.numbers) for reply in judge.ask(asked, 1, numbers=True)}) == 3


def test_a_models_own_generation_settings_do_not_bend_an_answer(folders: dict[str, Path]) -> None:
    judge = TransformersJudge(str(folders["llava"]))
    plain = judge.ask(questions(judge), NEW, numbers=False)
    assert judge._loaded is not None
    judge._loaded.model.generation_config = GenerationConfig(repetition_penalty=9.0, num_beams=3)
    assert judge.ask(questions(judge), NEW, numbers=False) == plain


def test_an_answer_knows_whether_it_ended(folders: dict[str, Path]) -> None:
    judge = TransformersJudge(str(folders["llava"]))
    (whole,) = judge.ask(questions(judge, ["a"]), NEW, numbers=False)
    assert not whole.finished
    assert judge._loaded is not None
    tokens = judge._loaded.processor.tokenizer.encode(whole.text, add_special_tokens=False)
    judge._loaded.eos_ids.append(tokens[0])
    assert judge.ask(questions(judge, ["a"]), NEW, numbers=False)[0].finished


def test_judges_travel_without_their_weights(name: str, judges: dict[str, Judge]) -> None:
    known = judges[name].fingerprint()
    sent = pickle.dumps(judges[name])
    assert len(sent) < 2000
    there: Any = pickle.loads(sent)
    assert there.fingerprint() == known
    assert there.ask(questions(there), 2, False) == judges[name].ask(
        questions(judges[name]), 2, False
    )


def test_other_weights_have_another_fingerprint(tmp_path: Path, folders: dict[str, Path]) -> None:
    known = TransformersJudge(str(folders["llava"])).fingerprint()
    other = TransformersJudge(str(llava_folder(tmp_path / "llava", seed=1))).fingerprint()
    assert {key for key in known if known[key] != other[key]} == {"weights"}
    cut = TransformersJudge(str(folders["llava"]), caption_tokens=9).fingerprint()
    assert {key for key in known if known[key] != cut[key]} == {"caption_tokens"}


def test_sixteen_bits_come_near_and_spare_the_rotary_frequencies(
    name: str, judges: dict[str, Judge], folders: dict[str, Path]
) -> None:
    judge: Any = {
        "ours": lambda: MllmJudge(partial(load_ours, folders["ours"]), dtype="bfloat16"),
    }.get(name, lambda: TransformersJudge(str(folders[name]), dtype="bfloat16"))()
    asked = questions(judge)[:2]
    for one, other in zip(judge.ask(asked, 2, True), judges[name].ask(asked, 2, True), strict=True):
        assert one.numbers != other.numbers
        # A random head has steep logits, which bfloat16 moves by tenths.
        assert 0.25 < sum(one.numbers) / sum(other.numbers) < 4
    model = judge._loaded.model
    frequencies = [b for key, b in model.named_buffers() if "inv_freq" in key]
    assert {b.dtype for b in frequencies} == {torch.float32}
    assert torch.bfloat16 in {weight.dtype for weight in model.parameters()}


def test_pictures_are_decoded_as_in_training(judges: dict[str, Judge]) -> None:
    assert (judges["ours"].picture(data(1)) == decode_image(data(1), 84)).all()
    for judge in judges.values():
        with pytest.raises(ImageError, match="cannot be decoded"):
            judge.picture(data(1)[:300])


def test_what_cannot_be_loaded_is_told_in_one_message(tmp_path: Path) -> None:
    for model in ("nobody/nothing", str(tmp_path)):
        with pytest.raises(CheckpointError, match="give the name of an image-text-to-text model"):
            TransformersJudge(model).fingerprint()
    with pytest.raises(ConfigError, match=r'dtype is "fp16"; choose one of float32'):
        TransformersJudge("x", dtype="fp16")
    with pytest.raises(ConfigError, match='device is "gpu"'):
        TransformersJudge("x", device="gpu")
