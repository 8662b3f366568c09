"""The model card: what a model is, how it is used, and where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openqwen2vl.formats.templates import Template

_UNKNOWN = "not recorded"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says.

    Attributes:
        name: of the model.
        tower: name of the vision tower.
        llm: name of the language model that training started from; None: it is not recorded, as
            with random weights.
        template: of the conversations.
        stages: as ``provenance.stages`` gives them.
        scores: heads of ``scores.json`` files.
        curation: by source, the conditions that samples had to meet and how many each lost.
        licence: of the weights, in the hub's words.
    """

    name: str
    tower: str
    llm: str | None
    template: Template
    stages: Sequence[Mapping[str, Any]]
    scores: Sequence[Mapping[str, Any]] = ()
    curation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    licence: str = "other"

    def text(self, config: Mapping[str, Any]) -> str:
        """Give the card as Markdown.

        Args:
            config: the model's ``config.json``.
        """
        own = config["openqwen2vl"]
        parts = (
            _front(self, config),
            _use(self, config["vision_config"]["image_size"], "auto_map" not in config),
            _scores(self.scores),
            _training(self.stages),
            _data(self.stages),
            _curation(self.curation),
            _limits(own["grid"], self.stages),
        )
        return "\n".join(part for part in parts if part)


def gpu_hours(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Add up the measured hours of all stages by the kind of device."""
    found: dict[str, float] = {}
    for stage in stages:
        # A run may have gone on with other devices; old records name the last ones alone.
        whole = {str(stage.get("device", _UNKNOWN)): stage.get("device_hours")}
        for device, hours in (stage.get("hours_by_device") or whole).items():
            if hours is not None:
                found[device] = found.get(device, 0.0) + float(hours)
    return found


def _front(card: Card, config: Mapping[str, Any]) -> str:
    grid, dtype = config["openqwen2vl"]["grid"], config["openqwen2vl"]["dtype"]
    tower, llm = config["vision_config"], config["text_config"]
    # A name alone would tell of other sizes where a run changed them.
    seen = f"{_size(tower, 'blocks')}, pictures of {tower['image_size']} x {tower['image_size']}"
    said = f"{_size(llm, 'layers')}, `{llm['model_type']}`"
    kind = "base model, no chat" if _is_base(card.stages) else "chat model"
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
license: {card.licence}
tags: [openqwen2vl]
---

# {card.name}

A multimodal language model ({kind}) trained with `openqwen2vl`: vision tower `{card.tower}` ({seen}),
{grid} x {grid} = {grid**2} visual tokens an image, language model {_begun(card.llm)} ({said}),
weights in {dtype}.
"""


def _size(part: Mapping[str, Any], layers: str) -> str:
    return f"{part['num_hidden_layers']} {layers} of width {part['hidden_size']}"


def _begun(llm: str | None) -> str:
    return "of no recorded name" if llm is None else f"`{llm}`"


def _use(card: Card, side: int, stock: bool) -> str:
    trust = "" if stock else ", trust_remote_code=True"
    why = (
        "It is a stock `LlavaForConditionalGeneration`."
        if stock
        else "No class of transformers pools before the projector, so the folder brings its own\n"
        "(`modeling_openqwen2vl.py`), which `trust_remote_code=True` lets run."
    )
    prompt = (
        'prompt = "<s><|image_pad|>\\n"'
        if _is_base(card.stages)
        else "messages = [\n"
        '    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}\n'
        "]\n"
        "prompt = processor.apply_chat_template(messages, add_generation_prompt=True)"
    )
    return f"""## Use

{why} The same code runs with transformers 4.57 and 5.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "PATH_OR_NAME"
processor = AutoProcessor.from_pretrained(folder{trust})
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto"{trust})
image = Image.open("picture.jpg").convert("RGB")
{prompt}
inputs = processor(text=prompt, images=[image], return_tensors="pt")
new = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(new, skip_special_tokens=True))
```

Pictures are squashed to {side} x {side} pixels, bicubic; the aspect is not kept.
Conversations have the layout `{card.template.name}`.
"""


def _scores(heads: Sequence[Mapping[str, Any]]) -> str:
    if not heads:
        return "## Scores\n\nNone were given to the export.\n"
    rows = [
        (
            head["benchmark"],
            f"{head['metrics'][head['headline']]:.2f}",
            head["headline"],
            f"{head['n']:,}",
            f"{head['protocol']}, version {head['protocol_version']}",
            ", ".join(f"{key} {value}" for key, value in head["decoding"].items()),
            str(head["file_hash"])[:16],
        )
        for head in heads
    ]
    titles = ("benchmark", "score", "metric", "questions", "protocol", "decoding", "file (sha256)")
    return "## Scores\n\nScores of unlike protocols do not compare.\n\n" + _table(titles, rows)


def _training(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            _stage_name(one),
            one.get("run", _UNKNOWN),
            f"{one['step']} of {one.get('steps', _UNKNOWN)}" if "step" in one else _UNKNOWN,
            ", ".join(f"{grid**2}" for grid in one.get("grids", [])) or _UNKNOWN,
            one.get("global_batch", _UNKNOWN),
            one.get("lr", _UNKNOWN),
            _hardware(one),
            f"{one['device_hours']:.2f}" if "device_hours" in one else _UNKNOWN,
        )
        for one in stages
    ]
    titles = (
        *("stage", "run", "step", "visual tokens", "packs a step", "learning rate"),
        *("devices", "device-hours, measured"),
    )
    hours = gpu_hours(stages)
    total = ", ".join(f"{count:.2f} h {device}" for device, count in hours.items()) or _UNKNOWN
    return (
        "## Training\n\n"
        "Each stage starts from the one above it. Device-hours are measured, restarts included.\n\n"
        f"{_table(titles, rows)}\nIn all: {total}.\n"
    )


def _data(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            _stage_name(stage),
            name,
            *(_count(source, key) for key in ("documents", "images", "tokens", "packs")),
            f"{source['passes']:.2f}" if "passes" in source else _UNKNOWN,
            source.get("licence") or "unknown",
        )
        for stage in stages
        for name, source in stage.get("sources", {}).items()
    ]
    titles = ("stage", "source", "documents", "images", "tokens", "packs", "passes", "licence")
    late = [
        f"{_stage_name(one)} was recorded at step {one['recorded_step']}, its weights are of step "
        f"{one['step']}."
        for one in stages
        if one.get("recorded_step", one.get("step")) != one.get("step")
    ]
    return (
        "## Data\n\nWhat was consumed of each source, as it was counted while training. What is "
        "said of licences are\nnotes to look further, not advice.\n\n"
        f"{_table(titles, rows)}" + "".join(f"\n{line}\n" for line in late)
    )


def _curation(curation: Mapping[str, Mapping[str, Any]]) -> str:
    if not curation:
        return "## Filters\n\nNo curation was given to the export.\n"
    rows = [
        (name, f"`{condition}`", f"{lost:,}")
        for name, told in curation.items()
        for condition, lost in told.get("conditions", {}).items()
    ]
    kept = [
        (name, f"{told['delivered']:,}", f"{told['kept']:,}")
        for name, told in curation.items()
        if "delivered" in told
    ]
    return (
        "## Filters\n\n"
        + _table(("source", "condition that samples had to meet", "samples that it loses"), rows)
        + "\n"
        + _table(("source", "samples delivered", "samples kept"), kept)
    )


def _limits(grid: int, stages: Sequence[Mapping[str, Any]]) -> str:
    grids = stages[-1].get("grids", []) if stages else []
    last = grids[-1] if grids else grid
    trained = (
        f"Trained at {grid**2} visual tokens an image; at another number it is another model."
        if last == grid
        else f"Trained at {last**2} visual tokens an image in the end, and given {grid**2} here."
    )
    return f"""## Limits

- {trained}
- Texts of prompts that begin with spaces or newlines may become other tokens than in training.
- Transparent pictures and those that a camera marked as turned should be flattened and turned
  before they are given; training did both.
"""


def _is_base(stages: Sequence[Mapping[str, Any]]) -> bool:
    return bool(stages) and stages[-1].get("stage") in ("align", "pretrain")


def _stage_name(stage: Mapping[str, Any]) -> str:
    if stage.get("missing"):
        return "an earlier run, not found"
    return str(stage.get("stage") or "an earlier model")


def _hardware(stage: Mapping[str, Any]) -> str:
    if "device" not in stage:
        return _UNKNOWN
    before = [one for one in stage.get("hours_by_device", {}) if one != stage["device"]]
    earlier = f", before it {', '.join(before)}" if before else ""
    return f"{stage['devices']} x {stage['device']}{earlier}"


def _count(source: Mapping[str, Any], key: str) -> str:
    return f"{int(source[key]):,}" if key in source else _UNKNOWN


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows] if rows else [titles, ["---"] * len(titles)]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(value: object) -> str:
    """Keep a value in its cell: names come from users."""
    return str(value).replace("|", "\\|").replace("\n", " ")
