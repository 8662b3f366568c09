"""lmms-eval's own tasks on local files: what they ask, and what they make of an answer."""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmms_eval.tasks
import pandas as pd
import pytest
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.tasks._task_utils import mmmu_mcq_utils
from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator
from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator
from lmms_eval.utils import load_yaml_config

Doc = dict[str, Any]
_FOLDER = Path(lmms_eval.tasks.__file__).parent


@dataclass(frozen=True)
class Counterpart:
    """The task of theirs that a benchmark of ours stands for.

    Attributes:
        file: its task file, below their folder of tasks.
        split: the evaluated split.
        metrics: their names of metrics to ours; the first is that of one answer.
        percent: what a metric of theirs must be multiplied with.
        options: changes of what its prompts are made with.
    """

    file: str
    split: str
    metrics: Mapping[str, str]
    percent: float = 100.0
    options: Mapping[str, Any] = field(default_factory=dict)


_MATCH = {"exact_match": "accuracy"}
_POPE = {f"pope_{name}": name for name in ("accuracy", "precision", "recall")}
COUNTERPARTS = {
    "mmmu": Counterpart("mmmu/mmmu_val.yaml", "validation", {"mmmu_acc": "accuracy"}),
    "mmbench": Counterpart(
        "mmbench/mmbench_en_dev_static.yaml", "dev", {"gpt_eval_score": "circular"}, percent=1.0
    ),
    "seedbench": Counterpart("seedbench/seedbench.yaml", "test", {"seed_image": "accuracy"}),
    "mmstar": Counterpart("mmstar/mmstar.yaml", "val", {"average": "macro"}),
    "ai2d": Counterpart("ai2d/ai2d.yaml", "test", _MATCH),
    "textvqa": Counterpart("textvqa/textvqa_val.yaml", "validation", _MATCH),
    "textvqa_ocr": Counterpart(
        "textvqa/textvqa_val.yaml", "validation", _MATCH, options={"ocr": True}
    ),
    "mathvista": Counterpart(
        "mathvista/mathvista_testmini_format.yaml",
        "testmini",
        {"llm_as_judge_eval": "accuracy"},
        percent=1.0,
    ),
    "pope": Counterpart("pope/pope.yaml", "test", {**_POPE, "pope_f1_score": "f1"}),
    "realworldqa": Counterpart("realworldqa/realworldqa.yaml", "test", _MATCH),
    "mantis": Counterpart("mantis/mantis.yaml", "test", {"mantis_score": "accuracy"}),
    "gqa": Counterpart("gqa/gqa.yaml", "testdev", _MATCH),
    "vqav2": Counterpart("vqav2/vqav2_val.yaml", "validation", _MATCH),
    "okvqa": Counterpart("ok_vqa/ok_vqa_val2014.yaml", "val2014", _MATCH),
    "vizwiz": Counterpart("vizwiz_vqa/vizwiz_vqa_val.yaml", "val", _MATCH),
    "coco_captions": Counterpart("coco_cap/coco2014_cap_val.yaml", "val", {"coco_CIDEr": "cider"}),
}


class TheirTask:
    """A task of theirs on a local file.

    Args:
        benchmark: our name.
        path: the file.
        out: where its scripts may write what they like.
    """

    def __init__(self, benchmark: str, path: Path, out: Path) -> None:
        self.counterpart = COUNTERPARTS[benchmark]
        config = load_yaml_config(yaml_path=str(_FOLDER / self.counterpart.file))
        config.pop("process_docs", None)  # GQA's fetches its pictures
        files = {self.counterpart.split: str(path)}
        config |= {
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        self._task = ConfigurableMessagesTask(config=config, model_name="openqwen2vl")
        if self.counterpart.options:
            self._task.lmms_eval_specific_kwargs.update(self.counterpart.options)
        self._args = SimpleNamespace(output_path=str(out))
        self.docs: list[Doc] = list(self._task.test_docs_no_media())
        self.settings: dict[str, Any] = self._task.config.generation_kwargs

    def text(self, doc: Doc) -> str:
        """Give what a model of one text is asked."""
        return str(self._task.doc_to_text(doc))

    def content(self, number: int) -> list[dict[str, Any]]:
        """Give the parts of the user's turn that a chat model is asked."""
        (turn,) = self._task.doc_to_messages(self._task.test_docs()[number])
        return list(turn["content"])

    def result(self, doc: Doc, said: str) -> dict[str, Any]:
        """Give what they note of one answer, after their own filters."""
        doc = copy.deepcopy(doc)
        (kept,) = self._filtered([said], [doc])
        return dict(self._task.process_results(doc, [kept]))

    def worth(self, doc: Doc, said: str) -> float:
        """Give what one answer is worth, from 0 to 1: their figure of this one alone."""
        metric = next(iter(self.counterpart.metrics))
        result = self.result(doc, said)
        noted = result[metric]
        if metric == "gpt_eval_score":  # of a row; their figure counts whole questions
            known = {noted["index"]: noted["answer"]}
            row = pd.DataFrame([noted])
            return float(mmbench_evaluator.eval_sub_data(row, known, static_only=True))
        if metric == "llm_as_judge_eval":
            return float(noted["true_false"])
        return self.aggregate(metric, [result])

    def aggregate(self, metric: str, results: Sequence[Mapping[str, Any]]) -> float:
        """Give their figure of many answers."""
        function = self._task.aggregation()[metric]
        values = [copy.deepcopy(result[metric]) for result in results]
        try:
            found = function(values)
        except TypeError:
            found = function(values, args=self._args)
        return float(found or 0.0)  # MathVista says None for 0

    def _filtered(self, said: Sequence[str], docs: Sequence[Doc]) -> list[str]:
        kept = [[text] for text in said]
        for one in self._task._filters[0].filters:
            made = one() if isinstance(one, functools.partial | type) else one
            kept = made.apply(kept, docs)
        return list(kept)


class Chance:
    """Stands in for Python's `random` in MMMU's parser, and for MathVista's judge.

    Attributes:
        draws: the letter that is drawn; None draws one that no option has.
        judges: what the judge says an output means.
        used: how often either was asked.
    """

    def __init__(self) -> None:
        self.draws: str | None = None
        self.judges = ""
        self.used = 0

    def choice(self, letters: Sequence[str]) -> str:
        """Draw a letter."""
        self.used += 1
        return self.draws or "-"

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take their place."""

        def judge(_: MathVistaEvaluator, *args: object, **settings: object) -> str:
            self.used += 1
            return self.judges

        monkeypatch.setattr(mmmu_mcq_utils, "random", self)
        monkeypatch.setattr(MathVistaEvaluator, "get_chat_response", judge)
