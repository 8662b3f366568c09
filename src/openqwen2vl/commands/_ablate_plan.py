"""Which jobs an ablation has, what each of them is, and which of them are done already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from openqwen2vl.commands import evaluate, train
from openqwen2vl.commands._ablate_words import mixtures_of, names_of, seeds_of, stage_words
from openqwen2vl.config import check, nearest
from openqwen2vl.evaluation.ablation.jobs import (
    PRETRAIN,
    SCORES,
    SFT,
    Job,
    check_unchanged,
    is_done,
)
from openqwen2vl.evaluation.benchmarks.known import benchmark
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.training.stream import PackedData

# Parts whose first weights a job's seed draws, where none are loaded.
_DRAWN = ("vision", "projector", "llm")
# What the ablation itself sets, stage by stage.
_OURS = {
    PRETRAIN: {
        *("mixture", "seed", "resume", "name", "run_dir", "json"),
        *(f"{part}.seed" for part in _DRAWN),
    },
    SFT: {"seed", "resume", "init_from", "name", "run_dir", "json"},
    "evaluate": {
        *("model", "benchmark", "data_root", "out", "protocol", "only", "fetch", "overwrite"),
        "json",
    },
}
# What changes no result: where things lie, how they are shown, how many processes share them.
_FREE = (
    *("name", "run_dir", "json", "resume", "init_from", "logger", "callbacks", "licences"),
    *("trainer", "packs_root", "tokenizer", "mixture", "data"),
)
# Likewise of evaluate; who is short of memory must not have to train again.
_FREE_ASKED = ("batch_size", "batch_tokens", "data.num_workers", "trainer.devices")
# Beside what repeats a key of the top level.
_FREE_DATA = (
    *("mixture", "resolution", "budget", "seed", "isolate", "micro_batch"),
    *("num_workers", "prefetch_factor", "pin_memory", "preflight", "decoder"),
)


@dataclass(frozen=True)
class Plan:
    """An ablation: mixtures x seeds, and what is done with each.

    Attributes:
        out: takes everything.
        mixtures: by name, the baseline first.
        seeds: of each mixture.
        benchmarks: that each job is scored on.
        data_root: where their files lie.
        protocol: of the evaluation.
        words: overrides of ``pretrain``, ``sft`` and ``evaluate``.
        overlays: flags that name the user's own config folders.
    """

    out: Path
    mixtures: Sequence[str]
    seeds: Sequence[int]
    benchmarks: Sequence[str]
    data_root: Path
    protocol: str
    words: Mapping[str, Sequence[str]]
    overlays: Sequence[str]

    @property
    def jobs(self) -> list[Job]:
        """Give all jobs; every mixture's first seed comes before any second."""
        return [Job(mixture, seed) for seed in self.seeds for mixture in self.mixtures]

    def train_words(self, job: Job, stage: str) -> list[str]:
        """Give the keys of `train` for a stage of a job."""
        folder = self.out / job.name
        ours = [f"seed={job.seed}", "resume=auto", f"hydra.run.dir={folder / stage}"]
        if stage == PRETRAIN:
            ours += [f"mixture={job.mixture}", *(f"{part}.seed={job.seed}" for part in _DRAWN)]
        else:
            ours.append(f"init_from={folder / PRETRAIN}")
        return [*self.words[stage], *ours]

    def evaluate_words(self, job: Job) -> list[str]:
        """Give the keys of `evaluate` for a job."""
        folder = self.out / job.name
        ours = [f"model={folder / SFT}", f"out={folder / SCORES}", f"data_root={self.data_root}"]
        named = [f"benchmark=[{','.join(self.benchmarks)}]", f"protocol={self.protocol}"]
        return [*self.words["evaluate"], *ours, *named]


def plan_of(config: DictConfig) -> Plan:
    """Read a plan from the command's config; nothing is opened.

    Raises:
        ConfigError: something that must be given is not, or makes no sense.
    """
    values = {**config, "mixture": config.mixture.names}
    missing = [key for key in ("mixture", "benchmarks", "data_root") if values[key] is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: must be given")
    mixtures = mixtures_of(config.mixture.names)
    baseline = mixtures[0] if config.baseline is None else str(config.baseline)
    if baseline not in mixtures:
        raise ConfigError(
            f"baseline is {baseline!r}{nearest(baseline, mixtures)}; expected one of the mixtures, "
            f"{', '.join(mixtures)}"
        )
    stages = {PRETRAIN: "pretrain", SFT: "sft", "evaluate": None}
    words = {key: stage_words(config[key], key, stage) for key, stage in stages.items()}
    for key, given in words.items():
        _leaves_ours(key, given)
    return Plan(
        out=Path(str(config.out)),
        mixtures=[baseline, *(name for name in mixtures if name != baseline)],
        seeds=seeds_of(config.seeds),
        benchmarks=names_of(config.benchmarks),
        data_root=Path(str(config.data_root)),
        protocol=str(config.protocol),
        words=words,
        overlays=overlays(),
    )


def overlays() -> list[str]:
    """Give the flags that name the user's own config folders, for other processes."""
    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={one.path}" for one in sources if one.provider == "command-line"]


def _leaves_ours(key: str, words: Sequence[str]) -> None:
    for word in words:
        name = word.lstrip("+~").partition("=")[0]
        if name in _OURS[key] or name.startswith("hydra"):
            raise ConfigError(
                f"{key} holds {word!r}; the ablation sets {name.split('.')[0]} itself"
            )


def settings_of(plan: Plan) -> dict[Job, dict[str, Any]]:
    """Compose and check every job, and give the settings that its results depend on.

    Packs are told by their manifests' hashes, so that they may lie elsewhere next time.

    Raises:
        UserError: a config that cannot run, packs or benchmarks that cannot be read, or mixtures
            of unlike budgets.
    """
    first = Job(plan.mixtures[0], plan.seeds[0])
    asked = compose("evaluate", evaluate.reword(plan.evaluate_words(first)))
    check(asked, evaluate.SCHEMA)
    for name in plan.benchmarks:
        benchmark(name).read(plan.data_root)
    scored = {"protocol": plan.protocol, "keys": _asked(plan.words["evaluate"])}
    tuned = _stage(plan.train_words(first, SFT), SFT)
    found = {}
    for mixture, trained in _trained(plan).items():
        for seed in plan.seeds:
            stages = {
                PRETRAIN: _seeded(trained, seed, ("order", *_DRAWN)),
                SFT: _seeded(tuned, seed, ("order",)),
            }
            found[Job(mixture, seed)] = {**stages, "evaluate": scored}
    return found


def _trained(plan: Plan) -> dict[str, dict[str, Any]]:
    """Give the settings of each mixture's pre-training.

    Raises:
        ConfigError: some cannot be trained; a glob takes many, so each is told, in one message.
    """
    found = {}
    faults: dict[str, list[str]] = {}
    for mixture in plan.mixtures:
        words = plan.train_words(Job(mixture, plan.seeds[0]), PRETRAIN)
        try:
            found[mixture] = _stage(words, PRETRAIN)
        except (UserError, InstantiationException) as error:
            told = error.__cause__ if isinstance(error, InstantiationException) else error
            if not isinstance(told, UserError):
                raise
            faults.setdefault(str(told), []).append(mixture)
    if faults:
        lines = [f"mixture {', '.join(names)}: {told}" for told, names in faults.items()]
        if found:
            lines.append(f"fit to be trained: {', '.join(found)}; mixture= may name these alone")
        raise ConfigError("\n".join(lines))
    return found


def _asked(words: Sequence[str]) -> list[str]:
    return sorted(w for w in words if w.lstrip("+~").partition("=")[0] not in _FREE_ASKED)


def _stage(words: Sequence[str], stage: str) -> dict[str, Any]:
    config = compose("train", [word for word in words if not word.startswith("hydra.")])
    check(config, train.SCHEMA)
    if config.stage != stage and stage == SFT:
        raise ConfigError(f"sft names stage={config.stage}; expected stage=sft")
    if stage == PRETRAIN and config.budget.tokens is None and config.budget.steps is None:
        raise ConfigError(
            "pretrain sets neither budget.tokens nor budget.steps, so that mixtures would be "
            "compared at unlike numbers of tokens; set one of them"
        )
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            f"{stage} sets trainer.num_nodes={config.trainer.num_nodes}; a job of an ablation runs "
            "on one node: set trainer.devices, and let the launcher spread the jobs"
        )
    data: PackedData = instantiate(config.data, _convert_="all")
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    loaded = {k: v for k, v in settings["data"].items() if k not in _FREE_DATA}
    kept = {str(k): v for k, v in settings.items() if k not in _FREE}
    if stage == PRETRAIN:
        kept["init_from"] = config.init_from
    return {**kept, "data": loaded, "order": data.identity()}


def _seeded(settings: Mapping[str, Any], seed: int, parts: Sequence[str]) -> dict[str, Any]:
    """Give the settings of another seed: their own, and that of some of their parts."""
    return {**settings, **{name: {**settings[name], "seed": seed} for name in parts}, "seed": seed}


def unfinished(plan: Plan, settings: Mapping[Job, Mapping[str, Any]]) -> list[Job]:
    """Give the jobs that are still to be run.

    Raises:
        UserError: a job was begun with other settings.
    """
    for job in plan.jobs:
        check_unchanged(plan.out, job, settings[job])
    return [job for job in plan.jobs if not is_done(plan.out, job, plan.benchmarks)]
