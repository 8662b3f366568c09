"""How many images and packs a second do loader processes deliver? `gpu.py` starts this.

python bench/gpu_loader.py --packs-at DIR --side 384 --seconds 4
"""

import argparse
import json
import os
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.packing.reader import PackFolder

WORKERS = (1, 2, 4, 8, 16)
ENDLESS = 10**6  # steps: more than anybody waits for


def main() -> None:
    """Measure each number of workers that there are cores for and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs-at", type=Path, required=True)
    parser.add_argument("--side", type=int, default=384, help="of an image, pixels")
    parser.add_argument("--seconds", type=float, default=4, help="for each number of workers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    counts = [count for count in WORKERS if count <= max(1, cores)]
    found = {count: _speed(options, count) for count in counts}
    print(json.dumps({"cores": cores, "by_workers": found}))


def _speed(options: argparse.Namespace, workers: int) -> dict[str, float]:
    """Packs and images a second, after the first ones have come."""
    data = PackedDataModule(
        mixture={"sources": {"photos": {"packs": str(options.packs_at)}}},
        resolution={
            "plan": [{"grid": PackFolder(options.packs_at).manifest.spec.grid, "until": 1.0}]
        },
        budget={"steps": ENDLESS},
        image_side=options.side,
        global_batch=1,
        num_workers=workers,
        preflight=False,
    )
    # All that the loader asks of a Trainer; a real one prints.
    stand_in: Any = SimpleNamespace(global_step=0, global_rank=0, world_size=1)
    data.trainer = stand_in
    batches = iter(data.train_dataloader())
    # What was read ahead while the others started is not counted.
    for _ in islice(batches, 1 + 2 * workers):
        pass
    packs, images, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < options.seconds:
        packs += 1
        images += len(next(batches)["images"])
    seconds = time.perf_counter() - start
    return {"packs_per_s": packs / seconds, "images_per_s": images / seconds}


if __name__ == "__main__":
    main()
