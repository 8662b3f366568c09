"""One seed of ``filtering.py``: corpus, scorer, curation, and a training of each arm."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from filtering_corpus import CLEAN, Web, write_pairs, write_questions
from filtering_curation import Pairs, keep, pack, score, separation, shares
from filtering_training import Recipe, held_out_loss, train, which_caption
from tiny_clip import ClipRecipe, train_clip

from openqwen2vl.evaluation.choices import Item, by_topic, read_items
from openqwen2vl.formats.tokens import load_tokenizer, train_tokenizer
from openqwen2vl.packing.request import make_spec

TEMPLATE = "qwen2_5"
BASELINE, OURS, BOUND = "unfiltered", "filtered", "oracle"
ASKED_SEED = 2026
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is drawn, trained and asked; the same for every seed.

    Attributes:
        pairs: of the corpus.
        held_out: pairs of the same web but of other pictures, to measure the scorer on.
        web: what becomes of captions.
        top: the share that the filter keeps.
        questions: held-out pictures with four captions each.
        clean: clean captions of held-out pictures, for the loss.
        vocabulary: of the tokenizer.
        clip: the scorer's training; its seed is replaced.
        recipe: each arm's training.
    """

    pairs: int = 8000
    held_out: int = 1500
    web: Web = field(default=Web(mismatched=0.5, clean=0.8))
    top: float = 0.4
    questions: int = 1000
    clean: int = 500
    vocabulary: int = 512
    clip: ClipRecipe = field(default=ClipRecipe(steps=180, batch=64, lr=1e-3, seed=0))
    recipe: Recipe = field(
        default=Recipe(steps=900, packs=1, context=512, grid=4, side=56, lr=2e-3)
    )

    @property
    def arms(self) -> dict[str, str]:
        """What each arm keeps, as curation's selections say it."""
        return {
            BASELINE: "all",
            OURS: f"top(clip_similarity, {self.top})",
            BOUND: "uids('matched')",
        }


@dataclass(frozen=True)
class Asked:
    """What every model is asked: the same for all seeds and arms, and seen by none of them."""

    items: list[Item]
    clean: Path

    @classmethod
    def write(cls, folder: Path, settings: Settings) -> "Asked":
        """Draw the held-out pictures with their captions."""
        write_pairs(folder / "clean", "clean", ASKED_SEED, settings.clean, CLEAN, held_out=True)
        items = read_items(write_questions(folder / "which", ASKED_SEED, settings.questions))
        return cls(items, folder / "clean")


class Seed:
    """One seed's corpus, scorer and trainings."""

    def __init__(self, root: Path, seed: int, settings: Settings) -> None:
        """Say what to do; ``root`` takes everything that is written."""
        self.root, self.seed, self.settings = root, seed, settings
        self.seconds: dict[str, float] = {}

    def measure(self, asked: Asked) -> dict[str, Any]:
        """Go from drawing to answers; gives all figures."""
        filtering = self._filter()
        tokenizer = self.root / "tokenizer"
        pairs = Pairs.read(self.root / "raw")
        texts = (sample.caption for sample in pairs.samples)
        train_tokenizer(texts, self.settings.vocabulary).save_pretrained(tokenizer)
        self._pack("clean", asked.clean)
        arms = {name: self._arm(name, asked) for name in self.settings.arms}
        return {"seed": self.seed, **filtering, "arms": arms, "processor_s": self.seconds}

    def _filter(self) -> dict[str, Any]:
        """Draw, train the scorer, score, select and reshard; labels are looked at afterwards."""
        settings, root = self.settings, self.root
        for name, count, held_out in (
            ("raw", settings.pairs, False),
            ("held", settings.held_out, True),
        ):
            self._timed(
                "draw", write_pairs, root / name, name, self.seed, count, settings.web, held_out
            )
        pairs, held = Pairs.read(root / "raw"), Pairs.read(root / "held")
        recipe = replace(settings.clip, seed=self.seed)
        losses = self._timed("clip", train_clip, pairs.samples, root / "clip", recipe)
        scores = self._timed("score", score, pairs, root / "clip", root / "scores")
        unseen = self._timed("score", score, held, root / "clip", root / "held_scores")
        kept = self._timed("select", keep, pairs, settings.arms, root)
        return {
            "auc": {"corpus": separation(pairs, scores), "held_out": separation(held, unseen)},
            "clip_loss": {"first": losses[0], "last": fmean(losses[-10:])},
            "kept": kept,
            "captions": {arm: shares(root / "shards" / arm) for arm in settings.arms},
        }

    def _arm(self, name: str, asked: Asked) -> dict[str, Any]:
        """Pack, train and ask."""
        self._pack(name, self.root / "shards" / name)
        packs = self.root / "packs"
        trained = self._timed("train", train, packs / name, self.settings.recipe, self.seed)
        loss = self._timed("answer", held_out_loss, trained, packs / "clean")
        tokenizer = load_tokenizer(str(self.root / "tokenizer"))
        judged = self._timed("answer", which_caption, trained, asked.items, tokenizer)
        return {
            "right": [one.right for one in judged],
            "topics": by_topic(judged),
            "clean_loss": loss,
            "train_loss": {"first": trained.losses[0], "last": fmean(trained.losses[-20:])},
            "tokens": trained.tokens,
            "targets": trained.targets,
            "documents": trained.documents,
        }

    def _pack(self, name: str, shards: Path) -> None:
        recipe = self.settings.recipe
        tokenizer = load_tokenizer(str(self.root / "tokenizer"))
        spec = make_spec(tokenizer, recipe.context, recipe.grid, TEMPLATE)
        self._timed("pack", pack, shards, self.root / "packs" / name, name, spec, tokenizer)

    def _timed(self, stage: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """Count processor time: other work on the machine counts little."""
        begin = time.process_time()
        done = work(*arguments)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - begin
        return done
