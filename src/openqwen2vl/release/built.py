"""A model from the plain facts that a checkpoint or a model folder carries.

The facts name classes, as the composed config did. They may come from a stranger, so that only
parts of models are called.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.model.llm import load_llm
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.vision import VisionTower

_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_OURS = "openqwen2vl.model."
# Words of a config by which transformers would fetch or choose code.
_CODE = ("attn_implementation", "auto_map", "quantization_config", "trust_remote_code")
# What values that no model has end in, here and in transformers.
_SENSELESS = (
    *(ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)
# What facts must hold; of a group, what it must hold.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "model": ("vision", "projector", "attention", "trainable", "checkpointing"),
    "llm_config": ("model_type",),
    "tower": ("name", "hash"),
    "text": ("tokenizer", "template"),
    **dict.fromkeys(("vocab_size", "tokenizer", "phases"), ()),
}


def check_facts(facts: Mapping[str, Any], path: Path) -> None:
    """Refuse facts from which no model can be built.

    Raises:
        CheckpointError: with what is missing.
    """
    missing = [name for name in NEEDED if name not in facts]
    for name, inner in NEEDED.items():
        group = facts.get(name)
        known = group if isinstance(group, Mapping) else {}
        missing += [f"{name}.{key}" for key in inner if name in facts and key not in known]
    phases = facts.get("phases")
    if not missing and not (isinstance(phases, list) and phases and "grid" in phases[-1]):
        missing = ["phases[-1].grid"]
    if missing:
        raise CheckpointError(
            f"{path} does not tell its {', '.join(missing)}; it is damaged or of another version"
        )


def build(facts: Mapping[str, Any], path: Path, holds_tower: bool = False) -> MLLM:
    """Build a model with random weights, but for a frozen tower that is to be had by its name.

    Args:
        facts: see ``NEEDED``.
        path: where they lie, for messages.
        holds_tower: whether the weights to be loaded are the tower's too.

    Raises:
        CheckpointError: facts are missing, name something that is no part of a model, or do not
            fit it.
    """
    check_facts(facts, path)
    nodes = facts["model"]
    config = {k: v for k, v in facts["llm_config"].items() if k[:1] != "_" and k not in _CODE}
    try:
        trainable = nodes["trainable"]
        pretrained = nodes["vision"].get("pretrained", True) and not holds_tower
        tower = _called(nodes["vision"], path, trainable=trainable["vision"], pretrained=pretrained)
        projector = _called(nodes["projector"], path)
        llm = load_llm(pretrained=False, config=config, min_vocab=facts["vocab_size"])
        model = MLLM(tower, projector, llm, attention=nodes["attention"]["backend"])
    except UserError:
        raise
    except _SENSELESS as error:
        raise CheckpointError(
            f"the model that {path} describes cannot be built ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); it is damaged or of another version"
        ) from error
    model.freeze(projector=not trainable["projector"], llm=not trainable["llm"])
    model.set_checkpointing(nodes["checkpointing"])
    return model


def outline(facts: Mapping[str, Any], path: Path) -> MLLM:
    """Build a model without memory for its weights: their names and shapes are all it has.

    Raises:
        CheckpointError: as of ``build``.
    """
    with torch.device("meta"):
        return build(facts, path, holds_tower=True)


def frozen_tower(facts: Mapping[str, Any], path: Path) -> VisionTower:
    """Build a model's tower alone, with the weights that are to be had by its name.

    Raises:
        CheckpointError: they cannot be had.
    """
    return cast(VisionTower, _called(facts["model"]["vision"], path, trainable=False))


def _called(node: Mapping[str, Any], path: Path, **more: Any) -> Any:
    """Call what a node names with what it holds, as Hydra would."""
    arguments = {
        key: _called(value, path) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in node.items()
        if key not in _HYDRA
    }
    target = _target(str(node["_target_"]), path)
    if node.get("_partial_"):
        return partial(target, **arguments | more)
    return target(**arguments | more)


def _target(name: str, path: Path) -> Callable[..., Any]:
    """Import a part of a model.

    Raises:
        CheckpointError: there is none of that name.
    """
    module, _, attribute = name.rpartition(".")
    found: Any = None
    # A name that is none of ours is imported, too: it may be a user's own projector.
    with suppress(ImportError, ValueError):
        found = getattr(import_module(module), attribute, None)
    ours = callable(found) and str(getattr(found, "__module__", "")).startswith(_OURS)
    if ours or (isinstance(found, type) and issubclass(found, nn.Module)):
        return found  # type: ignore[no-any-return]
    raise CheckpointError(
        f"{path} names {name} as a part of its model, which is none that can be found here; only "
        "modules of PyTorch are called for a file"
    )
