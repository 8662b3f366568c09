"""The sample answers of a run: each held-out document with what was said of it at which step."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from openqwen2vl.training.report.files import RunFiles

STYLE = """
.sample { display: grid; grid-template-columns: 8rem 1fr; grid-template-rows: auto 1fr;
  gap: .4rem 1.1rem; background: var(--panel); border-radius: .5rem; padding: .9rem;
  margin: .8rem 0; overflow-wrap: anywhere; }
.sample.bare { grid-template-columns: 1fr; }
.sample > * { min-width: 0; } .sample p { margin: 0 0 .3rem; max-width: none; }
.sample img { width: 100%; border-radius: .3rem; display: block; grid-row: span 2; }
.sample .said { display: grid; gap: .7rem; align-content: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 8.5rem), 1fr)); }
.said div { border-left: 2px solid var(--line); padding-left: .6rem; font-size: .92rem; }
.said div.right { border-color: var(--good); } .said small { color: var(--soft); display: block; }
@media (max-width: 36rem) { .sample { grid-template-columns: 5rem 1fr; gap: .6rem .8rem; }
  .sample img { grid-row: auto; } .sample .said { grid-column: 1 / -1; } }
"""
DOCUMENTS, ROUNDS = 12, 6
_LETTERS = 400


def documents(run: RunFiles) -> list[list[Mapping[str, Any]]]:
    """Group the samples by document, those asked last first; a few rounds of each, spread evenly."""
    by_uid: dict[str, list[Mapping[str, Any]]] = {}
    for sample in run.samples:
        by_uid.setdefault(str(sample.get("uid")), []).append(sample)
    found = sorted(by_uid.values(), key=lambda rounds: -rounds[-1]["step"])
    return [_spread(rounds) for rounds in found[:DOCUMENTS]]


def _spread(rounds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = len(rounds) - 1
    if last < ROUNDS:
        return list(rounds)
    return [rounds[round(number * last / (ROUNDS - 1))] for number in range(ROUNDS)]


def sample(rounds: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> str:
    """Draw one document: picture, question, wanted answer, and the answers of the rounds.

    Args:
        rounds: of one document, by step.
        pictures: by name; one that is not there is left empty.
    """
    newest = rounds[-1]
    data = pictures.get(str(newest.get("picture")))
    picture, style = "", "sample bare"
    if data is not None:
        encoded = base64.b64encode(data).decode()
        picture = f'<img src="data:image/jpeg;base64,{encoded}" alt="the document\'s picture">'
        style = "sample"
    question, wanted = _text(newest, "question"), _text(newest, "wanted")
    asked = f"<p><b>{escape(question)}</b></p>" if question else ""
    said = "".join(_said(one, wanted) for one in rounds)
    return (
        f'<article class="{style}">{picture}<div>{asked}<p><span class="soft">wanted</span> '
        f'{escape(wanted)}</p></div><div class="said">{said}</div></article>'
    )


def _said(one: Mapping[str, Any], wanted: str) -> str:
    given = _text(one, "given")
    style = ' class="right"' if given == wanted else ""
    return f"<div{style}><small>step {one['step']:,}</small>{escape(given) or '(nothing)'}</div>"


def _text(one: Mapping[str, Any], name: str) -> str:
    text = str(one.get(name) or "").strip()
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]}..."
