"""Opens a model folder as a stranger would and tells how far it is from what was expected.

Run as a script, with nothing of ours: ``python reload.py FOLDER QUESTION``, where QUESTION is what
``question.write_question`` wrote. The last line printed is one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(folder: Path, question: Path) -> None:
    """Compare and print."""
    told = json.loads((question / "question.json").read_text())
    expected = load_file(question / "question.safetensors")
    pictures = {name: Image.open(question / name).convert("RGB") for name in told["pictures"]}
    code = "auto_map" in json.loads((folder / "config.json").read_text())
    processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=code)
    found = {
        "transformers": transformers.__version__,
        "unlike_ids": _unlike_ids(processor, told, pictures),
        "pixels": _pixels(processor, pictures.values(), expected["pixels"]),
        **_logits(folder, code, processor, expected),
    }
    ends = [found.pop("end"), processor.tokenizer.eos_token_id]
    found["unlike_ends"] = [end for end in ends if end != told["end"]]
    found["peak_bytes"] = _peak()
    sys.stdout.write(json.dumps(found) + "\n")


def _peak() -> int | None:
    """Give this process's largest memory; getrusage would count its parent's too."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def _unlike_ids(processor: Any, told: dict[str, Any], pictures: dict[str, Any]) -> list[str]:
    """Give the prompts that become other ids than in training, as they were read."""
    prompts = [
        (processor.apply_chat_template(one["messages"], add_generation_prompt=True), one)
        for one in told["conversations"]
    ]
    prompts.append((told["caption"]["text"], told["caption"]))
    unlike = []
    for text, one in prompts:
        images = [pictures[name] for name in one["images"]] or None
        ids = processor(text=text, images=images, return_tensors="pt")["input_ids"][0].tolist()
        if ids != one["ids"]:
            unlike.append(text)
    return unlike


def _pixels(processor: Any, pictures: Any, expected: torch.Tensor) -> list[float]:
    """Give the largest difference in each picture."""
    prompt = processor.image_token * len(expected)
    inputs = processor(text=prompt, images=list(pictures), return_tensors="pt")
    apart = (inputs["pixel_values"] - expected).abs()
    return [float(one.max()) for one in apart]


@torch.no_grad()
def _logits(
    folder: Path, code: bool, processor: Any, expected: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Load the model with the weights as they are, and ask it in float32."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        str(folder), dtype="auto", trust_remote_code=code, output_loading_info=True
    )
    dtype = str(model.dtype).removeprefix("torch.")
    model = model.float().eval()
    inputs = {
        "input_ids": expected["ids"][None],
        "attention_mask": torch.ones_like(expected["ids"])[None],
        "pixel_values": expected["pixels"],
    }
    answer = model(**inputs, logits_to_keep=expected["read"], use_cache=False).logits[0]
    # Whatever else the processor gives is handed on, too: generate() takes no name it does not know.
    given = {**processor(text="?", return_tensors="pt"), **inputs}
    new = model.generate(**given, max_new_tokens=2, do_sample=False)[0, len(expected["ids"]) :]
    right = expected["logits"]
    return {
        "class": type(model).__name__,
        "dtype": dtype,
        "end": model.generation_config.eos_token_id,
        "loading": {
            kind: sorted(map(str, info[f"{kind}_keys"]))
            for kind in ("missing", "unexpected", "mismatched")
        },
        "logits": float((answer - right).abs().max()),
        # The prompt ends in a text, so the last row is of the position that an answer follows.
        "first_token": float(right[-1].max() - right[-1][new[0]]),
        "largest_logit": float(right.abs().max()),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
