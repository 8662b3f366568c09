"""The terminal's side of a chat: lines in, an answer out as it is made."""

import importlib
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from rich.console import Console

from openqwen2vl.formats.errors import ImageError, UserError
from openqwen2vl.release.conversation import Conversation, Partner, Picture

_HELP = """\
/image PATH ...   show one or several pictures with the next question; quote paths with spaces
                  (so do their whole paths alone, as a file dragged into the terminal gives them)
/reset            forget the conversation and start afresh
/help             this list
/quit             leave (so does Ctrl-D); Ctrl-C stops an answer
A question that begins with a slash wants a space before it."""
_PROMPT = "> "
_PASTE = "set enable-bracketed-paste on"
# A model may say anything, also what would move a terminal's cursor or change its title.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class Terminal:
    """A conversation in a terminal, or over pipes: a question a line, answers on stdout.

    Attributes:
        answers: what was asked, shown and answered so far, in plain JSON.
    """

    def __init__(self, partner: Partner, start: Conversation, shown: Sequence[Picture]) -> None:
        """Begin.

        Args:
            partner: who answers.
            start: where ``/reset`` comes back to.
            shown: pictures of the first question.
        """
        self.answers: list[dict[str, object]] = []
        self._partner, self._start, self._talk = partner, start, start
        self._shown = list(shown)
        self._notes = Console(stderr=True)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks an answer's letters
            sys.stdout.reconfigure(errors="replace")

    def ask(self, text: str) -> None:
        """Ask, and write the answer as it comes; Ctrl-C stops it where it is.

        Raises:
            UserError: as of ``Partner.answer``; the question was not asked then.
        """
        talk = self._talk.asked(text, self._shown)
        said, stopped = "", False
        try:
            with closing(self._partner.answer(talk)) as pieces:
                with self._notes.status("reading"):
                    first = next(pieces, "")
                for piece in _chained(first, pieces):
                    said += piece
                    self._write(piece)
        except KeyboardInterrupt:
            stopped = True
        self._write("\n")
        names = [picture.name for picture in self._shown]
        self.answers.append({"question": text, "images": names, "answer": said, "stopped": stopped})
        self._talk, self._shown = talk.answered(said), []
        if stopped:
            self._note("stopped; the conversation goes on from here")

    def converse(self) -> None:
        """Take lines until they end, or someone wants to leave."""
        talking = sys.stdin.isatty() and sys.stdout.isatty()
        if talking:
            self._note(f"{self._partner.name}, {self._partner.grid**2} tokens a picture; /help")
            with suppress(ImportError):  # arrow keys and earlier lines, where there is the library
                # A paste of several lines is one question; its newlines ask nothing yet.
                importlib.import_module("readline").parse_and_bind(_PASTE)
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        while True:
            try:
                line = input(_PROMPT if talking else "")
                if not self._take(line.strip("\n\r"), talking):
                    return
            except EOFError:
                if talking:
                    self._write("\n")
                return
            except KeyboardInterrupt:
                if not talking:
                    return
                self._write("\n")
                self._note("Ctrl-D leaves")

    def _take(self, line: str, talking: bool) -> bool:
        """Do what a line says; tells whether to go on."""
        command, _, rest = line.partition(" ")
        try:
            if not line.strip():
                return True
            if talking and _dropped(line.strip()):
                self._show(line.strip())
            elif not line.startswith("/"):
                self.ask(line.strip())
                if talking:
                    self._write("\n")
            elif command in ("/quit", "/exit"):
                return False
            else:
                self._obey(command, rest.strip())
        except UserError as error:
            self._note(str(error))
        return True

    def _obey(self, command: str, rest: str) -> None:
        if command == "/help":
            self._note(_HELP)
        elif command == "/reset":
            self._talk, self._shown = self._start, []
            self._note("a new conversation")
        elif command == "/image":
            self._show(rest)
        else:
            self._note(f"no command {command}; /help lists those there are")

    def _show(self, rest: str) -> None:
        if not rest:
            self._note("/image wants one or several paths")
        for path in split_paths(rest):
            try:
                self._shown.append(read_picture(self._partner, path))
            except ImageError as error:
                self._note(str(error))
        if self._shown:
            names = ", ".join(picture.name for picture in self._shown)
            self._note(f"with the next question: {names}")

    def _write(self, text: str) -> None:
        # Past rich, which would turn tabs into spaces.
        sys.stdout.write(text.translate(_CONTROL))
        sys.stdout.flush()

    def _note(self, text: str) -> None:
        self._notes.print(text, style="dim", soft_wrap=True, highlight=False, markup=False)


def split_paths(text: str) -> list[str]:
    """Split a line into paths as a shell does; one that is a whole file's is not split.

    Args:
        text: ``a.png 'my cat.png'``, or ``my cat.png`` where there is such a file.
    """
    if _file(text) is not None:
        return [text]
    try:
        return shlex.split(text)
    except ValueError:  # a quote that does not end
        return [text]


def _dropped(text: str) -> bool:
    """Tell whether a line is but whole paths of files: what a terminal types for dragged ones."""
    paths = split_paths(text)
    return all(Path(path).is_absolute() and _file(path) is not None for path in paths)


def find_picture(path: str) -> Path:
    """Give the file at a path.

    Raises:
        ImageError: there is none.
    """
    file = _file(path)
    if file is None:  # nor a device that never ends
        raise ImageError(f"{path} cannot be shown: there is no such file")
    return file


def read_picture(partner: Partner, path: str) -> Picture:
    """Read and decode a picture.

    Raises:
        ImageError: no such file, or it is no picture that can be shown.
    """
    file = find_picture(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror})") from error
    return partner.look(data, file.name)


def _file(path: str) -> Path | None:
    """Give the file at a path; a name too long, or nobody's home, is no file either."""
    try:
        file = Path(path).expanduser()
        return file if file.is_file() else None
    except (OSError, RuntimeError):
        return None


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
