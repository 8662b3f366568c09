"""Small tokenizers and raw shards, made of pictures drawn here."""

import io
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.tar import END, header, padded
from openqwen2vl.formats.tokens import train_tokenizer

COLORS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")
SCENES = tuple(
    f"a {size} {color} {shape} on the {side} of the picture"
    for size in ("small", "large")
    for color in COLORS
    for shape in SHAPES
    for side in ("left", "right")
)
SENTENCES = (
    *SCENES,
    "What color is the circle? How many squares are there?",
    "The circle is red. There are two squares, and a triangle below them.",
    "system user assistant You are a helpful assistant. Describe this picture briefly.",
)


def tiny_tokenizer(folder: Path, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a few sentences and save it in ``folder``."""
    tokenizer = train_tokenizer(SENTENCES, vocab_size)
    tokenizer.save_pretrained(folder)
    return tokenizer


def picture(rng: random.Random, size: tuple[int, int] = (64, 48), format: str = "JPEG") -> bytes:
    """Draw a shape of a random color and place; gives the file's bytes."""
    image = Image.new("RGB", size, rng.choice(COLORS))
    draw = ImageDraw.Draw(image)
    x, y = rng.randrange(size[0] // 2), rng.randrange(size[1] // 2)
    box = (x, y, x + size[0] // 3, y + size[1] // 3)
    (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=rng.choice(COLORS))
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def caption(rng: random.Random) -> str:
    """Say one to three sentences."""
    return ". ".join(rng.choice(SCENES) for _ in range(rng.randint(1, 3)))


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """Write a plain tar of these files in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as tar:
        for name, content in files.items():
            tar.write(header(name, len(content)))
            tar.write(content.ljust(padded(len(content)), b"\0"))
        tar.write(END)


def write_caption_shard(
    path: Path,
    n: int,
    seed: int = 0,
    *,
    uids: bool = True,
    size: tuple[int, int] = (64, 48),
    captions: list[str] | None = None,
) -> None:
    """Write n image-text pairs as img2dataset does: KEY.jpg, KEY.json, KEY.txt.

    ``captions`` replaces the random ones; ``uids`` says whether the JSON has a uid.
    """
    rng = random.Random(seed)
    files: dict[str, bytes] = {}
    for i in range(n):
        key = f"{path.stem}{i:04d}"
        text = captions[i] if captions else caption(rng)
        fields: dict[str, object] = {"key": key, "caption": text, "status": "success"}
        if uids:
            fields["uid"] = f"{rng.getrandbits(128):032x}"
        files[f"{key}.jpg"] = picture(rng, size)
        files[f"{key}.json"] = json.dumps(fields).encode()
        files[f"{key}.txt"] = text.encode()
    write_tar(path, files)


def write_conversation_shard(
    path: Path, n: int, seed: int = 0, *, max_images: int = 1, max_rounds: int = 3
) -> None:
    """Write n conversations of one to ``max_rounds`` rounds and zero to ``max_images`` images."""
    rng = random.Random(seed)
    files: dict[str, bytes] = {}
    for i in range(n):
        key = f"{path.stem}{i:04d}"
        num_images = rng.randint(0, max_images)
        turns = []
        for round_number in range(rng.randint(1, max_rounds)):
            marks = "<image>\n" * num_images if round_number == 0 else ""
            question = f"{marks}What color is the {rng.choice(SHAPES)}?"
            turns.append({"from": "human", "value": question})
            turns.append({"from": "gpt", "value": f"It is {rng.choice(COLORS)}."})
        files[f"{key}.json"] = json.dumps(
            {"uid": f"{path.stem}-{seed}-{i}", "conversations": turns}
        ).encode()
        for number in range(num_images):
            files[f"{key}.{number}.jpg"] = picture(rng)
    write_tar(path, files)


def write_mixed_corpus(folder: Path) -> Path:
    """Write three shards of captions and two of conversations, with and without uids."""
    for number in range(3):
        write_caption_shard(folder / f"{number:05d}.tar", 30, seed=number, uids=number != 1)
    for number in (3, 4):
        write_conversation_shard(folder / f"{number:05d}.tar", 30, seed=number, max_images=2)
    return folder
