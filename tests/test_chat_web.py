"""The chat's page: in a real browser against a real server, and who may ask when without one."""

import json
import random
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import sleep
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from support.browser import open_browser
from support.chat_server import Server
from support.evaluations import write_run
from support.runs import Run, assert_one_message, kill_tree
from support.shards import picture

from openqwen2vl.commands._chat_config import Place
from openqwen2vl.commands._chat_web import Desk
from openqwen2vl.formats.errors import UserError
from openqwen2vl.model.decoding import Sampling
from openqwen2vl.release.conversation import Partner, started
from openqwen2vl.release.trained import load_trained

PLACE = Place("web", "127.0.0.1", 0, 1, 2)
MOST = 24


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", seed=2)


@pytest.fixture(scope="module")
def partner(run_folder: Path) -> Partner:
    trained = load_trained(run_folder)
    trained.model.eval()
    return Partner(trained, torch.device("cpu"), Sampling(), MOST)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "cat.jpg").write_bytes(picture(random.Random(0), (200, 150)))
    (folder / "words.png").write_text("<b>I am</b> no picture")
    (folder / "large.png").write_bytes(b"\x89PNG" + bytes(1_100_000))
    return folder


def test_a_visitors_answer_given_up_does_not_disturb_the_next(partner: Partner) -> None:
    desk = Desk(partner, started(), PLACE)
    asked = [desk.fresh().asked(text, []) for text in ("One?", "Two?")]
    whole = [list(desk.answer(one))[-1].messages for one in asked]
    first = desk.answer(asked[0])
    next(first)
    # Gone without a word: neither ended nor closed.
    assert list(desk.answer(asked[1]))[-1].messages == whole[1]
    assert list(first) == []
    assert list(desk.answer(asked[0]))[-1].messages == whole[0]


def test_a_stopped_answer_stays_as_it_is_and_the_talk_goes_on(partner: Partner) -> None:
    desk = Desk(partner, started(), PLACE)
    asked = desk.fresh().asked("One?", [])
    whole = list(desk.answer(asked))[-1]
    going = desk.answer(asked)
    part = next(going)
    part.stopped.set()
    assert list(going) == []
    assert part.messages[-1]["content"] != whole.messages[-1]["content"]
    more = list(desk.answer(part.asked("Two?", [])))[-1]
    assert [m["role"] for m in more.messages] == ["user", "assistant"] * 2


def test_a_question_that_was_stopped_before_its_turn_is_replaced(partner: Partner) -> None:
    desk = Desk(partner, started(), PLACE)
    asked = desk.fresh().asked("One?", [])
    asked.stopped.set()
    assert list(desk.answer(asked)) == []
    again = asked.asked("Two?", [])
    assert [turn.text for turn in again.talk.turns] == ["Two?"]
    assert list(desk.answer(again))


def test_a_session_shows_what_the_model_reads(partner: Partner, files: Path) -> None:
    desk = Desk(partner, started("Be brief."), PLACE)
    shown, told = desk.look([str(files / "cat.jpg")])
    assert told == []
    asked = desk.fresh().asked("What?", shown)
    steps = list(desk.answer(asked))
    texts = [step.messages[-1]["content"] for step in steps]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert texts[-1] == "".join(partner.answer(asked.talk))
    assert [m["role"] for m in steps[-1].messages] == ["user", "user", "assistant"]
    assert steps[-1].messages[0]["content"]["path"] == str(files / "cat.jpg")
    assert steps[-1].talk.turns[-1].parts == (texts[-1],)


def test_uploads_that_are_no_pictures_are_deleted_and_too_many_are_told(
    partner: Partner, files: Path, tmp_path: Path
) -> None:
    desk = Desk(partner, started(), PLACE)
    bad = tmp_path / "bad.png"
    shutil.copy(files / "words.png", bad)
    good = str(files / "cat.jpg")
    shown, told = desk.look([good, str(bad), good])
    assert [path for path, _ in shown] == [good]
    assert "bad.png cannot be shown" in told[0]
    assert "cat.jpg is one too many: 2 pictures" in told[1]
    assert not bad.exists()


def test_pictures_of_many_visitors_are_decoded_one_at_a_time(files: Path) -> None:
    """One may take 2 GB while it is decoded, and Gradio runs 40 visitors' threads."""
    now: list[str] = []
    most: list[int] = []

    class Slow:
        def look(self, data: bytes, name: str) -> str:
            now.append(name)
            sleep(0.02)
            most.append(len(now))
            now.remove(name)
            return name

    desk = Desk(cast(Partner, Slow()), started(), PLACE)
    with ThreadPoolExecutor(4) as visitors:
        list(visitors.map(desk.look, [[str(files / "cat.jpg")]] * 4))
    assert most == [1] * 4


def test_a_question_that_cannot_be_asked_leaves_the_session_as_it_was(partner: Partner) -> None:
    desk = Desk(partner, started(), PLACE)
    long = desk.fresh().asked("circle " * 40_000, [])
    assert "start afresh" in desk.refuse(long)[0]
    with pytest.raises(UserError, match="start afresh"):
        list(desk.answer(long))
    assert desk.refuse(desk.fresh().asked("Hi", [])) == []
    assert list(desk.answer(desk.fresh().asked("Hi", [])))


def test_without_gradio_the_way_to_it_is_told(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, call: Run
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    told = call("chat", f"model={run_folder}", "chat.ui=web")
    assert_one_message(told, "pip install 'openqwen2vl[ui]'")


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(call: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Before the model, which may take minutes, is looked for.
        told = call("chat", "model=/none", "chat.ui=web", f"chat.port={port}")
    assert_one_message(told, f"nothing can listen at 127.0.0.1, port {port}")


@pytest.fixture(scope="module")
def server(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started_server = Server(run_folder, tmp_path_factory.mktemp("server"), MOST)
    yield started_server
    if started_server.process.poll() is None:
        kill_tree(started_server.process.pid)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def attach(page: Any, file: Path) -> None:
    page.set_input_files("#question input[type=file]", str(file))


def ask(page: Any, text: str) -> None:
    page.fill("#question textarea", text)
    page.press("#question textarea", "Enter")


@pytest.mark.slow
def test_a_picture_is_uploaded_asked_about_and_answered_in_a_browser(
    server: Server, browser: Any, partner: Partner, files: Path, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(server.address)
    attach(page, files / "cat.jpg")
    page.wait_for_selector("#question .thumbnail-item")
    ask(page, "What is it?")
    cat = partner.look((files / "cat.jpg").read_bytes(), "cat.jpg")
    expected = "".join(partner.answer(started().asked("What is it?", [cat])))
    page.wait_for_function(
        "text => document.querySelector('#talk').textContent.includes(text)", arg=expected.strip()
    )
    page.screenshot(path=tmp_path / "answer.png")
    colors = np.asarray(Image.open(tmp_path / "answer.png").convert("RGB")).reshape(-1, 3)
    for color in cat.pixels.reshape(-1, 3)[[0, 42 * 84 + 50]].numpy():
        assert (np.abs(colors.astype(int) - color).max(axis=1) < 12).sum() > 100

    other = browser.new_page()
    other.goto(server.address)
    ask(other, "Who?")
    own = "".join(partner.answer(started().asked("Who?"))).strip()
    other.wait_for_function(
        "text => document.querySelector('#talk').textContent.includes(text)", arg=own
    )
    assert "What is it?" not in other.inner_text("#talk")
    assert "Who?" not in page.inner_text("#talk")
    other.close()

    attach(page, files / "words.png")
    page.wait_for_selector("#question .thumbnail-item, #question .file")
    ask(page, "And this?")
    page.wait_for_selector("#note p[role=alert] >> text=words.png cannot be shown")
    page.wait_for_timeout(1000)  # until what follows a question had its time
    assert page.is_visible("#note p[role=alert]")
    assert "And this?" not in page.inner_text("#talk")
    assert "What is it?" in page.inner_text("#talk")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "refused.png")

    page.click("text=New conversation")
    page.wait_for_function("!document.querySelector('#talk').textContent.includes('What is it?')")
    attach(page, files / "large.png")
    page.wait_for_selector("text=/exceed/i")
    hosts = {urlsplit(url).netloc for url in requested if url.startswith(("http", "ws"))}
    assert hosts == {urlsplit(server.address).netloc}
    page.close()


@pytest.mark.slow
def test_the_server_is_closed_to_all_but_its_page(server: Server) -> None:
    assert urlsplit(server.address).hostname == "127.0.0.1"
    assert server.status("") == 200
    for file in ("/etc/passwd", str(Path(__file__)), str(server.log)):
        assert server.status(f"gradio_api/file={file}") == 403
    assert server.status("", Host="evil.example") == 400
    with urlopen(server.address, timeout=30) as reply:
        assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert server.log.read_text() == ""


@pytest.mark.slow
def test_what_the_page_would_not_ask_is_refused_past_it_too(server: Server, files: Path) -> None:
    cat = files / "cat.jpg"
    for file in ("/etc/passwd", str(cat), "http://example.com/cat.png", "/dev/zero"):
        assert server.ask(file) == (403, "a file was named that was not uploaded here")
    assert not list(server.uploads.rglob("passwd"))
    assert server.upload(cat, Origin="http://evil.example")[0] == 403
    assert server.upload(files / "large.png")[0] == 413
    assert server.upload(*[files / "large.png"] * 3)[0] == 413
    status, uploaded = server.upload(cat)
    assert status == 200
    status, shown = server.ask(*json.loads(uploaded))
    assert status == 200
    assert "gradio_api/file=" in shown
    assert server.log.read_text() == ""


@pytest.mark.slow
def test_ctrl_c_ends_the_server_and_takes_the_uploads_with_it(server: Server, browser: Any) -> None:
    page = browser.new_page()
    page.goto(server.address)
    page.wait_for_selector("#question textarea")  # and it stays open, as pages do
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert not list(server.uploads.rglob("*.jpg")) + list(server.uploads.glob("tmp*"))
    assert "Traceback" not in server.told.read_text()
    page.close()
