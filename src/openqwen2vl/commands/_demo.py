"""The demo's stages, each as a user would run it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from openqwen2vl.commands._assemble import build_model
from openqwen2vl.corpus.build import CAPTION_SOURCES, CONVERSATION_SOURCE, CorpusSpec, build_corpus
from openqwen2vl.engine.local import map_shards
from openqwen2vl.evaluation.choices import Item, Judged, judge, read_items
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.templates import template
from openqwen2vl.formats.tokens import load_tokenizer, train_tokenizer
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder
from openqwen2vl.release.trained import load_model
from openqwen2vl.training.checkpoint import newest, read_facts

LOW, HIGH = 3, 6
TEMPLATE = "qwen2_5"
STAGES = {
    "corpus": "draw the corpus and the questions",
    "pack": "train the tokenizer and pack each source",
    "pretrain": "pre-train",
    "sft": "fine-tune",
    "answer": "let the model before, between and after training answer the questions",
}
QUESTIONS = ("multiple_choice", "yesno")


class Demo:
    """One demo in one folder.

    Args:
        config: of `conf/demo.yaml`.

    Attributes:
        out: the folder.
        seconds: of each stage that ran.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.out = Path(config.out)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Say that a stage begins and record how long it takes."""
        number = list(STAGES).index(stage) + 1
        said = f"demo, {number} of {len(STAGES)}: {STAGES[stage]}"
        Console().print(said, highlight=False, soft_wrap=True)
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started

    def draw(self) -> dict[str, int]:
        """Draw the corpus and the held-out questions; gives the number of samples of each."""
        with self.timed("corpus"):
            corpus = OmegaConf.to_container(self.config.corpus)
            assert isinstance(corpus, dict)
            spec = CorpusSpec(**{str(k): v for k, v in corpus.items()})
            cores = len(os.sched_getaffinity(0))
            return build_corpus(self.out, spec, partial(map_shards, workers=cores))

    def pack(self) -> dict[str, Manifest]:
        """Train the tokenizer on the training texts and pack every source for its grids."""
        with self.timed("pack"):
            tokenizer = train_tokenizer(self._texts(), self.config.vocab_size)
            tokenizer.save_pretrained(self.out / "tokenizer")
            tokenizer = load_tokenizer(str(self.out / "tokenizer"))
            split = self.config.low_part
            jobs = [(source, LOW, (0.0, split)) for source in CAPTION_SOURCES]
            jobs += [(source, HIGH, (split, 1.0)) for source in CAPTION_SOURCES]
            jobs.append((CONVERSATION_SOURCE, HIGH, (0.0, 1.0)))
            manifests = {}
            for source, grid, part in jobs:
                name = f"{source}-g{grid}"
                request = PackRequest(
                    input=self.out / "raw" / source,
                    out=self.out / "packs" / name,
                    source=source,
                    spec=make_spec(tokenizer, self.config.context, grid, TEMPLATE),
                    selection=Selection(part=part, validation=self.config.validation),
                )
                manifests[name] = pack_folder(request, tokenizer)
            return manifests

    def _texts(self) -> Iterator[str]:
        for source in (*CAPTION_SOURCES, CONVERSATION_SOURCE):
            for shard in raw_shards(self.out / "raw" / source):
                for document in read_raw_shard(shard, source):
                    if isinstance(document, Document):
                        yield from (turn.text for turn in document.turns)

    def train(self, stage: str) -> None:
        """Run a training stage as a user would.

        Raises:
            UserError: it failed; its own message stands above.
        """
        words = [f"stage={stage}", f"experiment=demo_{stage}", f"hydra.run.dir={self.out / stage}"]
        words += [f"packs_root={self.out / 'packs'}", f"tokenizer={self.out / 'tokenizer'}"]
        if stage == "sft":
            words.append(f"init_from={self.out / 'pretrain'}")
        with self.timed(stage):
            command = [sys.executable, "-m", "openqwen2vl", "train", *words]
            code = subprocess.run(command, check=False).returncode
        if code:
            raise UserError(f"the demo's {stage} ended with code {code}; its message is above")

    def models(self) -> Iterator[tuple[str, MLLM]]:
        """Give the model before any training, after pre-training and after fine-tuning."""
        facts = read_facts(newest(self.out / "pretrain"))
        untrained = build_model(OmegaConf.create(facts["model"]), facts["vocab_size"])
        untrained.projector.grid = HIGH
        yield "before", untrained
        yield "pretrained", load_model(self.out / "pretrain")[0]
        yield "after", load_model(self.out / "sft")[0]

    def items(self, name: str) -> list[Item]:
        """Give a set of held-out questions."""
        return read_items(self.out / "questions" / f"{name}.jsonl")

    def answer(self) -> dict[str, dict[str, list[Judged]]]:
        """Let every model answer every set; multiple choice a second time by letters.

        Returns:
            By model, then by set: ``multiple_choice``, ``yesno``, ``letters``.
        """
        tokenizer = load_tokenizer(str(self.out / "tokenizer"))
        layout = template(TEMPLATE)
        answers: dict[str, dict[str, list[Judged]]] = {}
        with self.timed("answer"):
            for name, model in self.models():
                model.eval()
                answers[name] = {
                    kind: judge(model, self.items(kind), tokenizer, layout) for kind in QUESTIONS
                }
                answers[name]["letters"] = judge(
                    model, self.items("multiple_choice"), tokenizer, layout, letters=True
                )
        return answers
