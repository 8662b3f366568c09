"""The page of a chat: what is on it, and what happens when someone asks."""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import Any

from openqwen2vl.commands._chat_config import Place
from openqwen2vl.formats.errors import ImageError, UserError
from openqwen2vl.release.conversation import Conversation, Partner, Picture

_VISIT_SECONDS = 24 * 3600
_WAITING = 16  # questions; who comes then is told to come back
_PAUSE = 0.1  # seconds between two states of an answer: a browser draws all of it each time
_MESSAGE = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Visit:
    """What one visitor has said; kept here and never taken from the browser.

    Attributes:
        talk: as the model reads it.
        messages: as the page shows it.
        before: the visit before a question that has no answer yet.
        stopped: set when the visitor wants no more of the answer.
    """

    talk: Conversation
    messages: tuple[_MESSAGE, ...] = field(default=())
    before: "Visit | None" = None
    stopped: Event = field(default_factory=Event)

    def asked(self, text: str, shown: Sequence[tuple[str, Picture]]) -> "Visit":
        """Add a question and the files of its pictures, in place of one without an answer."""
        before = self.before or self
        files = [
            {"role": "user", "content": {"path": path, "alt_text": picture.name}}
            for path, picture in shown
        ]
        talk = before.talk.asked(text, [picture for _, picture in shown])
        question = {"role": "user", "content": text}
        return Visit(talk, (*before.messages, *files, question), before)

    def answered(self, text: str) -> "Visit":
        """Add an answer, as far as it has come."""
        answer = {"role": "assistant", "content": text}
        messages = (*self.messages, answer)
        return Visit(self.talk.answered(text), messages, stopped=self.stopped)


class Desk:
    """Takes the visitors' questions one at a time, since there is one model."""

    def __init__(self, partner: Partner, start: Conversation, place: Place) -> None:
        """Open.

        Args:
            partner: who answers.
            start: how each visitor's conversation begins.
            place: limits of what may be brought.
        """
        self._partner, self._start, self._place = partner, start, place
        self._lock, self._looking = Lock(), Lock()
        self._pieces: Generator[str, None, None] = _silence()

    def fresh(self) -> Visit:
        """Give the visit of somebody who has said nothing yet."""
        return Visit(self._start)

    def look(self, files: Sequence[str]) -> tuple[list[tuple[str, Picture]], list[str]]:
        """Decode what was uploaded; a file that is no picture is deleted.

        Returns:
            Paths and pictures, and what to say about the others.
        """
        shown, told = [], []
        for number, path in enumerate(files):
            if number >= self._place.max_images:
                told.append(f"{Path(path).name} is one too many: {self._place.max_images} pictures")
                continue
            try:
                with self._looking:  # a picture may take 2 GB while it is decoded
                    found = self._partner.look(Path(path).read_bytes(), Path(path).name)
                shown.append((path, found))
            except ImageError as error:
                Path(path).unlink(missing_ok=True)
                told.append(str(error))
        return shown, told

    def refuse(self, asked: Visit) -> list[str]:
        """Say why a question cannot be asked, or nothing."""
        try:
            self._partner.prompt(asked.talk)
        except UserError as error:
            return [str(error)]
        return []

    def answer(self, visit: Visit) -> Iterator[Visit]:
        """Give the visit with more and more of the answer, until the visitor stops it.

        Raises:
            UserError: as of ``Partner.answer``.
        """
        said, pieces = "", self._partner.answer(visit.talk)
        with self._lock:
            # Whoever left without a word may have left an answer open, and the model in it.
            self._pieces.close()
            self._pieces = pieces
        try:
            last = 0.0
            while (piece := self._next(pieces, visit)) is not None:
                said += piece
                if monotonic() - last >= _PAUSE:
                    last = monotonic()
                    yield visit.answered(said)
            if self._pieces is pieces and not visit.stopped.is_set():
                yield visit.answered(said)
        finally:
            with self._lock:
                pieces.close()

    def _next(self, pieces: Generator[str, None, None], visit: Visit) -> str | None:
        with self._lock:
            if visit.stopped.is_set() or self._pieces is not pieces:
                return None
            return next(pieces, None)


def _silence() -> Generator[str, None, None]:
    yield from ()


def library() -> Any:
    """Import Gradio, told to keep to itself.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # kept in the browser, or with its makers' hub
    if "gradio" not in sys.modules:
        # It remembers from its import on where to write: else to one folder of all users, which
        # only the first of them may write to.
        own = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, own, ignore_errors=True)
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise UserError(
            "chat.ui=web needs Gradio, which is not installed; run: pip install "
            "'openqwen2vl[ui]', or leave chat.ui=web away"
        ) from error


def build_page(partner: Partner, start: Conversation, place: Place) -> Any:
    """Give the page as Gradio's ``Blocks``."""
    gradio = library()
    desk = Desk(partner, start, place)
    with gradio.Blocks(
        title=f"{partner.name} - openqwen2vl",
        analytics_enabled=False,
        fill_height=True,
        delete_cache=(3600, _VISIT_SECONDS),
    ) as page:
        visit = gradio.State(None, time_to_live=_VISIT_SECONDS)
        # Plain text on both sides: an answer is shown as it was given, and loads nothing.
        shown = gradio.Chatbot(
            label=partner.name, render_markdown=False, scale=1, buttons=["copy"], elem_id="talk"
        )
        note = gradio.HTML(elem_id="note")
        box = gradio.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            placeholder="Add pictures with the paper clip, and ask",
            show_label=False,
            autofocus=True,
            max_plain_text_length=100_000,
            elem_id="question",
        )
        with gradio.Row():
            stop = gradio.Button("Stop")
            new = gradio.Button("New conversation")
        _connect(desk, box, (visit, shown, note), stop, new, gradio.skip())
    return page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)


def _connect(
    desk: Desk, box: Any, page: tuple[Any, Any, Any], stop: Any, new: Any, same: Any
) -> None:
    visit = page[0]

    def take(given: dict[str, Any], before: Visit | None) -> tuple[Any, ...]:
        halt(before)  # who asks again has heard enough of the last answer
        before = before or desk.fresh()
        text, files = given["text"].strip(), given["files"]
        shown, told = desk.look(files)
        if not told and not text:
            told = ["ask something about it" if files else "ask something"]
        asked = before.asked(text, shown)
        told = told or desk.refuse(asked)
        if told:
            kept = {"text": text, "files": [path for path, _ in shown]}
            return (kept, *_seen(before, told))
        return ({"text": "", "files": []}, *_seen(asked))

    def answer(asked: Visit | None) -> Iterator[tuple[Any, ...]]:
        yield (same,) * len(page)  # of who gives nothing at all, Gradio clears talk and note
        if asked is None or asked.before is None:
            return
        try:
            for after in desk.answer(asked):
                yield _seen(after)
        except UserError as error:
            yield _seen(asked.before, [str(error)])

    def halt(going: Visit | None) -> None:
        if going is not None:
            going.stopped.set()

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    # Only answers wait in the queue. They are stopped by a word of ours: Gradio's own way to
    # cancel leaves a question that runs in a thread, and all that wait behind it, hanging.
    taken = box.submit(take, [box, visit], [box, *page], queue=False, **quiet)
    taken.then(answer, [visit], list(page), **quiet)
    stop.click(halt, [visit], None, queue=False, **quiet)
    for forget in (new.click, page[1].clear):
        halted = forget(halt, [visit], None, queue=False, **quiet)
        halted.then(lambda: _seen(desk.fresh()), None, list(page), queue=False, **quiet)


def _seen(visit: Visit, told: Sequence[str] = ()) -> tuple[Visit, list[_MESSAGE], str]:
    """Give the visit, its messages, and notes that cannot become markup."""
    notes = "".join(f"<p role='alert'>{escape(note)}</p>" for note in told)
    return visit, list(visit.messages), notes
