"""The gate in front of the chat's page: for the page's own requests, about files uploaded to it."""

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openqwen2vl.commands._chat_config import Place

_READS = ("GET", "HEAD", "OPTIONS")
_UPLOAD = "/gradio_api/upload"
_MOST_WORDS = 2 * 10**6  # bytes of a question without its pictures
_AROUND = 10**4  # bytes of a picture's name and of what stands around it in an upload

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Gate:
    """Turns away what the page itself would never ask.

    Whoever speaks to Gradio without its page may name any path or address as the file of a
    question, and Gradio fetches it and shows it; another site's script may ask through the
    browser of whoever visits it; and of an upload Gradio limits each file, but not how many.
    """

    def __init__(self, app: Application, uploads: Path, place: Place) -> None:
        """Stand in front of an application.

        Args:
            app: takes what is let in.
            uploads: holds every file that a question may name.
            place: limits of what may be brought.
        """
        self._app, self._uploads = app, uploads.resolve()
        self._most_upload = place.max_images * (place.max_upload_mb * 10**6 + _AROUND)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        if scope["type"] == "http":
            upload = scope["path"].rstrip("/") == _UPLOAD
            fault = _fault(scope, self._most_upload if upload else _MOST_WORDS)
            if fault is not None:
                await _drain(receive)
                await _refuse(send, *fault)
                return
            if scope["method"] not in _READS and not upload:
                await self._ask(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _ask(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand on words whose files were uploaded here, as they were read and checked."""
        body = await _whole(receive)
        try:
            words = json.loads(body) if body else None
            allowed = all(self._uploaded(path) for path in _paths(words))
        except (ValueError, RecursionError):
            await _refuse(send, 400, "the page asks in JSON")
            return
        if not allowed:
            await _refuse(send, 403, "a file was named that was not uploaded here")
            return
        checked = [{"type": "http.request", "body": json.dumps(words).encode() if body else b""}]

        async def once() -> Message:
            return checked.pop() if checked else await receive()

        await self._app(scope, once, send)

    def _uploaded(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        try:
            return Path(path).resolve().is_relative_to(self._uploads)
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a zero byte
            return False


def _fault(scope: Message, most: int) -> tuple[int, str] | None:
    """Say what is wrong with a request before its body is read: a status and words."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    origin = headers.get(b"origin")  # of the page whose script asks, as browsers tell it
    own = (headers.get(b"host"), headers.get(b"x-forwarded-host"))
    if origin is not None and urlsplit(origin).netloc not in own:
        return 403, "asked by the page of another site"
    if scope["method"] in _READS:
        return None
    length = headers.get(b"content-length", "")
    if not length.isdecimal():
        return 411, "say how many bytes come"
    if int(length) > most:
        return 413, f"{int(length):,} bytes at once; at most {most:,} are taken"
    return None


async def _drain(receive: Receive) -> None:
    """Throw a body away: who is still sending does not listen to the answer yet."""
    while (await receive()).get("more_body", False):
        pass


async def _whole(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _paths(words: object) -> Iterator[object]:
    """Give whatever a question names as a path, at any depth."""
    if isinstance(words, dict):
        if "path" in words:
            yield words["path"]
        words = list(words.values())
    if isinstance(words, list):
        for word in words:
            yield from _paths(word)


async def _refuse(send: Send, status: int, why: str) -> None:
    text = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": text})
    await send({"type": "http.response.body", "body": why.encode()})
