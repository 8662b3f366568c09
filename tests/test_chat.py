"""``openqwen2vl chat`` in the terminal: one question, a conversation over pipes, every mistake."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compose import composed
from support.evaluations import write_run
from support.runs import Run, assert_one_message
from support.shards import picture

from openqwen2vl.commands._chat_terminal import split_paths
from openqwen2vl.commands._chat_words import reword
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import prompt_ids
from openqwen2vl.formats.tokens import special_tokens
from openqwen2vl.release.trained import load_trained


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", seed=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures, one of them with spaces in its name, and what is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "cat.jpg").write_bytes(picture(random.Random(0)))
    (folder / "my second cat.png").write_bytes(picture(random.Random(1), format="PNG"))
    (folder / "words.png").write_text("I am no picture")
    (folder / "page.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    (folder / "cut.jpg").write_bytes(picture(random.Random(2), (300, 200))[:-700])
    return folder


def words(run: Path, *more: str) -> list[str]:
    return ["chat", f"model={run}", "max_new_tokens=12", *more]


def figures(told: tuple[int, str, str]) -> Any:
    code, out, err = told
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def answer(run: Path, turns: list[Turn], files: list[Path], most: int = 12) -> str:
    """What the model answers greedily when it is asked without any of the chat's code."""
    trained = load_trained(run)
    special = special_tokens(trained.tokenizer)
    side = trained.model.vision.side
    images = [torch.from_numpy(decode_image(file.read_bytes(), side)) for file in files]
    blank = torch.zeros(0, side, side, 3, dtype=torch.uint8)
    ids = trained.model.eval().generate(
        [prompt_ids(turns, trained.tokenizer, trained.template)],
        torch.stack(images) if images else blank,
        special.image,
        special.pad,
        [special.eos],
        most,
    )[0]
    return str(trained.tokenizer.decode(ids, skip_special_tokens=True))


def test_one_question_about_two_pictures(run_folder: Path, pictures: Path, call: Run) -> None:
    files = [pictures / "cat.jpg", pictures / "my second cat.png"]
    asked = "Well, which [one] is it? 'This' or ${that}?"
    listed = f"image=[{files[0]},'{files[1]}']"
    told = call(*words(run_folder, listed, f"prompt={asked}", "json=true"))
    found = figures(told)
    expected = answer(run_folder, [Turn("user", (IMAGE, IMAGE, "\n" + asked))], files)
    assert found["answer"] == expected
    assert found["answers"] == [
        {
            "question": asked,
            "images": ["cat.jpg", "my second cat.png"],
            "answer": expected,
            "stopped": False,
        }
    ]
    assert found["grid"] == 6


def test_draws_repeat_with_their_seed(run_folder: Path, call: Run) -> None:
    def draw(seed: int) -> str:
        told = call(*words(run_folder, "temperature=2", f"seed={seed}", "prompt=Hi", "json=true"))
        return str(figures(told)["answer"])

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def piped(
    monkeypatch: pytest.MonkeyPatch, run: Path, call: Run, *lines: str
) -> tuple[Any, str, str]:
    """Talk over pipes; gives the figures, stdout before them, and stderr."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    told = call(*words(run, "json=true"))
    return figures(told), "\n".join(told[1].splitlines()[:-1]), told[2]


def test_a_conversation_goes_on_until_it_is_reset(
    run_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, call: Run
) -> None:
    cat, second = pictures / "cat.jpg", pictures / "my second cat.png"
    talk = [f"/image {cat} '{second}'", "Which?", "And now?", "/reset", f"/image {second}", "And?"]
    found, out, _ = piped(monkeypatch, run_folder, call, *talk)
    first = Turn("user", (IMAGE, IMAGE, "\nWhich?"))
    said = answer(run_folder, [first], [cat, second])
    turns = [first, Turn("assistant", (said,)), Turn("user", ("And now?",))]
    more = answer(run_folder, turns, [cat, second])
    fresh = answer(run_folder, [Turn("user", (IMAGE, "\nAnd?"))], [second])
    assert [one["answer"] for one in found["answers"]] == [said, more, fresh]
    for text in (said, more, fresh):
        plain = "".join(letter for letter in text if letter.isprintable())
        assert plain in "".join(letter for letter in out if letter.isprintable())


def test_a_mistake_costs_a_line_and_not_the_chat(
    run_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, call: Run
) -> None:
    wrong = ("words.png", "page.png", "cut.jpg", "none.png")
    talk = [*(f"/image {pictures}/{name}" for name in wrong), "/image", "/imgae a", "", "/help"]
    # Nobody's home, and a name longer than a file's may be.
    talk += ["/image ~nobody-of-that-name/cat.jpg", f"/image {'x' * 5000}"]
    found, _, err = piped(monkeypatch, run_folder, call, *talk, "Still there?", "/quit", "Not me")
    assert [one["question"] for one in found["answers"]] == ["Still there?"]
    assert found["answers"][0]["images"] == []
    for name in wrong:
        assert f"{name} cannot be shown" in err
    assert "~nobody-of-that-name/cat.jpg cannot be shown" in err
    assert "xxx cannot be shown: there is no such file" in err
    assert "no command /imgae" in err
    assert "/reset" in err
    assert "Traceback" not in err


def test_a_question_too_long_is_not_asked_and_the_chat_goes_on(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, call: Run
) -> None:
    most = load_trained(run_folder).model.llm.config.max_position_embeddings
    long = "circle " * most
    found, _, err = piped(monkeypatch, run_folder, call, long, "Short?")
    assert [one["question"] for one in found["answers"]] == ["Short?"]
    assert f"the model holds {most:,}" in err
    assert found["answer"] == answer(run_folder, [Turn("user", ("Short?",))], [])


class Impatient(io.StringIO):
    """Output whose reader presses Ctrl-C once, after some letters."""

    letters = 0

    def write(self, text: str) -> int:
        before, self.letters = self.letters, self.letters + len(text)
        if before < 3 <= self.letters:
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, call: Run
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello?\nAgain?\n"))
    out = Impatient()
    monkeypatch.setattr("sys.stdout", out)
    assert call(*words(run_folder, "json=true"))[0] == 0
    one, two = json.loads(out.getvalue().splitlines()[-1])["answers"]
    assert (one["stopped"], two["stopped"]) == (True, False)
    whole = answer(run_folder, [Turn("user", ("Hello?",))], [])
    assert whole.startswith(one["answer"])
    assert len(one["answer"]) < len(whole)


def test_what_a_model_says_cannot_steer_the_terminal(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, call: Run
) -> None:
    said = "\x1b[2Ja\x07b\r\n\tc\x9b"
    monkeypatch.setattr(
        "openqwen2vl.release.conversation.text_pieces", lambda tokenizer, ids: iter([said])
    )
    told = call(*words(run_folder, "prompt=Hi", "json=true"))
    assert told[1].startswith("[2Jab\n\tc\n")
    assert figures(told)["answer"] == said


def test_mistakes_are_told_before_anything_is_loaded(
    run_folder: Path, pictures: Path, call: Run
) -> None:
    assert_one_message(call("chat"), "model: must be given")
    for word, message in (
        ("chat.ui=window", "chat.ui is 'window'; there are terminal, web"),
        ("chat.port=70000", "chat.port is 70000"),
        ("chat.max_images=0", "chat.max_images is 0"),
        ("prompt= ", "prompt is empty"),
        ("temperature=-1", "temperature is -1"),
        ("temperature=1e-45", "temperature is 1e-45; take 0 for the likeliest"),
        ("seed=-1", "seed is -1; expected 0 to"),
        ("seed=99999999999999999999", "seed is 99999999999999999999; expected 0 to"),
        ("prompt=caf\udce9", "prompt holds bytes that are no letters here"),
        ("system=caf\udce9", "system holds bytes that are no letters here"),
        ("top_p=0", "top_p is 0"),
        ("max_new_tokens=0", "max_new_tokens is 0"),
        ("dtype=int4", 'dtype is "int4"'),
        ("device=gpu", 'device is "gpu"'),
        ("chat.max_image=1", "did you mean 'max_images'"),
        ("tmperature=1", "did you mean 'temperature'"),
    ):
        assert_one_message(call("chat", "model=/none", word), message)
    web = call("chat", "model=/none", "chat.ui=web", "prompt=Hi")
    assert_one_message(web, "prompt and image are of the terminal")
    assert_one_message(call("chat", "model=/none", "prompt=Hi"), "/none")
    told = call("chat", "model=/none", "image=no-cat.png", "prompt=Hi")
    assert_one_message(told, "no-cat.png cannot be shown: there is no such file")
    told = call(*words(run_folder, f"image={pictures}/words.png", "prompt=What?"))
    assert_one_message(told, "words.png cannot be shown: it is no picture")
    told = call(*words(run_folder, f"image={pictures}/a,b.png", "prompt=What?"))
    assert_one_message(told, "a,b.png cannot be shown: there is no such file")


def test_ctrl_c_while_the_model_loads_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, call: Run
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("openqwen2vl.commands.chat.load_trained", pressed)
    with pytest.raises(SystemExit) as left:
        call("chat", "model=/none")
    assert left.value.code == 130


@settings(deadline=None, max_examples=30)
@given(text=st.text(st.sampled_from("ab \\'\"${}[]:,=?~\n/é"), min_size=1, max_size=12))
def test_words_reach_the_config_as_they_were_typed(text: str) -> None:
    if text == "null" or (len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]):
        return
    typed = [f"{key}={text}" for key in ("prompt", "system", "tokenizer")]
    if text[0] not in "{[":
        typed += [f"model={text}", f"image={text}"]
    config = composed(*reword(typed), name="chat")
    assert (config.prompt, config.system, config.tokenizer) == (text, text, text)
    if text[0] not in "{[":
        assert (config.model.path, list(config.image)) == (text, [text])


def test_words_that_are_written_for_hydra_stay() -> None:
    typed = ["prompt='a, b'", 'system="x"', "image=[a.png,b.png]", "model={path:x}", "prompt=null"]
    assert reword([*typed, "json=true", "-h"]) == [*typed, "json=true", "-h"]


def test_paths_are_split_as_a_shell_does(pictures: Path) -> None:
    whole = f"{pictures}/my second cat.png"
    assert split_paths(whole) == [whole]
    assert split_paths(f"a.png '{whole}' b\\ c.png") == ["a.png", whole, "b c.png"]
    assert split_paths("it's.png") == ["it's.png"]
