"""The benchmarks that there are, by name."""

from openqwen2vl.evaluation.benchmarks.ai2d import AI2D, AI2D_LIKELIHOOD
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.captions import COCO_CAPTIONS
from openqwen2vl.evaluation.benchmarks.mantis import MANTIS
from openqwen2vl.evaluation.benchmarks.mathvista import MATHVISTA
from openqwen2vl.evaluation.benchmarks.mmbench import MMBENCH
from openqwen2vl.evaluation.benchmarks.mmmu import MMMU
from openqwen2vl.evaluation.benchmarks.mmstar import MMSTAR
from openqwen2vl.evaluation.benchmarks.pope import POPE
from openqwen2vl.evaluation.benchmarks.realworldqa import REALWORLDQA
from openqwen2vl.evaluation.benchmarks.seedbench import SEEDBENCH
from openqwen2vl.evaluation.benchmarks.short_answers import (
    GQA,
    OKVQA,
    SHOTS,
    TEXTVQA,
    TEXTVQA_OCR,
    VIZWIZ,
    VQAV2,
    few_shot,
)
from openqwen2vl.formats.errors import ConfigError

_IN_CONTEXT = (GQA, VQAV2, OKVQA, VIZWIZ, TEXTVQA)
BENCHMARKS = {
    one.name: one
    for one in (
        MMMU,
        MMBENCH,
        SEEDBENCH,
        MMSTAR,
        AI2D,
        AI2D_LIKELIHOOD,
        TEXTVQA,
        TEXTVQA_OCR,
        MATHVISTA,
        POPE,
        REALWORLDQA,
        MANTIS,
        GQA,
        VQAV2,
        OKVQA,
        VIZWIZ,
        COCO_CAPTIONS,
        *(few_shot(one, shots) for one in _IN_CONTEXT for shots in (0, SHOTS)),
    )
}


def benchmark(name: str) -> Benchmark:
    """Give the benchmark of a name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark is '{name}'; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
