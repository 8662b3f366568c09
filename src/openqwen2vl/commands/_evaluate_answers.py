"""Puts a model, a Trainer and the benchmarks' questions together, and asks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from openqwen2vl.commands._evaluate_config import GENERATE, effort, folder, sampling
from openqwen2vl.curation.scorers.weights import DTYPES, weights_hash
from openqwen2vl.evaluation.asking import put
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark, Reading
from openqwen2vl.evaluation.generate import Answering, Questionnaire, generate
from openqwen2vl.evaluation.predictions import Answered, Header
from openqwen2vl.evaluation.protocols import protocol
from openqwen2vl.evaluation.subject import Subject
from openqwen2vl.evaluation.unfinished import Unfinished
from openqwen2vl.formats.errors import UserError
from openqwen2vl.release.trained import load_trained
from openqwen2vl.training.checkpoint import newest
from openqwen2vl.training.exit_note import USER_ERROR
from openqwen2vl.training.launch import leave_with_launcher, rank, spawn, tail_overrides
from openqwen2vl.training.strategy import ddp, single


def ask_in_processes(config: DictConfig, processes: int) -> None:
    """Ask in several processes on this machine and wait for them.

    Raises:
        UserError: the ranks said so (their message is above).
        RuntimeError: one of them crashed or was killed.
    """
    hydra = HydraConfig.get()
    overlays = [
        f"--config-dir={source.path}"
        for source in hydra.runtime.config_sources
        if source.provider == "command-line"
    ]
    overrides = [*hydra.overrides.task, f"only={GENERATE}", "json=false"]
    code = spawn(processes, ["evaluate", *overlays, *tail_overrides(overrides, Path())])
    if code == USER_ERROR:
        raise UserError("asking ended; the ranks' messages are above")
    if code:
        raise RuntimeError(
            "a rank crashed or was killed (out of memory?); what it said is above, and the same "
            "command goes on with the questions that are left"
        )


def ask(
    config: DictConfig, processes: int, readings: Mapping[str, tuple[Benchmark, Reading]]
) -> None:
    """Ask a model the questions of some benchmarks in this process (one rank of ``processes``).

    Args:
        config: of the command.
        processes: ranks in all.
        readings: benchmarks and their questions by name.
    """
    leave_with_launcher()
    trainer = _trainer(config, processes)
    subject = open_subject(folder(config.model.path), config.tokenizer, config.template)
    numbers = _narrow(subject, config.dtype, trainer.strategy.root_device)
    words = protocol(config.protocol)
    for name, (benchmark, reading) in readings.items():
        header = Header(
            benchmark=name,
            file_hash=reading.file_hash,
            n=len(reading.questions),
            protocol=words.name,
            protocol_version=words.version,
            template_hash=subject.template.hash,
            decoding=_decoding(config),
            model_hash=subject.hash,
            model=subject.name,
            dtype=numbers,
        )
        questions = Questionnaire(
            asked=put(reading.questions, partial(benchmark.prompt, protocol=words), subject),
            header=header,
            overwrite=config.overwrite,
        )
        store = Unfinished(folder(config.out) / name)
        with _progress(name) as report:
            answering = Answering(
                subject, questions, store, sampling(config), effort(config), report
            )
            answers = generate(trainer, answering)
        if rank() == 0:
            _tell(store.path, answers, reading.notes)


def open_subject(model: Path, tokenizer: str | None, template: str | None = None) -> Subject:
    """Open what can be asked; the one place that knows which forms of a model there are.

    Args:
        model: a run's folder, a checkpoint or a model folder.
        tokenizer: folder or hub name; None is where the model says it is.
        template: of its conversations, by name; None is what the model says.

    Raises:
        CheckpointError: nothing of that kind there.
    """
    trained = load_trained(model, tokenizer, template)
    # The same weights at another grid are another model.
    name = f"{weights_hash(trained.model.weights())}-g{trained.model.projector.grid}"
    trained.model.eval()
    return Subject(trained.model, trained.tokenizer, trained.template, str(newest(model)), name)


def _trainer(config: DictConfig, processes: int) -> pl.Trainer:
    on_cpu = config.trainer.accelerator == "cpu"
    strategy = ddp() if processes > 1 else single("cpu" if on_cpu else "auto")
    return instantiate(config.trainer, strategy=strategy, _convert_="all")  # type: ignore[no-any-return]


def _narrow(subject: Subject, dtype: str | None, device: torch.device) -> str:
    """Round the weights to the numbers that are reckoned in; gives their name."""
    name = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    # Not the buffers: rotary frequencies of 16 bits would move far positions.
    for weight in subject.model.parameters():
        weight.data = weight.data.to(DTYPES[name])
    return name


def _decoding(config: DictConfig) -> dict[str, Any]:
    if config.temperature == 0:
        return {"method": "greedy"}
    drawn = {"temperature": config.temperature, "top_p": config.top_p, "seed": config.seed}
    return {"method": "sampling", **drawn}


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far rank 0 is with its share."""
    if rank() != 0:
        yield lambda done, total: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell(where: Path, answers: Sequence[Answered], notes: Sequence[str]) -> None:
    told = [f"{len(answers):,} answers: {where}", *(f"note: {note}" for note in notes)]
    errors = [answer for answer in answers if answer.error is not None]
    if errors:
        told.append(
            f"note: {len(errors):,} questions could not be asked, the first is {errors[0].id}: "
            f"{errors[0].error}"
        )
    for line in told:
        Console().print(line, soft_wrap=True, highlight=False, markup=False)
