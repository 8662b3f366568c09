"""A judge from a run of ours: what curation cannot open itself, since runs lie above it."""

from functools import partial
from pathlib import Path

from openqwen2vl.commands._assemble import load_model
from openqwen2vl.curation.scorers.mllm_judge import MllmJudge, TrainedModel
from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash


def trained_judge(
    model: str,
    tokenizer: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    caption_tokens: int = 512,
) -> MllmJudge:
    """Give a judge that loads a trained model when it is first asked.

    Args:
        model: a run folder, whose newest checkpoint counts, or a checkpoint.
        tokenizer: folder or hub name; ``None`` is where the run found it.
        device: as of ``MllmJudge``.
        dtype: likewise.
        caption_tokens: likewise.
    """
    load = partial(load_trained, Path(model), tokenizer)
    return MllmJudge(load, device=device, dtype=dtype, caption_tokens=caption_tokens)


def load_trained(path: Path, tokenizer: str | None = None) -> TrainedModel:
    """Load a trained model with the tokenizer and the template of its packs.

    Args:
        path: a run folder or a checkpoint.
        tokenizer: folder or hub name; ``None`` is where the run found it.

    Raises:
        CheckpointError: no checkpoint there, or another tokenizer than it was trained with.
    """
    model, facts = load_model(path)
    name = tokenizer or facts["tokenizer"]
    found = load_tokenizer(str(name))
    learnt, here = facts["text"]["tokenizer"], tokenizer_hash(found)
    if learnt != here:
        raise CheckpointError(
            f"{path} was trained with tokenizer {learnt}, {name} is {here}; give the tokenizer of "
            "that run (tokenizer=DIR)"
        )
    layouts = {layout.hash: layout for layout in TEMPLATES.values()}
    layout = layouts.get(facts["text"]["template"])
    if layout is None:
        raise CheckpointError(
            f"{path} was trained with a template of hash {facts['text']['template']}, which this "
            f"version does not have; it has {', '.join(TEMPLATES)}"
        )
    return TrainedModel(model, found, layout, path.name)
