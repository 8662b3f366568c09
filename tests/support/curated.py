"""Two small sources of pairs, and `curate` called on them."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from openqwen2vl.curation.samples import Sample, read_samples
from support.kept import Contents
from support.runs import Run
from support.shards import caption, picture, write_tar

NASTY = "<script>alert(1)</script> & a red circle of some size"
STEPS = ("scores", "selection", "kept", "dropped", "shards")


def write_source(folder: Path, shards: int, per_shard: int, seed: int) -> None:
    """Raw shards with own uids; the last sample of each repeats the first one's picture."""
    rng = random.Random(seed)
    for number in range(shards):
        files: dict[str, bytes] = {}
        pictures = [picture(rng) for _ in range(per_shard - 1)]
        for at, image in enumerate([*pictures, pictures[0]]):
            key = f"{number:03d}{at:04d}"
            text = NASTY if at == 1 else "short" if at == 2 else caption(rng)
            uid = f"{rng.getrandbits(128):032x}"
            files |= {f"{key}.jpg": image, f"{key}.txt": text.encode()}
            files[f"{key}.json"] = json.dumps({"uid": uid, "url": "x"}).encode()
        files["broken.txt"] = b"a caption without a picture"
        write_tar(folder / f"{number:05d}.tar", files)


def write_sources(raw: Path) -> Path:
    """Write ``red`` and ``blue``; one shard is in both."""
    write_source(raw / "red", 3, 8, seed=0)
    write_source(raw / "blue", 2, 8, seed=1)
    shared = (raw / "red" / "00001.tar").read_bytes()
    (raw / "blue" / "00007.tar").write_bytes(shared)
    return raw


def words(raw: Path, out: Path, *more: str) -> list[str]:
    """Give the command line that curates both, changed by some overrides."""
    return [
        "curate",
        f"input={{red: {raw / 'red'}, blue: {raw / 'blue'}}}",
        f"out={out}",
        "+selection.sources.red={input: red, keep: 'words >= 3'}",
        "+selection.sources.blue={input: blue, keep: 'words >= 3 and width > 10'}",
        "duplicates.by=[uid,image]",
        "samples_per_shard=5",
        "scorers.text.language=false",
        "workers=1",
        "json=true",
        *more,
    ]


def curated(call: Run, raw: Path, out: Path, *more: str) -> dict[str, Any]:
    """Curate, and give the figures."""
    code, stdout, stderr = call(*words(raw, out, *more))
    assert code == 0, stderr
    figures: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return figures


def contents(folder: Path) -> Contents:
    """Count the pairs of a folder of raw shards."""
    found = [item for path in sorted(folder.glob("*.tar")) for item in read_samples(path, "x")]
    return Counter((s.uid, s.read(), s.caption) for s in found if isinstance(s, Sample))


def tree(out: Path) -> dict[str, bytes]:
    """All files that steps made but the page, which shows the folder's name."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for step in STEPS
        for path in sorted((out / step).rglob("*"))
        if path.is_file()
    }
