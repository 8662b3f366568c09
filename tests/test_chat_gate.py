"""The gate of the chat's page: which requests reach Gradio, and as what."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from openqwen2vl.commands._chat_config import Place
from openqwen2vl.commands._chat_gate import Gate

PLACE = Place("web", "127.0.0.1", 0, 1, 2)
ASK, UPLOAD = "/gradio_api/run/predict", "/gradio_api/upload"


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "cat.jpg").write_text("a picture")
    (tmp_path / "secret.png").write_text("not for visitors")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def send(
    uploads: Path, body: bytes, path: str = ASK, length: int | None = None, **headers: str
) -> tuple[int, bytes | None]:
    """Send a body in two parts; gives the status, and what came through."""
    came: list[bytes] = []
    statuses: list[int] = []
    parts = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:]},
    ]

    async def application(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            came.append(message["body"])
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return parts.pop(0)

    async def reply(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    told = {"host": "127.0.0.1:7860", "content-length": str(length or len(body)), **headers}
    lines = [(name.encode(), value.encode()) for name, value in told.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": lines}
    asyncio.run(Gate(application, uploads, PLACE)(scope, receive, reply))
    assert not parts, "who is still sending would find the line cut, and no answer"
    return statuses[0], b"".join(came) if came else None


def question(*paths: object) -> bytes:
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
    return json.dumps({"data": [{"text": "\u00e9\ud800", "files": files}, None]}).encode()


def test_a_question_about_uploaded_files_comes_through_as_it_is(uploads: Path) -> None:
    for body in (question(), question(f"{uploads}/a/cat.jpg"), question(f"{uploads}/b/../a/x")):
        status, came = send(uploads, body)
        assert status == 200
        assert json.loads(came or b"") == json.loads(body)
    assert send(uploads, b"", "/gradio_api/cancel") == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{}/../secret.png",
        "{}/link.png",
        "{}-beside/cat.jpg",
        "secret.png",
        "http://127.0.0.1:80/cat.png",
        "https://example.com/cat.png",
        "file://{}/a/cat.jpg",
        "/dev/zero",
        "~/cat.png",
        "{}/a/\0",
        "x" * 5000,
        7,
    ],
)
def test_files_that_were_not_uploaded_are_out_of_reach(uploads: Path, path: object) -> None:
    named = path.format(uploads) if isinstance(path, str) else path
    assert send(uploads, question(f"{uploads}/a/cat.jpg", named)) == (403, None)
    assert send(uploads, question(named), "/gradio_api/queue/join") == (403, None)


def test_two_readers_cannot_be_told_different_paths(uploads: Path) -> None:
    """Of a name given twice one reader may take the first and another the last."""
    body = b'{"path": "/etc/passwd", "path": "%s/a/cat.jpg"}' % str(uploads).encode()
    status, came = send(uploads, body)
    assert status == 200
    assert b"passwd" not in (came or b"")


def test_what_is_no_question_is_refused(uploads: Path) -> None:
    assert send(uploads, b"a=b") == (400, None)
    assert send(uploads, b"[" * 200_000) == (400, None)
    assert send(uploads, b"{}", length=3 * 10**6) == (413, None)
    assert send(uploads, b"{}", **{"content-length": ""}) == (411, None)


def test_uploads_are_as_large_as_a_questions_pictures_together(uploads: Path) -> None:
    data = b"--XX not JSON"
    assert send(uploads, data, UPLOAD) == (200, data)
    assert send(uploads, data, UPLOAD, length=2 * 10**6) == (200, data)
    assert send(uploads, data, UPLOAD, length=2_100_000) == (413, None)


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:7860", 200), ("http://evil.example", 403), ("null", 403)],
)
def test_other_sites_pages_are_not_heard(uploads: Path, origin: str, status: int) -> None:
    assert send(uploads, question(), origin=origin)[0] == status
    assert send(uploads, b"data", UPLOAD, origin=origin)[0] == status
