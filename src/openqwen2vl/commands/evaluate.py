"""Ask a model the questions of benchmarks, and score its answers under a named protocol."""

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig

from openqwen2vl.commands._evaluate_answers import ask, ask_in_processes
from openqwen2vl.commands._evaluate_config import GENERATE, SCHEMA, SCORE, chosen, folder, steps
from openqwen2vl.commands._evaluate_scores import score, show_downloads
from openqwen2vl.commands._evaluate_words import reword
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark, Reading
from openqwen2vl.evaluation.predictions import NAME
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.training.launch import launched, leave, rank, world_size

__all__ = ["SCHEMA", "reword", "run"]


def run(config: DictConfig) -> Mapping[str, object]:
    """Generate, score, or both; several processes are started here unless a launcher did.

    Returns:
        The files of answers and what each ``scores.json`` says, by benchmark; with ``fetch``, the
        commands that download.
    """
    benchmarks = chosen(config)
    if config.fetch:
        return {"fetch": show_downloads(benchmarks, folder(config.data_root or "benchmarks"))}
    if SCORE in steps(config):
        # Known before hours of asking, not after them.
        for needs in (one.needs for one in benchmarks if one.needs is not None):
            needs()
    trainer = config.trainer
    processes = world_size(trainer.accelerator, trainer.devices, trainer.num_nodes)
    if GENERATE in steps(config):
        # Read before a model is loaded and other processes start: most mistakes show here.
        readings = _read(config, benchmarks)
        if processes > 1 and not launched():
            ask_in_processes(config, processes)
        else:
            ask(config, processes, readings)
    scores = {}
    if SCORE in steps(config) and rank() == 0:
        scores = score(folder(config.out), benchmarks, config.protocol)
    leave(0)
    files = {one.name: str(folder(config.out) / one.name / NAME) for one in benchmarks}
    return {"predictions": files, "scores": scores}


def _read(
    config: DictConfig, benchmarks: Sequence[Benchmark]
) -> dict[str, tuple[Benchmark, Reading]]:
    found = {}
    for benchmark in benchmarks:
        try:
            reading = benchmark.read(folder(config.data_root))
        except ShardError as error:
            raise ShardError(f"{error}; fetch=true prints how the files are downloaded") from error
        found[benchmark.name] = benchmark, reading
    return found
