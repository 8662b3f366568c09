"""Exports a trained model to a folder that transformers loads, checked before it gets its name."""

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.formats.files import atomic_file, tell_full_disk
from openqwen2vl.formats.tokens import special_tokens
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.locks import one_writer
from openqwen2vl.packing.space import check_space
from openqwen2vl.release import llava_config
from openqwen2vl.release.chat_template import chat_template
from openqwen2vl.release.checking import judge, reload
from openqwen2vl.release.filled import check_complete, fill, give_back_memory
from openqwen2vl.release.huggingface import HEAD, bundled_name, rename, unused_end
from openqwen2vl.release.publish import check_place, put
from openqwen2vl.release.question import Texts, write_question
from openqwen2vl.release.shards import write_shards
from openqwen2vl.release.streams import WeightStream

KEY = "openqwen2vl"
"""The key of ``config.json`` under which a model folder keeps what only we read."""

FORMAT = 1
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_MODELLING = Path(__file__).with_name("modelling") / f"{llava_config.CODE}.py"
_CLOSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
_SPARE = 16_000_000  # bytes, for all files but the weights and the tokenizer


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to export.

    Attributes:
        build: makes the model, its tower with values, the rest without, its projector at the grid
            that is exported. Called once; nobody else holds what it gives.
        weights: of projector and language model.
        texts: how the model reads and writes.
        llm_config: of the language model, as the run wrote it.
        about: goes into ``config.json`` under ``KEY``, beside format, grid and dtype.
        card: gives the model card for the ``config.json`` that is written.
        dtype: of ``DTYPES``.
        shard_bytes: that a file of weights holds at most.
    """

    build: Callable[[], MLLM]
    weights: WeightStream
    texts: Texts
    llm_config: Mapping[str, Any]
    about: Mapping[str, Any]
    card: Callable[[Mapping[str, Any]], str]
    dtype: str = "bf16"
    shard_bytes: int = 5_000_000_000


def export(request: Export, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write a model folder, open it with transformers in another process, and give it its name.

    Memory: while our own answers are worked out, the weights in float32, once. The other process
    starts when they are gone, and holds as much.

    Args:
        request: what to export.
        out: the folder.
        overwrite: whether a model folder of that name may be replaced; it is, in one step, when
            the new one has passed.

    Returns:
        Bytes of weights, seconds of each part, and what the other process found.

    Raises:
        UserError: ``out`` may not be written, or has no room.
        CheckpointError: the weights cannot be read or exported, or transformers reads another
            model; nothing stays at ``out``.
    """
    # Where a link leads, there the folder goes; the link stays.
    out = out.resolve()
    try:
        check_place(out, overwrite)
        work, asked = (out.with_name(f".{out.name}.{end}") for end in ("tmp", "check"))
        with one_writer(out), tell_full_disk(out):
            check_place(out, overwrite)
            for leftover in (work, asked):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                work.mkdir()
                figures = _write(request, work, asked)
                give_back_memory()
                start = time.perf_counter()
                found = reload(work, asked)
                judge(found, min(figures.pop("std")))
                put(work, out)
            finally:
                for leftover in (work, asked):
                    shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        if error.errno not in _CLOSED:
            raise
        raise UserError(
            f"{out} cannot be written ({error.strerror}); choose another out"
        ) from error
    return {**figures, "reload_s": time.perf_counter() - start, "check": found}


def _write(request: Export, work: Path, asked: Path) -> dict[str, Any]:
    """Fill the folder, and ask our own model what the other process will be asked."""
    start = time.perf_counter()
    model = request.build()
    check_complete(model, request.weights)
    dtype = DTYPES[request.dtype]
    config = _config(request, model)
    stock = config["architectures"] == [llava_config.STOCK]
    shapes = {k: tuple(v.shape) for k, v in _tensors(model, config, _shape_of(request.weights))}
    needed = dtype.itemsize * sum(map(prod, shapes.values()))
    check_space(work, needed + _SPARE, "the weights")
    built = time.perf_counter()
    tensors = _tensors(model, config, request.weights.read)
    size = write_shards(work, shapes, tensors, dtype, request.shard_bytes)
    _write_texts(request, work, model, config)
    if not stock:
        shutil.copyfile(_MODELLING, work / _MODELLING.name)
    written = time.perf_counter()
    fill(model, request.weights, dtype)
    write_question(asked, model, request.texts)
    return {
        "class": config["architectures"][0],
        "grid": model.projector.grid,
        "dtype": request.dtype,
        "parameters": sum(map(prod, shapes.values())),
        "bytes": size,
        "files": sorted(path.name for path in work.iterdir()),
        "build_s": built - start,
        "write_s": written - built,
        "ask_s": time.perf_counter() - written,
        "std": model.vision.model.pretrained_cfg["std"],
    }


def _config(request: Export, model: MLLM) -> dict[str, Any]:
    """Give ``config.json``.

    Raises:
        CheckpointError: a grid finer than the tower's patches, or a tower that is no SigLIP.
    """
    # Towers of another build have no such sizes as the config wants: their names are told first.
    for name, value in model.vision.state_dict().items():
        rename(f"vision.{name}", value)
    grid, patches = model.projector.grid, model.vision.patch_grid
    if grid > patches:
        raise CheckpointError(
            f"grid is {grid}, but the vision tower has only {patches} x {patches} patches; give a "
            f"grid of at most {patches}"
        )
    maps = [one for one in model.projector.layers if hasattr(one, "out_features")]
    config = llava_config.model_config(
        model.vision,
        request.llm_config,
        [maps[0].in_features, *(one.out_features for one in maps)],  # type: ignore[list-item]
        grid,
        special_tokens(request.texts.tokenizer),
        str(DTYPES[request.dtype]).removeprefix("torch."),
    )
    own = {"format": FORMAT, "grid": grid, "dtype": request.dtype, **request.about}
    return config | {KEY: own}


def _shape_of(weights: WeightStream) -> Callable[[str], Tensor]:
    return lambda name: torch.empty(weights.shapes[name], device="meta")


def _tensors(
    model: MLLM, config: Mapping[str, Any], read: Callable[[str], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the folder's weights, in its names; ``read`` gives those that the tower has not."""
    name_of = (lambda k: k) if config["model_type"] == "llava" else bundled_name
    tower = {f"vision.{key}": value for key, value in model.vision.state_dict().items()}
    for name, value in tower.items():
        yield from ((name_of(k), v) for k, v in rename(name, value).items())
    yield from ((name_of(k), v) for k, v in unused_end(tower).items())
    tied = {HEAD} if config["tie_word_embeddings"] else set()
    for name in model.state_dict():
        if name not in tied and not name.startswith("vision."):
            yield from ((name_of(k), v) for k, v in rename(name, read(name)).items())


def _write_texts(request: Export, work: Path, model: MLLM, config: Mapping[str, Any]) -> None:
    tokenizer, tower = request.texts.tokenizer, model.vision
    special = special_tokens(tokenizer)
    files = {
        "config.json": config,
        "generation_config.json": llava_config.generation_config(special),
        "preprocessor_config.json": llava_config.image_processor_config(tower),
        "processor_config.json": llava_config.processor_config(tower, model.projector.grid),
        "tokenizer_config.json": llava_config.tokenizer_config(
            request.llm_config.get("max_position_embeddings")
        ),
    }
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
    texts |= {
        "tokenizer.json": tokenizer.backend_tokenizer.to_str(),
        "chat_template.jinja": chat_template(request.texts.template),
        "README.md": request.card(config),
    }
    for name, text in texts.items():
        with atomic_file(work / name) as file:
            file.write(text.encode())
