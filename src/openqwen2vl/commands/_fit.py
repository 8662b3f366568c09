"""Puts a training run together and runs it: folder, data, model, Trainer, resume."""

from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from openqwen2vl.commands._assemble import (
    build_model,
    check_grids,
    check_text,
)
from openqwen2vl.commands._facts import plain, run_facts, shared_facts
from openqwen2vl.commands._run_words import announce, tell_end
from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.budget import accumulation
from openqwen2vl.packing.order import Phase
from openqwen2vl.release.trained import check_tower, initial_weights
from openqwen2vl.training.checkpoint import AtomicCheckpointIO, checkpoint_step, newest, read_facts
from openqwen2vl.training.exit_note import USER_ERROR
from openqwen2vl.training.launch import leave, leave_with_launcher, rank, spawn, tail_overrides
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.run_folder import RunFolder
from openqwen2vl.training.schedule import Schedule
from openqwen2vl.training.stream import PackedData
from openqwen2vl.training.wandb_log import RunWandbLogger

# What must not change between a checkpoint and its resumption: the order is a function of it.
FIXED = ("seed", "global_batch", "sources", "mode", "weights", "manifests")


def run_processes(config: DictConfig, processes: int) -> dict[str, object]:
    """Run this training in several processes and give what its rank 0 recorded.

    Raises:
        UserError: the ranks said so (their message is above).
        RuntimeError: one of them crashed or was killed, which is no mistake of the user's.
    """
    # Most mistakes show here, before any rank starts and all of them complain.
    data = _data(config)
    checkpoint = RunFolder(Path(config.run_dir)).checkpoint(config.resume)
    if checkpoint is not None:
        resumable(checkpoint, config, data)
    hydra = HydraConfig.get()
    folders = [
        f"--config-dir={source.path}"
        for source in hydra.runtime.config_sources
        if source.provider == "command-line"
    ]
    overrides = tail_overrides(list(hydra.overrides.task), Path(config.run_dir))
    folder = RunFolder(Path(config.run_dir))
    before = folder.read_json("run.json")
    code = spawn(processes, ["train", *folders, *overrides])
    record = folder.read_json("run.json")
    # torchrun itself exits 1 after a SIGTERM although its ranks saved and ended well.
    stopped = record.get("state") == "stopped" and record != before
    if code == USER_ERROR:
        raise UserError("training ended; the ranks' messages are above")
    if code and not stopped:
        raise RuntimeError(
            "a rank crashed or was killed (out of memory?); what it said is above, and resume=last "
            "goes on from the newest checkpoint"
        )
    return _figures(folder)


def fit(config: DictConfig, processes: int) -> dict[str, object]:
    """Train in this process (one rank of ``processes``)."""
    leave_with_launcher()
    folder = RunFolder(Path(config.run_dir))
    if rank() == 0:
        folder.lock()
    try:
        checkpoint, data, module, trainer = _assembled(config, processes, folder)
    except BaseException:
        folder.forget()
        raise
    if rank() == 0:
        told = plain(config)
        folder.write_json("config.json", told)
        for logger in trainer.loggers:
            if isinstance(logger, RunWandbLogger):
                logger.log_hyperparams(told)
        announce(config.stage, folder, data, module.model, trainer, checkpoint)
    trainer.fit(
        module,
        datamodule=cast(pl.LightningDataModule, data),
        ckpt_path=checkpoint,
        weights_only=True,
    )
    figures: dict[str, object] = {}
    if rank() == 0:
        figures = _figures(folder)
        tell_end(folder, figures)
    leave(0)
    return figures


def _assembled(
    config: DictConfig, processes: int, folder: RunFolder
) -> tuple[Path | None, PackedData, MLLMModule, pl.Trainer]:
    """Put together what a run needs, and find most of the user's mistakes; nothing is written."""
    checkpoint = folder.checkpoint(config.resume)
    data = _data(config)
    facts = None if checkpoint is None else resumable(checkpoint, config, data)
    model = build_model(config, data.vocab_size)
    check_grids(data, model)
    data.image_side = model.vision.side
    if facts is not None and checkpoint is not None:
        check_tower(model, facts, checkpoint)
    elif config.init_from is not None:
        initial_weights(model, Path(config.init_from))
        check_text(data, Path(config.init_from))
    backend = _compiler(config)
    if backend != "none":
        model.compile(backend)
    module = _module(config, data, model, facts, checkpoint)
    return checkpoint, data, module, _trainer(config, data, processes, folder, checkpoint)


def _figures(folder: RunFolder) -> dict[str, object]:
    """Give what the run recorded of itself, and where its newest checkpoint lies."""
    return {
        **folder.read_json("run.json"),
        "run_dir": str(folder.path),
        "checkpoint": str(newest(folder.path)),
    }


def _data(config: DictConfig) -> PackedData:
    return cast(PackedData, instantiate(config.data, _convert_="all"))


def resumable(checkpoint: Path, config: DictConfig, data: PackedData) -> dict[str, Any]:
    """Check that the run is the same and keep the phases that it fixed at its start.

    Raises:
        CheckpointError: another order, other pixels, more steps than the schedule spans, or no
            run's at all.
    """
    facts = read_facts(checkpoint)
    if "converted" in facts:
        raise CheckpointError(
            f"{checkpoint} was converted, not trained, so there is nothing to resume; start a run "
            f"from its weights with init_from={checkpoint}"
        )
    sharded = config.strategy._target_.endswith(".fsdp")
    if checkpoint.is_dir() != sharded:
        raise CheckpointError(
            f"{checkpoint} is {'a sharded folder' if checkpoint.is_dir() else 'one file'}, which "
            f"strategy={'fsdp' if sharded else 'single or ddp'} does not resume; keep the strategy "
            "that wrote it, or start a new run from its weights by init_from="
        )
    now = data.identity()
    changed = [key for key in FIXED if facts["order"][key] != now[key]]
    if changed:
        told = "; ".join(f"{k}: {facts['order'][k]} there, {now[k]} here" for k in changed)
        raise CheckpointError(
            f"{checkpoint} cannot be resumed with another order of packs ({told}); restore these, "
            "or start a new run with init_from="
        )
    data.keep_phases([Phase(**phase) for phase in facts["phases"]])
    data.keep_pictures(facts.get("pictures"))
    length = config.schedule.length
    if data.order.steps != facts["steps"] and length is None:
        raise CheckpointError(
            f"the run was planned for {facts['steps']} steps, the budget now gives "
            f"{data.order.steps}; its learning-rate curve would be another one: set "
            f"schedule.length (={facts['schedule_length']} keeps the old curve)"
        )
    return facts


def _module(
    config: DictConfig,
    data: PackedData,
    model: MLLM,
    facts: dict[str, Any] | None,
    checkpoint: Path | None,
) -> MLLMModule:
    schedule: Schedule = instantiate(config.schedule)
    written = run_facts(config, data, model, schedule, facts)
    return MLLMModule(
        model,
        optim=instantiate(config.optim),
        schedule=schedule,
        steps=data.order.steps,
        sources=data.mixture.names,
        clip=config.clip,
        loss=config.loss,
        seed=config.seed,
        facts=written,
        agreed=shared_facts(config, written, data.micro_batch, checkpoint),
    )


def _trainer(
    config: DictConfig,
    data: PackedData,
    processes: int,
    folder: RunFolder,
    checkpoint: Path | None,
) -> pl.Trainer:
    strategy = instantiate(config.strategy)
    # A sharded strategy writes folders itself, atomically; files go through this plugin.
    sharded = hasattr(strategy, "sharding_strategy")
    callbacks = [instantiate(node) for node in config.callbacks.values() if node is not None]
    # A logger that appends must drop the points which the resumed run will write again.
    first = 0 if checkpoint is None else checkpoint_step(checkpoint) + 1
    loggers = [
        instantiate(node)(purge_step=first) if node.get("_partial_") else instantiate(node)
        for node in config.logger.values()
        if node is not None
    ]
    return instantiate(  # type: ignore[no-any-return]
        config.trainer,
        strategy=strategy,
        plugins=[] if sharded else [AtomicCheckpointIO()],
        callbacks=callbacks,
        logger=loggers,
        precision=_precision(config, sharded),
        default_root_dir=str(folder.path),
        max_steps=data.order.steps,
        accumulate_grad_batches=accumulation(data.global_batch, data.micro_batch, processes),
        _convert_="all",
    )


def _precision(config: DictConfig, sharded: bool) -> str:
    """Give the Trainer's precision: FSDP narrows by its own mixed precision, without autocast."""
    if config.precision != "auto":
        return str(config.precision)
    return "bf16-mixed" if _on_gpu(config) and not sharded else "32-true"


def _compiler(config: DictConfig) -> str:
    """Give torch.compile's backend, or none: on a CPU it takes longer than it saves."""
    if config.compile != "auto":
        return str(config.compile)
    return "inductor" if _on_gpu(config) else "none"


def _on_gpu(config: DictConfig) -> bool:
    return config.trainer.accelerator != "cpu" and torch.cuda.is_available()
