"""A chat's server in a process of its own, and what it asks the world outside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from support.runs import environment

# Notes every address outside this machine that the server looks up or connects to.
WATCHED = """
import socket, sys
log = open(sys.argv.pop(1), "a", buffering=1)
def noted(name, inside):
    def call(*words):
        place = words[0] if name == "getaddrinfo" else words[1]
        host = place[0] if isinstance(place, tuple) else place
        if host not in (None, "127.0.0.1", "::1", "localhost", "0.0.0.0"):
            log.write(f"{name} {host}\\n")
        return inside(*words)
    return call
socket.getaddrinfo = noted("getaddrinfo", socket.getaddrinfo)
class Watched(socket.socket):
    connect = noted("connect", socket.socket.connect)
socket.socket = Watched
from openqwen2vl.__main__ import main
sys.exit(main())
"""


class Server:
    """A chat's server in a process of its own, and what it asked the world outside."""

    def __init__(self, run: Path, folder: Path, most: int) -> None:
        self.log = folder / "asked_outside"
        self.log.touch()
        self.told, self.uploads = folder / "stderr", folder / "tmp"
        self.uploads.mkdir()
        (self.uploads / "gradio").touch()  # its usual folder is another user's
        words = [f"model={run}", "chat.ui=web", "chat.port=0", f"max_new_tokens={most}"]
        words += ["chat.max_upload_mb=1", "chat.max_images=2"]
        with self.told.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WATCHED, str(self.log), "chat", *words],
                env={**environment(), "TMPDIR": str(self.uploads)},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if "http" in line), "")
        self.address = next(word for word in line.split() if word.startswith("http"))

    def status(self, path: str, **headers: str) -> int:
        """Ask for a path; gives the status."""
        return self._reply(Request(self.address + path, headers=headers))[0]

    def ask(self, *files: str) -> tuple[int, str]:
        """Ask about files past the page, as any program can; gives status and reply."""
        with urlopen(f"{self.address}config", timeout=30) as reply:
            first = json.load(reply)["dependencies"][0]["id"]
        named = [{"path": file, "meta": {"_type": "gradio.FileData"}} for file in files]
        words: dict[str, Any] = {"fn_index": first, "session_hash": "forged"}
        words["data"] = [{"text": "What?", "files": named}, None]
        return self.send("gradio_api/run/predict", json.dumps(words).encode(), "application/json")

    def upload(self, *files: Path, **headers: str) -> tuple[int, str]:
        """Upload files in one request, past the page; gives status and reply."""
        part = '--XX\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
        parts = [part.format(file.name).encode() + file.read_bytes() for file in files]
        body = b"\r\n".join([*parts, b"--XX--\r\n"])
        kind = "multipart/form-data; boundary=XX"
        return self.send("gradio_api/upload", body, kind, **headers)

    def send(self, path: str, body: bytes, kind: str, **headers: str) -> tuple[int, str]:
        """Send a body; gives status and reply."""
        told = {"Content-Type": kind, **headers}
        return self._reply(Request(self.address + path, body, told))

    def _reply(self, request: Request) -> tuple[int, str]:
        try:
            with urlopen(request, timeout=30) as reply:
                return int(reply.status), reply.read().decode(errors="replace")
        except HTTPError as error:
            return error.code, error.read().decode(errors="replace")
