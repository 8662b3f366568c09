"""The server of the chat's page: at one address, for its own page alone."""

import logging
import os
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from openqwen2vl.commands._chat_config import Place
from openqwen2vl.commands._chat_gate import Application, Gate, Message, Receive, Send
from openqwen2vl.commands._chat_web import build_page, library
from openqwen2vl.formats.errors import UserError
from openqwen2vl.release.conversation import Conversation, Partner

_OWN = ("127.0.0.1", "localhost", "::1", "[::1]")
_SHUTDOWN_SECONDS = 2
# The browser itself refuses whatever the page would fetch elsewhere: fonts, scripts, pictures that
# an answer names. Gradio's own scripts are partly inline.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; "
    "base-uri 'self'; form-action 'self'"
)
# Gradio offers to publish a shown picture on a site of its makers; the policy above stops that too.
_STYLE = """
#talk button[aria-label="Share"] { display: none; }
#note p { border-left: 4px solid #c2410c; padding-left: 0.6em; }
"""
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


def serve(partner: Partner, start: Conversation, place: Place) -> str:
    """Serve the page until Ctrl-C; says on stdout where it is.

    Args:
        partner: who answers.
        start: how each conversation begins.
        place: where to listen, and limits of what may be brought.

    Returns:
        The address.

    Raises:
        UserError: Gradio is not installed, or nothing can listen there.
    """
    import uvicorn

    with _listen(place) as listener, tempfile.TemporaryDirectory() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        app = _application(build_page(partner, start, place), place, port, Path(uploads))
        console = Console(soft_wrap=True, highlight=False)
        if place.host not in _OWN:
            console.print("anyone who reaches this machine may use the page: it has no password")
        console.print(f"chat with {partner.name}: {address} (Ctrl-C ends it)", markup=False)
        settings = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_SHUTDOWN_SECONDS
        )
        server = uvicorn.Server(settings)
        # Open pages are cut off at the end; uvicorn would tell each as a crash, with a traceback.
        logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave the same way
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return address


def free(place: Place) -> None:
    """Make sure that the page could be served there.

    Raises:
        UserError: nothing can listen there.
    """
    _listen(place).close()


def _listen(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    try:
        return socket.create_server((place.host, place.port), family=family)
    except OSError as error:
        raise UserError(
            f"nothing can listen at {place.host}, port {place.port} ({error.strerror}); give "
            "another chat.host or chat.port (chat.port=0 takes a free one)"
        ) from error


def _application(page: Any, place: Place, port: int, uploads: Path) -> Any:
    """Wrap the page in an application that answers nobody but the page."""
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    gradio = library()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, uploads=uploads, place=place)
    if place.host in _OWN:
        # Another site's name that leads to this machine is not let in.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_OWN))
    app.add_middleware(_Headers)
    local = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gradio.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=place.host,
        server_port=port,
        footer_links=[],
        show_error=False,
        max_file_size=place.max_upload_mb * 10**6,
        ssr_mode=False,
        enable_monitoring=False,
        css=_STYLE,
        theme=gradio.themes.Default(font=local[0], font_mono=local[1]),
    )


class _Headers:
    """Adds the headers to every answer; the answers themselves stream past."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)
