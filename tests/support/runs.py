"""Small packed corpora and real training runs of the tiny model, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder
from openqwen2vl.training.csv_log import read_rows
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard

Run = Callable[..., tuple[int, str, str]]
"""Calls a command in this process: words to exit code, stdout and stderr."""

# What a resumed or otherwise factorised run must repeat; the others are times.
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "images", "grid")

TINY_MODEL = (
    "model=tiny",
    "vision.overrides.embed_dim=32",
    "vision.overrides.depth=3",
    "vision.overrides.num_heads=2",
    "llm.config.hidden_size=32",
    "llm.config.intermediate_size=64",
    "llm.config.num_hidden_layers=2",
    "llm.config.num_attention_heads=2",
    "llm.config.num_key_value_heads=1",
)


@dataclass(frozen=True)
class PackedCorpora:
    """Sources packed at grids 3 and 6 for one context, and their tokenizer.

    ``red`` and ``blue`` hold captions, ``text`` conversations without images.
    """

    root: Path
    tokenizer: Path

    def packs(self, source: str, grid: int) -> Path:
        """Give the pack folder of a source at a grid."""
        return self.root / "packs" / f"{source}-g{grid}"

    def mixture(self, grids: Sequence[int] = (3, 6)) -> list[str]:
        """Give the overrides that name both sources at these grids."""
        return [
            f"+mixture.sources.{source}.packs=[{','.join(str(self.packs(source, g)) for g in grids)}]"
            for source in ("red", "blue")
        ]


def build_corpora(
    root: Path, documents: int = 48, context: int = 256, template: str = "qwen2_5"
) -> PackedCorpora:
    """Write raw shards and pack them; sizes do not divide by the batches used in tests."""
    tokenizer_folder = root / "tokenizer"
    tokenizer = tiny_tokenizer(tokenizer_folder)
    parts = {3: (0.0, 0.6), 6: (0.6, 1.0)}
    raw_root = root / "raw"
    write_caption_shard(raw_root / "red" / "00000.tar", documents, seed=0)
    write_caption_shard(raw_root / "blue" / "00000.tar", documents + 13, seed=1)
    write_conversation_shard(raw_root / "text" / "00000.tar", documents, seed=2, max_images=0)
    for raw in sorted(raw_root.iterdir()):
        source = raw.name
        for grid, part in parts.items():
            request = PackRequest(
                input=raw,
                out=root / "packs" / f"{source}-g{grid}",
                source=source,
                spec=make_spec(tokenizer, context, grid, template),
                selection=Selection(part=part, validation=0.1),
            )
            pack_folder(request, tokenizer)
    return PackedCorpora(root, tokenizer_folder)


def environment() -> dict[str, str]:
    """Give the environment of a run: one thread, no GPU, no network."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


def one_gpu() -> dict[str, str]:
    """Give the variable by which a run sees the first of this process's GPUs."""
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}


def command(corpora: PackedCorpora, run_dir: Path, overrides: Mapping[str, object]) -> list[str]:
    """Give the command line of a small run."""
    settings: dict[str, object] = {
        "stage": "pretrain",
        "mixture": "empty",
        "tokenizer": corpora.tokenizer,
        "resolution": "tiny_low_to_high",
        "hydra.run.dir": run_dir,
        "data.global_batch": 4,
        "data.micro_batch": 2,
        "data.num_workers": 0,
        "budget.steps": 10,
        "optim.lr": 0.01,
        "logger": "csv",
        "callbacks.checkpoints.every_n_steps": 1,
        "callbacks.checkpoints.keep": 100,
        **overrides,
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "openqwen2vl", "train", *TINY_MODEL, *words, *corpora.mixture()]


def train(
    corpora: PackedCorpora, run_dir: Path, **overrides: object
) -> subprocess.CompletedProcess[str]:
    """Run to the end; the caller looks at the exit code."""
    words = command(corpora, run_dir, {k.replace("__", "."): v for k, v in overrides.items()})
    return subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Read metrics.csv, only the columns that runs must agree on."""
    _, found = read_rows(run_dir / "metrics.csv")
    return [{key: row[key] for key in EXACT} for row in found]


def kill_when(words: list[str], run_dir: Path, step: int) -> None:
    """Start a run and kill its whole tree with SIGKILL once ``step`` is in metrics.csv."""
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while len(read_rows(run_dir / "metrics.csv")[1]) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    kill_tree(process.pid)
    process.wait()


def kill_tree(root: int) -> None:
    """Kill a process and all below it; stopped first, so that none can start another."""
    pids = _tree(root)
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    for pid in _tree(root):
        _send(pid, signal.SIGKILL)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _tree(root: int) -> list[int]:
    """List a process and its descendants, over session borders (torchrun makes new ones)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def assert_one_message(told: tuple[int, str, str], *parts: str) -> None:
    """Exit code 2 and one short message without a traceback."""
    code, out, err = told
    assert code == 2
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) <= 12
    for part in parts:
        assert part in err
        assert err.count(part) == 1
